"""`leukoscope leaderboard`: releases side by side, from the answers that they bring along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE

if TYPE_CHECKING:
    from leukoscope.evaluation.answering import Answered


def leaderboard(
    releases: Annotated[
        list[str], typer.Argument(metavar="RELEASE", help="Release folders, or Hub ids owner/name[@revision].")
    ],
    evaluation: Annotated[str, typer.Option(metavar="NAME", help="Compare the answers of this one.")] = "subject_cv",
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the board as an HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    seed: Annotated[int, typer.Option(help="Of the intervals' draws.", min=0)] = 0,
) -> None:
    """Rank releases on the cells that all of them answered, with intervals for the differences between them."""
    from leukoscope.evaluation.leaderboard import COLUMNS, compare_releases, table_rows, verdict, write_board

    board = compare_releases([_answers(release, evaluation) for release in releases], seed=seed)
    if page is not None:
        write_board(page, board)
    if as_json:
        typer.echo(json.dumps(board, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(highlight=False), Table(*COLUMNS)
    for column in table.columns:
        # Cut off, an interval would be none.
        column.overflow = "fold"
    for row in table_rows(board):
        table.add_row(*map(Text, row))
    console.print(table)
    for line in (f"{board['cells']:,} cells of {board['subjects']} subjects", verdict(board), *board["left_out"]):
        console.print(Text(line))
    for row in board["rows"]:
        if row["trust"]["verdict"] != "good":
            console.print(Text(f"{row['model']['name']}: {row['trust']['statement']}", "bold"))
    if page is not None:
        typer.echo(f"page: {page}")
    typer.echo(RESEARCH_NOTICE)


def _answers(release: str, evaluation: str) -> Answered:
    from leukoscope.evaluation.leaderboard import recorded_answers
    from leukoscope.inference.hub_files import parse_hub_id, release_folder
    from leukoscope.models.release_files import CONFIG, METRICS, PREDICTIONS, folder_name

    folder = release_folder(release, (CONFIG, METRICS, f"{PREDICTIONS}/*.parquet"))
    if Path(release).exists():
        # Where a folder lies is private.
        return recorded_answers(folder, evaluation, name=folder_name(folder))
    return recorded_answers(folder, evaluation, name=parse_hub_id(release)[0], revision=folder.name)
