"""Synthetic white cells that stand in for patients' cells: two classes, each with subjects of their own stain.

They test the software and say nothing about leukaemia: no metric measured on them belongs in a results table. Lengths
are pixels of the 450-px frame of C-NMC 2019, whatever the size of the picture: a cell drawn smaller is the same cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
Background = Literal["black", "smear"]

PHANTOM_LABELS = ("ALL", "HEM")
MIN_SIZE = 32  # below this the chromatin that tells the classes apart is gone
NATIVE_SIZE = 450

NUCLEUS_RGB = np.array([68, 27, 78], np.float32)
CHROMATIN_RGB = np.array([7.6, 4.2, 2.6], np.float32)
SHADE_RGB = np.array([7.4, 4.7, 5.6], np.float32)
CYTOPLASM_RGB = np.array([88, 56, 98], np.float32)
PLASMA_RGB = np.array([236, 220, 217], np.float32)
RED_CELL_RGB = np.array([206, 150, 152], np.float32)
SMEAR_STRENGTH = 0.62  # C-NMC's stain normalisation darkens cells; on a slide they are paler
SHADE_LENGTH = 60.0
WAVES = 48
REACH = 1.5  # radii: beyond every outline
EXAMPLES_PER_CLASS = 3  # pictures of each class that come with Leukoscope
EXAMPLE_SMEAR_PITCH = 0.12  # µm per pixel, of smears by a 40× objective


@dataclass(frozen=True)
class Morphology:
    """How the cells of one class look."""

    radius: float
    irregularity: float  # of the outline, relative to the radius
    rim: float  # width of the cytoplasm
    grain: float  # wavelength of the chromatin
    contrast: float  # of the chromatin


# Blasts are larger and less round, with fine chromatin; the radii are those of the median cells of C-NMC 2019.
MORPHOLOGY = {
    "ALL": Morphology(radius=105, irregularity=0.05, rim=2.2, grain=14, contrast=0.6),
    "HEM": Morphology(radius=93, irregularity=0.03, rim=3.5, grain=30, contrast=0.8),
}


@dataclass(frozen=True)
class Stain:
    """What the slide and the subject add to every cell of one subject."""

    strength: float  # relative optical density
    warmth: float  # grey levels added to red and taken from blue
    size: float  # relative

    def apply(self, colour: Floats, strength: float = 1.0) -> Floats:
        """The stained colours of (…, 3) RGB levels, 0–255."""
        stained = colour + self.warmth * np.array([1, 0, -1], np.float32)
        return 255 * (np.clip(stained, 1, 255) / 255) ** np.float32(self.strength * strength)


@dataclass(frozen=True)
class PhantomCell:
    """One synthetic cell with the names a real one would carry."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    label: str  # "ALL" (leukaemic blast) or "HEM" (normal cell)
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
    stain = _stain_of_subject(_generator(*key, stream=1))
    rng = _generator(*key, cell, stream=2)
    strength = _factor(rng, 0.045)
    radius = form.radius * stain.size * _factor(rng, 0.10)
    axis = _axis(size)
    # Only the square round the cell is computed.
    first, end = np.searchsorted(axis, [-REACH * radius, REACH * radius]).tolist()
    near = slice(first, end)
    depth = _depth(rng, form, radius, axis[near])
    colour = _colour(rng, form, depth, axis[near])
    if background == "black":
        picture = np.zeros((size, size, 3), np.float32)
        cover = np.clip(0.6 * depth * size / NATIVE_SIZE + 0.5, 0, 1)
        stained = stain.apply(colour, strength)
    else:
        # The background has a stream of its own, so that it never changes the cell.
        picture = stain.apply(_field(_generator(*key, cell, stream=3), axis))
        cover = np.clip(depth / 8 + 0.5, 0, 1)
        stained = stain.apply(colour, SMEAR_STRENGTH * strength)
    picture[near, near] += cover[..., None] * (stained - picture[near, near])
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


def _stain_of_subject(rng: np.random.Generator) -> Stain:
    strength = _factor(rng, 0.06)
    warmth = 1.4 * _bounded_normal(rng)
    size = _factor(rng, 0.06)
    return Stain(strength, warmth, size)


def _axis(size: int) -> Floats:
    """(size,) where the pixels of a picture lie in the native frame, from its middle."""
    return ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * NATIVE_SIZE


def _depth(rng: np.random.Generator, form: Morphology, radius: float, axis: Floats) -> Floats:
    """(S, S) how far each pixel lies below the cell's outline; negative outside."""
    down = axis[:, None] - 2 * _bounded_normal(rng)
    across = axis[None, :] - 2 * _bounded_normal(rng)
    angle = np.arctan2(down, across)
    outline = np.ones_like(angle)
    for order in range(2, 8):
        height = form.irregularity * 2 / order * _bounded_normal(rng)
        outline += height * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radius * outline - np.hypot(down, across)


def _colour(rng: np.random.Generator, form: Morphology, depth: Floats, axis: Floats) -> Floats:
    """(S, S, 3) RGB levels of nucleus and cytoplasm."""
    chromatin = form.contrast * _texture(rng, axis, form.grain * _factor(rng, 0.12))
    shade = _texture(rng, axis, SHADE_LENGTH)
    nucleus = NUCLEUS_RGB + np.stack([chromatin, shade], axis=-1) @ np.stack([CHROMATIN_RGB, SHADE_RGB])
    rim = form.rim * _factor(rng, 0.35)
    inside = np.clip((depth - rim) / 7 + 0.5, 0, 1)[..., None]
    return CYTOPLASM_RGB + inside * (nucleus - CYTOPLASM_RGB)


def _texture(rng: np.random.Generator, axis: Floats, length: float) -> Floats:
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


def _field(rng: np.random.Generator, axis: Floats) -> Floats:
    """(S, S, 3) pale plasma with six red cells round the middle."""
    thickness = np.zeros((len(axis), len(axis)), np.float32)
    for number in range(6):
        radius = rng.uniform(50, 62)
        angle = 2 * np.pi * (number + rng.uniform(0, 0.4)) / 6
        away = rng.uniform(160, 210)
        depth = radius - np.hypot(axis[:, None] - away * np.sin(angle), axis[None, :] - away * np.cos(angle))
        # Red cells are thinner in their middle.
        pallor = 0.45 * np.clip(depth / radius * 1.6 - 0.4, 0, 1)
        thickness = np.maximum(thickness, np.clip(depth / 16 + 0.5, 0, 1) * (1 - pallor))
    plasma = PLASMA_RGB + 3 * _texture(rng, axis, 100)[..., None]
    return plasma + thickness[..., None] * (RED_CELL_RGB - PLASMA_RGB)


# Pictures that come with Leukoscope: what the demo offers gets the same answers, however cells are drawn.


def example_cell(label: str, number: int) -> NDArray[np.uint8]:
    """One of the demo's synthetic cells on black, (450, 450, 3) uint8 RGB; `number` is 0, 1 or 2."""
    column = PHANTOM_LABELS.index(label) * EXAMPLES_PER_CLASS + number
    return _pixels("synthetic_cells.webp")[:, column * NATIVE_SIZE : (column + 1) * NATIVE_SIZE]


def example_smear() -> NDArray[np.uint8]:
    """The demo's synthetic smear, (720, 960, 3) uint8 RGB, at `EXAMPLE_SMEAR_PITCH`."""
    return _pixels("synthetic_smear.webp")


# One picture one class, for releases that were trained on the four-class B-ALL set: drawn by research/smears.py and
# kept as one sheet, one column per class.
SMEAR_LABELS = ("Benign", "Early", "Pre", "Pro")
SMEAR_SIZE = 224
EXAMPLE_CELLS = tuple(product(PHANTOM_LABELS, range(EXAMPLES_PER_CLASS)))
"""Class and number of each synthetic cell that is offered.

Both C-NMC releases give each its class, but for the last: to that they give none. DenseNet169 gives the first two the
same answer under every small change, and the third no class under some of them.
"""
EXAMPLE_SMEARS = tuple(zip(SMEAR_LABELS, (0, 0, 4, 4), strict=True))
"""The same of smears, for models of whole pictures: those that are in distribution."""
SMEAR_SHEET = Path(__file__).with_name("smears.webp")


def smear_picture(label: str, number: int) -> NDArray[np.uint8]:
    """One synthetic smear, (224, 224, 3) uint8 RGB; `number` is its row in the sheet, below 5."""
    top = number * SMEAR_SIZE
    left = SMEAR_LABELS.index(label) * SMEAR_SIZE
    return _pixels(SMEAR_SHEET.name)[top : top + SMEAR_SIZE, left : left + SMEAR_SIZE]


@lru_cache
def _pixels(file: str) -> NDArray[np.uint8]:
    """(H, W, 3) the pixels of a lossless picture beside this module."""
    with Image.open(Path(__file__).with_name(file)) as picture:
        return np.asarray(picture.convert("RGB"))
