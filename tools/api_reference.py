"""The API reference, rendered from docstrings: `make site` puts it below docs/python.md.

The names listed here are meant to stay; other names may change from one version to the next.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import leukoscope

PUBLIC = {
    "leukoscope": tuple(name for name in leukoscope.__all__ if callable(getattr(leukoscope, name))),
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


def _signature(thing: Any) -> str:
    if isinstance(thing, property):
        return ""
    shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))  # annotations, which are texts
    shown = re.sub(r"^\((self|cls)(, )?", "(", shown)
    return shown.removesuffix(" -> None") if inspect.isclass(thing) else shown


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
