"""A smear on the stage: every white cell found, boxed, measured and classified; each can be opened.

The page, the files and the API at /field show one reading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from html import escape

import numpy as np
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.smear import SmearCell, cut_out
from leukoscope.inference.prediction import FIELD_NEEDS, REFUSED
from leukoscope.inference.smear import AT_EDGE, CellReading, SmearReading
from leukoscope.reports.text import about_model, outcome_text, percent
from leukoscope.synthetic_smears import draw_smear
from leukoscope.web import stage
from leukoscope.web.answer import Answer, Picture, ask
from leukoscope.web.model_cache import ModelCache

EXAMPLE_PITCH = 0.12  # of smears by a 40× objective
SHOWN_SIDE = 1200
_GUESSED = "better give it."  # the end of a note on its scale, for which the stage has its own words
_SCALES = {
    "given": "as given",
    "red cells": "measured on the red cells",
    "nuclei": "guessed from the nuclei: correct it below",
}


@dataclass(frozen=True)
class Smear:
    """A smear and what a model reads in it; lives in a visitor's session, in memory only."""

    picture: Picture
    reading: SmearReading

    def cut_out(self, number: int) -> Image.Image:
        """A whole cell, alone on black."""
        scale = self.reading.smear.scale
        assert scale is not None  # a smear without a scale has no cells
        return cut_out(self.picture.image, self.reading.cells[number].cell, scale.um_per_pixel)

    @property
    def whole(self) -> list[int]:
        """Numbers of the cells that can be opened."""
        return [number for number, one in enumerate(self.reading.cells) if one.prediction]

    @property
    def is_foreign(self) -> bool:
        """Whether too few of its cells are like the training cells for any to get a class."""
        share = self.reading.in_distribution
        return share is not None and share < FIELD_NEEDS


def read_smear(models: ModelCache, picture: Picture, name: str | None) -> Smear:
    """Find and classify the cells of a smear; without a scale, it is measured or guessed.

    Raises:
        UnusableSmear: the picture is no stained smear, its scale cannot be guessed, or it exceeds a limit.
        LeukoscopeError: the model reads whole pictures, or cannot be loaded.
    """
    predictor = models.predictor(name)
    if predictor.release.takes_cut_outs is False:
        raise LeukoscopeError(
            f"{name}: was trained on pictures with their background, not on cells cut out on black; choose a model of "
            "cut-out cells, or give the picture to /predict"
        )
    scale = picture.um_per_pixel or None
    reading = models.read_smear(predictor, picture.image, picture.caption, um_per_pixel=scale)
    # As it was chosen, a revision included.
    return Smear(picture, replace(reading, model=str(name)))


def open_cell(models: ModelCache, smear: Smear, number: int) -> Answer:
    """A cell of a smear with its map, by the model that read the smear: only that one knows how many cells suit it."""
    reading = smear.reading
    if number not in smear.whole:
        raise LeukoscopeError(f"cell {number + 1}: is cut by the edge of {reading.source}; open a whole one")
    remark, share = "Cut out of your picture, as the training cells are.", reading.in_distribution
    cell = Picture(smear.cut_out(number), f"Cell {number + 1} of {reading.source}", remark=remark, field_share=share)
    return Answer(cell, (ask(cell, models, reading.model),))


@cache
def example_smear() -> Picture:
    """A synthetic smear, its scale given; with this seed, each cell gets its class from leukoscope-densenet169-cnmc."""
    classes = ("ALL", "HEM", "ALL", "HEM", "ALL")
    drawn = draw_smear(classes, size=(720, 960), um_per_pixel=EXAMPLE_PITCH, red_cells=90, seed=123)
    return Picture(Image.fromarray(drawn.image), "Synthetic smear", um_per_pixel=EXAMPLE_PITCH)


def cell_size(cell: SmearCell) -> tuple[float, float]:
    """The area of a whole cell in µm² and its nucleus's share, by both outlines.

    They pass over pale cytoplasm, and the parts of a segmented nucleus, so there is no count of lobes.
    """
    share = np.count_nonzero(cell.nucleus) / max(1, int(np.count_nonzero(cell.mask | cell.nucleus)))
    return cell.nucleus_area / max(share, 1e-6), share


def _said(found: CellReading, labels: tuple[str, ...]) -> str:
    """A cell's outcome, with its probability where it has a class."""
    if found.prediction and found.outcome in labels:
        return f"{found.outcome} {percent(found.prediction.probabilities[found.outcome])}"
    return outcome_text(found.outcome)


def smear_picture(smear: Smear) -> str:
    """The smear with a button round each of its cells; cells that the edge cuts are marked, but cannot be opened."""
    image, reading = smear.picture.image, smear.reading
    width, height = image.size
    marks = ""
    for number, found in enumerate(reading.cells):
        left, top, right, bottom = found.cell.box
        # In the right half, the text ends where the box does: it would leave the picture.
        side = "lk-box lk-right" if left + right > width else "lk-box"
        place = (
            f"left:{left / width:.3%};top:{top / height:.3%};width:{(right - left) / width:.3%};"
            f"height:{(bottom - top) / height:.3%};border-color:{stage.colour(found.outcome, reading.labels)};"
            f"border-style:{'dashed' if found.outcome in (*REFUSED, AT_EDGE) else 'solid'}"
        )
        title = f"Cell {number + 1}: {_said(found, reading.labels)}"
        if found.outcome == AT_EDGE:
            marks += f'<span class="{side}" style="{place}" title="{escape(title)}"></span>'
            continue
        short = f"{number + 1} {found.outcome}" if found.outcome in reading.labels else str(number + 1)
        inner = f'<span aria-hidden="true">{escape(short)}</span>'
        marks += stage.act(f"cell:{number}", inner, title=f"{title}; open it", classes=side, state=f' style="{place}"')
    alt = f"{reading.source}; {len(smear.whole)} cells are boxed, each a button"
    caption = f'<div class="lk-top"><span>{escape(reading.source)}</span></div>'
    shown = stage.picture(image, alt, SHOWN_SIDE)
    return f'{caption}<div class="lk-field lk-wide" style="--wide:{width / height:.3f}">{shown}{marks}</div>'


def smear_answer(smear: Smear, others: tuple[str, ...] = ()) -> str:
    """What was found in words, how many cells of each outcome, each cell with its measurements, and how it was read."""
    reading, scale = smear.reading, smear.reading.smear.scale
    about = about_model(reading.model, reading.revision)
    if scale:
        about += f"; {scale.um_per_pixel:.3f} µm per pixel, {_SCALES[scale.source]}"
    notes = [one for one in reading.smear.notes if not one.endswith(_GUESSED)]
    if smear.whole:
        notes += ["Click a cell to open it. Area and nucleus are estimates: pale cytoplasm is partly left out."]
    said = f"White cells: {len(reading.cells)}, whole: {len(smear.whole)}."
    if (share := reading.in_distribution) is not None:
        needed = f"; for a class {percent(FIELD_NEEDS)} must be" if smear.is_foreign else ""
        said += f" {percent(share)} are like the training cells{needed}."
    pitch = (
        '<label>Micrometres per pixel <input type="number" min="0" max="5" step="0.01" '
        f'value="{scale.um_per_pixel if scale else 0:.3g}" data-act="pitch"></label>'
    )
    saves = "".join(stage.act(f"save:{kind}", f"Save {kind.upper()}") for kind in ("png", "csv"))
    found = {outcome: count for outcome, count in reading.counts.items() if count}
    return (
        f'<div data-model="{escape(reading.model)}"><p class="lk-headline" role="status">{said}</p>'
        f"{stage.counts(found, reading.labels)}{''.join(map(stage.note, notes))}"
        f'<ul class="lk-cells">{"".join(_measured(smear, number) for number in smear.whole)}</ul>'
        f'{stage.note(f"{about}.")}<div class="lk-acts">{saves}</div>{stage.readers(others)}'
        f"{stage.details('Another scale', pitch)}</div>"
    )


def _measured(smear: Smear, number: int) -> str:
    """A whole cell with what was measured of it."""
    found, labels = smear.reading.cells[number], smear.reading.labels
    area, share = cell_size(found.cell)
    said = f"{number + 1}: {_said(found, labels)}"
    image = stage.picture(smear.cut_out(number), "", 112)
    return (
        f'<li style="--c:{stage.colour(found.outcome, labels)}">'
        f"{stage.act(f'cell:{number}', image, title=f'Cell {said}; open it', classes='')}"
        f"<b>{escape(said)}</b><span>{area:.0f} µm² · nucleus {percent(share)}</span></li>"
    )
