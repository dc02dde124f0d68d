"""The page: a box for whatever a visitor has, and one stage for what the models answer.

Every click is one event of one handler, which changes the visitor's `Visit` and draws what changed. Of two questions
that are answered at once the one asked last counts: its number stands in the visit, and an older question ends as soon
as it sees a newer one. No chain of events, and nothing in the browser, keeps them in order.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.data.images import open_bytes
from leukoscope.data.smear import UnusableSmear, looks_like_smear
from leukoscope.web import batch, smear, stage, upload
from leukoscope.web.answer import Answer, Picture, Row, answering, ask, covered, example, real_cells, source_of
from leukoscope.web.batch import BatchResult, columns
from leukoscope.web.batch_files import Batch, is_zip, open_batch, sample_batch
from leukoscope.web.export import csv_file, save_row, save_smear
from leukoscope.web.model_cache import NO_MODEL, ModelCache
from leukoscope.web.smear import Smear, open_cell, read_smear

SESSION_SECONDS = 1800
MOST_ADDED = 4  # models that a visitor names
# Of a visit's cells, those shown last are kept: together as many pixels as one upload may have.
KEPT_CELLS, KEPT_PIXELS = 8, upload.CELL.pixels
DELETED = "A result is deleted after half an hour, or when the server starts anew. Give the picture again."
FAILED = "This did not work"
BROKEN = "The server met an error of its own and has logged it. Try again, or give another picture."
# Of every event that is no part of the public API; each click is handled, the newest one counts.
EVENT: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple", "show_progress": "minimal"}
Step = dict[Any, Any]
"""What changes on the page: name → value of the visitor's `Visit`, component → value."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def _steps(found: Step | Iterable[Step]) -> Iterable[Step]:
    return [found] if isinstance(found, dict) else found


def script(name: str) -> str:
    """A file of JavaScript beside this one, without the comment at its beginning."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//"))


@dataclass
class Visit:
    """What one visitor is shown; lives in the session, in memory only."""

    asked: int = 0  # number of the newest question
    shown: Answer | Smear | BatchResult | None = None  # on the stage
    behind: Smear | BatchResult | None = None  # what a cell was opened from
    opened: int | None = None  # of an answer, the open row, then what its picture shows
    view: str = "map"
    label: str = ""
    forms: dict[str, Row] = field(default_factory=dict)
    kept: list[Answer] = field(default_factory=list)  # the newest first
    added: list[str] = field(default_factory=list)  # Hub ids of models that the visitor named
    real: str = ""  # Hub id of the data set whose real cells are shown

    def showing(self, kind: type[_T]) -> _T:
        """What is shown; an error where it is not of this kind any more."""
        if not isinstance(self.shown, kind):
            raise LeukoscopeError(DELETED)
        return self.shown

    @property
    def row(self) -> Row:
        """The open row; an error where nothing is open any more."""
        rows = self.showing(Answer).rows
        if self.opened is None or self.opened >= len(rows):
            raise LeukoscopeError(DELETED)
        return rows[self.opened]

    @property
    def model(self) -> str:
        """Name of the model whose answer is open; "" of none."""
        if isinstance(self.shown, Smear):
            return self.shown.reading.model
        if isinstance(self.shown, BatchResult):
            return self.shown.model
        with suppress(LeukoscopeError):
            return self.row.model
        return ""

    def change(self, **changes: Any) -> None:
        """Change what is shown; what is opened has its map in front, and an answer that is complete is kept."""
        if "shown" in changes:
            changes = {"opened": None, "behind": None, **changes}
        if "opened" in changes:
            changes = {"view": "map", "label": "", "forms": {}, **changes}
        vars(self).update(changes)
        answer = changes.get("shown")
        if isinstance(answer, Answer) and answer.rows and answer.complete and self.behind is None:
            self.keep(answer)

    def keep(self, answer: Answer) -> None:
        """Keep an answer, once for each picture."""
        others = [one for one in self.kept if one.picture.image is not answer.picture.image]
        self.kept = [answer, *others][:KEPT_CELLS]
        while len(self.kept) > 1 and sum(math.prod(one.picture.image.size) for one in self.kept) > KEPT_PIXELS:
            self.kept.pop()


class Page:
    """The page's components and events, added to the Blocks being built."""

    def __init__(self, models: ModelCache) -> None:
        self.models = models
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
        shown = [self.picture, self.answer, self.kept, self.real]
        self.outputs = [self.visit, self.upload, *shown, self.parcel, self.name]
        on_stage = {**EVENT, "show_progress_on": [self.picture, self.answer]}
        clicked = [one.select for one in (self.choices, *shown)]
        gr.on(clicked, self._on_act, self.visit, self.outputs, **on_stage)
        self.upload.upload(self._on_upload, [self.upload, self.visit], self.outputs, **on_stage)
        self.name.submit(self._on_name, [self.name, self.visit], self.outputs, **on_stage)

    def open_on_load(self, demo: gr.Blocks, tabs: gr.Tabs) -> None:
        """Answer a synthetic cell for whoever opens the page: its address names model, example and tab.

        A page that is loaded anew because the server was away keeps what it showed.
        """
        known = {tab.id for tab in tabs.children if isinstance(tab, gr.Tab)}

        def on_load(lost: str, visit: Visit, request: gr.Request) -> Iterator[Step]:
            asked = request.query_params
            number, named = asked.get("example") or "1", asked.get("model") or ""
            if (tab := asked.get("tab")) in known:
                yield {tabs: gr.Tabs(selected=tab)}
            if lost:
                return
            if named and named not in self.models.names and self.models.is_name(named):
                visit.added.append(named)
            first = int(number) if number.isdecimal() else 1
            yield from self._asking(visit, lambda: self._example(visit, first, named))

        was_lost, quiet = "() => [sessionStorage.lkLost ? '1' : '', null]", {**EVENT, "show_progress": "hidden"}
        demo.load(on_load, [self.lost, self.visit], [tabs, *self.outputs], js=was_lost, **quiet)
        tabs.change(None, js="() => window.lkAddress?.()", api_visibility="private")

    # What is asked, and in which order it counts.

    def _asking(self, visit: Visit, work: Callable[[], Step | Iterable[Step]], *, anew: str = "") -> Iterator[Step]:
        """Draw what a question changes, in one step or several, as long as no newer question is asked.

        `anew` names a picture or a batch that is given: nothing of what was shown stands beside it, nor after an error.
        """
        visit.asked += 1
        mine, drawn = visit.asked, None
        if anew:
            visit.change(shown=None)
            yield {self.visit: visit, self.picture: "", self.answer: stage.waiting(f"Reading {anew} …")}
        try:
            for step in self._completed(visit, work()):
                if visit.asked != mine:
                    return
                visit.change(**{name: value for name, value in step.items() if isinstance(name, str)})
                others = {one: value for one, value in step.items() if not isinstance(one, str)}
                stands = self._picture_key(visit)
                shown = self._draw(visit, picture=stands != drawn)
                if visit.asked != mine:  # drawing takes a while, and the next step may be a map
                    return
                yield {self.visit: visit, **shown, **others}
                drawn = stands
        except LeukoscopeError as error:
            if visit.asked == mine:
                yield self._failed(visit, str(error))
        except Exception:
            _log.exception("a question of the page failed")
            if visit.asked == mine:
                yield self._failed(visit, BROKEN)

    def _failed(self, visit: Visit, reason: str) -> Step:
        """Why a question has no answer; what the page shows of the same picture stays below."""
        message = stage.message(FAILED, reason)
        if visit.shown is None:
            return {self.visit: visit, self.picture: "", self.answer: message, self.upload: None}
        below = self._draw(visit, picture=False)[self.answer]
        return {self.visit: visit, self.answer: message + below, self.upload: None}

    def _completed(self, visit: Visit, work: Step | Iterable[Step]) -> Iterator[Step]:
        """The steps of a question, then those that complete the answer shown, whichever of its rows is open."""
        yield from _steps(work)
        if not isinstance(visit.shown, Answer):
            return
        for answer in answering(visit.shown, self.models):
            stays = ("behind",) if visit.opened is None else ("behind", "opened", "view", "label", "forms")
            yield {"shown": answer, "opened": answer.best, **{name: getattr(visit, name) for name in stays}}

    @staticmethod
    def _picture_key(visit: Visit) -> tuple[Any, ...]:
        """What the left of the stage depends on."""
        opened: Any = None if isinstance(visit.shown, Answer) else visit.shown
        with suppress(LeukoscopeError):
            opened = visit.row
        return id(opened), visit.view, visit.label, id(visit.behind)

    def _draw(self, visit: Visit, *, picture: bool) -> Step:
        """The stage as it stands."""
        shown, others = visit.shown, tuple(name for name in self._names(visit) if name != visit.model)
        if shown is None:
            return {self.picture: "", self.answer: stage.waiting("Drop a cell, or pick one: the answers appear here.")}
        if isinstance(shown, Smear):
            left, right = partial(smear.smear_picture, shown), smear.smear_answer(shown, others)
        elif isinstance(shown, BatchResult):
            left, right = partial(batch.batch_picture, shown), batch.batch_answer(shown, others)
        else:
            opened = len(shown.rows) if visit.opened is None else visit.opened
            row = shown.rows[opened] if opened < len(shown.rows) else Row(shown.picture, "")
            back = "" if visit.behind is None else "smear" if isinstance(visit.behind, Smear) else "cells"
            left = partial(stage.cell_picture, row, view=visit.view, label=visit.label, forms=visit.forms, back=back)
            right = stage.cell_answer(shown, opened)
        updates = {self.answer: right, self.kept: stage.kept_choices([one.picture for one in visit.kept])}
        return {self.picture: left(), **updates} if picture else updates

    def _names(self, visit: Visit) -> list[str]:
        return [*self.models.names, *visit.added]

    def _readers(self, names: Sequence[str]) -> list[str]:
        """Of these models those that read cells cut out on black."""
        return [name for name in names if self.models.takes_cut_outs(name) is not False]

    def _names_for(self, visit: Visit, picture: Picture) -> list[str]:
        """Models that know such pictures."""
        names = self._names(visit)
        return (self._readers(names) or names) if picture.on_black else names

    # What is given.

    def _on_upload(self, paths: list[str] | None, visit: Visit) -> Iterator[Step]:
        if not paths:
            return
        # The box is free again at once; the files are deleted when they are read.
        yield {self.upload: None}
        with upload.deleted_afterwards(paths):
            name = upload.file_name(paths[0])
            if len(paths) > 1 or is_zip(paths[0]):
                several = name if len(paths) == 1 else f"{len(paths)} files"
                yield from self._asking(visit, lambda: self._batch(visit, partial(open_batch, paths)), anew=several)
            else:
                read = partial(upload.read_upload, paths[0], upload.FIELD)
                yield from self._asking(visit, lambda: self._read(visit, Picture(*read())), anew=name)

    def _on_name(self, name: str, visit: Visit) -> Iterator[Step]:
        yield from self._asking(visit, lambda: self._added(visit, name.strip()))

    def _added(self, visit: Visit, name: str) -> Iterator[Step]:
        """One more model's answer for what is shown."""
        self.models.predictor(name)
        if name not in self._names(visit):
            visit.added = [*visit.added, name][-MOST_ADDED:]
        if isinstance(visit.shown, Answer):
            rows = [row for row in visit.shown.rows if row.model != name]
            rows.append(ask(visit.shown.picture, self.models, name))
            answer, behind = replace(visit.shown, rows=tuple(rows)), visit.behind
            yield {"shown": answer, "opened": len(rows) - 1, "behind": behind, self.name: ""}
        else:
            if visit.shown is not None:
                yield from _steps(self._read_by(visit, name))
            yield {self.name: ""}

    def _example(self, visit: Visit, number: int, named: str = "") -> Step:
        """A synthetic picture of the kind that the models read."""
        names = self._names(visit)
        cut_outs = self._readers(names)
        smears = not cut_outs or self.models.takes_cut_outs(named) is False
        return self._asked(example(number, smear=smears), names if smears else cut_outs, named)

    @staticmethod
    def _asked(picture: Picture, names: Sequence[str], named: str = "") -> Step:
        """A question to these models; the best row is opened, or that of the model that is named."""
        if not names:
            raise LeukoscopeError(NO_MODEL)
        answer = Answer(picture, waiting=tuple(names))
        return {"shown": answer, "opened": names.index(named) if named in names else None}

    def _read(self, visit: Visit, picture: Picture) -> Iterator[Step]:
        """What a picture holds: a cell as it is, or the cells of a smear, cut out."""
        # It stands there before a model has answered.
        yield {"shown": Answer(picture)}
        if self._readers(self._names(visit)) and looks_like_smear(picture.image):
            try:
                yield from self._smear(visit, picture)
                return
            except UnusableSmear as error:
                reason = str(error).removeprefix(f"{picture.caption}: ").partition(": check the unit")[0]
                picture = replace(picture, remark=f"{picture.remark} No cell could be cut out: {reason}.".strip())
        yield self._asked(picture, self._names_for(visit, picture))

    def _smear(self, visit: Visit, picture: Picture) -> Iterator[Step]:
        """A smear's cells by the best model; by one that reads whole pictures where its cells are foreign to that."""
        names = self._names(visit)
        if not (readers := self._readers(names)):
            raise LeukoscopeError("No model here reads cells that are cut out of a smear.")
        found = read_smear(self.models, picture, readers[0])
        if found.is_foreign:
            answer = Answer(picture, tuple(ask(picture, self.models, name) for name in names if name not in readers))
            if any(row.gives_a_class for row in answer.rows):
                yield {"shown": answer, "opened": answer.best, "behind": found}
                return
        yield {"shown": found}
        if len(found.whole) == 1:
            yield {"shown": open_cell(self.models, found, found.whole[0]), "opened": 0, "behind": found}

    def _batch(self, visit: Visit, read: Callable[[], Batch], name: str = "") -> Iterator[Step]:
        """How far a batch is, then its result, by the best model for its pictures unless one is named."""
        given, names = read(), self._names(visit)
        if not names:
            raise LeukoscopeError(NO_MODEL)
        name = name or next(iter(self._readers(names)), names[0])
        soon = f'<div class="lk-wide">{stage.waiting("The cells appear here.")}</div>'
        for step in batch.reading_batch(self.models, given, name):
            done = isinstance(step, BatchResult)
            yield {"shown": step} if done else {"shown": None, self.picture: soon, self.answer: step}

    # What is clicked.

    def _on_act(self, visit: Visit, event: gr.EventData) -> Iterator[Step]:
        """Answer a click: "what" or "what:value", as `data-act` says in what is shown."""
        what, _, value = str(getattr(event, "value", "")).partition(":")
        try:
            work = self._work(visit, what, value)
        except (ValueError, IndexError):  # a value that no button of ours has
            return
        if work is not None:
            yield from self._asking(visit, work)

    def _work(self, visit: Visit, what: str, value: str) -> Callable[[], Step | Iterable[Step]] | None:
        """What a click asks for, its value parsed; None where no button says this.

        Raises:
            ValueError, IndexError: a value that no button of ours has.
        """
        if what in ("example", "row", "cell") or (what == "real" and value):
            number = int(value)
            numbered: dict[str, Callable[[], Step | Iterable[Step]]] = {
                "example": lambda: self._example(visit, number),
                "row": lambda: self._row(visit, number),
                "cell": lambda: self._cell(visit, number),
                "real": lambda: self._real_cell(visit, number),
            }
            return numbered[what]
        if what == "kept":
            answer = visit.kept[int(value)]
            return lambda: {"shown": answer, "opened": answer.best}
        if what == "pitch":
            um_per_pixel = float(value)
            return lambda: self._pitch(visit, um_per_pixel)
        acts: dict[str, Callable[[], Step | Iterable[Step]]] = {
            "smear": lambda: self._read(visit, smear.example_smear()),
            "people": lambda: self._batch(visit, sample_batch),
            "real": lambda: self._real_cell(visit, None),
            "view": lambda: self._view(visit, value),
            "label": lambda: {"label": value if value in visit.row.maps else ""},
            "back": lambda: {"shown": visit.behind},
            "read": lambda: self._read_by(visit, value),
            "save": lambda: self._save(visit, value),
            "stop": lambda: {"shown": None, self.answer: stage.waiting("Stopped. Nothing of it was kept.")},
        }
        return acts.get(what)

    @staticmethod
    def _row(visit: Visit, number: int) -> Step:
        """Open the answer of one model."""
        return {"opened": number} if 0 <= number < len(visit.showing(Answer).rows) else {}

    def _view(self, visit: Visit, view: str) -> Step:
        row = visit.row
        forms = covered(row, self.models) if view == "covered" else {}
        return {"view": view if view in stage.VIEWS else "map", "forms": forms}

    def _cell(self, visit: Visit, number: int) -> Step:
        """Open a cell of a smear or a batch."""
        shown = visit.shown
        if isinstance(shown, Smear):
            return {"shown": open_cell(self.models, shown, number), "opened": 0, "behind": shown}
        rows = visit.showing(BatchResult).rows
        if not 0 <= number < len(rows):
            raise LeukoscopeError(f"cell {number + 1}: this batch has {len(rows)} cells; open one of them")
        row = rows[number]
        picture = Picture(open_bytes(row.kept(), row.name), row.name)
        # The model that read the batch says first what it said there.
        names = dict.fromkeys([visit.model, *self._names_for(visit, picture)])
        return {"shown": Answer(picture, waiting=tuple(names)), "opened": 0, "behind": shown}

    def _read_by(self, visit: Visit, name: str) -> Step | Iterable[Step]:
        """Read the smear or the batch that is shown by another model."""
        if name not in self._names(visit):
            raise LeukoscopeError(f"{name!r}: is no model of this page; add it under “More models”")
        if isinstance(visit.shown, BatchResult):
            given = visit.shown.given
            return self._batch(visit, lambda: given, name)
        shown = visit.showing(Smear)
        if self._readers([name]):
            return {"shown": read_smear(self.models, shown.picture, name)}
        return {"shown": Answer(shown.picture, (ask(shown.picture, self.models, name),)), "opened": 0, "behind": shown}

    def _pitch(self, visit: Visit, um_per_pixel: float) -> Step:
        shown = visit.showing(Smear)
        picture = replace(shown.picture, um_per_pixel=um_per_pixel or None)
        return {"shown": read_smear(self.models, picture, shown.reading.model)}

    def _save(self, visit: Visit, kind: str) -> Step:
        shown = visit.shown
        if isinstance(shown, Smear):
            file = save_smear(kind, shown)
        elif isinstance(shown, BatchResult):
            file = csv_file("leukoscope-cells.csv", columns(shown))
        else:
            file = save_row(visit.row, visit.label)
        sent = {**file._asdict(), "content": base64.b64encode(file.content).decode(), "number": visit.asked}
        return {self.parcel: f"<template>{escape(json.dumps(sent))}</template>"}

    def _real_cell(self, visit: Visit, number: int | None) -> Step | Iterable[Step]:
        """Real cells to pick from, or the one that is picked."""
        if number is not None and visit.real:
            cells = real_cells(visit.real)
            cell = cells[min(max(number, 0), len(cells) - 1)]
            return self._read(visit, Picture(cell.image, f"Real {cell.label}"))
        visit.real, about = source_of(self.models, self.models.or_first(visit.model))
        choices = [(cell.image, cell.label) for cell in real_cells(visit.real)]
        said = f"Real cells of {about.title}, {about.licence}. The models were trained on such cells, perhaps on these."
        return {self.real: stage.real_choices(choices, f"{said} {about.citation}")}
