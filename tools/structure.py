"""How large the source is, and which files three tasks enter: `make structure`.

Lines by package beside their budget, flags of training, dependencies, long files and functions; the files that one
prediction, one training of seconds and one click in the demo run through. tests/docs/test_structure.py asserts that no
import is part of a circle.
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import walk_packages
from types import FrameType

from PIL import Image

from leukoscope.cli import app
from leukoscope.synthetic import draw_cell
from leukoscope.training.config import DataArguments, ModelArguments, RunArguments
from leukoscope.web.app import Endpoints
from leukoscope.web.model_cache import ModelCache

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "leukoscope"
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
    "all": 17_500,
}
# Folders beside the package, and pages, styles and scripts in it: at most so many lines.
BESIDE = {"tests": 25_000, "research": 6_200, "tools": 450}
PAGE_SUFFIXES, PAGE_LINES = (".js", ".css", ".html", ".json"), 900
TRAIN_FLAGS, DEPENDENCIES, FILE_LINES, FUNCTION_LINES = 44, 20, 450, 60
# At most so many files entered.
TRACES = {"one prediction": 11, "one training": 28, "one click": 14}


def long_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines, from `def` to the last, of each function with more than `FUNCTION_LINES`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.name, lines


def traced(call: Callable[[], object]) -> list[str]:
    """Run a call; the files of the source, imported before, that it entered on any thread, in order."""
    source, entered = str(SOURCE), dict[str, None]()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (file := frame.f_code.co_filename).startswith(source):
            entered[file.removeprefix(source)[1:]] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(entered)


def traced_task(what: str, picture: str) -> list[str]:
    """`traced` of one of `TRACES`, in this process."""
    for module in walk_packages([str(SOURCE)], "leukoscope."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    released = ROOT / "model_card" / "leukoscope-densenet169-cnmc"
    if what == "one click":
        ask = Endpoints(ModelCache({"released": released})).predict
        ask(picture, "released")  # loads the model
        return traced(lambda: ask(picture, "released"))
    small = "train --model_name_or_path test_resnet --from_scratch --image_size 32 --num_train_epochs 1 --output_dir"
    training = [*small.split(), str(Path(picture).with_name("run"))]
    words = training if what == "one training" else ["predict", str(released), picture]
    return traced(lambda: app(words, standalone_mode=False))


def print_traces() -> None:
    """Print the files that each task enters, traced in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as one,
    ):
        os.environ |= {"LEUKOSCOPE_CACHE": folder, "LEUKOSCOPE_BACKEND": "torch"}  # a kept graph would shorten the path
        picture = str(Path(folder) / "cell.png")
        Image.fromarray(draw_cell("ALL", subject=1, cell=1, size=300, background="black").image).save(picture)
        for what, most in TRACES.items():
            entered = one.submit(traced_task, what, picture).result()
            print(f"\n{what} enters {len(entered)} files (at most {most}):\n  " + "\n  ".join(entered))


def print_sizes() -> None:
    """Print the lines of each package beside its budget, then what else is counted."""

    def lines_of(path: Path) -> int:
        return len(path.read_text(encoding="utf-8").splitlines())

    files = {path: lines_of(path) for path in sorted(SOURCE.rglob("*.py"))}
    counted: dict[str, list[int]] = {name: [] for name in BUDGETS}
    for path, lines in files.items():
        package = path.relative_to(SOURCE).parts[0]
        counted[package if package in BUDGETS else "top"].append(lines)
        counted["all"].append(lines)
    counted["pages"] = [lines_of(path) for path in SOURCE.rglob("*") if path.suffix in PAGE_SUFFIXES]
    counted |= {name: [lines_of(path) for path in (ROOT / name).rglob("*.py")] for name in BESIDE}
    budgets = BUDGETS | {"pages": PAGE_LINES} | BESIDE
    print(f"{'':<12}{'files':>6}{'lines':>8}{'budget':>8}{'longest':>8}")
    for name, counts in counted.items():
        print(f"{name:<12}{len(counts):>6}{sum(counts):>8,}{budgets[name]:>8,}{max(counts):>8,}")
    flags = sum(len(fields(group)) for group in (DataArguments, ModelArguments, RunArguments))
    print(f"\nflags of training: {flags} (at most {TRAIN_FLAGS})")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print(f"run-time dependencies: {len(project['dependencies'])} (at most {DEPENDENCIES})")
    for path, lines in files.items():
        module = path.relative_to(SOURCE)
        if lines > FILE_LINES:
            print(f"{module}: {lines} lines (at most {FILE_LINES})")
        for function, count in long_functions(path):
            print(f"{module}, {function}: {count} lines (at most {FUNCTION_LINES})")


if __name__ == "__main__":
    print_sizes()
    print_traces()
