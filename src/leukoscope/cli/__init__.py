"""The command `leukoscope`: thin commands over the packages, one module for each group.

A command reads its flags, calls one package and prints the result; whatever it needs beyond typer and rich is imported
inside it, so that `leukoscope --help` is quick. Results go to stdout, problems to stderr.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE, ConfigError, __version__
from leukoscope.cli.audit import audit
from leukoscope.cli.cache import cache
from leukoscope.cli.evaluate import evaluate, protocol
from leukoscope.cli.options import CommandGroup
from leukoscope.cli.predict import patient, predict, score
from leukoscope.cli.release import card, export, list_releases, push, recalibrate, space
from leukoscope.cli.smear import smear
from leukoscope.files import resource_file
from leukoscope.progress import print_notes

COMMAND_EXAMPLES = """
leukoscope audit my_cells --subject_pattern '(?P<subject>P.+)_' --quick
leukoscope predict my-release cells/ --explain overlays --json
leukoscope smear my-release smear.jpg --output overlays
leukoscope patient my-release my_cells --subject_pattern '(?P<subject>P.+)_'
leukoscope score my-release --input my_cells --output cells.parquet --labels my_cells/subjects.csv
leukoscope evaluate my-release --dataset_name cnmc2019 --train_dir C-NMC_Leukemia --split subject
leukoscope protocol --dataset_name cnmc2019 --train_dir C-NMC_Leukemia --output my-release
leukoscope release export owner/name@v1 --output graph
leukoscope release push my-release --hub_model_id owner/name --tag v1
leukoscope release card my-release
leukoscope release recalibrate my-release --train_dir my_cells --labels my_cells/subjects.csv --output ours
leukoscope release space owner/name@v1 owner/other --output my-space --push owner/demo
leukoscope release list model_card --json
leukoscope demo --releases model_card --models models.txt
leukoscope cache --clear
"""
TRAIN_EXAMPLES = (
    "leukoscope train --output_dir run",
    "leukoscope train --dataset_name cnmc2019 --train_dir C-NMC_Leukemia --recipe densenet169_block2",
)


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        cls=CommandGroup,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )


app = _group(
    "leukoscope", f"Train, measure, publish and explain classifiers of white-blood-cell images. {RESEARCH_NOTICE}"
)
release = _group("release", "Export, publish, describe, recalibrate and list releases.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leukoscope {__version__}")
        raise typer.Exit


@app.callback()
def leukoscope(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command; the help text above the list of commands is the app's."""
    print_notes()


def _add(group: typer.Typer, *commands: Callable[..., None], **settings: bool) -> None:
    """Add commands with their examples; their flags may be written with dashes or underscores."""
    for function in commands:
        name = function.__name__
        if function is list_releases:
            name = "list"
        path = f"leukoscope {name}"
        if group is not app:
            path = f"leukoscope {group.info.name} {name}"
        example = next(line for line in COMMAND_EXAMPLES.splitlines() if line.startswith(f"{path} "))
        group.command(
            name,
            context_settings={"token_normalize_func": lambda flag: flag.replace("_", "-"), **settings},
            epilog=f"\b\nExample: {example}",  # \b: click does not wrap the paragraph
        )(function)


def demo(
    releases: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of releases to offer (default: those of this installation)."),
    ] = None,
    models: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of Hub ids to offer as well, one per line.")
    ] = None,
) -> None:
    """Open the demo on http://127.0.0.1:7860; GRADIO_SERVER_PORT names another port."""
    if not find_spec("gradio"):
        raise ConfigError("the demo needs gradio, which is missing; pip install 'leukoscope[demo]'")
    runpy.run_path(str(resource_file("app.py")))["run"](releases, models)


def train(ctx: typer.Context) -> None:
    """Train a classifier; without flags, a small one on synthetic cells. `leukoscope train --help` lists the flags.

    On several GPUs: `accelerate launch -m leukoscope train …`; with one process, `accelerate launch --quiet …` adds no
    traceback to an error.
    """
    from leukoscope import api
    from leukoscope.training.accelerator import close_connection
    from leukoscope.training.checkpoint import Interrupted
    from leukoscope.training.config import parse_config

    if {"-h", "--help"} & set(ctx.args):
        typer.echo("\n".join(("Examples:", *TRAIN_EXAMPLES, "")))
    try:
        api.run(parse_config(ctx.args))
    except Interrupted:
        close_connection()
        raise
    close_connection()


# Unknown flags are left in `ctx.args`, for `parse_config`.
TRAINING_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(add_help_option=False, context_settings=TRAINING_FLAGS)(train)
_add(app, audit, predict, smear, patient, score, evaluate)
_add(app, protocol, **TRAINING_FLAGS)
app.add_typer(release)
_add(release, export, push, card, recalibrate, space, list_releases)
_add(app, demo, cache)
