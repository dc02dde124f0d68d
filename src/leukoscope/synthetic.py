"""Synthetic white cells, shaped after the C-NMC 2019 training cells, that stand in for patients' cells.

They test the software and say nothing about leukaemia: no metric measured on them belongs in a results table.

Lengths are pixels of the native 450-px frame unless a name states otherwise. Random fields live on grids tied to that
frame, never to the output, so that a cell drawn smaller is the same cell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground

Background = Literal["black", "smear"]
Floats = NDArray[np.floating]  # float32 wherever a whole image is at stake: half the time of float64
Disc = tuple[float, float, float]  # y, x of the centre, and the radius

PHANTOM_LABELS = ("ALL", "HEM")
NATIVE_SIZE = 450  # C-NMC 2019 frames are 450x450
MIN_SIZE = 32  # below this the chromatin that tells the classes apart is gone
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


@dataclass(frozen=True)
class PhantomCell:
    """One synthetic cell with the names a real one would carry.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        label: "ALL" (leukaemic blast) or "HEM" (normal precursor).
        subject: the phantom subject, e.g. "phantom-all-03"; every subject has one label.
        cell_id: unique within one seed, e.g. "phantom-all-03_007".
    """

    image: np.ndarray
    label: str
    subject: str
    cell_id: str


class _Morphology(NamedTuple):
    """How the cells of one class look; spreads are standard deviations of the logarithm."""

    radius: float
    subject_spread: float
    cell_spread: float
    irregularity: float
    notch_chance: float
    rim: float
    grain: float
    grain_spread: float
    contrast: float
    clumping: float
    nucleolus_chance: float


# Radii give the median areas of the C-NMC 2019 training cells (36,500 and 27,000 px²); the spreads let the classes
# overlap as the real ones do (AUC of the area about 0.8). Blasts: irregular, indented, open chromatin with nucleoli.
# Normal precursors: rounder, with clumped chromatin. Real classes differ less in grain: it was chosen so that
# leukoscope-densenet169-cnmc predicts the intended class, and a network trained for a minute at 96 px as well.
_MORPHOLOGY = {
    "ALL": _Morphology(
        radius=105.0, subject_spread=0.055, cell_spread=0.088, irregularity=1.0, notch_chance=0.40, rim=2.2,
        grain=2.2, grain_spread=0.12, contrast=0.55, clumping=0.35, nucleolus_chance=0.75,
    ),
    "HEM": _Morphology(
        radius=93.0, subject_spread=0.075, cell_spread=0.130, irregularity=0.65, notch_chance=0.12, rim=3.5,
        grain=5.5, grain_spread=0.12, contrast=0.70, clumping=0.5, nucleolus_chance=0.10,
    ),
}  # fmt: skip


class _Stain(NamedTuple):
    """What the slide and the subject add to every cell of one subject."""

    strength: float  # relative optical density: it darkens green most and blue least, as C-NMC's subjects differ
    saturation: float
    warmth: float
    size: float

    @classmethod
    def of_subject(cls, rng: np.random.Generator, form: _Morphology) -> _Stain:
        """Spreads between subjects are a little above those of C-NMC (R 5.7, G 3.7, B 5.4, R - B 2.4 levels)."""
        strength, saturation = _spread(rng, 0.062), _spread(rng, 0.04)
        return cls(strength, saturation, 1.4 * _bounded_normal(rng), _spread(rng, form.subject_spread))

    def apply(self, colour: Floats, strength: float = 1.0) -> Floats:
        grey = colour.mean(axis=-1, keepdims=True)
        stained = grey + np.float32(self.saturation) * (colour - grey)
        stained += np.float32(self.warmth) * np.array([1, 0, -1], np.float32)
        return 255 * (np.clip(stained, 1, 255) / 255) ** np.float32(self.strength * strength)


class _Window(NamedTuple):
    """The part of the output frame a cell touches, in polar coordinates round its centre."""

    span: tuple[slice, slice]
    y: Floats
    x: Floats
    depth: Floats  # below the outline; negative outside
    rim: Floats
    centrality: Floats


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
        subject: number of the phantom subject within its class, >= 0; sets stain and mean cell size.
        cell: number of the cell within the subject, >= 0.
        size: edge of the square image in pixels, >= 32; 450 is the native C-NMC frame.
        background: "black" cuts the cell out as C-NMC 2019 does (exactly 0 outside); "smear" lays it on a pale field
            among blurred red cells, in the lighter tones of an unnormalised smear.
        seed: >= 0; another seed is another set of subjects.

    Raises:
        ValueError: a number lies outside the ranges above, or the label or background is unknown.
    """
    if size < MIN_SIZE or background not in get_args(Background):
        known = ", ".join(get_args(Background))
        raise ValueError(f"size {size}, background {background!r}: draw {MIN_SIZE} px or more on one of {known}")
    key = (seed, PHANTOM_LABELS.index(label), subject)
    form = _MORPHOLOGY[label]
    stain = _Stain.of_subject(_generator(*key, stream=1), form)
    rng = _generator(*key, cell)
    # Cells of a C-NMC subject spread by R 4.9, G 2.8, B 4.3 levels; a little less keeps subjects apart.
    strength = _spread(rng, 0.045)
    window, reach = _draw_outline(rng, form, stain, size)
    colour = _paint(rng, form, window)
    if background == "black":
        # An edge of nearly two output pixels, as soft as that of real cells.
        coverage = np.clip(0.6 * window.depth * (size / NATIVE_SIZE) + 0.5, 0, 1)
        image = np.zeros((size, size, 3), np.uint8)
        image[window.span] = _to_uint8(stain.apply(colour, strength) * coverage[..., None])
    else:
        # A stream of its own, so that the background never changes the cell.
        smear = stain.apply(_draw_smear(_generator(*key, cell, stream=2), reach))
        field = _resample(smear, SMEAR_PITCH, _axis(size), _axis(size))
        patch = field[window.span]
        # C-NMC outlines run close to the nucleus; on the slide a fringe of cytoplasm lies beyond them.
        fringe = stain.apply(FRINGE_RGB)
        patch += _smoothstep((window.depth + FRINGE_WIDTH) / 8 + 0.5)[..., None] * (fringe - patch)
        patch += _smoothstep(window.depth / 8 + 0.5)[..., None] * (
            stain.apply(colour, SMEAR_STRENGTH * strength) - patch
        )
        image = _to_uint8(field)
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
    """Yield a balanced set of phantom cells, ordered by label, subject and cell, drawn one at a time.

    Args:
        subjects_per_class: phantom subjects of each label, >= 1.
        cells_per_subject: cells of each subject, >= 1.
        size, background, seed: as for `draw_cell`.

    Raises:
        ValueError: as `draw_cell`.
    """
    for label, subject, cell in product(PHANTOM_LABELS, range(subjects_per_class), range(cells_per_subject)):
        yield draw_cell(label, subject=subject, cell=cell, size=size, background=background, seed=seed)


def _generator(*key: int, stream: int | None = None) -> np.random.Generator:
    # SeedSequence pads short keys with zeros, so a subject's key alone would equal that of its cell 0;
    # the spawn key keeps the streams apart.
    spawn_key = () if stream is None else (stream,)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=spawn_key)))


def _bounded_normal(rng: np.random.Generator) -> float:
    # Bounded so that no seed, however unlucky, gives a cell beyond what the training cells show.
    return float(np.clip(rng.standard_normal(), -2.2, 2.2))


def _spread(rng: np.random.Generator, spread: float) -> float:
    """A factor about 1; `spread` is the standard deviation of its logarithm."""
    return float(np.exp(spread * _bounded_normal(rng)))


def _draw_outline(rng: np.random.Generator, form: _Morphology, stain: _Stain, size: int) -> tuple[_Window, float]:
    """A cell's outline, sometimes indented, with its cytoplasm, and its largest radius."""
    angles = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    radius = form.radius * stain.size * np.exp(form.cell_spread * _bounded_normal(rng))
    # Harmonics whose amplitudes fall nearly as in the outlines of C-NMC cells (.07 at order 2).
    order = np.arange(2, 65)
    scale = 0.068 * (2 / order) ** 1.7
    # Elongation (order 2) is nearly the same in both classes; irregularity acts on the finer orders.
    scale[1:] *= form.irregularity * np.exp(0.35 * _bounded_normal(rng))
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
    thickness = form.rim * np.exp(0.35 * _bounded_normal(rng))
    position, crescent = rng.random(2)
    uneven = np.cos(np.arange(2, 8)[:, None] * angles + 2 * np.pi * rng.random((6, 1))).mean(axis=0)
    rim = thickness * (np.exp(1.2 * uneven) + 2.5 * crescent**2 * _bump(angles, position, 0.6))
    # Per angle the radius, what turns radial into perpendicular distance, and the thickness of the cytoplasm.
    table = [outline, 1 / np.hypot(1, slope / outline), rim + 0.14 * nuclear_depth * dent * radius]
    return _rasterise(np.stack(table, axis=1).astype(np.float32), rng.normal(0, 2.0, 2), size), float(
        np.float32(outline.max())
    )


def _rasterise(table: Floats, centre: NDArray[np.float64], size: int) -> _Window:
    """Lay an outline, (ANGLES, 3), round a centre (y, x from the frame's middle)."""
    margin = float(table[:, 0].max()) + FRINGE_WIDTH + 6 + NATIVE_SIZE / size
    axis = _axis(size)
    spans = [slice(*np.searchsorted(axis, [at - margin, at + margin]).tolist()) for at in centre]
    y, x = (axis[span] - np.float32(at) for span, at in zip(spans, centre, strict=True))
    rho = np.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    turn = np.arctan2(y[:, None], x[None, :]) * np.float32(ANGLES / (2 * np.pi)) % np.float32(ANGLES)
    index = np.minimum(turn.astype(np.intp), ANGLES - 1)
    low = table[index]
    low += (table[(index + 1) % ANGLES] - low) * (turn - index).astype(np.float32)[..., None]
    radius, perpendicular, rim = low[..., 0], low[..., 1], low[..., 2]
    return _Window((spans[0], spans[1]), y, x, (radius - rho) * perpendicular, rim, 1 - rho / radius)


def _bump(angles: NDArray[np.float64], position: float, width: float) -> NDArray[np.float64]:
    """A bell of height 1 at the given turn (0 to 1), `width` radians wide."""
    offset = (angles - 2 * np.pi * position + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-0.5 * (offset / width) ** 2)


def _axis(size: int) -> Floats:
    """Where the pixels of an output frame lie in the native one."""
    return ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * NATIVE_SIZE


def _paint(rng: np.random.Generator, form: _Morphology, window: _Window) -> Floats:
    """RGB in grey levels for every pixel of the window, as if the cell filled it; (h, w, 3)."""
    at = window.y, window.x
    shade = _noise(rng, SHADE_NODES, SHADE_GRAIN / SHADE_PITCH)
    tint = _noise(rng, SHADE_NODES, SHADE_GRAIN / SHADE_PITCH)
    shade, tint = np.moveaxis(_resample(np.stack([shade, tint], axis=-1), SHADE_PITCH, *at), -1, 0)
    # Nuclear texture in units of CHROMATIN_RGB: fine and open, or gathered into clumps.
    grain = form.grain * _spread(rng, form.grain_spread)
    texture = _noise(rng, CHROMATIN_NODES, grain / CHROMATIN_PITCH, coarsest=2.2 * grain / CHROMATIN_PITCH)
    # Real nuclei are skewed to the light side, pale gaps in a dark ground, and in patches more than in others.
    gaps = np.exp(form.clumping * texture + 0.3 * _noise(rng, CHROMATIN_NODES, PATCHES / CHROMATIN_PITCH))
    texture = form.contrast * (gaps - gaps.mean()) / gaps.std()
    chromatin = _resample(texture[..., None], CHROMATIN_PITCH, *at)[..., 0] + _nucleoli(rng, form, window)
    shade = 0.80 * shade + 0.3 * np.clip(window.centrality, 0, 1)
    # Nuclei turn from indigo at their edge to red-violet within.
    tint = 0.6 * tint - 2.4 * np.exp(np.minimum(-window.depth / 14, 0)) + 0.3
    nucleus = NUCLEUS_RGB + chromatin[..., None] * CHROMATIN_RGB + shade[..., None] * SHADE_RGB
    nucleus += tint[..., None] * TINT_RGB
    blue = np.clip(window.rim / 12 - 0.4, 0, 1)[..., None]
    cytoplasm = CYTOPLASM_RGB + blue * (BASOPHILIC_RGB - CYTOPLASM_RGB) + 0.4 * shade[..., None] * SHADE_RGB
    inside = _smoothstep((window.depth - window.rim) / 7 + 0.5)[..., None]
    return cytoplasm + inside * (nucleus - cytoplasm)


def _nucleoli(rng: np.random.Generator, form: _Morphology, window: _Window) -> Floats:
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


def _draw_smear(rng: np.random.Generator, reach: float) -> Floats:
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
        pallor = 1 - 0.45 * _smoothstep(depth / radius * 1.6 - 0.4)
        red = np.maximum(red, _smoothstep(depth / 10 + 0.5) * pallor)
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


def _resample(grid: Floats, pitch: float, y: Floats, x: Floats) -> Floats:
    """Bilinear look-up of a (n, n, channels) grid, centred on 0 and periodic, at y by x."""
    columns = _lerp(np.swapaxes(grid, 0, 1), x / np.float32(pitch))
    return _lerp(np.ascontiguousarray(np.swapaxes(columns, 0, 1)), y / np.float32(pitch))


def _lerp(grid: Floats, position: Floats) -> Floats:
    nodes = len(grid)
    position = position + np.float32(nodes / 2 - 0.5)
    floor = np.floor(position)
    index = floor.astype(np.intp)
    weight = (position - floor).reshape(-1, *[1] * (grid.ndim - 1))
    low, between = grid[index % nodes], grid[(index + 1) % nodes]
    between -= low
    between *= weight
    between += low
    return between


def _smoothstep(value: Floats) -> Floats:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _to_uint8(colour: Floats) -> NDArray[np.uint8]:
    # Colours are never negative here, so adding a half and truncating rounds.
    rounded = colour + np.float32(0.5)
    return np.minimum(rounded, 255, out=rounded).astype(np.uint8)


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
        seed: another seed is another smear.

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


# Synthetic smears, one picture one class, for releases that were trained on the four-class B-ALL set: drawn by
# research/smears.py and kept as one sheet, one column per class.
SMEAR_LABELS = ("Benign", "Early", "Pre", "Pro")
SMEARS = 5  # of each class
SMEAR_SIZE = 224
SMEAR_SHEET = Path(__file__).with_name("smears.webp")


def knows_smears(labels: Collection[str]) -> bool:
    """Whether these are the class names of a model that the synthetic smears are drawn for."""
    return set(labels) == set(SMEAR_LABELS)


def smear_picture(label: str, number: int) -> NDArray[np.uint8]:
    """One synthetic smear, (224, 224, 3) uint8 RGB; `number` is its row in the sheet, below `SMEARS`."""
    top, left = number * SMEAR_SIZE, SMEAR_LABELS.index(label) * SMEAR_SIZE
    return _smear_sheet()[top : top + SMEAR_SIZE, left : left + SMEAR_SIZE]


@lru_cache(maxsize=1)
def _smear_sheet() -> NDArray[np.uint8]:
    with Image.open(SMEAR_SHEET) as sheet:
        return np.asarray(sheet.convert("RGB"))
