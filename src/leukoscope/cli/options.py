"""What commands share: flags (one name, one meaning), one-line errors, tables, opening a model."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from leukoscope import ConfigError, LeukoscopeError
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.progress import is_quiet, note, quiet

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.inference.predictor import Predictor

Model = Annotated[
    str, Argument(metavar="MODEL", help="Release folder, name that `leukoscope release list` shows, or Hub id.")
]
Backend = Annotated[
    str, Option("--backend", metavar="auto|openvino|torch", help="Default: $LEUKOSCOPE_BACKEND, else auto.")
]
Precision = Annotated[
    str,
    Option("--precision", metavar="float32|bf16", help="bf16 is faster on processors and GPUs that support bfloat16."),
]
Device = Annotated[
    str, Option("--device", metavar="auto|cpu|cuda", help="Where torch computes; auto: on a GPU if there is one.")
]
BatchSize = Annotated[int, Option("--batch_size", min=1, help="Cells that are predicted at once.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]


def _without_progress(ctx: typer.Context, wanted: bool) -> bool:
    ctx.with_resource(quiet(wanted))
    return wanted


Quiet = Annotated[
    bool,
    Option("--quiet", "-q", help="No progress and no notes; errors are still printed.", callback=_without_progress),
]
DatasetName = Annotated[str, Option("--dataset_name", metavar="NAME", help="Data set, as for train.")]
TrainDir = Annotated[
    Path | None, Option("--train_dir", metavar="DIR", help="Local folder of the data set, as for train.")
]
Split = Annotated[
    str | None, Option("--split", metavar="NAME", help="Split, as for train; evaluate predicts its test side.")
]
SplitFile = Annotated[
    Path | None, Option("--split_file", metavar="FILE", help="A split.json of a training, instead of --split.")
]
Release = Annotated[Path, Argument(metavar="MODEL", help="Release folder.")]
WeightsLicence = Annotated[
    str,
    Option(
        "--licence",
        "--license",
        metavar="ID",
        help="Licence of the weights, as the Hub names it (default: apache-2.0 if data and start weights allow it).",
    ),
]

# The fields of `Reading` as flags; each command that has a parameter `reading` takes them all.
_READING: dict[str, Any] = {
    "subject_pattern": Annotated[
        str | None,
        Option("--subject_pattern", metavar="REGEX", help="Finds the subject in an image's path: (?P<subject>…)."),
    ],
    "subject_folders": Annotated[
        bool, Option("--subject_folders", help="The innermost folder of an image is its subject.")
    ],
    "labels": Annotated[
        Path | None, Option("--labels", metavar="FILE", help="Table (CSV): file, and label, subject or both.")
    ],
    "file_column": Annotated[
        str, Option("--file_column", metavar="NAME", help="Column of file names (default: file, image_path, …).")
    ],
    "label_column_name": Annotated[
        str, Option("--label_column_name", metavar="NAME", help="Column of classes; none: the folders name them.")
    ],
    "subject_column": Annotated[
        str, Option("--subject_column", metavar="NAME", help="Column of subjects (default: subject, patient_id, …).")
    ],
    "split_column": Annotated[
        str, Option("--split_column", metavar="NAME", help="Column of the data set's own split; none leaves it out.")
    ],
}


def takes_reading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `Reading` in place of its parameter `reading`."""
    defaults = {flag.name: flag.default for flag in fields(Reading)}
    parameters = []
    for parameter in signature(command, eval_str=True).parameters.values():
        if parameter.name != "reading":
            parameters.append(parameter)
            continue
        for name, annotation in _READING.items():
            parameters.append(
                Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults[name], annotation=annotation)
            )

    @wraps(command)
    def run(**flags: Any) -> None:
        reading = Reading(**{name: flags.pop(name) for name in _READING})
        command(**flags, reading=reading)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class CommandGroup(TyperGroup):
    """A group of commands in which a `LeukoscopeError` ends a command with one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if os.environ.get("NO_COLOR"):  # https://no-color.org; click does not read it
            ctx.color = False
        for stream in (sys.stdout, sys.stderr):  # a pipe on Windows may lack characters of a name or a message
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except LeukoscopeError as error:
            print_error(error)
            raise typer.Exit(1) from None


def print_error(error: Exception) -> None:
    """Print one line on stderr, never wrapped or coloured, so that it can be copied and searched."""
    typer.echo(f"error: {error}", err=True)


def end_with(problems: Sequence[Exception]) -> None:
    """Print the errors of single files, and end with exit code 1 if there are any."""
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1)


def open_predictor(model: str, backend: str, device: str, precision: str) -> Predictor:
    """Load a model; arguments as for `Predictor.from_pretrained`."""
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.runtime import BF16

    predictor = Predictor.from_pretrained(model, backend=backend, device=device, precision=precision)
    if predictor.backend.precision == BF16:
        message = "computed in bfloat16: probabilities differ from those in float32, in which the release was measured"
        note(message, err=True)
    return predictor


def load_reported(dataset_name: str, folder: Path | None, reading: Reading = NO_FLAGS, **flags: Any) -> LoadedCells:
    """Load a data set, and say what it holds; flags as of `load_cells`."""
    from leukoscope.data.loading import load_cells

    data = load_cells(dataset_name, folder, **vars(reading), **flags)
    note(data.report(), err=True)
    return data


def release_warnings(predictor: Predictor) -> list[str]:
    """The warnings to print below predictions of a release; [] if quiet."""
    from leukoscope.reports.words import warnings

    if is_quiet():
        return []
    return [*warnings(predictor.release.metrics, has_detector=predictor.ood is not None)]


def require_writable(folder: Path) -> None:
    """Refuse an `--output` folder that cannot be written to, before long work begins; creates nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.EEXIST)
        raise ConfigError(f"--output {folder}: cannot write there ({reason}); name another folder")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
    """Print a table; rich folds the widest columns first where the terminal is narrow.

    Args:
        rows: as many cells each as there are columns. In a pipe or a file, unless COLUMNS is set, each is one line.
        texts: how many columns, from the left, hold text; the others hold numbers.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = sys.maxsize
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place >= texts else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # rich would read square brackets in a str as markup
    console.print(table)
