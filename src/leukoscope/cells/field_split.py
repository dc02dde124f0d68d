"""Touching cells of a smear, told apart by shape: where one cell ends and its neighbour begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    from leukoscope.cells.fields import FinderSettings

Mask = NDArray[np.bool_]


def split_cells(region: Mask, nuclei: Mask, pitch: float, settings: FinderSettings) -> NDArray[np.int32]:
    """Touching cells apart: each pixel to the disc it lies deepest in (a power diagram, Aurenhammer 1987).

    Args:
        region: (h, w) cells with their cytoplasm.
        nuclei: (h, w) their nuclei.
        pitch: micrometres a pixel.

    Returns:
        (h, w) 0, or the number of the cell from 1.
    """
    reach = round(np.sqrt(settings.largest_cell / np.pi) / pitch)
    labels, nearest = np.zeros(region.shape, np.int32), np.full(region.shape, np.inf, np.float32)
    for number, (y, x, radius) in enumerate(_discs(region, nuclei, pitch, settings), start=1):
        window = tuple(
            slice(max(0, at - reach), min(n, at + reach + 1)) for at, n in zip((y, x), region.shape, strict=True)
        )
        rows, columns = np.ogrid[window]
        power = (rows - y) ** 2 + (columns - x) ** 2 - radius**2
        nearer = region[window] & (power < nearest[window])
        labels[window][nearer] = number
        nearest[window][nearer] = power[nearer]
    return labels


def _discs(region: Mask, nuclei: Mask, pitch: float, settings: FinderSettings) -> list[tuple[int, int, float]]:
    """One disc (y, x, radius) a cell: a round nucleus stands for one, lobes share the disc of their cell."""
    round_ones = [disc for disc in _peaks(nuclei, pitch, settings) if disc[2] * pitch >= settings.round_nucleus]
    return round_ones + [
        (y, x, radius)
        for y, x, radius in _peaks(region, pitch, settings)
        if all(np.hypot(y - v, x - u) > radius + r for v, u, r in round_ones)
    ]


def _peaks(mask: Mask, pitch: float, settings: FinderSettings) -> list[tuple[int, int, float]]:
    """Where a mask is deepest and how deep, deepest first; two peaks without a waist between them are one."""
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask).astype(np.float32), 0.6 / pitch)
    # A square, because its filter costs the same at any size.
    tops = mask & (depth == ndimage.maximum_filter(depth, 2 * round(settings.split_distance / 2 / pitch) + 1))
    kept: list[tuple[int, int, float]] = []
    for y, x in sorted(np.argwhere(tops).tolist(), key=lambda at: -depth[at[0], at[1]]):
        radius = float(depth[y, x])
        near = [(v, u) for v, u, r in kept if np.hypot(v - y, u - x) <= 2 * r + radius]
        if not any(_waist(depth, at, (y, x)) >= settings.waist * radius for at in near):
            kept.append((y, x, radius))
    return kept


def _waist(depth: NDArray[np.floating], one: tuple[int, int], other: tuple[int, int]) -> float:
    """Least depth on the straight line between two centres."""
    steps = max(2, round(np.hypot(one[0] - other[0], one[1] - other[1])))
    rows, columns = (np.linspace(a, b, steps).round().astype(int) for a, b in zip(one, other, strict=True))
    return float(depth[rows, columns].min())


def disc(radius: float) -> Mask:
    """A disc as structuring element; radius in pixels, at least 1."""
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x**2 + y**2 <= max(radius, 1.0) ** 2 + 0.5)
