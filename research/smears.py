"""Draw the synthetic smears that stand in for the four-class B-ALL set (Ghaderzadeh et al. 2021), each of one class.

Releases trained on whole fields of view cannot classify a cell cut out on black; for them `python research/smears.py`
writes the pictures that `leukoscope.synthetic.smear_picture` reads.
As in the real set, a class here is a kind of slide: its palette, how crowded and how sharp it is, and the size of its
cells. If a release predicts the intended class, it uses such features; that says nothing about leukaemia.

Lengths are pixels of the 224-px pictures that the set consists of. Colours began as means over some 400 of its
pictures; all values were then fitted by random search until an earlier OOD detector of leukoscope-densenet201-ball4
let most of what is drawn pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope.synthetic import SMEAR_LABELS, SMEAR_SHEET, SMEAR_SIZE

Floats = NDArray[np.floating]
Colour = tuple[float, float, float]
Place = tuple[float, float, float]  # y, x, radius

# One tuple per row of the sheet, one seed per class; the first row's and the last's are in distribution for
# leukoscope-densenet201-ball4 wherever the demo shows them.
SHEET_SEEDS = (*((4 * row, 4 * row + 1, 4 * row + 2, 4 * row + 3) for row in range(4)), (16, 17, 57, 23))

OVERSAMPLING = 2  # drawn twice as large, then averaged, so that edges are smooth
SIDE = SMEAR_SIZE * OVERSAMPLING
ASPECT = 0.75  # the set's pictures were squeezed to squares
# Brightness differs between cells and slides most in green and least in blue.
STAIN_RGB = np.array([1, 1.2, 0.3])
TEXTURE_RGB = np.array([0.85, 1, 0.4])
PLATELET_RGB = np.array([90, 72, 185])
CYTOPLASM_RGB = np.array([55, 55, 5])  # lighter than the nucleus by this
SMUDGE_RGB = np.array([45, 40, 6])
CLOUD_RGB = np.array([1.2, 0.8, 0.3])
NOISE_RGB = np.array([0.8, 0.8, 1.8])
BLUR, SHARPENING = 0.3, 0.2
GLOW_WIDTH = 9
COUNT_SPREAD = 0.2  # of the logarithm
TRIES = 30


@dataclass(frozen=True)
class _Plasma:
    """The ground: colour in the middle and at the edge, and clouds in it (levels, pixels)."""

    middle: Colour
    edge: Colour
    cloud: float
    cloud_width: float


@dataclass(frozen=True)
class _RedCells:
    """Spreads are standard deviations: `slide_spread` in levels, all others of the logarithm."""

    colour: Colour
    slide_spread: float
    stain_spread: float
    count: float
    radius: float
    radius_spread: float
    irregularity: float
    hollow: float  # share of cells with a pale middle
    pallor: float  # of that middle
    clustered: float  # share of cells that lie at another
    apart: float  # least distance of two, in sums of their radii
    halo: float
    mottle: float
    shade: float
    blur: float
    glow: float  # haze round the cells, as a share of their density


@dataclass(frozen=True)
class _WhiteCells:
    """Spreads and textures in levels; `radius_spread` of the logarithm."""

    colour: Colour
    slide_spread: float
    cell_spread: float
    count: float
    radius: float
    radius_spread: float
    irregularity: float
    spikes: float
    fine: float
    coarse: float
    grain: float
    edge: float
    smudged: float  # share of burst, pale cells
    lobed: float  # share of granulocytes
    blur: float


@dataclass(frozen=True)
class _Slide:
    """How the pictures of one class look; `platelets` and `clumps` (of platelets) are mean counts."""

    plasma: _Plasma
    red: _RedCells
    white: _WhiteCells
    platelets: float
    clumps: float


_SLIDES = {
    "Benign": _Slide(
        _Plasma(middle=(244, 244, 243), edge=(232, 254, 243), cloud=6.3, cloud_width=24),
        _RedCells(
            colour=(178, 194, 213), slide_spread=3.6, stain_spread=0.03, count=130, radius=10,
            radius_spread=0.056, irregularity=0.12, hollow=0.74, pallor=0.92, clustered=0, apart=0.8,
            halo=0.077, mottle=0.11, shade=0.12, blur=0.94, glow=0.13,
        ),
        _WhiteCells(
            colour=(150, 142, 244), slide_spread=4.8, cell_spread=5.6, count=7.3, radius=15,
            radius_spread=0.18, irregularity=0.02, spikes=0.014, fine=26, coarse=20, grain=0.48,
            edge=0.42, smudged=0.052, lobed=0.21, blur=0.51,
        ),
        platelets=2.7, clumps=0.47,
    ),
    "Early": _Slide(
        _Plasma(middle=(244, 255, 251), edge=(227, 253, 246), cloud=6, cloud_width=32),
        _RedCells(
            colour=(179, 190, 227), slide_spread=2, stain_spread=0.13, count=100, radius=10,
            radius_spread=0.082, irregularity=0.12, hollow=0.9, pallor=0.36, clustered=0.34, apart=0.88,
            halo=0.033, mottle=0.041, shade=0.1, blur=1.4, glow=0.12,
        ),
        _WhiteCells(
            colour=(155, 121, 250), slide_spread=2.6, cell_spread=5.5, count=7.8, radius=14,
            radius_spread=0.061, irregularity=0.063, spikes=0.013, fine=13, coarse=2.9, grain=0.4,
            edge=0.7, smudged=0, lobed=0, blur=0.54,
        ),
        platelets=12, clumps=0.48,
    ),
    "Pre": _Slide(
        _Plasma(middle=(234, 248, 239), edge=(235, 251, 248), cloud=4.8, cloud_width=24),
        _RedCells(
            colour=(160, 180, 206), slide_spread=3.6, stain_spread=0.13, count=120, radius=10,
            radius_spread=0.14, irregularity=0.07, hollow=0.55, pallor=0.74, clustered=0.78, apart=0.95,
            halo=0.015, mottle=0.047, shade=0.18, blur=0.47, glow=0.15,
        ),
        _WhiteCells(
            colour=(151, 140, 241), slide_spread=4.7, cell_spread=3, count=19, radius=16,
            radius_spread=0.07, irregularity=0.032, spikes=0.0098, fine=22, coarse=3, grain=1.2,
            edge=0.52, smudged=0.015, lobed=0, blur=1.1,
        ),
        platelets=2.7, clumps=0.062,
    ),
    "Pro": _Slide(
        _Plasma(middle=(244, 255, 242), edge=(245, 252, 250), cloud=2.6, cloud_width=30),
        _RedCells(
            colour=(191, 210, 219), slide_spread=1.4, stain_spread=0.29, count=120, radius=7.8,
            radius_spread=0.083, irregularity=0.058, hollow=0.73, pallor=1, clustered=0.25, apart=0.87,
            halo=0.018, mottle=0.044, shade=0.1, blur=1.3, glow=0.12,
        ),
        _WhiteCells(
            colour=(220, 167, 253), slide_spread=6.8, cell_spread=2.4, count=8, radius=13,
            radius_spread=0.1, irregularity=0.054, spikes=0.0091, fine=6.4, coarse=3.4, grain=1,
            edge=0.23, smudged=0.039, lobed=0, blur=0.7,
        ),
        platelets=1.6, clumps=0.051,
    ),
}  # fmt: skip


def draw_smear(label: str, *, seed: int = 0) -> NDArray[np.uint8]:
    """Draw one field of view; equal arguments give equal pixels.

    Args:
        label: "Benign", "Early", "Pre" or "Pro".
        seed: >= 0; another seed is another field.

    Returns:
        (224, 224, 3) uint8 RGB.

    Raises:
        ValueError: an argument lies outside the ranges above.
    """
    if label not in SMEAR_LABELS:
        raise ValueError(f"label is {label!r}; a synthetic smear is one of {', '.join(SMEAR_LABELS)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use 0 or a positive number")
    return _draw(_SLIDES[label], np.random.default_rng([seed, SMEAR_LABELS.index(label)]))


def draw_sheet() -> Image.Image:
    """All pictures that come with Leukoscope as one: a column a class, a row for each of `SHEET_SEEDS`."""
    rows = [
        [draw_smear(label, seed=seed) for label, seed in zip(SMEAR_LABELS, row, strict=True)] for row in SHEET_SEEDS
    ]
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def _draw(slide: _Slide, rng: np.random.Generator) -> NDArray[np.uint8]:
    whites = list(_places(rng, slide.white, apart=0.92))
    canvas = _plasma(rng, slide.plasma) * np.exp(-_red_density(rng, slide, whites))
    layer = _Layer()
    _lay_white_cells(rng, slide.white, whites, layer)
    _lay_platelets(rng, slide, layer)
    canvas = _blurred(layer.over(canvas, slide.white.blur), BLUR)
    picture = canvas.reshape(SMEAR_SIZE, OVERSAMPLING, SMEAR_SIZE, OVERSAMPLING, 3).mean(axis=(1, 3))
    picture += SHARPENING * (picture - ndimage.gaussian_filter(picture, (1.2, 1.2, 0)))
    picture += NOISE_RGB * rng.standard_normal(picture.shape)
    return (picture + 0.5).clip(0, 255).astype(np.uint8)


class _Layer:
    """Colours to be laid over a canvas, and how much of it each pixel hides."""

    def __init__(self) -> None:
        self._colour = np.zeros((SIDE, SIDE, 3))
        self._cover = np.zeros((SIDE, SIDE, 1))

    def add(self, window: tuple[slice, slice], colour: Floats, cover: Floats) -> None:
        """Paint (h, w, 3) or (3,) colours into a window, where `cover` (h, w) is 1, not where it is 0."""
        hides = cover[..., None]
        self._colour[window] += hides * (colour - self._colour[window])
        self._cover[window] += hides * (1 - self._cover[window])

    def over(self, canvas: Floats, blur: float) -> Floats:
        # Colours are premultiplied by their cover, so that blurring draws no black from where nothing lies.
        return canvas * (1 - _blurred(self._cover, blur)) + _blurred(self._colour, blur)


def _plasma(rng: np.random.Generator, plasma: _Plasma) -> Floats:
    axis = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    y, x = rng.uniform(-0.15, 0.15, 2)
    from_middle = np.clip(np.hypot(axis[:, None] - y, axis - x) / 0.62, 0, 1.2)[..., None] ** 2
    ground = np.array(plasma.middle) + from_middle * (np.array(plasma.edge) - np.array(plasma.middle))
    cloud = _noise(rng, plasma.cloud_width)[..., None] * CLOUD_RGB
    return ground + 2 * rng.standard_normal(3) + plasma.cloud * cloud


def _red_density(rng: np.random.Generator, slide: _Slide, whites: Sequence[Place]) -> Floats:
    """Optical density (natural logarithm) of all red cells, (SIDE, SIDE, 3); halos are below 0."""
    red, plasma = slide.red, np.array(slide.plasma.middle)
    colour = np.array(red.colour) + red.slide_spread * (rng.standard_normal() + 0.4 * rng.standard_normal(3))
    stain = -np.log(np.clip(colour / plasma, 0.05, 0.995))
    density = np.zeros((SIDE, SIDE, 3))
    for place in _places(rng, red, apart=red.apart, clustered=red.clustered, beside=whites):
        window, depth = _outline(rng, place, red.irregularity)
        pallor = red.pallor * rng.uniform(0.5, 1.2) * (rng.random() < red.hollow)
        thickness = _soft(depth, 1.5) * (1 - pallor * np.clip((depth / place[2] - 0.3) / 0.35, 0, 1))
        own = stain * np.exp(red.stain_spread * rng.standard_normal())
        own += 0.015 * rng.standard_normal() * np.array([0.6, 0, -0.6])
        halo = red.halo * np.exp(-0.5 * ((depth / OVERSAMPLING + 1.5) / 1.2) ** 2)
        density[window] += thickness[..., None] * own - halo[..., None]
    # Heaps of cells in real pictures are hardly darker than two.
    density = np.minimum(density, 2.2 * stain + 0.05)
    mottled = np.exp(red.mottle * _noise(rng, 1.0) + red.shade * _noise(rng, 3.5))
    density *= mottled[..., None]
    return _blurred(density, red.blur) + red.glow * _spread(density, GLOW_WIDTH)


def _lay_white_cells(rng: np.random.Generator, white: _WhiteCells, places: Sequence[Place], layer: _Layer) -> None:
    slide_colour = np.array(white.colour) + white.slide_spread * rng.standard_normal() * STAIN_RGB
    fine, coarse = _noise(rng, white.grain), _noise(rng, 3)
    for place in places:
        window, depth = _outline(rng, place, white.irregularity, white.spikes)
        own = slide_colour + white.cell_spread * rng.standard_normal() * STAIN_RGB
        texture = (white.fine * fine[window] + white.coarse * coarse[window])[..., None] * TEXTURE_RGB
        rim = np.exp(-np.maximum(depth, 0) / (1.2 * OVERSAMPLING))[..., None]
        colour = own + texture - 25 * white.edge * rim * np.array([1, 0.9, 0.2])
        kind = rng.random()
        if kind < white.lobed:
            nucleus = _soft(_lobes(rng, place, window), 2)[..., None]
            colour += (1 - nucleus) * (own + CYTOPLASM_RGB - colour)
        elif kind < white.lobed + white.smudged:
            colour, depth = colour + SMUDGE_RGB, depth + 4 * coarse[window]
        layer.add(window, colour, _soft(depth, 1.4))


def _lobes(rng: np.random.Generator, place: Place, window: tuple[slice, slice]) -> Floats:
    """Depth within the three lobes of a granulocyte's nucleus; negative outside."""
    y, x, radius = place
    rows, columns = np.mgrid[window]
    turns = rng.uniform(0, math.tau, 3)
    away = 0.45 * radius
    return np.max(
        [away - np.hypot(rows - y - away * math.sin(a), (columns - x) / ASPECT - away * math.cos(a)) for a in turns],
        axis=0,
    )


def _lay_platelets(rng: np.random.Generator, slide: _Slide, layer: _Layer) -> None:
    alone = [rng.uniform(0, SIDE, 2) for _ in range(rng.poisson(slide.platelets))]
    clumps = [rng.uniform(0, SIDE, 2) for _ in range(rng.poisson(slide.clumps))]
    spread = 4.5 * OVERSAMPLING
    together = [middle + spread * rng.standard_normal(2) for middle in clumps for _ in range(rng.integers(4, 22))]
    for y, x in (*alone, *together):
        window, depth = _outline(rng, (y, x, rng.uniform(0.6, 2.1) * OVERSAMPLING), 0.25)
        layer.add(window, PLATELET_RGB, rng.uniform(0.4, 1) * _soft(depth, 1))


def _places(
    rng: np.random.Generator,
    cells: _RedCells | _WhiteCells,
    *,
    apart: float,
    clustered: float = 0,
    beside: Sequence[Place] = (),
) -> Iterator[Place]:
    """Places of a field's cells, `apart` sums of radii from each other and clear of those `beside`."""
    found: list[Place] = []
    for _ in range(round(cells.count * np.exp(COUNT_SPREAD * rng.standard_normal()))):
        radius = OVERSAMPLING * cells.radius * np.exp(cells.radius_spread * rng.standard_normal())
        for _ in range(TRIES):
            if found and rng.random() < clustered:
                v, u, r = found[rng.integers(len(found))]
                turn, distance = rng.uniform(0, math.tau), (radius + r) * rng.uniform(apart, apart + 0.3)
                y, x = v + distance * math.sin(turn), u + distance * math.cos(turn) * ASPECT
            else:
                y, x = rng.uniform(-8, SIDE + 8, 2)
            place = (float(y), float(x), float(radius))
            if _clear(place, found, apart) and _clear(place, beside, 0.95):
                found.append(place)
                yield place
                break


def _clear(place: Place, others: Sequence[Place], apart: float) -> bool:
    y, x, radius = place
    return all(math.hypot(y - v, (x - u) / ASPECT) > apart * (radius + r) for v, u, r in others)


def _outline(
    rng: np.random.Generator, place: Place, irregularity: float, spikes: float = 0
) -> tuple[tuple[slice, slice], Floats]:
    """The window a cell may touch, and the depth below its outline there (negative outside)."""
    y, x, radius = place
    reach = int(1.6 * radius) + 4
    rows, columns = (slice(*np.clip([int(at) - reach, int(at) + reach + 1], 0, SIDE).tolist()) for at in (y, x))
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - y
    dx = (np.arange(columns.start, columns.stop, dtype=np.float32) - x) / ASPECT
    angle, distance = np.arctan2(dy, dx), np.hypot(dy, dx)
    relative = np.ones_like(angle)
    heights = {order: 2 * irregularity / order for order in (2, 3, 4, 5)}
    heights |= {order: spikes for order in (9, 11, 14, 17) if spikes}
    for order, height in heights.items():
        relative += height * rng.standard_normal() * np.cos(order * angle + rng.uniform(0, math.tau))
    return (rows, columns), radius * relative - distance


def _soft(depth: Floats, width: float) -> Floats:
    """0 outside, 1 inside, over `width` pixels of the picture."""
    return np.clip(depth / (width * OVERSAMPLING) + 0.5, 0, 1)


def _blurred(image: Floats, width: float) -> Floats:
    return ndimage.gaussian_filter(image, (width * OVERSAMPLING, width * OVERSAMPLING, 0))


def _spread(image: Floats, width: float) -> Floats:
    """As `_blurred`, for widths of several pixels: on means of 8 by 8, which such a blur tells from no finer ones."""
    coarse = image.reshape(SIDE // 8, 8, SIDE // 8, 8, 3).mean(axis=(1, 3))
    sigma = width * OVERSAMPLING / 8
    return ndimage.zoom(ndimage.gaussian_filter(coarse, (sigma, sigma, 0)), (8, 8, 1), order=1)


def _noise(rng: np.random.Generator, width: float) -> Floats:
    """A Gaussian field of unit variance with structures `width` pixels wide; (SIDE, SIDE)."""
    # Wide structures need no node a pixel.
    pitch = max(1, int(width * OVERSAMPLING / 2))
    nodes = SIDE // pitch + 2
    field = ndimage.gaussian_filter(
        rng.standard_normal((nodes, nodes), np.float32), width * OVERSAMPLING / pitch, mode="wrap"
    )
    return ndimage.zoom(field / field.std(), pitch, order=1)[:SIDE, :SIDE]


if __name__ == "__main__":
    draw_sheet().save(SMEAR_SHEET, lossless=True, method=6)
