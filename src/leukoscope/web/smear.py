"""A smear, read by one model: every white cell found, measured and classified; each can be opened.

The page, the files and the API at /field show one reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt, gaussian_filter

from leukoscope import DataError, ReleaseError, synthetic
from leukoscope.data.images import foreground
from leukoscope.data.registry import EMPTY_SLIDE_RGB
from leukoscope.data.smear import cut_out
from leukoscope.inference.prediction import FIELD_NEEDS
from leukoscope.inference.smear import SmearReading
from leukoscope.synthetic import EXAMPLE_SMEAR_PITCH
from leukoscope.web.answer import Answer, Picture, Row, with_rim
from leukoscope.web.model_cache import ModelCache

_SCALES = {"given": "as given", "red cells": "from its red cells", "nuclei": "guessed from its nuclei"}

RIM = 4  # pixels at the edge of a cut-out, which hold plasma, too
OUTLINE_SIGMA = 3.0  # pixels of a cut-out, by which its outline is smoothed where it is shown brighter


@dataclass(frozen=True)
class Smear:
    """A smear and what a model reads in it; lives in a visitor's session, in memory only."""

    picture: Picture
    reading: SmearReading
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of the release that read it
    # Where its cells are foreign to that release: what models of whole pictures say of it.
    whole_picture: tuple[Row, ...] = ()

    def cut_out(self, number: int) -> Image.Image:
        """A whole cell, alone on black."""
        scale = self.reading.smear.scale
        assert scale is not None  # a smear without a scale has no cells
        return cut_out(self.picture.image, self.reading.cells[number].cell, scale.um_per_pixel)

    @property
    def whole(self) -> list[int]:
        """Numbers of the cells that can be opened."""
        return [number for number, cell in enumerate(self.reading.cells) if cell.prediction]

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
        raise ReleaseError(
            f"{name}: was trained on pictures with their background, not on cells cut out on black; choose a model of "
            "cut-out cells, or give the picture to /predict"
        )
    scale = picture.um_per_pixel or None
    picture = picture.on(EMPTY_SLIDE_RGB)
    reading = models.read_smear(predictor, picture.image, picture.caption, um_per_pixel=scale)
    # The model is named as it was chosen, a revision included.
    return Smear(picture, replace(reading, model=str(name)), predictor.release.metrics)


def scale_text(smear: Smear) -> str:
    """The smear's scale and where it comes from; "no scale" where none is known."""
    scale = smear.reading.smear.scale
    if scale is None:
        return "no scale"
    source = "set by you" if smear.picture.scale_set else _SCALES[scale.source]
    return f"{scale.um_per_pixel:.3f} µm per pixel, {source}"


def open_cell(smear: Smear, number: int) -> Answer:
    """A cell of a smear, still to be answered by the model that read it: only that one knows how many cells suit it."""
    reading = smear.reading
    if number >= len(reading.cells):
        raise DataError(f"cell {number + 1}: {reading.source} has {len(reading.cells)} white cells; open one of them")
    if number not in smear.whole:
        raise DataError(f"cell {number + 1}: is cut by the edge of {reading.source}; open a whole one")
    image = smear.cut_out(number)
    cell = Picture(
        image,
        f"Cell {number + 1} of {reading.source}",
        remark="Cut out of the smear, as the training cells are.",
        field_share=reading.in_distribution,
        rim=painted_rim(image),
    )
    return Answer(cell, waiting=(reading.model,))


def painted_rim(cell: Image.Image) -> Image.Image:
    """RGBA, twice as large, to show over a cell cut out of a smear: its outline smooth, its rim in its own colours.

    The outermost pixels are partly plasma: on black, and shown brighter, they would be a white line. The outline is
    that of a mask of the smear's pixels: enlarged, it has steps. The cut-out itself keeps both: models are given no
    other.
    """
    enlarged_size = (2 * cell.width, 2 * cell.height)
    painted = Image.new("RGBA", enlarged_size)
    box = cell.getbbox()
    if box is None:
        return painted
    margin = 2 * RIM
    closer = ImageOps.expand(cell.crop(box), margin)
    pixels = np.asarray(closer)
    inside = foreground(pixels)
    behind = distance_transform_edt(inside) > RIM
    if not behind.any():
        return painted
    nearest = tuple(distance_transform_edt(~behind, return_distances=False, return_indices=True))
    luminance = np.asarray(closer.convert("L"))
    keeps_colour = inside & (luminance <= luminance[nearest])
    # Of neighbours on the rim, the nearest pixels behind it may be far apart: mixed, they make no stripes.
    from_behind = gaussian_filter(pixels[nearest].astype(np.float32), (RIM, RIM, 0)).astype(np.uint8)
    colours = np.where(keeps_colour[..., None], pixels, from_behind)
    # Black outside the outline, with an edge of about two pixels.
    outline = gaussian_filter(inside.astype(np.float32), OUTLINE_SIGMA)
    size = (2 * closer.width, 2 * closer.height)
    shown = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    share = np.asarray(Image.fromarray(outline).resize(size, Image.Resampling.BICUBIC))
    shown *= np.clip((share - 0.5) * OUTLINE_SIGMA * 2 + 0.5, 0, 1)[..., None]
    is_edge = ~behind & (distance_transform_edt(~inside) <= margin)
    alpha = Image.fromarray(np.where(is_edge, 255, 0).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    edge = np.dstack([np.round(shown).astype(np.uint8), np.asarray(alpha)])
    painted.paste(Image.fromarray(edge), (2 * (box[0] - margin), 2 * (box[1] - margin)))
    return painted


def with_painted_rim(cell: Image.Image) -> Image.Image:
    """A cell cut out of a smear as it is shown brighter, twice as large."""
    return with_rim(cell, painted_rim(cell))


@cache
def example_smear() -> Picture:
    """A synthetic smear, its scale given; each cell gets its class from leukoscope-densenet169-cnmc."""
    return Picture(Image.fromarray(synthetic.example_smear()), "Synthetic smear", um_per_pixel=EXAMPLE_SMEAR_PITCH)
