"""Test-time augmentation (TTA): each cell in its eight dihedral views, four quarter turns, each also mirrored.

A cell has no upright, so a sound classifier predicts the same for all eight; where it does not, its prediction depends
on how the cell happened to lie on the slide.
"""

from __future__ import annotations

import numpy as np

VIEWS = 8


def tta_views(pixels: np.ndarray) -> np.ndarray:
    """(B, S, S, 3) → (8·B, S, S, 3): a picture's views stand together, its own upright one first."""
    mirrored = pixels[:, :, ::-1]
    views = [np.rot90(side, turns, axes=(1, 2)) for side in (pixels, mirrored) for turns in range(4)]
    return np.stack(views, axis=1).reshape(-1, *pixels.shape[1:])


def average_maps(maps: np.ndarray) -> np.ndarray:
    """Turn the Grad-CAM maps of a picture's views back onto the picture, and average them.

    Args:
        maps: (8·B, K, h, h), of views in the order of `tta_views`.

    Returns:
        (B, K, h, h).
    """
    views = maps.reshape(-1, VIEWS, *maps.shape[1:])
    upright = [np.rot90(views[:, view], -(view % 4), axes=(2, 3)) for view in range(VIEWS)]
    upright[4:] = [turned[..., ::-1] for turned in upright[4:]]
    return np.stack(upright).mean(axis=0, dtype=np.float32)


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """How many of a picture's views have another most probable class than their average.

    Args:
        probabilities: (B, 8, K).

    Returns:
        (B,) shares of the eight views, 0–1.
    """
    together = probabilities.mean(axis=1).argmax(axis=1)
    return (probabilities.argmax(axis=2) != together[:, None]).mean(axis=1)
