"""What is looked at: components that draw plain data with a template, a style and a little JavaScript of their own.

The files of each lie in `drawn/`, named as its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

DEMO_FOLDER = Path(__file__).parent
# Gradio fills a template with the values, and then runs the result as a template of JavaScript, in which ${…} is code.
HARMLESS = str.maketrans({letter: f"&#{ord(letter)};" for letter in "&<>\"'`$\\{}"})


class Drawn(gr.HTML):
    """A component whose value is data and whose look is in files beside it.

    No text of a value is code, whatever it holds: `postprocess` writes the letters of HTML, JavaScript and Handlebars
    as entities, so templates fill them in by three braces.
    """

    def __init__(self, value: Any = None, **options: Any) -> None:
        name = type(self).__name__
        super().__init__(
            value,
            html_template=read_part(f"{name}.html"),
            css_template=read_part(f"{name}.css"),
            js_on_load=read_part("shared.js") + read_part(f"{name}.js"),
            apply_default_css=False,
            **options,
        )

    def postprocess(self, value: Any) -> Any:
        """The data as the template may have it."""
        return harmless(value)


class VerdictCard(Drawn):
    """One model's answer; its value is an `answers.Card`."""


class CellStage(Drawn):
    """The cell, its stability and its map; its value is a `pictures.Stage`."""


class SmearStage(Drawn):
    """A smear with a button for each cell; its value is a `smear.SmearView`."""


class PeoplePlot(Drawn):
    """A row of dots for each person; its value is a `people.Plot`."""


class PictureStrip(Drawn):
    """Where pictures are chosen; its value is an `uploads.Chosen`, and what the strip itself shows.

    Args:
        tiles: the examples, of `pictures.example_tile`.
        shows: what can be given, in words.
        many: whether a folder and several files can be given.
    """

    def __init__(self, tiles: Sequence[Any], shows: str, many: bool = False, **options: Any) -> None:
        # Not as properties: a component in a tab that was never open loses them with its first value.
        self.shown = {"tiles": list(tiles), "shows": shows, "many": many}
        super().__init__({}, **options)

    def postprocess(self, value: Any) -> Any:
        """The value, and what the strip shows beside it."""
        return super().postprocess({**self.shown, **(value or {})})


def read_part(name: str) -> str:
    """A template, a style or a script; "" where a component has none."""
    path = DEMO_FOLDER / "drawn" / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def harmless(value: Any) -> Any:
    """The same data with every text, keys included, written so that no browser takes a part of it for code."""
    if isinstance(value, dict):
        return {harmless(key): harmless(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [harmless(entry) for entry in value]
    if isinstance(value, str):
        return value.translate(HARMLESS)
    return value
