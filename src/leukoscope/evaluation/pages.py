"""A report as one HTML file: findings, tables and pictures that a person reads in a browser, with nothing to fetch.

Audits and evaluations fill `Section`s; the page's looks live in page.html beside this file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cells.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Picture:
    """A picture within a page.

    Attributes:
        source: a `data:` URI, from `figure_picture` or `cell_picture`.
        alt: what it shows, in words, for who cannot see it.
        caption: the line below it.
    """

    source: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        heading: what it is about.
        text: paragraphs of plain text; nothing in it is read as markup.
        columns, rows: a table, its cells ready to be shown; none when `rows` is empty.
        pictures: figures across the page, or many small pictures in a grid.
        verdict: "good", "warning", "bad" or "" — coloured, and said in words as well.
    """

    heading: str
    text: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)
    verdict: str = ""


def figure_picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A matplotlib figure as an SVG picture; the figure is closed."""
    from matplotlib import pyplot

    file = io.BytesIO()
    # Without a date, the same figures give the same file.
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return Picture(_data_uri("image/svg+xml", file.getvalue()), alt, caption)


def cell_picture(image: Image, alt: str, caption: str = "", *, side: int = 128) -> Picture:
    """A cell, no larger than `side` pixels, as a JPEG picture."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=85)
    return Picture(_data_uri("image/jpeg", file.getvalue()), alt, caption)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_page(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """Render a page and write it whole.

    Args:
        title: its heading.
        lead: the paragraphs below it: the result in short.

    Raises:
        LeukoscopeError: the file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE.read_text())
    page = template.render(title=title, lead=lead, sections=sections, notice=RESEARCH_NOTICE, version=__version__)
    return write_whole(path, page)
