"""Synthetic smears of the cells that `synthetic` draws, with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground
from leukoscope.synthetic import MIN_SIZE, PLASMA_RGB, RED_CELL_RGB, Floats, draw_cell

Disc = tuple[float, float, float]  # y, x of the centre, and the radius

# µm, and relative. Real ones are 3.75, but soft: this is what the threshold leaves of them that measures a scale.
RED_CELL_RADIUS = 3.17
RED_CELL_SPREAD = 0.05
PLATELET_RADIUS = 1.2
FRINGE_RGB = np.array([172, 166, 206], np.float32)
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
    for cell in cells:
        radius = float(np.sqrt(foreground(cell).sum() / np.pi))
        place = _free_place(rng, radius, size, 1.3 * radius, white, spacing)
        if place is None:
            raise ValueError(
                f"{len(cells)} cells do not fit into {size[1]}×{size[0]} pixels; draw fewer or a larger smear"
            )
        white.append(place)
    canvas = np.tile(PLASMA_RGB, (*size, 1))
    _lay_discs(rng, canvas, white, red_cells, RED_CELL_RADIUS / um_per_pixel, RED_CELL_RGB, pallor=0.45)
    _lay_discs(rng, canvas, white, platelets, PLATELET_RADIUS / um_per_pixel, PLATELET_RGB, pallor=0)
    labels = np.zeros(size, np.uint16)
    for number, (cell, place) in enumerate(zip(cells, white, strict=True), start=1):
        window, covered = _lay_cell(canvas, cell, place, CYTOPLASM_WIDTH / um_per_pixel)
        labels[window][covered] = number
    noisy = canvas + rng.normal(0, NOISE, canvas.shape)
    return PhantomSmear(noisy.clip(0, 255).astype(np.uint8), labels, tuple(classes), um_per_pixel)


def _free_place(
    rng: np.random.Generator, radius: float, size: tuple[int, int], edge: float, others: Sequence[Disc], apart: float
) -> Disc | None:
    """A disc so far from the edge and, in sums of radii, from the others; None where none was found."""
    height, width = size
    for _ in range(TRIES):
        y = float(rng.uniform(edge, max(edge, height - edge)))
        x = float(rng.uniform(edge, max(edge, width - edge)))
        if all(np.hypot(y - v, x - u) >= apart * (radius + r) for v, u, r in others):
            return y, x, radius
    return None


def _lay_discs(
    rng: np.random.Generator,
    canvas: Floats,
    white: Sequence[Disc],
    count: int,
    mean_radius: float,
    colour: Floats,
    *,
    pallor: float,
) -> None:
    """Lay up to `count` red cells or platelets beside the white cells; `pallor` is how much their middle is paler."""
    # Among themselves they may overlap by a quarter.
    taken = [(y, x, 1.7 * radius) for y, x, radius in white]
    height, width, _ = canvas.shape
    for _ in range(count):
        radius = mean_radius * float(np.exp(RED_CELL_SPREAD * rng.standard_normal()))
        disc = _free_place(rng, radius, (height, width), 0, taken, 0.75)
        if disc is not None:
            taken.append(disc)
            _lay_disc(canvas, disc, colour, pallor)


def _lay_disc(canvas: Floats, disc: Disc, colour: Floats, pallor: float) -> None:
    y, x, radius = disc
    rows = slice(max(0, int(y - radius - 2)), int(y + radius + 4))
    columns = slice(max(0, int(x - radius - 2)), int(x + radius + 4))
    patch = canvas[rows, columns]
    down, across = np.indices(patch.shape[:2])
    depth = radius - np.hypot(down + rows.start - y, across + columns.start - x)
    thickness = np.clip(depth / 2 + 0.5, 0, 1) * (1 - pallor * np.clip(depth / radius * 1.6 - 0.4, 0, 1))
    # Overlapping red cells darken as two layers of stain do.
    patch *= 1 - thickness[..., None] * (1 - colour / PLASMA_RGB)


def _lay_cell(
    canvas: Floats, cell: NDArray[np.uint8], place: Disc, rim: float
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Lay a white cell with a fringe of cytoplasm `rim` pixels wide; returns its window and what it covers of it."""
    top = round(place[0] - len(cell) / 2)
    left = round(place[1] - len(cell) / 2)
    window = slice(max(0, top), top + len(cell)), slice(max(0, left), left + len(cell))
    patch = canvas[window]
    height, width, _ = patch.shape
    # Beyond the edges of the smear the frame of a cell is black.
    visible = cell[window[0].start - top :, window[1].start - left :][:height, :width]
    covered = ndimage.binary_fill_holes(foreground(visible))
    fringe = np.clip((rim - ndimage.distance_transform_edt(~covered)) / 2 + 0.5, 0, 1)
    patch += fringe[..., None] * (FRINGE_RGB - patch)
    # The cut-out's outermost pixels fade to black, which on a slide they do not: they take the colour further in.
    depth = ndimage.distance_transform_edt(covered)
    inner = ndimage.distance_transform_edt(depth < 2.5, return_distances=False, return_indices=True)
    paler = 255 * (np.maximum(visible[tuple(inner)], 1) / 255) ** np.float32(STRENGTH)
    patch += np.clip(depth / 2, 0, 1)[..., None] * (paler - patch)
    return window, covered
