"""Synthetic smears of the cells that `synthetic` draws, with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground
from leukoscope.synthetic import FRINGE_RGB, MIN_SIZE, PLASMA_RGB, RED_CELL_RGB, Floats, draw_cell

Disc = tuple[float, float, float]  # y, x of the centre, and the radius

# µm, and relative. Real ones are 3.75, but soft: this is what the threshold leaves of them that measures a scale.
RED_CELL_RADIUS, RED_CELL_SPREAD = 3.17, 0.05
PLATELET_RADIUS = 1.2
PLATELET_RGB = np.array([150, 110, 180], np.float32)
CYTOPLASM_WIDTH = 0.18  # µm, beyond what a cell is drawn with
# Between a slide's and that of C-NMC's cells, so that the released models know most cells of a synthetic smear.
STRENGTH = 0.92
NOISE = 0.3  # levels; more of it, upsampled in a cut-out, is read as the fine chromatin of a blast
TRIES = 400


@dataclass(frozen=True)
class PhantomSmear:
    """A synthetic smear and its truth."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    labels: NDArray[np.uint16]  # (H, W), 0 or the number (from 1) of the white cell a pixel belongs to
    classes: tuple[str, ...]  # "ALL" or "HEM" of each white cell, in the order of their numbers
    um_per_pixel: float


def draw_smear(
    classes: Sequence[str] = ("ALL", "ALL", "HEM"),
    *,
    size: tuple[int, int] = (480, 640),
    um_per_pixel: float = 0.15,
    red_cells: int = 60,
    platelets: int = 4,
    spacing: float = 1.15,
    seed: int = 0,
) -> PhantomSmear:
    """Draw a smear; equal arguments give equal pixels.

    Args:
        classes: "ALL" or "HEM" for each white cell.
        size: (height, width) in pixels.
        um_per_pixel: 0.07 is a 100× objective's, 0.4 that of the four-class B-ALL pictures.
        red_cells, platelets: how many of them; they overlap each other but lie beside the white cells.
        spacing: least distance of two white cells in sums of their radii; just below 1 makes neighbours touch.

    Raises:
        ValueError: a class that is none, a scale too coarse for a cell, or not enough space for so many cells.
    """
    side = round(CUT_OUT_SIDE * CUT_OUT_PITCH / um_per_pixel)
    if side < MIN_SIZE:
        raise ValueError(f"um_per_pixel is {um_per_pixel}; a cell needs {MIN_SIZE} px, so 0.8 or less")
    rng = np.random.default_rng(seed)
    cells = [draw_cell(label, subject=seed, cell=n, size=side, seed=seed).image for n, label in enumerate(classes)]
    white: list[Disc] = []
    for radius in (float(np.sqrt(foreground(cell).sum() / np.pi)) for cell in cells):
        place = _free_place(rng, radius, size, 1.3 * radius, (white, spacing))
        if place is None:
            raise ValueError(
                f"{len(cells)} cells do not fit into {size[1]}×{size[0]} pixels; draw fewer or a larger smear"
            )
        white.append(place)
    canvas, labels = np.tile(PLASMA_RGB, (*size, 1)), np.zeros(size, np.uint16)
    beside = [(y, x, 1.25 * radius) for y, x, radius in white]
    for count, middle, colour, pallor in (
        (red_cells, RED_CELL_RADIUS, RED_CELL_RGB, 0.45),
        (platelets, PLATELET_RADIUS, PLATELET_RGB, 0),
    ):
        laid: list[Disc] = []
        for _ in range(count):
            radius = middle / um_per_pixel * float(np.exp(RED_CELL_SPREAD * rng.standard_normal()))
            place = _free_place(rng, radius, size, 0, (beside, 1), (laid, 0.75))
            if place:
                laid.append(place)
                _lay_disc(canvas, place, colour, pallor)
    for number, (cell, place) in enumerate(zip(cells, white, strict=True), start=1):
        _lay_cell(canvas, labels, number, cell, place, CYTOPLASM_WIDTH / um_per_pixel)
    noisy = canvas + rng.normal(0, NOISE, canvas.shape)
    return PhantomSmear(noisy.clip(0, 255).astype(np.uint8), labels, tuple(classes), um_per_pixel)


def _free_place(
    rng: np.random.Generator, radius: float, size: tuple[int, int], edge: float, *others: tuple[Sequence[Disc], float]
) -> Disc | None:
    """A disc as far from the edge and, in sums of radii, from the others; None where none was found."""
    for _ in range(TRIES):
        y, x = (float(rng.uniform(edge, max(edge, n - edge))) for n in size)
        if all(np.hypot(y - v, x - u) >= apart * (radius + r) for discs, apart in others for v, u, r in discs):
            return y, x, radius
    return None


def _lay_disc(canvas: Floats, disc: Disc, colour: Floats, pallor: float) -> None:
    """A red cell or a platelet; `pallor` is how much its middle is paler."""
    y, x, radius = disc
    rows, columns = (slice(max(0, int(at - radius - 2)), int(at + radius + 4)) for at in (y, x))
    patch = canvas[rows, columns]
    down, across = np.indices(patch.shape[:2])
    depth = radius - np.hypot(down + rows.start - y, across + columns.start - x)
    cover = np.clip(depth / 2 + 0.5, 0, 1) * (1 - pallor * np.clip(depth / radius * 1.6 - 0.4, 0, 1))
    # Overlapping red cells darken as two layers of stain do.
    patch *= 1 - cover[..., None] * (1 - colour / PLASMA_RGB)


def _lay_cell(
    canvas: Floats, labels: NDArray[np.uint16], number: int, cell: NDArray[np.uint8], place: Disc, rim: float
) -> None:
    """A white cell with a fringe of cytoplasm `rim` pixels wide."""
    top, left = (round(at - len(cell) / 2) for at in place[:2])
    y, x = max(0, top), max(0, left)
    patch = canvas[y : top + len(cell), x : left + len(cell)]
    shown = cell[y - top :, x - left :][: patch.shape[0], : patch.shape[1]]
    mask = ndimage.binary_fill_holes(foreground(shown))
    fringe = np.clip((rim - ndimage.distance_transform_edt(~mask)) / 2 + 0.5, 0, 1)[..., None]
    patch += fringe * (FRINGE_RGB - patch)
    # The cut-out's outermost pixels fade to black, which on a slide they do not: they take the colour further in.
    depth = ndimage.distance_transform_edt(mask)
    inner = ndimage.distance_transform_edt(depth < 2.5, return_distances=False, return_indices=True)
    pale = 255 * (np.maximum(shown[tuple(inner)], 1) / 255) ** np.float32(STRENGTH)
    patch += np.clip(depth / 2, 0, 1)[..., None] * (pale - patch)
    labels[y : top + len(cell), x : left + len(cell)][mask] = number
