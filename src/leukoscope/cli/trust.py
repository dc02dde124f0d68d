"""`leukoscope assess` and `leukoscope recalibrate`: how far to trust a release, here and in another laboratory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE

if TYPE_CHECKING:
    import numpy as np

    from leukoscope.cells.cache import FramedCells
    from leukoscope.cells.preprocessing import Preprocessing

SubjectPattern = Annotated[
    str | None,
    typer.Option(
        "--subject_pattern", help="imagefolder: regular expression with a group (?P<subject>…) over the path."
    ),
]
SubjectCsv = Annotated[
    Path | None, typer.Option("--subject_csv", help="imagefolder: CSV with the columns file,subject.")
]
FieldsDir = Annotated[
    Path | None, typer.Option("--fields_dir", metavar="DIR", help="Fields of view, to be refused (BCCD).")
]
OtherDir = Annotated[
    Path | None, typer.Option("--other_dir", metavar="DIR", help="Pictures of another data set, to be refused.")
]
HealthyDir = Annotated[
    Path | None,
    typer.Option(
        "--healthy_dir", metavar="DIR", help="White cells of healthy people, one folder a kind (PBC): none is a blast."
    ),
]


def assess(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder that `leukoscope protocol` wrote.")],
    dataset_name: Annotated[str, typer.Option("--dataset_name", help="The data set it was made from.")],
    train_dir: Annotated[Path | None, typer.Option("--train_dir", metavar="DIR", help="Folder with its cells.")] = None,
    subject_pattern: Annotated[
        str | None, typer.Option("--subject_pattern", help="As it was given in training.")
    ] = None,
    subject_csv: Annotated[Path | None, typer.Option("--subject_csv", help="As it was given in training.")] = None,
    fields_dir: FieldsDir = None,
    other_dir: OtherDir = None,
    healthy_dir: HealthyDir = None,
) -> None:
    """Compute anew how far to trust a release: intervals, calibration, thresholds, OOD detection, heat-map checks."""
    from leukoscope.models.release_files import read_release

    cells = framed(read_release(release).preprocessing, dataset_name, train_dir, subject_pattern, subject_csv)
    assess_on(cells, release, fields_dir, other_dir, healthy_dir)


def assess_on(
    cells: FramedCells,
    release: Path,
    fields_dir: Path | None,
    other_dir: Path | None,
    healthy_dir: Path | None = None,
) -> None:
    """Assess a release on the cells it was made from, and render its card."""
    from leukoscope.evaluation.assessment import assess as assess_release
    from leukoscope.hub.card import write_card
    from leukoscope.models.release_files import read_release

    others = other_pictures(read_release(release).preprocessing, fields_dir, other_dir)
    given = {"white cells": healthy_dir, "white cells of fields": fields_dir}
    assess_release(release, cells, others=others, healthy={k: folder for k, folder in given.items() if folder})
    typer.echo(f"{write_card(release)}\n{RESEARCH_NOTICE}")


def recalibrate(
    model: Annotated[str, typer.Argument(metavar="RELEASE", help="Release folder, or Hub id owner/name[@revision].")],
    train_dir: Annotated[Path, typer.Option("--train_dir", metavar="DIR", help="Your labelled cells.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", metavar="NEW", help="Folder of the new release.")],
    dataset_name: Annotated[str, typer.Option("--dataset_name", help="How that folder is laid out.")] = "imagefolder",
    subject_pattern: Annotated[
        str | None, typer.Option("--subject_pattern", help="Regular expression that names a file's subject.")
    ] = None,
    subject_csv: Annotated[
        Path | None, typer.Option("--subject_csv", help="CSV with the columns file,subject.")
    ] = None,
) -> None:
    """Fit temperature, thresholds and OOD detector anew on your own labelled cells; the weights stay.

    It needs 50 cells of 5 subjects of each class, none of whom trained the release.
    """
    from leukoscope.evaluation.recalibration import recalibrate as recalibrate_release
    from leukoscope.hub.card import write_card
    from leukoscope.inference.hub_files import release_folder
    from leukoscope.models.release import load_release
    from leukoscope.training.protocol import check_release_folder

    check_release_folder(output_dir, flag="--output_dir")
    folder = release_folder(model)
    cells = framed(load_release(folder).preprocessing, dataset_name, train_dir, subject_pattern, subject_csv)
    recalibrate_release(folder, cells, output_dir, name=model)
    typer.echo(f"{write_card(output_dir).parent}\n{RESEARCH_NOTICE}")


def framed(
    preprocessing: Preprocessing,
    dataset_name: str,
    train_dir: Path | None,
    subject_pattern: str | None,
    subject_csv: Path | None,
) -> FramedCells:
    """A data set, framed for a network; what is wrong with it is said on the error stream."""
    from datasets import disable_progress_bars

    from leukoscope.cells.cache import frame_cells
    from leukoscope.cells.loading import load_cells

    disable_progress_bars()
    size = 2 * preprocessing.image_size
    data = load_cells(
        dataset_name, train_dir, subject_pattern=subject_pattern, subject_csv=subject_csv, image_size=size
    )
    cells = frame_cells(data, preprocessing)
    typer.echo(cells.data.report(), err=True)
    return cells


def other_pictures(
    preprocessing: Preprocessing, fields_dir: Path | None, other_dir: Path | None
) -> dict[str, np.ndarray]:
    """Framed pictures that are no such cells, from the folders given."""
    from leukoscope.evaluation.ood_metrics import frame_sample

    given = {"fields": fields_dir, "other_data_set": other_dir}
    return {kind: frame_sample(folder, preprocessing) for kind, folder in given.items() if folder is not None}
