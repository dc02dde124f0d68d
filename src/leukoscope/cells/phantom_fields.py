"""Synthetic smears: phantom cells among red cells, with the exact place and outline of every one.

What finds cells in a field is tested here against a truth no annotator can give, and documentation shows fields that
come from no patient. Cells are those of `draw_cell`, in the paler tones of a slide; all else is drawn to be told apart
by colour as in real smears, and proves nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from leukoscope.cells.fields import CUT_OUT_PITCH, CUT_OUT_SIDE, Box
from leukoscope.cells.images import BACKGROUND_LEVEL
from leukoscope.cells.phantoms import (
    FRINGE_RGB,
    MIN_SIZE,
    PLASMA_RGB,
    RED_CELL_RGB,
    draw_cell,
)

Floats = NDArray[np.floating]

RED_CELL_RADIUS, RED_CELL_SPREAD = 3.75, 0.05  # µm, and relative
PLATELET_RADIUS = 1.2
PLATELET_RGB = np.array([150, 110, 180], np.float32)
CYTOPLASM_WIDTH = 0.18  # µm, beyond what a cell is drawn with
# Between a slide's and that of C-NMC's cells, so that the released models know most cells of a synthetic field.
STRENGTH = 0.8
TRIES = 400


@dataclass(frozen=True)
class PhantomField:
    """A synthetic field and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint16, 0 or the number (from 1) of the white cell a pixel belongs to.
        classes: "ALL" or "HEM" of each white cell, in the order of their numbers.
        um_per_pixel: its scale.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint16]
    classes: tuple[str, ...]
    um_per_pixel: float

    @property
    def boxes(self) -> list[Box]:
        """(left, top, right, bottom) of each white cell, in pixels."""
        found = ndimage.find_objects(self.labels)
        return [(c.start, r.start, c.stop, r.stop) for r, c in (window for window in found if window)]


def draw_field(
    classes: Sequence[str] = ("ALL", "ALL", "HEM"),
    *,
    size: tuple[int, int] = (480, 640),
    um_per_pixel: float = 0.15,
    red_cells: int = 60,
    platelets: int = 4,
    spacing: float = 1.15,
    scale_bar: bool = True,
    seed: int = 0,
) -> PhantomField:
    """Draw a smear; equal arguments give equal pixels.

    Args:
        classes: "ALL" or "HEM" for each white cell.
        size: (height, width) in pixels.
        um_per_pixel: 0.07 is a 100× objective's, 0.4 that of the four-class B-ALL pictures.
        red_cells, platelets: how many of them; they overlap each other but lie beside the white cells.
        spacing: least distance of two white cells in sums of their radii; just below 1 makes neighbours touch.
        scale_bar: burn a bar and a label into the lower right corner.
        seed: another seed is another field.

    Raises:
        ValueError: a class that is none, a scale too coarse for a cell, or no room for so many cells.
    """
    side = round(CUT_OUT_SIDE * CUT_OUT_PITCH / um_per_pixel)
    if side < MIN_SIZE:
        raise ValueError(f"um_per_pixel is {um_per_pixel}; a cell needs {MIN_SIZE} px, so 0.8 or less")
    rng = np.random.default_rng(seed)
    cells = [draw_cell(label, subject=seed, cell=n, size=side, seed=seed).image for n, label in enumerate(classes)]
    places = _places(rng, [_radius(cell) for cell in cells], size, spacing)
    labels = np.zeros(size, np.uint16)
    canvas = np.tile(PLASMA_RGB, (*size, 1))
    taken = [(*place, _radius(cell)) for place, cell in zip(places, cells, strict=True)]
    _lay_discs(canvas, _beside(rng, taken, size, red_cells, RED_CELL_RADIUS / um_per_pixel), RED_CELL_RGB, pallor=0.45)
    _lay_discs(canvas, _beside(rng, taken, size, platelets, PLATELET_RADIUS / um_per_pixel), PLATELET_RGB, pallor=0)
    for number, (cell, place) in enumerate(zip(cells, places, strict=True), start=1):
        _lay_cell(canvas, labels, cell, place, number, CYTOPLASM_WIDTH / um_per_pixel)
    noisy = canvas + rng.normal(0, 1.5, canvas.shape)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if scale_bar:
        _burn_scale_bar(image, um_per_pixel)
    return PhantomField(np.asarray(image), labels, tuple(classes), um_per_pixel)


def _radius(cell: NDArray[np.uint8]) -> float:
    return float(np.sqrt((cell.max(axis=-1) > BACKGROUND_LEVEL).sum() / np.pi))


def _places(
    rng: np.random.Generator, radii: Sequence[float], size: tuple[int, int], spacing: float
) -> list[tuple[float, float]]:
    """Centres (y, x), each far enough from all before it and whole within the field."""
    places: list[tuple[float, float]] = []
    for radius in radii:
        edge = 1.3 * radius
        for _ in range(TRIES):
            y, x = (float(rng.uniform(edge, max(edge, n - edge))) for n in size)
            if all(np.hypot(y - v, x - u) >= spacing * (radius + r) for (v, u), r in zip(places, radii, strict=False)):
                places.append((y, x))
                break
        else:
            raise ValueError(
                f"{len(radii)} cells find no room in {size[1]}×{size[0]} pixels; draw fewer, or a larger field"
            )
    return places


def _beside(
    rng: np.random.Generator,
    taken: Sequence[tuple[float, float, float]],
    size: tuple[int, int],
    count: int,
    radius: float,
) -> Iterator[tuple[float, float, float]]:
    """Centres and radii of up to `count` discs that cover no white cell, and each other by a quarter at most."""
    laid: list[tuple[float, float, float]] = []
    for _ in range(count):
        width = radius * float(np.exp(RED_CELL_SPREAD * rng.standard_normal()))
        for _ in range(TRIES):
            y, x = (float(rng.uniform(0, n)) for n in size)
            free = all(np.hypot(y - v, x - u) > 1.25 * r + width for v, u, r in taken)
            if free and all(np.hypot(y - v, x - u) > 0.75 * (r + width) for v, u, r in laid):
                laid.append((y, x, width))
                yield laid[-1]
                break


def _lay_discs(canvas: Floats, discs: Iterator[tuple[float, float, float]], colour: Floats, *, pallor: float) -> None:
    for y, x, radius in discs:
        rows, columns = _window(canvas, y, x, radius + 2)
        depth = radius - np.hypot(
            np.arange(rows.start, rows.stop)[:, None] - y, np.arange(columns.start, columns.stop) - x
        )
        cover = np.clip(depth / 2 + 0.5, 0, 1) * (1 - pallor * np.clip(depth / radius * 1.6 - 0.4, 0, 1))
        patch = canvas[rows, columns]
        # Overlapping red cells darken as two layers of stain do.
        patch *= 1 - cover[..., None] * (1 - colour / PLASMA_RGB)


def _lay_cell(
    canvas: Floats,
    labels: NDArray[np.uint16],
    cell: NDArray[np.uint8],
    place: tuple[float, float],
    number: int,
    rim: float,
) -> None:
    top, left = (round(at - len(cell) / 2) for at in place)
    rows, columns = (slice(max(0, at), min(n, at + len(cell))) for at, n in zip((top, left), labels.shape, strict=True))
    shown = cell[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    mask = ndimage.binary_fill_holes(shown.max(axis=-1) > BACKGROUND_LEVEL)
    outside = ndimage.distance_transform_edt(~mask)
    fringe = np.clip(rim - outside + 0.5, 0, 1)[..., None]
    patch = canvas[rows, columns]
    patch += fringe * (FRINGE_RGB - patch)
    # The cut-out's outermost pixels fade to black, which on a slide they do not.
    pale = 255 * (np.maximum(shown, 1) / 255) ** np.float32(STRENGTH)
    solid = np.clip(ndimage.distance_transform_edt(mask) - 0.5, 0, 1)[..., None]
    patch += solid * (pale - patch)
    labels[rows, columns][mask] = number


def _window(canvas: Floats, y: float, x: float, reach: float) -> tuple[slice, slice]:
    rows, columns = (
        slice(max(0, int(at - reach)), min(n, int(at + reach) + 2)) for at, n in zip((y, x), canvas.shape, strict=False)
    )
    return rows, columns


def _burn_scale_bar(image: Image.Image, um_per_pixel: float) -> None:
    """A black bar of 10 µm on a white label, as microscope software burns it in."""
    length = 10 / um_per_pixel
    unit = max(2.0, min(image.size) / 60)
    right, bottom = image.width - 2 * unit, image.height - 2 * unit
    draw = ImageDraw.Draw(image)
    draw.rectangle((right - length - unit, bottom - 3 * unit, right + unit, bottom + unit), fill="white")
    draw.rectangle((right - length, bottom - unit, right, bottom), fill="black")
