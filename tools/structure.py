"""How large and how readable the source is: lines by package, files on two paths, import circles, private words.

`python tools/structure.py` prints the numbers, with `--run` also the files that one prediction and one training on
phantoms run through (a minute); tests/docs/test_structure.py asserts that there is no circle and that no
word of `REMOVED_WORDS` is in a text for readers.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "leukoscope"
ENTRIES = {"one training": "leukoscope.training.train", "one prediction": "leukoscope.inference.predictor"}

# Words that must not be in a text for readers.
REMOVED_WORDS = ("room", "rooms", "house", "shelf", "guard", "verdict")
# Words that a standard term replaces; counted, so that it can be seen whether they become fewer.
PRIVATE_WORDS = (
    *REMOVED_WORDS,
    "answer",
    "answers",
    "answered",
    "asked",
    "says",
    "familiarity",
    "recognised",
    "draws",
    "drawn",
    "figures",
    "look",
    "looks",
    "heat",
    "sheet",
    "patience",
    "shipped",
    "wording",
    "to the bit",
    "goes on",
    "the network",
)


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


def word_counts(texts: Mapping[str, str], words: tuple[str, ...]) -> dict[str, Counter[str]]:
    """Word → place → how often it is there."""
    found: dict[str, Counter[str]] = {}
    for word in words:
        pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
        counts = Counter({place: len(pattern.findall(text)) for place, text in texts.items()})
        found[word] = +counts
    return found


def traced(call: Callable[[], object]) -> tuple[dict[str, set[str]], int]:
    """Run a call and follow it through the package; modules that it imports and other threads are not counted.

    Returns:
        file below src/leukoscope → its functions that were entered, and how often a call entered another file than the
        one before it.
    """
    entered: dict[str, set[str]] = {}
    changes, last = -1, ""

    def note(frame: Any, event: str, _: object) -> None:
        nonlocal changes, last
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(str(ROOT / "src" / PACKAGE)):
            file = str(Path(code.co_filename).relative_to(ROOT / "src" / PACKAGE))
            entered.setdefault(file, set()).add(code.co_name)
            changes, last = changes + (file != last), file

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered, max(0, changes)


def print_files_run() -> None:
    """Print the files of one prediction, with and without loading the release, and of one training on phantoms."""
    sys.path.insert(0, str(ROOT / "src"))
    from PIL import Image

    from leukoscope import Predictor
    from leukoscope.data.synthetic import draw_cell
    from leukoscope.training.config import parse_config
    from leukoscope.training.train import train

    release = ROOT / "model_card" / "leukoscope-densenet169-cnmc"
    predictor = Predictor.from_pretrained(release, backend="torch")
    picture = Image.fromarray(draw_cell("ALL", subject=1, cell=1, size=300, background="black").image)
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config(["--output_dir", f"{folder}/run", "--num_train_epochs", "1"])
        measured = {
            "one prediction": traced(lambda: predictor(picture)),
            "one prediction with its map": traced(lambda: predictor(picture, explain=True)),
            "loading and one prediction": traced(lambda: Predictor.from_pretrained(release, backend="torch")(picture)),
            "one training": traced(lambda: train(config)),
        }
    for what, (found, changes) in measured.items():
        print(f"\n{what} runs through {len(found)} files with {changes} changes of file:")
        for file, functions in found.items():
            print(f"  {file} ({len(functions)} functions)")


def main() -> None:
    """Print everything."""
    files = modules()
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    graph = imports(files)
    by_package: dict[str, list[int]] = {}
    for name, count in lines.items():
        package = name.split(".")[1] if files[name].parent.name != PACKAGE else "(top)"
        by_package.setdefault(package, []).append(count)
    for package, counts in sorted(by_package.items()):
        print(f"{package:<12}{len(counts):>4} files{sum(counts):>8,} lines, longest {max(counts):,}")
    print(f"{'all':<12}{len(files):>4} files{sum(lines.values()):>8,} lines")
    for what, entry in ENTRIES.items():
        path = reached_from(entry, graph) if entry in graph else set()
        print(f"\n{what} ({entry}): {len(path)} files, {sum(lines[name] for name in path):,} lines")
        for package in sorted({name.split(".")[1] for name in path if "." in name}):
            inside = sorted(name for name in path if name.split(".")[1:2] == [package])
            print(f"  {package}: {', '.join(name.removeprefix(f'{PACKAGE}.{package}').lstrip('.') for name in inside)}")
    print(f"\nimport circle: {' → '.join(import_circle(graph)) or 'none'}")
    print("\nwords in texts for readers:")
    for word, places in word_counts(public_texts(), PRIVATE_WORDS).items():
        if places:
            print(f"  {word}: {places.total()} ({', '.join(name for name, _ in places.most_common(3))} …)")
    if "--run" in sys.argv[1:]:
        print_files_run()


if __name__ == "__main__":
    main()
