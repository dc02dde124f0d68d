"""The tab "Cells": one box for whatever a visitor has, and what a model predicts of it.

The upload decides: a cut-out cell is predicted, a smear's cells are found and cut out, several pictures or a zip are
read as the cells of subjects. What is shown of a cell is made by `result.py`; the same steps serve the API at /predict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from math import hypot
from threading import Lock
from typing import Any

import gradio as gr
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.fields import UnusableField, find_cells, looks_like_smear
from leukoscope.data.hub import StreamedCell, stream_cells
from leukoscope.data.registry import DATASETS, NOT_A_CELL, DatasetInfo, trained_on
from leukoscope.inference.prediction import FIELD_NEEDS
from leukoscope.synthetic import knows_smears
from leukoscope.web import panels, upload
from leukoscope.web.batch_files import Batch, is_batch, open_batch
from leukoscope.web.batch_results import BatchResult
from leukoscope.web.model_cache import MOST_CELLS, ModelCache
from leukoscope.web.page import ADDRESS, BOX, BUSY, EACH, LAST, PRIVATE, READY, REVEAL, SESSION_SECONDS, Updates
from leukoscope.web.result import (
    EXAMPLES,
    OPACITY,
    SMEAR_EXAMPLES,
    TURNS,
    CellResult,
    covered,
    example,
    part_at,
    predict_cell,
    save_result,
    smear_example,
    turned,
)
from leukoscope.web.tabs.batch import ORDERS, BatchPanel
from leukoscope.web.tabs.field import EXAMPLE_PITCH, FieldPanel, FieldResult, example_field, predict_field
from leukoscope.web.text import percent, point_name, t

# Of a visit's cells, those shown last are kept: together as many pixels as one upload may have.
KEPT_CELLS, KEPT_PIXELS = 8, upload.CELL.pixels
FLAG = ": give the scale"  # begins what only a command can do
CROP = 0.3  # of the shorter side: what is cut out round a tap where no cell is found


class CellTab:
    """The tab, added to the Blocks being built; all tabs share its model picker."""

    def __init__(self, models: ModelCache, model: gr.Dropdown) -> None:
        self.models, self.model = models, model
        self.reads_cells, self.reads_smears = (
            next((name for name in models.names if models.takes_cut_outs(name) is kind), "") for kind in (True, False)
        )
        self._examples: dict[tuple[str, int], CellResult] = {}
        self._real = RealCells()
        smears = models.takes_cut_outs(model.value or "") is False
        quiet: dict[str, Any] = {"show_label": False, "height": "auto", "allow_preview": False, "buttons": []}
        with gr.Tab(t("tab_cell"), id="cell"):
            with gr.Row(elem_id="cell-row"):
                with gr.Column(scale=2, min_width=240, elem_id="cell-given"):
                    self.upload = upload.files_upload(show_label=False, height=130, elem_id="upload")
                    self.back = gr.HTML(panels.box(), js_on_load=BOX, elem_id="box", padding=False)
                    gr.HTML(panels.note(t("pick_one")), elem_id="pick-one", padding=False)
                    self.cells = gr.Gallery(
                        [(example(number)[0], label) for number, (label, *_) in enumerate(EXAMPLES)],
                        label=t("synthetic_cells"), columns=6, visible=not smears, elem_id="examples", **quiet,
                    )  # fmt: skip
                    self.smears = gr.Gallery(
                        _smears() if smears else None, label=t("synthetic_smears"), columns=4, visible=smears,
                        elem_id="smear-examples", **quiet,
                    )  # fmt: skip
                    with gr.Row(elem_id="samples"):
                        self.ask_field = gr.Button(
                            t("a_field"), size="sm", min_width=70, visible=not smears, elem_id="ask-field"
                        )
                        self.ask_batch = gr.Button(t("two_subjects"), size="sm", min_width=70, elem_id="ask-batch")
                        self.ask_real = gr.Button(t("ask_real"), size="sm", min_width=70, elem_id="ask-real-cells")
                    self.real_data = gr.State("")  # name of the data set whose cells are shown
                    self.real = gr.Gallery(
                        label=t("real_cells"), columns=6, visible=False, format="png", elem_id="real-cells",
                        **quiet,
                    )  # fmt: skip
                    self.real_note = gr.Markdown(elem_id="real-cells-note", elem_classes="lk-note")
                with gr.Column(scale=5, min_width=280, elem_id="cell-result"):
                    self._build_result()
            self.field = FieldPanel(models, model)
            self.batch = BatchPanel(models, model)
            self._add_endpoint()
        self.outputs = [
            self.result, self.summary, self.propose, self.buttons, self.turn, self.cover, self.pictures, self.forms,
            self.controls, self.label, self.common_scale, self.point, self.explanation, *self.field.outputs,
            *self.batch.outputs,
        ]  # fmt: skip
        self.chosen = [self.model, self.opacity, self.point]
        self._wire_inputs()
        self._wire_result()

    def _build_result(self) -> None:
        self.result = gr.State(None, time_to_live=SESSION_SECONDS)
        self.kept = gr.State([], time_to_live=SESSION_SECONDS)
        with gr.Row(elem_id="cell-answer"):
            with gr.Column(min_width=260):
                self.summary = gr.HTML(panels.placeholder(t("cell_hint")), elem_id="cell-summary", padding=False)
                self.propose = gr.Button("", visible=False, variant="primary", elem_id="propose")
                with gr.Row(visible=False, elem_id="cell-buttons") as self.buttons:
                    self.turn = gr.Button(t("turn"), size="sm", min_width=80, elem_id="turn")
                    self.cover = gr.Button(t("cover"), size="sm", min_width=80, elem_id="cover")
                    self.save = gr.Row()
            with gr.Column(min_width=260):
                self.pictures = gr.HTML(js_on_load=panels.VIEW, elem_id="pictures", padding=False)
        self.forms = gr.HTML(elem_id="forms", padding=False)
        with gr.Accordion(t("more"), open=False, visible=False, elem_id="more") as self.controls:
            self.explanation = gr.HTML(elem_id="explanation", padding=False)
            with gr.Row():
                self.label = gr.Radio([], label=t("map_for"), min_width=120)
                self.opacity = gr.Slider(0, 1, OPACITY, step=0.05, label=t("opacity"), min_width=120)
            self.common_scale = gr.Checkbox(False, label=t("common_scale"))
            self.point = gr.Dropdown([], label=t("decide_at"), info=t("decide_at_info"))
        with self.save:
            shown = [self.result, self.label, self.opacity, self.point, self.common_scale]
            upload.save_button(t("save_png"), save_result, shown, elem_id="save-result")
        self.visit = gr.HTML(js_on_load=panels.CLICK, elem_id="visit", padding=False)

    def open_on_load(self, demo: gr.Blocks, tabs: gr.Tabs) -> None:
        """Show a synthetic cell's result to whoever opens the page: its address names model, example and tab."""
        known = {tab.id for tab in tabs.children if isinstance(tab, gr.Tab)}

        def on_load(choice: str | None, opacity: float, visit: gr.Request) -> Iterator[Updates]:
            asked = visit.query_params
            named, number = asked.get("model") or choice, asked.get("example") or "1"
            tab = asked.get("tab")
            opened: Updates = {tabs: gr.Tabs(selected=tab) if tab in known else gr.skip()}
            if not named:
                yield {**opened, **self.clear(panels.placeholder(t("cell_hint")))}
                return
            if named != choice:
                yield {**opened, **self.clear(panels.placeholder(t("loading_model", model=named)))}
                opened = {}  # else it would take back a tab that the visitor opened meanwhile

            def first() -> Updates:
                result = self._example(named, int(number) if number.isdecimal() else 1)
                return self.show(replace(result, caption=t("an_example", caption=result.caption)), opacity, None)

            yield {**opened, self.model: named, **self.attempt(first)}

        # Not in `outputs`, whose other events leave them as they are.
        opened = [self.model, tabs, *self.outputs]
        for event in (demo.load, self.back.select):
            self._afterwards(event(on_load, [self.model, self.opacity], opened, **LAST))
        tabs.change(None, js=ADDRESS, **PRIVATE)

    def _example(self, choice: str | None, number: int) -> CellResult:
        """What a model predicts for a synthetic picture of the kind it reads, counted from 1; predicted once."""
        name = str(choice)
        smears = knows_smears(self.models.predictor(choice).labels)
        number = min(max(number, 1), len(SMEAR_EXAMPLES if smears else EXAMPLES))
        image, caption = smear_example(number - 1) if smears else example(number - 1)
        if (name, number) in self._examples:
            return replace(self._examples[name, number], caption=caption)
        result = replace(predict_cell(self.models, image, caption, choice), example=number)
        if name in self.models.names:
            self._examples[name, number] = result
        return result

    def attempt(self, predict: Callable[[], Updates]) -> Updates:
        """Updates that show a result, or why there is none."""
        try:
            return predict()
        except LeukoscopeError as error:
            return self.clear(panels.message(t("failed"), str(error)))

    def show(self, result: CellResult, opacity: float, point: str | None, *, keep: bool = False) -> Updates:
        """Updates that show a result as it is decided at a point, where it has it, and the map of that class.

        Args:
            keep: leave the field or the batch that the cell comes from where it is.
        """
        points, labels = list(result.thresholds.operating_points), list(result.prediction.probabilities)
        point = point if point in points else ""
        called = result.called(point)
        offered = [
            (t("most_probable_class"), ""),
            *((t("threshold_of", point=point_name(name)), name) for name in points),
        ]
        others: Updates = {} if keep else {**self.field.clear(), **self.batch.clear()}
        return {
            self.result: result,
            self.summary: panels.decision(result, point),
            self.propose: self._proposal(result),
            self.buttons: gr.Row(visible=True),
            # Of a refused picture they would only show more that is no result.
            **{one: gr.Button(visible=result.foreign is None) for one in (self.turn, self.cover)},
            self.controls: gr.Accordion(visible=True),
            self.label: gr.Radio(labels, value=called, visible=bool(result.maps)),
            self.point: gr.Dropdown(offered, value=point, visible=bool(points)),
            self.common_scale: gr.Checkbox(False, visible=bool(result.maps) and result.scale.strong is not None),
            self.forms: "",
            **self._draw(result, called, opacity, point=point),
            **others,
        }

    def _fitting(self, result: CellResult) -> str:
        """What fits a refused picture better: "" to cut its cells out, a model that reads such pictures, or neither."""
        if result.foreign is None:
            return result.model
        if result.prediction.outcome == NOT_A_CELL and not result.remark:
            return ""
        return (self.reads_smears if result.measured is None else self.reads_cells) or result.model

    def _proposal(self, result: CellResult) -> gr.Button:
        """One tap to what fits a refused picture."""
        fitting = self._fitting(result)
        text = use_model(fitting) if fitting else t("cut_out")
        return gr.Button(text, visible=fitting != result.model)

    def _draw(
        self, result: CellResult, label: str, opacity: float, common_scale: bool = False, point: str | None = ""
    ) -> Updates:
        """Updates that show one class's map at one opacity."""
        return {
            self.pictures: panels.pictures(result, label, opacity, common_scale),
            self.explanation: panels.explanation(result, label, point or ""),
        }

    def clear(self, html: str) -> Updates:
        """Updates that show HTML in place of a result, which is deleted."""
        hidden = {self.buttons: gr.Row(visible=False), self.controls: gr.Accordion(visible=False)}
        gone: Updates = {self.result: None, self.propose: gr.Button(visible=False), **hidden}
        empty = dict.fromkeys((self.pictures, self.explanation, self.forms), "")
        return {self.summary: html, **gone, **empty, **self.field.clear(), **self.batch.clear()}

    def read(
        self,
        image: Image.Image,
        caption: str,
        remark: str,
        choice: str | None,
        opacity: float,
        point: str | None,
        um_per_pixel: float | None = None,
        number: int = 0,
    ) -> Updates:
        """Updates that show what a picture holds: a cell as it is, or the cells of a smear, cut out.

        Args:
            um_per_pixel: its scale, where it is known.
            number: the cell of a smear that is opened, from 1; 0 for none, unless it is the only one.
        """
        if self._cuts_out(image, choice):
            try:
                field = predict_field(self.models, image, caption, choice, um_per_pixel)
            except UnusableField as error:
                reason = str(error).removeprefix(f"{caption}: ").partition(FLAG)[0]
                remark = f"{remark} {t('no_cut_out', reason=reason)}".strip()
            else:
                return self._show_field(field, remark, opacity, number)
        cell = predict_cell(self.models, image, caption, choice, um_per_pixel=um_per_pixel, remark=remark)
        return self.show(cell, opacity, point)

    def _cuts_out(self, image: Image.Image, choice: str | None) -> bool:
        """Whether a model reads the cells of a picture rather than the picture."""
        return self.models.predictor(choice).release.takes_cut_outs is not False and looks_like_smear(image)

    def _show_field(self, field: FieldResult, remark: str, opacity: float, number: int) -> Updates:
        """Updates that show a field, and one of its cells as the field decides on it."""
        whole = [at for at, one in enumerate(field.reading.cells, start=1) if one.prediction]
        hint = "click_a_cell" if whole else "field_cut" if field.reading.cells else "field_none"
        shown = self.clear(panels.placeholder(t(hint)))
        number = whole[0] if len(whole) == 1 else number
        if number in whole:
            opened = replace(self.field.cell(field, number - 1), remark=f"{remark} {t('was_cut_out')}".strip())
            shown = self.show(opened, opacity, "")
        share, other = field.reading.in_distribution, self.reads_smears
        if other and share is not None and share < FIELD_NEEDS:
            shown[self.propose] = gr.Button(use_model(other), visible=True)
        return {**shown, **self.field.show(field)}

    def _wire_inputs(self) -> None:
        """Connect what a visitor gives to the result."""
        with_files = [self.upload, *self.outputs]
        running: list[Any] = [
            self.upload.upload(self._on_upload, [self.upload, *self.chosen, self.batch.pattern], with_files, **EACH),
            self.ask_batch.click(self._on_sample, [self.model, self.batch.pattern], with_files, **EACH),
        ]
        given = [*running, self.ask_field.click(self._on_field, self.chosen, self.outputs, **LAST)]
        for gallery in (self.cells, self.smears, self.real):
            inputs = [*self.chosen, self.real_data]
            given.append(gallery.select(self._on_pick(gallery), inputs, [gallery, *self.outputs], **EACH))
        for event in given:
            self._afterwards(event, reveal=True)
        shown = [self.result, self.field.result, self.batch.result, self.batch.pattern]
        outputs = [self.cells, self.smears, self.ask_field, *with_files]
        # In two steps: else what runs is cancelled, and what is said of the model replaced, only after the answer.
        changed = self.model.change(None, js=BUSY, cancels=running, **PRIVATE)
        changed = changed.then(self._on_model, [*self.chosen, *shown], outputs, **LAST)
        self._afterwards(changed)
        running.append(changed)
        self._afterwards(self.batch.stop.click(self._on_stop, self.upload, with_files, cancels=running, **LAST))
        self.ask_real.click(
            self._on_ask_real, self.model, [self.real_data, self.real, self.real_note],
            show_progress_on=[self.real_note], trigger_mode="always_last", **PRIVATE,
        )  # fmt: skip

    def _wire_result(self) -> None:
        """Connect what stands beside and below a result."""
        inputs: list[Any] = [self.result, self.label, self.opacity, self.common_scale, self.point]
        for control in inputs[1:-1]:
            control.input(self._on_draw, inputs, [self.summary, self.pictures, self.explanation], **LAST)
        decided = [self.result, self.point]
        self.point.input(self._on_point, [*decided, self.opacity], self.outputs, **LAST)
        for button, show in ((self.turn, self._on_turn), (self.cover, self._on_cover)):
            shown = button.click(show, decided, self.forms, show_progress_on=[self.forms], **PRIVATE)
            for ended in (shown.then, shown.failure):
                ended(None, js=READY, **PRIVATE)
        with_model, below = [self.model, *self.outputs], [self.field.result, self.batch.result]
        self._afterwards(self.visit.select(self._on_kept, [self.kept, *below, *self.chosen], with_model, **EACH))
        tapped = self.pictures.select(self._on_tap, [self.result, *self.chosen], self.outputs, js=BUSY, **EACH)
        self._afterwards(tapped)
        proposed = [self.result, self.field.result, *self.chosen]
        self._afterwards(self.propose.click(self._on_propose, proposed, with_model, **LAST))
        for panel in (self.field, self.batch):
            for component in panel.cells:
                opened = component.select(self._on_cell(panel), [panel.result, self.opacity], self.outputs, **EACH)
                self._afterwards(opened, reveal=True)
        pitched = [self.field.result, self.field.pitch, self.opacity]
        self._afterwards(self.field.pitch.submit(self._on_pitch, pitched, self.outputs, js=BUSY, **LAST))

    def _afterwards(self, event: Any, reveal: bool = False) -> None:
        """After an event that may have changed the result: keep it for the visit, and write the page's address."""
        inputs, outputs = [self.result, self.kept, self.model], [self.kept, self.visit]
        event.failure(None, js=READY, **PRIVATE)
        if reveal:
            event = event.then(None, js=REVEAL, **PRIVATE)
        event.then(None, js=READY, **PRIVATE)
        event.then(self._on_result, inputs, outputs, **LAST).then(None, js=ADDRESS, **PRIVATE)

    def _on_result(
        self, result: CellResult | None, kept: list[CellResult] | None, choice: str | None
    ) -> tuple[list[CellResult], str]:
        kept = list(kept or [])
        again = [i for i, one in enumerate(kept) if result and (one.model, one.image) == (result.model, result.image)]
        if result is not None and again:
            kept[again[0]] = result
        elif result is not None:
            kept = [result, *kept][:KEPT_CELLS]
            while len(kept) > 1 and sum(one.image.width * one.image.height for one in kept) > KEPT_PIXELS:
                kept.pop()
        number = result.example if result else 0
        return kept, panels.visit(kept, choice or "", number)

    def _on_upload(
        self, paths: list[str] | None, choice: str | None, opacity: float, point: str | None, pattern: str
    ) -> Iterator[Updates]:
        if not paths:
            yield {self.upload: None}
            return
        # Deleted only now: the page may ask for the file until the result is there.
        with upload.deleted_afterwards(paths):
            if is_batch(paths):
                yield from self._predict_batch(lambda: open_batch(paths), choice, pattern)
            else:
                read = self.attempt(lambda: self.read(*upload.open_any(paths[0]), choice, opacity, point))
                yield {self.upload: None, **read}

    def _on_sample(self, choice: str | None, pattern: str) -> Iterator[Updates]:
        yield from self._predict_batch(lambda: self.batch.sample(choice), choice, pattern)

    def _predict_batch(self, read: Callable[[], Batch], choice: str | None, pattern: str) -> Iterator[Updates]:
        waiting = self.clear(panels.placeholder(t("reading")))
        try:
            for step in self.batch.predict(read, choice, pattern):
                yield {self.upload: None, **waiting, **step}
                waiting = {self.summary: panels.placeholder(t("click_a_cell"))}
        except LeukoscopeError as error:
            yield {self.upload: None, **self.clear(panels.message(t("failed"), str(error)))}

    def _on_stop(self, paths: list[str] | None) -> Updates:
        # Of a batch that still waited for its turn, nobody else deletes the files.
        with upload.deleted_afterwards(paths or []):
            return {self.upload: None, **self.clear(panels.placeholder(t("stopped")))}

    def _on_pick(self, gallery: gr.Gallery) -> Callable[..., Updates]:
        # Not a `partial`: Gradio passes what was picked by the function's own annotations.
        def pick(choice: str | None, opacity: float, point: str | None, data: str, picked: gr.SelectData) -> Updates:
            def predict() -> Updates:
                if gallery is self.real:
                    cell = self._real.of(DATASETS[data])[picked.index]
                    return self.read(cell.image, t("real_cell", label=cell.label), "", choice, opacity, point)
                return self.show(self._example(choice, picked.index + 1), opacity, point)

            # Unselected at once, so that the same example can be picked again.
            return {gallery: gr.Gallery(selected_index=None), **self.attempt(predict)}

        return pick

    def _on_field(self, choice: str | None, opacity: float, point: str | None) -> Updates:
        (image, caption), pitch = example_field(), EXAMPLE_PITCH
        return self.attempt(lambda: self.read(image, caption, "", choice, opacity, point, pitch))

    def _on_pitch(self, field: FieldResult | None, um_per_pixel: float | None, opacity: float) -> Updates:
        if field is None:
            return {self.field.summary: panels.placeholder(t("result_deleted"))}
        reading = field.reading
        try:
            field = predict_field(self.models, field.image, reading.source, reading.model, um_per_pixel)
        except LeukoscopeError as error:
            return {self.field.summary: panels.message(t("failed"), str(error))}
        return self._show_field(field, "", opacity, 0)

    def _on_model(
        self,
        choice: str | None,
        opacity: float,
        point: str | None,
        result: CellResult | None,
        field: FieldResult | None,
        batch: BatchResult | None,
        pattern: str,
    ) -> Iterator[Updates]:
        """Read what is shown with the model that was chosen; a field or a batch that cannot be read stays."""

        def again() -> Updates:
            if field is not None:
                given, number = field.given_um_per_pixel, result.cell if result else 0
                return self.read(field.image, field.reading.source, "", choice, opacity, point, given, number)
            if result is None:
                return self.clear(panels.placeholder(t("model_ready", model=choice)))
            if result.example:
                return self.show(self._example(choice, result.example), opacity, point)
            if result.cell:  # decided by how many of its field's cells a model takes as in distribution
                raise LeukoscopeError(
                    f"{result.caption}: is a cell of a field that {result.model} read; open the field anew"
                )
            return self.read(result.image, result.caption, "", choice, opacity, point, result.um_per_pixel)

        if result is not None and result.model == choice:  # opened by the page's address, or from a visit
            yield self._offered(choice)
            return
        # The result of the model before must not stand below the name of this one; the page dims it while this reads.
        # Of two updates at once, Gradio may lose the first where it shows what was hidden.
        if choice not in self.models.loaded:
            yield {self.upload: None, **self.clear(panels.placeholder(t("loading_model", model=choice)))}
        try:
            offered = self._offered(choice)
            for file in batch.given.files if batch else ():
                file.read()  # an error where its picture was not kept
        except LeukoscopeError as error:
            kept: Updates = self.field.show(field) if field else {}
            kept |= self.batch.show(batch, next(iter(ORDERS)), batch.point) if batch else {}
            yield {self.upload: None, **self.clear(panels.message(t("failed"), str(error))), **kept}
            return
        if batch is None:
            yield {self.upload: None, **offered, **self.attempt(again)}
        else:
            steps = self._predict_batch(lambda: batch.given, choice, pattern)
            yield {**offered, **next(steps)}
            yield from steps

    def _offered(self, choice: str | None) -> Updates:
        """Synthetic pictures of the kind that a model reads; smears are drawn when a model first asks for them."""
        smears = knows_smears(self.models.predictor(choice).labels)
        return {
            self.cells: gr.Gallery(visible=not smears),
            self.smears: gr.Gallery(_smears(), visible=True) if smears else gr.Gallery(visible=False),
            self.ask_field: gr.Button(visible=not smears),
        }

    def _on_ask_real(self, choice: str | None) -> Updates:
        try:
            info = source_of(self.models, choice)
            pictures = [(upload.png_answer(cell.image), cell.label) for cell in self._real.of(info)]
        except LeukoscopeError as error:
            return {self.real: gr.Gallery(visible=False), self.real_note: panels.message(t("failed"), str(error))}
        shown = gr.Gallery(pictures, visible=True)
        return {self.real_data: info.name, self.real: shown, self.real_note: attribution(info)}

    def _on_kept(
        self,
        kept: list[CellResult] | None,
        field: FieldResult | None,
        batch: BatchResult | None,
        choice: str | None,
        opacity: float,
        point: str | None,
        picked: gr.EventData,
    ) -> Updates:
        if not kept:
            return self.clear(panels.placeholder(t("result_deleted")))
        result = kept[picked.index]
        if result.model != choice:  # it must not stand below the name of another model
            return {self.model: result.model, **self.show(result, opacity, point)}
        below = [t("cell_of", number=result.cell, source=field.reading.source)] if field else []
        below += [row.name for row in batch.rows] if batch else []
        return self.show(result, opacity, point, keep=result.caption in below)

    def _on_draw(
        self, result: CellResult | None, label: str, opacity: float, common_scale: bool, point: str | None
    ) -> Updates:
        if result is None:
            return {self.summary: panels.placeholder(t("result_deleted"))}
        return self._draw(result, label, opacity, common_scale, point)

    def _on_point(self, result: CellResult | None, point: str | None, opacity: float) -> Updates:
        if result is None:
            return {self.summary: panels.placeholder(t("result_deleted"))}
        # What is proposed for a field stays with it; the menu itself, made anew, would ask again.
        return {**self.show(result, opacity, point, keep=True), self.propose: gr.skip(), self.point: gr.skip()}

    def _on_turn(self, result: CellResult | None, point: str | None) -> str:
        def show(one: CellResult) -> str:
            found = turned(self.models, one)
            shown = [(f"{angle}°", form) for angle, form in zip(TURNS, found, strict=True)]
            return panels.forms(turn_text(found, point or ""), shown, point or "")

        return _formed(show, result)

    def _on_cover(self, result: CellResult | None, point: str | None, names: Sequence[str] = ()) -> str:
        def show(one: CellResult) -> str:
            found = covered(self.models, one, names)
            shown = [(t(f"without_{name}"), form) for name, form in found.items()]
            return panels.forms(cover_text(one, found, point or ""), [(t("as_given"), one), *shown], point or "")

        return _formed(show, result)

    def _on_tap(
        self, result: CellResult | None, choice: str | None, opacity: float, point: str | None, tap: gr.EventData
    ) -> Updates:
        """Cover the part that was tapped; of a refused picture with more than a cell, cut out the one nearest to it."""
        if result is None:
            return self.clear(panels.placeholder(t("result_deleted")))
        across, down = (min(max(float(value), 0.0), 0.999) for value in tap.value)
        x, y = across * result.image.width, down * result.image.height
        if result.foreign is None:
            part = part_at(result.image, int(x), int(y))
            return {self.forms: self._on_cover(result, point, [part]) if part else panels.note(t("no_parts"))}
        if result.measured is not None:
            return {self.forms: gr.skip()}

        def away(box: tuple[int, int, int, int]) -> tuple[float, float]:
            left, top, right, bottom = box
            outside = hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))
            return outside, hypot((left + right) / 2 - x, (top + bottom) / 2 - y)

        def cut_out() -> Updates:
            image, pitch = result.image, result.um_per_pixel
            cuts = self._cuts_out(image, choice)
            boxes = {}
            with suppress(UnusableField):
                if cuts:
                    field = predict_field(self.models, image, result.caption, choice, pitch)
                    cells = [read.cell for read in field.reading.cells]
                else:
                    cells = list(find_cells(image, um_per_pixel=pitch, most_cells=MOST_CELLS).cells)
                boxes = {one.box: number for number, one in enumerate(cells, start=1) if one.whole}
            box = min(boxes, key=away, default=None)
            if box and cuts:
                return self._show_field(field, "", opacity, boxes[box])
            left, top, right, bottom = box or (x, y, x, y)
            half = max(CROP * min(image.size) / 2, 0.6 * max(right - left, bottom - top))
            across, down = (left + right) / 2, (top + bottom) / 2
            crop = image.crop(
                (int(max(0, across - half)), int(max(0, down - half)), int(across + half), int(down + half))
            )
            return self.read(crop, result.caption, t("was_cropped"), choice, opacity, point)

        return self.attempt(cut_out)

    def _on_propose(
        self,
        result: CellResult | None,
        field: FieldResult | None,
        choice: str | None,
        opacity: float,
        point: str | None,
    ) -> Updates:
        if field is not None:  # whose cells are unlike those of this model
            return {self.model: self.reads_smears}
        if result is None:
            return self.clear(panels.placeholder(t("result_deleted")))
        if fitting := self._fitting(result):
            return {self.model: fitting}
        return self.attempt(lambda: self.read(result.image, result.caption, "", choice, opacity, point))

    def _on_cell(self, panel: FieldPanel | BatchPanel) -> Callable[..., Updates]:
        def opened(shown: Any, opacity: float, picked: gr.EventData) -> Updates:
            if shown is None:
                return self.clear(panels.placeholder(t("result_deleted")))
            try:
                # Decided as in the list that it is opened from.
                point = shown.point if panel is self.batch else ""
                cell = self.show(panel.cell(shown, picked.index), opacity, point, keep=True)
            except LeukoscopeError as error:
                return {self.summary: panels.message(t("failed"), str(error))}
            # What is proposed for a field stays with it.
            return {**cell, self.propose: gr.skip()} if panel is self.field else cell

        return opened

    def _add_endpoint(self) -> None:
        """The named endpoint /predict: image, model, point → outcome, probabilities, overlay, text, decision."""

        def predict(
            image: str | None, model: str | None, operating_point: str = ""
        ) -> tuple[str, dict[str, float], str | None, str, dict[str, Any]]:
            """Classify one white blood cell, with a Grad-CAM map of the most probable class. For research only.

            Args:
                image: the picture of one cell, cut out or from a smear; PNG, JPEG, BMP, TIFF or WebP.
                model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
                operating_point: threshold between two classes; empty decides for the most probable class.
            """
            with upload.gradio_errors():
                result = predict_cell(self.models, *upload.read_upload(image), model)
                points = list(result.thresholds.operating_points)
                if operating_point and operating_point not in points:
                    raise LeukoscopeError(
                        f"operating point {operating_point!r}: {result.model} has {', '.join(points) or 'none'}; give "
                        "one of these, or none"
                    )
                text = result.summary(operating_point)
            predicted = result.prediction
            _, overlaid = result.pictures(predicted.most_probable, OPACITY)
            decision = {**result.decision(operating_point).to_dict(), "ood_score": predicted.checks.ood_score}
            grad_cam = upload.png_answer(overlaid) if overlaid else None
            return decision["outcome"], predicted.probabilities, grad_cam, text, decision

        with gr.Group(visible=False):
            # The names that `evaluation.thresholds` gives; clients and assistants see them as an enumeration.
            points = ["", "sensitivity_95", "specificity_95", "youden"]
            point = gr.Dropdown(points, value="", allow_custom_value=True, label="operating_point")
            inputs = [upload.cell_upload(label="image"), self.model, point]
            outputs = [
                gr.Textbox(label="outcome"), gr.JSON(label="probabilities"),
                gr.Image(label="grad_cam", format="png"), gr.Textbox(label="text"), gr.JSON(label="decision"),
            ]  # fmt: skip
            gr.Button("predict").click(predict, inputs, outputs, api_name="predict")


def use_model(name: str) -> str:
    """What a button says that reads a picture with another model."""
    return t("use_model", model=name.removeprefix("leukoscope-"))


def _smears() -> list[tuple[Image.Image, str]]:
    return [(smear_example(number)[0], label) for number, (label, _) in enumerate(SMEAR_EXAMPLES)]


def _formed(show: Callable[[CellResult], str], result: CellResult | None) -> str:
    """A result in other forms as HTML, or why there are none."""
    if result is None:
        return panels.placeholder(t("result_deleted"))
    try:
        return show(result)
    except LeukoscopeError as error:
        return panels.message(t("failed"), str(error))


def turn_text(results: Sequence[CellResult], point: str = "") -> str:
    """Whether a picture is predicted alike whichever way it is turned."""
    label = results[0].called(point)
    shares = [one.prediction.probabilities[label] for one in results]
    same = all(one.called(point) == label for one in results)
    low, high = percent(min(shares)), percent(max(shares))
    return t("turn_same" if same else "turn_differs", label=label, low=low, high=high)


def cover_text(result: CellResult, found: Mapping[str, CellResult], point: str = "") -> str:
    """What the class decided on, or else the most probable one, loses without each part."""
    if not found:
        return t("no_parts")
    label = result.called(point)
    before = percent(result.prediction.probabilities[label])
    return " ".join(
        t("without", part=t(f"without_{name}"), label=label, before=before,
          after=percent(one.prediction.probabilities[label]))
        for name, one in found.items()
    )  # fmt: skip


class RealCells:
    """The cells downloaded so far, by data set."""

    def __init__(self) -> None:
        self._downloaded = cache(stream_cells)
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def of(self, info: DatasetInfo) -> list[StreamedCell]:
        """Three cells of each class of a data set that has a copy on the Hub."""
        assert info.hub_id is not None
        with self._locks[info.name]:
            return self._downloaded(info.hub_id)


def source_of(models: ModelCache, choice: str | None) -> DatasetInfo:
    """The data set that a model was trained on; an error where no copy of it is on the Hub."""
    info = trained_on(models.predictor(choice).release.metrics)
    if info is None or info.hub_id is None:
        raise LeukoscopeError(
            f"{choice} was trained on data of which no copy on the Hub is known; upload a cell of your own"
        )
    return info


def attribution(info: DatasetInfo) -> str:
    """Where the cells come from, and what predictions for them are worth; Markdown."""
    link = f"[{info.hub_id}](https://huggingface.co/datasets/{info.hub_id})"
    return t("attribution", title=info.title, link=link, licence=info.licence, citation=info.citation)
