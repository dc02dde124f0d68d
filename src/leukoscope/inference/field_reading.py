"""A whole field of view, read with a classifier of single cells: a verdict for each, or an honest word why not.

Cells are found by `cells/fields.py`, cut out as the release's training cells were, and answered by its predictor. A
cell the guard does not recognise, or the field's edge cuts, counts as no class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.field_stain import looks_like_smear
from leukoscope.cells.fields import Field, FieldCell, UnusableField, cut_out, find_cells
from leukoscope.cells.images import UnreadableImage
from leukoscope.cells.registry import DATASETS
from leukoscope.inference.verdicts import Thresholds

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Prediction, Predictor
    from leukoscope.models.release_files import ReleaseInfo

NOT_SURE, NOT_RECOGNISED, AT_EDGE = "not sure", "not recognised", "cut by the edge"
WITHOUT_CLASS = (NOT_SURE, NOT_RECOGNISED, AT_EDGE)
# Cut-outs are 0.6 MB each: a field of thousands must not hold them all.
BATCH = 32


@dataclass(frozen=True)
class CellReading:
    """One cell of a field and what is said of it.

    Attributes:
        verdict: a class; or "not sure", "not recognised" or "cut by the edge", which count as none.
        prediction: the release's answer; None for a cell cut by the edge, which is not asked about.
    """

    cell: FieldCell
    verdict: str
    prediction: Prediction | None


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
        """Verdict → number of cells: every class, then what counts as none."""
        found = Counter(cell.verdict for cell in self.cells)
        return {verdict: found[verdict] for verdict in (*self.labels, *WITHOUT_CLASS)}

    @property
    def summary(self) -> str:
        """The field in one or two sentences."""
        asked = [cell for cell in self.cells if cell.prediction]
        if not self.cells:
            return "No nucleated cell was found."
        foreign = self.counts[NOT_RECOGNISED]
        said = f"{len(self.cells)} nucleated cell(s), {len(asked)} of them whole within the field. "
        if asked and foreign > len(asked) / 2:
            return (
                f"{said}The model does not recognise {foreign} of these: it learnt from other microscopes or stains, "
                "and what it says of this field means little."
            )
        shares = ", ".join(f"{self.counts[label]} {label}" for label in self.labels)
        return f"{said}{shares}; {self.counts[NOT_SURE]} not sure, {foreign} not recognised."

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the research notice."""
        scale = self.field.scale
        return {
            "source": self.source,
            "size": list(self.field.size),
            "um_per_pixel": scale and scale.um_per_pixel,
            "scale_from": scale and scale.source,
            "counts": self.counts,
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
    if takes_cut_outs(release) is False:
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
    # Where a release has no such threshold, it is never "not sure".
    threshold = Thresholds.from_metrics(release.metrics).abstain_below or 0.0
    answers = _answers(predictor, image, field)
    readings = []
    for cell in field.cells:
        prediction = next(answers) if cell.whole else None
        readings.append(CellReading(cell, _verdict(prediction, threshold), prediction))
    return FieldReading(source, field, tuple(predictor.labels), tuple(readings), release.name, release.revision)


def takes_cut_outs(release: ReleaseInfo) -> bool | None:
    """Whether a release learnt from cells cut out on black; None where its data set is not a registered one."""
    info = DATASETS.get(release.metrics.get("data", {}).get("name", ""))
    return None if info is None else info.background == "black"


def refuse_smear(release: ReleaseInfo, image: Image.Image, source: str) -> None:
    """Refuse to classify a smear as if it were one cell.

    Args:
        source: what the picture is called.

    Raises:
        UnreadableImage: the release takes cells cut out on black, and this shows a smear; names the way to go.
    """
    if takes_cut_outs(release) and looks_like_smear(image):
        raise UnreadableImage(
            f"{source}: shows a smear, but {release.name} knows cells cut out on black, and a label for it would mean "
            f"nothing; find and classify the cells in it with: leukoscope field {source} --model {release.name}"
        )


def _answers(predictor: Predictor, image: Image.Image, field: Field) -> Iterator[Prediction]:
    whole = [cell for cell in field.cells if cell.whole]
    for first in range(0, len(whole), BATCH):
        assert field.scale is not None
        scale = field.scale.um_per_pixel
        yield from predictor([cut_out(image, cell, scale) for cell in whole[first : first + BATCH]])


def _verdict(prediction: Prediction | None, threshold: float) -> str:
    if prediction is None:
        return AT_EDGE
    if prediction.recognised is False:
        return NOT_RECOGNISED
    return prediction.label if prediction.probabilities[prediction.label] >= threshold else NOT_SURE


def _cell_dict(reading: CellReading) -> dict[str, Any]:
    cell, prediction = reading.cell, reading.prediction
    return {
        "box": list(cell.box),
        "verdict": reading.verdict,
        "probabilities": prediction and dict(prediction.probabilities),
        "guard_score": prediction and prediction.guard_score,
        "nucleus_um2": cell.nucleus_area,
    }
