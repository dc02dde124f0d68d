"""`leukoscope field`: the cells of smears, found, cut out and classified."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import end_with, open_predictor, print_table, release_warnings, say, shown_name
from leukoscope.cli.predict import MOST_EXPLAINED, file_key, image_paths, numbered, save_png
from leukoscope.files import disk_errors, write_atomic
from leukoscope.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.data.fields import ScaleSource
    from leukoscope.inference.field import FieldReading

TASKS = "label_studio.json"


def field(
    model: options.Model,
    images: Annotated[
        list[Path], Argument(metavar="IMG", help="Photographs of stained smears, or folders of them, one per slide.")
    ],
    output: Annotated[Path | None, Option(metavar="PNG", help="Draw the outcomes; of several, to PNG-<field>.")] = None,
    um_per_pixel: Annotated[
        float | None,
        Option(
            "--um_per_pixel",
            help="Micrometres per pixel; else guessed from red cells or nuclei, for the fields of a folder together.",
        ),
    ] = None,
    crops: Annotated[
        Path | None,
        Option(
            "--crops",
            metavar="DIR",
            help="Write each whole cell, cut out on black, to DIR/<slide>/<field>-<its number in --json, from 0>.png; "
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
    from leukoscope.data.fields import is_cut_out_cell
    from leukoscope.data.images import open_field
    from leukoscope.inference.field import read_field, series_scale

    predictor = open_predictor(model, backend, device, precision)
    fields, problems = image_paths(images)
    slides = _slides(fields, images)
    overlays = _overlay_paths(output, fields) if output is not None else {}
    crop_paths = _crop_paths(crops, slides) if crops is not None else {}
    in_folders = any(path.is_dir() for path in images)
    scale_source: ScaleSource = "given"
    if um_per_pixel is None and in_folders:
        um_per_pixel = series_scale(_readable(track(fields, "measuring the scale")))
        scale_source = "red cells of the series"

    readings: list[FieldReading] = []
    single: list[Path] = []
    for path in track(fields, "reading fields"):
        try:
            image = open_field(path)
            if path not in images and is_cut_out_cell(image):
                single.append(path)
                continue
            reading = read_field(predictor, image, str(path), um_per_pixel=um_per_pixel, scale_source=scale_source)
            readings.append(reading)
            _save_pictures(image, reading, overlays.get(path), crop_paths.get(path))
        except LeukoscopeError as error:
            problems.append(error)
    if crops is not None and readings:
        try:
            _write_tasks(crops)
        except LeukoscopeError as error:
            problems.append(error)
    if as_json:
        typer.echo(json.dumps([reading.to_dict() for reading in readings], indent=1))
    elif readings:
        _print_fields(readings, slides if in_folders else {}, release_warnings(predictor))
    if single:
        passed_over = f"passed over: {len(single):,} picture(s) of single cut-out cells, for example {single[0]}"
        say(f"{passed_over}; leukoscope predict classifies them")
    end_with(problems)


def _slides(fields: Sequence[Path], given: Sequence[Path]) -> dict[Path, Path]:
    """Field → the name of its slide: its folder, relative to the parent of the folder that was given on."""
    # Absolute, because "." and ".." name no slide, and crops would be written outside their folder.
    roots = [Path(os.path.abspath(path)) for path in given if path.is_dir()]
    slides = {}
    for path in fields:
        home = Path(os.path.abspath(path)).parent
        inside = (home.relative_to(root.parent) for root in roots if home.is_relative_to(root))
        slides[path] = next(inside, Path(home.name))
    return slides


def _readable(images: Iterable[Path]) -> Iterator[Image]:
    """Open the fields one at a time; errors of the others are reported when they are read."""
    from leukoscope.data.fields import is_cut_out_cell
    from leukoscope.data.images import open_field

    for path in images:
        with suppress(LeukoscopeError):
            image = open_field(path)
            if not is_cut_out_cell(image):
                yield image


def _overlay_paths(output: Path, fields: Sequence[Path]) -> dict[Path, Path]:
    """Field → the file of its overlay; an error where that is no PNG, or one of the fields."""
    if output.suffix.lower() != ".png":
        raise LeukoscopeError(f"--output {output}: overlays are PNG files; name a file that ends in .png")
    taken: set[str] = set()
    overlays = dict.fromkeys(fields, output)
    if len(fields) > 1:
        overlays = {path: numbered(output.with_stem(f"{output.stem}-{path.stem}"), taken) for path in fields}
    originals = {file_key(path) for path in fields}
    for overlay in overlays.values():
        if file_key(overlay) in originals:
            raise LeukoscopeError(
                f"--output {output}: the overlay would replace the field {overlay}; name another file"
            )
    return overlays


def _crop_paths(crops: Path, slides: Mapping[Path, Path]) -> dict[Path, Path]:
    """Field → the path of its crops without their numbers; an error where they would lie beside fields."""
    taken: set[str] = set()
    for path, slide in slides.items():
        if os.path.realpath(crops / slide) == os.path.dirname(os.path.realpath(path)):
            raise LeukoscopeError(
                f"--crops {crops}: crops would lie among the fields of {path.parent}; name another folder"
            )
    return {path: crops / numbered(slide / f"{path.stem}.png", taken) for path, slide in slides.items()}


def _save_pictures(image: Image, reading: FieldReading, overlay: Path | None, crops: Path | None) -> None:
    """Write a field's overlay and the crops of its whole cells, each where a path is given for it."""
    from leukoscope.data.fields import cut_out
    from leukoscope.inference.field import draw_reading
    from leukoscope.models.release import public_name

    name, scale = shown_name(Path(reading.source).name), reading.field.scale
    for number, one in enumerate(reading.cells):
        if crops is not None and scale is not None and one.cell.whole:
            crop = cut_out(image, one.cell, scale.um_per_pixel)
            save_png(crop, crops.with_stem(f"{crops.stem}-{number}"), f"{name}: {one.outcome}")
    if overlay is not None:
        title = f"{name} read by {public_name(reading.model, reading.revision)}: {reading.summary}"
        save_png(draw_reading(image, reading), overlay, title)
        say(f"overlay: {overlay}")


def _write_tasks(crops: Path) -> None:
    """Write the tasks of Label Studio for all crops of a folder, those of earlier runs included.

    https://labelstud.io/guide/storage#Tasks-with-local-storage-file-references: with LOCAL_FILES_DOCUMENT_ROOT set to
    the folder, its server shows the pictures. Exports repeat `file` and `subject`, the columns that `--labels` reads.
    """
    tasks = []
    for path in sorted(crops.rglob("*.png")):
        file = path.relative_to(crops).as_posix()
        subject = path.parent.name if path.parent.parent != crops else ""
        tasks.append({"data": {"image": f"/data/local-files/?d={quote(file)}", "file": file, "subject": subject}})
    with disk_errors(f"--crops {crops}: cannot be written", "name another folder"):
        write_atomic(crops / TASKS, json.dumps(tasks, indent=1))
    say(f"tasks for Label Studio: {crops / TASKS}")


def _print_fields(readings: Sequence[FieldReading], slides: Mapping[Path, Path], warnings: Sequence[str]) -> None:
    """Print a table of the fields, and one of the slides where these are named."""
    total = sum((Counter(reading.counts) for reading in readings), Counter[str]())
    # Outcomes of no class that no field has would make the table too wide for a terminal.
    shown = [outcome for outcome in readings[0].counts if outcome in readings[0].labels or total[outcome]]
    rows = []
    of_slide: dict[str, Counter[str]] = {}
    for reading in readings:
        scale = reading.field.scale
        found = {"cells": len(reading.cells), **{outcome: reading.counts[outcome] for outcome in shown}}
        size = f"{scale.um_per_pixel:.3f}" if scale else "–"
        rows.append([shown_name(reading.source), *map(str, found.values()), size])
        if slides:
            name = shown_name(str(slides[Path(reading.source)]))
            of_slide.setdefault(name, Counter()).update({"fields": 1, **found})
    print_table(["field", "cells", *shown, "µm/px"], rows)
    sources = Counter(reading.field.scale.source for reading in readings if reading.field.scale)
    if sources:
        said = [
            ("" if name == "given" else "guessed from ") + name + f" ({number} fields)" * (len(sources) > 1)
            for name, number in sources.items()
        ]
        typer.echo(f"scale: {', '.join(said)}")
    if of_slide:
        columns = ["fields", "cells", *shown]
        print_table(["slide", *columns], [[name, *(str(n[key]) for key in columns)] for name, n in of_slide.items()])
    for reading in readings:
        if len(readings) <= MOST_EXPLAINED or reading.field.notes:
            about = " ".join((reading.summary, *reading.field.notes))
            typer.echo(f"{shown_name(Path(reading.source).name)}: {about}")
    typer.echo("\n".join((*warnings, RESEARCH_NOTICE)))
