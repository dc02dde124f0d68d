"""The eight dihedral views of a cell: four quarter turns, each also mirrored.

A cell has no upright, so a sound classifier predicts the same for all eight; where it does not, its prediction depends
on how the cell happened to lie on the slide.
"""

from __future__ import annotations

import numpy as np

VIEWS = 8


def turned(pixels: np.ndarray, view: int) -> np.ndarray:
    """Turn (B, S, S, …) pictures to one of the eight views: 0 is upright, 4 to 7 are mirrored, then turned."""
    return np.rot90(pixels if view < 4 else pixels[:, :, ::-1], view % 4, axes=(1, 2))


def turned_back(maps: np.ndarray, view: int) -> np.ndarray:
    """Turn (…, h, h) maps of one of the eight views onto the upright pictures; undoes `turned`."""
    upright = np.rot90(maps, -(view % 4), axes=(-2, -1))
    return upright if view < 4 else upright[..., ::-1]


def tta_views(pixels: np.ndarray) -> np.ndarray:
    """(B, S, S, 3) → (8·B, S, S, 3): a picture's views stand together, its own upright one first."""
    return np.stack([turned(pixels, view) for view in range(VIEWS)], axis=1).reshape(-1, *pixels.shape[1:])


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """(B, 8, K) → (B,) share of a picture's views, 0–1, whose most probable class is not that of their average."""
    together = probabilities.mean(axis=1).argmax(axis=1)
    return (probabilities.argmax(axis=2) != together[:, None]).mean(axis=1)
