"""How many micrometres a pixel of a smear is: red cells are the ruler that every field carries.

A normal red cell measures 7.5 µm whatever the microscope, so pictures without a note of their scale still tell it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope.cells.field_stain import STAINED, Stain, otsu_threshold

# The largest disc within a red cell of 7.5 µm, as a threshold on its stain leaves it (BCCD's training list).
RED_CELL_WIDTH = 5.9
NUCLEUS_WIDTH = 8.0
# Width of the smoothing of widths' logarithms. Chosen on BCCD's training list, where 95 % of the scales so read lie
# within a quarter of the median.
SMOOTHING = 0.25
PALLOR = 0.6  # half-width of a pale middle, at most, in widths of the ring about it
FEWEST_RED_CELLS = 8
WINDOW, SAMPLE = 2048, 512


@dataclass(frozen=True)
class Scale:
    """Micrometres a pixel, and what says so: the caller, the red cells, or (a guess) the nuclei."""

    um_per_pixel: float
    source: Literal["given", "red cells", "nuclei"]


def measure_scale(image: Image.Image, stain: Stain) -> Scale | None:
    """Read the scale off up to five windows of a field; None where nothing in it has a size.

    Args:
        image: RGB field.
    """
    red, nuclear = [], []
    for pixels, step in _windows(image):
        density = stain.density(pixels)
        nuclei = density[..., 1] - density[..., 2] > stain.threshold
        matter = density.mean(axis=-1)
        pale = matter[~nuclei & (matter < 1)]
        body = matter > max(STAINED / 2, otsu_threshold(pale) if pale.size else 0)
        red_only = ~ndimage.binary_dilation(nuclei, iterations=2)
        red += [width * step for width in _widths(_without_pallor(body | nuclei), red_only)]
        nuclear += [width * step for width in _widths(ndimage.binary_fill_holes(nuclei), nuclei)]
    # Fringes of cytoplasm and platelets are many, but narrow.
    typical = _typical(red) if red else 0.0
    if sum(width > typical / 2 for width in red) >= FEWEST_RED_CELLS:
        return Scale(RED_CELL_WIDTH / typical, "red cells")
    return Scale(NUCLEUS_WIDTH / _typical(nuclear), "nuclei") if nuclear else None


def _windows(image: Image.Image) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Centre and quarters of a large field, else all of it; each at most 512 pixels a side, with its reduction."""
    width, height = image.size
    places = [(0.5, 0.5)]
    if max(width, height) > WINDOW:
        places += [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    for down, across in places:
        w, h = min(width, WINDOW), min(height, WINDOW)
        left, top = round(across * (width - w)), round(down * (height - h))
        step = max(1.0, max(w, h) / SAMPLE)
        size = (max(1, int(w / step)), max(1, int(h / step)))
        box = (left, top, left + size[0] * step, top + size[1] * step)
        yield np.asarray(image.resize(size, Image.Resampling.BOX, box=box)), step


def _widths(mask: NDArray[np.bool_], counted: NDArray[np.bool_]) -> list[float]:
    """Widths (pixels) of the largest discs that fit in a mask, where `counted`; those cut by the edge left out."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    peaks = (depth == ndimage.maximum_filter(depth, 5)) & counted & (depth >= 2.5)
    # A wide disc has a plateau of equal peaks, which must count once.
    discs, count = ndimage.label(ndimage.binary_dilation(peaks, iterations=2))
    return (2 * ndimage.maximum(depth * peaks, discs, np.arange(1, count + 1))).tolist() if count else []


def _without_pallor(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Red cells with their pale middles filled, but not the plasma that a ring of cells encloses."""
    widths = _widths(body, body)
    if not widths:
        return body
    holes, _ = ndimage.label(~body)
    depth = ndimage.distance_transform_edt(~body)
    deepest = ndimage.maximum(depth, holes, np.arange(holes.max() + 1))
    border = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    small = deepest <= PALLOR * _typical(widths)
    small[border] = False
    return np.asarray(body | small[holes])


def _typical(widths: list[float]) -> float:
    """The commonest width, each counted by its size: specks are many but small, clumps wide but few."""
    logs = np.log(widths)
    at = np.linspace(logs.min(), logs.max(), 200)
    density = (np.asarray(widths) ** 1.5 * np.exp(-(((at[:, None] - logs) / SMOOTHING) ** 2) / 2)).sum(axis=1)
    return float(np.exp(at[density.argmax()]))
