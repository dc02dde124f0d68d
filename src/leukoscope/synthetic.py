"""Synthetic white cells and smears, shaped after the C-NMC 2019 training cells, that stand in for patients' cells.

They test the software and say nothing about leukaemia: no metric measured on them belongs in a results table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope import drawing
from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground
from leukoscope.drawing import NATIVE_SIZE, PLASMA_RGB, Floats

Background = Literal["black", "smear"]
Disc = tuple[float, float, float]  # y, x of the centre, and the radius

PHANTOM_LABELS = ("ALL", "HEM")
MIN_SIZE = 32  # below this the chromatin that tells the classes apart is gone


@dataclass(frozen=True)
class PhantomCell:
    """One synthetic cell with the names a real one would carry."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    label: str  # "ALL" (leukaemic blast) or "HEM" (normal precursor)
    subject: str  # as "phantom-all-03"; every subject has one label
    cell_id: str  # unique within one seed, as "phantom-all-03_007"


def draw_cell(
    label: str,
    *,
    subject: int = 0,
    cell: int = 0,
    size: int = NATIVE_SIZE,
    background: Background = "black",
    seed: int = 0,
) -> PhantomCell:
    """Draw one phantom cell; equal arguments give equal pixels, in any order of drawing.

    Args:
        label: "ALL" or "HEM"; sets size, outline and chromatin (never the stain).
        subject, cell: numbers, >= 0; the subject sets stain and mean cell size.
        size: edge of the square image in pixels, >= 32; 450 is the native C-NMC frame.
        background: "black" cuts the cell out as C-NMC 2019 does (exactly 0 outside); "smear" lays it on a pale field
            among blurred red cells, in the lighter tones of an unnormalised smear.
        seed: >= 0; another seed is another set of subjects.

    Raises:
        ValueError: a number lies outside the ranges above, or the label or background is unknown.
    """
    if size < MIN_SIZE or background not in ("black", "smear"):
        raise ValueError(f"size {size}, background {background!r}: draw {MIN_SIZE} px or more on one of black, smear")
    key = (seed, PHANTOM_LABELS.index(label), subject)
    form = drawing.MORPHOLOGY[label]
    rng = drawing.generator(*key, stream=(1,))
    # Spreads between subjects are a little above those of C-NMC (R 5.7, G 3.7, B 5.4, R - B 2.4 levels).
    strength, saturation = drawing.spread_of(rng, 0.062), drawing.spread_of(rng, 0.04)
    warmth = 1.4 * drawing.bounded_normal(rng)
    stain = drawing.Stain(strength, saturation, warmth, drawing.spread_of(rng, form.subject_spread))
    rng = drawing.generator(*key, cell)
    # Cells of a C-NMC subject spread by R 4.9, G 2.8, B 4.3 levels; a little less keeps subjects apart.
    strength = drawing.spread_of(rng, 0.045)
    window, reach = drawing.draw_outline(rng, form, stain, size)
    colour = drawing.paint(rng, form, window)
    if background == "black":
        # An edge of nearly two output pixels, as soft as that of real cells.
        coverage = np.clip(0.6 * window.depth * (size / NATIVE_SIZE) + 0.5, 0, 1)
        image = np.zeros((size, size, 3), np.uint8)
        image[window.span] = drawing.to_uint8(stain.apply(colour, strength) * coverage[..., None])
    else:
        # A stream of its own, so that the background never changes the cell.
        smear = stain.apply(drawing.draw_field(drawing.generator(*key, cell, stream=(2,)), reach))
        field = drawing.resample(smear, drawing.SMEAR_PITCH, drawing.axis_of(size), drawing.axis_of(size))
        patch = field[window.span]
        # C-NMC outlines run close to the nucleus; on the slide a fringe of cytoplasm lies beyond them.
        fringe, cell_layer = stain.apply(drawing.FRINGE_RGB), stain.apply(colour, drawing.SMEAR_STRENGTH * strength)
        for beyond, layer in ((drawing.FRINGE_WIDTH, fringe), (0, cell_layer)):
            patch += drawing.smoothstep((window.depth + beyond) / 8 + 0.5)[..., None] * (layer - patch)
        image = drawing.to_uint8(field)
    name = f"phantom-{label.lower()}-{subject:02d}"
    return PhantomCell(image, label, name, f"{name}_{cell:03d}")


def phantom_cells(
    *,
    subjects_per_class: int = 10,
    cells_per_subject: int = 24,
    size: int = NATIVE_SIZE,
    background: Background = "black",
    seed: int = 0,
) -> Iterator[PhantomCell]:
    """Yield a balanced set of phantom cells, ordered by label, subject and cell; the rest is as for `draw_cell`."""
    for label, subject, cell in product(PHANTOM_LABELS, range(subjects_per_class), range(cells_per_subject)):
        yield draw_cell(label, subject=subject, cell=cell, size=size, background=background, seed=seed)


# Smears

RED_CELL_RADIUS, RED_CELL_SPREAD = 3.75, 0.05  # µm, and relative
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
        (red_cells, RED_CELL_RADIUS, drawing.RED_CELL_RGB, 0.45),
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
    patch += fringe * (drawing.FRINGE_RGB - patch)
    # The cut-out's outermost pixels fade to black, which on a slide they do not: they take the colour further in.
    depth = ndimage.distance_transform_edt(mask)
    inner = ndimage.distance_transform_edt(depth < 2.5, return_distances=False, return_indices=True)
    pale = 255 * (np.maximum(shown[tuple(inner)], 1) / 255) ** np.float32(STRENGTH)
    patch += np.clip(depth / 2, 0, 1)[..., None] * (pale - patch)
    labels[y : top + len(cell), x : left + len(cell)][mask] = number


# Synthetic smears, one picture one class, for releases that were trained on the four-class B-ALL set: drawn by
# research/smears.py and kept as one sheet, one column per class.
SMEAR_LABELS = ("Benign", "Early", "Pre", "Pro")
SMEAR_SIZE = 224
SMEAR_SHEET = Path(__file__).with_name("smears.webp")


def smear_picture(label: str, number: int) -> NDArray[np.uint8]:
    """One synthetic smear, (224, 224, 3) uint8 RGB; `number` is its row in the sheet, below 5."""
    top, left = number * SMEAR_SIZE, SMEAR_LABELS.index(label) * SMEAR_SIZE
    return _smear_sheet()[top : top + SMEAR_SIZE, left : left + SMEAR_SIZE]


@lru_cache(maxsize=1)
def _smear_sheet() -> NDArray[np.uint8]:
    with Image.open(SMEAR_SHEET) as sheet:
        return np.asarray(sheet.convert("RGB"))
