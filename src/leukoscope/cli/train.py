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
    """Train, write the model card, and publish the release if the flags say so."""
    from accelerate import PartialState

    from leukoscope.progress import quiet
    from leukoscope.reports.card import write_card
    from leukoscope.training.checkpoint import Interrupted
    from leukoscope.training.train import close_connection
    from leukoscope.training.train import train as train_network

    flags = config.run
    if flags.push_to_hub:
        from leukoscope.hub.publish import Destination, check_can_publish, publish

        to = Destination(flags.hub_model_id or "", private=flags.hub_private)
        check_can_publish(to)
    try:
        with quiet(flags.quiet):
            release = train_network(config) / "release"
    except Interrupted:
        if PartialState().is_main_process:
            print("resume with the same command and --resume_from_checkpoint latest", flush=True)
        close_connection()
        raise
    if PartialState().is_main_process:
        write_card(release, hub_id=flags.hub_model_id or "")
        print("release:   ", release, flush=True)
        if flags.push_to_hub:
            print("published:", publish(release, to))
    close_connection()
