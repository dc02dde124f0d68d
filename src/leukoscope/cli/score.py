"""`leukoscope score` and `leukoscope patient`: predictions for many cells, one row a cell, a subject or a person."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import (
    AsJson,
    Backend,
    BatchSize,
    Device,
    Model,
    Quiet,
    SubjectPattern,
    TrainDir,
    open_predictor,
    print_error,
    progress_bar,
    shown_name,
)

if TYPE_CHECKING:
    from leukoscope.inference.patient import PatientPrediction
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.scoring import Scored
    from leukoscope.inference.sources import CellSource

REPORTS = (".html", ".pdf")


def score(
    model: Model,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="SOURCE",
            help="Folder of images; CSV or Parquet with a column of their paths (or, in Parquet, of the images); or a "
            "data set, as for train.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Table to write, one row a cell (.parquet, .csv, .json or .xlsx).")
    ],
    train_dir: TrainDir = None,
    subject_pattern: SubjectPattern = None,
    by_subject: Annotated[
        Path | None,
        typer.Option(
            "--by_subject",
            metavar="FILE",
            help="Write one row a subject: its prediction, means and shares (.csv, .parquet, .json or .xlsx).",
        ),
    ] = None,
    backend: Backend = "",
    device: Device = "auto",
    batch_size: BatchSize = 32,
    cells_per_shard: Annotated[
        int, typer.Option("--cells_per_shard", min=1, help="Cells that an interruption may cost, at most.")
    ] = 1024,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Predict for any number of cells; the same command again resumes an interrupted run.

    Under `accelerate launch -m leukoscope score …` the processes share the cells; the folder of the output must be one
    that all of them see.
    """
    from leukoscope.inference.scoring import Worker, check_by_subject, check_output, score_cells
    from leukoscope.inference.sources import open_source

    worker = Worker.from_environment()
    if worker.is_main:
        check_output(output)
    cells = open_source(source, train_dir=train_dir, subject_pattern=subject_pattern)
    if by_subject is not None:
        check_by_subject(by_subject, cells)
    if worker.is_main and cells.report and not quiet:
        typer.echo(cells.report, err=True)
    predictor = open_predictor(model, backend, device)
    with progress_bar("cells", disable=quiet or not worker.is_main) as show:
        scored = score_cells(
            predictor,
            cells,
            output,
            by_subject=by_subject,
            cells_per_shard=cells_per_shard,
            batch_size=batch_size,
            worker=worker,
            progress=show,
        )
    if scored is not None:
        _print_summary(scored, output, by_subject, as_json=as_json)


def _print_summary(scored: Scored, output: Path, by_subject: Path | None, *, as_json: bool) -> None:
    from leukoscope.inference.scoring import unreadable_list

    counts = {"cells": scored.cells, "refused": scored.refused, "abstained": scored.abstained}
    if scored.unreadable:
        typer.echo(f"{scored.unreadable:,} file(s) could not be read: {unreadable_list(output)}", err=True)
    if as_json:
        counts |= {"subjects": scored.subjects, "unreadable": scored.unreadable}
        typer.echo(json.dumps(counts | {"output": str(output), "notice": RESEARCH_NOTICE}, indent=1))
        return
    notes = {"out of distribution or no cell": scored.refused, "abstained from": scored.abstained}
    listed = "".join(f", {count:,} {note}" for note, count in notes.items() if count)
    typer.echo(f"{scored.cells:,} cells scored{listed}: {output}")
    if by_subject is not None:
        typer.echo(f"{scored.subjects:,} subjects: {by_subject}")
    typer.echo(RESEARCH_NOTICE)


def patient(
    model: Model,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of one person's cells, or of one folder a person; or a CSV or Parquet table with a column "
            "'subject', as for score.",
        ),
    ],
    subject_pattern: SubjectPattern = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a table, one row a person (.csv, .parquet, .json or .xlsx); or, of a folder of one person's "
            "cells, a report of two pages of A4 (.html, or .pdf where Chromium is installed).",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Stands in the report; without it the report names nobody.")] = "",
    backend: Backend = "",
    device: Device = "auto",
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Predict for each person, from the images of that person's cells."""
    from leukoscope.inference.patient import patient_rule, predict_patients
    from leukoscope.inference.scoring import check_table, patients_table, write_table
    from leukoscope.inference.sources import open_source

    is_report = output is not None and output.suffix.lower() in REPORTS
    if output is not None and not is_report:
        check_table(output, "--output")
    try:
        cells = open_source(source, subject_pattern=subject_pattern)
    except LeukoscopeError as error:
        # The message is that of `score`, where the source is a flag.
        raise LeukoscopeError(str(error).removeprefix("--input ")) from None
    predictor = open_predictor(model, backend, device)
    if output is not None and is_report:
        _write_report(predictor, cells, output, name)
        return
    patient_rule(predictor)  # raises now rather than after all cells are read
    with progress_bar("cells", disable=quiet) as show:
        persons, unreadable = predict_patients(predictor, cells, batch_size=batch_size, progress=show)
    if len(persons) == 1 and not persons[0].patient and Path(source).is_dir():
        persons = [persons[0].named(Path(source).resolve().name)]
    if output is not None:
        write_table(patients_table(persons), output)
    if as_json:
        typer.echo(json.dumps([person.to_dict() for person in persons], indent=1))
    else:
        _print_table(persons, model=str(predictor.release.name), output=output)
    for problem in unreadable:
        print_error(problem)
    if unreadable:
        raise typer.Exit(1)


def _write_report(predictor: Predictor, cells: CellSource, output: Path, name: str) -> None:
    from leukoscope.files import write_atomic
    from leukoscope.reports.patient_report import print_to_pdf, report_on

    html = report_on(predictor, cells, name=name)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".pdf":
        with tempfile.TemporaryDirectory() as folder:
            print_to_pdf(write_atomic(Path(folder) / "report.html", html), output)
    else:
        write_atomic(output, html)
    typer.echo(f"{output}\n{RESEARCH_NOTICE}")


def _print_table(persons: list[PatientPrediction], *, model: str, output: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    positive = persons[0].positive_label
    table = Table("person", "outcome", positive, "95 % interval", "cells", "refused", "unsure")
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    for column in table.columns[:2]:
        column.overflow = "fold"
    for person in persons:
        share = "–" if person.probability is None else f"{person.probability:.3f}"
        interval = "–" if person.interval is None else "{:.2f}–{:.2f}".format(*person.interval)
        counts = [str(number) for number in (person.cells, person.refused, person.abstained)]
        # Text, because square brackets would be read as markup.
        table.add_row(Text(shown_name(person.patient)), Text(person.outcome), share, interval, *counts)
    console = Console(highlight=False)
    console.print(table)
    for person in persons:
        if person.reason:
            console.print(Text(f"{shown_name(person.patient)}: {person.outcome}: {person.reason}"), soft_wrap=True)
    console.print(Text(f"rule: {persons[0].rule.text}"), soft_wrap=True)
    console.print(Text("The interval is of this person's cells alone; it does not say how persons differ."))
    if output is not None:
        console.print(Text(f"table: {output}"), soft_wrap=True)
    console.print(Text(f"model: {model}"), soft_wrap=True)
    console.print(Text(RESEARCH_NOTICE))
