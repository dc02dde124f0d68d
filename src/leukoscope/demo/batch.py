"""Many cells: a plot by person, a table and a file of what one model says; a cell opens in its own tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd

from leukoscope import LeukoscopeError
from leukoscope.demo.cell import ANSWERING_EVENT, PRIVATE_EVENT, STARTING_EVENT, Page, open_as_cell, pressed
from leukoscope.demo.components import PeoplePlot
from leukoscope.demo.files import read_folder, sample_batch, unpacked
from leukoscope.demo.models import Models
from leukoscope.demo.people import MAX_BATCH_KEPT, BatchResult, Plot, lines_of, opened, plot_of, predict_batch
from leukoscope.demo.uploads import Chosen, Visit
from leukoscope.reports import words

SECONDS_BETWEEN = 0.7  # two steps that are shown: a plot of many cells is large
INVITATION = Plot(
    title="Many cells, and whose they are",
    notes=[
        "Give pictures of single cells, a folder or a zip. A metadata.csv among them names people (columns file_name "
        "and subject) and, where known, classes (label)."
    ],
)
SHOWN_COLUMNS = ["file", "subject", "outcome", "label"]  # of the table on the page, before the probabilities


def batch_tab(page: Page) -> None:
    """Build the tab."""
    plot = PeoplePlot(INVITATION, elem_id="people")
    page.batch.render()  # type: ignore[no-untyped-call]
    by_folder = gr.Checkbox(label="One folder a person, in what is given next", container=False, elem_id="by-folder")
    table = gr.Dataframe(
        interactive=False, max_height=360, show_search="filter", label="Every cell", visible=False, elem_id="cells"
    )

    def start(strip: Any, visit: Visit) -> dict[Any, Any]:
        """Stop the batch before, and note what is read now."""
        visit.asked["batch"] += 1
        visit.batch = None
        visit.is_batch_stopped = False
        try:
            visit.batch_files = visit.chosen("batch", strip)
        except LeukoscopeError as error:
            visit.batch_files = None
            return {plot: Plot(problem=str(error)), page.visit: visit}
        return {plot: Plot(title="Reading …", reading=True), table: gr.Dataframe(visible=False), page.visit: visit}

    def read(model: str, folders_are_people: bool, visit: Visit) -> Iterator[dict[Any, Any]]:
        """The results so far, again and again, until they are stopped or something else is asked."""
        number = visit.asked["batch"]
        drawn_at = 0.0
        yield {page.visit: visit}  # outputs of a generator that yields nothing are emptied
        if visit.batch_files is None:
            return
        try:
            for batch in results(page.models, model, visit.batch_files, folders_are_people is True, visit):
                if visit.asked["batch"] != number:
                    return
                visit.batch = batch
                if time.monotonic() - drawn_at > SECONDS_BETWEEN or not batch.is_reading:
                    drawn_at = time.monotonic()
                    yield {plot: plot_of(batch)}
            lines = pd.DataFrame(lines_of(batch))
            lines["outcome"] = lines["outcome"].map(words.outcome_text)
            columns = [*SHOWN_COLUMNS, *(f"p_{label}" for label in batch.release.labels)]
            opened = open_cell(page, visit, visit.wanted.pop("batch", None))
            yield {table: gr.Dataframe(lines[columns].round(3), visible=True), **opened}
        except LeukoscopeError as error:
            if visit.asked["batch"] == number:
                yield {plot: Plot(problem=str(error))}

    def press(visit: Visit, event: gr.EventData) -> dict[Any, Any]:
        """Open the cell that was pressed."""
        return open_cell(page, visit, pressed(event, "number", int)) or gr.skip()

    def press_row(visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        """Open the cell of a row of the table, whatever its order."""
        for number, cell in enumerate(visit.batch.cells if visit.batch else ()):
            if [cell.name] == event.row_value[:1]:
                return open_cell(page, visit, number)
        return gr.skip()

    def other_model(model: str, visit: Visit) -> Any:
        """Say whose answers are shown: the files are deleted, so another model cannot be asked about them."""
        if visit.batch is None:
            return gr.skip()
        asked = words.short_name(visit.batch.release.name)
        caveat = f"Answers of {asked}. Give the pictures again to ask {words.short_name(model)}."
        return plot_of(visit.batch) | Plot(caveats=[caveat])

    def stop(visit: Visit) -> None:
        """Leave out what is not read yet."""
        visit.is_batch_stopped = True

    outputs = [plot, table, page.tabs, page.cell, page.visit]
    started = page.batch.change(start, [page.batch, page.visit], outputs, **STARTING_EVENT)
    queue: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "batch"}
    started.success(read, [page.model, by_folder, page.visit], outputs, **queue, **ANSWERING_EVENT)
    page.model.change(other_model, [page.model, page.visit], plot, **PRIVATE_EVENT)
    plot.select(press, page.visit, outputs, **PRIVATE_EVENT)
    plot.stop(stop, page.visit, None, **STARTING_EVENT)
    table.select(press_row, page.visit, outputs, **PRIVATE_EVENT)


def results(models: Models, model: str, chosen: Chosen, by_folder: bool, visit: Visit) -> Iterator[BatchResult]:
    """Read what was given; errors as of `unpacked`, `read_folder` and `predict_batch`."""
    number = visit.asked["batch"]

    def stopped() -> bool:
        return visit.is_batch_stopped or visit.asked["batch"] != number

    if not chosen.files:
        yield from predict_batch(models, model, lambda _: sample_batch(), stopped)
        return
    with unpacked(chosen.files) as folder:
        yield from predict_batch(models, model, partial(read_folder, folder, by_folder=by_folder), stopped)


def open_cell(page: Page, visit: Visit, number: int | None) -> dict[Any, Any]:
    """Show a cell of the visit's batch in the tab of one cell."""
    batch: BatchResult | None = visit.batch
    if batch is None or visit.batch_files is None or number is None or not 0 <= number < len(batch.cells):
        return {}
    cell = batch.cells[number]
    if not cell.content:
        raise gr.Error(
            f"{cell.name}: of a batch, {MAX_BATCH_KEPT // 2**20} MB of pictures are kept; send this one alone",
            print_exception=False,
        )
    return open_as_cell(page, visit, opened(cell.name, cell.content), visit.batch_files.example, number)
