"""One cell: give it, read the answer, and see it turned, changed and mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from leukoscope import DataError, LeukoscopeError
from leukoscope.demo.answers import Answer, Card, cell_card, other_lines, steps
from leukoscope.demo.components import CellStage, PictureStrip, VerdictCard
from leukoscope.demo.models import Models
from leukoscope.demo.pictures import CELL_NAMES, Picture, Stage, examples
from leukoscope.demo.stage import answered_stage, cell_stage
from leukoscope.demo.uploads import (
    HANDED_OVER,
    LOST_AT_RELOAD,
    OWN_NAME,
    SMEAR_PIXELS,
    Chosen,
    Visit,
    as_chosen,
    as_example,
)
from leukoscope.inference.prediction import NOT_A_CELL

CELL_WAITING = Card(waiting="Asking the model …")
PRIVATE_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STARTING_EVENT = {**PRIVATE_EVENT, "concurrency_limit": None, "trigger_mode": "always_last"}
ANSWERING_EVENT = {**PRIVATE_EVENT, "trigger_mode": "multiple"}


class Page(NamedTuple):
    """What the tabs have in common.

    Attributes:
        model: the chosen one.
        visit: the `Visit` of the session.
        cell, smear, batch: the strips, by which one tab opens another; each is rendered by its own.
    """

    models: Models
    model: gr.Dropdown
    visit: gr.State
    tabs: gr.Tabs
    cell: PictureStrip
    smear: PictureStrip
    batch: PictureStrip


def cell_tab(page: Page) -> None:
    """Build the tab."""
    with gr.Row(equal_height=True, elem_classes="stage-and-answer"):
        with gr.Column(scale=7, min_width=320):
            stage = CellStage(cell_stage(examples()[CELL_NAMES[0]]), elem_id="cell-stage", elem_classes="dark")
        with gr.Column(scale=6, min_width=320):
            card = VerdictCard(CELL_WAITING, elem_id="cell-card")
    page.cell.render()  # type: ignore[no-untyped-call]

    def start(strip: Any, model: str, visit: Visit) -> dict[Any, Any]:
        """Show the cell at once, with a kept answer or a card that waits; several files and zips go to their tab."""
        visit.asked["cell"] += 1
        visit.cell = None
        try:
            chosen = visit.chosen("cell", strip)
            if chosen.is_batch:
                return {page.visit: visit, **hand_over(page, visit, "batch", chosen)}
            picture = chosen_cell(chosen, visit)
        except LeukoscopeError as error:
            return {card: Card(problem=str(error)), stage: Stage(), page.visit: visit}
        kept = page.models.drawn.get((model, picture.example))
        if kept:
            return {card: kept[0], stage: kept[1], page.visit: visit}
        visit.cell = picture
        return {card: CELL_WAITING, stage: cell_stage(picture), page.visit: visit}

    def answer(strip: Any, model: str, visit: Visit) -> Iterator[dict[Any, Any]]:
        """What the model says, again and again as more is known; ends once something else is asked."""
        number = visit.asked["cell"]
        yield {page.visit: visit}  # outputs of a generator that yields nothing are emptied
        if visit.cell is None:
            return
        try:
            for answer, drawn_card, drawn_stage in answers(page.models, visit.cell, model):
                if visit.asked["cell"] != number:
                    return
                if answer.outcome == NOT_A_CELL and not (answer.picture.example or answer.picture.back):
                    yield hand_over(page, visit, "smear", as_chosen(strip))
                    return
                yield {card: drawn_card, stage: drawn_stage}
        except LeukoscopeError as error:
            if visit.asked["cell"] == number:
                yield {card: Card(problem=str(error))}

    changed = [page.cell.change, page.model.change]
    outputs = [card, stage, page.tabs, page.smear, page.batch, page.visit]
    started = gr.on(changed, start, [page.cell, page.model, page.visit], outputs, **STARTING_EVENT)
    queue: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "cell"}
    started.success(answer, [page.cell, page.model, page.visit], outputs, **queue, **ANSWERING_EVENT)
    gr.on([card.input, stage.input], chosen_model, page.model, page.model, **PRIVATE_EVENT)
    stage.submit(go_back, None, page.tabs, **PRIVATE_EVENT)


def answers(models: Models, picture: Picture, model: str) -> Iterator[tuple[Answer, Card, Stage]]:
    """What a model says of a cell as it becomes known, drawn; at last with a line of every other one, and kept.

    Raises:
        LeukoscopeError: the model gives no answer.
    """
    for answer in steps(models, picture, model):
        yield answer, cell_card(answer), answered_stage(answer)
    others = list(other_lines(models, picture, answer.model))
    card = cell_card(answer, others)
    stage = answered_stage(answer, others)
    if picture.example and model in models.names:
        models.drawn[model, picture.example] = (card, stage)
    yield answer, card, stage


def chosen_cell(chosen: Chosen, visit: Visit) -> Picture:
    """The chosen cell: an example, one that was opened from a smear or batch, or an upload.

    Raises:
        LeukoscopeError: the upload cannot be read, or the cell is not there any more.
    """
    if chosen.files:
        # As large as a smear may be: what is no cell is known once it was read.
        return visit.read(chosen.files[0], SMEAR_PIXELS)
    picture = examples().get(chosen.example) or visit.picture(chosen.example)
    if picture is None:
        raise DataError(LOST_AT_RELOAD)
    return picture


def hand_over(page: Page, visit: Visit, tab: str, chosen: Chosen) -> dict[Any, Any]:
    """Open another tab with what was given as a cell."""
    visit.handed[tab] = chosen
    strip = {"smear": page.smear, "batch": page.batch}[tab]
    return {page.tabs: gr.Tabs(selected=tab), strip: as_example(f"{HANDED_OVER}-{visit.asked['cell']}")}


def open_as_cell(page: Page, visit: Visit, picture: Picture, source: str, number: int) -> dict[Any, Any]:
    """Show a cell of a smear or batch in the tab of one cell; its source is an example, or "" for what was given."""
    key = f"{source or OWN_NAME}-cell-{number + 1}-{visit.asked[picture.back]}"
    visit.keep(key, picture)
    return {page.tabs: gr.Tabs(selected="cell"), page.cell: as_example(key)}


def pressed(event: gr.EventData, name: str, kind: Any) -> Any:
    """What the browser says of a press; None for anything else."""
    entry = event._data.get(name)
    return entry if isinstance(entry, kind) else None


def chosen_model(model: str, event: gr.EventData) -> str:
    """The model whose line was pressed."""
    return pressed(event, "model", str) or model


def go_back(event: gr.EventData) -> Any:
    """The tab from which a cell was opened."""
    return gr.Tabs(selected=pressed(event, "back", str))
