"""`leukoscope ablate`: settings of a recipe compared on patients nobody trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE


def ablate(
    ctx: typer.Context,
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="YAML: one `name: flags of train.py` a setting.")],
    results: Annotated[Path, typer.Option(metavar="FILE", help="JSON file for the comparison.")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Make this setting's runs and compare nothing; repeatable.")
    ] = None,
) -> None:
    """Compare settings by cross-validation on the same subjects; the first of the grid is what others are held against.

    Takes the flags of train.py that all settings share (--dataset_name, --num_folds, --max_train_samples …). Finished
    runs are kept, so an interrupted ablation goes on where it stopped, and machines that share --output_dir can share a
    grid: each makes the runs of some settings (--only), then one command without it compares them.
    """
    from accelerate import PartialState

    from leukoscope.hub.tables import ablation_table
    from leukoscope.training import ablation

    settings = ablation.ablation_settings(ctx.args, ablation.read_grid(grid))
    if only:
        ablation.make_runs(settings, only)
        return
    comparison = ablation.ablate(settings, results)
    if PartialState().is_main_process:
        typer.echo(f"{ablation_table([comparison])}\n{results}\n{RESEARCH_NOTICE}")
