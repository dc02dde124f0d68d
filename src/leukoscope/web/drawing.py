"""What every part of the page is drawn with: the templates beside it, in which all text is escaped, and its colours.

Pictures travel inside the page (data URIs): a visitor's cell is never written to disk to be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.registry import cells_of
from leukoscope.inference.prediction import REFUSED, WITHOUT_CLASS
from leukoscope.inference.smear import colour_place
from leukoscope.reports import text
from leukoscope.reports.formatting import data_uri, encoded
from leukoscope.reports.text import short_name

UNLIKE_TRAINING = "unlike"  # its training cells, where there is room for a word
WAITING_FOR_OTHERS = "Waiting: another visitor’s pictures are being read first."
_TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cells_of": cells_of, "short_name": short_name}
    environment.globals |= {
        "meanings": text.MEANINGS,
        "notice": RESEARCH_NOTICE,
        "question_of": text.question,
        "meanings_of": text.meanings_text,
    }
    return environment


def render(template: str, **values: Any) -> Markup:
    """A template of this package with these values; a name without a value is an error."""
    return Markup(_environment().get_template(template).render(values))


@dataclass(frozen=True)
class EmbeddedImage:
    """A picture that travels within the page."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Address:
    """How the browser finds again what is shown: by the page's address, or by Back and Forward.

    Attributes:
        example: what the page's address calls the synthetic picture or batch; "" for any other.
        given: number of what was given, in this visit; 0 for nothing.
        cell: number of the cell that is opened from a smear or a batch.
    """

    example: str = ""
    given: int = 0
    cell: int | None = None


NO_ADDRESS = Address()


def embedded(image: Image.Image, side: int = 0) -> EmbeddedImage:
    """A picture for a template, at most `side` pixels wide and high unless that is 0."""
    # A cell in full is magnified and shown brighter: stronger compression would show its blocks. A visitor waits for
    # it, and the fastest method takes a third of the time.
    options = {"quality": 97, "method": 0}
    if side:
        image = image.copy()
        image.thumbnail((side, side))
        options = {"quality": 88}
    content = encoded(image, "WEBP", **options)
    return EmbeddedImage(data_uri("image/webp", content), image.width, image.height)


def colour(outcome: str, labels: Sequence[str]) -> str:
    """The CSS colour of a class, the same in boxes, bars, dots and plots; grey for no class."""
    if outcome in labels:
        return f"var(--lk-class-{colour_place(outcome, labels)})"
    return "var(--lk-none)"


def form(outcome: str) -> str:
    """The CSS class of an outcome's form in bars, legends and dots: grey alone would not set refused cells apart."""
    if outcome in REFUSED:
        return "lk-unlike"
    return "lk-known"


def outcome_counts(
    counts: Mapping[str, int],
    labels: Sequence[str],
    *,
    also: Sequence[str] = (),
    words: Callable[[str, int], str] = lambda outcome, _: text.outcome_text(outcome),
) -> list[dict[str, Any]]:
    """How many cells have each outcome, for the bar of a smear or a batch.

    Every class is listed, what occurs beside them, and the outcomes of `also` even if none occurs. `words` names an
    outcome of so many cells.
    """
    outcomes = [*labels, *(outcome for outcome in WITHOUT_CLASS if counts.get(outcome) or outcome in also)]
    return [
        {
            "count": counts.get(outcome, 0),
            "words": words(outcome, counts.get(outcome, 0)),
            "colour": colour(outcome, labels),
            "form": form(outcome),
        }
        for outcome in outcomes
    ]


def message(title: str, reason: str) -> Markup:
    """Something the visitor should act on: what is wrong, and the fix."""
    return render("message.html", title=title, reason=reason)


def waiting(sentence: str, *, stops: bool = False) -> Markup:
    """What stands where an answer will be, in its shape; a thin line runs above it. With `stops`, it can be ended."""
    return render("waiting.html", sentence=sentence, stops=stops)


def invitation(title: str) -> Markup:
    """What stands where an answer would be while nothing is asked: what can be given."""
    return render("invitation.html", title=title)


def part(value: str, elem_id: str, *scripts: str) -> gr.HTML:
    """A part of the page that is drawn by our own style, with the JavaScript files that run in it."""
    return gr.HTML(
        value, elem_id=elem_id, apply_default_css=False, js_on_load="\n".join(map(script, scripts)) if scripts else None
    )


def script(name: str) -> str:
    """A file of JavaScript beside this one, without the comment at its beginning."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//"))
