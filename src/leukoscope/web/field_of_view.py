"""The tab "A field of view": every white cell of a smear found, boxed and judged; each opens in "One cell".

The field is read once; what stands on the page, in the exports and behind the boxes comes from that reading. The same
steps answer the API at /field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.cells.fields import cut_out
from leukoscope.cells.phantom_fields import draw_field
from leukoscope.web import panels
from leukoscope.web.field_panels import CLICK, boxes, counts, draw_reading, save_reading
from leukoscope.web.look import examine
from leukoscope.web.one_cell import SESSION_SECONDS, View
from leukoscope.web.saving import File, in_a_file_of_its_own, save_button
from leukoscope.web.shelf import Shelf
from leukoscope.web.upload import FIELD, cell_upload, file_name, read_upload
from leukoscope.web.words import TOO_LONG_AGO

if TYPE_CHECKING:
    from leukoscope.inference.field_reading import FieldReading

START_HINT = "Drop a photograph of a stained smear, or take a synthetic one: its white cells are found and judged here."
# Seed and classes; drawn at a scale that the fields of a 40× objective have. With these seeds, all are in distribution.
EXAMPLES = ((1, ("ALL", "HEM", "ALL", "HEM", "ALL")), (5, ("ALL", "HEM", "ALL", "HEM", "ALL")))
EXAMPLE_SIZE, EXAMPLE_PITCH = (720, 960), 0.12


@dataclass(frozen=True)
class FieldLook:
    """A field and what a model read in it; lives in a visitor's session, in memory only."""

    image: Image.Image
    reading: FieldReading


def read(
    shelf: Shelf, take: Callable[[], tuple[Image.Image, str]], choice: str | None, um_per_pixel: float | None
) -> FieldLook:
    """Take a picture, then find and judge its cells.

    Raises:
        LeukoscopeError: the picture, the scale or the model cannot be used.
    """
    image, caption = take()
    # Loaded before it is asked: an error is told here, not in the process that has the GPU.
    shelf.predictor(choice)
    reading = shelf.read_field(str(choice), image, caption, um_per_pixel or None)
    # As it was chosen, a revision included.
    return FieldLook(image, replace(reading, model=str(choice)))


@lru_cache(maxsize=len(EXAMPLES))
def example(number: int) -> tuple[Image.Image, str]:
    """One of the synthetic fields and its caption."""
    seed, classes = EXAMPLES[number]
    drawn = draw_field(classes, size=EXAMPLE_SIZE, um_per_pixel=EXAMPLE_PITCH, red_cells=90, scale_bar=False, seed=seed)
    return Image.fromarray(drawn.image), f"Synthetic field {number + 1}"


def build_tab(shelf: Shelf, model: gr.Dropdown, tabs: gr.Tabs, one_cell: View) -> None:
    """Add the tab to the Blocks being built.

    Args:
        tabs, one_cell: where a cell of the field is opened.
    """
    with gr.Tab("A field of view", id="field_of_view"):
        look = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = cell_upload(
                    label="Your field", sources=["upload", "clipboard"], height=160, buttons=[], elem_id="field-upload"
                )
            with gr.Column(scale=3, min_width=280):
                pitch = gr.Number(0, label="Micrometres a pixel", info="0: to be read from the red cells", step=0.01)
                with gr.Row():
                    examples = [
                        gr.Button(f"Synthetic field {number + 1}", size="sm", min_width=120)
                        for number in range(len(EXAMPLES))
                    ]
        answer = gr.HTML(panels.placeholder(START_HINT), elem_id="field-answer", padding=False)
        picture = gr.HTML(js_on_load=CLICK, elem_id="field-picture", padding=False)
        with gr.Row(visible=False) as exports:
            for kind in ("PNG", "CSV", "JSON"):
                save_button(f"Save as {kind}", partial(_save, kind), [look], elem_id=f"save-field-{kind.lower()}")
        _add_endpoint(shelf, model)
    page = _Page(look, answer, picture, exports, upload)
    _wire(shelf, model, page, pitch, examples)
    _wire_click(shelf, page, tabs, one_cell)


@dataclass(frozen=True)
class _Page:
    """The tab's components, and what each shows for a reading or a message."""

    look: gr.State
    answer: gr.HTML
    picture: gr.HTML
    exports: gr.Row
    upload: gr.Image

    @property
    def outputs(self) -> list[Any]:
        return [self.look, self.answer, self.picture, self.exports, self.upload]

    def show(self, look: FieldLook) -> dict[Any, Any]:
        return {
            self.look: look,
            self.answer: counts(look.reading),
            self.picture: boxes(look.image, look.reading),
            self.exports: gr.Row(visible=True),
            self.upload: None,
        }

    def tell(self, text: str) -> dict[Any, Any]:
        gone = {self.look: None, self.picture: "", self.upload: None}
        return {self.answer: text, self.exports: gr.Row(visible=False), **gone}


def _save(kind: str, look: FieldLook) -> File:
    return save_reading(look.image, look.reading, kind)


def _wire(shelf: Shelf, model: gr.Dropdown, page: _Page, pitch: gr.Number, examples: list[gr.Button]) -> None:
    """Connect what a visitor gives to what the page shows."""

    def answer(
        take: Callable[[], tuple[Image.Image, str]], choice: str | None, um_per_pixel: float | None
    ) -> dict[Any, Any]:
        try:
            return page.show(read(shelf, take, choice, um_per_pixel))
        except LeukoscopeError as error:
            return page.tell(panels.message("This did not work", str(error)))

    def on_upload(path: str | None, choice: str | None, um_per_pixel: float | None) -> dict[Any, Any]:
        if path is None:
            return {page.upload: None}
        return answer(lambda: (read_upload(path, most=FIELD), file_name(path)), choice, um_per_pixel)

    def on_example(number: int, choice: str | None) -> dict[Any, Any]:
        return answer(partial(example, number), choice, EXAMPLE_PITCH)

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [page.answer]}
    page.upload.upload(on_upload, [page.upload, model, pitch], page.outputs, trigger_mode="multiple", **hidden)
    for number, button in enumerate(examples):
        button.click(partial(on_example, number), model, page.outputs, **hidden)


def _wire_click(shelf: Shelf, page: _Page, tabs: gr.Tabs, one_cell: View) -> None:
    """Connect a cell's box to the tab "One cell"."""

    def on_cell(look: FieldLook | None, opacity: float, point: str | None, picked: gr.EventData) -> dict[Any, Any]:
        if look is None:
            return {one_cell.answer: panels.placeholder(TOO_LONG_AGO)}
        number = picked.index
        cell, scale = look.reading.cells[number].cell, look.reading.field.scale
        assert scale is not None  # a field without a scale has no cells
        image, caption = cut_out(look.image, cell, scale.um_per_pixel), f"Cell {number + 1} of {look.reading.source}"
        share = look.reading.share_known
        try:
            opened = examine(shelf, image, caption, look.reading.model, field_share=share)
            return one_cell.show(opened, opacity, point or "")
        except LeukoscopeError as error:
            return one_cell.tell(panels.message("This did not work", str(error)))

    hidden: dict[str, Any] = {"api_visibility": "private"}
    # Shown first, so that the tab does not seem dead while the model answers.
    page.picture.select(lambda: gr.Tabs(selected="one_cell"), None, tabs, show_progress="hidden", **hidden)
    page.picture.select(
        on_cell, [page.look, one_cell.opacity, one_cell.point], one_cell.outputs, show_progress_on=[one_cell.answer],
        **hidden,
    )  # fmt: skip


def _add_endpoint(shelf: Shelf, model: gr.Dropdown) -> None:
    """The named endpoint /field: image, model, micrometres a pixel → reading (JSON), picture with boxes."""

    def field(
        image: str | None, model: str | None, um_per_pixel: float | None = None
    ) -> tuple[dict[str, Any], Image.Image]:
        """Find and classify the white cells of a smear. `um_per_pixel` is read from the red cells where it is 0."""
        try:
            look = read(shelf, lambda: (read_upload(image, most=FIELD), file_name(image)), model, um_per_pixel)
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return look.reading.to_dict(), in_a_file_of_its_own(draw_reading(look.image, look.reading))

    with gr.Group(visible=False):
        inputs = [cell_upload(label="image"), model, gr.Number(0, label="um_per_pixel")]
        outputs = [gr.JSON(label="reading"), gr.Image(label="boxes", format="png")]
        gr.Button("field").click(field, inputs, outputs, api_name="field")
