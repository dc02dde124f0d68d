"""`leukoscope reproduce`: the prior systems rebuilt, trained and measured twice, and the table of what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError


def reproduce(
    ctx: typer.Context,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A prior_… recipe; repeatable (default: all rebuilt on the data set)."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="random|unseen", help="Split by image, or by subject (default: both).")
    ] = None,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Folder with one JSON file a row.")] = Path(
        "results/prior"
    ),
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing: print the table of the rows there are.")
    ] = False,
) -> None:
    """Rebuild the prior systems: what their authors claim, what a split by image gives, what unseen patients give.

    Takes the flags of train.py (--dataset_name, --train_dir, --pretrained_weights …) as well. Rows that have their file
    are skipped and finished runs kept, so an interrupted command goes on where it stopped.
    """
    if table:
        _print_table(results)
        return
    if not any(word.partition("=")[0] == "--dataset_name" for word in ctx.args):
        raise LeukoscopeError(
            "leukoscope reproduce: name the cells, with --dataset_name cnmc2019 --train_dir DIR (prior_b_densenet201: "
            "ball4), or ask for --table"
        )
    from accelerate import PartialState

    from leukoscope.training import reproduce as rows_of
    from leukoscope.training.config import parse_config

    rows = rows_of.prior_rows(parse_config(ctx.args), recipe or (), [protocol] if protocol else (), results)
    for file in rows_of.reproduce(rows):
        if PartialState().is_main_process:
            typer.echo(file)
    typer.echo(RESEARCH_NOTICE)


def _print_table(results: Path) -> None:
    from leukoscope.hub.tables import prior_notes, prior_table, read_results

    rows = read_results(results)
    typer.echo(f"{prior_table(rows)}\n\n{prior_notes(rows)}\n\n{RESEARCH_NOTICE}")
