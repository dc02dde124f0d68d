"""Synthetic white cells and smears that stand in for patients': two classes, each with subjects of their own stain.

They test the software and say nothing about leukaemia: no metric measured on them belongs in a results table. Lengths
are pixels of the 450-px frame of C-NMC 2019, whatever the size of the picture: a cell drawn smaller is the same cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground

Background = Literal["black", "smear"]
Disc = tuple[float, float, float]  # y, x of the centre, and the radius

PHANTOM_LABELS = ("ALL", "HEM")
MIN_SIZE = 32  # below this the chromatin that tells the classes apart is gone
NATIVE_SIZE = 450
_rgb = partial(np.array, dtype=np.float32)
NUCLEUS_RGB = _rgb([68, 27, 78])
CHROMATIN_RGB = _rgb([7.6, 4.2, 2.6])
SHADE_RGB = _rgb([7.4, 4.7, 5.6])
CYTOPLASM_RGB = _rgb([88, 56, 98])
PLASMA_RGB = _rgb([236, 220, 217])
RED_CELL_RGB = _rgb([206, 150, 152])
FRINGE_RGB = _rgb([172, 166, 206])
PLATELET_RGB = _rgb([150, 110, 180])
WARM_RGB = _rgb([1, 0, -1])
SMEAR_STRENGTH = 0.62  # C-NMC's stain normalisation darkens cells; on a slide they are paler
SHADE_LENGTH = 60.0
WAVES = 48
REACH = 1.5  # radii: beyond every outline

# Of a whole smear: µm, and relative. Real red cells are 3.75, but soft: this is what the threshold leaves of them that
# measures a scale.
RED_CELL_RADIUS = 3.17
RED_CELL_SPREAD = 0.05
PLATELET_RADIUS = 1.2
CYTOPLASM_WIDTH = 0.18  # µm, beyond what a cell is drawn with
# Between a slide's and that of C-NMC's cells, so that the released models know most cells of a synthetic smear.
STRENGTH = 0.92
NOISE = 0.3  # levels; more of it, upsampled in a cut-out, is read as the fine chromatin of a blast
TRIES = 400


@dataclass(frozen=True)
class Morphology:
    """How the cells of one class look."""

    radius: float
    irregularity: float  # of the outline, relative to the radius
    rim: float  # width of the cytoplasm
    grain: float  # wavelength of the chromatin
    contrast: float  # of the chromatin


# Blasts are larger and less round, with fine chromatin; the radii are those of the median cells of C-NMC 2019.
MORPHOLOGY = {"ALL": Morphology(105, 0.05, 2.2, 14, 0.6), "HEM": Morphology(93, 0.03, 3.5, 30, 0.8)}


@dataclass(frozen=True)
class PhantomCell:
    """One synthetic cell with the names a real one would carry."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    label: str  # "ALL" (leukaemic blast) or "HEM" (normal cell)
    subject: str  # as "phantom-all-03"; every subject has one label
    cell_id: str  # unique within one seed, as "phantom-all-03_007"


@dataclass(frozen=True)
class PhantomSmear:
    """A synthetic smear and its truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    labels: np.ndarray  # (H, W) uint16, 0 or the number (from 1) of the white cell a pixel belongs to
    classes: tuple[str, ...]  # "ALL" or "HEM" of each white cell, in the order of their numbers
    um_per_pixel: float


def draw_cell(
    label: str,
    *,
    subject: int = 0,
    cell: int = 0,
    size: int = NATIVE_SIZE,
    background: Background = "black",
    seed: int = 0,
) -> PhantomCell:
    """Draw one phantom cell; equal arguments give equal pixels, whatever was drawn before.

    Args:
        label: "ALL" or "HEM"; sets size, outline and chromatin (never the stain).
        subject, cell: numbers, >= 0; the subject sets stain and mean cell size.
        size: edge of the square image in pixels, >= 32; 450 is the native C-NMC frame.
        background: "black" cuts the cell out as C-NMC 2019 does (exactly 0 outside); "smear" lays it on a pale field
            among red cells, in the lighter tones of an unnormalised smear.
        seed: >= 0; another seed is another set of subjects.

    Raises:
        ValueError: a number lies outside the ranges above, or the label or background is unknown.
    """
    if size < MIN_SIZE or background not in ("black", "smear"):
        raise ValueError(f"size {size}, background {background!r}: draw {MIN_SIZE} px or more on one of black, smear")
    key = (seed, PHANTOM_LABELS.index(label), subject)
    form = MORPHOLOGY[label]
    of_subject = _generator(*key, stream=1)
    stain = _factor(of_subject, 0.06)  # relative optical density
    warmth = 1.4 * _bounded_normal(of_subject)  # grey levels added to red and taken from blue
    mean_size = _factor(of_subject, 0.06)
    rng = _generator(*key, cell, stream=2)
    strength = _factor(rng, 0.045)
    radius = form.radius * mean_size * _factor(rng, 0.10)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * NATIVE_SIZE  # from the middle of the frame
    # Only the square round the cell is computed.
    near = slice(*np.searchsorted(axis, [-REACH * radius, REACH * radius]).tolist())
    depth = _depth(rng, form, radius, axis[near])
    colour = _colour(rng, form, depth, axis[near])
    if background == "black":
        picture = np.zeros((size, size, 3), np.float32)
        cover = np.clip(0.6 * depth * size / NATIVE_SIZE + 0.5, 0, 1)
    else:
        # The background has a stream of its own, so that it never changes the cell.
        picture = _stained(_field(_generator(*key, cell, stream=3), axis), warmth, stain)
        cover = np.clip(depth / 8 + 0.5, 0, 1)
        strength *= SMEAR_STRENGTH
    _blend(picture[near, near], cover, _stained(colour, warmth, stain * strength))
    name = f"phantom-{label.lower()}-{subject:02d}"
    return PhantomCell(np.round(picture).astype(np.uint8), label, name, f"{name}_{cell:03d}")


def phantom_cells(
    *,
    subjects_per_class: int = 10,
    cells_per_subject: int = 24,
    size: int = NATIVE_SIZE,
    background: Background = "black",
    seed: int = 0,
) -> Iterator[PhantomCell]:
    """Yield a balanced set of phantom cells, ordered by label, subject and cell; other arguments as of `draw_cell`."""
    for label, subject, cell in product(PHANTOM_LABELS, range(subjects_per_class), range(cells_per_subject)):
        yield draw_cell(label, subject=subject, cell=cell, size=size, background=background, seed=seed)


def _generator(*key: int, stream: int) -> np.random.Generator:
    # Short keys are padded with zeros: without streams, a subject's key alone would equal that of its cell 0.
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=(stream,)))


def _bounded_normal(rng: np.random.Generator) -> float:
    # Bounded so that no seed gives a cell that leaves its frame.
    return float(np.clip(rng.standard_normal(), -2.2, 2.2))


def _factor(rng: np.random.Generator, spread: float) -> float:
    """A factor about 1; `spread` is the standard deviation of its logarithm."""
    return float(np.exp(spread * _bounded_normal(rng)))


def _stained(colour: np.ndarray, warmth: float, strength: float) -> np.ndarray:
    """The stained colours of (…, 3) RGB levels, 0–255."""
    warm = colour + warmth * WARM_RGB
    return 255 * (np.clip(warm, 1, 255) / 255) ** np.float32(strength)


def _blend(picture: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Lay a colour over (H, W, 3) levels, where `cover`, (H, W), is 1."""
    picture += cover[..., None] * (colour - picture)


def _depth(rng: np.random.Generator, form: Morphology, radius: float, axis: np.ndarray) -> np.ndarray:
    """(S, S) how far each pixel lies below the cell's outline; negative outside."""
    down = axis[:, None] - 2 * _bounded_normal(rng)
    across = axis - 2 * _bounded_normal(rng)
    angle = np.arctan2(down, across)
    outline = np.ones_like(angle)
    for order in range(2, 8):
        height = form.irregularity * 2 / order * _bounded_normal(rng)
        outline += height * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radius * outline - np.hypot(down, across)


def _colour(rng: np.random.Generator, form: Morphology, depth: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(S, S, 3) RGB levels of nucleus and cytoplasm."""
    chromatin = form.contrast * _texture(rng, axis, form.grain * _factor(rng, 0.12))
    shade = _texture(rng, axis, SHADE_LENGTH)
    nucleus = NUCLEUS_RGB + np.stack([chromatin, shade], axis=-1) @ np.stack([CHROMATIN_RGB, SHADE_RGB])
    rim = form.rim * _factor(rng, 0.35)
    inside = np.clip((depth - rim) / 7 + 0.5, 0, 1)[..., None]
    return CYTOPLASM_RGB + inside * (nucleus - CYTOPLASM_RGB)


def _texture(rng: np.random.Generator, axis: np.ndarray, length: float) -> np.ndarray:
    """(S, S) a random pattern of mean 0 and variance 1: plane waves of about this length, in all directions."""
    direction = rng.uniform(0, 2 * np.pi, WAVES)
    phase = rng.uniform(0, 2 * np.pi, WAVES)
    frequency = 2 * np.pi / (length * rng.uniform(0.7, 2, WAVES))
    rows = frequency * np.sin(direction)
    columns = frequency * np.cos(direction)
    # A pixel shows the mean over its area: of waves shorter than itself, nothing.
    pixel = (axis[1] - axis[0]) / (2 * np.pi)
    height = np.sqrt(2 / WAVES) * np.sinc(rows * pixel) * np.sinc(columns * pixel)
    down = (np.outer(axis, rows) + phase).astype(np.float32)
    across = np.outer(columns, axis).astype(np.float32)
    # The cosine of a sum of angles: cos(a + b) = cos a cos b − sin a sin b.
    down_waves = np.concatenate([np.cos(down) * height, -np.sin(down) * height], axis=1).astype(np.float32)
    across_waves = np.concatenate([np.cos(across), np.sin(across)])
    # Not `@`: the threads that it starts for matrices wait for each other on a busy machine, for 100 ms a cell.
    return np.einsum("yw,wx->yx", down_waves, across_waves)


def _disc(depth: np.ndarray, radius: float, edge: float, pallor: float) -> np.ndarray:
    """(H, W) thickness, 0–1, of a disc below whose outline a pixel lies so deep; its middle is thinner by `pallor`."""
    return np.clip(depth / edge + 0.5, 0, 1) * (1 - pallor * np.clip(depth / radius * 1.6 - 0.4, 0, 1))


def _field(rng: np.random.Generator, axis: np.ndarray) -> np.ndarray:
    """(S, S, 3) pale plasma with six red cells round the middle."""
    discs = []
    for number in range(6):
        radius = rng.uniform(50, 62)
        angle = 2 * np.pi * (number + rng.uniform(0, 0.4)) / 6
        away = rng.uniform(160, 210)
        depth = radius - np.hypot(axis[:, None] - away * np.sin(angle), axis - away * np.cos(angle))
        discs.append(_disc(depth, radius, 16, 0.45))
    plasma = PLASMA_RGB + 3 * _texture(rng, axis, 100)[..., None]
    return plasma + np.max(discs, axis=0)[..., None] * (RED_CELL_RGB - PLASMA_RGB)


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
    """Draw a smear of cells of `draw_cell`; equal arguments give equal pixels.

    Args:
        classes: "ALL" or "HEM" for each white cell.
        size: (height, width) in pixels.
        um_per_pixel: 0.07 is a 100× objective's, 0.4 that of the four-class B-ALL pictures.
        red_cells, platelets: how many of them; they overlap each other but lie beside the white cells.
        spacing: least distance of two white cells in sums of their radii; just below 1 makes neighbours touch.

    Raises:
        ValueError: as of `draw_cell`, whose size is 27 µm in pixels; or not enough space for so many cells.
    """
    side = round(CUT_OUT_SIDE * CUT_OUT_PITCH / um_per_pixel)
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
    # Wider than the smear on all sides, so that whatever lies on it lies wholly on the canvas.
    canvas = np.tile(PLASMA_RGB, (size[0] + 2 * side, size[1] + 2 * side, 1))
    labels = np.zeros(canvas.shape[:2], np.uint16)
    for count, mean_radius, colour, pallor in (
        (red_cells, RED_CELL_RADIUS / um_per_pixel, RED_CELL_RGB, 0.45),
        (platelets, PLATELET_RADIUS / um_per_pixel, PLATELET_RGB, 0),
    ):
        taken = [(y, x, 1.7 * radius) for y, x, radius in white]
        for _ in range(count):
            radius = mean_radius * float(np.exp(RED_CELL_SPREAD * rng.standard_normal()))
            disc = _free_place(rng, radius, size, 0, taken, 0.75)  # they may overlap by a quarter
            if disc is not None:
                taken.append(disc)
                _lay_disc(canvas, disc, side, colour, pallor)
    for number, (cell, (y, x, _)) in enumerate(zip(cells, white, strict=True), start=1):
        top = round(y - side / 2) + side
        left = round(x - side / 2) + side
        window = (slice(top, top + side), slice(left, left + side))
        covered = _lay_cell(canvas[window], cell, CYTOPLASM_WIDTH / um_per_pixel)
        labels[window][covered] = number
    inside = (slice(side, -side), slice(side, -side))
    noisy = canvas[inside] + rng.normal(0, NOISE, (*size, 3))
    return PhantomSmear(noisy.clip(0, 255).astype(np.uint8), labels[inside], tuple(classes), um_per_pixel)


def _free_place(
    rng: np.random.Generator, radius: float, size: tuple[int, int], edge: float, others: Sequence[Disc], apart: float
) -> Disc | None:
    """A disc so far from the edge and, in sums of radii, from the others; None where none was found."""
    for _ in range(TRIES):
        y = float(rng.uniform(edge, max(edge, size[0] - edge)))
        x = float(rng.uniform(edge, max(edge, size[1] - edge)))
        if all(np.hypot(y - v, x - u) >= apart * (radius + r) for v, u, r in others):
            return y, x, radius
    return None


def _lay_disc(canvas: np.ndarray, disc: Disc, margin: int, colour: np.ndarray, pallor: float) -> None:
    """Lay a red cell or a platelet on a canvas that is wider than the smear by `margin` pixels."""
    y, x, radius = disc
    rows = np.arange(int(y - radius - 2), int(y + radius + 4))
    columns = np.arange(int(x - radius - 2), int(x + radius + 4))
    thickness = _disc(radius - np.hypot(rows[:, None] - y, columns - x), radius, 2, pallor)
    # Overlapping red cells darken as two layers of stain do.
    canvas[np.ix_(rows + margin, columns + margin)] *= 1 - thickness[..., None] * (1 - colour / PLASMA_RGB)


def _lay_cell(canvas: np.ndarray, cell: np.ndarray, rim: float) -> np.ndarray:
    """Lay a white cell with a fringe of cytoplasm `rim` pixels wide; returns which pixels it covers."""
    covered = ndimage.binary_fill_holes(foreground(cell))
    fringe = np.clip((rim - ndimage.distance_transform_edt(~covered)) / 2 + 0.5, 0, 1)
    _blend(canvas, fringe, FRINGE_RGB)
    # The cut-out's outermost pixels fade to black, which on a slide they do not: they take the colour further in.
    depth = ndimage.distance_transform_edt(covered)
    inner = ndimage.distance_transform_edt(depth < 2.5, return_distances=False, return_indices=True)
    paler = 255 * (np.maximum(cell[tuple(inner)], 1) / 255) ** np.float32(STRENGTH)
    _blend(canvas, np.clip(depth / 2, 0, 1), paler)
    return covered


# Pictures that come with Leukoscope: what the demo offers gets the same answers, however cells are drawn.
EXAMPLE_CELLS = tuple(product(PHANTOM_LABELS, range(3)))
"""Class and number of each synthetic cell that is offered.

Both C-NMC releases give each its class, but for the last: to that they give none. DenseNet169 gives the first two the
same answer under every small change, and the third no class under some of them.
"""
# One picture one class, for releases that were trained on the four-class B-ALL set: drawn once, kept as one sheet, one
# column per class.
SMEAR_LABELS = ("Benign", "Early", "Pre", "Pro")
SMEAR_SIZE = 224
SMEAR_SHEET = Path(__file__).with_name("smears.webp")
EXAMPLE_SMEARS = tuple(zip(SMEAR_LABELS, (0, 0, 4, 4), strict=True))
"""The same of smears, for models of whole pictures: those that are in distribution."""
EXAMPLE_SMEAR_PITCH = 0.12  # µm per pixel, of smears by a 40× objective


def example_cell(label: str, number: int) -> np.ndarray:
    """One of the demo's synthetic cells on black, (450, 450, 3) uint8 RGB; `number` is 0, 1 or 2."""
    left = EXAMPLE_CELLS.index((label, number)) * NATIVE_SIZE
    return _pixels("synthetic_cells.webp")[:, left : left + NATIVE_SIZE]


def example_smear() -> np.ndarray:
    """The demo's synthetic smear, (720, 960, 3) uint8 RGB, at `EXAMPLE_SMEAR_PITCH`."""
    return _pixels("synthetic_smear.webp")


def smear_picture(label: str, number: int) -> np.ndarray:
    """One synthetic smear, (224, 224, 3) uint8 RGB; `number` is its row in the sheet, below 5."""
    top = number * SMEAR_SIZE
    left = SMEAR_LABELS.index(label) * SMEAR_SIZE
    return _pixels(SMEAR_SHEET.name)[top : top + SMEAR_SIZE, left : left + SMEAR_SIZE]


@lru_cache
def _pixels(file: str) -> np.ndarray:
    """(H, W, 3) the pixels of a lossless picture beside this module."""
    with Image.open(Path(__file__).with_name(file)) as picture:
        return np.asarray(picture.convert("RGB"))
