"""A smear on the stage: every white cell found, boxed, measured and classified; each can be opened.

The smear is read once; what stands on the page, in the files and behind the boxes comes from that reading. The same
steps serve the API at /field.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from functools import cache
from html import escape

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import CUT_OUT_PITCH
from leukoscope.data.smear import SmearCell, cut_out
from leukoscope.inference.prediction import FIELD_NEEDS, REFUSED
from leukoscope.inference.scoring import safe_cell
from leukoscope.inference.smear import AT_EDGE, CellReading, SmearReading, draw_reading
from leukoscope.reports.text import about_model, outcome_text, percent
from leukoscope.synthetic import draw_smear
from leukoscope.web import stage
from leukoscope.web.answer import Answer, Picture, ask
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import File, png_file, safe_stem

# Seed and classes; drawn at a scale that the smears of a 40× objective have. With this seed, each cell gets its class
# from leukoscope-densenet169-cnmc.
EXAMPLE_SEED, EXAMPLE_CLASSES = 66, ("ALL", "HEM", "ALL", "HEM", "ALL")
EXAMPLE_SIZE, EXAMPLE_PITCH = (720, 960), 0.12
SHOWN_SIDE = 1200
_GUESSED = "better give it."  # the end of a note on its scale, for which the stage has its own words
_SCALES = {
    "given": "as given",
    "red cells": "measured on the red cells",
    "nuclei": "guessed from the nuclei: correct it below",
    "red cells of the series": "measured on the red cells of the series",
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
    reading = models.read_smear(predictor, picture.image, picture.caption, picture.um_per_pixel or None)
    # As it was chosen, a revision included.
    return Smear(picture, replace(reading, model=str(name)))


def open_cell(models: ModelCache, smear: Smear, number: int) -> Answer:
    """A cell of a smear with its map, by the model that read the smear: only that one knows how many cells suit it."""
    reading = smear.reading
    if number not in smear.whole:
        raise LeukoscopeError(f"cell {number + 1}: is cut by the edge of {reading.source}; open a whole one")
    cell = Picture(
        smear.cut_out(number),
        f"Cell {number + 1} of {reading.source}",
        um_per_pixel=CUT_OUT_PITCH,
        remark="Cut out of your picture, as the training cells are.",
        field_share=reading.in_distribution,
    )
    return Answer(cell, (ask(cell, models, reading.model),))


@cache
def _drawn() -> Image.Image:
    drawn = draw_smear(EXAMPLE_CLASSES, size=EXAMPLE_SIZE, um_per_pixel=EXAMPLE_PITCH, red_cells=90, seed=EXAMPLE_SEED)
    return Image.fromarray(drawn.image)


def example_smear() -> Picture:
    """A synthetic smear, its scale given."""
    return Picture(_drawn(), "Synthetic smear", um_per_pixel=EXAMPLE_PITCH)


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
    found = {outcome: count for outcome, count in reading.counts.items() if count}
    hint = "Click a cell to open it." if smear.whole else ""
    said = f"White cells: {len(reading.cells)}, whole: {len(smear.whole)}."
    if (share := reading.in_distribution) is not None:
        needed = f"; for a class {percent(FIELD_NEEDS)} must be" if smear.is_foreign else ""
        said += f" {percent(share)} are like the training cells{needed}."
    pitch = scale.um_per_pixel if scale else 0
    given = (
        f'<label>Micrometres per pixel <input type="number" min="0" max="5" step="0.01" value="{pitch:.3g}" '
        'data-act="pitch"></label>'
    )
    saves = "".join(stage.act(f"save:{kind}", f"Save {kind.upper()}") for kind in ("png", "csv"))
    return (
        f'<div data-model="{escape(reading.model)}">'
        f'<p class="lk-headline" role="status">{said}</p>'
        f"{stage.counts(found, reading.labels)}{''.join(map(stage.note, notes))}{stage.note(hint)}{strip(smear)}"
        f'{stage.note(f"{about}.")}<div class="lk-acts">{saves}</div>{stage.readers(others)}'
        f"{stage.details('Another scale', given)}</div>"
    )


def strip(smear: Smear) -> str:
    """The whole cells side by side with what was measured of each."""
    reading, shown = smear.reading, ""
    for number in smear.whole:
        found = reading.cells[number]
        area, share = cell_size(found.cell)
        text = f"{number + 1}: {_said(found, reading.labels)}"
        image = stage.picture(smear.cut_out(number), "", 112)
        shown += (
            f'<li style="--c:{stage.colour(found.outcome, reading.labels)}">'
            f"{stage.act(f'cell:{number}', image, title=f'Cell {text}; open it', classes='')}"
            f"<b>{escape(text)}</b><span>{area:.0f} µm² · nucleus {percent(share)}</span></li>"
        )
    if not shown:
        return ""
    about = "Area and nucleus are estimates: pale cytoplasm, as of neutrophils, is partly left out."
    return f'<ul class="lk-cells">{shown}</ul>{stage.note(about)}'


def save_smear(kind: str, smear: Smear) -> File:
    """A smear's reading as a file; `kind` is "png" or "csv"."""
    reading = smear.reading
    name = f"leukoscope-{safe_stem(reading.source) or 'smear'}.{kind}"
    if kind == "png":
        title = f"{reading.source} read by {reading.model}: {reading.summary}"
        drawn = draw_reading(smear.picture.image, reading)
        return png_file(name, drawn, title=title, model=reading.model, revision=reading.revision)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    shares = [f"p_{label}" for label in reading.labels]
    table.writerow(["cell", "left", "top", "right", "bottom", "outcome", *shares, "ood_score", "nucleus_um2",
                    "area_um2", "nucleus_share", "source", "model", "revision", "notice"])  # fmt: skip
    about = [safe_cell(reading.source), safe_cell(reading.model), reading.revision, RESEARCH_NOTICE]
    for number, (found, cell) in enumerate(zip(reading.cells, reading.to_dict()["cells"], strict=True), start=1):
        probabilities = [(cell["probabilities"] or {}).get(label, "") for label in reading.labels]
        ood = "" if cell["ood_score"] is None else cell["ood_score"]
        area, share = cell_size(found.cell)
        sizes = [f"{area:.2f}", f"{share:.4f}"] if found.cell.whole else ["", ""]
        table.writerow(
            [number, *cell["box"], safe_cell(cell["outcome"]), *probabilities, ood, cell["nucleus_um2"], *sizes, *about]
        )
    return File(name, "text/csv", text.getvalue().encode())
