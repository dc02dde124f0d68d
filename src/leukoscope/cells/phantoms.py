"""Synthetic white cells that stand in for patients.

Tests, the offline smoke training and the demo's examples start here: `draw_cell` paints one lymphoid
cell from numbers alone, shaped after the C-NMC 2019 training cells, so that nothing downstream needs
a patient's image. A phantom looks like what the loaders yield (RGB, uint8, the cell cut out on black
or lying in a smear), belongs to a subject with a stain and a cell size of its own, and is the same to
the bit whenever it is drawn again. Phantoms check that the machinery works; they say nothing about
leukaemia, and no score measured on them belongs in a results table.

All lengths below are pixels of the native 450-px frame unless a name says otherwise. Random fields
live on grids tied to that frame, never to the output, so that a cell drawn smaller is the same cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Background = Literal["black", "smear"]
Floats = NDArray[np.floating]  # float32 wherever a whole image is at stake: half the time of float64

PHANTOM_LABELS = ("ALL", "HEM")

NATIVE_SIZE = 450  # C-NMC 2019 frames are 450x450
MIN_SIZE = 32  # below this the chromatin that tells the classes apart is gone
MAX_RADIUS = 212.0  # leaves a margin round the largest cell

# Colours are means over 660 C-NMC 2019 training cells (folds 0 and 1, at most 16 a subject) with the
# cell mask max(R, G, B) > 8; TONE and TINT are the first two principal directions of their nuclei.
NUCLEUS_RGB = np.array([65, 25, 76], np.float32)
CYTOPLASM_RGB = np.array([88, 56, 98], np.float32)
TONE_RGB = np.array([8.6, 4.4, 4.6], np.float32)
TINT_RGB = np.array([1.6, 0.2, -2.2], np.float32)

# On the slide: plasma, red cells and basophilic cytoplasm as in May-Gruenwald-Giemsa smears, set by eye.
PLASMA_RGB = np.array([236, 220, 217], np.float32)
RED_CELL_RGB = np.array([206, 150, 152], np.float32)
FRINGE_RGB = np.array([172, 166, 206], np.float32)
FRINGE_WIDTH = 6.0
SMEAR_STRENGTH = 0.62  # C-NMC's stain normalisation darkens; a slide itself is paler

# Grids of the random fields: nodes along an edge and pixels between them.
ANGLES = 512
CHROMATIN_NODES, CHROMATIN_PITCH = 128, 2.5
SHADE_NODES, SHADE_PITCH = 64, 6.0
SHADE_GRAIN = 14.0  # with the chromatin grain it reproduces the autocorrelation of real nuclei
SHADE_CONTRAST = 0.80
SMEAR_NODES, SMEAR_PITCH = 72, 6.4  # reaches past the frame, so that the seam of the grid never shows

# A cell's random streams, one a purpose, so that the background never changes the cell.
_SUBJECT_STREAM, _SMEAR_STREAM = 1, 2


@dataclass(frozen=True)
class PhantomCell:
    """One synthetic cell with the names a real one would carry.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        label: "ALL" (leukaemic blast) or "HEM" (normal precursor).
        subject: the phantom patient, e.g. "phantom-all-03"; every subject has one label.
        cell_id: unique within one seed, e.g. "phantom-all-03_007".
    """

    image: np.ndarray
    label: str
    subject: str
    cell_id: str


@dataclass(frozen=True)
class _Morphology:
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


# Radii give the median areas of the C-NMC 2019 training cells (36,500 and 27,000 px²); the spreads let
# the classes overlap as the real ones do (AUC of the area about 0.8). Blasts: irregular, indented, fine
# open chromatin with nucleoli. Normal precursors: rounder, coarse clumps — coarser than most real ones, so
# that a network trained for a minute at 96 px can tell the classes apart on subjects it never saw.
_MORPHOLOGY = {
    "ALL": _Morphology(
        radius=105.0, subject_spread=0.055, cell_spread=0.088, irregularity=1.0, notch_chance=0.40, rim=3.0,
        grain=2.4, grain_spread=0.12, contrast=0.46, clumping=0.4, nucleolus_chance=0.65,
    ),
    "HEM": _Morphology(
        radius=93.0, subject_spread=0.075, cell_spread=0.130, irregularity=0.65, notch_chance=0.12, rim=4.5,
        grain=8.0, grain_spread=0.12, contrast=0.95, clumping=1.2, nucleolus_chance=0.20,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Stain:
    """What the slide and the patient add to every cell of one subject.

    Strength is relative optical density (Beer-Lambert): it darkens green most and blue least, which is
    how brightness differs between C-NMC subjects too.
    """

    strength: float
    saturation: float
    warmth: float
    size: float


@dataclass(frozen=True)
class _Contour:
    """A cell outline round `centre` (y, x from the frame's middle): per angle the radius, the factor
    that turns radial into perpendicular distance, and the thickness of the cytoplasm; (ANGLES + 1, 3)."""

    centre: tuple[float, float]
    table: Floats

    @property
    def reach(self) -> float:
        return float(self.table[:, 0].max())


@dataclass(frozen=True)
class _Window:
    """The part of the output frame a cell touches, in polar coordinates round its centre."""

    span: tuple[slice, slice]
    y: Floats
    x: Floats
    depth: Floats
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
        subject: number of the phantom patient within its class, >= 0; sets stain and mean cell size.
        cell: number of the cell within the subject, >= 0.
        size: edge of the square image in pixels, >= 32; 450 is the native C-NMC frame, any other
            size shows the same picture scaled.
        background: "black" cuts the cell out as C-NMC 2019 does (exactly 0 outside); "smear" lays it
            on a pale field among blurred red cells, in the lighter tones of an unnormalised smear.
        seed: >= 0; another seed is another set of patients.

    Returns:
        A `PhantomCell` whose image is (size, size, 3) uint8 RGB.

    Raises:
        ValueError: an argument lies outside the ranges above.
    """
    _check_cell(label, subject, cell)
    _check_frame(size, background, seed)
    form = _MORPHOLOGY[label]
    key = (seed, PHANTOM_LABELS.index(label), subject)
    stain = _draw_stain(_generator(*key, stream=_SUBJECT_STREAM), form)
    rng = _generator(*key, cell)
    # Cells of a C-NMC subject spread by R 4.9, G 2.8, B 4.3 levels; a little less keeps subjects apart.
    strength = float(np.exp(0.045 * _bounded_normal(rng)))
    contour = _draw_contour(rng, form, stain, cut=background == "black")
    window = _rasterise(contour, size)
    colour = _paint(rng, form, window)
    if background == "black":
        image = _on_black(_apply_stain(colour, stain, strength), window, size)
    else:
        smear_rng = _generator(*key, cell, stream=_SMEAR_STREAM)
        smear = _apply_stain(_draw_smear(smear_rng, contour), stain)
        field = _resample(smear, SMEAR_PITCH, *_axes(size))
        image = _on_smear(colour, window, field, stain, strength)
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
    """Yield a balanced set of phantom cells, ordered by label, subject and cell.

    Args:
        subjects_per_class: phantom patients of each label, >= 1.
        cells_per_subject: cells of each patient, >= 1.
        size, background, seed: as for `draw_cell`.

    Returns:
        An iterator over `2 * subjects_per_class * cells_per_subject` cells, drawn one at a time.

    Raises:
        ValueError: at the call, not at the first cell, when an argument is out of range.
    """
    _check_count("subjects_per_class", subjects_per_class)
    _check_count("cells_per_subject", cells_per_subject)
    _check_frame(size, background, seed)
    return (
        draw_cell(label, subject=subject, cell=cell, size=size, background=background, seed=seed)
        for label, subject, cell in product(PHANTOM_LABELS, range(subjects_per_class), range(cells_per_subject))
    )


def _check_cell(label: str, subject: int, cell: int) -> None:
    if label not in PHANTOM_LABELS:
        raise ValueError(f"label is {label!r}; a phantom cell is one of {', '.join(PHANTOM_LABELS)}")
    for name, value in (("subject", subject), ("cell", cell)):
        if value < 0:
            raise ValueError(f"{name} is {value}; number {name}s from 0 upwards")


def _check_frame(size: int, background: str, seed: int) -> None:
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; draw at {MIN_SIZE} px or more (native is {NATIVE_SIZE})")
    if background not in get_args(Background):
        raise ValueError(f"background is {background!r}; choose one of {', '.join(get_args(Background))}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use 0 or a positive number")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; ask for at least 1")


def _generator(*key: int, stream: int | None = None) -> np.random.Generator:
    # SeedSequence pads short keys with zeros, so a subject's key alone would equal that of its cell 0;
    # the spawn key keeps the streams apart.
    spawn_key = () if stream is None else (stream,)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=spawn_key)))


def _bounded_normal(rng: np.random.Generator) -> float:
    # Bounded so that no seed, however unlucky, gives a cell beyond what the training cells show.
    return float(np.clip(rng.standard_normal(), -2.2, 2.2))


def _draw_stain(rng: np.random.Generator, form: _Morphology) -> _Stain:
    """Spreads between subjects a little above those of C-NMC (R 5.7, G 3.7, B 5.4, R - B 2.4 levels)."""
    return _Stain(
        strength=float(np.exp(0.062 * _bounded_normal(rng))),
        saturation=float(np.exp(0.04 * _bounded_normal(rng))),
        warmth=1.4 * _bounded_normal(rng),
        size=float(np.exp(form.subject_spread * _bounded_normal(rng))),
    )


def _draw_contour(rng: np.random.Generator, form: _Morphology, stain: _Stain, *, cut: bool) -> _Contour:
    """An outline from random harmonics, sometimes indented or nicked, or (`cut`) trimmed as by a crop."""
    angles = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    radius = form.radius * stain.size * np.exp(form.cell_spread * _bounded_normal(rng))
    outline = _harmonics(rng, form.irregularity)
    notch, nuclear_notch = _indentation(rng, form, angles)
    outline *= 1 - notch + _nick(rng, angles)
    outline *= radius / np.sqrt(np.mean(outline**2))
    cap = _straight_cut(rng, angles)
    outline = np.minimum(np.minimum(outline, cap * outline.mean()) if cut else outline, MAX_RADIUS)
    slope = np.gradient(np.concatenate([outline[-1:], outline, outline[:1]]))[1:-1] * ANGLES / (2 * np.pi)
    rim = _cytoplasm(rng, form, angles) + nuclear_notch * radius
    table = np.stack([outline, 1 / np.hypot(1, slope / outline), rim], axis=1)
    centre = rng.normal(0, 2.0, 2)
    return _Contour((centre[0], centre[1]), np.concatenate([table, table[:1]]).astype(np.float32))


def _harmonics(rng: np.random.Generator, irregularity: float) -> NDArray[np.float64]:
    """Relative radius per angle; amplitudes fall as in the outlines of C-NMC cells (.088 at order 2)."""
    order = np.arange(2, 25)
    scale = 0.068 * (2 / order) ** 2.0
    # Elongation (order 2) is nearly the same in both classes; irregularity acts on the finer orders.
    scale[1:] *= irregularity * np.exp(0.35 * _bounded_normal(rng))
    real, imaginary = rng.standard_normal((2, order.size)).clip(-2.5, 2.5) * scale
    spectrum = np.zeros(ANGLES // 2 + 1, complex)
    spectrum[0] = ANGLES
    spectrum[order] = (real + 1j * imaginary) * ANGLES / 2
    return np.fft.irfft(spectrum, ANGLES)


def _indentation(
    rng: np.random.Generator, form: _Morphology, angles: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dents of the cell and of its nucleus at one angle, as fractions of the radius."""
    present, position, depth, nuclear_depth, width = rng.random(5)
    dent = _bump(angles, position, 0.13 + 0.17 * width) * (present < form.notch_chance)
    return (0.04 + 0.14 * depth) * dent, 0.14 * nuclear_depth * dent


def _nick(rng: np.random.Generator, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """In four cells of ten a small tag or nick, left by segmentation; signed fraction of the radius."""
    present, position, height, width = rng.random(4)
    signed = np.copysign(0.03 + 0.05 * abs(2 * height - 1), height - 0.5)
    return signed * _bump(angles, position, 0.04 + 0.06 * width) * (present < 0.4)


def _straight_cut(rng: np.random.Generator, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance, in mean radii, to where one cell in twelve ends in a straight line, as C-NMC cells do."""
    present, position, height = rng.random(3)
    # The crops of C-NMC are upright squares, so caps are lost along an image axis.
    facing = np.cos(angles - np.floor(4 * position) * np.pi / 2)
    line = (0.84 + 0.12 * height) / np.maximum(facing, 1e-3)
    return np.where((facing > 0.1) & (present < 1 / 12), line, np.inf)


def _cytoplasm(rng: np.random.Generator, form: _Morphology, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thickness of the cytoplasm: a thin rim, widening to a crescent on one side in some cells."""
    thickness = form.rim * np.exp(0.35 * _bounded_normal(rng))
    position, crescent = rng.random(2)
    return thickness * (1 + 1.8 * crescent**2 * _bump(angles, position, 0.8))


def _bump(angles: NDArray[np.float64], position: float, width: float) -> NDArray[np.float64]:
    """A bell of height 1 at the given turn (0 to 1), `width` radians wide."""
    offset = (angles - 2 * np.pi * position + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-0.5 * (offset / width) ** 2)


def _axes(size: int) -> tuple[Floats, Floats]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * NATIVE_SIZE
    return axis, axis


def _rasterise(contour: _Contour, size: int) -> _Window:
    """Depth below the outline (negative outside) for every pixel the cell may touch."""
    margin = contour.reach + FRINGE_WIDTH + 6 + NATIVE_SIZE / size
    spans, axes = [], []
    for axis, centre in zip(_axes(size), contour.centre, strict=True):
        start, stop = np.searchsorted(axis, [centre - margin, centre + margin])
        spans.append(slice(int(start), int(stop)))
        axes.append(axis[start:stop] - np.float32(centre))
    y, x = axes
    rho = np.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    turn = np.arctan2(y[:, None], x[None, :]) * np.float32(ANGLES / (2 * np.pi)) % np.float32(ANGLES)
    index = np.minimum(turn.astype(np.intp), ANGLES - 1)
    low = contour.table[index]
    low += (contour.table[index + 1] - low) * (turn - index).astype(np.float32)[..., None]
    radius, perpendicular, rim = low[..., 0], low[..., 1], low[..., 2]
    depth = (radius - rho) * perpendicular
    return _Window((spans[0], spans[1]), y, x, depth, rim, 1 - rho / radius)


def _paint(rng: np.random.Generator, form: _Morphology, window: _Window) -> Floats:
    """RGB in grey levels for every pixel of the window, as if the cell filled it; (h, w, 3)."""
    at = window.y, window.x
    shade = _noise(rng, SHADE_NODES, SHADE_GRAIN / SHADE_PITCH)
    tint = _noise(rng, SHADE_NODES, SHADE_GRAIN / SHADE_PITCH)
    shade, tint = np.moveaxis(_resample(np.stack([shade, tint], axis=-1), SHADE_PITCH, *at), -1, 0)
    tone = SHADE_CONTRAST * shade + _resample(_chromatin(rng, form)[..., None], CHROMATIN_PITCH, *at)[..., 0]
    tone += 0.4 * np.clip(window.centrality, 0, 1) + _nucleoli(rng, form, window)
    # Nuclei turn from indigo at their edge to red-violet within.
    tint -= 2.0 * np.exp(np.minimum(-window.depth / 12, 0)) - 0.3
    nucleus = NUCLEUS_RGB + tone[..., None] * TONE_RGB + tint[..., None] * TINT_RGB
    cytoplasm = CYTOPLASM_RGB + 0.4 * shade[..., None] * TONE_RGB
    inside = _smoothstep((window.depth - window.rim) / 7 + 0.5)[..., None]
    return cytoplasm + inside * (nucleus - cytoplasm)


def _chromatin(rng: np.random.Generator, form: _Morphology) -> Floats:
    """Nuclear texture in units of TONE_RGB: fine and open, or gathered into clumps; square, periodic."""
    grain = form.grain * float(np.exp(form.grain_spread * _bounded_normal(rng)))
    field = _noise(rng, CHROMATIN_NODES, grain / CHROMATIN_PITCH)
    # Real nuclei are skewed to the light side: pale gaps in a dark ground (skewness about 0.6). The
    # threshold makes the gaps, its steepness the clumps.
    gaps = np.tanh(form.clumping * (field - 1.0))
    return form.contrast * (gaps - gaps.mean()) / gaps.std()


def _nucleoli(rng: np.random.Generator, form: _Morphology, window: _Window) -> Floats:
    """Up to three pale round spots well inside the nucleus."""
    count = int(rng.integers(1, 4)) if rng.random() < form.nucleolus_chance else 0
    spots = np.zeros(window.depth.shape, np.float32)
    for angle, distance, width, height in rng.random((3, 4)).tolist()[:count]:
        reach = 0.6 * form.radius * math.sqrt(distance)
        spread = -0.5 / (5 + 4 * width) ** 2
        y = np.exp(spread * (window.y - reach * math.sin(math.tau * angle)) ** 2)
        x = np.exp(spread * (window.x - reach * math.cos(math.tau * angle)) ** 2)
        spots += (1.0 + 1.4 * height) * np.outer(y, x)
    return spots


def _apply_stain(colour: Floats, stain: _Stain, strength: float = 1.0) -> Floats:
    grey = colour.mean(axis=-1, keepdims=True)
    stained = grey + np.float32(stain.saturation) * (colour - grey)
    stained += np.float32(stain.warmth) * np.array([1, 0, -1], np.float32)
    return 255 * (np.clip(stained, 1, 255) / 255) ** np.float32(stain.strength * strength)


def _on_black(colour: Floats, window: _Window, size: int) -> NDArray[np.uint8]:
    # One output pixel of anti-aliasing: what resizing a hard cut-out would leave.
    coverage = np.clip(window.depth * (size / NATIVE_SIZE) + 0.5, 0, 1)
    image = np.zeros((size, size, 3), np.uint8)
    image[window.span] = _to_uint8(colour * coverage[..., None])
    return image


def _on_smear(colour: Floats, window: _Window, field: Floats, stain: _Stain, strength: float) -> NDArray[np.uint8]:
    # C-NMC outlines run close to the nucleus; on the slide a fringe of cytoplasm lies beyond them.
    patch = field[window.span]
    fringe = _apply_stain(FRINGE_RGB, stain)
    patch += _smoothstep((window.depth + FRINGE_WIDTH) / 8 + 0.5)[..., None] * (fringe - patch)
    cell = _apply_stain(colour, stain, SMEAR_STRENGTH * strength)
    patch += _smoothstep(window.depth / 8 + 0.5)[..., None] * (cell - patch)
    return _to_uint8(field)


def _draw_smear(rng: np.random.Generator, contour: _Contour) -> Floats:
    """A pale plasma field with blurred red cells round the white one; (SMEAR_NODES, SMEAR_NODES, 3)."""
    axis = (np.arange(SMEAR_NODES, dtype=np.float32) - (SMEAR_NODES - 1) / 2) * SMEAR_PITCH
    red = np.zeros((SMEAR_NODES, SMEAR_NODES), np.float32)
    for y, x, radius in _red_cells(rng, contour.reach):
        depth = radius - np.hypot(axis[:, None] - y, axis[None, :] - x)
        pallor = 1 - 0.45 * _smoothstep(depth / radius * 1.6 - 0.4)
        red = np.maximum(red, _smoothstep(depth / 10 + 0.5) * pallor)
    red = ndimage.gaussian_filter(red, rng.uniform(4, 7) / SMEAR_PITCH, mode="nearest")[..., None]
    shade = _noise(rng, SMEAR_NODES, 40 / SMEAR_PITCH)[..., None]
    return PLASMA_RGB + 3 * shade + red * (RED_CELL_RGB - PLASMA_RGB)


def _red_cells(rng: np.random.Generator, reach: float) -> list[tuple[float, float, float]]:
    """Centres (y, x) and radii of five to eight red cells, beside the white cell rather than under it."""
    count = int(rng.integers(5, 9))
    turn = rng.uniform(0, 2 * np.pi)
    cells = []
    for place, (jitter, gap, width) in enumerate(rng.random((count, 3)).tolist()):
        radius = 50 + 14 * width
        angle = turn + 2 * np.pi * (place + 0.5 * jitter) / count
        distance = reach + radius * (0.85 + 0.9 * gap)
        cells.append((distance * math.sin(angle), distance * math.cos(angle), radius))
    return cells


def _noise(rng: np.random.Generator, nodes: int, grain: float) -> Floats:
    """A periodic Gaussian field of unit variance; (nodes, nodes), smoothed by `grain` nodes."""
    envelope = np.exp(_squared_frequencies(nodes) * np.float32(-0.5 * grain**2))
    parts = rng.standard_normal((2, nodes, nodes // 2 + 1), np.float32)
    field = np.fft.irfft2((parts[0] + 1j * parts[1]) * envelope, (nodes, nodes))
    return ((field - field.mean()) / field.std()).astype(np.float32)


@lru_cache(maxsize=4)
def _squared_frequencies(nodes: int) -> Floats:
    full, half = 2 * np.pi * np.fft.fftfreq(nodes), 2 * np.pi * np.fft.rfftfreq(nodes)
    return (full[:, None] ** 2 + half[None, :] ** 2).astype(np.float32)


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
