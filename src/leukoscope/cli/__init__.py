"""`leukoscope …`: thin commands over the rooms, one file for each few that belong together.

A command reads its flags, calls one room and shows what came back; whatever it needs beyond typer and rich is
imported inside it, so that `leukoscope --help` answers at once. Results go to stdout, problems to stderr.
"""

from __future__ import annotations

from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cli.ablate import ablate
from leukoscope.cli.audit import AuditCommand, audit
from leukoscope.cli.data import data
from leukoscope.cli.demo import demo
from leukoscope.cli.doctor import doctor
from leukoscope.cli.errors import OneLineErrors
from leukoscope.cli.evaluate import evaluate
from leukoscope.cli.export import export
from leukoscope.cli.field import field
from leukoscope.cli.leaderboard import leaderboard
from leukoscope.cli.patient import patient, report
from leukoscope.cli.predict import predict
from leukoscope.cli.push import push
from leukoscope.cli.releases import card, leakage, protocol
from leukoscope.cli.reproduce import reproduce
from leukoscope.cli.score import score
from leukoscope.cli.space import space
from leukoscope.cli.trust import assess, recalibrate

# A command that hands flags it does not know on to the parser of train.py.
_WITH_TRAINING_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="leukoscope",
    cls=OneLineErrors,
    help=f"Train, measure, publish and explain classifiers of white-blood-cell images. {RESEARCH_NOTICE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


app.command()(predict)
app.command()(patient)
app.command()(report)
app.command()(score)
app.command()(field)
app.command()(export)
app.command(context_settings=_WITH_TRAINING_FLAGS)(protocol)
app.command(context_settings=_WITH_TRAINING_FLAGS)(leakage)
app.command(context_settings=_WITH_TRAINING_FLAGS)(reproduce)
app.command(context_settings=_WITH_TRAINING_FLAGS)(ablate)
app.command()(card)
app.command()(push)
app.command()(space)
app.command()(evaluate)
app.command()(leaderboard)
app.command(cls=AuditCommand)(audit)
app.command()(assess)
app.command()(recalibrate)
app.add_typer(data, name="data")
app.command()(doctor)
app.command()(demo)
