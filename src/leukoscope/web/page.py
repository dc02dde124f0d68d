"""The page: a box for whatever a visitor has, and one stage for what the models answer.

Every click is one event of one handler, which changes the visitor's `Visit` and draws what changed. Of two questions
that are answered at once the one asked last counts: its number stands in the visit, and an older question ends as soon
as it sees a newer one. No chain of events, and nothing in the browser, keeps them in order.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.data.images import open_bytes
from leukoscope.data.smear import UnusableSmear, looks_like_smear
from leukoscope.web import batch, smear, stage, upload
from leukoscope.web.answer import Answer, Picture, Row, answering, ask, covered, example, names_for
from leukoscope.web.batch import BatchResult, save_cells
from leukoscope.web.batch_files import Batch, is_batch, open_batch, sample_batch
from leukoscope.web.export import save_row
from leukoscope.web.model_cache import NO_MODEL, ModelCache
from leukoscope.web.real_cells import real_cells, source_of
from leukoscope.web.smear import Smear, open_cell, read_smear, save_smear
from leukoscope.web.theme import script
from leukoscope.web.visit import DELETED, Visit

SESSION_SECONDS = 1800
MOST_ADDED = 4  # models that a visitor names
FAILED = "This did not work"
# Of every event that is no part of the public API; each click is handled, the newest one counts.
EVENT: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple", "show_progress": "minimal"}
Updates = dict[Any, Any]
"""Component → its new value."""


class Page:
    """The page's components and events, added to the Blocks being built."""

    def __init__(self, models: ModelCache) -> None:
        self.models = models
        self._examples: dict[tuple[str, str], Row] = {}  # each of the demo's models answers an example once
        smears = bool(models.names) and not self._readers(models.names)
        click = script("act.js")
        self.visit = gr.State(Visit(), time_to_live=SESSION_SECONDS)
        with gr.Row(elem_id="page"):
            with gr.Column(scale=1, min_width=220, elem_id="given"):
                self.upload = upload.files_upload(show_label=False, height=104, elem_id="upload")
                about = "A cell, a smear, a folder or a zip: drop it anywhere, or paste it."
                gr.HTML(stage.note(about), js_on_load=f"{script('folder.js')}\n{script('box.js')}", elem_id="box")
                self.choices = gr.HTML(stage.given_choices(smears=smears), js_on_load=click, elem_id="choices")
                self.real = gr.HTML(js_on_load=click, elem_id="real")
                self.kept = gr.HTML(js_on_load=click, elem_id="kept")
                with gr.Accordion("More models", open=False, elem_id="more-models"):
                    self.name = gr.Textbox(
                        label="A model of the Hub", placeholder="owner/name or owner/name@revision", max_lines=1,
                        info="Enter adds its answer", elem_id="hub-id",
                    )  # fmt: skip
            with gr.Column(scale=4, min_width=300, elem_id="stage"), gr.Row(elem_id="stage-row"):
                self.picture = gr.HTML(js_on_load=f"{click}\n{script('view.js')}", elem_id="picture")
                first = stage.waiting("Loading the models …" if models.names else NO_MODEL)
                self.answer = gr.HTML(first, js_on_load=f"{click}\n{script('shown.js')}", elem_id="answer")
        self.parcel = gr.HTML(js_on_load=script("save.js"), elem_id="parcel")
        self.lost = gr.Textbox(visible=False)
        self.outputs = [
            self.visit,
            self.upload,
            self.picture,
            self.answer,
            self.kept,
            self.real,
            self.parcel,
            self.name,
        ]
        on_stage = {**EVENT, "show_progress_on": [self.picture, self.answer]}
        clicked = [one.select for one in (self.choices, self.real, self.kept, self.picture, self.answer)]
        gr.on(clicked, self._on_act, self.visit, self.outputs, **on_stage)
        self.upload.upload(self._on_upload, [self.upload, self.visit], self.outputs, **on_stage)
        self.name.submit(self._on_name, [self.name, self.visit], self.outputs, **on_stage)

    def open_on_load(self, demo: gr.Blocks, tabs: gr.Tabs) -> None:
        """Answer a synthetic cell for whoever opens the page: its address names model, example and tab.

        A page that is loaded anew because the server was away keeps what it showed.
        """
        known = {tab.id for tab in tabs.children if isinstance(tab, gr.Tab)}

        def on_load(lost: str, visit: Visit, request: gr.Request) -> Iterator[Updates]:
            asked = request.query_params
            number, named = asked.get("example") or "1", asked.get("model") or ""
            if (tab := asked.get("tab")) in known:
                yield {tabs: gr.Tabs(selected=tab)}
            if lost:
                return
            if named and named not in self.models.names and self.models.is_name(named):
                visit.added.append(named)
            work = self._example(visit, int(number) if number.isdecimal() else 1, named)
            yield from self._asking(visit, work)

        demo.load(
            on_load, [self.lost, self.visit], [tabs, *self.outputs], js=_LOST, **{**EVENT, "show_progress": "hidden"}
        )
        tabs.change(None, js="() => window.lkAddress?.()", api_visibility="private")

    # What is asked, and in which order it counts.

    def _asking(self, visit: Visit, work: Iterator[dict[str, Any]]) -> Iterator[Updates]:
        """Draw what a question changes of a visit, step by step, as long as no newer question is asked."""
        visit.asked += 1
        mine = visit.asked
        drawn: tuple[Any, ...] | None = None
        try:
            for changes in work:
                if visit.asked != mine:
                    return
                extra = {one: changes.pop(one) for one in list(changes) if not isinstance(one, str)}
                if "shown" in changes:
                    visit.show(**changes)
                else:
                    visit.__dict__.update(changes)
                answer = visit.shown
                if isinstance(answer, Answer) and not answer.waiting and "shown" in changes and not visit.behind:
                    visit.keep(answer)
                stands = self._picture_key(visit)
                yield {self.visit: visit, **self._draw(visit, picture=stands != drawn), **extra}
                drawn = stands
        except LeukoscopeError as error:
            if visit.asked == mine:
                said = stage.message(FAILED, str(error))
                if visit.shown:  # it stays below
                    said += self._draw(visit, picture=False)[self.answer]
                yield {self.visit: visit, self.answer: said, self.upload: None}

    @staticmethod
    def _picture_key(visit: Visit) -> tuple[Any, ...]:
        """What the left of the stage depends on."""
        shown = visit.shown
        if isinstance(shown, Answer):
            shown = shown.rows[visit.opened] if visit.opened is not None and visit.opened < len(shown.rows) else None  # type: ignore[assignment]
        return id(shown), visit.view, visit.label, id(visit.behind)

    def _draw(self, visit: Visit, *, picture: bool) -> Updates:
        """The stage as it stands."""
        shown, updates = visit.shown, {}
        if shown is None:
            return {self.picture: "", self.answer: stage.waiting("Drop a cell, or pick one: the answers appear here.")}
        if isinstance(shown, Smear):
            left, right = smear.smear_picture, smear.smear_answer(shown, self._others(visit))
            drawn: Callable[[], str] = partial(left, shown)
        elif isinstance(shown, BatchResult):
            right = batch.batch_answer(shown, self._others(visit))
            drawn = partial(batch.batch_picture, shown)
        else:
            back = "" if visit.behind is None else "smear" if isinstance(visit.behind, Smear) else "cells"
            opened = len(shown.rows) if visit.opened is None else visit.opened
            right = stage.cell_answer(shown, opened)
            if opened < len(shown.rows):
                row, view = shown.rows[opened], visit.view
                drawn = partial(stage.cell_picture, row, view=view, label=visit.label, forms=visit.forms, back=back)
            else:
                drawn = partial(stage.cell_picture, Row(shown.picture, ""), back=back)
        updates = {self.answer: right, self.kept: stage.kept_choices([one.picture for one in visit.kept])}
        return {self.picture: drawn(), **updates} if picture else updates

    def _others(self, visit: Visit) -> tuple[str, ...]:
        """Models that can read what is shown as well."""
        return tuple(name for name in self._names(visit) if name != visit.model)

    def _names(self, visit: Visit) -> list[str]:
        return [*self.models.names, *visit.added]

    def _readers(self, names: Sequence[str]) -> list[str]:
        """Of these models those that read cells cut out on black."""
        return [name for name in names if self.models.takes_cut_outs(name) is not False]

    # What is given.

    def _on_upload(self, paths: list[str] | None, visit: Visit) -> Iterator[Updates]:
        if not paths:
            return
        # The box is free again at once; the files are deleted when they are read.
        yield {self.upload: None}
        with upload.deleted_afterwards(paths):
            if is_batch(paths):
                yield from self._asking(visit, self._batch(visit, partial(open_batch, paths)))
            else:
                yield from self._asking(visit, self._read(visit, partial(_opened, paths[0])))

    def _on_name(self, name: str, visit: Visit) -> Iterator[Updates]:
        yield from self._asking(visit, self._added(visit, name.strip()))

    def _added(self, visit: Visit, name: str) -> Iterator[dict[Any, Any]]:
        """One more model's answer for what is shown."""
        self.models.predictor(name)
        if name not in self._names(visit):
            visit.added = [*visit.added, name][-MOST_ADDED:]
        if not isinstance(visit.shown, Answer):
            if visit.shown is not None:
                yield from self._read_by(visit, name)
            yield {self.name: ""}
            return
        rows = [row for row in visit.shown.rows if row.model != name]
        rows.append(ask(visit.shown.picture, self.models, name))
        yield {"shown": replace(visit.shown, rows=tuple(rows)), "opened": len(rows) - 1, self.name: ""}

    def _example(self, visit: Visit, number: int, named: str = "") -> Iterator[dict[str, Any]]:
        """A synthetic picture of the kind that the models read; each of the demo's models predicts it once."""
        names = self._names(visit)
        cut_outs = self._readers(names)
        smears = not cut_outs or self.models.takes_cut_outs(named) is False
        picture, asked = example(number, smear=smears), names if smears else cut_outs
        yield from self._answers(picture, asked, named)

    def _answers(self, picture: Picture, names: Sequence[str], named: str = "") -> Iterator[dict[str, Any]]:
        """Each model's row as soon as it is there; the best one is opened, or the one that is named."""
        if not names:
            raise LeukoscopeError(NO_MODEL)
        kept = [self._examples.get((name, picture.caption)) if picture.example else None for name in names]
        if all(kept):
            steps: Iterator[Answer] = iter([Answer(picture, tuple(row for row in kept if row))])
        else:
            steps = answering(picture, self.models, names)
        for step in steps:
            newest = step.rows[-1]
            if picture.example and newest.prediction and newest.model in self.models.names:
                self._examples[newest.model, picture.caption] = newest
            opened = next((number for number, row in enumerate(step.rows) if row.model == named), step.best)
            yield {"shown": step, "opened": opened, "behind": None}

    def _read(self, visit: Visit, read: Callable[[], Picture]) -> Iterator[dict[str, Any]]:
        """What a picture holds: a cell as it is, or the cells of a smear, cut out."""
        picture, names = read(), self._names(visit)
        if self._readers(names) and looks_like_smear(picture.image):
            try:
                yield from self._smear(visit, picture)
                return
            except UnusableSmear as error:
                reason = str(error).removeprefix(f"{picture.caption}: ").partition(": check the unit")[0]
                picture = replace(picture, remark=f"{picture.remark} No cell could be cut out: {reason}.".strip())
        yield from self._answers(picture, names_for(self.models, picture, names))

    def _smear(self, visit: Visit, picture: Picture) -> Iterator[dict[str, Any]]:
        """A smear's cells by the best model; by one that reads whole pictures where its cells are foreign to that."""
        names = self._names(visit)
        if not (readers := self._readers(names)):
            raise LeukoscopeError("No model here reads cells that are cut out of a smear.")
        found = read_smear(self.models, picture, readers[0])
        if found.is_foreign:
            whole = [name for name in names if name not in readers]
            answer = Answer(picture, tuple(ask(picture, self.models, name) for name in whole))
            if any(row.gives_a_class for row in answer.rows):
                yield {"shown": answer, "opened": answer.best, "behind": found}
                return
        yield {"shown": found, "behind": None}
        if len(found.whole) == 1:
            yield {"shown": open_cell(self.models, found, found.whole[0]), "opened": 0, "behind": found}

    def _batch(self, visit: Visit, read: Callable[[], Batch], name: str = "") -> Iterator[dict[Any, Any]]:
        """How far a batch is, then its result, by the best model for its pictures unless one is named."""
        given, names = read(), self._names(visit)
        if not names:
            raise LeukoscopeError(NO_MODEL)
        name = name or next(iter(self._readers(names)), names[0])
        for step in batch.reading_batch(self.models, given, name):
            if isinstance(step, BatchResult):
                yield {"shown": step, "behind": None}
            else:
                soon = f'<div class="lk-wide">{stage.waiting("The cells appear here.")}</div>'
                yield {"shown": None, "behind": None, self.picture: soon, self.answer: step}

    # What is clicked.

    def _on_act(self, visit: Visit, event: gr.EventData) -> Iterator[Updates]:
        """Answer a click: "what" or "what:value", as `data-act` says in what is shown."""
        what, _, value = str(getattr(event, "value", "")).partition(":")
        acts = {
            "example": lambda: self._example(visit, int(value)),
            "smear": lambda: self._smear(visit, smear.example_smear()),
            "people": lambda: self._batch(visit, sample_batch),
            "real": lambda: self._real_cell(visit, value),
            "kept": lambda: _once({"shown": (one := visit.kept[int(value)]), "opened": one.best, "behind": None}),
            "row": lambda: self._row(visit, int(value)),
            "view": lambda: self._view(visit, value),
            "label": lambda: _once({"label": value if value in visit.row.maps else ""}),
            "tap": lambda: self._tap(visit, *map(float, value.split(","))),
            "cell": lambda: self._cell(visit, int(value)),
            "back": lambda: _once({"shown": visit.behind, "behind": None}),
            "read": lambda: self._read_by(visit, value),
            "pitch": lambda: self._pitch(visit, float(value)),
            "save": lambda: self._save(visit, value),
            "stop": lambda: _once({"shown": None, self.answer: stage.waiting("Stopped. Nothing of it was kept.")}),
        }
        with suppress(ValueError, IndexError, TypeError):  # a value that no button of ours has
            if what in acts:
                yield from self._asking(visit, _late(acts[what]))

    def _row(self, visit: Visit, number: int) -> Iterator[dict[str, Any]]:
        visit.showing(Answer).rows[number]
        yield {"opened": number, "view": "map", "label": "", "forms": {}}

    def _view(self, visit: Visit, view: str) -> Iterator[dict[str, Any]]:
        row = visit.row
        forms = covered(row, self.models) if view == "covered" else {}
        yield {"view": view if view in stage.VIEWS else "map", "forms": forms}

    def _cell(self, visit: Visit, number: int) -> Iterator[dict[str, Any]]:
        """Open a cell of a smear or a batch."""
        shown = visit.shown
        if isinstance(shown, Smear):
            yield {"shown": open_cell(self.models, shown, number), "opened": 0, "behind": shown}
        elif isinstance(shown, BatchResult):
            row = shown.rows[number]
            picture = Picture(open_bytes(row.kept(), row.name), row.name)
            # The model that read the batch says first what it said there.
            names = dict.fromkeys([shown.model, *names_for(self.models, picture, self._names(visit))])
            for step in answering(picture, self.models, list(names)):
                yield {"shown": step, "opened": 0 if step.rows else None, "behind": shown}
        else:
            raise LeukoscopeError(DELETED)

    def _read_by(self, visit: Visit, name: str) -> Iterator[dict[Any, Any]]:
        """Read the smear or the batch that is shown by another model."""
        shown = visit.shown
        if name not in self._names(visit):
            raise LeukoscopeError(f"{name!r}: is no model of this page; add it under “More models”")
        if isinstance(shown, BatchResult):
            yield from self._batch(visit, lambda: shown.given, name)
        elif isinstance(shown, Smear):
            if self._readers([name]):
                yield {"shown": read_smear(self.models, shown.picture, name), "behind": None}
            else:
                read = Answer(shown.picture, (ask(shown.picture, self.models, name),))
                yield {"shown": read, "opened": 0, "behind": shown}
        else:
            raise LeukoscopeError(DELETED)

    def _pitch(self, visit: Visit, um_per_pixel: float) -> Iterator[dict[str, Any]]:
        shown = visit.showing(Smear)
        picture = replace(shown.picture, um_per_pixel=um_per_pixel or None)
        yield {"shown": read_smear(self.models, picture, shown.reading.model), "behind": None}

    def _tap(self, visit: Visit, across: float, down: float) -> Iterator[dict[str, Any]]:
        """Cover the part that was tapped."""
        row, image = visit.row, visit.row.picture.image
        if row.prediction is None or row.refused:
            return
        x, y = (int(min(max(one, 0.0), 0.999) * side) for one, side in zip((across, down), image.size, strict=True))
        part = next((name for name, mask in row.picture.parts.items() if mask[y, x]), None)
        yield {"view": "covered", "forms": covered(row, self.models, [part] if part else ())}

    def _save(self, visit: Visit, kind: str) -> Iterator[dict[Any, Any]]:
        shown = visit.shown
        if isinstance(shown, Smear) and kind in ("png", "csv"):
            file = save_smear(kind, shown)
        elif isinstance(shown, BatchResult):
            file = save_cells(shown)
        else:
            file = save_row(visit.row, visit.label)
        content = base64.b64encode(file.content).decode()
        parcel = json.dumps({"name": file.name, "kind": file.kind, "content": content, "number": visit.asked})
        yield {self.parcel: f"<template>{escape(parcel)}</template>"}

    def _real_cell(self, visit: Visit, value: str) -> Iterator[dict[Any, Any]]:
        """Real cells to pick from, or the one that is picked."""
        if value and visit.real is not None:
            cell = real_cells(visit.real)[int(value)]
            yield from self._read(visit, lambda: Picture(cell.image, f"Real {cell.label}"))
            return
        about = visit.real = source_of(self.models, visit.model or next(iter(self.models.names), ""))
        cells = [(cell.image, cell.label) for cell in real_cells(about)]
        said = f"Real cells of {about.title}, {about.licence}. The models were trained on such cells, perhaps on these."
        yield {self.real: stage.real_choices(cells, f"{said} {about.citation}")}


_LOST = "() => [sessionStorage.lkLost ? '1' : '', null]"


def _late(act: Callable[[], Iterator[dict[Any, Any]]]) -> Iterator[dict[Any, Any]]:
    """What an act does, so that its errors are those of its first step."""
    yield from act()


def _once(changes: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
    yield changes


def _opened(path: str) -> Picture:
    return Picture(*upload.open_upload(path, upload.FIELD))
