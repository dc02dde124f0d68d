"""From a field of view to its nucleated cells, each with its outline and a box: stain, scale, cells.

Nuclei absorb far more green than blue, red cells as much of both, print and dirt as much of all colours: the difference
of the two optical densities tells them apart in each pixel, whatever the lamp. Lengths are micrometres, and a field is
processed in tiles at one fixed pitch, so memory does not grow with its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope import LeukoscopeError
from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground, is_cut_out

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # left, top, right, bottom
THUMBNAIL = 512

# Stain

# Nuclear stain (difference of the optical densities of green and blue) lies near 0 in red cells and at 0.4 to 1.3 in
# nuclei of BCCD and the four-class B-ALL set; bluish red cells of the latter reach 0.3.
THRESHOLD_RANGE = (0.24, 0.50)
SMALLEST_NUCLEAR_SHARE = 1e-6  # less holds no nucleus of any field that fits under a microscope's camera
SMEAR_NUCLEAR_SHARE = 0.005
DARKEST_PLASMA = 110
# An inverted plasma lies at 20 to 40; a nucleus that fills the picture, in the darkest stain, above 50.
DARKEST_MIDDLE = 45
LARGEST_TINT = 1.8  # between two colours; yellow lamps reach 1.5
STAINED = 0.12  # optical density
GREY_SPREAD = 0.03
BLACK_SHARE = 0.05  # of a picture; no field has as much of its own
FIELD_SHARE = 0.3  # of a picture, at least, is the field within black
# A border or a window's bar: an edge of one colour, JPEG's noise included, that is darker than plasma (levels).
EVEN, EVEN_SHARE, DARKER = 8, 0.95, 30
RED_SPREADS = 2.5  # standard deviations of red cells, above their median; 3.2 or more in BCCD's training list
RED_MARGIN = 0.06  # above the median of red cells, in nuclear stain


@dataclass(frozen=True)
class Stain:
    """How a field is stained.

    Attributes:
        plasma: (3,) RGB of what lies between the cells, 0–255.
        threshold: nuclear stain of the palest nuclei.
        red_level: nuclear stain that red cells seem to hold; cytoplasm must exceed it to be told from them.
        holds_nuclei: whether anything is stained as nuclei are.
        problem: why it cannot be read as a smear; "" where it can.
    """

    plasma: Floats
    threshold: float
    red_level: float
    holds_nuclei: bool
    problem: str = ""

    def density(self, pixels: NDArray[np.uint8]) -> Floats:
        """(…, 3) RGB → optical density against the plasma (Beer–Lambert), float32, about 0 in plasma."""
        # Level by level: a field has millions of pixels and only 256 levels.
        levels = np.arange(256, dtype=np.float32)[:, None]
        table = -np.log((levels + 1) / (self.plasma + 1)).astype(np.float32)
        return np.stack([table[:, channel][pixels[..., channel]] for channel in range(3)], axis=-1)

    def nuclear(self, pixels: NDArray[np.uint8]) -> Floats:
        """(…, 3) RGB → (…) nuclear stain: optical density of green less that of blue."""
        density = self.density(pixels)
        return density[..., 1] - density[..., 2]


def measure_stain(image: Image.Image) -> Stain:
    """Read plasma and threshold off an RGB field."""
    picture = np.asarray(image.reduce(-(-max(image.size) // THUMBNAIL)))
    pixels, lit = picture.reshape(-1, 3), foreground(picture).ravel()
    in_black = lit.mean() <= 1 - BLACK_SHARE
    if in_black and lit.any():
        pixels = pixels[lit]
    plasma = _plasma(pixels)
    problem = _background_problem(pixels, plasma)
    if not problem and (in_black or _has_border(picture, plasma)):
        problem = (
            "part of it is a border, a window's bar or the black round an eyepiece's view: crop it to the field; a "
            "cell cut out on black is predicted by itself"
        )
    stain = Stain(plasma, THRESHOLD_RANGE[1], 0.0, False, problem)
    density = stain.density(pixels)
    density = density[density.mean(axis=-1) > STAINED]
    if stain.problem or not density.size:
        return stain
    if float(np.percentile(np.ptp(density, axis=-1), 95)) < GREY_SPREAD:
        return replace(stain, problem="the picture is grey: nuclei are told by their stain; give the colour photograph")
    level = density[:, 1] - density[:, 2]
    threshold = float(np.clip(_above_red_cells(level, otsu_threshold(level)), *THRESHOLD_RANGE))
    nuclear = level > threshold
    red_level = float(np.median(level[~nuclear])) + RED_MARGIN if (~nuclear).any() else 0.0
    share = nuclear.sum() / len(pixels)
    return replace(stain, threshold=threshold, red_level=red_level, holds_nuclei=bool(share >= SMALLEST_NUCLEAR_SHARE))


def _above_red_cells(level: Floats, threshold: float) -> float:
    """Raise a threshold that divides red cells, as it does where a field has hardly a nucleus."""
    for _ in range(10):
        below = level[level <= threshold]
        if not below.size:
            break
        middle = float(np.median(below))
        clear = middle + RED_SPREADS * float(np.median(middle - below[below <= middle])) * 1.4826
        if threshold >= clear:
            break
        threshold = clear
    return threshold


def looks_like_smear(image: Image.Image) -> bool:
    """Whether a picture shows cells as they lie in a smear, rather than one cell cut out on black."""
    stain = measure_stain(image)
    if stain.problem:
        return False
    small = image.copy()
    small.thumbnail((256, 256))
    # A blank page and a photograph of something pale are no smears.
    return bool((stain.nuclear(np.asarray(small)) > stain.threshold).mean() >= SMEAR_NUCLEAR_SHARE)


def is_cut_out_cell(image: Image.Image) -> bool:
    """Whether an RGB picture shows one cell cut out on black, not a field in a black border or round on black."""
    if not is_cut_out(image):
        return False
    pixels = np.asarray(image)
    lit = foreground(pixels)
    return bool(lit.mean() < FIELD_SHARE or _background_problem(pixels[lit], _plasma(pixels[lit])))


def _plasma(pixels: NDArray[np.uint8]) -> Floats:
    """Mean colour of the brightest fifth, but for the very brightest, where reflections and labels lie."""
    brightness = pixels.sum(axis=-1, dtype=np.int32)
    low, high = np.percentile(brightness, [80, 95])
    return pixels[(brightness >= low) & (brightness <= high)].mean(axis=0, dtype=np.float64).astype(np.float32)


def _has_border(picture: NDArray[np.uint8], plasma: Floats) -> bool:
    """Whether an edge of a picture is of one colour darker than the plasma."""
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        colour = np.median(edge, axis=0)
        even = np.abs(edge - colour).max(axis=-1) <= EVEN
        if even.mean() >= EVEN_SHARE and colour.mean() < plasma.mean() - DARKER:
            return True
    return False


def _background_problem(pixels: NDArray[np.uint8], plasma: Floats) -> str:
    """Why a picture's background is not the plasma of a smear; "" if it is."""
    tint = float(plasma.max() / max(float(plasma.min()), 1))
    middle = float(np.median(pixels.mean(axis=-1)))
    if middle < DARKEST_MIDDLE:
        said = f"most of it is dark ({middle:.0f} of 255)"
    elif plasma.mean() < DARKEST_PLASMA or tint > LARGEST_TINT:
        colour = ", ".join(f"{level:.0f}" for level in plasma)
        said = f"the brightest parts are ({colour}) in RGB"
    else:
        return ""
    return (
        f"{said}, but the plasma of a smear is pale: an inverted picture must be "
        "inverted back, and a cell cut out on black is predicted by itself, not as a field"
    )


def otsu_threshold(values: Floats) -> float:
    """The threshold that best parts values in two (Otsu 1979, doi:10.1109/TSMC.1979.4310076)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = counts.cumsum(), counts.sum()
    weighted = (counts * centres).cumsum()
    both = below * (total - below)
    between = (weighted[-1] * below / total - weighted) ** 2 / np.where(both > 0, both, np.inf)
    return float(centres[between.argmax()])


# Scale

# The largest disc within a red cell of 7.5 µm, as a threshold on its stain leaves it (BCCD's training list).
RED_CELL_WIDTH = 5.9
NUCLEUS_WIDTH = 8.0
# Width of the smoothing of widths' logarithms. Chosen on BCCD's training list, where 95 % of the scales so read lie
# within a quarter of the median.
SMOOTHING = 0.25
PALLOR = 0.6  # half-width of a pale middle, at most, in widths of the ring about it
FEWEST_RED_CELLS = 8
WINDOW, SAMPLE = 2048, 512

# How a scale was guessed, as a field's notes say.
GUESSES = {
    "red cells": "The scale is guessed from the red cells, taken to be 7.5 µm wide; better give it.",
    "nuclei": "Too few red cells to read the scale from: it is guessed from the nuclei; better give it.",
}
REJECTED = (
    "The {:.3f} µm per pixel that the red cells give do not fit the nuclei: the scale is guessed from these; "
    "better give it."
)
ScaleSource = Literal["given", "red cells of the series", "red cells", "nuclei"]


@dataclass(frozen=True)
class Scale:
    """Micrometres per pixel, and the source: the caller, red cells (of the field or its series), or the nuclei."""

    um_per_pixel: float
    source: ScaleSource

    @property
    def guessed(self) -> bool:
        """Whether it is measured on cells, whose size varies, rather than given."""
        return self.source != "given"


def measure_scale(image: Image.Image, stain: Stain) -> Scale | None:
    """Read the scale off up to five windows of an RGB field; None where nothing has a size."""
    red, nuclear = [], []
    for pixels, step in _windows(image):
        density = stain.density(pixels)
        nuclei = density[..., 1] - density[..., 2] > stain.threshold
        matter = density.mean(axis=-1)
        pale = matter[~nuclei & (matter < 1)]
        body = matter > max(STAINED / 2, otsu_threshold(pale) if pale.size else 0)
        red_only = ~ndimage.binary_dilation(nuclei, iterations=2)
        red += [width * step for width in _widths(_without_pallor(body | nuclei), red_only)]
        nuclear += [width * step for width in _widths(ndimage.binary_fill_holes(nuclei), nuclei)]
    typical = _typical(red)
    # Fringes of cytoplasm and platelets are many, but narrow.
    if sum(width > typical / 2 for width in red) >= FEWEST_RED_CELLS:
        return Scale(RED_CELL_WIDTH / typical, "red cells")
    return Scale(NUCLEUS_WIDTH / _typical(nuclear), "nuclei") if nuclear else None


def _scale_of_largest(image: Image.Image, stain: Stain) -> Scale | None:
    """The scale that makes the largest nucleus a usual one, its lobes counted together; None without one."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    nuclei = ndimage.binary_opening(stain.nuclear(np.asarray(small)) > stain.threshold, iterations=2)
    near, _ = ndimage.label(ndimage.binary_dilation(nuclei, iterations=6))
    largest = np.bincount(near.ravel(), nuclei.ravel())[1:].max(initial=0)
    if not largest:
        return None
    width = 2 * float(np.sqrt(largest / np.pi)) * image.width / small.width
    return Scale(NUCLEUS_WIDTH / width, "nuclei")


def _windows(image: Image.Image) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Centre and quarters of a large field, else all of it: at most 512 pixels a side, and the reduction."""
    width, height = image.size
    places = [(0.5, 0.5)]
    if max(width, height) > WINDOW:
        places += [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    for down, across in places:
        w, h = min(width, WINDOW), min(height, WINDOW)
        left, top = round(across * (width - w)), round(down * (height - h))
        step = max(1.0, max(w, h) / SAMPLE)
        size = (max(1, int(w / step)), max(1, int(h / step)))
        box = (left, top, left + size[0] * step, top + size[1] * step)
        yield np.asarray(image.resize(size, Image.Resampling.BOX, box=box)), step


def _widths(mask: NDArray[np.bool_], counted: Mask) -> list[float]:
    """Widths (pixels) of the largest discs that fit in a mask, where `counted`; those cut by the edge seem narrower."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    peaks = (depth == ndimage.maximum_filter(depth, 5)) & counted & (depth >= 2.5)
    # A wide disc has a plateau of equal peaks, which must count once.
    discs, count = ndimage.label(ndimage.binary_dilation(peaks, iterations=2))
    return (2 * ndimage.maximum(depth * peaks, discs, np.arange(1, count + 1))).tolist() if count else []


def _without_pallor(body: Mask) -> Mask:
    """Red cells with their pale middles filled, but not the plasma that a ring of cells encloses."""
    widths = _widths(body, body)
    if not widths:
        return body
    holes, _ = ndimage.label(~body)
    depth = ndimage.distance_transform_edt(~body)
    deepest = ndimage.maximum(depth, holes, np.arange(holes.max() + 1))
    border = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    small = deepest <= PALLOR * _typical(widths)
    small[border] = False
    return np.asarray(body | small[holes])


def _typical(widths: list[float]) -> float:
    """The commonest width, weighted by size, because specks are many and clumps few; 0 for no widths."""
    if not widths:
        return 0.0
    logs = np.log(widths)
    at = np.linspace(logs.min(), logs.max(), 200)
    density = (np.asarray(widths) ** 1.5 * np.exp(-(((at[:, None] - logs) / SMOOTHING) ** 2) / 2)).sum(axis=1)
    return float(np.exp(at[density.argmax()]))


# Cells

# Pixels of a 100× field are four times finer, which shows chromatin but no other outline.
WORKING_PITCH = 0.3
TILE = 1024  # working pixels
# Two cells side by side: no cell that a tile owns is cut by the tile's edge, nor is its neighbour.
OVERLAP = 40.0
PLASMA_REACH = 0.55  # µm: two working pixels
# µm; a lymphocyte's nucleus is 6 to 9 wide, a blast's up to 14.
PLAUSIBLE_NUCLEI = (5.5, 15.0)
# µm; beyond these, no white cell in blood or marrow: a scale guessed so is wrong, not a cell that is unusual.
POSSIBLE_NUCLEI = (4.0, 20.0)
# Pixels; a picture no larger is a crop of hardly more than one cell, and few of its red cells are whole.
CROP_SIDE = 512
# A nuclear outline wider than this has lost its chromatin; the sharp fields of BCCD measure 1.1 to 1.5 µm.
BLURRED_EDGE = 2.0
# Of what is stained, for each cell that may be found; BCCD and the four-class B-ALL set show 3.
PEAKS_PER_CELL = 10
# What counts as a nucleated cell. The share was chosen on BCCD's training list by research/benchmarks/fields.py, all
# else by eye on fields of that list and on a few of the four-class B-ALL set.
CYTOPLASM_SHARE = 0.25  # of the way from plasma to the nuclear threshold, at least
CYTOPLASM_REACH = 4.0  # µm, at most, from the nucleus
SMALLEST_NUCLEUS = 18.0  # µm²; a platelet is below, a small lymphocyte's nucleus (about 6 µm across) above
LARGEST_CELL = 700.0  # µm²; beyond it lie smears of stain and clumps that no outline can be drawn in
ROUND_NUCLEUS = 2.6  # µm; a nucleus that holds a disc of this radius is no lobe
LOBE_GAP = 2.0  # µm, at most, between lobes of one nucleus
SPLIT_DISTANCE = 4.0  # µm, at least, between the centres of two cells
WAIST = 0.8  # between two touching cells the outline narrows to less than this share of the smaller one


class UnusableField(LeukoscopeError):
    """A picture that cannot be read as a stained smear; the message states why and what to do."""


@dataclass(frozen=True)
class FieldCell:
    """One nucleated cell of a field.

    Attributes:
        box: (left, top, right, bottom) in pixels of the field, right and bottom exclusive.
        mask: (h, w) bool over the box at the working pitch: the cell.
        nucleus: the same for its nucleus, lobes together.
        nucleus_area: µm².
        edge_width: how far its nuclear stain takes to fade, µm; wide where the field is out of focus.
        whole: False where the edge of the field cuts it.
    """

    box: Box
    mask: Mask
    nucleus: Mask
    nucleus_area: float
    edge_width: float
    whole: bool


@dataclass(frozen=True)
class Field:
    """What a field of view holds.

    Attributes:
        size: (width, height) in pixels.
        cells: from top to bottom.
        scale: micrometres per pixel, given or guessed; None in a field without a stained object.
        notes: what a reader of the result must know, most important first.
    """

    size: tuple[int, int]
    cells: tuple[FieldCell, ...]
    scale: Scale | None
    notes: tuple[str, ...] = ()


def find_cells(
    image: Image.Image,
    *,
    um_per_pixel: float | None = None,
    scale_source: ScaleSource = "given",
    cytoplasm_share: float = CYTOPLASM_SHARE,
    most_cells: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Field:
    """Find the nucleated cells of a stained smear (Romanowsky stains: May-Grünwald-Giemsa, Wright, Leishman).

    Args:
        image: RGB field.
        um_per_pixel: its scale; None reads it off the red cells, or off the nuclei where these are too few, or where
            the nuclei would be too large for it.
        scale_source: where `um_per_pixel` comes from.
        most_cells: the search ends with an error at the first tile that shows more than that, or that shows 10 times
            as many peaks of what is stained.
        check: called before each tile; what it raises ends the search.

    Returns:
        The cells; none where nothing is stained as a nucleus is.

    Raises:
        UnusableField: too dark, grey, inverted or in a border; a scale that no microscope has, or, guessed, that makes
            nuclei of cells that are none; or more than `most_cells`.
    """
    if um_per_pixel is not None and not 0.01 <= um_per_pixel <= 2:
        raise UnusableField(
            f"scale {um_per_pixel} µm per pixel: a microscope's lies between 0.01 and 2; check the unit"
        )
    stain = measure_stain(image)
    if stain.problem:
        raise UnusableField(stain.problem)

    def found_at(scale: Scale, *why: str) -> Field:
        finder = _Finder(image, stain, scale.um_per_pixel, cytoplasm_share, most_cells)
        for core in finder.cores():
            check()
            finder.search(core)
        cells = sorted(finder.cells, key=lambda cell: (cell.box[1], cell.box[0]))
        return Field(image.size, tuple(cells), scale, (*_notes(scale, cells), *why))

    if um_per_pixel is not None:
        given = Scale(um_per_pixel, scale_source)
        return found_at(given) if stain.holds_nuclei else Field(image.size, (), given)
    guess = measure_scale(image, stain) if stain.holds_nuclei else None
    if guess is None:
        return Field(image.size, (), None)
    field = found_at(guess, GUESSES[guess.source])
    problem, other = _scale_problem(image, stain, guess, field.cells), _scale_of_largest(image, stain)
    if other and (problem or (guess.source == "red cells" and _too_large(field, guess, other))):
        why = GUESSES["nuclei"] if guess.source == "nuclei" else REJECTED.format(guess.um_per_pixel)
        again = found_at(other, why)
        if again.cells and not _scale_problem(image, stain, other, again.cells):
            return again
    if problem:
        raise UnusableField(problem)
    return field


def cut_out(image: Image.Image, cell: FieldCell, um_per_pixel: float) -> Image.Image:
    """A cell of a field as C-NMC 2019 cuts them out: alone on black, at that data set's scale, its stain as it is.

    Returns:
        (450, 450) RGB, exactly 0 outside the cell; a larger cell is cut off at its rim.
    """
    left, top, right, bottom = cell.box
    factor = um_per_pixel / CUT_OUT_PITCH
    size = (max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor)))
    pixels = image.resize(size, Image.Resampling.BICUBIC, box=cell.box)
    # The finder's outline is as coarse as the pitch it works at.
    coarse = Image.fromarray(cell.mask.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    mask = _without_plasma(ndimage.gaussian_filter(np.asarray(coarse), 0.15 / CUT_OUT_PITCH) > 0.5, pixels)
    frame = Image.new("RGB", (CUT_OUT_SIDE, CUT_OUT_SIDE))
    place = ((CUT_OUT_SIDE - size[0]) // 2, (CUT_OUT_SIDE - size[1]) // 2)
    frame.paste(pixels, place, Image.fromarray(mask.astype(np.uint8) * 255))
    return frame


def _without_plasma(mask: Mask, pixels: Image.Image) -> Mask:
    """A cell without the plasma that its coarse outline takes along: a pale ring, which no cut-out cell has.

    The outline moves inwards, by `PLASMA_REACH` at most, to where the stain lies midway between plasma and the cell.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] * CUT_OUT_PITCH
    rim, outside = (depth > PLASMA_REACH) & (depth < 2 * PLASMA_REACH), ~mask
    if not rim.any() or not outside.any():
        return mask
    # Stained matter takes away green first. Red cells may lie beside the cell, so plasma is the palest there.
    green = np.asarray(pixels, np.float32)[..., 1]
    midway = (np.percentile(green[outside], 80) + np.median(green[rim])) / 2
    kept = ndimage.binary_opening(mask & ((depth > PLASMA_REACH) | (green <= midway)), disc(0.15 / CUT_OUT_PITCH))
    parts, count = ndimage.label(ndimage.binary_fill_holes(kept))
    if count == 0:
        return mask
    return np.asarray(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))


class _Finder:
    """Search for cells at the working pitch, tile by tile, to bound memory."""

    def __init__(
        self, image: Image.Image, stain: Stain, um_per_pixel: float, cytoplasm_share: float, most_cells: int | None
    ):
        self.image, self.stain, self.cytoplasm_share, self.most_cells = image, stain, cytoplasm_share, most_cells
        # Field pixels a working pixel, at least 1: what was never resolved is not made up.
        self.step = max(1.0, WORKING_PITCH / um_per_pixel)
        self.pitch = self.step * um_per_pixel  # µm a working pixel
        width, height = image.size
        self.shape = max(1, int(height / self.step)), max(1, int(width / self.step))
        self.cells: list[FieldCell] = []
        self.peaks = 0

    def cores(self) -> Iterator[tuple[slice, slice]]:
        """Squares that cover the field without overlap; each cell belongs to the one its centre lies in."""
        rows, columns = ([slice(at, min(at + TILE, n)) for at in range(0, n, TILE)] for n in self.shape)
        yield from product(rows, columns)

    def search(self, core: tuple[slice, slice]) -> None:
        """Add the cells whose centre lies in a square."""
        margin, pitch = round(OVERLAP / self.pitch), self.pitch
        rows, columns = (
            slice(max(0, c.start - margin), min(n, c.stop + margin)) for c, n in zip(core, self.shape, strict=True)
        )
        level = self._stained(rows, columns)
        # Without specks and threads thinner than a micrometre, their pale gaps filled.
        nuclei = ndimage.binary_fill_holes(ndimage.binary_opening(level > self.stain.threshold, disc(0.5 / pitch)))
        if not nuclei.any():
            return
        labels = self._split(self._region(level, nuclei), nuclei)
        slope = ndimage.gaussian_gradient_magnitude(level, 0.5) / pitch
        for number, window in enumerate(ndimage.find_objects(labels), start=1):
            if window is None:
                continue
            mask = labels[window] == number
            nucleus = mask & nuclei[window]
            nuclear = float(nucleus.sum() * pitch**2)
            if nuclear < SMALLEST_NUCLEUS or mask.sum() * pitch**2 > LARGEST_CELL:
                continue
            place = tuple(
                slice(w.start + a.start, w.stop + a.start) for w, a in zip(window, (rows, columns), strict=True)
            )
            if all(c.start <= (at.start + at.stop) // 2 < c.stop for c, at in zip(core, place, strict=True)):
                edge_width = _edge_width(level[window], slope[window], nucleus)
                whole = all(at.start > 1 and at.stop < n - 1 for at, n in zip(place, self.shape, strict=True))
                self.cells.append(FieldCell(self._box(*place), mask, nucleus, nuclear, edge_width, whole))
        self._bound()

    def _bound(self) -> None:
        """Raise `UnusableField` where more cells, or many more peaks, were found than are wanted."""
        most = self.most_cells
        if most is not None and (len(self.cells) > most or self.peaks > PEAKS_PER_CELL * most):
            raise UnusableField(
                f"shows more than the {most} nucleated cells predicted at once; crop it, check its scale, or use "
                "leukoscope field on your own machine"
            )

    def _stained(self, rows: slice, columns: slice) -> Floats:
        """(h, w) nuclear stain of a window."""
        box = tuple(edge * self.step for edge in (columns.start, rows.start, columns.stop, rows.stop))
        size = (columns.stop - columns.start, rows.stop - rows.start)
        level = self.stain.nuclear(np.asarray(self.image.resize(size, Image.Resampling.BOX, box=box)))
        return ndimage.gaussian_filter(level, 0.25 / self.pitch)

    def _box(self, rows: slice, columns: slice) -> Box:
        """Where a window lies in the picture."""
        right = min(self.image.width, round(columns.stop * self.step))
        bottom = min(self.image.height, round(rows.stop * self.step))
        return int(columns.start * self.step), int(rows.start * self.step), right, bottom

    def _region(self, level: Floats, nuclei: Mask) -> Mask:
        """Nuclei and the cytoplasm about them; bluish red cells farther off are left out."""
        stain, pitch = self.stain, self.pitch
        stained = level > min(max(stain.threshold * self.cytoplasm_share, stain.red_level), stain.threshold)
        near = ndimage.distance_transform_edt(~nuclei) <= CYTOPLASM_REACH / pitch
        region = nuclei | ndimage.binary_opening(stained & near, disc(1.0 / pitch))
        # Padded: a closing would otherwise eat into cells at the edge.
        gap = max(1, round(LOBE_GAP / 2 / pitch))
        closed = ndimage.binary_closing(np.pad(region, gap + 1), disc(gap))[gap + 1 : -gap - 1, gap + 1 : -gap - 1]
        return ndimage.binary_fill_holes(closed)

    def _split(self, region: Mask, nuclei: Mask) -> NDArray[np.int32]:
        """(h, w) 0 or a cell's number: touching cells parted by the disc a pixel is deepest in (Aurenhammer 1987)."""
        # A round nucleus stands for one cell; lobes share the disc of their cell.
        discs = [one for one in self._peaks(nuclei) if one[2] * self.pitch >= ROUND_NUCLEUS]
        v, u, r = np.reshape(discs, (-1, 3)).T
        discs += [one for one in self._peaks(region) if (np.hypot(one[0] - v, one[1] - u) > one[2] + r).all()]
        reach = round(np.sqrt(LARGEST_CELL / np.pi) / self.pitch)
        labels, nearest = np.zeros(region.shape, np.int32), np.full(region.shape, np.inf, np.float32)
        for number, (y, x, radius) in enumerate(discs, start=1):
            window = tuple(
                slice(max(0, at - reach), min(n, at + reach + 1)) for at, n in zip((y, x), region.shape, strict=True)
            )
            rows, columns = np.ogrid[window]
            power = (rows - y) ** 2 + (columns - x) ** 2 - radius**2
            nearer = region[window] & (power < nearest[window])
            labels[window][nearer] = number
            nearest[window][nearer] = power[nearer]
        return labels

    def _peaks(self, mask: Mask) -> list[tuple[int, int, float]]:
        """Where a mask is deepest and how deep, deepest first; two peaks without a waist between them are one."""
        depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask).astype(np.float32), 0.6 / self.pitch)
        # A square, because its filter costs the same at any size.
        side = 2 * round(SPLIT_DISTANCE / 2 / self.pitch) + 1
        tops = mask & (depth == ndimage.maximum_filter(depth, side))
        # Bounded before the peaks are compared.
        self.peaks += int(tops.sum())
        self._bound()
        places = sorted(np.argwhere(tops).tolist(), key=lambda at: -depth[at[0], at[1]])
        # An array, because a picture of dots has thousands of peaks, and each is compared with all before it.
        kept, count = np.empty((len(places), 3)), 0
        for y, x in places:
            radius = float(depth[y, x])
            v, u, r = kept[:count].T
            near = kept[:count][np.hypot(v - y, u - x) <= 2 * r + radius, :2].astype(int)
            if not any(_waist(depth, at, (y, x)) >= WAIST * radius for at in near.tolist()):
                kept[count] = y, x, radius
                count += 1
        return [(int(y), int(x), radius) for y, x, radius in kept[:count].tolist()]


def _waist(depth: Floats, one: Sequence[int], other: Sequence[int]) -> float:
    """Least depth on the straight line between two centres."""
    steps = max(2, round(np.hypot(one[0] - other[0], one[1] - other[1])))
    rows, columns = (np.linspace(a, b, steps).round().astype(int) for a, b in zip(one, other, strict=True))
    return float(depth[rows, columns].min())


def _edge_width(level: Floats, slope: Floats, nucleus: Mask) -> float:
    """Contrast of the nucleus over the steepness of its outline, µm."""
    rim = nucleus ^ ndimage.binary_erosion(nucleus)
    contrast = float(np.median(level[nucleus]))
    return contrast / max(float(np.percentile(slope[rim], 75)), 1e-6)


def _nucleus_width(cells: Sequence[FieldCell]) -> float:
    """Diameter of a disc as large as the median nucleus, µm."""
    return 2 * float(np.sqrt(np.median([cell.nucleus_area for cell in cells]) / np.pi))


def _scale_problem(image: Image.Image, stain: Stain, scale: Scale, cells: Sequence[FieldCell]) -> str:
    """Why a scale read off this field cannot be: its nuclei would be those of no white cell; "" where it can."""
    low, high = POSSIBLE_NUCLEI
    if cells:
        width = _nucleus_width(cells)
    else:
        # What is stained may be platelets, but if it is larger than any nucleus, it was taken for no cell for its size.
        widths = []
        for pixels, step in _windows(image):
            nuclei = stain.nuclear(pixels) > stain.threshold
            widths += [width * step for width in _widths(ndimage.binary_fill_holes(nuclei), nuclei)]
        low, width = 0.0, _typical(widths) * scale.um_per_pixel
    if low <= width <= high:
        return ""
    return (
        f"the nuclei found would be {width:.1f} µm wide at the {scale.um_per_pixel:.3f} µm per pixel guessed from "
        f"its {scale.source}, and those of white cells are {POSSIBLE_NUCLEI[0]:g} to {high:g}: give the scale "
        "(--um_per_pixel)"
    )


def _too_large(field: Field, scale: Scale, by_nuclei: Scale) -> bool:
    """Whether a scale makes nuclei larger than those of white cells: the median, or the largest of a crop."""
    largest = NUCLEUS_WIDTH * scale.um_per_pixel / by_nuclei.um_per_pixel
    in_crop = max(field.size) <= CROP_SIDE and largest > POSSIBLE_NUCLEI[1]
    return bool(field.cells) and (in_crop or _nucleus_width(field.cells) > PLAUSIBLE_NUCLEI[1])


def _notes(scale: Scale, cells: Sequence[FieldCell]) -> Iterator[str]:
    if not cells:
        return
    if float(np.median([cell.edge_width for cell in cells])) > BLURRED_EDGE:
        yield "The field looks out of focus: chromatin cannot be judged in it."
    (low, high), width = PLAUSIBLE_NUCLEI, _nucleus_width(cells)
    if not low <= width <= high:
        yield (
            f"The nuclei found are {width:.1f} µm wide at {scale.um_per_pixel:.3f} µm per pixel ({scale.source}); "
            f"those of white cells are {low:g} to {high:g} µm wide: the count is not plausible, check the scale."
        )


def disc(radius: float) -> Mask:
    """A disc as structuring element; radius in pixels, at least 1."""
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x**2 + y**2 <= max(radius, 1.0) ** 2 + 0.5)
