"""`leukoscope experiment …`: whole protocols of many training runs, and releases compared with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import AsJson
from leukoscope.cli.release import FieldsDir, HealthyDir, OtherDir, assess_on, framed, open_release

if TYPE_CHECKING:
    from leukoscope.evaluation.evaluate import ModelPredictions


def protocol(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the release to write.")],
    fields_dir: FieldsDir = None,
    other_dir: OtherDir = None,
    healthy_dir: HealthyDir = None,
) -> None:
    """Measure a recipe on unseen subjects, then train its release. Takes the flags of train (--num_folds …) as well.

    Finished runs are kept, so the same command resumes an interrupted protocol.
    """
    from accelerate import PartialState

    from leukoscope.experiments.protocol import check_release_folder, compose_release, measure_tta_gain, run_protocol
    from leukoscope.models.release_files import read_release
    from leukoscope.reports.card import read_template
    from leukoscope.training.config import parse_config

    # Checked now rather than after hours of training.
    check_release_folder(output, flag="--output")
    read_template()
    config = parse_config(ctx.args)
    runs = run_protocol(config)
    if PartialState().is_main_process:
        compose_release(runs, output)
        data = config.data
        cells = framed(
            read_release(output).preprocessing,
            data.dataset_name,
            Path(data.train_dir) if data.train_dir else None,
            data.subject_pattern,
            Path(data.subject_csv) if data.subject_csv else None,
        )
        measure_tta_gain(runs, output, cells)
        assess_on(cells, output, fields_dir, other_dir, healthy_dir)


def leakage(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="FILE", help="JSON file for the comparison.")],
    seeds: Annotated[int, typer.Option(help="How many splits by patient are made, each with its own seed.")] = 3,
) -> None:
    """Measure what splitting by image is worth: the same cells tested with their patients seen and unseen in training.

    Takes the flags of train (--recipe, --num_train_epochs, --max_train_samples …) as well. Finished runs are kept.
    """
    from accelerate import PartialState

    from leukoscope.experiments.leakage import measure_leakage
    from leukoscope.training.config import parse_config

    comparison = measure_leakage(parse_config(ctx.args), range(seeds), output)
    if PartialState().is_main_process:
        for name, spread in comparison["difference"].items():
            typer.echo(f"{name}: {spread['mean']:+.3f} ({spread['smallest']:+.3f} to {spread['largest']:+.3f})")
        typer.echo(f"{output}\n{RESEARCH_NOTICE}")


def ablation(
    ctx: typer.Context,
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="YAML: one `name: flags of train` a setting.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="JSON file for the comparison.")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Make this setting's runs and compare nothing; repeatable.")
    ] = None,
) -> None:
    """Compare settings by cross-validation on the same subjects; the first of the grid is the reference.

    Takes the flags of train that all settings share (--dataset_name, --num_folds, --max_train_samples …). Finished
    runs are kept, so the same command resumes an interrupted ablation, and machines that share --output_dir can share
    a grid: each makes the runs of some settings (--only), then one command without it compares them.
    """
    from accelerate import PartialState

    from leukoscope.experiments.ablation import ablate, ablation_settings, make_runs, read_grid
    from leukoscope.reports.tables import ablation_table

    settings = ablation_settings(ctx.args, read_grid(grid))
    if only:
        make_runs(settings, only)
        return
    comparison = ablate(settings, output)
    if PartialState().is_main_process:
        typer.echo(f"{ablation_table([comparison])}\n{output}\n{RESEARCH_NOTICE}")


def reproduce(
    ctx: typer.Context,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A prior_… recipe; repeatable (default: all rebuilt on the data set)."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="random|unseen", help="Split by image, or by subject (default: both).")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder with one JSON file a row.")] = Path(
        "results/prior"
    ),
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing: print the table of the rows there are.")
    ] = False,
) -> None:
    """Rebuild the prior systems: what their authors claim, what a split by image gives, what unseen patients give.

    Takes the flags of train (--dataset_name, --train_dir, --pretrained_weights …) as well. Rows that have their file
    are skipped and finished runs are kept, so the same command resumes an interrupted one.
    """
    if table:
        _print_table(output)
        return
    if not any(word.partition("=")[0] == "--dataset_name" for word in ctx.args):
        raise LeukoscopeError(
            "leukoscope experiment reproduce: name the cells, with --dataset_name cnmc2019 --train_dir DIR "
            "(prior_b_densenet201: ball4), or give --table"
        )
    from accelerate import PartialState

    from leukoscope.experiments import prior_systems as rows_of
    from leukoscope.training.config import parse_config

    rows = rows_of.prior_rows(parse_config(ctx.args), recipe or (), [protocol] if protocol else (), output)
    for file in rows_of.reproduce(rows):
        if PartialState().is_main_process:
            typer.echo(file)
    typer.echo(RESEARCH_NOTICE)


def _print_table(results: Path) -> None:
    from leukoscope.reports.tables import prior_notes, prior_table, read_results

    rows = read_results(results)
    typer.echo(f"{prior_table(rows)}\n\n{prior_notes(rows)}\n\n{RESEARCH_NOTICE}")


def leaderboard(
    releases: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Release folders, or Hub ids owner/name@revision.")
    ],
    evaluation: Annotated[
        str, typer.Option(metavar="NAME", help="Compare the predictions of this one.")
    ] = "subject_cv",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the comparison as an HTML page.")] = None,
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap samples.", min=0)] = 0,
) -> None:
    """Rank releases on the cells that all of them predicted for, with intervals for the differences between them."""
    from leukoscope.reports.leaderboard import COLUMNS, compare_releases, table_rows, verdict, write_board

    board = compare_releases([_answers(release, evaluation) for release in releases], seed=seed)
    if output is not None:
        write_board(output, board)
    if as_json:
        typer.echo(json.dumps(board, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(highlight=False), Table(*COLUMNS)
    for column in table.columns:
        # A cut-off interval would be of no use.
        column.overflow = "fold"
    for row in table_rows(board):
        table.add_row(*map(Text, row))
    console.print(table)
    for line in (f"{board['cells']:,} cells of {board['subjects']} subjects", verdict(board), *board["left_out"]):
        console.print(Text(line))
    for row in board["rows"]:
        if row["trust"]["verdict"] != "good":
            console.print(Text(f"{row['model']['name']}: {row['trust']['statement']}", "bold"))
    if output is not None:
        typer.echo(f"page: {output}")
    typer.echo(RESEARCH_NOTICE)


def _answers(release: str, evaluation: str) -> ModelPredictions:
    from leukoscope.models.release_files import CONFIG, METRICS, PREDICTIONS, folder_name
    from leukoscope.reports.leaderboard import recorded_predictions

    folder, name, revision = open_release(release, (CONFIG, METRICS, f"{PREDICTIONS}/*.parquet"))
    # The path of a local folder is private; its name is not.
    return recorded_predictions(folder, evaluation, name=name if revision else folder_name(folder), revision=revision)
