"""What the tabs have in common: a question, its answer as it becomes known, and cells that open in the tab of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.demo.components import PictureStrip
from leukoscope.demo.models import Models
from leukoscope.demo.uploads import HANDED_OVER, OWN_NAME, Chosen, Visit, as_example

Update = dict[Any, Any]
"""Component → its new value."""
PRIVATE_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STARTING_EVENT = {**PRIVATE_EVENT, "concurrency_limit": None, "trigger_mode": "always_last"}
ANSWERING_EVENT = {**PRIVATE_EVENT, "trigger_mode": "multiple"}


class Page(NamedTuple):
    """The parts that more than one tab changes.

    Attributes:
        model: the chosen one.
        visit: the `Visit` of the session.
        strips: tab → where its pictures are chosen; each is rendered by its tab.
    """

    models: Models
    model: gr.Dropdown
    visit: gr.State
    tabs: gr.Tabs
    strips: dict[str, PictureStrip]


def add_question(
    page: Page,
    tab: str,
    card: Any,
    emptied: Update,
    start: Callable[[Chosen, str, Visit], Update],
    answer: Callable[..., Iterator[tuple[Any, Update]]],
    changed: Sequence[Any],
    options: Sequence[Any] = (),
    again: Sequence[Any] = (),
    at_once: int = 2,
) -> None:
    """Ask whenever something changes; an older question ends.

    Args:
        card: what is told problems.
        emptied: what else is changed, beside tabs and strips, as it is where there is nothing to ask about.
        start: chosen pictures, model and visit → what is shown at once; sets the visit's question.
        answer: question, model, visit and options → what is known, whose cells can be opened, and what is shown then.
        changed: events that start.
        options: inputs that the answer has beside the model.
        again: events after which the same question is answered anew.
        at_once: answers of all visitors.
    """

    def begin(strip: Any, model: str, visit: Visit) -> Update:
        """Show at once what is asked, or why it cannot be."""
        visit.ask(tab)
        try:
            return {page.visit: visit, **start(visit.chosen(tab, strip), model, visit)}
        except LeukoscopeError as error:
            return {page.visit: visit, **emptied, card: {"problem": str(error)}}

    def go_on(model: str, visit: Visit, *options: Any) -> Iterator[Update]:
        """The answer, again and again as more is known; ends once something else is asked."""
        number = visit.asked[tab]
        asked = visit.question.get(tab)
        yield {page.visit: visit}  # outputs of a generator that yields nothing are emptied
        if asked is None:
            return
        try:
            for result, update in answer(asked, model, visit, *options):
                if visit.asked[tab] != number:
                    return
                visit.result[tab] = result
                yield update
            if tab in visit.wanted:
                yield open_cell(page, visit, tab, visit.wanted.pop(tab))
        except LeukoscopeError as error:
            if visit.asked[tab] == number:
                yield {card: {"problem": str(error)}}

    changes = [card, *emptied, page.tabs, *page.strips.values(), page.visit]
    begun = gr.on(changed, begin, [page.strips[tab], page.model, page.visit], changes, **STARTING_EVENT)
    queue: dict[str, Any] = {"concurrency_limit": at_once, "concurrency_id": tab}
    for event in (begun, *again):
        event.success(go_on, [page.model, page.visit, *options], changes, **queue, **ANSWERING_EVENT)


def add_pressed_cells(page: Page, tab: str, pressed_events: Sequence[Any]) -> None:
    """Open a cell of a smear or batch that is pressed."""

    def press(visit: Visit, event: gr.EventData) -> Update:
        """Open the cell that was pressed."""
        return open_cell(page, visit, tab, pressed(event, "number", int))

    gr.on(pressed_events, press, page.visit, [page.tabs, page.strips["cell"], page.visit], **PRIVATE_EVENT)


def open_cell(page: Page, visit: Visit, tab: str, number: int | None) -> Update:
    """Show a cell of the visit's smear or batch in the tab of one cell; nothing where there is no such cell.

    Raises:
        gr.Error: its file was not kept.
    """
    result = visit.result.get(tab)
    if result is None or number is None:
        return {page.visit: visit}
    try:
        picture = result.cell_picture(number)
    except LeukoscopeError as error:
        raise gr.Error(str(error), print_exception=False) from None
    if picture is None:
        return {page.visit: visit}
    key = f"{visit.question[tab].example or OWN_NAME}-cell-{number + 1}-{visit.asked[tab]}"
    visit.keep(key, picture)
    return {page.tabs: gr.Tabs(selected="cell"), page.strips["cell"]: as_example(key)}


def hand_over(page: Page, visit: Visit, tab: str, chosen: Chosen) -> Update:
    """Open another tab with what was given as a cell."""
    visit.handed[tab] = chosen
    return {page.tabs: gr.Tabs(selected=tab), page.strips[tab]: as_example(f"{HANDED_OVER}-{visit.asked['cell']}")}


def pressed(event: gr.EventData, name: str, kind: Any) -> Any:
    """What the browser says of a press; None for anything else."""
    entry = event._data.get(name)
    return entry if isinstance(entry, kind) else None


def chosen_model(model: str, event: gr.EventData) -> str:
    """The model whose line was pressed."""
    return pressed(event, "model", str) or model
