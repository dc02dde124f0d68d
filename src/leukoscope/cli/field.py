"""`leukoscope field`: the cells of a smear, found, cut out and classified, with a picture that shows which is which."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.errors import say_error, shown_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.inference.field_reading import FieldReading


def field(
    images: Annotated[list[Path], typer.Argument(metavar="IMG", help="Fields of view: photographs of stained smears.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Release folder, or Hub id owner/name or owner/name@revision.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the outcomes over the field; of several, to PNG-<name of the field>."),
    ] = None,
    um_per_pixel: Annotated[
        float | None, typer.Option("--um-per-pixel", help="Micrometres a pixel; else read from the red cells.")
    ] = None,
    one_scale: Annotated[
        bool,
        typer.Option("--one-scale", help="The fields are of one microscope: use the median of their scales."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of a table.")] = False,
) -> None:
    """Find the nucleated cells of smears and classify each with a model of cut-out cells."""
    from leukoscope.cells.images import open_field
    from leukoscope.inference.field_reading import read_field, series_scale
    from leukoscope.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(model)
    readings, failed = [], False
    if one_scale and um_per_pixel is None:
        um_per_pixel = series_scale(_opened(images))
    overlays = iter(_overlay_paths(out, images) if out is not None else ())
    for path in images:
        overlay = next(overlays, None)
        try:
            image = open_field(path)
            readings.append(read_field(predictor, image, str(path), um_per_pixel=um_per_pixel))
            if overlay is not None:
                typer.echo(f"overlay: {_save_overlay(image, readings[-1], overlay)}", err=True)
        except LeukoscopeError as error:
            say_error(error)
            failed = True
    if as_json:
        typer.echo(json.dumps([reading.to_dict() for reading in readings], indent=1))
    elif readings:
        _print_table(readings)
    if failed:
        raise typer.Exit(1)


def _opened(images: Sequence[Path]) -> Iterator[Image]:
    """The fields that can be read, one at a time; what is wrong with the others is told when they are read."""
    from leukoscope.cells.images import open_field

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


def _save_overlay(image: Image, reading: FieldReading, path: Path) -> Path:
    from PIL.PngImagePlugin import PngInfo

    from leukoscope.inference.field_overlay import draw_reading

    about = PngInfo()
    about.add_itxt("Title", f"{shown_name(reading.source)} read by {reading.model}: {reading.summary}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_reading(image, reading).save(aside, format="PNG", pnginfo=about)
        return aside.replace(path)
    except OSError as error:
        raise LeukoscopeError(
            f"{path}: cannot write there ({error.strerror or error}); free some space or name another file"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _print_table(readings: Sequence[FieldReading]) -> None:
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
