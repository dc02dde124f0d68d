"""What heat maps are measured by: how much of their heat lies where there is nothing to see, and how alike two are.

Heat beside the cell or on a scale bar is evidence that has nothing to do with the cell.
"""

from __future__ import annotations

import numpy as np

from leukoscope.cells.images import BACKGROUND_LEVEL

# ball4 has scale bars of two sizes, 27 × 11 and 31 × 28 pixels of 224, in all pictures of all classes; a square of this
# share of the side in the lower right corner covers both.
SCALE_BAR_SIDE = 1 / 7


def irrelevant_regions(pixels: np.ndarray, background: str) -> tuple[str, np.ndarray]:
    """Where heat would be wrong, and what that place is called.

    Args:
        pixels: (N, S, S, 3) uint8.
        background: "black" for cells cut out on black, else "smear".

    Returns:
        "outside_cell" or "scale_bar_corner", and (N, S, S) bool.
    """
    if background == "black":
        return "outside_cell", ~cell_masks(pixels)
    return "scale_bar_corner", np.stack([scale_bar_corner(pixels.shape[1])] * len(pixels))


def cell_masks(pixels: np.ndarray) -> np.ndarray:
    """The cell in pictures of cells cut out on black.

    Args:
        pixels: (N, S, S, 3) uint8.

    Returns:
        (N, S, S) bool, holes within the cell filled; all False for an empty picture.
    """
    from scipy.ndimage import binary_fill_holes

    return np.stack([binary_fill_holes(cell.max(axis=2) > BACKGROUND_LEVEL) for cell in pixels])


def scale_bar_corner(size: int) -> np.ndarray:
    """(S, S) bool, the lower right corner where ball4 shows its scale bar; `size` is S in pixels."""
    side = round(size * SCALE_BAR_SIDE)
    corner = np.zeros((size, size), dtype=bool)
    corner[size - side :, size - side :] = True
    return corner


def heat_share(maps: np.ndarray, regions: np.ndarray) -> dict[str, np.ndarray]:
    """How much of each heat map lies in a region of its picture, and how much a uniform map would have there.

    Args:
        maps: (N, h, w), ≥ 0.
        regions: (N, S, S) bool.

    Returns:
        heat: (N,) share of the enlarged map's sum, NaN for flat maps; area: share of the picture; excess: heat less
        area.
    """
    heat = enlarged(maps, regions.shape[1])
    heat[is_flat(maps)] = np.nan
    share, area = (heat * regions).sum(axis=(1, 2)) / heat.sum(axis=(1, 2)), regions.mean(axis=(1, 2))
    return {"heat": share, "area": area, "excess": share - area}


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps (N, h, w) at the picture's size (N, S, S) float32, bilinear between cell centres as overlays show them."""
    import torch
    import torch.nn.functional as F

    grid = torch.from_numpy(np.asarray(maps, dtype=np.float32))[:, None]
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def is_flat(maps: np.ndarray) -> np.ndarray:
    """(N,) bool: maps (N, h, w) that say the same everywhere, hence nothing."""
    return np.ptp(maps.reshape(len(maps), -1), axis=1) == 0


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each map with its counterpart.

    Args:
        maps, others: (N, h, w).

    Returns:
        (N,), −1 to 1; NaN where one of the two is flat.
    """
    from scipy.stats import rankdata

    a, b = (rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
