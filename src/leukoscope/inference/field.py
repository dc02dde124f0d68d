"""Read a whole field of view with a classifier of single cells: find, cut out and predict each of its cells.

No cell of a field gets a class where most of its cells are out of distribution.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.fields import (
    Field,
    FieldCell,
    ScaleSource,
    UnusableField,
    cut_out,
    find_cells,
    measure_scale,
    measure_stain,
)
from leukoscope.data.images import CUT_OUT_PITCH, open_field, to_rgb
from leukoscope.inference.prediction import (
    ABSTAIN,
    FIELD_NEEDS,
    NOT_A_CELL,
    OUT_OF_DISTRIBUTION,
    REFUSED,
    WITHOUT_CLASS,
)

if TYPE_CHECKING:
    from leukoscope.inference.prediction import Prediction
    from leukoscope.inference.predictor import Predictor

AT_EDGE = "cut by the edge"
CUT_OUT_AS_C_NMC = (
    f"Cells are cut out on black at {CUT_OUT_PITCH:g} µm per pixel, as those of C-NMC 2019 are; whether the model was "
    "trained on such cells is not known."
)


@dataclass(frozen=True)
class CellReading:
    """One cell of a field and its prediction; none for a cell that the field's edge cuts."""

    cell: FieldCell
    prediction: Prediction | None

    @property
    def outcome(self) -> str:
        """The outcome of its decision, or "cut by the edge"."""
        return self.prediction.outcome if self.prediction else AT_EDGE


@dataclass(frozen=True, repr=False)
class FieldReading:
    """A field of view with the predictions of one release.

    Attributes:
        source: the picture's name.
        labels, model, revision: of the release.
        cells: in the order of the field's cells.
    """

    source: str
    field: Field
    labels: tuple[str, ...]
    cells: tuple[CellReading, ...]
    model: str
    revision: str

    def __repr__(self) -> str:
        return f"FieldReading({self.source!r}, {self.counts}, model={self.model!r})"

    @property
    def counts(self) -> dict[str, int]:
        """Outcome → number of cells: every class, then the outcomes without one."""
        found = Counter(cell.outcome for cell in self.cells)
        return {outcome: found[outcome] for outcome in (*self.labels, *WITHOUT_CLASS, AT_EDGE)}

    @property
    def in_distribution(self) -> float | None:
        """Share of the whole cells that are in distribution; None without cells or without an OOD detector."""
        return _share_in_distribution([cell.prediction for cell in self.cells if cell.prediction])

    @property
    def summary(self) -> str:
        """The field in one or two sentences."""
        whole = sum(cell.prediction is not None for cell in self.cells)
        if not self.cells:
            return "No nucleated cell was found."
        found = f"{len(self.cells)} nucleated cell(s), {whole} of them whole within the field. "
        share = self.in_distribution
        if share is not None and share < FIELD_NEEDS:
            return (
                f"{found}Out of distribution: only {share:.0%} of these are like the cells the model was trained on "
                f"(another microscope or stain), less than the {FIELD_NEEDS:.0%} needed; no cell gets a class."
            )
        shares = ", ".join(f"{self.counts[label]} {label}" for label in self.labels)
        without = ", ".join(f"{self.counts[one]} {one}" for one in WITHOUT_CLASS if self.counts[one])
        about = "" if share is None else f" {share:.0%} of the whole cells are like those the model was trained on."
        return f"{found}{shares}{f'; no class: {without}' if without else ''}.{about}"

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, with the research notice."""
        scale = self.field.scale
        return {
            "source": self.source,
            "size": list(self.field.size),
            "um_per_pixel": scale and scale.um_per_pixel,
            "scale_from": scale and scale.source,
            "counts": self.counts,
            "in_distribution": self.in_distribution,
            "summary": self.summary,
            "notes": list(self.field.notes),
            "cells": [
                {
                    "box": list(one.cell.box),
                    "outcome": one.outcome,
                    "reasons": [reason.to_dict() for reason in one.prediction.decision.reasons]
                    if one.prediction
                    else [],
                    "probabilities": one.prediction and dict(one.prediction.probabilities),
                    "ood_score": one.prediction and one.prediction.checks.ood_score,
                    "nucleus_um2": one.cell.nucleus_area,
                }
                for one in self.cells
            ],
            "model": self.model,
            "revision": self.revision,
            "notice": RESEARCH_NOTICE,
        }


def read_field(
    predictor: Predictor,
    image: Image.Image | str | Path,
    source: str = "",
    *,
    um_per_pixel: float | None = None,
    scale_source: ScaleSource = "given",
    most_cells: int | None = None,
    seconds: float | None = None,
    batch_size: int = 16,
) -> FieldReading:
    """Find a field's cells and predict each.

    Args:
        image: an RGB picture of any size, or the path of one of up to 178 megapixels.
        source: its name in the result and in messages; "" for its path, or "field" where it has none.
        um_per_pixel: the picture's scale where it is known, from `scale_source`; else it is guessed.
        most_cells, seconds: limits; None for any number and any time.
        batch_size: cells that go through the network at once.

    Raises:
        UnreadableImage: the file cannot be opened.
        UnusableField: the picture is no stained smear, its scale cannot be guessed, or it exceeds a limit.
        LeukoscopeError: the release was trained on pictures with their background rather than on cut-out cells.
    """
    release = predictor.release
    if release.takes_cut_outs is False:
        raise LeukoscopeError(
            f"{release.name}: was trained on pictures with their background, not on cells cut out on black; choose a "
            "release of cut-out cells for a field, or predict the picture as it is (leukoscope predict)"
        )
    if not isinstance(image, Image.Image):
        image, source = open_field(image), source or str(image)
    elif image.mode != "RGB":
        image = to_rgb(image, source or "field")
    source, started = source or "field", time.monotonic()

    def check() -> None:
        if seconds is not None and time.monotonic() - started > seconds:
            raise UnusableField(
                f"{source}: takes longer than the {seconds:g} seconds given to a field here; crop it, or use "
                "leukoscope field on your own machine"
            )

    try:
        field = find_cells(
            image, um_per_pixel=um_per_pixel, scale_source=scale_source, most_cells=most_cells, check=check
        )
    except UnusableField as error:
        raise UnusableField(f"{source}: {str(error).removeprefix(f'{source}: ')}") from None
    if release.takes_cut_outs is None and field.cells:
        field = replace(field, notes=(*field.notes, CUT_OUT_AS_C_NMC))
    scale = field.scale.um_per_pixel if field.scale else 1.0  # without cells there may be none

    def cut_outs() -> Iterator[Image.Image]:
        for cell in field.cells:
            if cell.whole:
                check()
                yield cut_out(image, cell, scale)

    predictions = predictor(cut_outs(), batch_size=batch_size)
    share = _share_in_distribution(predictions)
    in_order = iter(prediction.in_field(share, predictor.thresholds) for prediction in predictions)
    cells = tuple(CellReading(cell, next(in_order) if cell.whole else None) for cell in field.cells)
    return FieldReading(source, field, tuple(predictor.labels), cells, release.name, release.revision)


def _share_in_distribution(predictions: Iterable[Prediction]) -> float | None:
    scores = [prediction.checks.ood_score for prediction in predictions]
    inside = [score <= 1 for score in scores if score is not None]
    return sum(inside) / len(inside) if inside else None


def series_scale(images: Iterable[Image.Image]) -> float | None:
    """Compute the median scale, in µm per pixel, of fields taken with one microscope; None without red cells."""
    scales = []
    for image in images:
        stain = measure_stain(image)
        scale = None if stain.problem or not stain.holds_nuclei else measure_scale(image, stain)
        if scale is not None and scale.source == "red cells":
            scales.append(scale.um_per_pixel)
    return float(np.median(scales)) if scales else None


# Okabe & Ito (2008): told apart by people with any colour vision.
CLASS_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
OTHER_COLOURS = {ABSTAIN: "#56565b", OUT_OF_DISTRIBUTION: "#000000", NOT_A_CELL: "#000000", AT_EDGE: "#8a8a8f"}
DASHED = (*REFUSED, AT_EDGE)
# Below the second, names of outcomes would not fit.
DRAWN_SIDE, SMALLEST_SIDE = 1600, 800


def draw_reading(image: Image.Image, reading: FieldReading, *, translate: Callable[[str], str] = str) -> Image.Image:
    """Draw every cell's box, its number as in the table and its outcome, and a legend below.

    Args:
        translate: gives the legend's outcomes and the research notice in another language.

    Returns:
        RGB, the field 800 to 1600 pixels at its longest side. Classes have full lines, cells abstained from a thin one,
        the others dashed ones; cells out of distribution are crossed out.
    """
    factor = min(DRAWN_SIDE, max(SMALLEST_SIDE, *image.size)) / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    line, font_size = max(2, round(max(size) / 400)), max(11, round(max(size) / 60))
    font, step = drawing_font(round(0.9 * font_size)), int(font_size * 1.5)
    field = image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(field)
    colours = {label: CLASS_COLOURS[k % len(CLASS_COLOURS)] for k, label in enumerate(reading.labels)} | OTHER_COLOURS
    for number, cell in enumerate(reading.cells, start=1):
        box, colour = tuple(edge * factor for edge in cell.cell.box), colours[cell.outcome]
        left, top, right, bottom = box
        if cell.outcome in DASHED:
            corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
            for start, end in pairwise(corners):
                _draw_dashes(pen, start, end, colour, line)
        else:
            pen.rectangle(box, outline=colour, width=1 if cell.outcome == ABSTAIN else line)
        if cell.outcome in REFUSED:
            pen.line((left, top, right, bottom), colour, 1)
            pen.line((left, bottom, right, top), colour, 1)
        text = str(number)
        if cell.outcome in reading.labels and cell.prediction:
            share = cell.prediction.probabilities[cell.outcome]
            # In whole per cent, but never rounded to certainty.
            text += f" {cell.outcome} > 99 %" if 0.99 < share < 1 else f" {cell.outcome} {100 * share:.0f} %"
        pen.text((left, max(0, top - font_size - 2)), text, colour, font)
    counts = [(f"{translate(outcome)}: {count}", colours[outcome]) for outcome, count in reading.counts.items()]
    notice = [(word, "#3c3c41") for word in translate(RESEARCH_NOTICE).split()]
    placed, y = [], size[1] + 4
    for texts, gap in ((counts, 2.0 * font_size), (notice, pen.textlength(" ", font))):
        x = 6.0
        for text, colour in texts:
            length = pen.textlength(text, font)
            if x > 6 and x + length > size[0] - 6:
                x, y = 6.0, y + step
            placed.append(((x, y), text, colour))
            x += length + gap
        y += step
    drawn = Image.new("RGB", (size[0], y + 2), "white")
    drawn.paste(field, (0, 0))
    pen = ImageDraw.Draw(drawn)
    for at, text, colour in placed:
        pen.text(at, text, colour, font)
    return drawn


def drawing_font(size: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans from matplotlib at a size in pixels; Pillow's own font lacks umlauts."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _draw_dashes(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: str, width: int
) -> None:
    length = max(1.0, abs(end[0] - start[0]) + abs(end[1] - start[1]))
    count = max(2, round(length / (4 * width)))
    for dash in range(count):
        a, b = dash / count, (dash + 0.6) / count
        at = [start[k] + share * (end[k] - start[k]) for share in (a, b) for k in (0, 1)]
        pen.line(at, colour, width)
