"""Synthetic white cells, shaped after the C-NMC 2019 training cells, that stand in for patients' cells.

They test the software and say nothing about leukaemia: no metric measured on them belongs in a results table. Lengths
are pixels of the native 450-px frame. Random fields live on grids tied to that frame, never to the output, so that a
cell drawn smaller is the same cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[np.floating]  # float32 wherever a whole image is at stake: half the time of float64
Background = Literal["black", "smear"]

PHANTOM_LABELS = ("ALL", "HEM")
MIN_SIZE = 32  # below this the chromatin that tells the classes apart is gone

NATIVE_SIZE = 450  # C-NMC 2019 frames are 450x450
MAX_RADIUS = 212.0  # leaves a margin round the largest cell

# Means over 660 C-NMC 2019 training cells (folds 0 and 1, at most 16 a subject); CHROMATIN and SHADE are the first
# principal directions of 431 cells' nuclei below and above 16 px, in levels a unit; BASOPHILIC, the colour of cytoplasm
# where there is more of it than a rim, and the colours on the slide (May-Gruenwald-Giemsa) are set by eye.
NUCLEUS_RGB = np.array([68, 27, 78], np.float32)
CYTOPLASM_RGB = np.array([88, 56, 98], np.float32)
BASOPHILIC_RGB = np.array([68, 56, 108], np.float32)
CHROMATIN_RGB = np.array([7.6, 4.2, 2.6], np.float32)
SHADE_RGB = np.array([7.4, 4.7, 5.6], np.float32)
TINT_RGB = np.array([1.6, 0.2, -2.2], np.float32)
PLASMA_RGB = np.array([236, 220, 217], np.float32)
RED_CELL_RGB = np.array([206, 150, 152], np.float32)
FRINGE_RGB = np.array([172, 166, 206], np.float32)
FRINGE_WIDTH = 6.0
SMEAR_STRENGTH = 0.62  # C-NMC's stain normalisation darkens; a slide itself is paler

# Grids of the random fields: nodes along an edge and pixels between them.
ANGLES = 512
CHROMATIN_NODES, CHROMATIN_PITCH = 128, 2.5
PATCHES = 12.0
SHADE_NODES, SHADE_PITCH = 64, 6.0
SHADE_GRAIN = 14.0  # with the chromatin it reproduces the contrast of real nuclei from 2 to 32 px
SMEAR_NODES, SMEAR_PITCH = 72, 6.4  # reaches past the frame, so that the seam of the grid never shows


class Morphology(NamedTuple):
    """How the cells of one class look; spreads are standard deviations of the logarithm."""

    radius: float
    subject_spread: float
    cell_spread: float
    irregularity: float
    notch_chance: float
    rim: float
    grain: float
    contrast: float
    clumping: float
    nucleolus_chance: float


# Radii give the median areas of the C-NMC 2019 training cells (36,500 and 27,000 px²); the spreads let the classes
# overlap as the real ones do (AUC of the area about 0.8). Blasts: irregular, indented, open chromatin with nucleoli.
# Normal precursors: rounder, with clumped chromatin. Real classes differ less in grain: it was chosen so that
# leukoscope-densenet169-cnmc predicts the intended class, and a network trained for a minute at 96 px as well.
MORPHOLOGY = {
    "ALL": Morphology(
        radius=105.0, subject_spread=0.055, cell_spread=0.088, irregularity=1.0, notch_chance=0.40, rim=2.2,
        grain=2.2, contrast=0.55, clumping=0.35, nucleolus_chance=0.75,
    ),
    "HEM": Morphology(
        radius=93.0, subject_spread=0.075, cell_spread=0.130, irregularity=0.65, notch_chance=0.12, rim=3.5,
        grain=5.5, contrast=0.70, clumping=0.5, nucleolus_chance=0.10,
    ),
}  # fmt: skip


class Stain(NamedTuple):
    """What the slide and the subject add to every cell of one subject."""

    strength: float  # relative optical density: it darkens green most and blue least, as C-NMC's subjects differ
    saturation: float
    warmth: float
    size: float

    def apply(self, colour: Floats, strength: float = 1.0) -> Floats:
        grey = colour.mean(axis=-1, keepdims=True)
        stained = grey + np.float32(self.saturation) * (colour - grey)
        stained += np.float32(self.warmth) * np.array([1, 0, -1], np.float32)
        return 255 * (np.clip(stained, 1, 255) / 255) ** np.float32(self.strength * strength)


class Window(NamedTuple):
    """The part of the output frame a cell touches, in polar coordinates round its centre."""

    span: tuple[slice, slice]
    y: Floats
    x: Floats
    depth: Floats  # below the outline; negative outside
    rim: Floats
    centrality: Floats


def generator(*key: int, stream: tuple[int, ...] = ()) -> np.random.Generator:
    # Short keys are padded with zeros: without streams, a subject's key alone would equal that of its cell 0.
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=stream))


def bounded_normal(rng: np.random.Generator) -> float:
    # Bounded so that no seed, however unlucky, gives a cell beyond what the training cells show.
    return float(np.clip(rng.standard_normal(), -2.2, 2.2))


def spread_of(rng: np.random.Generator, spread: float) -> float:
    """A factor about 1; `spread` is the standard deviation of its logarithm."""
    return float(np.exp(spread * bounded_normal(rng)))


def draw_outline(rng: np.random.Generator, form: Morphology, stain: Stain, size: int) -> tuple[Window, float]:
    """A cell's outline, sometimes indented, with its cytoplasm, and its largest radius."""
    angles = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    radius = form.radius * stain.size * spread_of(rng, form.cell_spread)
    # Harmonics whose amplitudes fall nearly as in the outlines of C-NMC cells (.07 at order 2).
    order = np.arange(2, 65)
    scale = 0.068 * (2 / order) ** 1.7
    # Elongation (order 2) is nearly the same in both classes; irregularity acts on the finer orders.
    scale[1:] *= form.irregularity * spread_of(rng, 0.35)
    real, imaginary = rng.standard_normal((2, order.size)).clip(-2.5, 2.5) * scale
    spectrum = np.zeros(ANGLES // 2 + 1, complex)
    spectrum[order] = (real + 1j * imaginary) * ANGLES / 2
    smooth = np.where(np.arange(spectrum.size) < 9, spectrum, 0)
    # Segmentation leaves some cells ragged, on one side more than on the other.
    one_sided = np.exp(np.cos(angles - 2 * np.pi * rng.random()))
    outline = 1 + np.fft.irfft(smooth, ANGLES) + 0.6 * one_sided * np.fft.irfft(spectrum - smooth, ANGLES)
    # Dents of the cell and of its nucleus at one angle, as fractions of the radius.
    present, position, depth, nuclear_depth, width = rng.random(5)
    dent = _bump(angles, position, 0.13 + 0.17 * width) * (present < form.notch_chance)
    outline *= 1 - (0.04 + 0.14 * depth) * dent
    outline = np.minimum(outline * (radius / np.sqrt(np.mean(outline**2))), MAX_RADIUS)
    slope = np.gradient(np.concatenate([outline[-1:], outline, outline[:1]]))[1:-1] * ANGLES / (2 * np.pi)
    # Cytoplasm: a thin rim, widening to a crescent on one side in some cells.
    thickness = form.rim * spread_of(rng, 0.35)
    position, crescent = rng.random(2)
    uneven = np.cos(np.arange(2, 8)[:, None] * angles + 2 * np.pi * rng.random((6, 1))).mean(axis=0)
    rim = thickness * (np.exp(1.2 * uneven) + 2.5 * crescent**2 * _bump(angles, position, 0.6))
    # Per angle the radius, what turns radial into perpendicular distance, and the thickness of the cytoplasm.
    parts = [outline, 1 / np.hypot(1, slope / outline), rim + 0.14 * nuclear_depth * dent * radius]
    table, axis = np.stack(parts, axis=1).astype(np.float32), axis_of(size)  # (ANGLES, 3)
    # Laid round a centre, y and x from the frame's middle.
    reach, centre = float(table[:, 0].max()), rng.normal(0, 2.0, 2)
    margin = reach + FRINGE_WIDTH + 6 + NATIVE_SIZE / size
    spans = [slice(*np.searchsorted(axis, [at - margin, at + margin]).tolist()) for at in centre]
    y, x = (axis[span] - np.float32(at) for span, at in zip(spans, centre, strict=True))
    rho = np.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    turn = np.arctan2(y[:, None], x[None, :]) * np.float32(ANGLES / (2 * np.pi)) % np.float32(ANGLES)
    index = np.minimum(turn.astype(np.intp), ANGLES - 1)
    low = table[index]
    low += (table[(index + 1) % ANGLES] - low) * (turn - index).astype(np.float32)[..., None]
    outer, perpendicular, cytoplasm = low[..., 0], low[..., 1], low[..., 2]
    return Window((spans[0], spans[1]), y, x, (outer - rho) * perpendicular, cytoplasm, 1 - rho / outer), reach


def _bump(angles: NDArray[np.float64], position: float, width: float) -> NDArray[np.float64]:
    """A bell of height 1 at the given turn (0 to 1), `width` radians wide."""
    offset = (angles - 2 * np.pi * position + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-0.5 * (offset / width) ** 2)


def axis_of(size: int) -> Floats:
    """Where the pixels of an output frame lie in the native one."""
    return ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * NATIVE_SIZE


def paint(rng: np.random.Generator, form: Morphology, window: Window) -> Floats:
    """RGB in grey levels for every pixel of the window, as if the cell filled it; (h, w, 3)."""
    at = window.y, window.x
    shade = _noise(rng, SHADE_NODES, SHADE_GRAIN / SHADE_PITCH)
    tint = _noise(rng, SHADE_NODES, SHADE_GRAIN / SHADE_PITCH)
    shade, tint = np.moveaxis(resample(np.stack([shade, tint], axis=-1), SHADE_PITCH, *at), -1, 0)
    # Nuclear texture in units of CHROMATIN_RGB: fine and open, or gathered into clumps.
    grain = form.grain * spread_of(rng, 0.12)
    texture = _noise(rng, CHROMATIN_NODES, grain / CHROMATIN_PITCH, coarsest=2.2 * grain / CHROMATIN_PITCH)
    # Real nuclei are skewed to the light side, pale gaps in a dark ground, and in patches more than in others.
    gaps = np.exp(form.clumping * texture + 0.3 * _noise(rng, CHROMATIN_NODES, PATCHES / CHROMATIN_PITCH))
    texture = form.contrast * (gaps - gaps.mean()) / gaps.std()
    chromatin = resample(texture[..., None], CHROMATIN_PITCH, *at)[..., 0] + _nucleoli(rng, form, window)
    shade = 0.80 * shade + 0.3 * np.clip(window.centrality, 0, 1)
    # Nuclei turn from indigo at their edge to red-violet within.
    tint = 0.6 * tint - 2.4 * np.exp(np.minimum(-window.depth / 14, 0)) + 0.3
    nucleus = NUCLEUS_RGB + chromatin[..., None] * CHROMATIN_RGB + shade[..., None] * SHADE_RGB
    nucleus += tint[..., None] * TINT_RGB
    blue = np.clip(window.rim / 12 - 0.4, 0, 1)[..., None]
    cytoplasm = CYTOPLASM_RGB + blue * (BASOPHILIC_RGB - CYTOPLASM_RGB) + 0.4 * shade[..., None] * SHADE_RGB
    inside = smoothstep((window.depth - window.rim) / 7 + 0.5)[..., None]
    return cytoplasm + inside * (nucleus - cytoplasm)


def _nucleoli(rng: np.random.Generator, form: Morphology, window: Window) -> Floats:
    """Up to three pale round spots well inside the nucleus."""
    count = int(rng.integers(1, 4)) if rng.random() < form.nucleolus_chance else 0
    spots = np.zeros(window.depth.shape, np.float32)
    for angle, distance, width, height in rng.random((3, 4)).tolist()[:count]:
        reach = 0.6 * form.radius * math.sqrt(distance)
        spread = -0.5 / (6 + 5 * width) ** 2
        y = (window.y - reach * math.sin(math.tau * angle)) ** 2
        x = (window.x - reach * math.cos(math.tau * angle)) ** 2
        spot = np.outer(np.exp(spread * y), np.exp(spread * x))
        # The chromatin round a nucleolus is dense.
        spots += (1.6 + 1.6 * height) * (1.5 * spot - 0.5 * np.outer(np.exp(spread / 3 * y), np.exp(spread / 3 * x)))
    return spots


def draw_field(rng: np.random.Generator, reach: float) -> Floats:
    """Pale plasma with five to eight blurred red cells beside the white one; (SMEAR_NODES, SMEAR_NODES, 3)."""
    axis = (np.arange(SMEAR_NODES, dtype=np.float32) - (SMEAR_NODES - 1) / 2) * SMEAR_PITCH
    red = np.zeros((SMEAR_NODES, SMEAR_NODES), np.float32)
    count = int(rng.integers(5, 9))
    first = rng.uniform(0, 2 * np.pi)
    for place, (jitter, gap, width) in enumerate(rng.random((count, 3)).tolist()):
        radius = 50 + 14 * width
        angle = first + 2 * np.pi * (place + 0.5 * jitter) / count
        away = reach + radius * (0.85 + 0.9 * gap)
        y, x = away * math.sin(angle), away * math.cos(angle)
        depth = radius - np.hypot(axis[:, None] - y, axis[None, :] - x)
        pallor = 1 - 0.45 * smoothstep(depth / radius * 1.6 - 0.4)
        red = np.maximum(red, smoothstep(depth / 10 + 0.5) * pallor)
    red = ndimage.gaussian_filter(red, rng.uniform(4, 7) / SMEAR_PITCH, mode="nearest")[..., None]
    shade = _noise(rng, SMEAR_NODES, 40 / SMEAR_PITCH)[..., None]
    return PLASMA_RGB + 3 * shade + red * (RED_CELL_RGB - PLASMA_RGB)


def _noise(rng: np.random.Generator, nodes: int, grain: float, coarsest: float | None = None) -> Floats:
    """A periodic Gaussian field of unit variance; (nodes, nodes), smoothed by `grain` nodes.

    With `coarsest`, what smoothing by so many nodes would leave is taken away.
    """
    full, half = 2 * np.pi * np.fft.fftfreq(nodes), 2 * np.pi * np.fft.rfftfreq(nodes)
    squared = (full[:, None] ** 2 + half[None, :] ** 2).astype(np.float32)
    envelope = np.exp(squared * np.float32(-0.5 * grain**2))
    if coarsest:
        envelope -= np.exp(squared * np.float32(-0.5 * coarsest**2))
    parts = rng.standard_normal((2, nodes, nodes // 2 + 1), np.float32)
    field = np.fft.irfft2((parts[0] + 1j * parts[1]) * envelope, (nodes, nodes))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def resample(grid: Floats, pitch: float, y: Floats, x: Floats) -> Floats:
    """Bilinear look-up of a (n, n, channels) grid, centred on 0 and periodic, at y by x."""
    columns = _lerp(np.swapaxes(grid, 0, 1), x / np.float32(pitch))
    return _lerp(np.ascontiguousarray(np.swapaxes(columns, 0, 1)), y / np.float32(pitch))


def _lerp(grid: Floats, position: Floats) -> Floats:
    nodes = len(grid)
    position = position + np.float32(nodes / 2 - 0.5)
    index = np.floor(position).astype(np.intp)
    weight = (position - np.floor(position)).reshape(-1, *[1] * (grid.ndim - 1))
    low = grid[index % nodes]
    return low + (grid[(index + 1) % nodes] - low) * weight


def smoothstep(value: Floats) -> Floats:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def to_uint8(colour: Floats) -> NDArray[np.uint8]:
    return np.minimum(colour + np.float32(0.5), 255).astype(np.uint8)  # colours are never negative here


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
    """Draw one phantom cell; equal arguments give equal pixels, whatever was drawn before.

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
    form = MORPHOLOGY[label]
    rng = generator(*key, stream=(1,))
    # Spreads between subjects are a little above those of C-NMC (R 5.7, G 3.7, B 5.4, R - B 2.4 levels).
    strength, saturation = spread_of(rng, 0.062), spread_of(rng, 0.04)
    warmth = 1.4 * bounded_normal(rng)
    stain = Stain(strength, saturation, warmth, spread_of(rng, form.subject_spread))
    rng = generator(*key, cell)
    # Cells of a C-NMC subject spread by R 4.9, G 2.8, B 4.3 levels; a little less keeps subjects apart.
    strength = spread_of(rng, 0.045)
    window, reach = draw_outline(rng, form, stain, size)
    colour = paint(rng, form, window)
    if background == "black":
        # An edge of nearly two output pixels, as soft as that of real cells.
        coverage = np.clip(0.6 * window.depth * (size / NATIVE_SIZE) + 0.5, 0, 1)
        image = np.zeros((size, size, 3), np.uint8)
        image[window.span] = to_uint8(stain.apply(colour, strength) * coverage[..., None])
    else:
        # A stream of its own, so that the background never changes the cell.
        smear = stain.apply(draw_field(generator(*key, cell, stream=(2,)), reach))
        field = resample(smear, SMEAR_PITCH, axis_of(size), axis_of(size))
        patch = field[window.span]
        # C-NMC outlines run close to the nucleus; on the slide a fringe of cytoplasm lies beyond them.
        fringe, cell_layer = stain.apply(FRINGE_RGB), stain.apply(colour, SMEAR_STRENGTH * strength)
        for beyond, layer in ((FRINGE_WIDTH, fringe), (0, cell_layer)):
            patch += smoothstep((window.depth + beyond) / 8 + 0.5)[..., None] * (layer - patch)
        image = to_uint8(field)
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
