"""Many cells: a plot by person, a table and a file of what one model says; a cell opens in its own tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd

from leukoscope.demo.components import PeoplePlot
from leukoscope.demo.files import read_folder, sample_batch, unpacked
from leukoscope.demo.models import Models
from leukoscope.demo.page import PRIVATE_EVENT, STARTING_EVENT, Page, Update, add_pressed_cells, add_question, open_cell
from leukoscope.demo.people import BatchResult, Plot, lines_of, plot_of, predict_batch
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
    strip = page.strips["batch"]
    strip.render()  # type: ignore[no-untyped-call]
    by_folder = gr.Checkbox(label="One folder a person, in what is given next", container=False, elem_id="by-folder")
    table = gr.Dataframe(
        interactive=False, max_height=360, show_search="filter", label="Every cell", visible=False, elem_id="cells"
    )

    def start(chosen: Chosen, model: str, visit: Visit) -> Update:
        """Note what is read now."""
        visit.is_batch_stopped = False
        visit.question["batch"] = chosen
        return {plot: Plot(title="Reading …", reading=True), **emptied}

    def read(
        chosen: Chosen, model: str, visit: Visit, folders_are_people: bool
    ) -> Iterator[tuple[BatchResult, Update]]:
        """The results so far, again and again, until they are stopped."""
        drawn_at = 0.0
        for batch in results(page.models, model, chosen, folders_are_people is True, visit):
            if time.monotonic() - drawn_at > SECONDS_BETWEEN or not batch.is_reading:
                drawn_at = time.monotonic()
                yield batch, {plot: plot_of(batch)}
        lines = pd.DataFrame(lines_of(batch))
        lines["outcome"] = lines["outcome"].map(words.outcome_text)
        columns = [*SHOWN_COLUMNS, *(f"p_{label}" for label in batch.release.labels)]
        yield batch, {table: gr.Dataframe(lines[columns].round(3), visible=True)}

    def press_row(visit: Visit, event: gr.SelectData) -> Update:
        """Open the cell of a row of the table, whatever its order."""
        batch = visit.result.get("batch")
        names = [cell.name for cell in batch.cells] if batch else []
        name = event.row_value[0]
        return open_cell(page, visit, "batch", names.index(name) if name in names else None)

    def other_model(model: str, visit: Visit) -> Any:
        """Say whose answers are shown: the files are deleted, so another model cannot be asked about them."""
        batch = visit.result.get("batch")
        if batch is None:
            return gr.skip()
        asked = words.short_name(batch.release.name)
        caveat = f"Answers of {asked}. Give the pictures again to ask {words.short_name(model)}."
        return plot_of(batch) | Plot(caveats=[caveat])

    def stop(visit: Visit) -> None:
        """Leave out what is not read yet."""
        visit.is_batch_stopped = True

    emptied = {table: gr.Dataframe(visible=False)}
    add_question(page, "batch", plot, emptied, start, read, [strip.change], options=[by_folder])
    add_pressed_cells(page, "batch", [plot.select])
    page.model.change(other_model, [page.model, page.visit], plot, **PRIVATE_EVENT)
    plot.stop(stop, page.visit, None, **STARTING_EVENT)
    table.select(press_row, page.visit, [page.tabs, page.strips["cell"], page.visit], **PRIVATE_EVENT)


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
