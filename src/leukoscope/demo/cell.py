"""One cell: give it, read the answer, and see it turned, changed and mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.demo.answers import Answer, Card, Row, cell_card, other_lines, steps
from leukoscope.demo.components import CellStage, PictureStrip, VerdictCard
from leukoscope.demo.models import Models
from leukoscope.demo.pictures import CELL_NAMES, SMEAR_NAME, Picture, Stage, example
from leukoscope.demo.stage import answered_stage, cell_stage
from leukoscope.demo.uploads import SMEAR_LIMIT, Chosen, Visit, as_chosen, as_example
from leukoscope.inference.prediction import NOT_A_CELL

PEOPLE_NAME = "people"
HANDED_TO_TAB = "handed"  # what another tab was given, as a strip calls it
TAB_NAMES = ("cell", "smear", "batch", "evidence")
CELL_WAITING = Card(waiting="Asking the model …")
LOST_AT_RELOAD = "Your picture was not kept when the page was loaded again. Give it again, or choose an example."
PRIVATE_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STARTING_EVENT = {**PRIVATE_EVENT, "concurrency_limit": None, "trigger_mode": "always_last"}
# The address names what can be opened again by it: of an own picture only that there was one.
KEEP_IN_ADDRESS = """(chosen, model) => {
  const address = new URL(location);
  const [example, , cell] = (chosen?.example ?? "").split("-");
  const values = {example, cell, model, own: chosen?.files?.length || example === "own" ? "1" : ""};
  for (const [name, value] of Object.entries(values)) {
    value && value !== "own" ? address.searchParams.set(name, value) : address.searchParams.delete(name);
  }
  history.replaceState(null, "", address);
}"""


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
    first = example(CELL_NAMES[0])
    assert first is not None
    with gr.Row(equal_height=True, elem_classes="stage-and-answer"):
        with gr.Column(scale=7, min_width=320):
            stage = CellStage(cell_stage(first), elem_id="cell-stage", elem_classes="dark")
        with gr.Column(scale=6, min_width=320):
            card = VerdictCard(CELL_WAITING, elem_id="cell-card")
    page.cell.place()

    def start(chosen: Any, visit: Visit) -> dict[Any, Any]:
        """Show the cell at once, and a card that waits; several files and zips go to their tab."""
        number = visit.ask("cell")
        visit.cell = None
        try:
            given = as_chosen(chosen)
            if given.is_batch:
                visit.handed = given
                batch = as_example(f"{HANDED_TO_TAB}-{number}")
                return {page.visit: visit, page.tabs: gr.Tabs(selected="batch"), page.batch: batch}
            visit.cell = open_cell(given, visit)
        except LeukoscopeError as error:
            return {card: Card(problem=str(error)), stage: Stage(), page.visit: visit}
        if visit.cell is None:
            return {card: Card(problem=LOST_AT_RELOAD), stage: Stage(), page.visit: visit}
        return {card: CELL_WAITING, stage: cell_stage(visit.cell), page.visit: visit}

    def answer(model: str, visit: Visit) -> Iterator[dict[Any, Any]]:
        """What the model says, again and again as more is known; ends once something else is asked."""
        number = visit.asked["cell"]
        picture = visit.cell
        if picture is None:
            return
        try:
            for answer, others, is_complete in answers(page.models, picture, model):
                if not visit.is_newest("cell", number):
                    return
                if answer.outcome == NOT_A_CELL and not (picture.example or picture.back):
                    visit.handed = picture
                    yield {page.tabs: gr.Tabs(selected="smear"), page.smear: as_example(f"{HANDED_TO_TAB}-{number}")}
                    return
                shown: dict[Any, Any] = {card: cell_card(answer, others, is_complete=is_complete)}
                if is_complete or not others:
                    shown[stage] = answered_stage(answer, others)
                yield shown
        except LeukoscopeError as error:
            if visit.is_newest("cell", number):
                yield {card: Card(problem=str(error))}

    chosen = [page.cell.change, page.model.change]
    gr.on(chosen, None, [page.cell, page.model], js=KEEP_IN_ADDRESS)
    started = gr.on(
        chosen, start, [page.cell, page.visit], [card, stage, page.visit, page.tabs, page.batch], **STARTING_EVENT
    )
    started.success(
        answer,
        [page.model, page.visit],
        [card, stage, page.tabs, page.smear],
        concurrency_limit=2,
        concurrency_id="cell",
        trigger_mode="multiple",
        **PRIVATE_EVENT,
    )
    gr.on([card.input, stage.input], chosen_model, page.model, page.model, **PRIVATE_EVENT)
    stage.submit(go_back, None, page.tabs, **PRIVATE_EVENT)


def answers(models: Models, picture: Picture, model: str) -> Iterator[tuple[Answer, list[Row], bool]]:
    """What a model says of a cell as it becomes known, then every other one, and whether that is all.

    Raises:
        LeukoscopeError: the model gives no answer.
    """
    model = models.checked(model)
    for answer in steps(models, picture, model):
        yield answer, [], False
    lines: list[Row] = []
    for line in other_lines(models, answer.picture, model):
        lines.append(line)
        yield answer, lines, False
    yield answer, lines, True


def open_cell(chosen: Chosen, visit: Visit) -> Picture | None:
    """The chosen cell: an example, one that was opened from a smear or batch, or an upload; None for a lost one.

    Raises:
        LeukoscopeError: the upload cannot be read.
    """
    if chosen.files:
        # As large as a smear may be: what is no cell is known once it was read.
        return visit.read(chosen.files[0], SMEAR_LIMIT)
    return example(chosen.example) or visit.picture(chosen.example)


def pressed(event: gr.EventData, name: str, kind: Any) -> Any:
    """What the browser says of a press; None for anything else."""
    entry = event._data.get(name) if isinstance(event._data, dict) else None
    return entry if isinstance(entry, kind) and not isinstance(entry, bool) else None


def chosen_model(model: str, event: gr.EventData) -> str:
    """The model whose line was pressed."""
    return pressed(event, "model", str) or model


def go_back(event: gr.EventData) -> Any:
    """The tab from which a cell was opened."""
    tab = pressed(event, "back", str)
    return gr.Tabs(selected=tab) if tab in TAB_NAMES else gr.skip()


def named_in_address(models: Models, request: gr.Request) -> tuple[Any, ...]:
    """What a page's address names: the strips' values, the model and the tab; by default the first example."""
    asked = request.query_params
    name = asked.get("example", "")
    number = asked.get("cell", "")
    cell = name if name in CELL_NAMES else CELL_NAMES[0]
    if asked.get("own") and not name:
        cell = "own"
    opened = as_example(f"{name}-open-{number}" if number.isdecimal() else name)
    tab = asked.get("tab") or {SMEAR_NAME: "smear", PEOPLE_NAME: "batch"}.get(name)
    try:
        model = models.checked(asked.get("model"))
    except LeukoscopeError:
        model = next(iter(models.names), "")
    return (
        as_example(cell),
        opened if name == SMEAR_NAME else gr.skip(),
        opened if name == PEOPLE_NAME else gr.skip(),
        model,
        gr.Tabs(selected=tab) if tab in TAB_NAMES else gr.skip(),
    )


ADDRESS_IS_READ = "() => { window.leukoscopeAddressIsRead = true; }"
"""Gradio selects the first tab before it asks for what the address names."""


def keep_tab(tab: str) -> str:
    """JavaScript that writes into the address which tab is open, once the page has read it."""
    name = json.dumps("" if tab == TAB_NAMES[0] else tab)
    return f"""() => {{
  if (!window.leukoscopeAddressIsRead) return;
  const address = new URL(location);
  {name} ? address.searchParams.set("tab", {name}) : address.searchParams.delete("tab");
  history.replaceState(null, "", address);
}}"""
