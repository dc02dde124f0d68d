"""The tab "One cell": upload, paste or pick a cell, and read what a model says and where it looked.

A picture goes through `Predictor` once; class and opacity are then redrawn from the heat maps kept in the visitor's
session. The same steps answer the API at /predict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.phantoms import PHANTOM_LABELS, draw_cell
from leukoscope.inference.field_reading import refuse_smear
from leukoscope.web import panels, words
from leukoscope.web.shelf import Shelf
from leukoscope.web.upload import cell_upload, read_upload

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Prediction

# Redrawing stays instant and the page light; one cell is a few hundred pixels anyway.
SHOWN_SIDE = 720
SESSION_SECONDS = 1800
OPACITY = 0.55
EXAMPLES = tuple((label, subject, cell) for label in PHANTOM_LABELS for subject, cell in ((0, 0), (1, 1), (2, 2)))
EXAMPLES_ARE = "Or pick a synthetic cell (drawn by a program, from no patient):"
# On a phone the answer stands below the examples, out of sight.
REVEAL_ANSWER = "() => { if (innerWidth < 700) document.getElementById('answer').scrollIntoView({behavior: 'smooth'}) }"
START_HINT = "Drop a cell, or pick a synthetic one: the answer appears here."


@dataclass(frozen=True)
class Look:
    """One picture and what a model said of it; lives in a visitor's session, in memory only.

    Attributes:
        image: upright RGB, as given.
        caption: its file name, or which phantom it is.
        model: the name picked for the model that answered.
        warnings: what must be said beside the answer, most important first.
    """

    image: Image.Image
    caption: str
    model: str
    prediction: Prediction
    warnings: tuple[str, ...]


def examine(shelf: Shelf, image: Image.Image, caption: str, choice: str | None) -> Look:
    """Ask a model about a picture, once, for the answer and every class's heat map.

    Raises:
        LeukoscopeError: the model cannot be used.
    """
    # Loaded before it is asked: an error is told here, not in the process that has the GPU.
    metrics = shelf.predictor(choice).release.metrics
    prediction = shelf.explain(str(choice), image)
    return Look(image, caption, str(choice), prediction, words.warnings(metrics, prediction.recognised))


def look_at(shelf: Shelf, read: Callable[[], tuple[Image.Image, str]], choice: str | None) -> Look:
    """Read a picture, then ask the chosen model about it.

    In this order: reading an upload deletes its file, which must happen whatever becomes of the model.

    Raises:
        LeukoscopeError: the picture or the model cannot be used; a smear given to a model of cut-out cells is told
            where to go instead.
    """
    image, caption = read()
    refuse_smear(shelf.predictor(choice).release, image, caption, str(choice))
    return examine(shelf, image, caption, choice)


def draw(look: Look, label: str, opacity: float) -> tuple[Image.Image, Image.Image]:
    """The picture and its overlay for one class, both at most 720 px on a side; no forward pass.

    All classes of a picture share one colour scale, so that weak evidence looks weak.
    """
    from leukoscope.inference.heatmaps import overlay

    heatmaps = look.prediction.heatmaps or {}
    peak = max(float(heat.evidence.max()) for heat in heatmaps.values())
    shown = look.image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    scale = shown.width / look.image.width
    left, top, right, bottom = (edge * scale for edge in look.prediction.view_box)
    return shown, overlay(shown, heatmaps[label], (left, top, right, bottom), opacity=opacity, peak=peak)


def read_heat(look: Look, label: str) -> str:
    """A class's heat map in words."""
    left, top, right, bottom = (round(edge) for edge in look.prediction.view_box)
    heat = (look.prediction.heatmaps or {})[label]
    return words.evidence(heat.evidence, look.image.crop((left, top, right, bottom)), label)


def facts(look: Look) -> dict[str, str]:
    """What stands behind an answer: the model, its revision, the time it took and the part of the picture it saw."""
    answered = look.prediction
    left, top, right, bottom = answered.view_box
    seen = f"{round(right - left)} × {round(bottom - top)} of {look.image.width} × {look.image.height} pixels"
    return {
        "Model": look.model,
        "Revision": answered.revision[:12] or "local files",
        "Time": words.milliseconds(answered.seconds),
        "Seen by the model": seen + (", framed in blue" if (right - left) < look.image.width else ""),
    }


def summary(look: Look) -> str:
    """The whole result as plain text: verdict, warnings, heat map in words, model and research notice."""
    answered = look.prediction
    about = words.provenance(look.model, answered.revision, answered.seconds)
    says, because = words.verdict(answered.probabilities), read_heat(look, answered.label)
    return "\n".join(part for part in (says, *look.warnings, because, about, RESEARCH_NOTICE))


def example(number: int) -> tuple[Image.Image, str]:
    """One of the six synthetic cells and its caption; drawn, never stored."""
    label, subject, cell = EXAMPLES[number]
    return Image.fromarray(draw_cell(label, subject=subject, cell=cell).image), f"Synthetic {label}"


def build_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built.

    Args:
        shelf: where models come from.
        model: the picker that all tabs share.
    """
    with gr.Tab("One cell"), gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = cell_upload(
                label="Your cell", sources=["upload", "clipboard"], height=220, buttons=[], elem_id="upload"
            )
            gr.HTML(f'<p class="lk-note">{EXAMPLES_ARE}</p>', padding=False)
            gallery = gr.Gallery(
                [(example(number)[0], label) for number, (label, *_) in enumerate(EXAMPLES)],
                label="Synthetic cells", show_label=False, columns=3, height="auto", allow_preview=False, buttons=[],
                elem_id="examples",
            )  # fmt: skip
        with gr.Column(scale=3, min_width=280):
            view = View.build()
    _wire(shelf, model, upload, gallery, view)
    _add_endpoint(shelf, model)


@dataclass(frozen=True)
class View:
    """The result's components, and what each shows for a look, a message or nothing."""

    look: gr.State
    answer: gr.HTML
    pictures: gr.HTML
    controls: gr.Row
    label: gr.Radio
    opacity: gr.Slider
    reading: gr.HTML

    @classmethod
    def build(cls) -> View:
        """Place the components in the column being built."""
        look = gr.State(None, time_to_live=SESSION_SECONDS)
        answer = gr.HTML(panels.placeholder(START_HINT), elem_id="answer", padding=False)
        pictures = gr.HTML(visible=False, elem_id="pictures", padding=False)
        with gr.Row(visible=False) as controls:
            label = gr.Radio([], label="Show the evidence for", min_width=120)
            opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Heat map opacity", min_width=120)
        return cls(look, answer, pictures, controls, label, opacity, gr.HTML(elem_id="reading", padding=False))

    @property
    def outputs(self) -> list[Any]:
        """Everything a new result changes."""
        return [self.look, self.answer, self.pictures, self.controls, self.label, self.reading]

    def show(self, look: Look, opacity: float) -> dict[Any, Any]:
        """Updates that show a result, opened at the class the model named."""
        answered = look.prediction
        labels = list(answered.probabilities)
        return {
            self.look: look,
            self.answer: panels.answer(answered.probabilities),
            self.controls: gr.Row(visible=True),
            self.label: gr.Radio(labels, value=answered.label),
            **self.redraw(look, answered.label, opacity),
        }

    def redraw(self, look: Look, label: str, opacity: float) -> dict[Any, Any]:
        """Updates that show one class at one opacity."""
        shown, covered = draw(look, label, opacity)
        return {
            self.pictures: gr.HTML(panels.pictures(shown, covered, look.caption, label), visible=True),
            self.reading: panels.reading(read_heat(look, label), facts(look), look.warnings),
        }

    def tell(self, text: str) -> dict[Any, Any]:
        """Updates that show HTML alone, and no result; what was looked at is forgotten."""
        hidden = {self.pictures: gr.HTML(visible=False), self.controls: gr.Row(visible=False)}
        return {self.look: None, self.answer: text, self.reading: "", **hidden}


def _wire(shelf: Shelf, model: gr.Dropdown, upload: gr.Image, gallery: gr.Gallery, view: View) -> None:
    """Connect what a visitor does to what the page shows."""

    def answer(read: Callable[[], tuple[Image.Image, str]], choice: str | None, opacity: float) -> dict[Any, Any]:
        try:
            return view.show(look_at(shelf, read, choice), opacity)
        except LeukoscopeError as error:
            return view.tell(panels.message("This did not work", str(error)))

    def on_upload(path: str | None, choice: str | None, opacity: float) -> dict[Any, Any]:
        if path is None:
            return {upload: None}
        return {upload: None, **answer(lambda: (read_upload(path), _name(path)), choice, opacity)}

    def on_example(choice: str | None, opacity: float, picked: gr.SelectData) -> dict[Any, Any]:
        # Unselected at once, so that the same example can be picked again.
        return {gallery: gr.Gallery(selected_index=None), **answer(partial(example, picked.index), choice, opacity)}

    def on_model(choice: str | None, opacity: float, look: Look | None) -> dict[Any, Any]:
        if look is not None:
            return answer(lambda: (look.image, look.caption), choice, opacity)
        try:
            shelf.predictor(choice)
            return view.tell(panels.placeholder(f"{choice} is ready. {START_HINT}"))
        except LeukoscopeError as error:
            return view.tell(panels.message("This model cannot be used", str(error)))

    def on_redraw(look: Look | None, label: str, opacity: float) -> dict[Any, Any]:
        return view.redraw(look, label, opacity) if look else {view.reading: ""}

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [view.answer]}
    uploaded = upload.upload(
        on_upload, [upload, model, view.opacity], [upload, *view.outputs], trigger_mode="multiple", **hidden
    )
    picked = gallery.select(on_example, [model, view.opacity], [gallery, *view.outputs], **hidden)
    for result in (uploaded, picked):
        result.then(None, js=REVEAL_ANSWER, api_visibility="private")
    model.change(on_model, [model, view.opacity, view.look], view.outputs, **hidden)
    for control in (view.label, view.opacity):
        control.input(
            on_redraw, [view.look, view.label, view.opacity], [view.pictures, view.reading],
            api_visibility="private", show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip


def _add_endpoint(shelf: Shelf, model: gr.Dropdown) -> None:
    """The named endpoint /predict: image, model → label, probabilities, overlay (a file), text."""

    def predict(image: str | None, model: str | None) -> tuple[str, dict[str, float], Image.Image, str]:
        """Classify one cell. `model` is an embedded release or a Hub id owner/name[@revision]."""
        try:
            look = look_at(shelf, lambda: (read_upload(image), _name(image)), model)
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        answered = look.prediction
        _, covered = draw(look, answered.label, OPACITY)
        return answered.label, answered.probabilities, covered, summary(look)

    with gr.Group(visible=False):
        outputs = [
            gr.Textbox(label="label"), gr.JSON(label="probabilities"),
            gr.Image(label="grad_cam", format="png"), gr.Textbox(label="text"),
        ]  # fmt: skip
        gr.Button("predict").click(predict, [cell_upload(label="image"), model], outputs, api_name="predict")


def _name(path: str | None) -> str:
    return (path or "").replace("\\", "/").rsplit("/", 1)[-1]
