"""`leukoscope smear`: the cells of smears, found, cut out and classified."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, ConfigError, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import end_with, open_predictor, release_warnings
from leukoscope.cli.predict import image_paths, numbered, save_png
from leukoscope.files import disk_errors, write_atomic
from leukoscope.progress import note, shown_name, track

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.inference.smear import SmearReading

TASKS = "label_studio.json"


def smear(
    model: options.Model,
    images: Annotated[list[Path], Argument(metavar="IMG", help="Photographs of stained smears, or folders of them.")],
    output: Annotated[Path | None, Option(metavar="DIR", help="Draw the outcomes to DIR/<folder>/<smear>.png.")] = None,
    um_per_pixel: Annotated[
        float | None,
        Option(
            "--um_per_pixel", help="Micrometres per pixel (default: measured on red cells or, less surely, nuclei)."
        ),
    ] = None,
    crops: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Write each whole cell, cut out on black, to DIR/<folder>/<smear>-<its number in --json>.png; "
            f"Label Studio imports DIR/{TASKS}.",
        ),
    ] = None,
    backend: options.Backend = "",
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the nucleated cells of smears and classify each with a release of cut-out cells."""
    from leukoscope.data.images import open_smear
    from leukoscope.data.registry import EMPTY_SLIDE_RGB
    from leukoscope.inference.smear import read_smear

    predictor = open_predictor(model, backend, device, precision)
    files, problems = image_paths(images)
    overlays = _places(files, images, "--output", output)
    crop_places = _places(files, images, "--crops", crops)
    readings: list[SmearReading] = []
    for path in track(files, "reading smears", unit="smears"):
        try:
            image = open_smear(path, ground=EMPTY_SLIDE_RGB)
            readings.append(read_smear(predictor, image, str(path), um_per_pixel=um_per_pixel))
            _save_pictures(image, readings[-1], crop_places.get(path), overlays.get(path))
        except LeukoscopeError as error:
            problems.append(error)
    if crops and readings:
        try:
            with disk_errors(f"--crops {crops}: cannot be written", "name another folder"):
                write_atomic(crops / TASKS, json.dumps(list(_tasks(crops)), indent=1))
            note(f"tasks for Label Studio: {crops / TASKS}", err=True)
        except LeukoscopeError as error:
            problems.append(error)
    if as_json:
        typer.echo(json.dumps([reading.to_dict() for reading in readings], indent=1))
    elif readings:
        for reading in readings:
            scale = reading.smear.scale
            at = f" at {scale.um_per_pixel:.3f} µm per pixel ({scale.source})" if scale else ""
            notes = " ".join((reading.summary, *reading.smear.notes))
            typer.echo(f"{shown_name(reading.source)}{at}: {notes}")
        typer.echo("\n".join((*release_warnings(predictor), RESEARCH_NOTICE)))
    end_with(problems)


def _save_pictures(image: Image, reading: SmearReading, crops: Path | None, overlay: Path | None) -> None:
    """Write the cells of a smear beside `crops`, each with its number, and the drawn outcomes to `overlay`."""
    from leukoscope.data.smear import cut_out
    from leukoscope.inference.smear import draw_reading
    from leukoscope.models.release import public_name

    name = shown_name(Path(reading.source).name)
    for number, cell in enumerate(reading.cells, start=1):
        if crops and cell.prediction and reading.smear.scale:
            crop = cut_out(image, cell.cell, reading.smear.scale.um_per_pixel)
            save_png(crop, crops.with_stem(f"{crops.stem}-{number}"), f"{name}: {cell.outcome}")
    if overlay:
        title = f"{name} read by {public_name(reading.model, reading.revision)}: {reading.summary}"
        save_png(draw_reading(image, reading), overlay, title)
        note(f"overlay: {overlay}", err=True)


def _places(files: Sequence[Path], inputs: Sequence[Path], flag: str, folder: Path | None) -> dict[Path, Path]:
    """Smear → the PNG to write for it: in `folder`, in a sub-folder with the name of the smear's folder.

    Raises:
        ConfigError: it would lie beside smears.
    """
    if folder is None:
        return {}
    # Absolute, because "." and ".." name no folder, and a picture would be written outside.
    roots = [Path(os.path.abspath(path)) for path in inputs if path.is_dir()]
    taken: set[str] = set()
    places = {}
    for path in files:
        home = Path(os.path.abspath(path)).parent
        slide = next((home.relative_to(root.parent) for root in roots if home.is_relative_to(root)), Path(home.name))
        places[path] = numbered(Path(shown_name(str(folder / slide / f"{path.stem}.png"))), taken)
        if os.path.realpath(places[path].parent) == os.path.realpath(home):
            raise ConfigError(f"{flag} {folder}: would write pictures among the smears of {path.parent}; name another")
    return places


def _tasks(crops: Path) -> Iterator[dict[str, Any]]:
    """Yield the tasks of Label Studio for all crops of a folder, those of earlier runs included.

    https://labelstud.io/guide/storage#Tasks-with-local-storage-file-references: with LOCAL_FILES_DOCUMENT_ROOT set to
    the folder, its server shows the pictures. Exports repeat `file` and `subject`, the columns that `--labels` reads.
    """
    for path in sorted(crops.rglob("*.png")):
        file = path.relative_to(crops).as_posix()
        subject = ""
        if path.parent.parent != crops:
            subject = path.parent.name
        yield {"data": {"image": f"/data/local-files/?d={quote(file)}", "subject": subject}}
