"""`leukoscope patient` and `report`: one prediction for a person, from the pictures of that person's cells."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.errors import say_error, shown_name
from leukoscope.cli.score import computing_device, progress_bar

if TYPE_CHECKING:
    from leukoscope.inference.patient import PatientPrediction
    from leukoscope.inference.score_sources import CellSource


def patient(
    cells: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of one person's cells, or of one folder a person; or a CSV or Parquet table with a column "
            "'subject', as for score.",
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Release folder, or Hub id owner/name or owner/name@revision.")
    ],
    subject_pattern: Annotated[
        str | None,
        typer.Option("--subject_pattern", metavar="REGEX", help="Names a file's subject by its path, as for train.py."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table, one row a person (.csv, .parquet, .json or .xlsx)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of a table.")] = False,
    backend: Annotated[
        str, typer.Option(metavar="auto|openvino|onnx|torch", help="Who computes the network (default: auto).")
    ] = "",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Cells predicted at once.")] = 32,
) -> None:
    """Predict for each person, from the pictures of that person's cells."""
    from leukoscope.inference.patient import patient_rule, predict_patients
    from leukoscope.inference.predictor import Predictor, default_backend
    from leukoscope.inference.score_tables import check_table, patients_table, write_table

    if output is not None:
        check_table(output, "--output")
    source = _opened(cells, subject_pattern)
    backend = backend or default_backend()
    predictor = Predictor.from_pretrained(model, backend=backend, device=computing_device(backend))
    patient_rule(predictor)  # refused before a bar is drawn
    with progress_bar() as show:
        persons, unreadable = predict_patients(predictor, source, batch_size=batch_size, progress=show)
    if len(persons) == 1 and not persons[0].patient and Path(cells).is_dir():
        persons = [persons[0].named(Path(cells).resolve().name)]
    if output is not None:
        write_table(patients_table(persons), output)
    if as_json:
        typer.echo(json.dumps([person.to_dict() for person in persons], indent=1))
    else:
        _print_table(persons, model=str(predictor.release.name), output=output)
    for problem in unreadable:
        say_error(problem)
    if unreadable:
        raise typer.Exit(1)


def report(
    cells: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder of one person's cells.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Release folder, or Hub id owner/name or owner/name@revision.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Page to write (.html; .pdf where Chromium is installed).")
    ],
    name: Annotated[str, typer.Option(help="Stands in the report; without it the report names nobody.")] = "",
    backend: Annotated[
        str, typer.Option(metavar="auto|openvino|onnx|torch", help="Who computes the network (default: auto).")
    ] = "",
) -> None:
    """Write a report on one person's cells: a page with nothing to fetch, two sides of A4 when printed."""
    from leukoscope.cells.files import write_whole
    from leukoscope.evaluation.patient_report import print_to_pdf, report_on
    from leukoscope.inference.predictor import Predictor, default_backend

    if output.suffix.lower() not in (".html", ".pdf"):
        raise LeukoscopeError(f"--output {output}: is no kind of report; give a name that ends in .html or .pdf")
    source = _opened(cells, None)
    backend = backend or default_backend()
    predictor = Predictor.from_pretrained(model, backend=backend, device=computing_device(backend))
    html = report_on(predictor, source, name=name)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".pdf":
        with tempfile.TemporaryDirectory() as folder:
            print_to_pdf(write_whole(Path(folder) / "report.html", html), output)
    else:
        write_whole(output, html)
    typer.echo(f"{output}\n{RESEARCH_NOTICE}")


def _opened(cells: str, subject_pattern: str | None) -> CellSource:
    from leukoscope.inference.score_sources import open_source

    try:
        return open_source(cells, subject_pattern=subject_pattern)
    except LeukoscopeError as error:
        # Of `score`, whose source is a flag.
        raise LeukoscopeError(str(error).removeprefix("--input ")) from None


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
