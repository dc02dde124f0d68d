"""A field of view below the box: every white cell of a smear found, boxed, measured and classified; each can be opened.

The field is read once; what stands on the page, in the exports and behind the boxes comes from that reading. The same
steps serve the API at /field.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from functools import cache, partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data import fields
from leukoscope.data.images import CUT_OUT_PITCH
from leukoscope.evaluation.morphology import Morphology
from leukoscope.inference.field import (
    AT_EDGE,
    CLASS_COLOURS,
    DASHED,
    OTHER_COLOURS,
    CellReading,
    FieldReading,
    draw_reading,
)
from leukoscope.inference.prediction import FIELD_NEEDS
from leukoscope.inference.scoring import safe_cell
from leukoscope.synthetic import draw_field
from leukoscope.web import panels, upload
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import SESSION_SECONDS, Updates
from leukoscope.web.result import CellResult, predict_cell
from leukoscope.web.text import about_model, outcome_text, percent, t

# Seed and classes; drawn at a scale that the fields of a 40× objective have. With this seed, each cell gets its class
# from leukoscope-densenet169-cnmc.
EXAMPLE_SEED, EXAMPLE_CLASSES = 66, ("ALL", "HEM", "ALL", "HEM", "ALL")
EXAMPLE_SIZE, EXAMPLE_PITCH = (720, 960), 0.12
SHOWN_SIDE = 1400
GUESSED = "better give it."  # the end of a field's note on its scale
# Sorts the strip of cells by what is chosen.
SORT = """element.addEventListener('change', (event) => {
  const list = element.querySelector('.lk-cells'), by = event.target.value
  const of = (item) => Number(item.dataset[by])
  list.append(...[...list.children].sort((one, other) => by == 'number' ? of(one) - of(other) : of(other) - of(one)))
})
"""


@dataclass(frozen=True)
class FieldResult:
    """A field and what a model reads in it; lives in a visitor's session, in memory only."""

    image: Image.Image
    reading: FieldReading

    @property
    def given_um_per_pixel(self) -> float | None:
        """Its scale, unless that was guessed."""
        scale = self.reading.field.scale
        return None if scale is None or scale.guessed else scale.um_per_pixel

    def cut_out(self, number: int) -> Image.Image:
        """A whole cell, alone on black."""
        scale = self.reading.field.scale
        assert scale is not None  # a field without a scale has no cells
        return fields.cut_out(self.image, self.reading.cells[number].cell, scale.um_per_pixel)


def predict_field(
    models: ModelCache, image: Image.Image, caption: str, choice: str | None, um_per_pixel: float | None = None
) -> FieldResult:
    """Find and classify the cells of a field; 0 or None has its scale guessed."""
    predictor = models.predictor(choice)
    if predictor.release.takes_cut_outs is False:
        raise LeukoscopeError(
            f"{choice}: was trained on pictures with their background, not on cells cut out on black; choose a model "
            "of cut-out cells, or open the picture in the tab “Cells” (/predict)"
        )
    reading = models.read_field(predictor, image, caption, um_per_pixel=um_per_pixel or None)
    # As it was chosen, a revision included.
    return FieldResult(image, replace(reading, model=str(choice)))


@cache
def _drawn() -> Image.Image:
    drawn = draw_field(
        EXAMPLE_CLASSES, size=EXAMPLE_SIZE, um_per_pixel=EXAMPLE_PITCH, red_cells=90, scale_bar=False, seed=EXAMPLE_SEED
    )
    return Image.fromarray(drawn.image)


def example_field() -> tuple[Image.Image, str]:
    """A synthetic field and its caption."""
    return _drawn(), t("synthetic_field")


class FieldPanel:
    """What is shown of a field, added to the Blocks being built.

    Attributes:
        result: the field read last; lives in a visitor's session, in memory only.
        cells: components whose cells can be opened.
        outputs: every component that a new field changes.
    """

    def __init__(self, models: ModelCache, model: gr.Dropdown) -> None:
        self.models, self.model = models, model
        self.result = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Column(visible=False, elem_id="field") as self.shown:
            self.summary = gr.HTML(elem_id="field-summary", padding=False)
            self.picture = gr.HTML(js_on_load=panels.CLICK, elem_id="field-picture", padding=False)
            self.strip = gr.HTML(js_on_load=SORT + panels.CLICK, elem_id="field-cells", padding=False)
            with gr.Row():
                for kind in ("PNG", "CSV", "JSON"):
                    upload.save_button(
                        t("save_as", kind=kind), partial(save_field, kind), [self.result],
                        elem_id=f"save-field-{kind.lower()}",
                    )  # fmt: skip
            with gr.Accordion(t("more"), open=False):
                self.pitch = gr.Number(0, label=t("um_per_pixel"), info=t("um_info"), step=0.01)
        self._add_endpoint()
        self.cells = [self.picture, self.strip]
        self.outputs = [self.result, self.shown, self.summary, self.picture, self.strip, self.pitch]

    def show(self, result: FieldResult) -> Updates:
        """Updates that show a field."""
        return {
            self.result: result,
            self.pitch: result.given_um_per_pixel or 0,
            self.shown: gr.Column(visible=True),
            self.summary: field_summary(result.reading),
            self.picture: boxes(result.image, result.reading),
            self.strip: strip(result),
        }

    def clear(self) -> Updates:
        """Updates that hide the field, which is deleted."""
        return {self.result: None, self.shown: gr.Column(visible=False), self.picture: "", self.strip: ""}

    def cell(self, result: FieldResult, number: int) -> CellResult:
        """A cell of a field, predicted with its map."""
        reading = result.reading
        caption = t("cell_of", number=number + 1, source=reading.source)
        share, pitch = reading.in_distribution, CUT_OUT_PITCH
        cell = predict_cell(
            self.models, result.cut_out(number), caption, reading.model, field_share=share, um_per_pixel=pitch
        )
        area, nucleus = cell_size(reading.cells[number].cell)  # as in the strip
        return replace(cell, cell=number + 1, measured=Morphology(area / pitch**2, nucleus, 1))

    def _add_endpoint(self) -> None:
        """The named endpoint /field: image, model, micrometres per pixel → reading (JSON), picture with boxes."""

        def field(
            image: str | None, model: str | None, um_per_pixel: float | None = None
        ) -> tuple[dict[str, Any], str]:
            """Find and classify the white blood cells of a field of view. For research only.

            Args:
                image: the picture of a stained smear; PNG, JPEG, BMP, TIFF or WebP.
                model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
                um_per_pixel: micrometres per pixel; 0 has the scale guessed from its red cells or nuclei.
            """
            with upload.gradio_errors():
                result = predict_field(self.models, *upload.read_upload(image, upload.FIELD), model, um_per_pixel)
            return result.reading.to_dict(), upload.png_answer(draw_reading(result.image, result.reading))

        with gr.Group(visible=False):
            inputs = [upload.cell_upload(label="image"), self.model, gr.Number(0, label="um_per_pixel")]
            outputs = [gr.JSON(label="reading"), gr.Image(label="boxes", format="png")]
            gr.Button("field").click(field, inputs, outputs, api_name="field")


def cell_size(cell: fields.FieldCell) -> tuple[float, float]:
    """The area of a whole cell in µm² and its nucleus's share, by both outlines.

    They pass over pale cytoplasm, and the parts of a segmented nucleus, so there is no count of lobes.
    """
    share = np.count_nonzero(cell.nucleus) / max(1, int(np.count_nonzero(cell.mask | cell.nucleus)))
    return cell.nucleus_area / max(share, 1e-6), share


def _said(found: CellReading, labels: tuple[str, ...]) -> str:
    """A cell's outcome, with its probability where it has a class."""
    share = ""
    if found.prediction and found.outcome in labels:
        share = f" {percent(found.prediction.probabilities[found.outcome])}"
    return f"{outcome_text(found.outcome)}{share}"


def boxes(image: Image.Image, reading: FieldReading) -> str:
    """The field with a button round each of its cells; cells that the edge cuts are marked, but cannot be opened."""
    width, height = image.size
    marks = ""
    for number, found in enumerate(reading.cells):
        left, top, right, bottom = found.cell.box
        outcome = found.outcome
        # In the right half, the text ends where the box does: it would leave the picture.
        side = "lk-box lk-right" if left + right > width else "lk-box"
        colour = OTHER_COLOURS.get(outcome) or CLASS_COLOURS[reading.labels.index(outcome) % len(CLASS_COLOURS)]
        place = (
            f"left:{left / width:.3%};top:{top / height:.3%};width:{(right - left) / width:.3%};"
            f"height:{(bottom - top) / height:.3%};border-color:{colour};"
            f"border-style:{'dashed' if outcome in DASHED else 'solid'}"
        )
        if outcome == AT_EDGE:
            title = escape(f"{number + 1}: {outcome_text(outcome)}")
            marks += f'<span class="{side}" style="{place}" title="{title}"></span>'
            continue
        name = escape(t("open_cell", text=f"{number + 1}: {_said(found, reading.labels)}"))
        short = f"{number + 1} {outcome}" if outcome in reading.labels else str(number + 1)
        marks += (
            f'<button class="{side}" type="button" data-cell="{number}" style="{place}" aria-label="{name}" '
            f'title="{name}"><span aria-hidden="true">{escape(short)}</span></button>'
        )
    alt = t("field_alt", source=reading.source, number=sum(found.outcome != AT_EDGE for found in reading.cells))
    return (
        f'<div class="lk-field" style="max-width:min({2 * width}px,{75 * width / height:.0f}vh)">'
        f"{panels.picture(image, alt, SHOWN_SIDE)}{marks}</div>"
    )


def strip(result: FieldResult) -> str:
    """The whole cells side by side with what was measured of each, to be sorted; for an element with `SORT`."""
    reading, shown = result.reading, ""
    for number, found in enumerate(reading.cells):
        if not found.cell.whole:
            continue
        (area, share), picture = cell_size(found.cell), panels.picture(result.cut_out(number), "", 128)
        text = f"{number + 1}: {_said(found, reading.labels)}"
        facts = t("cell_facts", area=f"{area:.0f}", share=percent(share))
        shown += (
            f'<li data-number="{number}" data-area="{area:.2f}" data-share="{share:.4f}">'
            f'<button type="button" data-cell="{number}" aria-label="{escape(t("open_cell", text=text))}">'
            f"{picture}</button>"
            f"<b>{escape(text)}</b><span>{escape(facts)}</span></li>"
        )
    if not shown:
        return ""
    orders = "".join(f'<option value="{by}">{t(f"sort_{by}")}</option>' for by in ("number", "area", "share"))
    sort = f'<label class="lk-sort">{t("sort_by")} <select>{orders}</select></label>'
    return f'{sort}<ul class="lk-cells">{shown}</ul>{panels.note(t("cell_facts_note"))}'


def field_summary(reading: FieldReading) -> str:
    """What was found in words, how many cells of each outcome, and how it was read, as HTML."""
    scale = reading.field.scale
    about = about_model(reading.model, reading.revision)
    if scale:
        pitch = f"{scale.um_per_pixel:.3f}"
        source = t(f"scale_{scale.source}")
        about = t("scale_from", about=about, scale=pitch, source=source)
        if scale.guessed:
            about += " " + t("scale_guessed")
    # How the scale was guessed is said in the visitor's language.
    notes = "".join(f"<p>{escape(note)}</p>" for note in reading.field.notes if not note.endswith(GUESSED))
    headline = f'<p class="lk-headline" role="status">{escape(_sentence(reading))}</p>'
    found = {outcome: count for outcome, count in reading.counts.items() if count}
    return f"{headline}{panels.counts(found)}{notes}{panels.note(about)}"


def _sentence(reading: FieldReading) -> str:
    """How many cells there are, and how many of them are like the training cells."""
    if not reading.cells:
        return t("field_none")
    found = t("field_found", number=len(reading.cells), whole=sum(one.prediction is not None for one in reading.cells))
    share = reading.in_distribution
    if share is None:
        return found
    key = "field_out" if share < FIELD_NEEDS else "field_like"
    return f"{found} {t(key, share=percent(share), needed=percent(FIELD_NEEDS))}"


def save_field(kind: str, result: FieldResult) -> upload.File:
    """A field's reading as a file; `kind` is "PNG", "CSV" or "JSON"."""
    reading = result.reading
    name = f"leukoscope-{upload.safe_stem(reading.source) or 'field'}.{kind.lower()}"
    if kind == "PNG":
        title = t("field_title", source=reading.source, model=reading.model, summary=_sentence(reading))
        drawn = draw_reading(
            result.image, reading, translate=lambda text: t("notice") if text == RESEARCH_NOTICE else outcome_text(text)
        )
        return upload.png_file(name, drawn, title=title, model=reading.model, revision=reading.revision)
    if kind == "JSON":
        return upload.File(name, "application/json", json.dumps(reading.to_dict(), indent=1).encode())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    shares = [f"p_{label}" for label in reading.labels]
    table.writerow(["cell", "left", "top", "right", "bottom", "outcome", *shares, "ood_score", "nucleus_um2",
                    "area_um2", "nucleus_share", "source", "model", "revision", "notice"])  # fmt: skip
    about = [safe_cell(reading.source), safe_cell(reading.model), reading.revision, RESEARCH_NOTICE]
    for number, (found, cell) in enumerate(zip(reading.cells, reading.to_dict()["cells"], strict=True), start=1):
        probabilities = [(cell["probabilities"] or {}).get(label, "") for label in reading.labels]
        ood = "" if cell["ood_score"] is None else cell["ood_score"]
        area, share = cell_size(found.cell)
        sizes = [f"{area:.2f}", f"{share:.4f}"] if found.cell.whole else ["", ""]
        table.writerow(
            [number, *cell["box"], safe_cell(cell["outcome"]), *probabilities, ood, cell["nucleus_um2"], *sizes, *about]
        )
    return upload.File(name, "text/csv", text.getvalue().encode())
