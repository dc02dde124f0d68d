"""A field's reading as it is shown and saved: boxes to click or reach by keyboard, counts, PNG, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from html import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.inference.field_overlay import CLASS_COLOURS, DASHED, OTHER_COLOURS, draw_reading
from leukoscope.inference.field_reading import AT_EDGE, CellReading, FieldReading
from leukoscope.web.panels import data_uri, notice
from leukoscope.web.saving import File
from leukoscope.web.tables import safe_cell
from leukoscope.web.words import LIKELIEST, percent

SHOWN_SIDE = 1400
# Tells the server which box was clicked; a button answers Enter and Space by itself.
CLICK = """element.addEventListener('click', (event) => {
  const box = event.target.closest('[data-cell]')
  if (box) trigger('select', {index: Number(box.dataset.cell), value: box.dataset.cell})
})"""


def boxes(image: Image.Image, reading: FieldReading) -> str:
    """The field with a button round each of its cells; cells that the edge cuts are marked, but cannot be opened."""
    shown = image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    marks = "".join(_box(number, cell, reading, image.size) for number, cell in enumerate(reading.cells))
    hint = f'<p class="lk-note">Click a cell to open it in “One cell”. {LIKELIEST}</p>' if reading.cells else ""
    alt = escape(f"{reading.source}; {len(reading.cells)} cells are boxed, each a button with its outcome")
    return (
        f'{hint}<div class="lk-field"><img src="{data_uri(shown)}" alt="{alt}" width="{shown.width}" '
        f'height="{shown.height}">{marks}</div>'
    )


def _box(number: int, found: CellReading, reading: FieldReading, size: tuple[int, int]) -> str:
    left, top, right, bottom = found.cell.box
    width, height = size
    place = (
        f"left:{left / width:.3%};top:{top / height:.3%};width:{(right - left) / width:.3%};"
        f"height:{(bottom - top) / height:.3%};border-color:{_colour(found.outcome, reading.labels)};"
        f"border-style:{'dashed' if found.outcome in DASHED else 'solid'}"
    )
    says = f"{number + 1}: {found.outcome}"
    if found.outcome == AT_EDGE:
        return f'<span class="lk-box" style="{place}" title="{escape(says)}"></span>'
    share = found.prediction and percent(max(found.prediction.probabilities.values()))
    name = escape(f"Cell {says}{f', {share}' if share else ''}; open it")
    return (
        f'<button class="lk-box" type="button" data-cell="{number}" style="{place}" aria-label="{name}" '
        f'title="{name}"><span aria-hidden="true">{escape(says)}</span></button>'
    )


def _colour(outcome: str, labels: tuple[str, ...]) -> str:
    return OTHER_COLOURS.get(outcome) or CLASS_COLOURS[labels.index(outcome) % len(CLASS_COLOURS)]


def counts(reading: FieldReading) -> str:
    """What was found in words, how many cells of each outcome, and what to beware of."""
    rows = "".join(
        f"<div><dt>{escape(outcome)}</dt><dd>{count}</dd></div>" for outcome, count in reading.counts.items()
    )
    scale = reading.field.scale
    facts = [f"Model {reading.model}", f"revision {reading.revision[:12]}" if reading.revision else "local files"]
    facts += [f"{scale.um_per_pixel:.3f} µm a pixel ({scale.source})"] if scale else []
    notes = "".join(f"<p>{escape(note)}</p>" for note in reading.field.notes)
    return (
        f'<p class="lk-verdict" role="status">{escape(reading.summary)}</p><dl class="lk-counts">{rows}</dl>{notes}'
        f'<p class="lk-note">{escape("; ".join(facts))}.</p>{notice()}'
    )


def save_reading(image: Image.Image, reading: FieldReading, kind: str) -> File:
    """A reading as a file.

    Args:
        kind: "PNG", "CSV" or "JSON".
    """
    stem = "".join(letter if letter.isalnum() else "-" for letter in reading.source.rsplit(".", 1)[0])[:60]
    make = {"PNG": _png, "CSV": _csv, "JSON": _json}[kind]
    media = {"PNG": "image/png", "CSV": "text/csv", "JSON": "application/json"}[kind]
    return File(f"leukoscope-{stem or 'field'}.{kind.lower()}", media, make(image, reading))


def _png(image: Image.Image, reading: FieldReading) -> bytes:
    about = PngInfo()
    about.add_itxt("Title", f"{reading.source} read by {reading.model}: {reading.summary}")
    about.add_itxt("Source", f"model {reading.model}, revision {reading.revision or 'of a local folder'}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    about.add_text("Software", f"Leukoscope {__version__}")
    buffer = io.BytesIO()
    draw_reading(image, reading).save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


def _csv(image: Image.Image, reading: FieldReading) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    shares = [f"p_{label}" for label in reading.labels]
    table.writerow(["cell", "left", "top", "right", "bottom", "outcome", *shares, "ood_score", "nucleus_um2",
                    "source", "model", "revision", "notice"])  # fmt: skip
    about = [*map(safe_cell, (reading.source, reading.model)), reading.revision, RESEARCH_NOTICE]
    for number, cell in enumerate(reading.to_dict()["cells"], start=1):
        probabilities = [(cell["probabilities"] or {}).get(label, "") for label in reading.labels]
        ood = "" if cell["ood_score"] is None else cell["ood_score"]
        table.writerow(
            [number, *cell["box"], safe_cell(cell["outcome"]), *probabilities, ood, cell["nucleus_um2"], *about]
        )
    return text.getvalue().encode()


def _json(image: Image.Image, reading: FieldReading) -> bytes:
    return json.dumps(reading.to_dict(), indent=1).encode()
