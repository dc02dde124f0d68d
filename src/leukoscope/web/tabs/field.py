"""The tab "Field": every white cell of a smear found, boxed and classified; each opens in "Cell".

The field is read once; what stands on the page, in the exports and behind the boxes comes from that reading. The same
steps serve the API at /field.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.fields import CUT_OUT_PITCH, cut_out
from leukoscope.data.synthetic import draw_field
from leukoscope.inference.field import AT_EDGE, CLASS_COLOURS, DASHED, OTHER_COLOURS, draw_reading
from leukoscope.inference.prediction import FIELD_NEEDS
from leukoscope.inference.scoring import safe_cell
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.result import CellResult, predict_cell
from leukoscope.web.result_tab import PRIVATE, SESSION_SECONDS, ResultTab, Updates, refusal, reveal
from leukoscope.web.tabs.cell import CellTab
from leukoscope.web.text import Localised, about_model, local_number, localised, outcome_text, percent, t
from leukoscope.web.upload import (
    FIELD,
    File,
    cell_upload,
    deleted_afterwards,
    gradio_errors,
    open_upload,
    png_answer,
    png_file,
    read_upload,
    safe_stem,
    save_button,
)

if TYPE_CHECKING:
    from leukoscope.inference.field import FieldReading

# Seed and classes; drawn at a scale that the fields of a 40× objective have. With these seeds, each cell gets its class
# from leukoscope-densenet169-cnmc.
EXAMPLES = ((66, ("ALL", "HEM", "ALL", "HEM", "ALL")), (22, ("ALL", "HEM", "ALL", "HEM", "ALL")))
EXAMPLE_SIZE, EXAMPLE_PITCH = (720, 960), 0.12
SHOWN_SIDE = 1400


@dataclass(frozen=True)
class FieldResult:
    """A field and what a model reads in it; lives in a visitor's session, in memory only."""

    image: Image.Image
    reading: FieldReading


def predict_field(
    models: ModelCache, image: Image.Image, caption: str, choice: str | None, um_per_pixel: float | None
) -> FieldResult:
    """Find and classify the cells of a field.

    Raises:
        LeukoscopeError: the picture, the scale or the model cannot be used.
    """
    predictor = models.predictor(choice)
    if predictor.release.takes_cut_outs is False:
        raise LeukoscopeError(
            f"{choice}: was trained on pictures with their background, not on cells cut out on black; choose a model "
            "of cut-out cells, or open the picture in the tab “Cell” (/predict)"
        )
    reading = models.read_field(predictor, image, caption, um_per_pixel or None)
    # As it was chosen, a revision included.
    return FieldResult(image, replace(reading, model=str(choice)))


@lru_cache(maxsize=len(EXAMPLES))
def _drawn(number: int) -> Image.Image:
    seed, classes = EXAMPLES[number]
    drawn = draw_field(classes, size=EXAMPLE_SIZE, um_per_pixel=EXAMPLE_PITCH, red_cells=90, scale_bar=False, seed=seed)
    return Image.fromarray(drawn.image)


def example(number: int) -> tuple[Image.Image, str]:
    """One of the synthetic fields and its caption."""
    return _drawn(number), t("synthetic_field", number=number + 1)


class FieldTab(ResultTab):
    """The tab, added to the Blocks being built.

    Args:
        tabs, cell_tab: where a cell of the field is opened.
    """

    hint = "field_hint"

    def __init__(self, models: ModelCache, model: gr.Dropdown, tabs: gr.Tabs, cell_tab: CellTab) -> None:
        super().__init__(models, model)
        with gr.Tab(localised("tab_field"), id="field"):
            self.result = gr.State(None, time_to_live=SESSION_SECONDS)
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    self.upload = cell_upload(
                        show_label=False,
                        sources=["upload", "clipboard"],
                        height=160,
                        buttons=[],
                        elem_id="field-upload",
                    )
                with gr.Column(scale=3, min_width=280):
                    pitch = gr.Number(0, label=localised("um_per_pixel"), info=localised("um_info"), step=0.01)
                    with gr.Row():
                        examples = [
                            gr.Button(
                                Localised(partial(t, "synthetic_field", number=number + 1)), size="sm", min_width=120
                            )
                            for number in range(len(EXAMPLES))
                        ]
            self.summary = gr.HTML(
                Localised(lambda: panels.placeholder(t(self.hint))), js_on_load=refusal("field-upload"),
                elem_id="field-summary", padding=False,
            )  # fmt: skip
            self.picture = gr.HTML(js_on_load=panels.CLICK, elem_id="field-picture", padding=False)
            with gr.Row(visible=False) as self.exports:
                for kind in ("PNG", "CSV", "JSON"):
                    save_button(
                        Localised(partial(t, "save_as", kind=kind)), partial(save_field, kind), [self.result],
                        elem_id=f"save-field-{kind.lower()}",
                    )  # fmt: skip
            self._add_endpoint()
        self.outputs = [self.result, self.summary, self.picture, self.exports, self.upload]

        busy: dict[str, Any] = {**PRIVATE, "show_progress_on": [self.summary]}
        given = [self.upload, model, pitch]
        running: list[Any] = [self.upload.upload(self._on_upload, given, self.outputs, trigger_mode="multiple", **busy)]
        for number, button in enumerate(examples):
            running.append(button.click(partial(self._on_example, number), model, self.outputs, **busy))
            button.click(None, js=reveal("field-summary"), **PRIVATE)
        self.upload.upload(None, js=reveal("field-summary"), **PRIVATE)
        self.clear_on_model_change(running)
        self.refuse_others()
        cell_tab.open_from([self.picture], self.result, tabs, self._cell)

    def clear(self, html: str) -> Updates:
        gone = {self.result: None, self.picture: "", self.upload: None}
        return {self.summary: html, self.exports: gr.Row(visible=False), **gone}

    def _predict(
        self, read: Callable[[], tuple[Image.Image, str]], choice: str | None, um_per_pixel: float | None
    ) -> Updates:
        def show() -> Updates:
            result = predict_field(self.models, *read(), choice, um_per_pixel)
            return {
                self.result: result,
                self.summary: field_summary(result.reading),
                self.picture: boxes(result.image, result.reading),
                self.exports: gr.Row(visible=True),
                self.upload: None,
            }

        return self.attempt(show)

    def _on_upload(self, path: str | None, choice: str | None, um_per_pixel: float | None) -> Updates:
        if path is None:
            return {self.upload: None}
        # Deleted only now: the page asks for the file, to show it until the result is there.
        with deleted_afterwards([path]):
            return self._predict(lambda: open_upload(path, FIELD), choice, um_per_pixel)

    def _on_example(self, number: int, choice: str | None) -> Updates:
        return self._predict(lambda: example(number), choice, EXAMPLE_PITCH)

    def _cell(self, result: FieldResult, number: int) -> CellResult:
        reading = result.reading
        assert reading.field.scale is not None  # a field without a scale has no cells
        image = cut_out(result.image, reading.cells[number].cell, reading.field.scale.um_per_pixel)
        caption = t("cell_of", number=number + 1, source=reading.source)
        return predict_cell(
            self.models, image, caption, reading.model, field_share=reading.in_distribution, um_per_pixel=CUT_OUT_PITCH
        )

    def _add_endpoint(self) -> None:
        """The named endpoint /field: image, model, micrometres per pixel → reading (JSON), picture with boxes."""

        def field(
            image: str | None, model: str | None, um_per_pixel: float | None = None
        ) -> tuple[dict[str, Any], str]:
            """Find and classify the white blood cells of a field of view. For research only.

            Args:
                image: the picture of a stained smear; PNG, JPEG, BMP, TIFF or WebP.
                model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
                um_per_pixel: micrometres per pixel; 0 has the scale guessed from the size of the red cells.
            """
            with gradio_errors():
                result = predict_field(self.models, *read_upload(image, FIELD), model, um_per_pixel)
            return result.reading.to_dict(), png_answer(draw_reading(result.image, result.reading))

        with gr.Group(visible=False):
            inputs = [cell_upload(label="image"), self.model, gr.Number(0, label="um_per_pixel")]
            outputs = [gr.JSON(label="reading"), gr.Image(label="boxes", format="png")]
            gr.Button("field").click(field, inputs, outputs, api_name="field")


def boxes(image: Image.Image, reading: FieldReading) -> str:
    """The field with a button round each of its cells; cells that the edge cuts are marked, but cannot be opened."""
    shown = image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
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
        text = f"{number + 1}: {outcome_text(outcome)}"
        if outcome == AT_EDGE:
            marks += f'<span class="{side}" style="{place}" title="{escape(text)}"></span>'
            continue
        share = ""
        if found.prediction and outcome in reading.labels:
            share = percent(max(found.prediction.probabilities.values()))
        name = escape(t("open_cell", text=f"{text}, {share}" if share else text))
        marks += (
            f'<button class="{side}" type="button" data-cell="{number}" style="{place}" aria-label="{name}" '
            f'title="{name}"><span aria-hidden="true">{escape(text)}</span></button>'
        )
    hint = panels.note(t("click_a_cell")) if reading.cells else ""
    alt = escape(t("field_alt", source=reading.source, number=sum(found.outcome != AT_EDGE for found in reading.cells)))
    return (
        f'{hint}<div class="lk-field"><img src="{panels.data_uri(shown)}" alt="{alt}" width="{shown.width}" '
        f'height="{shown.height}">{marks}</div>'
    )


def field_summary(reading: FieldReading) -> str:
    """What was found in words, how many cells of each outcome, and how it was read, as HTML."""
    scale = reading.field.scale
    about = f"{about_model(reading.model, reading.revision)}."
    if scale:
        pitch = local_number(f"{scale.um_per_pixel:.3f}")
        source = t(f"scale_{scale.source}")
        about = t(
            "scale_from",
            about=about[:-1],
            scale=pitch,
            source=t("guessed_from", source=source) if scale.guessed else source,
        )
    notes = "".join(f"<p>{escape(note)}</p>" for note in reading.field.notes)
    headline = f'<p class="lk-headline" role="status">{escape(_sentence(reading))}</p>'
    return f"{headline}{panels.counts(reading.counts)}{notes}{panels.note(about)}{panels.notice()}"


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


def _drawn_text(text: str) -> str:
    return t("notice") if text == RESEARCH_NOTICE else outcome_text(text)


def save_field(kind: str, result: FieldResult) -> File:
    """A field's reading as a file.

    Args:
        kind: "PNG", "CSV" or "JSON".
    """
    reading = result.reading
    name = f"leukoscope-{safe_stem(reading.source) or 'field'}.{kind.lower()}"
    if kind == "PNG":
        title = t("field_title", source=reading.source, model=reading.model, summary=_sentence(reading))
        drawn = draw_reading(result.image, reading, translate=_drawn_text)
        return png_file(name, drawn, title=title, model=reading.model, revision=reading.revision)
    if kind == "JSON":
        return File(name, "application/json", json.dumps(reading.to_dict(), indent=1).encode())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    shares = [f"p_{label}" for label in reading.labels]
    table.writerow(["cell", "left", "top", "right", "bottom", "outcome", *shares, "ood_score", "nucleus_um2",
                    "source", "model", "revision", "notice"])  # fmt: skip
    about = [safe_cell(reading.source), safe_cell(reading.model), reading.revision, RESEARCH_NOTICE]
    for number, cell in enumerate(reading.to_dict()["cells"], start=1):
        probabilities = [(cell["probabilities"] or {}).get(label, "") for label in reading.labels]
        ood = "" if cell["ood_score"] is None else cell["ood_score"]
        table.writerow(
            [number, *cell["box"], safe_cell(cell["outcome"]), *probabilities, ood, cell["nucleus_um2"], *about]
        )
    return File(name, "text/csv", text.getvalue().encode())
