"""One cell: give it, read the answer, and see it turned, changed and mapped."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from leukoscope import DataError
from leukoscope.demo.answers import Answer, Card, cell_card, other_lines, steps
from leukoscope.demo.components import CellStage, VerdictCard
from leukoscope.demo.models import Models
from leukoscope.demo.page import PRIVATE_EVENT, Page, Update, add_question, chosen_model, hand_over, pressed
from leukoscope.demo.pictures import CELL_NAMES, Picture, Stage, examples
from leukoscope.demo.stage import answered_stage, cell_stage
from leukoscope.demo.uploads import LOST_AT_RELOAD, SMEAR_PIXELS, Chosen, Visit
from leukoscope.inference.prediction import NOT_A_CELL

CELL_WAITING = Card(waiting="Asking the model …")


def cell_tab(page: Page) -> None:
    """Build the tab."""
    with gr.Row(equal_height=True, elem_classes="stage-and-answer"):
        with gr.Column(scale=7, min_width=320):
            stage = CellStage(cell_stage(examples()[CELL_NAMES[0]]), elem_id="cell-stage", elem_classes="dark")
        with gr.Column(scale=6, min_width=320):
            card = VerdictCard(CELL_WAITING, elem_id="cell-card")
    strip = page.strips["cell"]
    strip.render()  # type: ignore[no-untyped-call]

    def start(chosen: Chosen, model: str, visit: Visit) -> Update:
        """Show the cell, with a kept answer or a card that waits; several files and zips go to their tab."""
        if chosen.is_batch:
            return hand_over(page, visit, "batch", chosen)
        picture = chosen_cell(chosen, visit)
        kept = page.models.drawn.get((model, picture.example))
        if kept:
            return {card: kept[0], stage: kept[1]}
        visit.given = chosen
        visit.question["cell"] = picture
        return {card: CELL_WAITING, stage: cell_stage(picture)}

    def answer(picture: Picture, model: str, visit: Visit) -> Iterator[tuple[None, Update]]:
        """What the model says; a smear goes to its tab."""
        for answer, drawn_card, drawn_stage in answers(page.models, picture, model):
            if answer.outcome == NOT_A_CELL and not (answer.picture.example or answer.picture.back):
                yield None, hand_over(page, visit, "smear", visit.given)
                return
            yield None, {card: drawn_card, stage: drawn_stage}

    add_question(page, "cell", card, {stage: Stage()}, start, answer, [strip.change, page.model.change])
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


def go_back(event: gr.EventData) -> gr.Tabs:
    """The tab from which a cell was opened."""
    return gr.Tabs(selected=pressed(event, "back", str))
