"""The tab "Cells": one box for whatever a visitor has, and what a model predicts of it.

The upload decides: a cut-out cell is predicted, a smear's cells are found and cut out, several pictures or a zip are
read as the cells of subjects. What is shown of a cell is made by `result.py`; the same steps serve the API at /predict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import gradio as gr
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.fields import UnusableField, looks_like_smear
from leukoscope.data.loading import StreamedCell, stream_cells
from leukoscope.data.registry import DATASETS, NOT_A_CELL, DatasetInfo, trained_on
from leukoscope.inference.prediction import FIELD_NEEDS
from leukoscope.synthetic import knows_smears
from leukoscope.web import panels
from leukoscope.web.batch_files import is_batch, open_batch
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import ADDRESS, BOX, PRIVATE, READY, REVEAL, SESSION_SECONDS, Updates
from leukoscope.web.result import (
    EXAMPLES,
    OPACITY,
    SMEAR_EXAMPLES,
    TURNS,
    CellResult,
    covered,
    example,
    part_at,
    predict_again,
    predict_cell,
    save_result,
    smear_example,
    turned,
)
from leukoscope.web.tabs.batch import BatchPanel
from leukoscope.web.tabs.field import FieldPanel, FieldResult, predict_any_field
from leukoscope.web.text import Localised, localised, percent, point_name, t
from leukoscope.web.upload import (
    CELL,
    cell_upload,
    deleted_afterwards,
    files_upload,
    gradio_errors,
    open_any,
    png_answer,
    read_upload,
    save_button,
)

# Of a visit's cells, those shown last are kept: together as many pixels as one upload may have.
KEPT_CELLS, KEPT_PIXELS = 8, CELL.pixels
FLAG = ": give the scale"  # begins what only a command can do
CROP = 0.3  # of the shorter side: what is cut out round a tap


class CellTab:
    """The tab, added to the Blocks being built.

    Args:
        models: where models come from.
        model: the picker that all tabs share.

    Attributes:
        outputs: every component that a new result changes.
    """

    def __init__(self, models: ModelCache, model: gr.Dropdown) -> None:
        self.models, self.model = models, model
        self.reads = {one: next((name for name in models.names if _reads(models, name) == one), "") for one in _KINDS}
        self._examples: dict[tuple[str, int], CellResult] = {}
        self._real = RealCells()
        smears = _reads(models, model.value or "") == "smears"
        quiet: dict[str, Any] = {"show_label": False, "height": "auto", "allow_preview": False, "buttons": []}
        with gr.Tab(localised("tab_cell"), id="cell"):
            with gr.Row(elem_id="cell-row"):
                with gr.Column(scale=2, min_width=240, elem_id="cell-given"):
                    self.upload = files_upload(show_label=False, height=130, elem_id="upload")
                    gr.HTML(Localised(panels.box), js_on_load=BOX, elem_id="box", padding=False)
                    gr.HTML(Localised(lambda: panels.note(t("pick_one"))), elem_id="pick-one", padding=False)
                    self.cells = gr.Gallery(
                        [(example(number)[0], label) for number, (label, *_) in enumerate(EXAMPLES)],
                        label=localised("synthetic_cells"), columns=6, visible=not smears, elem_id="examples", **quiet,
                    )  # fmt: skip
                    self.smears = gr.Gallery(
                        _smears() if smears else None, label=localised("synthetic_smears"), columns=4, visible=smears,
                        elem_id="smear-examples", **quiet,
                    )  # fmt: skip
                    with gr.Row(elem_id="samples"):
                        self.ask_field = gr.Button(
                            localised("a_field"), size="sm", min_width=70, visible=not smears, elem_id="ask-field"
                        )
                        self.ask_batch = gr.Button(
                            localised("two_subjects"), size="sm", min_width=70, elem_id="ask-batch"
                        )
                        self.ask_real = gr.Button(
                            localised("ask_real"), size="sm", min_width=70, elem_id="ask-real-cells"
                        )
                    self.real_data = gr.State("")  # name of the data set whose cells are shown
                    self.real = gr.Gallery(
                        label=localised("real_cells"), columns=6, visible=False, format="png", elem_id="real-cells",
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
                    self.turn = gr.Button(localised("turn"), size="sm", min_width=80, elem_id="turn")
                    self.cover = gr.Button(localised("cover"), size="sm", min_width=80, elem_id="cover")
                    self.save = gr.Row()
            with gr.Column(min_width=260):
                self.pictures = gr.HTML(js_on_load=panels.VIEW, elem_id="pictures", padding=False)
        self.forms = gr.HTML(elem_id="forms", padding=False)
        with gr.Accordion(localised("more"), open=False, visible=False, elem_id="more") as self.controls:
            self.explanation = gr.HTML(elem_id="explanation", padding=False)
            with gr.Row():
                self.label = gr.Radio([], label=localised("map_for"), min_width=120)
                self.opacity = gr.Slider(0, 1, OPACITY, step=0.05, label=localised("opacity"), min_width=120)
            self.common_scale = gr.Checkbox(False, label=localised("common_scale"))
            self.point = gr.Dropdown([], label=localised("decide_at"), info=localised("decide_at_info"))
        with self.save:
            shown = [self.result, self.label, self.opacity, self.point, self.common_scale]
            save_button(localised("save_png"), save_result, shown, elem_id="save-result")
        self.visit = gr.HTML(js_on_load=panels.CLICK, elem_id="visit", padding=False)

    def open_on_load(self, demo: gr.Blocks, tabs: gr.Tabs) -> None:
        """Show a synthetic cell's result to whoever opens the page: of the model and in the tab that its address names.

        Args:
            tabs: those of the page; their ids are what the address names.
        """
        known = {tab.id for tab in tabs.children if isinstance(tab, gr.Tab)}

        def on_load(choice: str | None, opacity: float, visit: gr.Request) -> Iterator[Updates]:
            asked = visit.query_params
            named, number = asked.get("model") or choice, asked.get("example") or "1"
            tab = "code" if asked.get("view") == "api" else asked.get("tab")
            opened: Updates = {tabs: gr.Tabs(selected=tab) if tab in known else gr.skip()}
            if not named:
                yield {**opened, **self.clear(panels.placeholder(t("cell_hint")))}
                return
            if named != choice:
                waiting = self.clear(panels.placeholder(t("loading_model", model=named)))
                yield {**opened, self.model: named, **waiting}

            def first() -> Updates:
                result = self._example(named, int(number) if number.isdecimal() else 1)
                return self.show(replace(result, caption=t("an_example", caption=result.caption)), opacity, None)

            yield {**opened, **self.attempt(first)}

        # Not in `outputs`, whose other events leave them as they are.
        opened = [self.model, tabs, *self.outputs]
        self._afterwards(demo.load(on_load, [self.model, self.opacity], opened, show_progress="hidden", **PRIVATE))
        tabs.change(None, js=ADDRESS, **PRIVATE)

    def _example(self, choice: str | None, number: int) -> CellResult:
        """What a model predicts for a synthetic picture of the kind it reads; those offered are predicted once.

        Args:
            number: which, from 1.

        Raises:
            LeukoscopeError: the model cannot be used.
        """
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

    def real_cells(self, choice: str | None) -> list[tuple[Image.Image, str]]:
        """A few cells of the data set that a model was trained on, each with its class.

        Raises:
            LeukoscopeError: no copy of it is known, or the Hub cannot be reached.
        """
        return [(cell.image, cell.label) for cell in self._real.of(source_of(self.models, choice))]

    def attempt(self, predict: Callable[[], Updates]) -> Updates:
        """Updates that show a result, or why there is none."""
        try:
            return predict()
        except LeukoscopeError as error:
            return self.clear(panels.message(t("failed"), str(error)))

    def show(self, result: CellResult, opacity: float, point: str | None, *, keep: bool = False) -> Updates:
        """Updates that show a result, opened at the most probable class and, where it has it, the same point.

        Args:
            keep: leave the field or the batch that the cell comes from where it is.
        """
        points, labels = list(result.thresholds.operating_points), list(result.prediction.probabilities)
        point = point if point in points else ""
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
            self.label: gr.Radio(labels, value=result.prediction.most_probable, visible=bool(result.maps)),
            self.point: gr.Dropdown(offered, value=point, visible=bool(points)),
            self.common_scale: gr.Checkbox(False, visible=bool(result.maps) and result.scale.strong is not None),
            self.forms: "",
            **self._draw(result, result.prediction.most_probable, opacity),
            **others,
        }

    def _fitting(self, result: CellResult) -> str:
        """What fits a refused picture better: "" to cut its cells out, a model that reads such pictures, or neither."""
        if result.foreign is None:
            return result.model
        if result.prediction.outcome == NOT_A_CELL and not result.remark:
            return ""
        return self.reads["smears" if result.measured is None else "cells"] or result.model

    def _proposal(self, result: CellResult) -> gr.Button:
        """One tap to what fits a refused picture."""
        fitting = self._fitting(result)
        text = use_model(fitting) if fitting else t("cut_out")
        return gr.Button(text, visible=fitting != result.model)

    def _draw(self, result: CellResult, label: str, opacity: float, common_scale: bool = False) -> Updates:
        """Updates that show one class's map at one opacity."""
        return {
            self.pictures: panels.pictures(result, label, opacity, common_scale),
            self.explanation: panels.explanation(result, label),
        }

    def clear(self, html: str) -> Updates:
        """Updates that show HTML in place of a result, which is deleted."""
        hidden = {self.buttons: gr.Row(visible=False), self.controls: gr.Accordion(visible=False)}
        gone: Updates = {self.result: None, self.propose: gr.Button(visible=False), **hidden}
        kept = dict.fromkeys((self.turn, self.cover, self.label, self.common_scale, self.point), gr.skip())
        empty = dict.fromkeys((self.pictures, self.explanation, self.forms), "")
        return {self.summary: html, **gone, **kept, **empty, **self.field.clear(), **self.batch.clear()}

    def read(
        self, image: Image.Image, caption: str, remark: str, choice: str | None, opacity: float, point: str | None
    ) -> Updates:
        """Updates that show what a picture holds: a cell as it is, or the cells of a smear, cut out.

        Raises:
            LeukoscopeError: the picture or the model cannot be used.
        """
        cuts = self.models.predictor(choice).release.takes_cut_outs is not False and looks_like_smear(image)
        if not cuts:
            return self.show(predict_cell(self.models, image, caption, choice, remark=remark), opacity, point)
        try:
            field = predict_any_field(self.models, image, caption, choice)
        except UnusableField as error:
            reason = str(error).removeprefix(f"{caption}: ").partition(FLAG)[0]
            unfound = f"{remark} {t('no_cut_out', reason=reason)}".strip()
            return self.show(predict_cell(self.models, image, caption, choice, remark=unfound), opacity, point)
        return self._show_field(field, remark, opacity, point)

    def _show_field(self, field: FieldResult, remark: str, opacity: float, point: str | None) -> Updates:
        """Updates that show a field, and its cell where it has but one."""
        whole = [number for number, one in enumerate(field.reading.cells) if one.prediction]
        shown = self.clear(panels.placeholder(t("click_a_cell") if whole else t("field_none")))
        if len(whole) == 1:
            opened = self.field.cell(field, whole[0])
            opened = replace(opened, remark=f"{remark} {t('was_cut_out')}".strip())
            shown = self.show(opened, opacity, point)
        share, other = field.reading.in_distribution, self.reads["smears"]
        if other and share is not None and share < FIELD_NEEDS:
            shown[self.propose] = gr.Button(use_model(other), visible=True)
        return {**shown, **self.field.show(field)}

    def _wire_inputs(self) -> None:
        """Connect what a visitor gives to the result."""

        def on_upload(
            paths: list[str] | None, choice: str | None, opacity: float, point: str | None, pattern: str
        ) -> Iterator[Updates]:
            if not paths:
                yield {self.upload: None}
                return
            # Deleted only now: the page may ask for the file until the result is there.
            with deleted_afterwards(paths):
                if not is_batch(paths):
                    yield {
                        self.upload: None,
                        **self.attempt(lambda: self.read(*open_any(paths[0]), choice, opacity, point)),
                    }
                    return
                yield from on_batch(lambda: open_batch(paths), choice, pattern)

        def on_batch(read: Callable[[], Any], choice: str | None, pattern: str) -> Iterator[Updates]:
            waiting = self.clear(panels.placeholder(t("reading")))
            try:
                for step in self.batch.predict(read, choice, pattern):
                    yield {self.upload: None, **waiting, **step}
                    waiting = {self.summary: panels.placeholder(t("click_a_cell"))}
            except LeukoscopeError as error:
                yield {self.upload: None, **self.clear(panels.message(t("failed"), str(error)))}

        def on_sample(choice: str | None, pattern: str) -> Iterator[Updates]:
            yield from on_batch(lambda: self.batch.sample(choice), choice, pattern)

        def on_stop(paths: list[str] | None) -> Updates:
            # Of a batch that still waited for its turn, nobody else deletes the files.
            with deleted_afterwards(paths or []):
                return {self.upload: None, **self.clear(panels.placeholder(t("stopped")))}

        def on_pick(gallery: gr.Gallery) -> Callable[..., Updates]:
            # Not a `partial`: Gradio passes what was picked by the function's own annotations.
            def pick(
                choice: str | None, opacity: float, point: str | None, data: str, picked: gr.SelectData
            ) -> Updates:
                def predict() -> Updates:
                    if gallery is self.real:
                        cell = self._real.of(DATASETS[data])[picked.index]
                        return self.read(cell.image, t("real_cell", label=cell.label), "", choice, opacity, point)
                    return self.show(self._example(choice, picked.index + 1), opacity, point)

                # Unselected at once, so that the same example can be picked again.
                return {gallery: gr.Gallery(selected_index=None), **self.attempt(predict)}

            return pick

        def on_field(choice: str | None, opacity: float, point: str | None) -> Updates:
            return self.attempt(lambda: self._show_field(self.field.example(choice), "", opacity, point))

        def on_model(
            choice: str | None, opacity: float, point: str | None, result: CellResult | None
        ) -> Iterator[Updates]:
            if result is not None and result.model == choice:  # opened by the page's address, or from a visit
                yield offered(choice)
                return
            if choice not in self.models.loaded:
                # The result of the model before must not stand below the name of this one.
                yield self.clear(panels.placeholder(t("loading_model", model=choice)))
            yield self.attempt(lambda: on_loaded(choice, opacity, point, result))

        def offered(choice: str | None) -> Updates:
            """Synthetic pictures of the kind that a model reads."""
            smears = knows_smears(self.models.predictor(choice).labels)
            # Smears are drawn when a model first asks for them.
            fields = gr.Gallery(_smears(), visible=True) if smears else gr.Gallery(visible=False)
            return {
                self.cells: gr.Gallery(visible=not smears),
                self.smears: fields,
                self.ask_field: gr.Button(visible=not smears),
            }

        def on_loaded(choice: str | None, opacity: float, point: str | None, result: CellResult | None) -> Updates:
            found = offered(choice)
            if result is None:
                return {**found, **self.clear(panels.placeholder(t("model_ready", model=choice)))}
            if result.example:
                return {**found, **self.show(self._example(choice, result.example), opacity, point)}
            return {**found, **self.show(predict_again(self.models, result, choice), opacity, point)}

        def on_ask_real(choice: str | None) -> Updates:
            try:
                info = source_of(self.models, choice)
                pictures = [(png_answer(cell.image), cell.label) for cell in self._real.of(info)]
            except LeukoscopeError as error:
                failed = panels.message(t("failed"), str(error))
                return {self.real: gr.Gallery(visible=False), self.real_note: failed}
            return {
                self.real_data: info.name,
                self.real: gr.Gallery(pictures, visible=True),
                self.real_note: attribution(info),
            }

        # The page itself dims what was there. The second of two quick clicks counts; where a click says which, Gradio's
        # "always_last" would send the first one's data again.
        quiet: dict[str, Any] = {**PRIVATE, "show_progress": "hidden", "trigger_mode": "always_last"}
        many: dict[str, Any] = {**quiet, "trigger_mode": "multiple"}
        chosen = [self.model, self.opacity, self.point]
        with_files = [self.upload, *self.outputs]
        running: list[Any] = [
            self.upload.upload(on_upload, [self.upload, *chosen, self.batch.pattern], with_files, **many),
            self.ask_batch.click(on_sample, [self.model, self.batch.pattern], with_files, **many),
        ]
        given = [*running, self.ask_field.click(on_field, chosen, self.outputs, **quiet)]
        for gallery in (self.cells, self.smears, self.real):
            inputs = [*chosen, self.real_data]
            given.append(gallery.select(on_pick(gallery), inputs, [gallery, *self.outputs], **many))
        for event in given:
            self._afterwards(event.then(None, js=REVEAL, **PRIVATE))
        self._afterwards(self.batch.stop.click(on_stop, self.upload, with_files, cancels=running, **quiet))
        self._afterwards(
            self.model.change(
                on_model,
                [*chosen, self.result],
                [self.cells, self.smears, self.ask_field, *self.outputs],
                cancels=running,
                **quiet,
            )
        )
        self.ask_real.click(
            on_ask_real, self.model, [self.real_data, self.real, self.real_note],
            show_progress_on=[self.real_note], **PRIVATE,
        )  # fmt: skip

    def _afterwards(self, event: Any) -> None:
        """After an event that may have changed the result: keep it for the visit, and write the page's address."""
        inputs, outputs = [self.result, self.kept, self.model], [self.kept, self.visit]
        quiet: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
        event.then(None, js=READY, **PRIVATE)
        event.then(self._on_result, inputs, outputs, **quiet).then(None, js=ADDRESS, **PRIVATE)

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
        return kept, panels.visit([(one.image, one.caption) for one in kept], choice or "", number)

    def _wire_result(self) -> None:
        """Connect what stands beside and below a result."""

        def on_kept(
            kept: list[CellResult] | None, choice: str | None, opacity: float, point: str | None, picked: gr.EventData
        ) -> Updates:
            if not kept:
                return self.clear(panels.placeholder(t("result_deleted")))
            result = kept[picked.index]
            # It must not stand below the name of another model.
            model = gr.skip() if result.model == choice else result.model
            return {self.model: model, **self.show(result, opacity, point)}

        def on_draw(result: CellResult | None, label: str, opacity: float, common_scale: bool) -> Updates:
            if result is None:
                return {self.summary: panels.placeholder(t("result_deleted"))}
            return self._draw(result, label, opacity, common_scale)

        def on_point(result: CellResult | None, point: str | None) -> str:
            return panels.placeholder(t("result_deleted")) if result is None else panels.decision(result, point or "")

        def on_turn(result: CellResult | None) -> str:
            return _formed(lambda one: panels.forms(turn_text(found := turned(self.models, one)), [
                (f"{angle}°", form) for angle, form in zip(TURNS, found, strict=True)
            ]), result)  # fmt: skip

        def on_cover(result: CellResult | None, names: Sequence[str] = ()) -> str:
            def show(one: CellResult) -> str:
                found = covered(self.models, one, names)
                shown = [(t(f"without_{name}"), form) for name, form in found.items()]
                return panels.forms(cover_text(one, found), [(t("as_given"), one), *shown])

            return _formed(show, result)

        def on_tap(
            result: CellResult | None, choice: str | None, opacity: float, point: str | None, tap: gr.EventData
        ) -> Updates:
            """Cover the part that was tapped; of a refused picture that shows more than a cell, cut out what was."""
            if result is None:
                return self.clear(panels.placeholder(t("result_deleted")))
            across, down = (min(max(float(value), 0.0), 0.999) for value in tap.value)
            left, top = across * result.image.width, down * result.image.height
            if result.foreign is not None and result.measured is not None:
                return {self.forms: gr.skip()}
            if result.foreign is None:
                part = part_at(result.image, int(left), int(top))
                return {self.forms: on_cover(result, [part]) if part else panels.note(t("no_parts"))}
            half = CROP * min(result.image.size) / 2
            box = [max(0, int(edge)) for edge in (left - half, top - half, left + half, top + half)]
            crop = result.image.crop((box[0], box[1], box[2], box[3]))
            return self.attempt(lambda: self.read(crop, result.caption, t("was_cropped"), choice, opacity, point))

        def on_propose(
            result: CellResult | None, field: FieldResult | None, choice: str | None, opacity: float, point: str | None
        ) -> Updates:
            if field is not None:  # whose cells are unlike those of this model
                other, name = self.reads["smears"], field.reading.source
                show = partial(predict_cell, self.models, field.image, name, other)
                return {self.model: other, **self.attempt(lambda: self.show(show(), opacity, point))}
            if result is None:
                return self.clear(panels.placeholder(t("result_deleted")))
            if fitting := self._fitting(result):
                return {self.model: fitting}
            return self.attempt(lambda: self.read(result.image, result.caption, "", choice, opacity, point))

        quick: dict[str, Any] = {**PRIVATE, "show_progress": "hidden", "trigger_mode": "always_last"}
        each: dict[str, Any] = {**quick, "trigger_mode": "multiple"}
        for control in (self.label, self.opacity, self.common_scale):
            control.input(
                on_draw, [self.result, self.label, self.opacity, self.common_scale],
                [self.summary, self.pictures, self.explanation], **quick,
            )  # fmt: skip
        chosen = [self.model, self.opacity, self.point]
        self._afterwards(self.visit.select(on_kept, [self.kept, *chosen], [self.model, *self.outputs], **each))
        self.point.input(on_point, [self.result, self.point], self.summary, **quick)
        self.turn.click(on_turn, self.result, self.forms, show_progress_on=[self.forms], **PRIVATE)
        self.cover.click(on_cover, self.result, self.forms, show_progress_on=[self.forms], **PRIVATE)
        self._afterwards(self.pictures.select(on_tap, [self.result, *chosen], self.outputs, **each))
        self._afterwards(
            self.propose.click(
                on_propose, [self.result, self.field.result, *chosen], [self.model, *self.outputs], **quick
            )
        )
        for panel in (self.field, self.batch):
            for component in panel.cells:
                opened = component.select(self._open(panel), [panel.result, *chosen], self.outputs, **each)
                self._afterwards(opened.then(None, js=REVEAL, **PRIVATE))

    def _open(self, panel: FieldPanel | BatchPanel) -> Callable[..., Updates]:
        def on_cell(shown: Any, choice: str | None, opacity: float, point: str | None, picked: gr.EventData) -> Updates:
            if shown is None:
                return self.clear(panels.placeholder(t("result_deleted")))
            try:
                opened = self.show(panel.cell(shown, picked.index), opacity, point, keep=True)
                # What is proposed for a field stays with it.
                return {**opened, self.propose: gr.skip()} if panel is self.field else opened
            except LeukoscopeError as error:
                return {self.summary: panels.message(t("failed"), str(error))}

        return on_cell

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
            with gradio_errors():
                result = predict_cell(self.models, *read_upload(image), model)
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
            grad_cam = png_answer(overlaid) if overlaid else None
            return decision["outcome"], predicted.probabilities, grad_cam, text, decision

        with gr.Group(visible=False):
            # The names that `evaluation.thresholds` gives; clients and assistants see them as an enumeration.
            points = ["", "sensitivity_95", "specificity_95", "youden"]
            point = gr.Dropdown(points, value="", allow_custom_value=True, label="operating_point")
            inputs = [cell_upload(label="image"), self.model, point]
            outputs = [
                gr.Textbox(label="outcome"), gr.JSON(label="probabilities"),
                gr.Image(label="grad_cam", format="png"), gr.Textbox(label="text"), gr.JSON(label="decision"),
            ]  # fmt: skip
            gr.Button("predict").click(predict, inputs, outputs, api_name="predict")


# What a model reads: cells cut out on black, or pictures of a smear.
_KINDS = ("cells", "smears")


def _reads(models: ModelCache, name: str) -> str:
    """One of `_KINDS`; "" of a model that is not embedded or does not tell."""
    release = models.embedded(name)
    if release is None or release.takes_cut_outs is None:
        return ""
    return "cells" if release.takes_cut_outs else "smears"


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


def turn_text(results: Sequence[CellResult]) -> str:
    """Whether a picture is predicted alike whichever way it is turned."""
    label = results[0].prediction.most_probable
    shares = [one.prediction.probabilities[label] for one in results]
    same = all(one.prediction.most_probable == label for one in results)
    low, high = percent(min(shares)), percent(max(shares))
    return t("turn_same" if same else "turn_differs", label=label, low=low, high=high)


def cover_text(result: CellResult, found: Mapping[str, CellResult]) -> str:
    """What the most probable class loses without each part."""
    if not found:
        return t("no_parts")
    label = result.prediction.most_probable
    before = percent(result.prediction.probabilities[label])
    return " ".join(
        t("without", part=t(f"without_{name}"), label=label, before=before,
          after=percent(one.prediction.probabilities[label]))
        for name, one in found.items()
    )  # fmt: skip


class RealCells:
    """The cells downloaded so far, by data set."""

    def __init__(self) -> None:
        self._downloaded: dict[str, list[StreamedCell]] = {}
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def of(self, info: DatasetInfo) -> list[StreamedCell]:
        """Three cells of each class of a data set that has a copy on the Hub.

        Raises:
            LeukoscopeError: the Hub cannot be reached, or no longer has it.
        """
        assert info.hub_id is not None
        with self._locks[info.name]:
            if info.name not in self._downloaded:
                self._downloaded[info.name] = stream_cells(info.hub_id)
            return self._downloaded[info.name]


def source_of(models: ModelCache, choice: str | None) -> DatasetInfo:
    """The data set that a model was trained on.

    Raises:
        LeukoscopeError: the model cannot be used, or its data set has no copy on the Hub.
    """
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
