"""A cell's size, its nucleus and how both are distributed among a release's training cells; where a map lies on it.

Size alone explains much of the public data sets, so a prediction is shown beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from skimage.filters import threshold_otsu

from leukoscope.data.images import foreground
from leukoscope.data.smear import UnusableSmear, measure_stain
from leukoscope.inference.gradcam import BLACK_SHARE, share_within

_SIDE = 256  # a larger picture is reduced before it is measured
_SMOOTHING, _RIM = 0.015, 0.01  # of the side: chromatin is not told from cytoplasm, nor the cell's dark rim
_LEAST_LOBE = 0.1


@dataclass(frozen=True)
class Morphology:
    """A cell's area in pixels of the picture, the share of the nucleus in it, 0–1, and the nucleus's parts, from 1."""

    area: float
    nucleus_share: float
    lobes: int


def measure_cell(image: Image.Image) -> Morphology | None:
    """Measure a cell that is cut out on black; None for a picture that is empty or not mostly a cell on black."""
    from scipy.ndimage import binary_erosion, binary_fill_holes, gaussian_filter, label

    factor = -(-max(image.size) // _SIDE)
    pixels = np.asarray(image.convert("RGB").reduce(factor))
    bright = foreground(pixels)
    if not bright.any() or (~bright).mean() < BLACK_SHARE:
        return None
    parts, _ = label(bright)
    cell = binary_fill_holes(parts == np.bincount(parts[bright]).argmax())
    side = max(pixels.shape)
    inner = binary_erosion(cell, iterations=max(1, round(_RIM * side)))
    if not inner.any():
        return None
    density = -np.log((pixels[..., 1] + 1.0) / 256)
    weight = gaussian_filter(inner.astype(float), _SMOOTHING * side)
    smooth = gaussian_filter(density * inner, _SMOOTHING * side) / np.maximum(weight, 1e-6)
    nucleus = binary_fill_holes(cell & (smooth >= threshold_otsu(smooth[inner])))
    parts, _ = label(nucleus)
    sizes = np.bincount(parts[nucleus])
    lobes = int((sizes >= _LEAST_LOBE * nucleus.sum()).sum())
    return Morphology(float(cell.sum()) * factor**2, float(nucleus.sum() / cell.sum()), max(1, lobes))


def stained_nuclei(image: Image.Image) -> np.ndarray | None:
    """(H, W) bool, what is stained as nuclei are in a smear; None where that cannot be told, or there is none."""
    try:
        stain = measure_stain(image)
    except UnusableSmear:
        return None
    return stain.nuclear(np.asarray(image)) > stain.threshold if stain.share else None


def parts_of(image: Image.Image) -> dict[str, np.ndarray]:
    """Part of a picture → where it lies, (H, W) bool; no part that is empty.

    "nucleus", "cytoplasm" and "outside" of a cell cut out on black; of a smear "nucleus" is all that is stained so, and
    "outside" the rest.
    """
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    pixels = np.asarray(image)
    cell = foreground(pixels)
    if (~cell).mean() < BLACK_SHARE:
        nuclei = stained_nuclei(image)
        parts = {} if nuclei is None else {"nucleus": nuclei, "outside": ~nuclei}
    else:
        density, blur = -np.log((pixels[..., 1] + 1.0) / 256) * cell, max(pixels.shape) / 64
        smooth = gaussian_filter(density, blur) / np.maximum(gaussian_filter(cell.astype(float), blur), 1e-6)
        dark = cell & (smooth >= threshold_otsu(smooth[cell])) if cell.any() else cell
        nucleus = cell & binary_fill_holes(dark)
        parts = {"nucleus": nucleus, "cytoplasm": cell & ~nucleus, "outside": ~cell}
    return {name: part for name, part in parts.items() if part.any()}


@dataclass(frozen=True)
class MapShare:
    """How much of a map lies on what it should mark.

    Attributes:
        on: "cell" where one is cut out on black, else "nuclei"; "" in a picture with neither.
        inside: share of the map that lies there, 0–1.
        filled: the share of what the model saw that it fills, which an indifferent map would have.
    """

    on: str
    inside: float = 0.0
    filled: float = 0.0


def map_share(heat: np.ndarray, view: Image.Image, on_cell: float | None = None) -> MapShare:
    """Where a map of one class over the view, which is what the model saw, lies.

    `on_cell` is its share on the cell, where the prediction measured it.
    """
    cell = foreground(np.asarray(view))
    if float(heat.sum()) <= 0:
        return MapShare("")
    if (~cell).mean() >= BLACK_SHARE and cell.any():
        # Nearly all of such a cell is nucleus: the two are not told apart.
        inside = share_within(heat, cell) if on_cell is None else on_cell
        return MapShare("cell", inside, float(cell.mean()))
    nuclei = stained_nuclei(view)
    return MapShare("") if nuclei is None else MapShare("nuclei", share_within(heat, nuclei), float(nuclei.mean()))


def percentile(block: Mapping[str, Any], name: str, value: float) -> float | None:
    """Share of training cells, 0–1, below an "area" or "nucleus_share"; None where the block "morphology" has none."""
    known = block.get(name)
    return float(np.interp(value, known, np.linspace(0, 1, len(known)))) if known else None
