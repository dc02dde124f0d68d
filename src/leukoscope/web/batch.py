"""The tab "Patients and batches": many pictures or one zip, predicted together, cell by cell and person by person.

The pictures are predicted once; sorting, subjects, operating points and exports are made from the predictions in the
visitor's session. The same steps answer the API at /batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.phantoms import PHANTOM_LABELS, draw_cell
from leukoscope.web import panels
from leukoscope.web.batch_files import MAX_FILES, Batch, Given, open_batch, subjects_of, suggested_pattern
from leukoscope.web.batch_panels import ORDERS, gallery, progress, report, subjects_found, thumbnail
from leukoscope.web.batch_results import (
    BatchResult,
    answer_batch,
    columns,
    figures,
    opened,
    save_persons,
    save_report,
    save_table,
    subject_rows,
)
from leukoscope.web.field_panels import CLICK
from leukoscope.web.look import examine
from leukoscope.web.one_cell import SESSION_SECONDS, View
from leukoscope.web.saving import save_button
from leukoscope.web.shelf import Shelf
from leukoscope.web.upload import files_upload, forget
from leukoscope.web.words import TOO_LONG_AGO, point_name

# A batch holds hundreds of megabytes while it is read.
LIMIT: dict[str, Any] = {"concurrency_id": "batch", "concurrency_limit": 2}
START_HINT = (
    f"Drop up to {MAX_FILES:,} pictures of single cells, or one zip of them, or try the sample: the predictions appear "
    "here. Persons come from the file names or folders; labels from the folders of a zip (ALL/…, HEM/…); both from a "
    "CSV with the columns file, label, subject."
)
MOST_PROBABLE = "most probable class"
SAMPLE_PERSONS = tuple((f"synthetic-{number + 1}", number) for number in range(3))
SAMPLE_CELLS = 24
MOST_PICTURED = 400
"""Rows of the table that show their cell; more would make the page heavy."""


def classify(
    shelf: Shelf, paths: list[str] | None, choice: str | None, pattern: str
) -> Generator[tuple[int, int], None, BatchResult]:
    """Predict everything uploaded and delete it, whatever happens.

    Yields:
        (done, total) files.

    Raises:
        LeukoscopeError: the files, the model or the pattern cannot be used.
    """
    try:
        if not paths:
            raise LeukoscopeError("files: none was sent; give pictures of single cells, or a zip of them")
        batch = open_batch(paths)
        return (yield from _predicted(shelf, batch, choice, pattern))
    finally:
        for path in paths or ():
            forget(Path(path))


def _predicted(
    shelf: Shelf, batch: Batch, choice: str | None, pattern: str
) -> Generator[tuple[int, int], None, BatchResult]:
    steps = answer_batch(shelf, batch, choice, pattern.strip())
    while True:
        try:
            yield next(steps), len(batch.files)
        except StopIteration as end:
            return end.value


@lru_cache(maxsize=1)
def sample_batch() -> Batch:
    """Cells of three synthetic persons, drawn by a program: each of one class, from no patient."""

    def draw(person: int, cell: int) -> bytes:
        label = PHANTOM_LABELS[person % len(PHANTOM_LABELS)]
        buffer = BytesIO()
        Image.fromarray(draw_cell(label, subject=person, cell=cell).image).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    return Batch(
        [
            Given(f"{name}/cell-{cell + 1:02d}.png", partial(draw, person, cell))
            for name, person in SAMPLE_PERSONS
            for cell in range(SAMPLE_CELLS)
        ]
    )


def build_tab(shelf: Shelf, model: gr.Dropdown, tabs: gr.Tabs, one_cell: View) -> None:
    """Add the tab to the Blocks being built.

    Args:
        tabs, one_cell: where a cell of the batch is opened.
    """
    with gr.Tab("Patients and batches", id="batch"):
        result = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = files_upload(label="Your cells", height=160, elem_id="batch-upload")
            with gr.Column(scale=3, min_width=280):
                pattern = gr.Textbox(
                    "",
                    label="Subject within the file name",
                    info="A regular expression; empty: suggested from the names. A CSV's column subject goes first",
                    elem_id="batch-pattern",
                )
                with gr.Row():
                    sample = gr.Button("Try a sample: three synthetic persons", size="sm", elem_id="batch-sample")
                    stop = gr.Button("Stop", size="sm", min_width=80, elem_id="batch-stop")
        answer = gr.HTML(panels.placeholder(START_HINT), js_on_load=CLICK, elem_id="batch-answer", padding=False)
        with gr.Column(visible=False) as shown:
            with gr.Row():
                for kind in ("CSV", "Parquet"):
                    save_button(
                        f"Save cells as {kind}", partial(save_table, kind), [result],
                        elem_id=f"save-batch-{kind.lower()}",
                    )  # fmt: skip
                save_button("Save persons as CSV", save_persons, [result], elem_id="save-persons")
            with gr.Row(visible=False) as reports:
                person = gr.Dropdown([], label="Report on", elem_id="report-person")
                name = gr.Textbox("", label="Name in the report", info="Empty: nobody is named", elem_id="report-name")
                save_button(
                    "Save the report", partial(_save_report, shelf), [result, person, name], elem_id="save-report"
                )
            with gr.Row():
                order = gr.Dropdown(list(ORDERS), value=next(iter(ORDERS)), label="Show first", elem_id="batch-order")
                point = gr.Dropdown(
                    [(MOST_PROBABLE, "")], value="", label="Operating point of the cells", elem_id="batch-point"
                )
            pictures = gr.HTML(js_on_load=CLICK, elem_id="batch-gallery", padding=False)
            table = gr.Dataframe(interactive=False, wrap=True, max_height=420, label="Every cell", buttons=[])
        _add_endpoint(shelf, model)
    page = _Page(result, answer, shown, reports, person, point, pictures, table, upload, pattern)
    _wire(shelf, model, page, order, sample, stop)
    _wire_click(shelf, page, tabs, one_cell)


def _save_report(shelf: Shelf, result: BatchResult, subject: str | None, name: str) -> Any:
    return save_report(shelf, result, subject or "", name)


@dataclass(frozen=True)
class _Page:
    """The tab's components, and what each shows for a result or a message."""

    result: gr.State
    answer: gr.HTML
    shown: gr.Column
    reports: gr.Row
    person: gr.Dropdown
    point: gr.Dropdown
    pictures: gr.HTML
    table: gr.Dataframe
    upload: gr.File
    pattern: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        return [
            self.result, self.answer, self.shown, self.reports, self.person, self.point, self.pictures, self.table,
            self.upload, self.pattern,
        ]  # fmt: skip

    def show(self, result: BatchResult, order: str, point: str = "") -> dict[Any, Any]:
        persons = [person.patient for person in result.persons()]
        known = point if point in result.points else ""
        points = [(MOST_PROBABLE, ""), *((point_name(one), one) for one in result.points)]
        return {
            self.result: result,
            self.answer: report(result, known),
            self.shown: gr.Column(visible=True),
            self.reports: gr.Row(visible=bool(persons)),
            self.person: gr.Dropdown(persons, value=persons[0] if persons else None),
            self.point: gr.Dropdown(points, value=known),
            self.pictures: gallery(result, order),
            self.table: gr.Dataframe(_table(result), datatype=_types(result)),
            self.upload: None,
        }

    def tell(self, text: str) -> dict[Any, Any]:
        gone = {self.result: None, self.pictures: "", self.upload: None}
        return {self.answer: text, self.shown: gr.Column(visible=False), self.table: gr.skip(), **gone}


def _table(result: BatchResult) -> dict[str, Any]:
    shares = [f"p_{label}" for label in result.classes]
    shown = {name: columns(result)[name] for name in ("file", "subject", "label", "outcome", *shares)}
    rows = zip(*shown.values(), strict=True)
    rounded = [[round(value, 3) if isinstance(value, float) else value for value in row] for row in rows]
    pictures = [thumbnail(row, 48) if i < MOST_PICTURED else "" for i, row in enumerate(result.rows)]
    return {"headers": ["cell", *shown], "data": [[cell, *row] for cell, row in zip(pictures, rounded, strict=True)]}


def _types(result: BatchResult) -> Any:
    return ["html", *["str"] * 4, *["number"] * len(result.classes)]


def _wire(
    shelf: Shelf, model: gr.Dropdown, page: _Page, order: gr.Dropdown, sample: gr.Button, stop: gr.Button
) -> None:
    """Connect what a visitor gives to what the page shows."""

    def predict(
        take: Callable[[], Batch], choice: str | None, wanted: str, first: str, point: str
    ) -> Iterator[dict[Any, Any]]:
        """Say whose cells these are, then how far the prediction is, then show it."""
        start = time.monotonic()
        try:
            batch = take()
            names = [file.name for file in batch.files]
            pattern = wanted.strip() or suggested_pattern(names)
            found = subjects_found(list(subjects_of(names, pattern, batch.subjects).values()), pattern)
            filled = {page.pattern: pattern, page.shown: gr.Column(visible=False)}
            yield {**filled, page.answer: progress(0, len(names), 0.0, found)}
            steps = _predicted(shelf, batch, choice, pattern)
            while True:
                try:
                    done, total = next(steps)
                except StopIteration as end:
                    result: BatchResult = end.value
                    break
                yield {page.answer: progress(done, total, time.monotonic() - start, found)}
            yield page.show(result.at_point(point), first, point)
        except LeukoscopeError as error:
            yield page.tell(panels.message("This did not work", str(error)))

    def on_upload(
        paths: list[str] | None, choice: str | None, wanted: str, first: str, point: str
    ) -> Iterator[dict[Any, Any]]:
        if paths is None:
            yield {page.upload: None}
            return
        try:
            yield from predict(partial(open_batch, paths), choice, wanted, first, point)
        finally:
            for path in paths:
                forget(Path(path))

    def on_sample(choice: str | None, first: str, point: str) -> Iterator[dict[Any, Any]]:
        yield from predict(sample_batch, choice, "", first, point)

    def on_pattern(result: BatchResult | None, wanted: str, first: str, point: str) -> dict[Any, Any]:
        if result is None:
            return {page.result: None}
        try:
            return page.show(result.with_subjects(wanted.strip()), first, point)
        except LeukoscopeError as error:
            return {page.answer: panels.message("This pattern cannot be used", str(error))}

    def on_point(result: BatchResult | None, first: str, point: str) -> dict[Any, Any]:
        if result is None:
            return page.tell(panels.placeholder(TOO_LONG_AGO))
        return page.show(result.at_point(point), first, point)

    def on_order(result: BatchResult | None, first: str) -> str:
        return gallery(result, first) if result else panels.placeholder(TOO_LONG_AGO)

    def on_stop() -> dict[Any, Any]:
        return page.tell(panels.placeholder("Stopped. Nothing of it was kept."))

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # "multiple": after a stop, Gradio's page still takes the stopped one for running and would pass over a click.
    runs: dict[str, Any] = {**hidden, **LIMIT, "trigger_mode": "multiple"}
    given = [page.pattern, order, page.point]
    running: list[Any] = [
        page.upload.upload(on_upload, [page.upload, model, *given], page.outputs, **runs),
        sample.click(on_sample, [model, order, page.point], page.outputs, **runs),
    ]
    stop.click(on_stop, None, page.outputs, cancels=running, **hidden)
    page.pattern.submit(on_pattern, [page.result, *given], page.outputs, **hidden)
    page.point.input(on_point, [page.result, order, page.point], page.outputs, **hidden)
    order.input(on_order, [page.result, order], page.pictures, **hidden)


def _wire_click(shelf: Shelf, page: _Page, tabs: gr.Tabs, one_cell: View) -> None:
    """Connect a dot or a thumbnail to the tab "One cell"."""

    def on_cell(result: BatchResult | None, opacity: float, point: str | None, picked: gr.EventData) -> dict[Any, Any]:
        if result is None:
            return {one_cell.answer: panels.placeholder(TOO_LONG_AGO)}
        try:
            row = result.rows[picked.index]
            return one_cell.show(examine(shelf, opened(row), row.name, result.model), opacity, point or "")
        except LeukoscopeError as error:
            return one_cell.tell(panels.message("This did not work", str(error)))

    hidden: dict[str, Any] = {"api_visibility": "private"}
    shown = [page.result, one_cell.opacity, one_cell.point]
    for component in (page.answer, page.pictures):
        # Shown first, so that the tab does not seem dead while the model predicts.
        component.select(lambda: gr.Tabs(selected="one_cell"), None, tabs, show_progress="hidden", **hidden)
        component.select(on_cell, shown, one_cell.outputs, show_progress_on=[one_cell.answer], **hidden)


def _add_endpoint(shelf: Shelf, model: gr.Dropdown) -> None:
    """The named endpoint /batch: files, model, pattern → every answer, subjects and figures as JSON."""

    def batch(files: list[str] | None, model: str | None, subject_pattern: str = "") -> dict[str, Any]:
        """Classify many cells. `files` are pictures, zips of them, and CSVs with the columns file, label, subject."""
        try:
            result = finished(classify(shelf, files, model, subject_pattern))
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        named = columns(result)
        judged = figures(result)
        return {
            "cells": [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)],
            "subjects": [list(row) for row in subject_rows(result)],
            "patients": [person.to_dict() for person in result.persons()],
            "figures": [list(row) for row in judged.rows] if judged else [],
            "notes": [*(judged.notes if judged else ()), *result.refused],
            "notice": RESEARCH_NOTICE,
        }

    with gr.Group(visible=False):
        inputs = [files_upload(label="files"), model, gr.Textbox("", label="subject_pattern")]
        gr.Button("batch").click(batch, inputs, gr.JSON(label="answers"), api_name="batch", **LIMIT)


def finished(steps: Generator[Any, None, BatchResult]) -> BatchResult:
    """What a prediction gives when all its steps are taken."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
