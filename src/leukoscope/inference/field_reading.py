"""A whole field of view, read with a classifier of single cells: a decision for each of its cells.

Cells are found by `cells/fields.py`, cut out as the release's training cells were, and predicted by its predictor. A
field most of whose cells are out of distribution gets no class at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.field_scale import measure_scale
from leukoscope.cells.field_stain import measure_stain
from leukoscope.cells.fields import Field, FieldCell, UnusableField, cut_out, find_cells
from leukoscope.inference.decision import FIELD_NEEDS, WITHOUT_CLASS

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Prediction, Predictor

AT_EDGE = "cut by the edge"
# Cut-outs are 0.6 MB each: a field of thousands must not hold them all.
BATCH = 32


@dataclass(frozen=True)
class CellReading:
    """One cell of a field and what is predicted of it; no prediction for a cell that the field's edge cuts."""

    cell: FieldCell
    prediction: Prediction | None

    @property
    def outcome(self) -> str:
        """That of its decision, or "cut by the edge"."""
        return self.prediction.outcome if self.prediction else AT_EDGE


@dataclass(frozen=True)
class FieldReading:
    """A field of view as one release reads it.

    Attributes:
        source: the picture's name.
        labels: the release's classes.
        cells: in the order of the field's cells.
        model, revision: which release.
    """

    source: str
    field: Field
    labels: tuple[str, ...]
    cells: tuple[CellReading, ...]
    model: str
    revision: str

    @property
    def counts(self) -> dict[str, int]:
        """Outcome → number of cells: every class, then what counts as none."""
        found = Counter(cell.outcome for cell in self.cells)
        return {outcome: found[outcome] for outcome in (*self.labels, *WITHOUT_CLASS, AT_EDGE)}

    @property
    def share_known(self) -> float | None:
        """Share of the whole cells that are in distribution; None without cells or without an OOD detector."""
        scores = [cell.prediction.checks.ood_score for cell in self.cells if cell.prediction]
        known = [score <= 1 for score in scores if score is not None]
        return sum(known) / len(known) if known else None

    @property
    def summary(self) -> str:
        """The field in one or two sentences."""
        whole = sum(cell.prediction is not None for cell in self.cells)
        if not self.cells:
            return "No nucleated cell was found."
        said = f"{len(self.cells)} nucleated cell(s), {whole} of them whole within the field. "
        share = self.share_known
        if share is not None and share < FIELD_NEEDS:
            return (
                f"{said}Out of distribution: only {share:.0%} of these are like the cells the model was trained on "
                f"(another microscope or stain), less than the {FIELD_NEEDS:.0%} needed; no cell gets a class."
            )
        shares = ", ".join(f"{self.counts[label]} {label}" for label in self.labels)
        without = ", ".join(f"{self.counts[one]} {one}" for one in WITHOUT_CLASS if self.counts[one])
        about = "" if share is None else f" {share:.0%} of the whole cells are like those the model was trained on."
        return f"{said}{shares}{f'; no class: {without}' if without else ''}.{about}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the research notice."""
        scale = self.field.scale
        return {
            "source": self.source,
            "size": list(self.field.size),
            "um_per_pixel": scale and scale.um_per_pixel,
            "scale_from": scale and scale.source,
            "counts": self.counts,
            "share_known": self.share_known,
            "summary": self.summary,
            "notes": list(self.field.notes),
            "cells": [_cell_dict(reading) for reading in self.cells],
            "model": self.model,
            "revision": self.revision,
            "notice": RESEARCH_NOTICE,
        }


def read_field(
    predictor: Predictor,
    image: Image.Image,
    source: str = "field",
    *,
    um_per_pixel: float | None = None,
    most_cells: int | None = None,
) -> FieldReading:
    """Find a field's cells and answer for each.

    Args:
        image: RGB, of any size.
        um_per_pixel: the picture's scale where it is known; else it is read from the red cells.
        most_cells: how many cells may be answered for; None for any number.

    Raises:
        UnusableField: the picture cannot be read as a stained smear, or shows more cells than that.
        LeukoscopeError: the release answers for whole fields rather than for cut-out cells.
    """
    release = predictor.release
    if release.takes_cut_outs is False:
        raise LeukoscopeError(
            f"{release.name}: learnt from pictures with their background, not from cells cut out on black; choose "
            "a release of cut-out cells for a field, or ask this one about the picture as it is (leukoscope predict)"
        )
    try:
        field = find_cells(image, um_per_pixel=um_per_pixel)
    except UnusableField as error:
        raise UnusableField(f"{source}: {error}") from None
    if most_cells is not None and len(field.cells) > most_cells:
        raise UnusableField(
            f"{source}: shows {len(field.cells)} nucleated cells, more than the {most_cells} answered for at once; "
            "crop it, check its scale, or use leukoscope field on your own machine"
        )
    answers = _answers(predictor, image, field)
    readings = tuple(CellReading(cell, next(answers) if cell.whole else None) for cell in field.cells)
    reading = FieldReading(source, field, tuple(predictor.labels), readings, release.name, release.revision)
    if reading.share_known is None:
        return reading
    cells = tuple(_within(one, reading.share_known, predictor) for one in readings)
    return replace(reading, cells=cells)


def series_scale(images: Iterable[Image.Image]) -> float | None:
    """One scale for fields of one series, taken with one microscope: the median of theirs.

    Returns:
        Micrometres a pixel; None where no field tells it by its red cells.
    """
    scales = []
    for image in images:
        stain = measure_stain(image)
        scale = None if stain.problem or not stain.holds_nuclei else measure_scale(image, stain)
        if scale is not None and scale.source == "red cells":
            scales.append(scale.um_per_pixel)
    return float(np.median(scales)) if scales else None


def _within(cell: CellReading, share_known: float, predictor: Predictor) -> CellReading:
    """A cell's reading, decided knowing how much of its field is in distribution."""
    if cell.prediction is None:
        return cell
    checks = replace(cell.prediction.checks, field_share=share_known)
    decision = predictor.thresholds.decide(cell.prediction.probabilities, checks)
    return replace(cell, prediction=replace(cell.prediction, decision=decision, checks=checks))


def _answers(predictor: Predictor, image: Image.Image, field: Field) -> Iterator[Prediction]:
    whole = [cell for cell in field.cells if cell.whole]
    for first in range(0, len(whole), BATCH):
        assert field.scale is not None
        scale = field.scale.um_per_pixel
        yield from predictor([cut_out(image, cell, scale) for cell in whole[first : first + BATCH]])


def _cell_dict(reading: CellReading) -> dict[str, Any]:
    cell, prediction = reading.cell, reading.prediction
    return {
        "box": list(cell.box),
        "outcome": reading.outcome,
        "reasons": [reason.to_dict() for reason in prediction.decision.reasons] if prediction else [],
        "probabilities": prediction and dict(prediction.probabilities),
        "ood_score": prediction and prediction.checks.ood_score,
        "nucleus_um2": cell.nucleus_area,
    }
