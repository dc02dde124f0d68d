"""`leukoscope predict` and `leukoscope field`: images of cells, or smears, classified with a release."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import AsJson, Backend, Device, Model, Quiet, open_predictor, print_error, shown_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.data.images import UnreadableImage
    from leukoscope.inference.field import FieldReading
    from leukoscope.inference.prediction import Prediction

MOST_EXPLAINED = 20  # files, in the table's notes


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMG", help="Image files, or folders of them.")],
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain", metavar="DIR", help="Write each prediction's Grad-CAM map over its image to this folder."
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Test-time augmentation: average over the image's eight rotations and mirrorings."),
    ] = False,
    backend: Backend = "",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Classify images of single cells with a release."""
    from leukoscope.data.images import UnreadableImage

    files, problems = _image_paths(images)
    predictor = open_predictor(model, backend, device)
    rows = []
    for prediction in predictor.iter_predictions(files, explain=explain is not None, tta=tta):
        if isinstance(prediction, UnreadableImage):
            problems.append(prediction)
            continue
        row = prediction.to_dict()
        if explain is not None:
            row["overlay"] = str(_save_overlay(prediction, explain))
        rows.append(row)

    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_table(rows, predictor.labels)
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1)


def _image_paths(named: Sequence[Path]) -> tuple[list[Path], list[UnreadableImage]]:
    """The files meant by files and folders, in the order given, and a problem for each folder without an image."""
    from leukoscope.data.images import IMAGE_SUFFIXES, UnreadableImage
    from leukoscope.data.registry import image_files

    files: list[Path] = []
    problems = []
    for path in named:
        inside = list(image_files(path)) if path.is_dir() else [path]
        files += inside
        if not inside:
            kinds = ", ".join(IMAGE_SUFFIXES)
            problems.append(UnreadableImage(f"{path}: this folder holds no image ({kinds}); name another"))
    return files, problems


def _print_table(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leukoscope.inference.prediction import WITHOUT_CLASS
    from leukoscope.inference.predictor import VIEWS

    viewed = any(row["disagreement"] is not None for row in rows)
    table = Table("file", "outcome", *labels, "ms", *(["views that differ"] if viewed else []))
    for column, fold in enumerate(("fold", "fold", *("ellipsis" for _ in labels), "ellipsis")):
        table.columns[column].overflow = fold  # type: ignore[assignment]
        table.columns[column].justify = "left" if fold == "fold" else "right"
    for row in rows:
        shares = [f"{row['probabilities'][label]:.4f}" for label in labels]
        # Text, because square brackets would be read as markup.
        name = shown_name(row["source"])
        differ = [f"{round(VIEWS * row['disagreement'])} of {VIEWS}"] if viewed else []
        table.add_row(Text(name), Text(row["outcome"]), *shares, f"{row['seconds'] * 1000:.0f}", *differ)
    console = Console(highlight=False)
    console.print(table)
    overlays = [row["overlay"] for row in rows if "overlay" in row]
    if overlays:
        console.print(Text(f"Grad-CAM maps: {Path(overlays[0]).parent} ({len(overlays)} pictures)"))
    for line in _reasons(rows):
        console.print(Text(line), soft_wrap=True)
    if any(row["outcome"] in WITHOUT_CLASS for row in rows):
        console.print(Text("Where the outcome is no class, the probabilities are no result."))
    model, revision = rows[0]["model"], rows[0]["revision"]
    console.print(Text(f"model: {model}@{revision}" if revision else f"model: {model} (local files)"))
    console.print(Text(RESEARCH_NOTICE))


def _reasons(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Why files got no class, a line each; of many files, how many there are for each reason."""
    explained = [row for row in rows if row["reasons"]]
    if len(explained) > MOST_EXPLAINED:
        counts = Counter(reason["code"] for row in explained for reason in row["reasons"])
        yield "; ".join(f"{code}: {count} files" for code, count in counts.items()) + " (--json gives the numbers)"
    else:
        for row in explained:
            yield f"{shown_name(Path(row['source']).name)}: {'; '.join(reason['text'] for reason in row['reasons'])}"
    for row in rows:
        if any(reason["code"] == "field_of_view" for reason in row["reasons"]):
            smear, model = (shlex.quote(shown_name(row[key])) for key in ("source", "model"))
            yield f"if it is a smear, to find and classify its cells: leukoscope field {smear} --model {model}"
            break


def _save_overlay(prediction: Prediction, folder: Path) -> Path:
    """Draw the most probable class's Grad-CAM map over its image and save it under a name no other picture has."""
    from PIL.PngImagePlugin import PngInfo

    label, drawn = prediction.most_probable, prediction.overlay()
    about = PngInfo()
    about.add_itxt("Title", f"Grad-CAM for {label} ({prediction.probabilities[label]:.4f}) by {prediction.model}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    # A class may be called "Pro-B/early": only what every file system takes goes into the name.
    safe_label = re.sub(r"[^\w.-]+", "_", label)
    stem = f"{Path(prediction.source).stem}-{safe_label}"
    return _write_new(folder, stem, ".png", lambda aside: drawn.save(aside, format="PNG", pnginfo=about))


def _write_new(folder: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Write a file aside and rename it to `stem`, `stem-2`, … — the first name that is free."""
    aside = folder / f".{stem}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(aside)
        target, number = folder / f"{stem}{suffix}", 2
        while target.exists():
            target, number = folder / f"{stem}-{number}{suffix}", number + 1
        return aside.rename(target)
    except OSError as error:
        raise LeukoscopeError(
            f"{folder}: cannot write there ({error.strerror or error}); free some space or name another folder"
        ) from None
    finally:
        if aside.exists():
            aside.unlink()


def field(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMG", help="Fields of view: photographs of stained smears.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the outcomes over the field; of several, to PNG-<name of the field>."),
    ] = None,
    um_per_pixel: Annotated[
        float | None, typer.Option("--um_per_pixel", help="Micrometres a pixel; else measured on the red cells.")
    ] = None,
    one_scale: Annotated[
        bool,
        typer.Option("--one_scale", help="The fields are of one microscope: use the median of their scales."),
    ] = False,
    backend: Backend = "",
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the nucleated cells of smears and classify each with a release of cut-out cells."""
    from leukoscope.data.images import open_field
    from leukoscope.inference.field import read_field, series_scale

    predictor = open_predictor(model, backend, device)
    readings, failed = [], False
    if one_scale and um_per_pixel is None:
        um_per_pixel = series_scale(_opened(images))
    overlays = iter(_overlay_paths(output, images) if output is not None else ())
    for path in images:
        overlay = next(overlays, None)
        try:
            image = open_field(path)
            readings.append(read_field(predictor, image, str(path), um_per_pixel=um_per_pixel))
            if overlay is not None:
                _save_field_overlay(image, readings[-1], overlay)
                if not quiet:
                    typer.echo(f"overlay: {overlay}", err=True)
        except LeukoscopeError as error:
            print_error(error)
            failed = True
    if as_json:
        typer.echo(json.dumps([reading.to_dict() for reading in readings], indent=1))
    elif readings:
        _print_cells(readings)
    if failed:
        raise typer.Exit(1)


def _opened(images: Sequence[Path]) -> Iterator[Image]:
    """The fields that can be read, one at a time; what is wrong with the others is told when they are read."""
    from leukoscope.data.images import open_field

    for path in images:
        try:
            yield open_field(path)
        except LeukoscopeError:
            continue


def _overlay_paths(out: Path, fields: Sequence[Path]) -> Iterator[Path]:
    """Where each field's overlay goes; fields of one name, from several folders, are numbered."""
    if len(fields) == 1:
        yield out
        return
    given: set[str] = set()
    for field in fields:
        names = (f"{out.stem}-{field.stem}{number}.png" for number in chain([""], (f"-{n}" for n in count(2))))
        name = next(name for name in names if name.casefold() not in given)
        given.add(name.casefold())
        yield out.with_name(name)


def _save_field_overlay(image: Image, reading: FieldReading, path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    from leukoscope.inference.field import draw_reading

    about = PngInfo()
    about.add_itxt("Title", f"{shown_name(reading.source)} read by {reading.model}: {reading.summary}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_reading(image, reading).save(aside, format="PNG", pnginfo=about)
        aside.replace(path)
    except OSError as error:
        raise LeukoscopeError(
            f"{path}: cannot write there ({error.strerror or error}); free some space or name another file"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _print_cells(readings: Sequence[FieldReading]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("field", "cells", *readings[0].counts, "µm/px")
    for column in table.columns[1:]:
        column.justify = "right"
    for reading in readings:
        scale = reading.field.scale
        size = f"{scale.um_per_pixel:.3f} ({scale.source})" if scale else "–"
        counts = [str(count) for count in reading.counts.values()]
        table.add_row(Text(shown_name(reading.source)), str(len(reading.cells)), *counts, size)
    console = Console(highlight=False)
    console.print(table)
    for reading in readings:
        console.print(Text(f"{shown_name(reading.source)}: {' '.join((reading.summary, *reading.field.notes))}"))
    console.print(Text(RESEARCH_NOTICE))
