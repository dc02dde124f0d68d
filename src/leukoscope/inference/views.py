"""Test-time augmentation: one cell seen in its eight dihedral views (four quarter turns, each also mirrored).

A cell has no upright, so a sound classifier says the same of all eight; where it does not, its answer hangs on how the
cell happened to lie on the slide.
"""

from __future__ import annotations

import numpy as np

VIEWS = 8


def eight_views(pixels: np.ndarray) -> np.ndarray:
    """(B, S, S, 3) → (8·B, S, S, 3): a picture's views stand together, its own upright one first."""
    views = [_turned(pixels, view, axes=(1, 2)) for view in range(VIEWS)]
    return np.stack(views, axis=1).reshape(-1, *pixels.shape[1:])


def turned_back(maps: np.ndarray) -> np.ndarray:
    """Average the heat maps of a picture's views where they lie on the picture.

    Args:
        maps: (8·B, K, h, h), of views in the order of `eight_views`.

    Returns:
        (B, K, h, h).
    """
    by_view = maps.reshape(-1, VIEWS, *maps.shape[1:])
    upright = [_turned_back(by_view[:, view], view, axes=(2, 3)) for view in range(VIEWS)]
    return np.stack(upright).mean(axis=0, dtype=np.float32)


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """How many of a picture's views name another class than their average does.

    Args:
        probabilities: (B, 8, K).

    Returns:
        (B,) shares of the eight views, 0–1.
    """
    together = probabilities.mean(axis=1).argmax(axis=1)
    return (probabilities.argmax(axis=2) != together[:, None]).mean(axis=1)


def _turned(pictures: np.ndarray, view: int, axes: tuple[int, int]) -> np.ndarray:
    """Views 0–3 are quarter turns, 4–7 the same of the picture mirrored left to right."""
    mirrored = np.flip(pictures, axes[1]) if view >= 4 else pictures
    return np.rot90(mirrored, view % 4, axes=axes)


def _turned_back(maps: np.ndarray, view: int, axes: tuple[int, int]) -> np.ndarray:
    unturned = np.rot90(maps, -(view % 4), axes=axes)
    return np.flip(unturned, axes[1]) if view >= 4 else unturned
