"""Maps by covering: how far the margin of a class falls when a place of the picture is blurred.

Zeiler and Fergus 2014 (doi:10.1007/978-3-319-10590-1_53), with a soft round window in place of a grey square, whose
edges no cell has. It costs one pass for each place. `research.map_checks` checks these maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from leukoscope.data.images import foreground
from leukoscope.inference.gradcam import BLACK_SHARE

if TYPE_CHECKING:
    from leukoscope.inference.graph import OpenVinoBackend
    from leukoscope.inference.runtime import TorchBackend

GRID = 8
"""Places on a side of the framed picture; a map has GRID × GRID values."""
WINDOW_DEVIATION = 0.75
"""Standard deviation of the round window that covers a place, in places."""
BLUR_SHARE = 1 / 4
"""Standard deviation of the blur, as a share of the picture's side."""
_BLUR_SIDE = 40  # pixels to which the picture is reduced before it is blurred: much finer than the blur


def covering_maps(backend: TorchBackend | OpenVinoBackend, pixels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Compute every class's map of one picture, (K, GRID, GRID) float32, ≥ 0, in units of the logit.

    A value says how far the class's margin, its logit less the largest other one, falls when the place is covered. A
    place outside a cell that is cut out on black has the value 0 and costs no pass.

    Args:
        backend: what computes the network.
        pixels: (S, S, 3) uint8, framed by the release's preprocessing.
        logits: (K,) of the picture as it is.
    """
    places = touched_places(pixels)
    falls = np.zeros((len(logits), GRID * GRID), np.float32)
    before = margins(logits[None])[0]
    # One at a time: as fast as eight on a CPU, and another prediction by the same network waits for one pass only.
    for place, copy in zip(places, covered_copies(pixels, places), strict=True):
        after = margins(backend(copy[None]).logits)[0]
        falls[:, place] = before - after
    return np.maximum(falls, 0).reshape(len(logits), GRID, GRID)


def margins(logits: np.ndarray) -> np.ndarray:
    """(B, K) logits → (B, K) float32: by how much each class's logit exceeds the largest other one."""
    others = np.repeat(logits[:, None, :], logits.shape[1], axis=1).astype(np.float32)
    classes = np.arange(logits.shape[1])
    others[:, classes, classes] = -np.inf
    return logits - others.max(axis=2)


def touched_places(pixels: np.ndarray) -> np.ndarray:
    """Number, row by row, the places that hold part of the cell; all where it is not cut out on black."""
    cell = foreground(pixels)
    if not cell.any() or (~cell).mean() < BLACK_SHARE:
        return np.arange(GRID * GRID)
    place_of = np.arange(len(cell)) * GRID // len(cell)
    rows, columns = np.nonzero(cell)
    return np.unique(place_of[rows] * GRID + place_of[columns])


def covered_copies(pixels: np.ndarray, places: np.ndarray) -> Iterator[np.ndarray]:
    """(S, S, 3) uint8 and (N,) places → N such pictures, in each one place replaced by the blurred picture."""
    along = _window_profiles(len(pixels))
    original = pixels.astype(np.float32)
    change = _blurred(pixels) - original
    for place in places:
        row = along[place // GRID]
        column = along[place % GRID]
        window = row[:, None, None] * column[None, :, None]
        yield np.rint(original + window * change).astype(np.uint8)


@lru_cache(maxsize=4)
def _window_profiles(side: int) -> np.ndarray:
    """(GRID, S) float32: the window of each row or column of places; a place's window is the product of two."""
    place = side / GRID
    centres = (np.arange(GRID) + 0.5) * place
    distances = (np.arange(side) + 0.5 - centres[:, None]) / (WINDOW_DEVIATION * place)
    return np.exp(-(distances**2) / 2).astype(np.float32)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8 → the same blurred, float32; computed on few pixels, which is much faster."""
    small = Image.fromarray(pixels).resize((_BLUR_SIDE, _BLUR_SIDE), Image.Resampling.BOX)
    blurred = small.filter(ImageFilter.GaussianBlur(BLUR_SHARE * _BLUR_SIDE))
    return np.asarray(blurred.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC), np.float32)
