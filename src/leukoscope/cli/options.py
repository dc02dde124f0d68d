"""What all commands share: flags of one name and meaning, one-line errors, old spellings, opening a model."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import leukoscope
from leukoscope import LeukoscopeError
from leukoscope.progress import is_quiet, quiet

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Release folder, name that `leukoscope release list` shows, or Hub id owner/name or owner/name@revision; "
        "--model MODEL means the same.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="auto|openvino|onnx|torch",
        help="What computes the network; by default $LEUKOSCOPE_BACKEND, else auto.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="auto|exact|fast",
        help="exact computes in float32, fast in int8 or bfloat16; auto takes fast where it was measured to lose "
        "nothing.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where torch computes; auto: on a GPU if there is one.")
]
BatchSize = Annotated[int, typer.Option("--batch_size", min=1, help="Cells that are predicted at once.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _without_progress(ctx: typer.Context, wanted: bool) -> bool:
    ctx.with_resource(quiet(wanted))
    return wanted


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress and no notes; errors are still printed.", callback=_without_progress
    ),
]
TrainDir = Annotated[
    Path | None, typer.Option("--train_dir", metavar="DIR", help="Local folder of the data set, as for train.")
]
SubjectPattern = Annotated[
    str | None,
    typer.Option(
        "--subject_pattern", metavar="REGEX", help="Names an image's subject by its path, by a group (?P<subject>…)."
    ),
]
SubjectCsv = Annotated[
    Path | None, typer.Option("--subject_csv", metavar="FILE", help="CSV with the columns file,subject.")
]

# The spellings of version 0.1; they are removed after the next version.
MOVED_COMMANDS = {
    "assess": "release assess",
    "audit": "data audit",
    "card": "release card",
    "export": "release export",
    "push": "release push",
    "recalibrate": "release recalibrate",
    "report": "patient",
    "space": "release space",
}


class CommandGroup(TyperGroup):
    """A group of commands.

    A problem that the user can fix ends a command in one line, without a traceback. An old spelling of a command runs
    the new one after a warning.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if os.environ.get("NO_COLOR"):  # https://no-color.org; click does not look at it
            ctx.color = False
        for stream in (sys.stdout, sys.stderr):  # a pipe on Windows may lack letters that a name or a message has
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except LeukoscopeError as error:
            print_error(error)
            raise typer.Exit(1) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name."""
        if ctx.parent is None and args and (moved := MOVED_COMMANDS.get(args[0])):
            typer.echo(f"warning: `leukoscope {args[0]}` is now `leukoscope {moved}`", err=True)
            args = [*moved.split(), *args[1:]]
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command whose help shows no value for a switch, and breaks lines where the terminal ends."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        super().__init__(*args, help=help and re.sub(r"(?<=\S)\n(?=\S)", " ", help), **settings)
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.is_flag:
                parameter.metavar = ""

    def get_help_option(self, ctx: Any) -> Any:
        """The switch --help."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


class ModelCommand(Command):
    """A command whose first argument is a model, which may also be given as `--model MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put what follows --model before the other arguments."""
        models, others, words = [], [], iter(args)
        for word in words:
            if word == "--":
                others += [word, *words]
            elif word == "--model":
                models += [model for model in [next(words, None)] if model is not None]
            elif word.startswith("--model="):
                models.append(word.partition("=")[2])
            else:
                others.append(word)
        return super().parse_args(ctx, [*models, *others])


def print_error(error: Exception) -> None:
    """One line on stderr, never wrapped or coloured, so that it can be copied and searched."""
    typer.echo(f"error: {error}", err=True)


def end_with(problems: Sequence[Exception]) -> None:
    """Print what was wrong with single files, and end with 1 where there was something."""
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1)


def shown_name(name: str) -> str:
    """A file may be named in bytes that are no UTF-8, which no terminal and no PNG takes."""
    return os.fsencode(name).decode(errors="replace")


def open_predictor(model: str, backend: str, device: str, precision: str) -> Predictor:
    """A model with a backend ("" for the default) on a device ("auto" for a GPU if there is one)."""
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.runtime import F32, PRECISION_NAMES

    predictor = Predictor.from_pretrained(model, backend=backend, device=device, precision=precision)
    if (computed_in := predictor.backend.precision) != F32:
        typer.echo(
            f"computed in {PRECISION_NAMES[computed_in]}: probabilities differ a little from float32; "
            "`precision` in the release's metrics.json says by how much",
            err=True,
        )
    return predictor


def release_warnings(predictor: Predictor) -> list[str]:
    """What the demo says beside predictions of a release trained on phantoms, or without OOD detector; [] if quiet."""
    # The file, since the demo's module that reads it loads Gradio.
    path = Path(leukoscope.__file__).parent / "web" / "texts.json"
    texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
    synthetic = (predictor.release.metrics.get("data") or {}).get("synthetic")
    keys = ["warn_synthetic"] * bool(synthetic) + ["no_detector"] * (predictor.ood is None)
    return [] if is_quiet() else [texts[key]["en"] for key in keys]


def require_writable(folder: Path) -> None:
    """Refuse an `--output` that cannot be written, before long work begins; nothing is made yet.

    Raises:
        LeukoscopeError: the folder, or the nearest one above it that exists, takes no new file.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.EEXIST)
        raise LeukoscopeError(f"--output {folder}: cannot write there ({reason}); name another folder")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
    """Print a table that keeps file names and numbers whole.

    One in which they do not fit the terminal is printed row by row; in a pipe or a file, unless COLUMNS is set, every
    row is one line.

    Args:
        rows: as many cells each as there are columns; where paths in the first one need it, the folder that they
            share is printed once, above the table.
        texts: how many columns, from the left, hold text; the others hold numbers.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(highlight=False), Table()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = sys.maxsize
    folders = [os.path.dirname(first) for first, *_ in rows]
    try:
        common = os.path.commonpath(folders) if all(folders) else ""
    except ValueError:  # relative beside absolute ones, or two drives
        common = ""

    def widths() -> list[int]:
        return [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]

    borders = 3 * len(columns) + 1
    if os.path.isdir(common) and sum(widths()) + borders > console.width:
        typer.echo(f"in {common}:")
        rows = [[os.path.relpath(first, common), *others] for first, *others in rows]
    whole = widths()
    # A heading and a text may be broken between words, a number never.
    words = [
        max(map(cell_len, [*name.split(), *(cells if place >= texts else " ".join(cells).split())]))
        for place, (name, *cells) in enumerate(zip(columns, *rows, strict=True))
    ]
    # What is left for the first column when all others are as narrow as their words.
    room = console.width - borders - sum(words[1:])
    fits = sum(whole) + borders <= console.width
    if not fits and room < whole[0]:
        for first, *others in rows:
            shown = [f"{name} {cell}" for name, cell in zip(columns[1:], others, strict=True)]
            one_line = ", ".join(shown)
            typer.echo("\n  ".join([first, *([one_line] if cell_len(one_line) + 2 <= console.width else shown)]))
        return
    for place, name in enumerate(columns):
        width = None if fits else words[place] if place else whole[0]
        table.add_column(name, justify="right" if place >= texts else "left", width=width)
    for first, *others in rows:
        # Text, because square brackets would be read as markup.
        table.add_row(Text(first), *map(Text, others))
    console.print(table)
