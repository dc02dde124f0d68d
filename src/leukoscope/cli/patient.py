"""`leukoscope patient`: one prediction for each subject, from the images of that subject's cells."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import flags
from leukoscope.cli.options import end_with, open_predictor, print_table, say, shown_name
from leukoscope.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from leukoscope.inference.subject import SubjectPrediction

REPORTS = (".html", ".pdf")


def patient(
    model: flags.Model,
    source: Annotated[
        str,
        Argument(
            metavar="SOURCE",
            help="Folder of one subject's cells, or of one folder per subject; or a CSV or Parquet table with a column "
            "'subject', as for score.",
        ),
    ],
    subject_pattern: flags.SubjectPattern = None,
    output: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Write a table, one row per subject (.csv, .parquet, .json or .xlsx); or, of a folder of one "
            "subject's cells, a report of two pages of A4 (.html, or .pdf where Chromium is installed).",
        ),
    ] = None,
    name: Annotated[str, Option(help="Stands in the report; without it the report names nobody.")] = "",
    backend: flags.Backend = "",
    precision: flags.Precision = "auto",
    device: flags.Device = "auto",
    batch_size: flags.BatchSize = 32,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Predict for each subject, from the images of that subject's cells."""
    from leukoscope.inference.scoring import TABLE_SUFFIXES, check_output, predict_subjects, subjects_table, write_table
    from leukoscope.inference.sources import open_source
    from leukoscope.inference.subject import SubjectRule

    kinds = (*TABLE_SUFFIXES, *REPORTS)
    if output is not None and output.suffix.lower() not in kinds:
        raise LeukoscopeError(
            f"--output {output}: is no kind of table or report written here; give a name that ends in "
            f"{', '.join(kinds)}"
        )
    report = output if output is not None and output.suffix.lower() in REPORTS else None
    if output is not None and report is None:
        check_output(output)
    try:
        cells = open_source(source, subject_pattern=subject_pattern)
    except LeukoscopeError as error:  # its message names the flag of `score`
        raise LeukoscopeError(str(error).removeprefix("--input ")) from None
    say(cells.report)
    predictor = open_predictor(model, backend, device, precision)
    if report is not None:
        from leukoscope.reports.subject_report import print_to_pdf, report_on

        html = report_on(predictor, cells, name=name, batch_size=batch_size)
        with disk_errors(f"--output {report}: cannot be written", "name another folder"):
            report.parent.mkdir(parents=True, exist_ok=True)
            if report.suffix.lower() == ".html":
                write_atomic(report, html)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    print_to_pdf(write_atomic(Path(folder) / "report.html", html), report)
        about = {"report": str(report), "notice": RESEARCH_NOTICE}
        typer.echo(json.dumps(about, indent=1) if as_json else "\n".join(about.values()))
        return
    SubjectRule.of_release(predictor.release)  # raises now rather than after all cells are read
    subjects, unreadable = predict_subjects(predictor, cells, batch_size=batch_size)
    if len(subjects) == 1 and not subjects[0].subject and Path(source).is_dir():
        subjects = [replace(subjects[0], subject=Path(source).resolve().name)]
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in subjects], indent=1))
    else:
        _print_subjects(subjects, model=predictor.release.name)
    if output is not None:
        with disk_errors(f"--output {output}: cannot be written", "name another folder"):
            write_table(subjects_table(subjects), output)
        if not as_json:
            typer.echo(f"table: {output}")
    end_with(unreadable)


def _print_subjects(subjects: list[SubjectPrediction], *, model: str) -> None:
    from leukoscope.reports.formatting import share, span

    rows = []
    for subject in subjects:
        counts = [str(number) for number in (subject.cells, subject.refused, subject.abstained)]
        figures = (subject.probability, subject.interval) if subject.is_result else (None, None)
        predicted = [subject.outcome, share(figures[0]), span(figures[1])]
        rows.append([shown_name(subject.subject), *predicted, *counts])
    positive = subjects[0].positive_label
    print_table(["subject", "outcome", positive, "95 % interval", "cells", "refused", "abstained"], rows, texts=2)
    for outcome in dict.fromkeys(subject.outcome for subject in subjects if subject.reason):
        first, *others = (subject for subject in subjects if subject.outcome == outcome)
        likewise = f"; likewise {len(others)} more" if others else ""
        typer.echo(f"{shown_name(first.subject)}: {outcome}: {first.reason}{likewise}")
    typer.echo(f"rule: {subjects[0].rule.text}")
    typer.echo("The interval is of this subject's cells alone; it does not say how subjects differ.")
    typer.echo(f"model: {model}\n{RESEARCH_NOTICE}")
