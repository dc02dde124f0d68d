"""The API reference, rendered from docstrings: `make site` puts it below docs/python.md.

The names listed here are meant to stay; other names may change from one version to the next.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

PUBLIC = {
    "leukoscope": (
        "load_dataset",
        "make_split",
        "train",
        "evaluate",
        "Predictor",
        "Prediction",
        "Decision",
        "read_smear",
        "score",
        "overlay",
        "LeukoscopeError",
    ),
    "leukoscope.data.cells": ("LoadedCells",),
    "leukoscope.data.splits": ("Split", "load_split"),
    "leukoscope.synthetic": ("draw_cell", "phantom_cells", "PhantomCell"),
    "leukoscope.synthetic_smears": ("draw_smear",),
    "leukoscope.inference.prediction": ("Reason", "Checks", "HeatMap"),
    "leukoscope.inference.runtime": ("Runtime",),
    "leukoscope.inference.subject": ("SubjectPrediction",),
    "leukoscope.inference.smear": ("SmearReading",),
    "leukoscope.models.weights": ("load_release", "Release"),
    "leukoscope.evaluation.metrics": ("CellPredictions", "measure"),
    "leukoscope.reports.card": ("write_card",),
    "leukoscope.hub.publish": ("publish", "Destination"),
}


def reference() -> str:
    """Every public name with its signature and what its docstring says, as Markdown."""
    return "\n".join(line for module, names in PUBLIC.items() for line in _module(module, names))


def _module(module: str, names: tuple[str, ...]) -> Iterator[str]:
    yield f"## `{module}`\n"
    for name in names:
        thing = getattr(import_module(module), name)
        yield f"### `{name}`\n"
        yield from _described(name, thing)
        for method, function in _methods(thing):
            yield from _described(f"{name}.{method}" if method != "__call__" else f"{name}(…)", function)


def _described(name: str, thing: Any) -> Iterator[str]:
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        yield f"```text\n{name}{_signature(thing)}\n```\n"
    # Indented as in the source, arguments stay the list they are.
    yield f"{_as_markdown(inspect.getdoc(thing) or '')}\n"


class _Unquoted(str):
    """An annotation as it stands in the source, where it is a text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(thing: Any) -> str:
    if isinstance(thing, property):
        return ""
    signature = inspect.signature(thing)
    parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    shown = [one.replace(annotation=_Unquoted(one.annotation)) for one in parameters]
    if inspect.isclass(thing):
        return str(inspect.Signature(shown))
    return str(inspect.Signature(shown, return_annotation=_Unquoted(signature.return_annotation)))


def _methods(thing: Any) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class of ours, in the order of its source."""
    if not inspect.isclass(thing) or issubclass(thing, Exception):
        return
    for name, member in vars(thing).items():
        function = member.__func__ if isinstance(member, classmethod) else member
        if not (inspect.isfunction(function) or isinstance(function, property)) or not inspect.getdoc(function):
            continue
        if not name.startswith("_") or name == "__call__":
            yield name, function


def _as_markdown(text: str) -> str:
    """A docstring's sections as bold words over lists; its prose as it is."""
    lines = []
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            lines.append(f"**{line.removesuffix(':')}**\n")
        elif entry := re.fullmatch(r" {4}(\*{0,2}\w[\w, *]*): (.*)", line):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line.removeprefix("    "))
    return "\n".join(lines)
