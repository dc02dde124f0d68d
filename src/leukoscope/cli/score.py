"""`leukoscope score`: every cell of a folder, a table or a data set predicted into one table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE

if TYPE_CHECKING:
    from leukoscope.inference.score_tables import Scored


def score(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Release folder, or Hub id owner/name or owner/name@revision.")
    ],
    cells: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="SOURCE",
            help="Folder of images; CSV or Parquet with a column of their paths (or, in Parquet, of the images); or a "
            "data set, as for train.py.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Table to write, one row a cell (.parquet, .csv, .json or .xlsx).")
    ],
    train_dir: Annotated[
        Path | None, typer.Option("--train_dir", metavar="DIR", help="Local folder of the data set.")
    ] = None,
    subject_pattern: Annotated[
        str | None,
        typer.Option("--subject_pattern", metavar="REGEX", help="Names a file's subject by its path, as for train.py."),
    ] = None,
    by_subject: Annotated[
        Path | None,
        typer.Option(
            "--by_subject",
            "--by-subject",
            metavar="FILE",
            help="Write one row a subject: its prediction, means and shares (.csv, .parquet, .json or .xlsx).",
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="auto|openvino|onnx|torch", help="Who computes the network (default: auto).")
    ] = "",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Cells answered at once.")] = 32,
    cells_per_shard: Annotated[
        int, typer.Option("--cells_per_shard", min=1, help="Cells that an interruption may cost, at most.")
    ] = 1024,
) -> None:
    """Score any number of cells; the same command again goes on with an interrupted run.

    Under `accelerate launch -m leukoscope score …` the processes share the cells; the folder of the output must be one
    that all of them see.
    """
    from leukoscope.inference.predictor import Predictor, default_backend
    from leukoscope.inference.score_sources import open_source
    from leukoscope.inference.scoring import Worker, check_by_subject, check_output, score_cells

    worker = Worker.from_environment()
    if worker.is_main:
        check_output(output)
    source = open_source(cells, train_dir=train_dir, subject_pattern=subject_pattern)
    if by_subject is not None:
        check_by_subject(by_subject, source)
    if worker.is_main and source.report:
        typer.echo(source.report, err=True)
    backend = backend or default_backend()
    predictor = Predictor.from_pretrained(model, backend=backend, device=computing_device(backend))
    with progress_bar(worker.is_main) as show:
        scored = score_cells(
            predictor,
            source,
            output,
            by_subject=by_subject,
            cells_per_shard=cells_per_shard,
            batch_size=batch_size,
            worker=worker,
            progress=show,
        )
    if scored is not None:
        _print_summary(scored, output, by_subject)


def computing_device(backend: str) -> str:
    """This process's GPU where torch may compute on one; torch, slow to load, is asked only where a driver is found."""
    if backend not in ("auto", "torch"):
        return "cpu"
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or shutil.which("nvidia-smi") is None:
        return "cpu"
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


@contextmanager
def progress_bar(wanted: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with the time that is left, drawn when the value is called with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not wanted) as bars:
        bar = bars.add_task("", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _print_summary(scored: Scored, output: Path, by_subject: Path | None) -> None:
    from leukoscope.inference.scoring import unreadable_list

    notes = (f"{scored.refused:,} out of distribution or no cell", f"{scored.abstained:,} abstained from")
    counts = [note for note, count in zip(notes, (scored.refused, scored.abstained), strict=True) if count]
    typer.echo(f"{scored.cells:,} cells scored{''.join(f', {count}' for count in counts)}: {output}")
    if by_subject is not None:
        typer.echo(f"{len(scored.subjects):,} subjects: {by_subject}")
    if scored.unreadable:
        typer.echo(f"{scored.unreadable:,} file(s) could not be read: {unreadable_list(output)}", err=True)
    typer.echo(RESEARCH_NOTICE)
