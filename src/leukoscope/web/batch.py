"""The tab "A batch": many pictures or one zip, answered together; a gallery, tables, figures and files to keep.

The pictures are asked about once; sorting, subjects and exports are made from the answers in the visitor's session. The
same steps answer the API at /batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.web import panels
from leukoscope.web.batch_files import MAX_FILES, open_batch
from leukoscope.web.batch_panels import ORDERS, gallery, report
from leukoscope.web.batch_results import BatchResult, answer_batch, columns, figures, save_table, subject_rows
from leukoscope.web.one_cell import SESSION_SECONDS
from leukoscope.web.saving import save_button
from leukoscope.web.shelf import Shelf
from leukoscope.web.upload import files_upload, forget
from leukoscope.web.words import TOO_LONG_AGO

# A batch holds hundreds of megabytes while it is read.
LIMIT: dict[str, Any] = {"concurrency_id": "batch", "concurrency_limit": 2}
START_HINT = (
    f"Drop up to {MAX_FILES} pictures of single cells, or one zip of them: the answers appear here. Labels come from "
    "the folders of a zip (ALL/…, HEM/…) or from a CSV with the columns file, label, subject."
)


def classify(
    shelf: Shelf, paths: list[str] | None, choice: str | None, pattern: str, tell: Callable[[float], None]
) -> BatchResult:
    """Answer everything uploaded and delete it, whatever happens.

    Args:
        tell: is given the share that is done.

    Raises:
        LeukoscopeError: the files, the model or the pattern cannot be used.
    """
    try:
        if not paths:
            raise LeukoscopeError("files: none was sent; give pictures of single cells, or a zip of them")
        return answer_batch(shelf, open_batch(paths), choice, pattern.strip(), tell)
    finally:
        for path in paths or ():
            forget(Path(path))


def build_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built."""
    with gr.Tab("A batch", id="batch"):
        result = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = files_upload(label="Your cells", height=160, elem_id="batch-upload")
            with gr.Column(scale=3, min_width=280):
                pattern = gr.Textbox(
                    "",
                    label="Subject within the file name",
                    info="A regular expression, such as ^UID_(H?\\d+)_ for C-NMC; a CSV's column subject goes first",
                    elem_id="batch-pattern",
                )
        answer = gr.HTML(panels.placeholder(START_HINT), elem_id="batch-answer", padding=False)
        with gr.Column(visible=False) as shown:
            with gr.Row():
                for kind in ("CSV", "Parquet"):
                    save_button(
                        f"Save as {kind}", partial(save_table, kind), [result], elem_id=f"save-batch-{kind.lower()}"
                    )
            order = gr.Dropdown(list(ORDERS), value=next(iter(ORDERS)), label="Show first", elem_id="batch-order")
            pictures = gr.HTML(elem_id="batch-gallery", padding=False)
            table = gr.Dataframe(interactive=False, wrap=True, max_height=420, label="Every answer", buttons=[])
        _add_endpoint(shelf, model)
    _wire(shelf, model, _Page(result, answer, shown, pictures, table, upload), pattern, order)


@dataclass(frozen=True)
class _Page:
    """The tab's components, and what each shows for a result or a message."""

    result: gr.State
    answer: gr.HTML
    shown: gr.Column
    pictures: gr.HTML
    table: gr.Dataframe
    upload: gr.File

    @property
    def outputs(self) -> list[Any]:
        return [self.result, self.answer, self.shown, self.pictures, self.table, self.upload]

    def show(self, result: BatchResult, order: str) -> dict[Any, Any]:
        return {
            self.result: result,
            self.answer: report(result),
            self.shown: gr.Column(visible=True),
            self.pictures: gallery(result, order),
            self.table: _table(result),
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
    return {"headers": list(shown), "data": rounded}


def _wire(shelf: Shelf, model: gr.Dropdown, page: _Page, pattern: gr.Textbox, order: gr.Dropdown) -> None:
    """Connect what a visitor gives to what the page shows."""

    def on_upload(
        paths: list[str] | None, choice: str | None, wanted: str, first: str, progress: gr.Progress = gr.Progress()
    ) -> dict[Any, Any]:
        if paths is None:
            return {page.upload: None}
        try:
            return page.show(classify(shelf, paths, choice, wanted, partial(progress, desc="Answering")), first)
        except LeukoscopeError as error:
            return page.tell(panels.message("This did not work", str(error)))

    def on_pattern(result: BatchResult | None, wanted: str, first: str) -> dict[Any, Any]:
        if result is None:
            return {page.result: None}
        try:
            return page.show(result.with_subjects(wanted.strip()), first)
        except LeukoscopeError as error:
            return {page.answer: panels.message("This pattern cannot be used", str(error))}

    def on_order(result: BatchResult | None, first: str) -> str:
        return gallery(result, first) if result else panels.placeholder(TOO_LONG_AGO)

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [page.answer]}
    page.upload.upload(on_upload, [page.upload, model, pattern, order], page.outputs, **hidden, **LIMIT)
    pattern.submit(on_pattern, [page.result, pattern, order], page.outputs, **hidden)
    order.input(on_order, [page.result, order], page.pictures, api_visibility="private", show_progress="hidden")


def _add_endpoint(shelf: Shelf, model: gr.Dropdown) -> None:
    """The named endpoint /batch: files, model, pattern → every answer, subjects and figures as JSON."""

    def batch(files: list[str] | None, model: str | None, subject_pattern: str = "") -> dict[str, Any]:
        """Classify many cells. `files` are pictures, zips of them, and CSVs with the columns file, label, subject."""
        try:
            result = classify(shelf, files, model, subject_pattern, lambda share: None)
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        named = columns(result)
        judged = figures(result)
        return {
            "cells": [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)],
            "subjects": [list(row) for row in subject_rows(result)],
            "figures": [list(row) for row in judged.rows] if judged else [],
            "notes": [*(judged.notes if judged else ()), *result.refused],
            "notice": RESEARCH_NOTICE,
        }

    with gr.Group(visible=False):
        inputs = [files_upload(label="files"), model, gr.Textbox("", label="subject_pattern")]
        gr.Button("batch").click(batch, inputs, gr.JSON(label="answers"), api_name="batch", **LIMIT)
