"""The tab "One cell": upload, paste or pick a cell, and read what a model says and where it looked.

The components and what connects them; what is shown is made by `look.py`. The same steps answer the API at /predict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.cells.phantom_smears import knows_smears
from leukoscope.cells.registry import DATASETS
from leukoscope.web import panels, words
from leukoscope.web.look import (
    EXAMPLES,
    OPACITY,
    SMEAR_EXAMPLES,
    Look,
    ask_eight_times,
    draw,
    example,
    facts,
    look_at,
    read_heat,
    smear_example,
    summary,
)
from leukoscope.web.real_cells import RealCells, attribution, source_of
from leukoscope.web.saving import File, in_a_file_of_its_own, save_button
from leukoscope.web.sheet import save_look
from leukoscope.web.shelf import Shelf
from leukoscope.web.upload import cell_upload, file_name, read_upload

SESSION_SECONDS = 1800
EXAMPLES_ARE = "Or pick a synthetic one (drawn by a program, from no patient):"
ASK_FOR_REAL_CELLS = "Fetch a few real cells from the Hugging Face Hub"
# On a phone the answer stands below the examples, out of sight.
REVEAL_ANSWER = "() => { if (innerWidth < 700) document.getElementById('answer').scrollIntoView({behavior: 'smooth'}) }"
START_HINT = "Drop a cell, or pick a synthetic one: the answer appears here."


def build_tab(shelf: Shelf, model: gr.Dropdown) -> View:
    """Add the tab to the Blocks being built.

    Args:
        shelf: where models come from.
        model: the picker that all tabs share.

    Returns:
        the components that show a result, so that another tab can open a cell here.
    """
    with gr.Tab("One cell", id="one_cell"):
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload, examples = _build_inputs(knows_smears(shelf.labels(model.value or "")))
                real = RealRow.build()
            with gr.Column(scale=3, min_width=280):
                view = View.build()
        _add_endpoint(shelf, model)
    _wire(shelf, model, upload, examples, view)
    _wire_real_cells(shelf, model, real, view)
    _wire_views(shelf, view)
    return view


@dataclass(frozen=True)
class Examples:
    """The synthetic pictures to pick from: cells cut out, or smears for a model that reads a field as one picture."""

    cells: gr.Gallery
    smears: gr.Gallery

    @classmethod
    def build(cls, smears: bool) -> Examples:
        """Place both in the column being built, one of them hidden."""
        look: dict[str, Any] = {"show_label": False, "height": "auto", "allow_preview": False, "buttons": []}
        cells = [(example(number)[0], label) for number, (label, *_) in enumerate(EXAMPLES)]
        fields = _smears() if smears else None
        return cls(
            gr.Gallery(cells, label="Synthetic cells", columns=3, visible=not smears, elem_id="examples", **look),
            gr.Gallery(fields, label="Synthetic smears", columns=4, visible=smears, elem_id="smear-examples", **look),
        )

    def offer(self, smears: bool) -> dict[Any, Any]:
        """Updates that show one of them; smears are drawn when a model first asks for them."""
        fields = gr.Gallery(_smears(), visible=True) if smears else gr.Gallery(visible=False)
        return {self.cells: gr.Gallery(visible=not smears), self.smears: fields}


def _smears() -> list[tuple[Image.Image, str]]:
    return [(smear_example(number)[0], label) for number, (label, _) in enumerate(SMEAR_EXAMPLES)]


def _build_inputs(smears: bool) -> tuple[gr.Image, Examples]:
    """Place the upload and the synthetic pictures in the column being built."""
    upload = cell_upload(label="Your cell", sources=["upload", "clipboard"], height=220, buttons=[], elem_id="upload")
    gr.HTML(f'<p class="lk-note">{EXAMPLES_ARE}</p>', padding=False)
    return upload, Examples.build(smears)


@dataclass(frozen=True)
class RealRow:
    """The button that fetches real cells, where they are shown, and whose they are.

    Attributes:
        shown: name of the data set whose cells are shown.
    """

    ask: gr.Button
    shown: gr.State
    gallery: gr.Gallery
    note: gr.Markdown

    @classmethod
    def build(cls) -> RealRow:
        """Place the components in the column being built."""
        ask = gr.Button(ASK_FOR_REAL_CELLS, size="sm", elem_id="ask-real-cells")
        gallery = gr.Gallery(
            label="Real cells", show_label=False, columns=3, height="auto", allow_preview=False, buttons=[],
            visible=False, format="png", elem_id="real-cells",
        )  # fmt: skip
        return cls(ask, gr.State(""), gallery, gr.Markdown(elem_id="real-cells-note", elem_classes="lk-note"))


@dataclass(frozen=True)
class View:
    """The result's components, and what each shows for a look, a message or nothing."""

    look: gr.State
    answer: gr.HTML
    pictures: gr.HTML
    controls: gr.Column
    label: gr.Radio
    opacity: gr.Slider
    point: gr.Dropdown
    reading: gr.HTML
    views: gr.HTML
    ask_views: gr.Button

    @classmethod
    def build(cls) -> View:
        """Place the components in the column being built."""
        look = gr.State(None, time_to_live=SESSION_SECONDS)
        answer = gr.HTML(panels.placeholder(START_HINT), elem_id="answer", padding=False)
        pictures = gr.HTML(visible=False, elem_id="pictures", padding=False)
        with gr.Column(visible=False) as controls:
            with gr.Row():
                label = gr.Radio([], label="Show the evidence for", min_width=120)
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Heat map opacity", min_width=120)
            point = gr.Dropdown(
                [], label="Decide at", info="Where the model's answers on unseen patients set the threshold"
            )
            with gr.Row():
                ask_views = gr.Button("Ask again, turned and mirrored", size="sm", min_width=120)
                save_button("Save as one PNG", _save, [look, label, opacity, point], elem_id="save-look")
        reading = gr.HTML(elem_id="reading", padding=False)
        views = gr.HTML(elem_id="views", padding=False)
        return cls(look, answer, pictures, controls, label, opacity, point, reading, views, ask_views)

    @property
    def outputs(self) -> list[Any]:
        """Everything a new result changes."""
        return [self.look, self.answer, self.pictures, self.controls, self.label, self.point, self.reading, self.views]

    def show(self, look: Look, opacity: float, point: str) -> dict[Any, Any]:
        """Updates that show a result, opened at the most probable class and, where it has it, the same point."""
        points = list(look.thresholds.operating_points)
        point = point if point in points else ""
        offered = [("the most probable class", ""), *((f"{words.point_name(name)} threshold", name) for name in points)]
        labels = list(look.prediction.probabilities)
        return {
            self.look: look,
            self.answer: panels.answer(look.prediction.probabilities, look.judgement(point)),
            self.controls: gr.Column(visible=True),
            self.label: gr.Radio(labels, value=look.prediction.most_probable),
            self.point: gr.Dropdown(offered, value=point, visible=bool(points)),
            self.views: "",
            **self.redraw(look, look.prediction.most_probable, opacity),
        }

    def redraw(self, look: Look, label: str, opacity: float) -> dict[Any, Any]:
        """Updates that show one class at one opacity."""
        shown, covered = draw(look, label, opacity)
        return {
            self.pictures: gr.HTML(panels.pictures(shown, covered, look.caption, label, look.peak), visible=True),
            self.reading: panels.reading(read_heat(look, label), facts(look), look.warnings),
        }

    def tell(self, text: str) -> dict[Any, Any]:
        """Updates that show HTML alone, and no result; what was looked at is forgotten."""
        hidden = {self.pictures: gr.HTML(visible=False), self.controls: gr.Column(visible=False)}
        kept = {self.label: gr.skip(), self.point: gr.skip()}
        return {self.look: None, self.answer: text, self.reading: "", self.views: "", **hidden, **kept}


def _save(look: Look, label: str, opacity: float, point: str | None) -> File:
    return save_look(look, label, opacity, point or "")


def _wire(shelf: Shelf, model: gr.Dropdown, upload: gr.Image, examples: Examples, view: View) -> None:
    """Connect what a visitor does to what the page shows."""
    answer = partial(_answer, shelf, view)

    def on_upload(path: str | None, choice: str | None, opacity: float, point: str | None) -> dict[Any, Any]:
        if path is None:
            return {upload: None}
        return {upload: None, **answer(lambda: (read_upload(path), file_name(path)), choice, opacity, point)}

    def on_example(
        gallery: gr.Gallery, read: Callable[[int], tuple[Image.Image, str]]
    ) -> Callable[..., dict[Any, Any]]:
        # Not a `partial`: Gradio hands over what was picked by the function's own annotations.
        def pick(choice: str | None, opacity: float, point: str | None, picked: gr.SelectData) -> dict[Any, Any]:
            shown = answer(partial(read, picked.index), choice, opacity, point)
            # Unselected at once, so that the same example can be picked again.
            return {gallery: gr.Gallery(selected_index=None), **shown}

        return pick

    def on_model(
        choice: str | None, opacity: float, point: str | None, look: Look | None, progress: gr.Progress = gr.Progress()
    ) -> dict[Any, Any]:
        progress(0, desc=f"Loading {choice}")
        try:
            offered = examples.offer(knows_smears(shelf.predictor(choice).labels))
        except LeukoscopeError as error:
            return view.tell(panels.message("This model cannot be used", str(error)))
        if look is None:
            return {**offered, **view.tell(panels.placeholder(f"{choice} is ready. {START_HINT}"))}
        return {**offered, **answer(lambda: (look.image, look.caption), choice, opacity, point)}

    def on_redraw(look: Look | None, label: str, opacity: float) -> dict[Any, Any]:
        return view.redraw(look, label, opacity) if look else {view.answer: panels.placeholder(words.TOO_LONG_AGO)}

    def on_point(look: Look | None, point: str | None) -> str:
        if look is None:
            return panels.placeholder(words.TOO_LONG_AGO)
        return panels.answer(look.prediction.probabilities, look.judgement(point or ""))

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [view.answer]}
    chosen = [model, view.opacity, view.point]
    uploaded = upload.upload(on_upload, [upload, *chosen], [upload, *view.outputs], trigger_mode="multiple", **hidden)
    picked = [
        gallery.select(on_example(gallery, read), chosen, [gallery, *view.outputs], **hidden)
        for gallery, read in ((examples.cells, example), (examples.smears, smear_example))
    ]
    for result in (uploaded, *picked):
        result.then(None, js=REVEAL_ANSWER, api_visibility="private")
    offered = [examples.cells, examples.smears]
    model.change(on_model, [*chosen, view.look], [*offered, *view.outputs], **hidden)
    for control in (view.label, view.opacity):
        control.input(
            on_redraw, [view.look, view.label, view.opacity], [view.answer, view.pictures, view.reading],
            api_visibility="private", show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
    view.point.input(on_point, [view.look, view.point], view.answer, api_visibility="private", show_progress="hidden")


def _answer(
    shelf: Shelf,
    view: View,
    read: Callable[[], tuple[Image.Image, str]],
    choice: str | None,
    opacity: float,
    point: str | None,
) -> dict[Any, Any]:
    """Updates that show what a model says of a picture, or why it says nothing."""
    try:
        return view.show(look_at(shelf, read, choice), opacity, point or "")
    except LeukoscopeError as error:
        return view.tell(panels.message("This did not work", str(error)))


def _wire_real_cells(shelf: Shelf, model: gr.Dropdown, row: RealRow, view: View) -> None:
    """Connect the row of real cells, which stays empty until a visitor asks for it."""
    cells = RealCells()

    def on_ask(choice: str | None) -> dict[Any, Any]:
        try:
            info = source_of(shelf, choice)
            pictures = [(in_a_file_of_its_own(cell.image), cell.label) for cell in cells.of(info)]
        except LeukoscopeError as error:
            return {row.gallery: gr.Gallery(visible=False), row.note: panels.message("This did not work", str(error))}
        return {row.shown: info.name, row.gallery: gr.Gallery(pictures, visible=True), row.note: attribution(info)}

    def on_pick(
        shown: str, choice: str | None, opacity: float, point: str | None, picked: gr.SelectData
    ) -> dict[Any, Any]:
        def read() -> tuple[Image.Image, str]:
            cell = cells.of(DATASETS[shown])[picked.index]
            return cell.image, f"Real {cell.label}"

        return {row.gallery: gr.Gallery(selected_index=None), **_answer(shelf, view, read, choice, opacity, point)}

    row.ask.click(
        on_ask, model, [row.shown, row.gallery, row.note], api_visibility="private", show_progress_on=[row.note]
    )
    chosen = [row.shown, model, view.opacity, view.point]
    row.gallery.select(
        on_pick, chosen, [row.gallery, *view.outputs], api_visibility="private", show_progress_on=[view.answer]
    ).then(None, js=REVEAL_ANSWER, api_visibility="private")


def _wire_views(shelf: Shelf, view: View) -> None:
    """Connect the button that asks about eight views of the cell."""

    def on_ask(look: Look | None) -> str:
        if look is None:
            return panels.placeholder(words.TOO_LONG_AGO)
        try:
            return panels.remark(ask_eight_times(shelf, look))
        except LeukoscopeError as error:
            return panels.message("This did not work", str(error))

    view.ask_views.click(on_ask, view.look, view.views, api_visibility="private", show_progress_on=[view.views])


def _add_endpoint(shelf: Shelf, model: gr.Dropdown) -> None:
    """The named endpoint /predict: image, model, point → outcome, probabilities, overlay (a file), text, decision."""

    def predict(
        image: str | None, model: str | None, operating_point: str = ""
    ) -> tuple[str, dict[str, float], Image.Image, str, dict[str, Any]]:
        """Classify one cell. `model` is an embedded release or a Hub id owner/name[@revision]."""
        try:
            look = look_at(shelf, lambda: (read_upload(image), file_name(image)), model)
            point = known_point(look, operating_point)
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        answered = look.prediction
        _, covered = draw(look, answered.most_probable, OPACITY)
        decision = {**look.decision(point).to_dict(), "ood_score": answered.checks.ood_score}
        picture = in_a_file_of_its_own(covered)
        return decision["outcome"], answered.probabilities, picture, summary(look, point), decision

    with gr.Group(visible=False):
        inputs = [cell_upload(label="image"), model, gr.Textbox("", label="operating_point")]
        outputs = [
            gr.Textbox(label="outcome"), gr.JSON(label="probabilities"),
            gr.Image(label="grad_cam", format="png"), gr.Textbox(label="text"), gr.JSON(label="decision"),
        ]  # fmt: skip
        gr.Button("predict").click(predict, inputs, outputs, api_name="predict")


def known_point(look: Look, point: str) -> str:
    """The operating point asked for; "" for the most probable class.

    Raises:
        LeukoscopeError: the release has no such point.
    """
    points = list(look.thresholds.operating_points)
    if point and point not in points:
        raise LeukoscopeError(
            f"operating point {point!r}: {look.model} has {', '.join(points) or 'none'}; give one of these, or none"
        )
    return point
