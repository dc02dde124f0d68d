"""`leukoscope release …`: export, publish, describe, recalibrate and list releases."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import AsJson, Model, Quiet, SubjectCsv, SubjectPattern, TrainDir, print_table

if TYPE_CHECKING:
    from leukoscope.data.pixel_cache import FramedCells
    from leukoscope.data.preprocessing import Preprocessing

Release = Annotated[Path, typer.Argument(metavar="MODEL", help="Release folder; --model MODEL means the same.")]
FieldsDir = Annotated[
    Path | None,
    typer.Option("--fields_dir", metavar="DIR", help="Fields of view, which must be out of distribution (BCCD)."),
]
OtherDir = Annotated[
    Path | None,
    typer.Option("--other_dir", metavar="DIR", help="Images of another data set, which must be out of distribution."),
]
HealthyDir = Annotated[
    Path | None,
    typer.Option(
        "--healthy_dir", metavar="DIR", help="White cells of healthy people, one folder a kind (PBC): none is a blast."
    ),
]


def assess(
    release: Release,
    dataset_name: Annotated[str, typer.Option("--dataset_name", metavar="NAME", help="The data set it was made from.")],
    train_dir: TrainDir = None,
    subject_pattern: SubjectPattern = None,
    subject_csv: SubjectCsv = None,
    fields_dir: FieldsDir = None,
    other_dir: OtherDir = None,
    healthy_dir: HealthyDir = None,
    quiet: Quiet = False,
) -> None:
    """Compute again a release's intervals, calibration, thresholds, OOD detector and checks of its Grad-CAM maps.

    The release must come from `leukoscope experiment protocol`, and the cells are those that it was made from.
    """
    from leukoscope.models.release_files import read_release

    cells = framed(read_release(release).preprocessing, dataset_name, train_dir, subject_pattern, subject_csv, quiet)
    assess_on(cells, release, fields_dir, other_dir, healthy_dir)


def assess_on(
    cells: FramedCells,
    release: Path,
    fields_dir: Path | None,
    other_dir: Path | None,
    healthy_dir: Path | None = None,
) -> None:
    """Assess a release on the cells it was made from, and render its card."""
    from leukoscope.evaluation.assess import assess as assess_release
    from leukoscope.evaluation.ood_metrics import frame_sample
    from leukoscope.models.release_files import read_release
    from leukoscope.reports.card import write_card

    preprocessing = read_release(release).preprocessing
    unlike = {"fields": fields_dir, "other_data_set": other_dir}
    others = {kind: frame_sample(folder, preprocessing) for kind, folder in unlike.items() if folder is not None}
    given = {"white cells": healthy_dir, "white cells of fields": fields_dir}
    assess_release(release, cells, others=others, healthy={k: folder for k, folder in given.items() if folder})
    typer.echo(f"{write_card(release)}\n{RESEARCH_NOTICE}")


def recalibrate(
    model: Model,
    train_dir: Annotated[Path, typer.Option("--train_dir", metavar="DIR", help="Your labelled cells.")],
    output: Annotated[Path, typer.Option(metavar="NEW", help="Folder of the new release.")],
    dataset_name: Annotated[
        str, typer.Option("--dataset_name", metavar="NAME", help="The data set that the folder holds.")
    ] = "imagefolder",
    subject_pattern: SubjectPattern = None,
    subject_csv: SubjectCsv = None,
    quiet: Quiet = False,
) -> None:
    """Fit temperature, thresholds and OOD detector to your own labelled cells; the weights stay.

    It needs 50 cells of 5 subjects of each class, none of whom trained the release.
    """
    from leukoscope.evaluation.assess import recalibrate as recalibrate_release
    from leukoscope.experiments.protocol import check_release_folder
    from leukoscope.models.hub_download import release_folder
    from leukoscope.models.release import load_release
    from leukoscope.reports.card import write_card

    check_release_folder(output, flag="--output")
    folder = release_folder(model)
    cells = framed(load_release(folder).preprocessing, dataset_name, train_dir, subject_pattern, subject_csv, quiet)
    recalibrate_release(folder, cells, output, name=model)
    typer.echo(f"{write_card(output).parent}\n{RESEARCH_NOTICE}")


def framed(
    preprocessing: Preprocessing,
    dataset_name: str,
    train_dir: Path | None,
    subject_pattern: str | None,
    subject_csv: Path | None,
    quiet: bool = False,
) -> FramedCells:
    """Load a data set and frame its cells for a network; a summary of it goes to stderr."""
    from leukoscope.data.loading import load_cells
    from leukoscope.data.pixel_cache import frame_cells

    size = 2 * preprocessing.image_size
    data = load_cells(
        dataset_name, train_dir, subject_pattern=subject_pattern, subject_csv=subject_csv, image_size=size
    )
    cells = frame_cells(data, preprocessing)
    if not quiet:
        typer.echo(cells.data.report(), err=True)
    return cells


def export(
    model: Model,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; an older export there is replaced.")],
    graph_format: Annotated[
        str, typer.Option("--format", metavar="openvino|onnx", help="The runtime that is to compute it.")
    ] = "openvino",
) -> None:
    """Write a release as one graph: pixels in, logits and the feature map out, compared with torch on 8 images."""
    from leukoscope.inference.backends import require_package
    from leukoscope.inference.graph import GRAPHS, REPORT
    from leukoscope.models.release_files import read_release

    if graph_format not in GRAPHS:
        raise LeukoscopeError(f"--format {graph_format}: unknown; give {' or '.join(GRAPHS)}")
    require_package(graph_format)
    if output.exists() and not (output / REPORT).is_file():
        raise LeukoscopeError(f"--output {output}: exists and is no earlier export; name a new folder")
    from leukoscope.inference.graph import export_release

    try:
        folder, name, revision = open_release(model)
        report = export_release(read_release(folder, name=name, revision=revision), graph_format, output)
    except OSError as error:
        raise LeukoscopeError(
            f"--output {output}: cannot be written ({error.strerror or error}); name another folder"
        ) from None
    typer.echo(
        f"{output / GRAPHS[graph_format]}: at most {report['probability_difference']:.1e} in probability and "
        f"{report['heat_map_difference']:.1e} of a Grad-CAM map's peak from torch, on {report['compared_on']}"
    )
    if not report["like_torch"]:
        raise LeukoscopeError(f"{output}: that is more than {report['allowed']:g}; use the release with torch")
    typer.echo(RESEARCH_NOTICE)


def open_release(release: str, patterns: Sequence[str] | None = None) -> tuple[Path, str, str]:
    """Folder of a release, its name as given, and its Hub commit ("" for a local folder).

    Args:
        patterns: the files that are needed from the Hub; None for all of the release.
    """
    from leukoscope.models.hub_download import parse_hub_id, release_folder

    folder = release_folder(release) if patterns is None else release_folder(release, tuple(patterns))
    if Path(release).exists():
        return folder, release, ""
    # The Hub's snapshots are called by their commit.
    return folder, parse_hub_id(release)[0], folder.name


def card(
    releases: Annotated[
        list[Path], typer.Argument(metavar="MODEL", help="Release folders; --model MODEL means the same.")
    ],
    hub_model_id: Annotated[
        str, typer.Option("--hub_model_id", metavar="ID", help="Where the release is published, owner/name.")
    ] = "",
) -> None:
    """Render the model cards of releases from their metrics.json."""
    from leukoscope.reports.card import write_card

    for release in releases:
        typer.echo(write_card(release, hub_id=hub_model_id))


def push(
    release: Release,
    hub_model_id: Annotated[
        str, typer.Option("--hub_model_id", metavar="ID", help="The repository, owner/name; made if need be.")
    ],
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Its branch (default: main); made if need be.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create_pr", help="Propose the release as a pull request instead of changing main.")
    ] = False,
    tag: Annotated[str, typer.Option(help="Name this version, like v1; a tag stays where it is.")] = "",
) -> None:
    """Publish a release on the Hugging Face Hub, in one commit; no image of a patient is uploaded.

    The card is rendered for that address. Files that the repository already has are not sent again, so the same command
    resumes an interrupted push.
    """
    from leukoscope.hub.publish import Destination, publish, unpublished_files
    from leukoscope.reports.card import write_card

    to = Destination(hub_model_id, revision=revision, private=private, create_pr=create_pr, tag=tag)
    to.require_usable()
    write_card(release, hub_id=hub_model_id)
    if stay := unpublished_files(release):
        typer.echo(f"not published, because it is no part of a release: {', '.join(stay)}", err=True)
    typer.echo(f"published: {publish(release, to)}\n{RESEARCH_NOTICE}")


def space(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Models to offer, owner/name@revision; --model MODEL, repeated, means the same."
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; an earlier Space in it is replaced.")],
    title: Annotated[str, typer.Option(help="Of the Space's page.")] = "Leukoscope",
    push: Annotated[str, typer.Option(metavar="ID", help="Put it on the Hub as the Space owner/name.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
) -> None:
    """Build the demo as a Hugging Face Space that pulls its models from the Hub.

    Nothing is uploaded without --push. Without a revision, the Space offers what the model's main branch holds when it
    starts.
    """
    from leukoscope.hub.space import find_model, push_space, write_space

    folder = write_space([find_model(name) for name in dict.fromkeys(models)], output, title=title)
    typer.echo(f"space: {folder} (try it: cd {shlex.quote(str(folder))} && python app.py)")
    if push:
        named = (word for name in models for word in ("--model", name))
        words = ["leukoscope", "release", "space", *named, "--output", str(output)]
        words += ["--title", title] * (title != "Leukoscope") + ["--push", push] + ["--private"] * private
        typer.echo(f"published: {push_space(folder, push, private=private, again=shlex.join(words))}")
    typer.echo(RESEARCH_NOTICE)


def list_releases(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of releases (default: those that come along).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the releases in a folder: classes, recipe, data set and size."""
    from leukoscope.files import embedded_releases
    from leukoscope.models.release_files import CONFIG, read_release

    root = folder or embedded_releases()
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such folder; give the folder that holds the folders of releases")
    rows: list[dict[str, Any]] = []
    for config in sorted(root.glob(f"*/{CONFIG}")):
        release = read_release(config.parent)
        rows.append(
            {
                "model": str(config.parent),
                "classes": list(release.labels),
                "recipe": release.metrics.get("recipe", {}).get("name", ""),
                "data": release.metrics.get("data", {}).get("name", ""),
                "megabytes": round(sum(f.stat().st_size for f in config.parent.glob("*.safetensors")) / 1e6, 1),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    shown = [[r["model"], ", ".join(r["classes"]), r["recipe"], r["data"], str(r["megabytes"])] for r in rows]
    print_table(["model", "classes", "recipe", "data", "MB"], shown, texts=4)
    typer.echo(RESEARCH_NOTICE)
