"""`leukoscope release …`: export, publish, describe, recalibrate and list releases."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, ConfigError, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import load_reported, print_table
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.files import atomic_folder, disk_errors, is_git_clone


@options.takes_reading
def recalibrate(
    model: options.Model,
    train_dir: Annotated[Path, Option("--train_dir", metavar="DIR", help="Your labelled cells.")],
    output: Annotated[Path, Option(metavar="NEW", help="Folder of the new release.")],
    dataset_name: options.DatasetName = "imagefolder",
    reading: Reading = NO_FLAGS,
    quiet: options.Quiet = False,
) -> None:
    """Fit temperature, thresholds and OOD detector to your own labelled cells; the weights stay.

    It needs 50 cells of 5 subjects of each class, none of whom trained the release.
    """
    from leukoscope.data.pixel_cache import frame_cells
    from leukoscope.evaluation.assess import recalibrate as recalibrate_release
    from leukoscope.models.hub_download import KNOWN_CELLS, find_release
    from leukoscope.models.release import read_release
    from leukoscope.protocol import check_release_folder
    from leukoscope.reports.card import write_card

    check_release_folder(output)
    folder, _, commit = find_release(model, KNOWN_CELLS)
    preprocessing = read_release(folder).preprocessing
    size = 2 * preprocessing.image_size
    data = load_reported(dataset_name, train_dir, reading, image_size=size)
    name = model if commit else ""  # the path of a local folder is private
    recalibrate_release(folder, frame_cells(data, preprocessing), output, name=name)
    typer.echo(f"{write_card(output).parent}\n{RESEARCH_NOTICE}")


def export(
    model: options.Model,
    output: Annotated[Path, Option(metavar="DIR", help="Folder to write; an older export there is replaced.")],
) -> None:
    """Write a release as ONNX in the layout that transformers.js and optimum load, compared with torch on 8 images.

    onnx/model.onnx takes pixel_values and gives logits.
    """
    from leukoscope.inference.graph import GRAPH_REPORT, ONNX_GRAPH, write_onnx
    from leukoscope.inference.runtime import require_package
    from leukoscope.models.hub_download import find_release
    from leukoscope.models.release import read_release

    require_package("onnxruntime")
    if output.exists() and (is_git_clone(output) or not (output / GRAPH_REPORT).exists()):
        raise ConfigError(f"--output {output}: exists and is not an earlier export; name a new folder")
    with disk_errors(f"--output {output}: cannot be written", "name another folder"):
        folder, name, revision = find_release(model)
        with atomic_folder(output) as aside:
            report = write_onnx(read_release(folder, name=name, revision=revision), aside)
    by = report["probability_difference"]
    typer.echo(f"{output / ONNX_GRAPH}: at most {by:.1e} in probability from torch, on {report['compared_on']}")
    typer.echo(RESEARCH_NOTICE)


def card(
    releases: Annotated[list[Path], Argument(metavar="MODEL", help="Release folders.")],
    hub_model_id: Annotated[
        str, Option("--hub_model_id", metavar="ID", help="Where the release is published, owner/name.")
    ] = "",
    licence: options.WeightsLicence = "",
) -> None:
    """Render the model cards of releases from their metrics.json."""
    from leukoscope.reports.card import write_card

    for release in releases:
        typer.echo(write_card(release, hub_id=hub_model_id, licence=licence))


def push(
    release: options.Release,
    hub_model_id: Annotated[
        str, Option("--hub_model_id", metavar="ID", help="Repository, owner/name; created if missing.")
    ],
    revision: Annotated[str, Option(metavar="BRANCH", help="Branch (default: main); created if missing.")] = "",
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    tag: Annotated[str, Option(help="Name this version, like v1; tags are not moved.")] = "",
    licence: options.WeightsLicence = "",
) -> None:
    """Publish a release on the Hugging Face Hub, in one commit; no image of a patient is uploaded.

    The card is rendered for that address; the local release is not changed. Files that the repository already has are
    not sent again, so the same command resumes an interrupted push.
    """
    from leukoscope.hub.publish import Destination, publish
    from leukoscope.models.release import read_metrics
    from leukoscope.reports.card import default_licence

    to = Destination(hub_model_id, revision=revision, private=private, tag=tag)
    to.require_usable()
    typer.echo(f"published: {publish(release, to, licence=licence)}\n{RESEARCH_NOTICE}")
    if not (licence or default_licence(read_metrics(release))):
        typer.echo("the card states no licence, so nobody may use the weights; give one with --licence", err=True)


def space(
    models: Annotated[list[str], Argument(metavar="MODEL", help="Models to offer, owner/name@revision.")],
    output: Annotated[Path, Option(metavar="DIR", help="Folder to write; an earlier Space in it is replaced.")],
    title: Annotated[str, Option(help="Title of the Space.")] = "Leukoscope",
    static: Annotated[
        bool, Option("--static", help="A page that predicts with one model in the visitor's browser, without a server.")
    ] = False,
    onnxruntime_web: Annotated[
        Path | None,
        Option(
            "--onnxruntime_web",
            metavar="DIR",
            help="With --static: folder of the npm package onnxruntime-web (default: downloaded).",
        ),
    ] = None,
    push: Annotated[str, Option(metavar="ID", help="Publish it as the Space owner/name.")] = "",
    private: Annotated[bool, Option("--private", help="Make a new Space private.")] = False,
) -> None:
    """Build a Hugging Face Space: the demo, which pulls its models from the Hub, or a static page with one in it.

    Nothing is uploaded without --push. Without a revision, the demo offers what the model's main branch holds when it
    starts. A static page takes a release folder as well; no picture leaves the visitor's machine.
    """
    from leukoscope.hub.space import find_model, push_space, write_space, write_static_space
    from leukoscope.inference.runtime import require_package
    from leukoscope.models.hub_download import find_release
    from leukoscope.models.release import local_release, read_release

    if onnxruntime_web and not static:
        raise ConfigError(f"--onnxruntime_web {onnxruntime_web}: is for a static page; add --static")
    if static:
        if len(models) > 1:
            raise ConfigError(f"--static {' '.join(models)}: a static page predicts with one model; name one")
        require_package("onnxruntime")
        folder, name, revision = find_release(models[0])
        release = read_release(folder, name=name, revision=revision)
        write_static_space(release, output, title=title, runtime=onnxruntime_web)
        how = "python -m http.server --bind 127.0.0.1 8000"
    else:
        local = next((name for name in models if local_release(name) is not None), None)
        if local:
            raise ConfigError(
                f"{local}: is a folder, and a Space loads its models from the Hub; publish it first with "
                "`leukoscope release push`, then name it owner/name, or add --static"
            )
        write_space([find_model(name) for name in dict.fromkeys(models)], output, title=title)
        how = "python app.py"
    typer.echo(f"space: {output} (try it: cd {shlex.quote(str(output))} && {how})")
    if push:
        typer.echo(f"published: {push_space(output, push, private=private)}")
    typer.echo(RESEARCH_NOTICE)


def list_releases(
    folder: Annotated[
        Path | None, Argument(metavar="DIR", help="Folder of releases (default: those of this installation).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the releases in a folder: classes, recipe, data set and size; for a damaged release, what is wrong."""
    from leukoscope.files import embedded_releases
    from leukoscope.models.release import read_release, release_folders

    root = folder or embedded_releases()
    releases = release_folders(root)
    if not releases:
        raise ConfigError(f"{root}: is not a folder of releases; give the folder that contains them")
    rows: list[dict[str, Any]] = []
    for path in releases:
        try:
            release = read_release(path)
        except LeukoscopeError as error:
            typer.echo(f"not listed: {error}", err=True)
            continue
        size = round(sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e6, 1)
        name = path.name
        if folder:
            name = str(path)
        classes = list(release.labels)
        origin = {"recipe": release.metrics.recipe.name, "data": release.metrics.data.name}
        rows.append({"model": name, "classes": classes, **origin, "megabytes": size})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        texts = [
            [row["model"], ", ".join(row["classes"]), str(row["recipe"]), str(row["data"]), str(row["megabytes"])]
            for row in rows
        ]
        print_table(["model", "classes", "recipe", "data", "MB"], texts, texts=4)
        typer.echo(RESEARCH_NOTICE)
