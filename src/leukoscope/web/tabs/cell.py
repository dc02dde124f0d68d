"""The tab "Cell": upload, paste or pick a cell, and read what a model predicts and what its Grad-CAM map shows.

What is shown is made by `result.py`. The same steps serve the API at /predict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import gradio as gr
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.loading import StreamedCell, stream_cells
from leukoscope.data.registry import DATASETS, DatasetInfo, trained_on
from leukoscope.data.synthetic import knows_smears
from leukoscope.inference.prediction import NOT_A_CELL
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.result import (
    EXAMPLES,
    OPACITY,
    SMEAR_EXAMPLES,
    CellResult,
    check_views,
    example,
    predict_again,
    predict_cell,
    save_result,
    smear_example,
)
from leukoscope.web.result_tab import PRIVATE, SESSION_SECONDS, ResultTab, Updates, refusal, reveal
from leukoscope.web.text import Localised, LocalisedChoices, localised, point_name, t
from leukoscope.web.upload import (
    CELL,
    cell_upload,
    deleted_afterwards,
    gradio_errors,
    open_upload,
    png_answer,
    read_upload,
    save_button,
)

# Of a visit's cells, those shown last are kept: together as many pixels as one upload may have.
KEPT_CELLS, KEPT_PIXELS = 8, CELL.pixels
# Model, tab and example go to the page's address, which opens them again.
ADDRESS = """() => {
  const to = new URL(location), shown = document.querySelector('#visit [data-model]')?.dataset ?? {}
  const tab = document.querySelector('[role=tab][aria-selected=true]')?.dataset.tabId
  for (const [name, value] of Object.entries({model: shown.model, tab, example: shown.example}))
    value ? to.searchParams.set(name, value) : to.searchParams.delete(name)
  history.replaceState(null, '', to)
  const other = document.getElementById('language')
  to.searchParams.set('lang', other.lang)
  other.href = to
}"""


class CellTab(ResultTab):
    """The tab, added to the Blocks being built; other tabs open their cells in it."""

    hint = "cell_hint"

    def __init__(self, models: ModelCache, model: gr.Dropdown) -> None:
        super().__init__(models, model)
        self.reads_smears = [name for name in models.names if _reads_smears(models, name)]
        smears = model.value in self.reads_smears
        quiet: dict[str, Any] = {"show_label": False, "height": "auto", "allow_preview": False, "buttons": []}
        with gr.Tab(localised("tab_cell"), id="cell"):
            with gr.Row(elem_id="cell-row"):
                with gr.Column(scale=2, min_width=240):
                    self.upload = cell_upload(
                        show_label=False, sources=["upload", "clipboard"], height=150, buttons=[], elem_id="upload"
                    )
                    gr.HTML(Localised(lambda: panels.note(t("pick_one"))), padding=False)
                    self.cells = gr.Gallery(
                        [(example(number)[0], label) for number, (label, *_) in enumerate(EXAMPLES)],
                        label=localised("synthetic_cells"), columns=3, visible=not smears, elem_id="examples", **quiet,
                    )  # fmt: skip
                    self.smears = gr.Gallery(
                        _smears() if smears else None,
                        label=localised("synthetic_smears"), columns=4, visible=smears,
                        elem_id="smear-examples", **quiet,
                    )  # fmt: skip
                    self.ask_real = gr.Button(localised("ask_real"), size="sm", elem_id="ask-real-cells")
                    self.real_data = gr.State("")  # name of the data set whose cells are shown
                    self.real = gr.Gallery(
                        label=localised("real_cells"),
                        columns=3,
                        visible=False,
                        format="png",
                        elem_id="real-cells",
                        **quiet,
                    )
                    self.real_note = gr.Markdown(elem_id="real-cells-note", elem_classes="lk-note")
                with gr.Column(scale=5, min_width=280, elem_id="cell-result"):
                    self._build_result()
            self._add_endpoint()
        self.outputs = [
            self.result, self.summary, self.morphology, self.pictures, self.controls, self.label, self.common_scale,
            self.point, self.explanation, self.tta, self.compared,
        ]  # fmt: skip
        self.refuse_others()
        self._wire_inputs()
        self._wire_result()
        self._examples: dict[tuple[str, int], CellResult] = {}

    def open_on_load(self, demo: gr.Blocks, tabs: gr.Tabs) -> None:
        """Show a synthetic cell's result to whoever opens the page: of the model and in the tab that its address names.

        Args:
            tabs: those of the page; their ids are what the address names.
        """
        known = {tab.id for tab in tabs.children if isinstance(tab, gr.Tab)}

        def on_load(choice: str | None, opacity: float, visit: gr.Request) -> Updates:
            asked = visit.query_params
            named, number, tab = asked.get("model") or choice, asked.get("example") or "1", asked.get("tab")
            opened = {
                self.model: gr.skip() if named == choice else named,
                tabs: gr.Tabs(selected=tab) if tab in known else gr.skip(),
            }
            if not named:
                return {**opened, **self.clear(panels.placeholder(t(self.hint)))}

            def first() -> Updates:
                result = self._example(named, int(number) if number.isdecimal() else 1)
                return self.show(replace(result, caption=t("an_example", caption=result.caption)), opacity, None)

            return {**opened, **self.attempt(first)}

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

    def _build_result(self) -> None:
        self.result = gr.State(None, time_to_live=SESSION_SECONDS)
        self.kept = gr.State([], time_to_live=SESSION_SECONDS)
        with gr.Row(elem_id="cell-answer"):
            with gr.Column(min_width=260):
                self.summary = gr.HTML(
                    panels.placeholder(t(self.hint)),
                    js_on_load=refusal("upload"),
                    elem_id="cell-summary",
                    padding=False,
                )
                self.morphology = gr.HTML(elem_id="morphology", padding=False)
            with gr.Column(min_width=260):
                self.pictures = gr.HTML(js_on_load=panels.VIEW, elem_id="pictures", padding=False)
        self.visit = gr.HTML(js_on_load=panels.CLICK, elem_id="visit", padding=False)
        with gr.Column(visible=False, elem_id="cell-controls") as self.controls:
            with gr.Row():
                self.label = gr.Radio([], label=localised("map_for"), min_width=120)
                self.opacity = gr.Slider(0, 1, OPACITY, step=0.05, label=localised("opacity"), min_width=120)
            self.common_scale = gr.Checkbox(False, label=localised("common_scale"))
            with gr.Row():
                self.point = gr.Dropdown(
                    [], label=localised("decide_at"), info=localised("decide_at_info"), min_width=220
                )
                self.other = gr.Dropdown(
                    LocalisedChoices(lambda: [(t("no_other_model"), ""), *self.models.choices()]), value="",
                    label=localised("compare_with"), info=localised("compare_info"), elem_id="compare-cell",
                    min_width=220,
                )  # fmt: skip
            with gr.Row():
                self.ask_tta = gr.Button(localised("predict_views"), size="sm", min_width=120)
                shown = [self.result, self.label, self.opacity, self.point, self.common_scale]
                save_button(localised("save_png"), save_result, shown, elem_id="save-result")
        self.compared = gr.HTML(elem_id="compared", padding=False)
        self.explanation = gr.HTML(elem_id="explanation", padding=False)
        self.tta = gr.HTML(elem_id="tta", padding=False)

    def show(self, result: CellResult, opacity: float, point: str | None) -> Updates:
        """Updates that show a result, opened at the most probable class and, where it has it, the same point."""
        points, labels = list(result.thresholds.operating_points), list(result.prediction.probabilities)
        point = point if point in points else ""
        offered = [
            (t("most_probable_class"), ""),
            *((t("threshold_of", point=point_name(name)), name) for name in points),
        ]
        return {
            self.result: result,
            self.summary: self._summary(result, point),
            self.morphology: panels.pairs(result.morphology),
            self.controls: gr.Column(visible=True),
            self.label: gr.Radio(labels, value=result.prediction.most_probable),
            self.point: gr.Dropdown(offered, value=point, visible=bool(points)),
            self.common_scale: gr.Checkbox(False, visible=result.scale.strong is not None),
            self.tta: "",
            self.compared: "",
            **self._draw(result, result.prediction.most_probable, opacity),
        }

    def _summary(self, result: CellResult, point: str) -> str:
        decided = panels.decision(result.prediction.probabilities, result.decision_text(point))
        if result.decision(point).outcome == NOT_A_CELL and self.reads_smears:
            decided += panels.note(t("smear_model", model=self.reads_smears[0]))
        return decided

    def _draw(self, result: CellResult, label: str, opacity: float, common_scale: bool = False) -> Updates:
        """Updates that show one class's map at one opacity."""
        shown, strength = result.pictures(label, opacity, common_scale), result.scale.strength(result.own_peak)
        pictures = panels.pictures(*shown, result.caption, label, result.peak(common_scale), strength)
        return {
            self.pictures: pictures,
            self.explanation: panels.explanation(result.map_text(label), result.facts(), result.warnings),
        }

    def clear(self, html: str) -> Updates:
        shown = (self.morphology, self.pictures, self.explanation, self.tta, self.compared)
        kept = {self.label: gr.skip(), self.common_scale: gr.skip(), self.point: gr.skip()}
        gone = {self.result: None, self.controls: gr.Column(visible=False), **dict.fromkeys(shown, "")}
        return {self.summary: html, **gone, **kept}

    def _predict(
        self, read: Callable[[], tuple[Image.Image, str]], choice: str | None, opacity: float, point: str | None
    ) -> Updates:
        return self.attempt(lambda: self.show(predict_cell(self.models, *read(), choice), opacity, point))

    def _wire_inputs(self) -> None:
        """Connect what a visitor gives to the result."""

        def on_upload(path: str | None, choice: str | None, opacity: float, point: str | None) -> Updates:
            if path is None:
                return {self.upload: None}
            # Deleted only now: the page asks for the file, to show it until the result is there.
            with deleted_afterwards([path]):
                return {self.upload: None, **self._predict(lambda: open_upload(path), choice, opacity, point)}

        def on_pick(gallery: gr.Gallery) -> Callable[..., Updates]:
            # Not a `partial`: Gradio passes what was picked by the function's own annotations.
            def pick(
                choice: str | None, opacity: float, point: str | None, data: str, picked: gr.SelectData
            ) -> Updates:
                if gallery is self.real:
                    shown = self._predict(lambda: read_real(picked.index, data), choice, opacity, point)
                else:
                    shown = self.attempt(lambda: self.show(self._example(choice, picked.index + 1), opacity, point))
                # Unselected at once, so that the same example can be picked again.
                return {gallery: gr.Gallery(selected_index=None), **shown}

            return pick

        def on_model(
            choice: str | None,
            opacity: float,
            point: str | None,
            result: CellResult | None,
        ) -> Iterator[Updates]:
            if choice not in self.models.loaded:
                # The result of the model before must not stand below the name of this one.
                yield self.clear(panels.placeholder(t("loading_model", model=choice)))
            yield on_loaded(choice, opacity, point, result)

        def on_loaded(choice: str | None, opacity: float, point: str | None, result: CellResult | None) -> Updates:
            try:
                smears = knows_smears(self.models.predictor(choice).labels)
            except LeukoscopeError as error:
                return self.clear(panels.message(t("model_unusable"), str(error)))
            # Smears are drawn when a model first asks for them.
            fields = gr.Gallery(_smears(), visible=True) if smears else gr.Gallery(visible=False)
            offered = {self.cells: gr.Gallery(visible=not smears), self.smears: fields}
            if result is None:
                return {**offered, **self.clear(panels.placeholder(t("model_ready", model=choice, hint=t(self.hint))))}
            if result.model == choice:  # opened by the page's address
                return {**offered, **self.show(result, opacity, point)}
            if result.example:
                number = result.example
                return {**offered, **self.attempt(lambda: self.show(self._example(choice, number), opacity, point))}
            return {
                **offered,
                **self.attempt(lambda: self.show(predict_again(self.models, result, choice), opacity, point)),
            }

        real_cells = RealCells()

        def on_ask_real(choice: str | None) -> Updates:
            try:
                info = source_of(self.models, choice)
                pictures = [(png_answer(cell.image), cell.label) for cell in real_cells.of(info)]
            except LeukoscopeError as error:
                failed = panels.message(t("failed"), str(error))
                return {self.real: gr.Gallery(visible=False), self.real_note: failed}
            return {
                self.real_data: info.name,
                self.real: gr.Gallery(pictures, visible=True),
                self.real_note: attribution(info),
            }

        def read_real(number: int, data: str) -> tuple[Image.Image, str]:
            cell = real_cells.of(DATASETS[data])[number]
            return cell.image, t("real_cell", label=cell.label)

        busy: dict[str, Any] = {**PRIVATE, "show_progress_on": [self.summary]}
        chosen = [self.model, self.opacity, self.point]
        given = [
            self.upload.upload(
                on_upload, [self.upload, *chosen], [self.upload, *self.outputs], trigger_mode="multiple", **busy
            )
        ]
        for gallery in (self.cells, self.smears, self.real):
            inputs = [*chosen, self.real_data]
            given.append(gallery.select(on_pick(gallery), inputs, [gallery, *self.outputs], **busy))
        for event in given:
            self._afterwards(event.then(None, js=reveal("cell-summary"), **PRIVATE))
        self._afterwards(
            self.model.change(on_model, [*chosen, self.result], [self.cells, self.smears, *self.outputs], **busy)
        )
        self.ask_real.click(
            on_ask_real, self.model, [self.real_data, self.real, self.real_note],
            show_progress_on=[self.real_note], **PRIVATE,
        )  # fmt: skip

    def _afterwards(self, event: Any) -> None:
        """After an event that may have changed the result: keep it for the visit, and ask the other model."""
        inputs, outputs = [self.result, self.kept, self.model, self.other], [self.kept, self.visit, self.compared]
        # Of the result: what the other model predicts may take a while.
        quiet: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
        event.then(self._on_result, inputs, outputs, **quiet).then(None, js=ADDRESS, **PRIVATE)

    def _on_result(
        self, result: CellResult | None, kept: list[CellResult] | None, choice: str | None, other: str | None
    ) -> tuple[list[CellResult], str, str]:
        kept = list(kept or [])
        again = [i for i, one in enumerate(kept) if result and (one.model, one.image) == (result.model, result.image)]
        if result is not None and again:
            kept[again[0]] = result
        elif result is not None:
            kept = [result, *kept][:KEPT_CELLS]
            while len(kept) > 1 and sum(one.image.width * one.image.height for one in kept) > KEPT_PIXELS:
                kept.pop()
        number = result.example if result else 0
        strip = panels.visit([(one.image, one.caption) for one in kept], choice or "", number)
        return kept, strip, self._compare(result, other)

    def _compare(self, result: CellResult | None, other: str | None) -> str:
        """The result beside what another model predicts of the same picture, as HTML; "" without one."""
        if result is None or other in (None, "", result.model):
            return ""
        try:
            both = (result, predict_again(self.models, result, other))
        except LeukoscopeError as error:
            return panels.message(t("model_unusable"), str(error))
        shown = []
        for one in both:
            predicted, label = one.prediction, one.prediction.most_probable
            decided = panels.decision(predicted.probabilities, one.decision_text())
            drawn, strength = one.pictures(label, OPACITY)[1], one.scale.strength(one.own_peak)
            shown.append((one.model, decided, drawn, label, one.peak(), strength))
        return panels.side_by_side(shown)

    def _wire_result(self) -> None:
        """Connect the controls below a result."""

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
            if result is None:
                return panels.placeholder(t("result_deleted"))
            return self._summary(result, point or "")

        def on_tta(result: CellResult | None) -> str:
            if result is None:
                return panels.placeholder(t("result_deleted"))
            try:
                return f'<div role="status">{panels.note(check_views(self.models, result))}</div>'
            except LeukoscopeError as error:
                return panels.message(t("failed"), str(error))

        quick: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
        for control in (self.label, self.opacity, self.common_scale):
            control.input(
                on_draw, [self.result, self.label, self.opacity, self.common_scale],
                [self.summary, self.pictures, self.explanation],
                trigger_mode="always_last", **quick,
            )  # fmt: skip
        inputs = [self.kept, self.model, self.opacity, self.point]
        self._afterwards(self.visit.select(on_kept, inputs, [self.model, *self.outputs], **quick))
        self.other.input(self._compare, [self.result, self.other], self.compared, **PRIVATE)
        self.point.input(on_point, [self.result, self.point], self.summary, **quick)
        self.ask_tta.click(on_tta, self.result, self.tta, show_progress_on=[self.tta], **PRIVATE)

    def open_from(
        self, pictures: Sequence[gr.HTML], result: gr.State, tabs: gr.Tabs, cell_of: Callable[[Any, int], CellResult]
    ) -> None:
        """Open a cell of another tab's result here when it is clicked.

        Args:
            pictures: where the cells are shown, with `panels.CLICK`.
            result: that tab's result.
            tabs: those of the page.
            cell_of: predicts the cell of a number of such a result.
        """

        def on_cell(shown: Any, opacity: float, point: str | None, picked: gr.EventData) -> Updates:
            if shown is None:
                return self.clear(panels.placeholder(t("result_deleted")))
            return self.attempt(lambda: self.show(cell_of(shown, picked.index), opacity, point))

        inputs = [result, self.opacity, self.point]
        for component in pictures:
            # The tab is shown first, so that the page does not seem dead while the model predicts.
            component.select(lambda: gr.Tabs(selected="cell"), None, tabs, show_progress="hidden", **PRIVATE)
            opened = component.select(on_cell, inputs, self.outputs, show_progress_on=[self.summary], **PRIVATE)
            self._afterwards(opened.then(None, js=reveal("cell-summary"), **PRIVATE))

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
            _, covered = result.pictures(predicted.most_probable, OPACITY)
            decision = {**result.decision(operating_point).to_dict(), "ood_score": predicted.checks.ood_score}
            grad_cam = png_answer(covered) if covered else None
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


def _reads_smears(models: ModelCache, name: str) -> bool:
    release = models.embedded(name)
    return release is not None and knows_smears(release.labels)


def _smears() -> list[tuple[Image.Image, str]]:
    return [(smear_example(number)[0], label) for number, (label, _) in enumerate(SMEAR_EXAMPLES)]


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
