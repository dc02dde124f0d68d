"""`leukoscope data check`: what is in this folder, and can it be trained on?"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from leukoscope.cells.inspection import FolderReport

data = typer.Typer(help="Folders of cells.", no_args_is_help=True)


@data.callback()
def folders_of_cells() -> None:
    """Folders of cells: what they are, before anything is trained on them."""


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that a data set was unpacked to, or your own.")],
    subject_pattern: Annotated[
        str | None,
        typer.Option("--subject_pattern", metavar="REGEX", help="Class folders: names a file's subject by its path."),
    ] = None,
    subject_csv: Annotated[
        Path | None,
        typer.Option("--subject_csv", metavar="FILE", help="Class folders: CSV with the columns file,subject."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say which data set a folder holds, how many cells of each class and subject, and what is missing or odd.

    Reads names and file headers only; `leukoscope audit` looks at the pictures. Exit code: 0 the cells can be trained
    on, whatever is listed as odd; 1 they cannot.
    """
    from leukoscope.cells.inspection import inspect_folder
    from leukoscope.hub.shipped import training_command

    report = inspect_folder(folder, subject_pattern=subject_pattern, subject_csv=subject_csv)
    flags = ["--dataset_name", report.info.name, "--train_dir", str(folder)]
    flags += ["--subject_pattern", subject_pattern] if subject_pattern else []
    flags += ["--subject_csv", str(subject_csv)] if subject_csv else []
    if as_json:
        typer.echo(json.dumps(_as_dict(report, flags), indent=1, ensure_ascii=False))
        return
    _print_tables(report)
    for problem in report.problems:
        typer.echo(f"odd: {problem}")
    typer.echo(f"licence: {report.info.licence}")
    typer.echo(f"look closer: leukoscope audit {shlex.join(flags)}")
    typer.echo(f"train on it: {training_command()} {shlex.join([*flags, *report.split_flags])}")


def _as_dict(report: FolderReport, flags: list[str]) -> dict[str, Any]:
    info = report.info
    return {
        "dataset_name": info.name,
        "title": info.title,
        "licence": info.licence,
        "partitions": {name: dict(labels) for name, labels in report.partitions.items()},
        "subjects": {label: dict(cells) for label, cells in report.subjects.items()},
        "problems": list(report.problems),
        "flags": [*flags, *report.split_flags],
    }


def _print_tables(report: FolderReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console, labels = Console(highlight=False), report.info.labels
    typer.echo(report.info.title)
    table = Table("cells", *labels)
    for name, counts in sorted(report.partitions.items()):
        table.add_row(name or "all", *(f"{counts.get(label, 0):,}" for label in labels))
    console.print(table)
    if any(report.subjects.values()):
        table = Table("class", "subjects", "cells of one: fewest", "median", "most")
        for label, cells in report.subjects.items():
            spread = [min(cells.values()), median(cells.values()), max(cells.values())] if cells else []
            table.add_row(label, str(len(cells)), *(f"{number:,g}" for number in spread))
        console.print(table)
