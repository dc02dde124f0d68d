"""Read a smear with a classifier of single cells: find, cut out and predict each of its cells.

No cell of a smear gets a class where most of its cells are out of distribution.
"""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from leukoscope import RESEARCH_NOTICE, ReleaseError
from leukoscope.data.images import CUT_OUT_PITCH, FILLED_WITH, open_smear, to_rgb
from leukoscope.data.registry import DATASETS, EMPTY_SLIDE_RGB
from leukoscope.data.smear import Smear, SmearCell, UnusableSmear, cut_out, find_cells
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
TRANSPARENT = "Its transparent parts were read as an empty slide."
# Of results/steady_smears.json.
UNSTEADY = (
    "Outcomes hang on small differences: of 100 cells of synthetic smears, 31 to 35 got another one at a scale that "
    "differs by 0.5 %."
)
# Okabe & Ito (2008): told apart by people with any colour vision.
CLASS_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
# Places in it where a release has a class of normal cells: they are blue, the others warm as far as possible.
NORMAL_PLACE = 1
OTHER_PLACES = (0, 3, 2, 4)
OTHER_COLOURS = {ABSTAIN: "#56565b", OUT_OF_DISTRIBUTION: "#000000", NOT_A_CELL: "#000000", AT_EDGE: "#8a8a8f"}
DRAWN_SIDES = (800, 1600)  # in a smaller picture names of outcomes would not fit
_LEAST_WIDTH = 300  # of a caption, in pixels


def colour_place(label: str, labels: Sequence[str]) -> int:
    """The place of a class in `CLASS_COLOURS`: normal cells are blue in every release, whatever the classes' order."""
    normal_labels = {info.normal_label for info in DATASETS.values()} - {""}
    normal = [name for name in labels if name in normal_labels]
    if not normal:
        return list(labels).index(label) % len(CLASS_COLOURS)
    if label in normal:
        return NORMAL_PLACE
    others = [name for name in labels if name not in normal]
    return OTHER_PLACES[others.index(label) % len(OTHER_PLACES)]


@dataclass(frozen=True)
class CellReading:
    """One cell of a smear and its prediction; none for a cell that the picture's edge cuts."""

    cell: SmearCell
    prediction: Prediction | None

    @property
    def outcome(self) -> str:
        """The outcome of its decision, or "cut by the edge"."""
        return self.prediction.outcome if self.prediction else AT_EDGE

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        facts: dict[str, Any] = {
            "box": list(self.cell.box),
            "outcome": self.outcome,
            "reasons": [],
            "probabilities": None,
            "ood_score": None,
            "nucleus_um2": self.cell.nucleus_area,
        }
        if self.prediction is not None:
            facts["reasons"] = [reason.to_dict() for reason in self.prediction.decision.reasons]
            facts["probabilities"] = dict(self.prediction.probabilities)
            facts["ood_score"] = self.prediction.checks.ood_score
        return facts


@dataclass(frozen=True)
class SmearReading:
    """A smear with the predictions of one release; `source` is the picture's name.

    A cell's number, from 1, is its place in `cells`: whole cells come first, then those that the picture's edge cuts.
    """

    source: str
    smear: Smear
    labels: tuple[str, ...]
    cells: tuple[CellReading, ...]
    model: str
    revision: str

    @property
    def counts(self) -> dict[str, int]:
        """Outcome → number of cells: every class, then the outcomes without one."""
        number_of = Counter(cell.outcome for cell in self.cells)
        return {outcome: number_of[outcome] for outcome in (*self.labels, *WITHOUT_CLASS, AT_EDGE)}

    @property
    def in_distribution(self) -> float | None:
        """Share of the whole cells that are in distribution; None without cells or without an OOD detector."""
        return _share_in_distribution(cell.prediction for cell in self.cells if cell.prediction)

    @property
    def summary(self) -> str:
        """The smear in one or two sentences."""
        if not self.cells:
            return "No nucleated cell was found."
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)
        summary = f"{len(self.cells)} nucleated cell(s): {counts}."
        share = self.in_distribution
        if share is None:
            return summary
        summary += f" {share:.0%} of the whole cells are like those the model was trained on"
        if share < FIELD_NEEDS:
            summary += f", less than the {FIELD_NEEDS:.0%} needed (another microscope or stain): no cell gets a class"
        return f"{summary}."

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, with the research notice."""
        scale = self.smear.scale
        return {
            "source": self.source,
            "size": list(self.smear.size),
            "um_per_pixel": scale and scale.um_per_pixel,
            "scale_from": scale and scale.source,
            "counts": self.counts,
            "in_distribution": self.in_distribution,
            "summary": self.summary,
            "notes": list(self.smear.notes),
            "cells": [cell.to_dict() for cell in self.cells],
            "model": self.model,
            "revision": self.revision,
            "notice": RESEARCH_NOTICE,
        }


def read_smear(
    predictor: Predictor,
    image: Image.Image | str | Path,
    source: str = "",
    *,
    um_per_pixel: float | None = None,
    most_cells: int | None = None,
    seconds: float | None = None,
    stopped: Callable[[], bool] | None = None,
    batch_size: int = 16,
) -> SmearReading:
    """Find the cells of a stained smear and predict each.

    Args:
        image: a picture of any size, or the path of one of up to 178 megapixels.
        source: its name in the result and in messages; "" for its path, or "smear" where it has none.
        um_per_pixel: the picture's scale; None measures it on red cells or nuclei.
        most_cells, seconds: limits; None for any number and any time.
        stopped: whether nobody waits for the result any more; asked before each cell.

    Raises:
        UnreadableImage: the file cannot be opened.
        UnusableSmear: the picture is no stained smear, its scale cannot be measured, it exceeds a limit, or its reading
            was stopped.
        ReleaseError: the release was trained on pictures with their background rather than on cut-out cells.
    """
    release = predictor.release
    if release.takes_cut_outs is False:
        raise ReleaseError(
            f"{release.name}: was trained on pictures with their background, not on cells cut out on black; choose a "
            "release of such cells for a smear, or predict the picture as it is (leukoscope predict)"
        )
    source = source or ("smear" if isinstance(image, Image.Image) else str(image))
    if isinstance(image, Image.Image):
        picture = to_rgb(image, source, ground=EMPTY_SLIDE_RGB)
    else:
        picture = open_smear(image, ground=EMPTY_SLIDE_RGB)
    started = time.monotonic()

    def check() -> None:
        if seconds is not None and time.monotonic() - started > seconds:
            raise UnusableSmear(f"takes longer than {seconds:g} seconds; crop it, or use leukoscope smear yourself")
        if stopped is not None and stopped():
            raise UnusableSmear("its reading was stopped; give it again")

    def cut_outs() -> Iterator[Image.Image]:
        for cell in smear.cells:
            if cell.whole and smear.scale:
                check()
                yield cut_out(picture, cell, smear.scale.um_per_pixel)

    try:
        smear = find_cells(picture, um_per_pixel=um_per_pixel, most_cells=most_cells, check=check)
        predictions = predictor(cut_outs(), batch_size=batch_size)
    except UnusableSmear as error:
        raise UnusableSmear(f"{source}: {error}") from None
    notes = [*smear.notes]
    if release.takes_cut_outs is None and smear.cells:
        notes.append(CUT_OUT_AS_C_NMC)
    if FILLED_WITH in picture.info:
        notes.append(TRANSPARENT)
    if predictions:
        notes.append(UNSTEADY)
    smear = replace(smear, notes=tuple(notes))
    share = _share_in_distribution(predictions)
    in_order = iter(prediction.in_field(share, predictor.thresholds) for prediction in predictions)
    cells = [CellReading(cell, next(in_order) if cell.whole else None) for cell in smear.cells]
    cells.sort(key=lambda cell: cell.prediction is None)
    return SmearReading(source, smear, tuple(predictor.labels), tuple(cells), release.name, release.revision)


def _share_in_distribution(predictions: Iterable[Prediction]) -> float | None:
    scores = [cell.checks.ood_score for cell in predictions if cell.checks.ood_score is not None]
    if not scores:
        return None
    return sum(score <= 1 for score in scores) / len(scores)


def draw_reading(image: Image.Image, reading: SmearReading) -> Image.Image:
    """Draw every cell's box, its number as in the table and its outcome, and counts and notice below.

    Boxes of classes are thick, and cells out of distribution are crossed out.
    """
    factor = min(DRAWN_SIDES[1], max(DRAWN_SIDES[0], *image.size)) / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    letter = max(11, round(max(width, height) / 60))
    counts = ", ".join(f"{outcome}: {count}" for outcome, count in reading.counts.items())
    resized = image.resize((width, height), Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC)
    drawn = with_caption(resized, f"{counts}. {RESEARCH_NOTICE}")
    pen = ImageDraw.Draw(drawn)
    font = _drawing_font(round(0.9 * letter))
    for number, cell in enumerate(reading.cells, start=1):
        left, top, right, bottom = (edge * factor for edge in cell.cell.box)
        if cell.prediction and cell.outcome in reading.labels:
            share = cell.prediction.probabilities[cell.outcome]
            # In whole per cent, but never rounded to certainty.
            per_cent = "> 99" if 0.99 < share < 1 else f"{100 * share:.0f}"
            text = f"{number} {cell.outcome} {per_cent} %"
            colour = CLASS_COLOURS[colour_place(cell.outcome, reading.labels)]
            width_of_line = max(2, letter // 7)
        else:
            text = str(number)
            colour = OTHER_COLOURS.get(cell.outcome, "")
            width_of_line = 1
        pen.rectangle((left, top, right, bottom), outline=colour, width=width_of_line)
        if cell.outcome in REFUSED:
            pen.line((left, top, right, bottom), colour, 1)
            pen.line((left, bottom, right, top), colour, 1)
        pen.text((left, max(0, top - letter - 2)), text, colour, font)
    return drawn


def with_caption(picture: Image.Image, text: str) -> Image.Image:
    """Put a text below a picture, in black on white, on lines as wide as the picture or 300 pixels."""
    width = max(picture.width, _LEAST_WIDTH)
    letter = max(11, width // 60)
    font = _drawing_font(letter)
    lines = textwrap.wrap(text, int((width - letter) / font.getlength("n")))
    captioned = Image.new("RGB", (width, picture.height + round(1.3 * letter) * len(lines) + letter), "white")
    captioned.paste(picture)
    corner = (letter // 2, picture.height + letter // 2)
    ImageDraw.Draw(captioned).multiline_text(corner, "\n".join(lines), "black", font, spacing=0)
    return captioned


def _drawing_font(size: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans from matplotlib at a size in pixels; Pillow's own font lacks accents and µ."""
    # Imported before the cache's folder is known, matplotlib says in its own words that there is no home.
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
