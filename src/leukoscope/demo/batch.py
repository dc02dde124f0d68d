"""Many cells: a plot by person, a table and a file of what one model says; a cell opens in its own tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.demo.cell import HANDED_TO_TAB, PEOPLE_NAME, PRIVATE_EVENT, STARTING_EVENT, Page, pressed
from leukoscope.demo.components import PeoplePlot
from leukoscope.demo.files import read_folder, sample_batch, unpacked
from leukoscope.demo.models import Models
from leukoscope.demo.people import BatchResult, Plot, kept_picture, plot_of, predict_batch, table_of
from leukoscope.demo.uploads import Chosen, Visit, as_chosen, as_example

SECONDS_BETWEEN = 0.7  # two steps that are shown: a plot of many cells is large
INVITATION = Plot(
    title="Many cells, and whose they are",
    notes=[
        "Give pictures of single cells, a folder or a zip. A metadata.csv among them names people (columns file_name "
        "and subject) and, where known, classes (label)."
    ],
)
SHOWN_COLUMNS = ["file", "subject", "outcome", "label"]  # of the table that is shown, before the probabilities


def batch_tab(page: Page) -> None:
    """Build the tab."""
    plot = PeoplePlot(INVITATION, elem_id="people")
    page.batch.place()
    by_folder = gr.Checkbox(label="One folder a person", container=False, elem_id="by-folder")
    table = gr.Dataframe(
        interactive=False, max_height=360, show_search="filter", label="Every cell", visible=False, elem_id="cells"
    )

    def start(chosen: Any, visit: Visit) -> dict[Any, Any]:
        """Stop the batch before, and note what is read now."""
        visit.ask("batch")
        visit.batch = None
        visit.given = None
        try:
            given = as_chosen(chosen)
        except LeukoscopeError as error:
            return {plot: Plot(problem=str(error)), page.visit: visit}
        if given.example.startswith(HANDED_TO_TAB):
            given = visit.handed
        if not given.example and not given.files:
            return {page.visit: visit}
        visit.given = given
        return {plot: Plot(title="Reading …", reading=True), table: gr.Dataframe(visible=False), page.visit: visit}

    def read(model: str, folders_are_people: bool, visit: Visit) -> Iterator[dict[Any, Any]]:
        """The results so far, again and again, until they are stopped or something else is asked."""
        number = visit.asked.get("batch", 0)
        given = visit.given
        drawn_at = 0.0
        if given is None:
            return
        try:
            for batch in results(page.models, model, given, folders_are_people is True, visit):
                if not visit.is_newest("batch", number):
                    return
                visit.batch = batch
                if time.monotonic() - drawn_at > SECONDS_BETWEEN or not batch.is_reading:
                    drawn_at = time.monotonic()
                    yield {plot: plot_of(batch)}
            lines = table_of(visit.batch)
            columns = [*SHOWN_COLUMNS, *(name for name in lines.columns if name.startswith("p_"))]
            yield {table: gr.Dataframe(lines[columns].round(3), visible=True)}
            yield open_cell(page, visit, visit.wanted("batch", given)) or gr.skip()
        except LeukoscopeError as error:
            if visit.is_newest("batch", number):
                yield {plot: Plot(problem=str(error))}

    def press(visit: Visit, event: gr.EventData) -> dict[Any, Any]:
        """Open the cell that was pressed."""
        return open_cell(page, visit, pressed(event, "number", int)) or gr.skip()

    def press_row(visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        """Open the cell of a row of the table, whatever its order."""
        names = [cell.name for cell in visit.batch.cells] if visit.batch else []
        name = event.row_value[0] if event.row_value else ""
        return open_cell(page, visit, names.index(name) if name in names else None) or gr.skip()

    def stop(visit: Visit) -> None:
        """Leave out what is not read yet."""
        visit.stopped = visit.asked.get("batch", 0)

    started = page.batch.change(start, [page.batch, page.visit], [plot, table, page.visit], **STARTING_EVENT)
    started.success(
        read,
        [page.model, by_folder, page.visit],
        [plot, table, page.tabs, page.cell],
        concurrency_limit=2,
        concurrency_id="batch",
        trigger_mode="multiple",
        **PRIVATE_EVENT,
    )
    plot.select(press, page.visit, [page.tabs, page.cell], **PRIVATE_EVENT)
    plot.stop(stop, page.visit, None, **STARTING_EVENT)
    table.select(press_row, page.visit, [page.tabs, page.cell], **PRIVATE_EVENT)


def results(models: Models, model: str, given: Chosen, by_folder: bool, visit: Visit) -> Iterator[BatchResult]:
    """Read what was given; errors as of `unpacked`, `read_folder` and `predict_batch`."""
    number = visit.asked["batch"]

    def stopped() -> bool:
        return visit.stopped == number or not visit.is_newest("batch", number)

    if not given.files:
        yield from predict_batch(models, model, lambda _: sample_batch(), stopped)
        return
    with unpacked(given.files) as folder:
        yield from predict_batch(models, model, partial(read_folder, folder, by_folder=by_folder), stopped)


def open_cell(page: Page, visit: Visit, number: int | None) -> dict[Any, Any]:
    """Show a cell of the visit's batch in the tab of one cell."""
    if visit.batch is None or number is None:
        return {}
    try:
        picture = kept_picture(visit.batch, number)
    except LeukoscopeError as error:
        raise gr.Error(str(error), print_exception=False) from None
    is_example = visit.given is not None and not visit.given.files
    key = f"{PEOPLE_NAME if is_example else 'own'}-cell-{number + 1}-{visit.asked['batch']}"
    visit.keep(key, picture)
    return {page.tabs: gr.Tabs(selected="cell"), page.cell: as_example(key)}
