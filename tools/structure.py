"""How large the source is, and how long two paths through it are: `make structure`, two minutes.

Lines by package beside their budget, flags of training, dependencies, long functions; the modules that a path imports,
and the files that one prediction and one training run enter. tests/docs/test_structure.py asserts that no import is
part of a circle and that no word of `REMOVED_WORDS` is in a text for readers.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from graphlib import CycleError, TopologicalSorter
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "leukoscope"
PACKAGE = SOURCE.name
# At most so many lines; modules beside the packages are "top".
BUDGETS = {
    "top": 1600,
    "data": 2700,
    "models": 1650,
    "inference": 3000,
    "evaluation": 3700,
    "training": 3000,
    "protocol": 300,
    "reports": 1500,
    "hub": 900,
    "web": 3700,
    "cli": 1450,
}
ALL_LINES, RESEARCH_LINES, TRAIN_FLAGS, DEPENDENCIES, FUNCTION_LINES = 23_500, 5_500, 45, 18, 70
ENTRIES = {"one prediction": "leukoscope.inference.predictor", "one training": "leukoscope.training.train"}
# At most so many files entered, and changes from one file to another; None where there is no aim.
TRACES: dict[str, tuple[int, int | None]] = {"one prediction": (13, 35), "one training": (32, None)}

# Words that must not be in a text for readers.
REMOVED_WORDS = ("room", "rooms", "house", "shelf", "guard", "verdict")


def modules(source: Path = ROOT / "src") -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → modules of the package that it imports, at its top or in a function; those for type checkers are not."""
    return {name: set(_imports_of(path, files)) - {name} for name, path in files.items()}


def _imports_of(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and (module := node.module) and module in files:
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in files else module
        pending += ast.iter_child_nodes(node)


def import_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of imports, its first module again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])[::-1]
    return []


def reached_from(entry: str, graph: Mapping[str, set[str]]) -> set[str]:
    """The entry and every module that it imports, directly or not."""
    found, pending = set(), [entry]
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += graph[module]
    return found


def long_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines, from `def` to the last, of each function with more than `FUNCTION_LINES`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.name, lines


def public_texts(root: Path = ROOT) -> dict[str, str]:
    """Place → text for readers: README, CONTRIBUTING, docs/ without code, and docstrings of public names."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    texts = {str(page.relative_to(root)): _prose(page.read_text(encoding="utf-8")) for page in pages}
    for name, path in modules(root / "src").items():
        texts |= {f"{name}.{of}": text for of, text in _docstrings(ast.parse(path.read_text(encoding="utf-8")))}
    return texts


def _prose(page: str) -> str:
    without_blocks = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    # Generated tables quote committed results.
    without_tables = re.sub(r"<!-- (\S+): rendered by .*?<!-- end of \1 -->", "", without_blocks, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", without_tables)


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    yield "__doc__", _prose(ast.get_docstring(tree) or "")
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, parent = pending.pop()
        for node in ast.iter_child_nodes(parent):
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_"):  # type: ignore[attr-defined]
                name = f"{prefix}{node.name}"  # type: ignore[attr-defined]
                yield name, _prose(ast.get_docstring(node) or "")  # type: ignore[arg-type]
                if isinstance(node, ast.ClassDef):
                    pending.append((f"{name}.", node))


def word_counts(texts: Mapping[str, str], words: Sequence[str]) -> dict[str, Counter[str]]:
    """Word → place → how often it is there."""
    found: dict[str, Counter[str]] = {}
    for word in words:
        pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
        counts = Counter({place: len(pattern.findall(text)) for place, text in texts.items()})
        found[word] = +counts
    return found


# Comprehensions have frames of their own before Python 3.12.
_NO_FUNCTIONS = ("<module>", "<listcomp>", "<dictcomp>", "<setcomp>")


def traced(call: Callable[[], object], *, once: bool = False) -> tuple[Counter[str], int]:
    """Run a call and follow it through the package, on every thread that it starts.

    Args:
        once: count each function and class when it is first run only.

    Returns:
        file below src/leukoscope → how many of its functions and classes were run, in the order in which the files
        were entered; and how often another file was entered than the one before.
    """
    source = str(SOURCE)
    run: dict[tuple[str, int, str], str] = {}
    changes, last = -1, ""

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal changes, last
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(source) or code.co_name in _NO_FUNCTIONS:
            return
        place = (code.co_filename, code.co_firstlineno, code.co_name)
        if once and place in run:
            return
        file = run.setdefault(place, code.co_filename.removeprefix(source)[1:])
        changes, last = changes + (file != last), file

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Counter(run.values()), max(0, changes)


def traced_command(words: Sequence[str]) -> tuple[Counter[str], int]:
    """`traced` of `leukoscope WORDS` in this process, each function and class once."""
    sys.path.insert(0, str(SOURCE.parent))
    from leukoscope.cli import app

    def call() -> None:
        try:
            app()
        except SystemExit as ended:
            if ended.code:
                raise

    sys.argv = ["leukoscope", *words]
    return traced(call, once=True)


def traces() -> dict[str, tuple[Counter[str], int]]:
    """`traced_command` of one prediction by torch and of one training on phantoms, each in a process of its own."""
    sys.path.insert(0, str(SOURCE.parent))
    from PIL import Image

    from leukoscope.synthetic import draw_cell

    release = ROOT / "model_card" / "leukoscope-densenet169-cnmc"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEUKOSCOPE_CACHE"] = folder  # kept graphs would shorten the paths
        picture = Path(folder) / "cell.png"
        Image.fromarray(draw_cell("ALL", subject=1, cell=1, size=300, background="black").image).save(picture)
        commands = {
            "one prediction": ["predict", str(release), str(picture), "--backend", "torch"],
            "one training": ["train", "--output_dir", f"{folder}/run", "--num_train_epochs", "1"],
        }
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
            return {what: processes.submit(traced_command, words).result() for what, words in commands.items()}


def main() -> None:
    """Print everything."""
    files = modules()
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    print_sizes(files, lines)
    graph = imports(files)
    print(f"import circle: {' → '.join(import_circle(graph)) or 'none'}")
    for what, entry in ENTRIES.items():
        reached = reached_from(entry, graph)
        print(f"\n{what}, from {entry}: imports {len(reached)} files, {sum(lines[name] for name in reached):,} lines")
        for package in sorted({name.split(".")[1] for name in reached if "." in name}):
            inside = sorted(name for name in reached if name.split(".")[1:2] == [package])
            print(f"  {package}: {', '.join(name.removeprefix(f'{PACKAGE}.{package}').lstrip('.') for name in inside)}")
    for what, (functions, changes) in traces().items():
        most_files, most_changes = TRACES[what]
        aim = f" (at most {most_changes})" if most_changes else ""
        print(f"\n{what} enters {len(functions)} files (at most {most_files}) with {changes} changes of file{aim}:")
        print("\n".join(f"  {file} ({count} functions and classes)" for file, count in functions.items()))


def print_sizes(files: Mapping[str, Path], lines: Mapping[str, int]) -> None:
    """Print the lines of each package beside its budget, then what else is counted."""
    by_package: dict[str, list[int]] = {}
    for name, count in lines.items():
        package = name.removeprefix(f"{PACKAGE}.").split(".")[0]
        is_top = files[name].parent == SOURCE and package not in BUDGETS
        by_package.setdefault("top" if is_top else package, []).append(count)
    research = [len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "research").rglob("*.py")]
    print(f"{'':<12}{'files':>6}{'lines':>8}{'budget':>8}{'longest':>8}")
    for package, counts, budget in (
        *((package, counts, BUDGETS.get(package, 0)) for package, counts in sorted(by_package.items())),
        ("all", list(lines.values()), ALL_LINES),
        ("research", research, RESEARCH_LINES),
    ):
        print(f"{package:<12}{len(counts):>6}{sum(counts):>8,}{budget:>8,}{max(counts):>8,}")
    print(f"\nflags of training: {train_flags()} (at most {TRAIN_FLAGS})")
    print(f"run-time dependencies: {len(dependencies())} (at most {DEPENDENCIES})")
    print(f"functions over {FUNCTION_LINES} lines:")
    for name, path in files.items():
        for function, count in long_functions(path):
            print(f"  {name}.{function}: {count}")


def dependencies() -> list[str]:
    """What the package needs without an extra."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def train_flags() -> int:
    """How many flags `leukoscope train --help` lists beside `--help`."""
    command = [sys.executable, "-m", PACKAGE, "train", "--help"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"^  --\w", shown, re.MULTILINE))


if __name__ == "__main__":
    main()
