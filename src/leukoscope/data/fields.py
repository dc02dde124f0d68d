"""From a field of view to its nucleated cells, each with its outline and a box: view, stain, scale, cells.

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
from leukoscope.data.images import BACKGROUND_LEVEL, CUT_OUT_PITCH, CUT_OUT_SIDE, foreground, is_cut_out

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # left, top, right, bottom
Window = tuple[float, float, float, float]

# View

THUMBNAIL = 512
# Levels within which a window's bar and a border are of one colour, JPEG's noise included.
FLAT = 8
FLAT_LINE = 0.95  # share of a line
# Bars hold titles and buttons.
FLAT_BARS = 0.7  # mean share of their lines
CHANGED_LINE = 0.4  # share of a line's pixels that change where a field begins; rows of cells are not so even
# The black round an eyepiece's view is lit by stray light.
DARK_NOISE = 24
ROUND = 0.02  # of the radius
ROUND_SHARE = 0.8  # of the outline
SHORTEST_ARC = 0.5  # of the radius
# Of the picture's shorter side. C-NMC 2019's cut-out cells, round on black as well, measure 0.15 to 0.35.
SMALLEST_RADIUS = 0.37
# An eyepiece's rim is blurred and dark.
RIM = 0.02  # of the radius


@dataclass(frozen=True)
class Circle:
    """The circle that an eyepiece shows of a field: centre and radius in pixels."""

    x: float
    y: float
    radius: float

    def mask(self, box: Window, shape: tuple[int, int]) -> Mask:
        """(h, w) bool: which pixels of a window that is reduced to `shape` lie within."""
        y, x = ((np.arange(n) + 0.5) / n for n in shape)
        left, top, right, bottom = box
        away = np.hypot(left + (right - left) * x - self.x, (top + (bottom - top) * y - self.y)[:, None])
        return np.asarray(away <= self.radius)


@dataclass(frozen=True)
class View:
    """The part of a picture that shows a field, without borders and window bars.

    Attributes:
        image: the picture itself, or the rectangle that shows the field.
        left, top: where that lies in the picture.
        circle: what of it is seen through an eyepiece, in its pixels; None where all of it is field.
    """

    image: Image.Image
    left: int = 0
    top: int = 0
    circle: Circle | None = None

    def inside(self, box: Window, shape: tuple[int, int]) -> Mask:
        """(h, w) bool: which pixels of a window that is reduced to `shape` show field."""
        return np.ones(shape, bool) if self.circle is None else self.circle.mask(box, shape)


def find_view(image: Image.Image) -> View:
    """Find the part of an RGB picture that shows a field: no borders, no bars of a window, no surroundings."""
    step = -(-max(image.size) // THUMBNAIL)
    pixels = np.asarray(image.reduce(step)).astype(np.int16)
    rows, columns = slice(0, pixels.shape[0]), slice(0, pixels.shape[1])
    # Twice, because a border at the side hides one above, and vice versa.
    for _ in range(2):
        rows = _without_bars(pixels[:, columns], rows)
        columns = _without_bars(pixels[rows].swapaxes(0, 1), columns)
    view = View(image)
    if (rows.stop - rows.start, columns.stop - columns.start) != pixels.shape[:2]:
        left, top = columns.start * step, rows.start * step
        right, bottom = min(image.width, columns.stop * step), min(image.height, rows.stop * step)
        view = View(image.crop((left, top, right, bottom)), left, top)
    circle = _round_view(pixels[rows, columns])
    if circle is None:
        return view
    return replace(view, circle=Circle(circle.x * step, circle.y * step, circle.radius * step * (1 - RIM)))


def _without_bars(pixels: NDArray[np.int16], lines: slice) -> slice:
    """The lines of (lines, …, 3), of those given, that lie between the bars or borders at both ends."""
    start = lines.start + _bar(pixels[lines])
    return slice(start, lines.stop - _bar(pixels[start : lines.stop][::-1]))


def _bar(pixels: NDArray[np.int16]) -> int:
    """How many lines, from the first, are a bar or a border; at most those of the first half."""
    half = pixels[: len(pixels) // 2]
    colour = np.median(half, axis=1).astype(np.int16)
    flat = (np.abs(half - colour[:, None]).max(axis=-1) <= FLAT).mean(axis=1)
    bars = np.cumsum(flat) / np.arange(1, len(flat) + 1)
    # The line between may be a blend of both.
    changed = (np.abs(pixels[2 : len(half)] - colour[:-2, None]).max(axis=-1) > FLAT).mean(axis=1)
    ends = np.flatnonzero((flat[:-2] >= FLAT_LINE) & (bars[:-2] >= FLAT_BARS) & (changed >= CHANGED_LINE))
    # Two lines more: JPEG smears the edge.
    return int(ends[-1]) + 4 if ends.size else 0


def _round_view(pixels: NDArray[np.int16]) -> Circle | None:
    """The circle that parts a view from the even colour in at least two of a picture's corners; None without one."""
    side = max(1, min(pixels.shape[:2]) // 50)
    ends = (slice(None, side), slice(-side, None))
    corners = np.array([np.median(pixels[rows, columns], axis=(0, 1)) for rows in ends for columns in ends])
    alike = np.abs(corners[:, None] - corners).max(axis=-1) <= DARK_NOISE
    most = alike[alike.sum(axis=1).argmax()]
    if most.sum() < 2:
        return None
    parts, _ = ndimage.label(np.abs(pixels - np.median(corners[most], axis=0)).max(axis=-1) <= DARK_NOISE)
    around = np.isin(parts, np.setdiff1d(parts[[0, 0, -1, -1], [0, -1, 0, -1]][most], [0]))
    seen, count = ndimage.label(~around)
    if not count or not around.any():
        return None
    seen = seen == 1 + np.argmax(np.bincount(seen.ravel())[1:])
    # The picture's own edge may cut the view; its outline is no arc there.
    y, x = (at + 1.5 for at in np.nonzero((seen & ndimage.binary_dilation(around))[1:-1, 1:-1]))
    if len(x) < 32:
        return None
    circle = _fitted_circle(x, y)
    off = np.abs(np.hypot(x - circle.x, y - circle.y) - circle.radius)
    circle = _fitted_circle(*(at[off <= np.median(off)] for at in (x, y)))
    if circle.radius < SMALLEST_RADIUS * min(seen.shape) or len(x) < SHORTEST_ARC * circle.radius:
        return None
    off = np.abs(np.hypot(x - circle.x, y - circle.y) - circle.radius)
    inside = circle.mask((0, 0, *seen.shape[::-1]), seen.shape)
    is_round = (off > max(1.0, ROUND * circle.radius)).mean() <= 1 - ROUND_SHARE
    return circle if is_round and inside[seen].mean() >= ROUND_SHARE else None


def _fitted_circle(x: Floats, y: Floats) -> Circle:
    """The circle of least squares."""
    # |p|² = 2 p·centre + (radius² − |centre|²) is linear in what is sought (Kåsa 1976).
    terms = np.column_stack([2 * x, 2 * y, np.ones_like(x)])
    (centre_x, centre_y, rest), *_ = np.linalg.lstsq(terms, x**2 + y**2, rcond=None)
    return Circle(float(centre_x), float(centre_y), float(np.sqrt(max(0.0, rest + centre_x**2 + centre_y**2))))


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


def measure_stain(view: View) -> Stain:
    """Read plasma and threshold off a field."""
    pixels = np.asarray(view.image.reduce(-(-max(view.image.size) // THUMBNAIL)))
    pixels = pixels[view.inside((0, 0, *view.image.size), pixels.shape[:2])]
    plasma = _plasma(pixels)
    stain = Stain(plasma, THRESHOLD_RANGE[1], 0.0, False, _background_problem(pixels, plasma))
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
    share = nuclear.sum() / (pixels.size / 3)
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
    small = image.copy()
    small.thumbnail((256, 256))
    pixels = np.asarray(small)
    if (~foreground(pixels)).mean() >= 0.05 or _background_problem(pixels, _plasma(pixels)):
        return False
    # A blank page and a photograph of something pale are no smears.
    stain = measure_stain(View(image))
    return bool((stain.nuclear(pixels) > stain.threshold).mean() >= SMEAR_NUCLEAR_SHARE)


def is_cut_out_cell(image: Image.Image) -> bool:
    """Whether an RGB picture shows one cell cut out on black, not a field in a black border or round on black."""
    if not is_cut_out(image):
        return False
    view = find_view(image)
    bordered = view.image is not image or view.circle is not None
    return not bordered or bool(measure_stain(view).problem)


def _plasma(pixels: NDArray[np.uint8]) -> Floats:
    """Mean colour of the brightest fifth, but for the very brightest, where reflections and labels lie."""
    brightness = pixels.sum(axis=-1, dtype=np.int32)
    low, high = np.percentile(brightness, [80, 95])
    return pixels[(brightness >= low) & (brightness <= high)].mean(axis=0, dtype=np.float64).astype(np.float32)


def _background_problem(pixels: NDArray[np.uint8], plasma: Floats) -> str:
    """Why a picture's background is not the plasma of a smear; "" if it is."""
    tint = float(plasma.max() / max(float(plasma.min()), 1))
    brightness = pixels.mean(axis=-1)
    lit = brightness[brightness > BACKGROUND_LEVEL]  # around an eyepiece's view, a photograph is black
    middle = float(np.median(lit)) if lit.size else 0.0
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
FEWEST_WHOLE_RED_CELLS = 4  # of a round view, which is smaller, and whose rim cuts none of those counted
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


def measure_scale(view: View, stain: Stain) -> Scale | None:
    """Read the scale off up to five windows of a field; None where nothing has a size."""
    red, nuclear = [], []
    for pixels, step, inside in _windows(view):
        density = stain.density(pixels)
        nuclei = (density[..., 1] - density[..., 2] > stain.threshold) & inside
        matter = density.mean(axis=-1)
        pale = matter[~nuclei & (matter < 1) & inside]
        body = (matter > max(STAINED / 2, otsu_threshold(pale) if pale.size else 0)) & inside
        red_only = ~ndimage.binary_dilation(nuclei, iterations=2) & inside
        # The surroundings of a round view count as matter, so that cells that its rim cuts are no narrow cells.
        red += [width * step for width in _widths(_without_pallor(body | nuclei) | ~inside, red_only)]
        nuclear += [width * step for width in _widths(ndimage.binary_fill_holes(nuclei) | ~inside, nuclei)]
    typical, fewest = _typical(red), FEWEST_RED_CELLS if view.circle is None else FEWEST_WHOLE_RED_CELLS
    # Fringes of cytoplasm and platelets are many, but narrow.
    if sum(width > typical / 2 for width in red) >= fewest:
        return Scale(RED_CELL_WIDTH / typical, "red cells")
    return Scale(NUCLEUS_WIDTH / _typical(nuclear), "nuclei") if nuclear else None


def _scale_of_largest(view: View, stain: Stain) -> Scale | None:
    """The scale that makes the largest nucleus a usual one, its lobes counted together; None without one."""
    small = view.image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    inside = view.inside((0, 0, *view.image.size), small.size[::-1])
    nuclei = ndimage.binary_opening((stain.nuclear(np.asarray(small)) > stain.threshold) & inside, iterations=2)
    near, _ = ndimage.label(ndimage.binary_dilation(nuclei, iterations=6))
    largest = np.bincount(near.ravel(), nuclei.ravel())[1:].max(initial=0)
    if not largest:
        return None
    width = 2 * float(np.sqrt(largest / np.pi)) * view.image.width / small.width
    return Scale(NUCLEUS_WIDTH / width, "nuclei")


def _windows(view: View) -> Iterator[tuple[NDArray[np.uint8], float, Mask]]:
    """Centre and quarters of a large field, else all of it: at most 512 pixels a side, the reduction, what is field."""
    width, height = view.image.size
    places = [(0.5, 0.5)]
    if max(width, height) > WINDOW:
        places += [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    for down, across in places:
        w, h = min(width, WINDOW), min(height, WINDOW)
        left, top = round(across * (width - w)), round(down * (height - h))
        step = max(1.0, max(w, h) / SAMPLE)
        size = (max(1, int(w / step)), max(1, int(h / step)))
        box = (left, top, left + size[0] * step, top + size[1] * step)
        pixels = np.asarray(view.image.resize(size, Image.Resampling.BOX, box=box))
        yield pixels, step, view.inside(box, pixels.shape[:2])


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
        whole: False where the edge of the field, or the rim of a round view, cuts it.
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
        UnusableField: too dark, grey or inverted; a scale that no microscope has, or, guessed, that makes nuclei of
            cells that are none; or more than `most_cells`.
    """
    if um_per_pixel is not None and not 0.01 <= um_per_pixel <= 2:
        raise UnusableField(
            f"scale {um_per_pixel} µm per pixel: a microscope's lies between 0.01 and 2; check the unit"
        )
    view = find_view(image)
    stain = measure_stain(view)
    if stain.problem:
        raise UnusableField(stain.problem)

    def found_at(scale: Scale, *why: str) -> Field:
        finder = _Finder(view, stain, scale.um_per_pixel, cytoplasm_share, most_cells)
        for core in finder.cores():
            check()
            finder.search(core)
        cells = sorted(finder.cells, key=lambda cell: (cell.box[1], cell.box[0]))
        return Field(image.size, tuple(cells), scale, (*_notes(scale, cells), *why))

    if um_per_pixel is not None:
        given = Scale(um_per_pixel, scale_source)
        return found_at(given) if stain.holds_nuclei else Field(image.size, (), given)
    guess = measure_scale(view, stain) if stain.holds_nuclei else None
    if guess is None:
        return Field(image.size, (), None)
    field = found_at(guess, GUESSES[guess.source])
    problem, other = _scale_problem(view, stain, guess, field.cells), _scale_of_largest(view, stain)
    if other and (problem or (guess.source == "red cells" and _too_large(field, guess, other))):
        why = GUESSES["nuclei"] if guess.source == "nuclei" else REJECTED.format(guess.um_per_pixel)
        again = found_at(other, why)
        if again.cells and not _scale_problem(view, stain, other, again.cells):
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

    def __init__(self, view: View, stain: Stain, um_per_pixel: float, cytoplasm_share: float, most_cells: int | None):
        self.view, self.stain, self.cytoplasm_share, self.most_cells = view, stain, cytoplasm_share, most_cells
        # Field pixels a working pixel, at least 1: what was never resolved is not made up.
        self.step = max(1.0, WORKING_PITCH / um_per_pixel)
        self.pitch = self.step * um_per_pixel  # µm a working pixel
        width, height = view.image.size
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
        level, outside = self._stained(rows, columns)
        # Without specks and threads thinner than a micrometre, their pale gaps filled.
        nuclei = ndimage.binary_fill_holes(ndimage.binary_opening(level > self.stain.threshold, disc(0.5 / pitch)))
        if not nuclei.any():
            return
        labels = self._split(self._region(level, nuclei) & ~outside, nuclei & ~outside)
        rim = ndimage.binary_dilation(outside, iterations=2)
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
                whole = not rim[window][mask].any() and all(
                    at.start > 1 and at.stop < n - 1 for at, n in zip(place, self.shape, strict=True)
                )
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

    def _stained(self, rows: slice, columns: slice) -> tuple[Floats, Mask]:
        """(h, w) nuclear stain of a window, and what of it an eyepiece does not show, where it is 0."""
        box = tuple(edge * self.step for edge in (columns.start, rows.start, columns.stop, rows.stop))
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        level = self.stain.nuclear(np.asarray(self.view.image.resize(shape[::-1], Image.Resampling.BOX, box=box)))
        outside = ~self.view.inside(box, shape)
        level[outside] = 0
        return ndimage.gaussian_filter(level, 0.25 / self.pitch), outside

    def _box(self, rows: slice, columns: slice) -> Box:
        """Where a window lies in the picture."""
        (width, height), (left, top) = self.view.image.size, (self.view.left, self.view.top)
        right, bottom = min(width, round(columns.stop * self.step)), min(height, round(rows.stop * self.step))
        return left + int(columns.start * self.step), top + int(rows.start * self.step), left + right, top + bottom

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


def _scale_problem(view: View, stain: Stain, scale: Scale, cells: Sequence[FieldCell]) -> str:
    """Why a scale read off this field cannot be: its nuclei would be those of no white cell; "" where it can."""
    low, high = POSSIBLE_NUCLEI
    if cells:
        width = _nucleus_width(cells)
    else:
        # What is stained may be platelets, but if it is larger than any nucleus, it was taken for no cell for its size.
        widths = []
        for pixels, step, inside in _windows(view):
            nuclei = (stain.nuclear(pixels) > stain.threshold) & inside
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
