"""How large the source is, and which files three tasks enter: `make structure`.

Lines by package beside their budget, flags of training, dependencies, long files and functions; the files that one
prediction, one training of seconds and one click in the demo run through. tests/docs/test_structure.py asserts that no
import is part of a circle.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from graphlib import CycleError, TopologicalSorter
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "leukoscope"
PACKAGE = SOURCE.name
# At most so many lines of Python; modules beside the packages are "top".
BUDGETS = {
    "top": 1350,
    "data": 2900,
    "models": 1250,
    "inference": 2250,
    "evaluation": 2250,
    "training": 2350,
    "reports": 850,
    "hub": 550,
    "web": 2700,
    "cli": 1050,
}
ALL_LINES, TRAIN_FLAGS, DEPENDENCIES, FILE_LINES, FUNCTION_LINES = 17_500, 44, 20, 450, 60
# Folders beside the package, and pages, styles and scripts in it: at most so many lines.
BESIDE = {"tests": 25_000, "research": 6_200, "tools": 450}
PAGE_SUFFIXES, PAGE_LINES = (".js", ".css", ".html", ".json"), 900
# At most so many files entered.
TRACES = {"one prediction": 11, "one training": 28, "one click": 14}


def modules(source: Path = ROOT / "src") -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → modules of the package that it imports anywhere, also in a function or for type checkers.

    What `leukoscope` itself offers by name, it imports when asked for: nothing depends on that.
    """
    return {name: set(_imports_of(path, files)) - {name} if name != PACKAGE else set() for name, path in files.items()}


def _imports_of(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and (module := node.module) and module in files:
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in files else module


def import_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of imports, its first module again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])[::-1]
    return []


def imports_in_functions(path: Path) -> int:
    """How many import statements of a file stand inside a function."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return len({node for one in functions for node in ast.walk(one) if isinstance(node, ast.Import | ast.ImportFrom)})


def long_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines, from `def` to the last, of each function with more than `FUNCTION_LINES`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.name, lines


# Comprehensions have frames of their own before Python 3.12.
_NO_FUNCTIONS = ("<module>", "<listcomp>", "<dictcomp>", "<setcomp>")


def traced(call: Callable[[], object]) -> list[str]:
    """Run a call; the files below src/leukoscope whose functions it ran, on any thread, in the order of entry.

    What a module calls while it is imported, such as the registry of data sets, is not counted.
    """
    source, entered = str(SOURCE), dict[str, None]()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(source) and code.co_name not in _NO_FUNCTIONS:
            above: FrameType | None = frame
            while above is not None:
                if above.f_code.co_name == "<module>" and above.f_code.co_filename.startswith(source):
                    return
                above = above.f_back
            entered[code.co_filename.removeprefix(source)[1:]] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(entered)


def traced_command(words: Sequence[str]) -> list[str]:
    """`traced` of `leukoscope WORDS` in this process."""
    sys.path.insert(0, str(SOURCE.parent))
    from leukoscope.cli import app

    def call() -> None:
        try:
            app()
        except SystemExit as ended:
            if ended.code:
                raise

    sys.argv = ["leukoscope", *words]
    return traced(call)


def traced_click(picture: str) -> list[str]:
    """`traced` of what the demo does with one picture, its models loaded."""
    sys.path.insert(0, str(SOURCE.parent))
    from leukoscope.web.app import build_demo
    from leukoscope.web.model_cache import ModelCache

    demo = build_demo(ModelCache({"released": ROOT / "model_card" / "leukoscope-densenet169-cnmc"}))
    (ask,) = (block.fn for block in demo.fns.values() if block.api_name == "predict")
    assert ask is not None
    ask(picture, "released")
    return traced(lambda: ask(picture, "released"))


def traces() -> dict[str, list[str]]:
    """`TRACES` → the files entered, each traced in a process of its own; prints what it begins."""
    sys.path.insert(0, str(SOURCE.parent))
    from PIL import Image

    from leukoscope.synthetic import draw_cell

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LEUKOSCOPE_CACHE": folder, "LEUKOSCOPE_BACKEND": "torch"}  # a kept graph would shorten the path
        picture = str(Path(folder) / "cell.png")
        Image.fromarray(draw_cell("ALL", subject=1, cell=1, size=300, background="black").image).save(picture)
        small = "--model_name_or_path test_resnet --from_scratch --image_size 32 --num_train_epochs 1"
        tasks: dict[str, tuple[Callable[..., list[str]], Any]] = {
            "one prediction": (
                traced_command,
                ["predict", str(ROOT / "model_card/leukoscope-densenet169-cnmc"), picture],
            ),
            "one training": (traced_command, ["train", "--output_dir", f"{folder}/run", *small.split()]),
            "one click": (traced_click, picture),
        }
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
            for what, (task, argument) in tasks.items():
                print(f"\ntracing {what}", file=sys.stderr, flush=True)
                found[what] = processes.submit(task, argument).result()
    return found


def lines_of(path: Path) -> int:
    """Lines of a text file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def print_sizes(files: Mapping[str, Path]) -> None:
    """Print the lines of each package beside its budget, then what else is counted."""
    by_package: dict[str, list[int]] = {}
    for path in files.values():
        package = path.relative_to(SOURCE).parts[0]
        by_package.setdefault(package if package in BUDGETS else "top", []).append(lines_of(path))
    beside = {name: [lines_of(path) for path in (ROOT / name).rglob("*.py")] for name in BESIDE}
    pages = [lines_of(path) for path in SOURCE.rglob("*") if path.suffix in PAGE_SUFFIXES]
    print(f"{'':<12}{'files':>6}{'lines':>8}{'budget':>8}{'longest':>8}")
    for package, counts, budget in (
        *((package, by_package.get(package, [0]), budget) for package, budget in BUDGETS.items()),
        ("all", [count for one in by_package.values() for count in one], ALL_LINES),
        ("pages", pages, PAGE_LINES),
        *((name, counts, BESIDE[name]) for name, counts in beside.items()),
    ):
        print(f"{package:<12}{len(counts):>6}{sum(counts):>8,}{budget:>8,}{max(counts):>8,}")
    print(f"\nflags of training: {train_flags()} (at most {TRAIN_FLAGS})")
    print(f"run-time dependencies: {len(dependencies())} (at most {DEPENDENCIES})")
    print(f"imports inside functions: {sum(map(imports_in_functions, files.values()))}")
    print(
        f"files over {FILE_LINES} lines: {', '.join(n for n, p in files.items() if lines_of(p) > FILE_LINES) or 'none'}"
    )
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


def main() -> None:
    """Print everything."""
    files = modules()
    print_sizes(files)
    print(f"import circle: {' → '.join(import_circle(imports(files))) or 'none'}")
    for what, entered in traces().items():
        print(f"\n{what} enters {len(entered)} files (at most {TRACES[what]}):\n  " + "\n  ".join(entered))


if __name__ == "__main__":
    main()
