"""`leukoscope train`: what train.py does, under the command's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from leukoscope.training.config import TrainingConfig

EXAMPLES = (
    "leukoscope train --output_dir run",
    "leukoscope train --dataset_name cnmc2019 --train_dir C-NMC_Leukemia --recipe densenet169_block2",
)


def train(ctx: typer.Context) -> None:
    """Train a classifier; without flags, a small one on synthetic cells. `leukoscope train --help` lists the flags.

    On several GPUs: `accelerate launch -m leukoscope train …`; with one process, `accelerate launch --quiet …` adds no
    traceback to an error.
    """
    from leukoscope.training.config import parse_config

    if {"-h", "--help"} & set(ctx.args):
        typer.echo("\n".join(("Examples:", *EXAMPLES, "")))
    run(parse_config(ctx.args, command="leukoscope train"))


def run(config: TrainingConfig) -> None:
    """Train, as `leukoscope.api.run` does, and close the connection between the processes before they end."""
    from leukoscope import api
    from leukoscope.training.checkpoint import Interrupted
    from leukoscope.training.train import close_connection

    try:
        api.run(config)
    except Interrupted:
        close_connection()
        raise
    close_connection()
