"""Flags that several commands have: one name, one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from leukoscope.progress import quiet

Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="Release folder, name that `leukoscope release list` shows, or Hub id owner/name or owner/name@revision.",
    ),
]
Backend = Annotated[
    str,
    Option(
        "--backend",
        metavar="auto|openvino|onnx|torch",
        help="What computes the network; by default $LEUKOSCOPE_BACKEND, else auto.",
    ),
]
Precision = Annotated[
    str,
    Option(
        "--precision",
        metavar="auto|exact|fast",
        help="exact computes in float32, fast in int8 or bfloat16; auto takes fast where it was measured to lose "
        "nothing.",
    ),
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
TrainDir = Annotated[
    Path | None, Option("--train_dir", metavar="DIR", help="Local folder of the data set, as for train.")
]
SubjectPattern = Annotated[
    str | None,
    Option(
        "--subject_pattern", metavar="REGEX", help="Names an image's subject by its path, by a group (?P<subject>…)."
    ),
]
Labels = Annotated[
    Path | None,
    Option(
        "--labels",
        metavar="FILE",
        help="Table of the cells: file, and label, subject or both (CSV, or an export of Label Studio).",
    ),
]
Release = Annotated[Path, Argument(metavar="MODEL", help="Release folder.")]
FieldsDir = Annotated[
    Path | None, Option("--fields_dir", metavar="DIR", help="Fields of view, which must be out of distribution (BCCD).")
]
OtherDir = Annotated[
    Path | None,
    Option("--other_dir", metavar="DIR", help="Images of another data set, which must be out of distribution."),
]
WeightsLicence = Annotated[
    str,
    Option(
        "--licence",
        "--license",
        metavar="ID",
        help="Licence of the weights, as the Hub names it, such as mit (default: apache-2.0 where data and start "
        "weights are known to allow it, else none).",
    ),
]
HealthyDir = Annotated[
    Path | None,
    Option(
        "--healthy_dir", metavar="DIR", help="White cells of healthy donors, one folder a kind (PBC): none is a blast."
    ),
]
