"""The page: one stage for what the models answer, and one strip of whatever a visitor can give.

Every click is one event of one handler: `acts.py` parses it, a method of `Page` answers it with `Update`s. Of two
questions that are answered at once the one asked last counts: its number stands in the visit, and an older question
ends as soon as it sees a newer one. No chain of events, and nothing in the browser, keeps them in order.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import PurePath
from typing import Any

import gradio as gr

from leukoscope import ConfigError, LeukoscopeError, ReleaseError
from leukoscope.data.images import open_bytes
from leukoscope.data.smear import UnusableSmear, looks_like_smear
from leukoscope.reports.text import outcome_text
from leukoscope.web import batch_page, smear_page, stage, upload
from leukoscope.web.acts import Act, NoSuchAct, parse_act
from leukoscope.web.answer import Answer, Picture, Row, answering, ask, data_of_real_cells, example, real_cells, row_of
from leukoscope.web.batch import BatchResult, columns, predict_batch
from leukoscope.web.batch_files import Batch, is_zip, open_batch, sample_batch
from leukoscope.web.drawing import WAITING_FOR_OTHERS, Address, invitation, message, part, waiting
from leukoscope.web.export import csv_file, save_row, save_smear
from leukoscope.web.model_cache import NO_MODEL, ModelCache
from leukoscope.web.smear import Smear, example_smear, open_cell, read_smear
from leukoscope.web.views import STAGE_VIEWS, chosen_view, row_with_maps
from leukoscope.web.visit import (
    EXAMPLE_PEOPLE,
    EXAMPLE_SMEAR,
    RESULT_DELETED,
    Scene,
    Update,
    Visit,
    given_by,
    readings_but,
)
from leukoscope.web.work_queue import Question, steps_of

SESSION_SECONDS = 1800
MOST_ADDED = 4  # models that a visitor names
NOT_KEPT = "This picture is not kept any more. Give it again."
FAILED = "This did not work"
STOPPED = "Stopped before it was read. Give it again, or pick something else below."
BROKEN = "The server met an error of its own and has logged it. Try again, or give another picture."
# Of every event that is no part of the public API; each click is handled, the newest one counts.
PAGE_EVENT: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple", "show_progress": "minimal"}
Outputs = dict[Any, Any]
"""Component → its new value, as Gradio takes it."""
_log = logging.getLogger(__name__)


class Page:
    """The page's components and events, added to the Blocks being built."""

    def __init__(self, models: ModelCache) -> None:
        self.models = models
        self.visit = gr.State(Visit(), time_to_live=SESSION_SECONDS)
        with gr.Row(elem_id="stage"):
            picture, answer = self._at_first()
            self.picture = part(picture, "picture", "act.js", "view.js")
            self.answer = part(answer, "answer", "act.js", "shown.js")
        self.upload = upload.files_upload(show_label=False, elem_id="upload")
        self.tiles = part(self._tiles(Visit()), "tiles", "act.js", "folder.js", "box.js")
        self.parcel = part("", "parcel", "save.js")
        self.lost = gr.Textbox(visible=False)
        # Gradio builds every output anew that a step leaves as it is: no event has more than it needs.
        self.outputs = [self.visit, self.picture, self.answer, self.tiles]
        on_stage = {**PAGE_EVENT, "show_progress_on": [self.picture, self.answer]}
        clicked = [component.select for component in (self.tiles, self.picture, self.answer)]
        gr.on(clicked, self._on_click, self.visit, [*self.outputs, self.parcel], **on_stage)
        self.upload.upload(self._on_files, [self.upload, self.visit], [*self.outputs, self.upload], **on_stage)

    def _at_first(self) -> tuple[str, str]:
        """Picture and answer before any model has answered: the first example."""
        smears = bool(self.models.names) and not self._readers(self.models.names)
        first = example(1, smear=smears)
        if not self.models.names:
            return stage.cell_picture(Row(first, "", error=NO_MODEL), forms=None), stage.no_model(NO_MODEL)
        return stage.cell_picture(Row(first, ""), forms=None), waiting("The models are loading; the answer follows.")

    def open_on_load(self, demo: gr.Blocks) -> None:
        """Answer a synthetic cell for whoever opens the page: its address names model, example and view.

        A page that is loaded anew because the server was away keeps what it showed.
        """

        def on_load(lost: str, visit: Visit, request: gr.Request) -> Iterator[Outputs]:
            yield from self._settled(visit, opening(lost, visit, request))

        def opening(lost: str, visit: Visit, request: gr.Request) -> Iterator[Outputs]:
            if lost:
                return
            number = request.query_params.get("example") or "1"
            model = request.query_params.get("model") or ""
            if model and model not in self.models.names and self.models.is_name(model):
                visit.added.append(model)
            visit.chosen = model
            if not self._names(visit):
                return
            cell = request.query_params.get("cell") or ""
            index = None
            if cell.isdecimal() and int(cell[:6]) > 0:
                index = int(cell[:6]) - 1
            view = request.query_params.get("view") or ""

            def in_view(opened: Iterator[Update]) -> Iterator[Update]:
                yield from opened
                if view in STAGE_VIEWS and isinstance(visit.scene.content, Answer):
                    yield Update(replace(visit.scene, view=view))

            if number == EXAMPLE_SMEAR:
                yield from self._draw(visit, lambda: in_view(self.open_smear(visit, index, model)), new_input="a smear")
                return
            if number == EXAMPLE_PEOPLE:
                people = self._new_input_of(Act("people"))
                yield from self._draw(visit, lambda: in_view(self.open_people(visit, index, model)), new_input=people)
                return
            first = 1
            if number.isdecimal() and len(number) < 7:
                first = int(number)
            yield from self._draw(visit, lambda: in_view(self.open_example(visit, first, model)))

        was_lost = "() => [sessionStorage.lkLost ? '1' : '', null]"
        quiet = {**PAGE_EVENT, "show_progress": "hidden"}
        demo.load(on_load, [self.lost, self.visit], self.outputs, js=was_lost, **quiet)

    # What is asked, and in which order it counts.

    def _settled(self, visit: Visit, steps: Iterable[Outputs]) -> Iterator[Outputs]:
        """The steps of an event, then one that changes nothing.

        When an event ends, Gradio sends its last step again: that of an older question would replace the answer of a
        newer one. After an event without a step, Gradio empties every part.
        """
        yield from steps
        yield {self.visit: visit}

    def _on_click(self, visit: Visit, event: gr.EventData) -> Iterator[Outputs]:
        yield from self._settled(visit, self._on_act(visit, event))

    def _on_files(self, paths: list[str] | None, visit: Visit) -> Iterator[Outputs]:
        steps = self._settled(visit, self._on_upload(paths, visit))
        # The box is free again at once.
        yield {self.upload: None, **next(steps)}
        yield from steps

    def _draw(self, visit: Visit, work: Callable[[], Iterable[Update]], *, new_input: str = "") -> Iterator[Outputs]:
        """Draw what a question changes, in one step or several, as long as no newer question is asked.

        `new_input` names a picture or a batch that is given: nothing of what was shown stands beside it, nor after an
        error.
        """
        visit.asked += 1
        mine = visit.asked
        drawn = None
        drawn_strip = None
        reading = f"Reading {new_input} …"
        waits_for = ""
        question = Question(id(visit))
        if new_input:
            visit.show(Scene(view=visit.scene.view))
            yield self._outputs(
                visit, Update(picture=stage.empty_picture(reading), answer=waiting(reading)), strip=False
            )
        try:
            for update in steps_of(question, self._completed(visit, work())):
                if visit.asked != mine:
                    return
                if update is None:
                    sentence = self._waiting_text(visit, question)
                    if sentence != waits_for:
                        yield {self.visit: visit, self.answer: self._waiting_answer(visit, sentence, reading)}
                    waits_for = sentence
                    continue
                waits_for = ""
                if update.scene is not None:
                    visit.show(update.scene)
                stands = self._picture_key(visit)
                strip = self._strip_key(visit)
                outputs = self._outputs(visit, update, picture=stands != drawn, strip=strip != drawn_strip)
                if visit.asked != mine:  # drawing takes a while, and the next step may be a map
                    return
                yield outputs
                drawn = stands
                drawn_strip = strip
        except LeukoscopeError as error:
            if visit.asked == mine:
                yield self._failed(visit, str(error), new_input)
                yield from self._completed_below(visit, str(error))
        except Exception:
            _log.exception("a question of the page failed")
            if visit.asked == mine:
                yield self._failed(visit, BROKEN, new_input)
                yield from self._completed_below(visit, BROKEN)

    def _completed_below(self, visit: Visit, reason: str) -> Iterator[Outputs]:
        """Complete the answer that was shown while a newer question failed, below the reason for that."""
        mine = visit.asked
        content = visit.scene.content
        if not isinstance(content, Answer) or not content.rows:
            return
        try:
            for update in steps_of(Question(id(visit)), self._completed(visit, ())):
                if visit.asked != mine:
                    return
                if update is not None and update.scene is not None:
                    visit.show(update.scene)
                    yield self._outputs(
                        visit, Update(answer=message(FAILED, reason) + self._answer(visit)), strip=False
                    )
        except LeukoscopeError:
            _log.info("what was shown while a question failed cannot be completed", exc_info=True)

    def _failed(self, visit: Visit, reason: str, new_input: str) -> Outputs:
        """Why a question has no answer; what the page shows of the same picture stays below.

        `new_input` names the picture or the batch that was given, "" for a question about what is shown.
        """
        if isinstance(visit.scene.content, BatchResult) and visit.scene.content.is_reading:
            visit.show(self._stopped_batch(visit.scene, visit.scene.content))
        content = visit.scene.content
        if isinstance(content, BatchResult) and not content.rows:
            content = None
            visit.show(replace(visit.scene, content=None))
        if new_input and content is None:
            not_read = Update(picture=stage.empty_picture(f"{new_input} was not read"), answer=stage.not_read(reason))
            return self._outputs(visit, not_read)
        if isinstance(visit.scene.content, Answer) and not visit.scene.content.rows:
            return self._outputs(visit, Update(answer=stage.not_read(reason)), picture=False)
        failed = message(FAILED, reason)
        below = self._answer(visit)
        redrawn = content is None or isinstance(content, BatchResult)
        return self._outputs(visit, Update(answer=failed + below), picture=redrawn)

    def _waiting_answer(self, visit: Visit, sentence: str, reading: str) -> str:
        """The right of the stage while a question waits for what the sentence says, or is computed again."""
        if isinstance(visit.scene.content, BatchResult):
            return batch_page.progress(visit.scene.content, waits=sentence)
        if sentence:
            return waiting(sentence, stops=True)
        if visit.scene.content is None:
            return waiting(reading)
        return self._answer(visit)

    def _waiting_text(self, visit: Visit, question: Question) -> str:
        """What a question waits for while nothing is answered; "" where the page says it already."""
        content = visit.scene.content
        if isinstance(content, BatchResult) and not content.is_reading:
            return ""
        if isinstance(content, Answer) and content.rows:
            return ""
        if question.waits_for_others:
            return WAITING_FOR_OTHERS
        if question.queue is self.models.read_smear:
            return "Finding and reading its white cells …"
        return ""

    def _completed(self, visit: Visit, work: Iterable[Update]) -> Generator[Update]:
        """The steps of a question, then those that complete the answer shown, whichever of its rows is open."""
        yield from work
        if not isinstance(visit.scene.content, Answer):
            return
        yield from self._computed_view(visit)
        for answer in answering(visit.scene.content, self.models, visit.scene.opened):
            scene = replace(visit.scene, content=answer)
            if scene.opened is None and answer.best is not None:
                scene = replace(scene, opened=answer.best)
            yield Update(scene)
            yield from self._computed_view(visit)
        yield from self._cell_by_others(visit)

    def _cell_by_others(self, visit: Visit) -> Iterator[Update]:
        """What the other models say of a smear's cell, each once it has read the smear."""
        opened = visit.scene.smear_cell
        if opened is None:
            return
        smear, cell = opened
        for name in self._asked_next(visit):
            scene = visit.scene
            answer = scene.showing(Answer)
            readings = scene.smear_readings
            try:
                reading = self._reading_of(visit, smear, name)
                readings = (*readings_but(name, readings), reading)
                row = row_of(open_cell(reading, cell).picture, self.models, name)
            except LeukoscopeError as error:
                row = Row(answer.picture, name, error=str(error))
            answer = replace(answer, rows=(*answer.rows, row))
            yield Update(replace(scene, content=answer, smear_readings=readings))

    def _reading_of(self, visit: Visit, smear: Smear, name: str) -> Smear:
        """A smear as this model reads it, read once."""
        for reading in (smear, *visit.scene.smear_readings):
            if reading.reading.model == name:
                return reading
        return self._with_whole_picture(visit, read_smear(self.models, smear.picture, name))

    @staticmethod
    def _picture_key(visit: Visit) -> tuple[Any, ...]:
        """What the left of the stage depends on."""
        scene = visit.scene
        drawn: Any = scene.content
        with_maps = None
        if isinstance(drawn, Answer):
            if scene.opened is not None and scene.opened < len(drawn.rows):
                if chosen_view(scene.row, scene.view).name == "map":
                    with_maps = row_with_maps(scene.row, drawn.rows)
                drawn = scene.row
            else:
                drawn = drawn.picture
        return id(drawn), scene.view, scene.label, id(scene.forms), id(scene.behind), with_maps

    @staticmethod
    def _strip_key(visit: Visit) -> tuple[Any, ...]:
        """What the strip of tiles depends on."""
        recent = tuple((given_by(scene), scene.model) for scene in visit.recent)
        return visit.scene.source, visit.scene.model, visit.real, recent, given_by(visit.scene)

    def _outputs(self, visit: Visit, update: Update, *, picture: bool = True, strip: bool = True) -> Outputs:
        """An update as Gradio takes it; picture and strip only where they change."""
        outputs: Outputs = {self.visit: visit}
        outputs[self.answer] = self._answer(visit) if update.answer is None else update.answer
        if strip:
            outputs[self.tiles] = self._tiles(visit)
        if update.picture is not None:
            outputs[self.picture] = update.picture
        elif picture:
            outputs[self.picture] = self._picture(visit)
        if update.parcel is not None:
            outputs[self.parcel] = update.parcel
        return outputs

    def _picture(self, visit: Visit) -> str:
        """The left of the stage."""
        scene = visit.scene
        if isinstance(scene.content, Smear):
            return smear_page.smear_picture(scene.content)
        if isinstance(scene.content, BatchResult):
            return batch_page.batch_picture(scene.content)
        if scene.content is None:
            return stage.empty_picture()
        view = scene.view
        if scene.opened is not None and scene.opened < len(scene.content.rows):
            row = scene.row
        elif scene.content.waiting:
            row = Row(scene.content.picture, "")
            if not view and visit.chosen and self.models.maps_passed(visit.chosen):
                view = "map"
        else:
            row = Row(scene.content.picture, "", error=STOPPED)
        name = row.picture.caption
        if scene.smear_cell:
            _, cell = scene.smear_cell
            name = f"Cell {cell + 1}"
        name = _cell_of_batch(scene) or name
        return stage.cell_picture(
            row,
            name=name,
            view=view,
            label=scene.label,
            forms=scene.forms,
            back=scene.back,
            rows=scene.content.rows,
            next_cell=_next_cell(scene),
        )

    def _answer(self, visit: Visit) -> str:
        """The right of the stage."""
        scene = visit.scene
        address = Address(self._example(visit), scene.number, scene.cell)
        is_chosen = scene.model == visit.chosen and scene.model != self._first_model
        if isinstance(scene.content, Smear):
            others = self._others_for_smear(visit, scene.content)
            return smear_page.smear_answer(scene.content, others, address=address, is_chosen=is_chosen)
        if isinstance(scene.content, BatchResult) and scene.content.is_reading:
            return batch_page.progress(scene.content, is_chosen=is_chosen)
        if isinstance(scene.content, BatchResult):
            readers = self._others_for_batch(visit, scene.content)
            is_given_last = scene.number == visit.given
            return batch_page.batch_answer(
                scene.content,
                readers,
                scene.readings,
                least_cells={name: self.models.least_cells(name) for name in readers},
                address=address,
                is_given_last=is_given_last,
                is_chosen=is_chosen,
            )
        if scene.content is None:
            return invitation("Give a picture, or pick one below")
        opened = scene.opened
        if opened is None:
            opened = len(scene.content.rows)
        asked_next = self._asked_next(visit)
        return stage.cell_answer(
            scene.content,
            opened,
            name=_cell_of_batch(scene) or _measures_of_cell(scene),
            address=address,
            asked_next=asked_next,
            readers=[name for name in self._smear_readers(visit) if name not in asked_next],
            next_cell=_next_cell(scene),
            is_chosen=is_chosen,
        )

    @property
    def _first_model(self) -> str:
        """The model that answers where the visitor chose none; "" where there is none."""
        return next(iter(self._readers(self.models.names) or self.models.names), "")

    @staticmethod
    def _example(visit: Visit) -> str:
        """What the page's address calls the synthetic picture or batch that is shown; "" for any other."""
        scene = visit.scene
        if isinstance(scene.whole, BatchResult):
            return EXAMPLE_PEOPLE if scene.source == EXAMPLE_PEOPLE else ""
        smear = scene.smear
        if smear is not None:
            return EXAMPLE_SMEAR if smear.picture is example_smear() else ""
        if isinstance(scene.content, Answer) and scene.content.picture.example:
            return str(scene.content.picture.example)
        return ""

    def _smear_readers(self, visit: Visit) -> list[str]:
        """The other models that can read the smear that an answer was opened from; of its cell, those of cut-outs."""
        scene = visit.scene
        if scene.smear is None or not isinstance(scene.content, Answer):
            return []
        names = self._names(visit)
        if scene.cell is not None:
            names = self._readers(names)
        asked = {*(row.model for row in scene.content.rows), *scene.content.waiting}
        return [name for name in names if name not in asked]

    def _asked_next(self, visit: Visit) -> list[str]:
        """The other models that answer for the cell of a smear, unasked; of a smear of many cells, none."""
        if visit.scene.smear_cell is None:
            return []
        smear, _ = visit.scene.smear_cell
        if len(smear.whole) > smear_page.MOST_BOXES_WITH_CLASS:
            return []
        return self._smear_readers(visit)

    def _others_for_smear(self, visit: Visit, smear: Smear) -> list[str]:
        """The other models that can read a smear: those that read the same cells before those of whole pictures."""
        others = [name for name in self._names(visit) if name != smear.reading.model]
        readers = self._readers(others)
        of_whole_pictures = [name for name in others if name not in readers]
        if not smear.whole:
            # Every model of cut-out cells would find the same cells.
            return of_whole_pictures
        return [*readers, *of_whole_pictures]

    def _others_for_batch(self, visit: Visit, result: BatchResult) -> list[str]:
        """The other models that know the pictures of a batch."""
        names = self._names(visit)
        if any(row.on_black for row in result.rows):
            names = self._readers(names) or names
        return [name for name in names if name != result.model]

    def _tiles(self, visit: Visit) -> str:
        """The strip of what can be given."""
        smears = bool(self.models.names) and not self._readers(self.models.names)
        given = stage.example_tiles(smears=smears, pressed=visit.scene.source)
        real = []
        credit = ""
        if visit.real:
            data = visit.real
            cells = real_cells(str(data.hub_id))
            real = [
                stage.picture_tile(f"real:{number}", cell.label, Picture.opened(cell.image, f"Real {cell.label}"),
                                   visit.scene.source == f"real:{number}")
                for number, cell in enumerate(cells)
            ]  # fmt: skip
            credit = (
                f"Real cells of {data.title}, {data.licence}. The models were trained on such cells, perhaps on these. "
                f"{data.citation}"
            )
        recent = []
        for number, scene in enumerate(visit.recent):
            act = f"recent:{number}"
            is_shown = given_by(scene) == given_by(visit.scene)
            if isinstance(scene.content, BatchResult):
                recent.append(batch_page.batch_tile(act, scene.content, is_shown))
            elif scene.picture is not None and not scene.picture.example:
                name = stage.tile_label(PurePath(scene.picture.caption).stem)
                recent.append(stage.picture_tile(act, name, scene.picture, is_shown))
        return stage.tiles(given, real=real, credit=credit, recent=recent)

    def _names(self, visit: Visit) -> list[str]:
        return [*self.models.names, *visit.added]

    def _readers(self, names: Sequence[str]) -> list[str]:
        """Of these models those that read cells cut out on black."""
        return [name for name in names if self.models.takes_cut_outs(name) is not False]

    def _names_for(self, visit: Visit, picture: Picture) -> list[str]:
        """Models that know such pictures."""
        names = self._names(visit)
        if picture.on_black:
            return self._readers(names) or names
        return names

    # What is given.

    def _on_upload(self, paths: list[str] | None, visit: Visit) -> Iterator[Outputs]:
        if not paths:
            return
        with upload.deleted_afterwards(paths):
            name = upload.file_name(paths[0])
            if len(paths) > 1 or is_zip(paths[0]):
                several = name if len(paths) == 1 else f"{len(paths)} files"
                read_files = partial(open_batch, paths)
                yield from self._draw(visit, lambda: self.read_batch(visit, read_files), new_input=several)
            else:
                read = partial(upload.read_upload, paths[0], upload.FIELD_LIMIT)
                yield from self._draw(visit, lambda: self.read_picture(visit, Picture.opened(*read())), new_input=name)

    def open_example(self, visit: Visit, number: int, model: str = "") -> Iterator[Update]:
        """Ask about a synthetic picture of the kind that the model named reads, or most models read."""
        names = self._names(visit)
        cut_outs = self._readers(names)
        smears = not cut_outs or self.models.takes_cut_outs(model) is False
        picture = example(number, smear=smears)
        # The strip has the smears only where no model reads cells.
        source = f"example:{picture.example}" if smears == (not cut_outs) else ""
        yield Update(self._question(visit, picture, names if smears else cut_outs, source=source))

    def _question(self, visit: Visit, picture: Picture, names: Sequence[str], source: str = "") -> Scene:
        """A question to these models: first to the one that the visitor chose, then to those that are loaded."""
        if not names:
            raise ReleaseError(NO_MODEL)
        asked = self.models.soonest_first(names)
        if visit.chosen in asked:
            asked.remove(visit.chosen)
            asked.insert(0, visit.chosen)
        answer = Answer(picture, waiting=tuple(asked), chosen=visit.chosen)
        # The next cell is shown as the one before it.
        return Scene(answer, source=source, view=visit.scene.view)

    def read_picture(self, visit: Visit, picture: Picture, source: str = "") -> Iterator[Update]:
        """Answer what a picture holds: a cell as it is, or the cells of a smear, cut out."""
        if self._readers(self._names(visit)) and looks_like_smear(picture.image):
            # It stands there while its cells are looked for.
            yield Update(Scene(Answer(picture), source=source, view=visit.scene.view))
            try:
                yield from self.read_smear(visit, picture, source)
                return
            except UnusableSmear as error:
                reason = str(error).removeprefix(f"{picture.caption}: ").partition(": check the unit")[0]
                picture = replace(picture, remark=f"{picture.remark} No cell could be cut out: {reason}.".strip())
        names = self._names_for(visit, picture)
        yield Update(self._question(visit, picture, names, source=source))

    def read_smear(self, visit: Visit, picture: Picture, source: str = "") -> Iterator[Update]:
        """A smear's cells by the model that the visitor chose, or by the best one."""
        readers = self._readers(self._names(visit))
        if not readers:
            raise ReleaseError("No model here reads cells that are cut out of a smear.")
        reading = read_smear(self.models, picture, visit.chosen_or_first(readers))
        reading = self._with_whole_picture(visit, reading)
        yield from self._opened_smear(Scene(reading, source=source, view=visit.scene.view), reading)

    def _with_whole_picture(self, visit: Visit, smear: Smear) -> Smear:
        """A smear; where its cells are foreign to its model, also what models of whole pictures say of it."""
        if not smear.is_foreign:
            return smear
        names = self._names(visit)
        readers = self._readers(names)
        rows = [row_of(smear.picture, self.models, name, explain=False) for name in names if name not in readers]
        return replace(smear, whole_picture=tuple(rows))

    @staticmethod
    def _opened_smear(scene: Scene, smear: Smear) -> Iterator[Update]:
        """A smear that is shown; where it has one whole cell that a class can be given to, then that cell."""
        yield Update(scene)
        if len(smear.whole) == 1 and not smear.is_foreign:
            number = smear.whole[0]
            cell = open_cell(smear, number)
            yield Update(replace(scene, content=cell, opened=0, behind=smear, cell=number))

    def read_batch(
        self,
        visit: Visit,
        read: Callable[[], Batch],
        model: str = "",
        source: str = "",
        readings: tuple[BatchResult, ...] = (),
    ) -> Iterator[Update]:
        """How far a batch is, then its result, by the model named, that the visitor chose, or that is the best for it.

        A batch of one cell opens it, as a smear of one cell does. `readings` are of other models, which stay.
        """
        batch = read()
        names = self._names(visit)
        if not names:
            raise ReleaseError(NO_MODEL)
        name = model or visit.chosen_or_first(self._readers(names) or names)
        pictures = batch_page.given_picture(batch)
        if visit.scene.content is None:
            yield Update(picture=pictures, answer=waiting(f"Reading {len(batch.files)} pictures …"))
        with closing(predict_batch(self.models, batch, name)) as steps:
            for result in iter(partial(self.models.next_part, steps), None):
                scene = Scene(result, source=source, readings=readings)
                yield Update(scene, picture=None if result.rows else pictures)
        if result.is_one_cell and not model:
            yield from self.open_cell(visit, 0)

    # What is clicked.

    def _on_act(self, visit: Visit, event: gr.EventData) -> Iterator[Outputs]:
        """Answer a click; one that no button of ours makes, or that is older than one answered, is ignored."""
        try:
            act = parse_act(getattr(event, "value", ""))
        except NoSuchAct:
            return
        number = getattr(event, "index", 0)
        if isinstance(number, int) and number:
            # Gradio starts the events of one moment in any order.
            if number < visit.clicked:
                return
            visit.clicked = number
        yield from self._draw(visit, lambda: self._answered(visit, act), new_input=self._new_input_of(act))

    @staticmethod
    def _new_input_of(act: Act) -> str:
        """The name of what a click gives newly, where the answer takes a while; "" for one about what is shown."""
        if act.name == "real" and act.number is None:
            return ""
        return {"smear": "a smear", "people": "the cells of two people", "real": "a real cell"}.get(act.name, "")

    def _answered(self, visit: Visit, act: Act) -> Iterator[Update]:
        """The updates of one act: each is a method with typed arguments."""
        numbered: dict[str, Callable[[Visit, int], Iterator[Update]]] = {
            "example": self.open_example,
            "recent": self.open_recent,
            "given": self.open_given,
            "row": self.open_row,
            "cell": self.open_cell,
            "real": self.open_real_cell,
            "smear": self.open_smear,
            "people": self.open_people,
        }
        named: dict[str, Callable[[Visit, str], Iterator[Update]]] = {
            "view": self.choose_view,
            "label": self.choose_map,
            "read": self.read_by,
            "save": self.save,
            "add": self.add_model,
        }
        plain: dict[str, Callable[[Visit], Iterator[Update]]] = {
            "smear": self.open_smear,
            "people": self.open_people,
            "real": self.offer_real_cells,
            "back": self.go_back,
            "stop": self.stop,
        }
        if act.name == "pitch":
            return self.set_scale(visit, act.um_per_pixel)
        if act.number is not None:
            return numbered[act.name](visit, act.number)
        if act.text:
            return named[act.name](visit, act.text)
        return plain[act.name](visit)

    def open_smear(self, visit: Visit, cell: int | None = None, model: str = "") -> Iterator[Update]:
        """The synthetic smear, or one of its cells, by the model named."""
        yield from self.read_picture(visit, example_smear(), EXAMPLE_SMEAR)
        if visit.scene.smear is not None and model in self._names(visit) and model != visit.scene.model:
            yield from self.read_by(visit, model)
        if cell is not None and isinstance(visit.scene.content, Smear):
            yield from self.open_cell(visit, cell)

    def open_people(self, visit: Visit, cell: int | None = None, model: str = "") -> Iterator[Update]:
        """The cells of two synthetic people, or one of them, by the model named or by the best one."""
        named = model if model in self._names(visit) else ""
        yield from self.read_batch(visit, sample_batch, named, EXAMPLE_PEOPLE)
        if cell is not None and isinstance(visit.scene.content, BatchResult):
            yield from self.open_cell(visit, cell)

    def open_given(self, visit: Visit, number: int) -> Iterator[Update]:
        """What was given as that number of this visit, again."""
        places = [place for place, scene in enumerate(visit.recent) if scene.number == number]
        if not places:
            raise LeukoscopeError(NOT_KEPT)
        yield from self.open_recent(visit, places[0])

    def open_recent(self, visit: Visit, number: int) -> Iterator[Update]:
        """A cell, a smear or the last batch of this visit again."""
        if number >= len(visit.recent):
            raise LeukoscopeError(NOT_KEPT)
        scene = visit.recent[number]
        if isinstance(scene.content, Answer):
            answer = replace(scene.content, chosen=visit.chosen)
            scene = replace(scene, content=answer, opened=answer.best, view=visit.scene.view)
        if isinstance(scene.content, Smear):
            yield from self._opened_smear(scene, scene.content)
            return
        yield Update(scene)
        if isinstance(scene.content, BatchResult) and scene.content.is_one_cell:
            yield from self.open_cell(visit, 0)

    def open_row(self, visit: Visit, number: int) -> Iterator[Update]:
        """The answer of one model, in the view that the visitor chose before."""
        answer = visit.scene.showing(Answer)
        if number >= len(answer.rows):
            return
        visit.chosen = answer.rows[number].model
        switched = replace(answer, chosen=visit.chosen)
        opened = replace(visit.scene, content=switched, opened=number, label="", forms=None)
        yield Update(opened.of_reading(visit.chosen))

    def open_cell(self, visit: Visit, number: int) -> Iterator[Update]:
        """A cell of a smear or a batch."""
        whole = visit.scene.whole
        source = visit.scene.source
        if isinstance(whole, Smear):
            answer = open_cell(whole, number)
            # The next cell is shown as the one before it.
            scene = Scene(answer, opened=0, behind=whole, cell=number, source=source, view=visit.scene.view)
            yield Update(replace(scene, smear_readings=visit.scene.smear_readings))
            return
        if not isinstance(whole, BatchResult):
            raise LeukoscopeError(RESULT_DELETED)
        if number >= len(whole.rows):
            raise ConfigError(f"cell {number + 1}: this batch has {len(whole.rows)} cells; open one of them")
        row = whole.rows[number]
        picture = Picture.opened(open_bytes(row.kept(), row.name, ground=None), row.name)
        # The model that read the batch says first what it said there.
        names = dict.fromkeys([whole.model, *self._names_for(visit, picture)])
        answer = Answer(picture, waiting=tuple(names))
        scene = Scene(answer, opened=0, behind=whole, cell=number, source=source, view=visit.scene.view)
        yield Update(replace(scene, readings=visit.scene.readings))

    def go_back(self, visit: Visit) -> Iterator[Update]:
        """What a cell was opened from."""
        scene = visit.scene
        opened_from = Scene(scene.behind, source=scene.source, readings=scene.readings)
        yield Update(replace(opened_from, smear_readings=scene.smear_readings))

    def stop(self, visit: Visit) -> Iterator[Update]:
        """End what is computed: a newer question does. What was predicted of a batch stays."""
        scene = visit.scene
        if isinstance(scene.content, BatchResult) and scene.content.is_reading:
            yield Update(self._stopped_batch(scene, scene.content))
        elif scene.behind is not None and isinstance(scene.content, Answer) and not scene.content.rows:
            yield from self.go_back(visit)
        elif isinstance(scene.content, Answer) and not scene.content.rows:
            stopped = Scene(Answer(scene.content.picture), source=scene.source)
            yield Update(stopped, answer=stage.not_read(STOPPED))
        elif scene.content is None:
            yield Update(picture=stage.empty_picture("Nothing was read"), answer=stage.not_read(STOPPED))
        else:
            yield Update()

    @staticmethod
    def _stopped_batch(scene: Scene, batch: BatchResult) -> Scene:
        """A batch whose reading ends early: what was predicted of it; else what another model predicted before."""
        if not batch.rows and scene.readings:
            return replace(scene, content=scene.readings[0], readings=scene.readings[1:])
        return replace(scene, content=replace(batch, stopped=True))

    def choose_view(self, visit: Visit, name: str) -> Iterator[Update]:
        """Another view of the cell."""
        view = STAGE_VIEWS.get(name)
        if view is not None and view.offered(visit.scene.row):
            yield Update(replace(visit.scene, view=name, forms=None))

    def _computed_view(self, visit: Visit) -> Iterator[Update]:
        """What the chosen view shows, once it is computed; the view that the row opens with where that fails."""
        scene = visit.scene
        view = STAGE_VIEWS.get(scene.view)
        if not scene.model or scene.forms is not None or view is None or view.compute is None:
            return
        if not view.offered(scene.row):
            return
        try:
            forms = view.compute(scene.row, self.models)
        except Exception:
            yield Update(replace(scene, view=""))
            raise
        yield Update(replace(scene, forms=forms))

    def choose_map(self, visit: Visit, label: str) -> Iterator[Update]:
        """The map of another class."""
        if label in visit.scene.row.maps:
            yield Update(replace(visit.scene, view="map", label=label))

    def read_by(self, visit: Visit, name: str) -> Iterator[Update]:
        """Read the smear or the batch that is shown by another model; of a smear whose cell is shown, open that."""
        if name not in self._names(visit):
            raise ConfigError(f"{name!r}: is no model of this page; add it under “+ another model”")
        visit.chosen = name
        scene = visit.scene
        if isinstance(scene.content, BatchResult):
            yield from self._read_batch_by(visit, scene.content, name)
            return
        smear = scene.smear or scene.showing(Smear)
        if self._readers([name]):
            reading = self._reading_of(visit, smear, name)
            read = Scene(
                reading, source=scene.source, smear_readings=readings_but(name, (*scene.smear_readings, smear))
            )
            if scene.cell is not None:
                cell = open_cell(reading, scene.cell)
                read = replace(read, content=cell, opened=0, behind=reading, cell=scene.cell, view=scene.view)
            yield Update(read)
            return
        # It reads the whole picture; the smear stays behind it, with its cells and its table.
        known = [row for row in smear.whole_picture if row.model == name]
        answer = Answer(smear.picture, tuple(known or [ask(smear.picture, self.models, name)]))
        opened = Scene(answer, opened=0, behind=smear, source=scene.source)
        yield Update(replace(opened, smear_readings=scene.smear_readings))

    def _read_batch_by(self, visit: Visit, shown: BatchResult, name: str) -> Iterator[Update]:
        """The batch as another model reads it; what that one predicted before is shown again."""
        scene = visit.scene
        all_readings = (shown, *scene.readings)
        others = tuple(reading for reading in all_readings if reading.model != name)
        for reading in scene.readings:
            if reading.model == name:
                yield Update(replace(scene, content=reading, readings=others))
                return
        # One that was stopped has fewer pictures.
        largest = max(all_readings, key=lambda reading: len(reading.given.files))
        yield from self.read_batch(visit, lambda: largest.given, name, scene.source, others)

    def add_model(self, visit: Visit, name: str) -> Iterator[Update]:
        """One more model's answer for what is shown."""
        self.models.predictor(name)
        if name not in self._names(visit):
            visit.added = [*visit.added, name][-MOST_ADDED:]
        visit.chosen = name
        scene = visit.scene
        if isinstance(scene.content, Answer) and scene.smear is None:
            rows = [row for row in scene.content.rows if row.model != name]
            rows.append(ask(scene.content.picture, self.models, name))
            yield Update(replace(scene, content=replace(scene.content, rows=tuple(rows))))
            yield from self.open_row(visit, len(rows) - 1)
        elif scene.content is not None:
            yield from self.read_by(visit, name)
        else:
            yield from self.open_example(visit, 1, name)

    def set_scale(self, visit: Visit, um_per_pixel: float | None) -> Iterator[Update]:
        """Read the smear again at another scale."""
        smear = visit.scene.showing(Smear)
        picture = replace(smear.picture, um_per_pixel=um_per_pixel, scale_set=um_per_pixel is not None)
        reading = self._with_whole_picture(visit, read_smear(self.models, picture, smear.reading.model))
        # The synthetic smear at another scale is the visitor's own. It keeps its number, so that Back finds it.
        yield Update(Scene(reading, number=visit.scene.number))

    def save(self, visit: Visit, kind: str) -> Iterator[Update]:
        """What is shown as a file of that kind."""
        content = visit.scene.content
        if isinstance(content, Smear):
            file = save_smear(kind, content)
        elif isinstance(content, BatchResult):
            in_words = [outcome_text(row.prediction.outcome) for row in content.rows]
            file = csv_file("leukoscope-cells.csv", {**columns(content), "outcome": in_words})
        else:
            row = visit.scene.row
            shows_map = chosen_view(row, visit.scene.view).name == "map"
            file = save_row(row, visit.scene.label, with_map=shows_map)
        sent = {**file._asdict(), "content": base64.b64encode(file.content).decode(), "number": visit.asked}
        yield Update(parcel=f"<template>{escape(json.dumps(sent))}</template>")

    def offer_real_cells(self, visit: Visit) -> Iterator[Update]:
        """Real cells to pick from, of a data set that a model here was trained on."""
        # First those of the open model.
        names = dict.fromkeys([self.models.or_first(visit.scene.model), *self._names(visit)])
        data = data_of_real_cells(self.models, list(names))
        real_cells(str(data.hub_id))
        visit.real = data
        yield Update()

    def open_real_cell(self, visit: Visit, number: int) -> Iterator[Update]:
        """The real cell that is picked."""
        cells = []
        if visit.real:
            cells = real_cells(str(visit.real.hub_id))
        if number >= len(cells):
            raise LeukoscopeError("Real cells are offered again by the tile “real cells”.")
        cell = cells[number]
        picture = Picture.opened(cell.image, f"Real {cell.label}")
        yield from self.read_picture(visit, picture, source=f"real:{number}")


def _cell_of_batch(scene: Scene) -> str:
    """What the cell that is opened from a batch is called; "" for any other picture."""
    if isinstance(scene.behind, BatchResult) and scene.cell is not None:
        return batch_page.cell_name(scene.behind.rows[scene.cell])
    return ""


def _measures_of_cell(scene: Scene) -> str:
    """The area of the cell that is opened from a smear, and its nucleus; "" for any other picture."""
    if scene.smear_cell is None:
        return ""
    smear, cell = scene.smear_cell
    return smear_page.measures(smear.reading.cells[cell].cell)


def _next_cell(scene: Scene) -> int | None:
    """Number of the cell after the one that is opened from a smear or a batch; None for no other."""
    if isinstance(scene.behind, BatchResult) and scene.cell is not None:
        return batch_page.next_cell(scene.behind, scene.cell)
    if scene.smear_cell is None:
        return None
    smear, cell = scene.smear_cell
    return smear_page.next_cell(smear, cell)
