"""From a picture of a stained smear to its nucleated cells, each with its outline and a box: stain, scale, cells.

Nuclei absorb red and green, red cells green and blue, dirt all colours alike: colour deconvolution (Ruifrok & Johnston
2001) separates them. Lengths are micrometres. A picture is searched in tiles, so memory does not grow with its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from skimage.color import separate_stains
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import h_maxima, isotropic_closing, isotropic_dilation, isotropic_opening
from skimage.segmentation import clear_border, watershed

from leukoscope import DataError
from leukoscope.data.images import CUT_OUT_PITCH, CUT_OUT_SIDE, foreground

# Optical densities of red, green and blue in nuclei, red cells and dirt.
UNMIX = np.linalg.inv([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
# Nuclear stain lies near 0 in red cells and at 0.4 to 1.3 in nuclei of BCCD and the four-class B-ALL set; bluish red
# cells of the latter reach 0.3.
THRESHOLD_RANGE = (0.24, 0.50)
RED_SPREADS = 2.5  # standard deviations of red cells, above their median; 3.2 or more in BCCD's training list
SMEAR_NUCLEAR_SHARE = 0.005
IMPLAUSIBLE_SCALE = "the count is not plausible, check the scale."  # the end of that note
PASSED_OVER = "larger than a white cell and not counted."  # the end of that note
STAINED = 0.12  # optical density
GREY_SPREAD = 0.03  # optical density
# Levels of an inverted plasma are 20 to 40, of a nucleus that fills the picture above 50; yellow lamps tint by 1.5.
DARKEST_PLASMA = 110
DARKEST_MIDDLE = 45
LARGEST_TINT = 1.8
# Shares of a picture that is black, and of an edge of one colour (levels, JPEG's noise included) darker than plasma.
BLACK_SHARE = 0.05
EVEN_SHARE = 0.95
EVEN = 8
DARKER = 30

SCALES = (0.02, 0.5)  # µm per pixel, of microscopes with a camera
# The largest disc in a red cell of 7.5 µm, as a threshold on its stain leaves it (BCCD's training list).
RED_CELL_WIDTH = 6.15
NUCLEUS_WIDTH = 8.0
FEWEST_RED_CELLS = 8
WINDOW = 2048  # pixels a side of the middle that shows the scale
OVERVIEW_SIDE = 512  # pixels to which it is reduced

WORKING_PITCH = 0.3  # at most; finer pixels show chromatin but no other outline
TILE = 1024  # working pixels
OVERLAP = 40.0  # µm: no cell that a tile owns is cut by the tile's edge, nor is its neighbour
# What counts as a nucleated cell, in µm and µm²: chosen on BCCD's training list.
CYTOPLASM_SHARE = 0.25  # of the nuclear threshold, at least
CYTOPLASM_REACH = 4.0  # from the nucleus, at most
SMALLEST_NUCLEUS = 18.0  # a platelet is below, a small lymphocyte's nucleus (about 6 µm across) above
LARGEST_CELL = 700.0  # beyond it lie smears of stain and clumps that no outline can be drawn in
# In a picture without a whole cell, a region that the edge cuts is no cell beyond either: gradients give such regions.
LONGEST_CUT_SIDE = 30.0  # µm
LARGEST_CUT_SHARE = 1 / 4  # of the picture
LOBE_GAP = 2.0  # at most, between lobes of one nucleus
WAIST = 0.75  # between two touching cells the region is narrower by twice this than in the smaller one
PLAUSIBLE_NUCLEI = (5.5, 15.0)  # a lymphocyte's nucleus is 6 to 9 wide, a blast's up to 14
PLASMA_REACH = 0.55  # two working pixels


class UnusableSmear(DataError):
    """A picture that cannot be read as a stained smear; the message states why and what to do."""


@dataclass(frozen=True)
class Stain:
    """How a smear is stained."""

    plasma: np.ndarray  # RGB of what lies between the cells, 0–255
    threshold: float = THRESHOLD_RANGE[1]  # nuclear stain of the palest nuclei
    share: float = 0.0  # of the picture that is stained as nuclei are, 0–1

    def transmitted(self, pixels: np.ndarray) -> np.ndarray:
        """(…, 3) RGB → share of the plasma's light that passes, above 0 to 1."""
        return np.minimum((pixels + np.float32(1)) / (self.plasma + 1), 1)

    def nuclear(self, pixels: np.ndarray) -> np.ndarray:
        """(…, 3) RGB → (…) nuclear stain as optical density."""
        # separate_stains divides by the density of a transmission of 1e-6.
        return separate_stains(self.transmitted(pixels), UNMIX)[..., 0] * np.float32(-np.log(1e-6))


@dataclass(frozen=True)
class Scale:
    """Micrometres per pixel, and their source: the caller, the red cells, or the nuclei, which is uncertain."""

    um_per_pixel: float
    source: Literal["given", "red cells", "nuclei"]


@dataclass(frozen=True)
class SmearCell:
    """One nucleated cell of a smear."""

    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture, the last two exclusive
    mask: np.ndarray  # (h, w) over the box at the working pitch
    nucleus: np.ndarray  # the same for its nucleus, lobes together
    nucleus_area: float  # µm²
    whole: bool  # not cut by the edge of the picture


@dataclass(frozen=True)
class Smear:
    """What a picture of a smear holds."""

    size: tuple[int, int]  # width, height in pixels
    cells: tuple[SmearCell, ...]  # from top to bottom
    scale: Scale | None  # None where none was given and nothing is stained as nuclei are
    notes: tuple[str, ...] = ()  # what a reader of the result must know, most important first


def looks_like_smear(image: Image.Image) -> bool:
    """Whether a picture shows cells as they lie in a smear, rather than one cell cut out on black."""
    try:
        return measure_stain(image).share >= SMEAR_NUCLEAR_SHARE
    except UnusableSmear:
        return False


def measure_stain(image: Image.Image) -> Stain:
    """Read plasma and threshold off an RGB picture.

    Raises:
        UnusableSmear: too dark, inverted, in a border or grey.
    """
    picture = np.asarray(image.reduce(-(-max(image.size) // OVERVIEW_SIDE)))
    lit = foreground(picture)
    pixels = picture[lit] if lit.any() else picture.reshape(-1, 3)
    brightness = pixels.sum(axis=-1, dtype=np.int32)
    # The brightest fifth, but for the very brightest, where reflections and labels lie.
    low, high = np.percentile(brightness, [80, 95])
    plasma = pixels[(brightness >= low) & (brightness <= high)].mean(axis=0, dtype=np.float32)
    red, green, blue = plasma.tolist()
    middle = float(np.median(brightness)) / 3
    tint = max(plasma) / max(min(plasma), 1)
    purple = np.log((blue + 1) / (green + 1)) > THRESHOLD_RANGE[0]
    if middle < DARKEST_MIDDLE or plasma.mean() < DARKEST_PLASMA or tint > LARGEST_TINT or purple:
        raise UnusableSmear(
            f"its brightest parts are ({red:.0f}, {green:.0f}, {blue:.0f}) in RGB, half of it is below {middle:.0f}, "
            "and the plasma of a smear is pale: give the picture as it was taken, not inverted or cut out"
        )
    is_border = False
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        even = np.abs(edge - np.median(edge, axis=0)).max(axis=-1) <= EVEN
        is_border |= bool(even.mean() >= EVEN_SHARE and edge.mean() < plasma.mean() - DARKER)
    if lit.mean() <= 1 - BLACK_SHARE or is_border:
        raise UnusableSmear("part of it is black, a border or a window's bar: crop it to the smear")
    stain = Stain(plasma)
    density = -np.log(stain.transmitted(pixels))
    level = stain.nuclear(pixels)
    stained = density.mean(axis=-1) > STAINED
    if not stained.any():
        return stain
    if np.percentile(np.ptp(density[stained], axis=-1), 95) < GREY_SPREAD:
        raise UnusableSmear("the picture is grey: nuclei are found by their stain; give the colour photograph")
    threshold = threshold_otsu(level[stained])
    # With hardly a nucleus in the picture, Otsu's threshold divides the red cells.
    below = level[stained & (level <= threshold)]
    spread = 1.4826 * np.median(np.abs(below - np.median(below)))
    threshold = float(np.clip(max(threshold, np.median(below) + RED_SPREADS * spread), *THRESHOLD_RANGE))
    return Stain(plasma, threshold, float(np.mean(level > threshold)))


def measure_scale(image: Image.Image, stain: Stain) -> Scale | None:
    """Read the scale off the middle of an RGB picture; None where nothing has a size."""
    left, top = (max(0, (side - WINDOW) // 2) for side in image.size)
    middle = image.crop((left, top, min(image.width, left + WINDOW), min(image.height, top + WINDOW)))
    step = -(-max(middle.size) // OVERVIEW_SIDE)
    pixels = np.asarray(middle.reduce(step))
    nuclei = stain.nuclear(pixels) > stain.threshold
    density = gaussian(-np.log(stain.transmitted(pixels)[..., 1]), 1)
    pale = density[~nuclei & (density < 1)]
    threshold = STAINED / 2
    if pale.size:
        threshold = max(threshold, threshold_otsu(pale))
    body = nuclei | (density > threshold)
    # The middles of red cells are pale; plasma that a ring of cells encloses is less round.
    holes = clear_border(label(~body))
    round_holes = [hole.label for hole in regionprops(holes) if hole.eccentricity < 0.9 and hole.solidity > 0.8]
    body |= np.isin(holes, round_holes)
    width, number = _disc_width(body, ~binary_fill_holes(isotropic_dilation(nuclei, 2)))
    if number >= FEWEST_RED_CELLS:
        return Scale(RED_CELL_WIDTH / (step * width), "red cells")
    # Lobes of one nucleus lie near each other.
    nuclei = binary_fill_holes(isotropic_closing(clear_border(label(nuclei)) > 0, 5))
    width, number = _disc_width(nuclei, nuclei)
    if not number:
        return None
    return Scale(NUCLEUS_WIDTH / (step * width), "nuclei")


def _disc_width(mask: np.ndarray, counted: np.ndarray) -> tuple[float, int]:
    """The typical width (pixels) of the largest discs that fit in a mask, where `counted`, and their number."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    middles = tuple(peak_local_max(depth, min_distance=5, threshold_abs=2.5, exclude_border=False).T)
    widths = np.sort(2 * depth[middles][counted[middles]])
    if not widths.size:
        return 0.0, 0
    # Specks are many and clumps wide: each width counts by its cube, and two fifths lie below the typical one.
    volume = np.cumsum(widths**3)
    typical = float(widths[np.searchsorted(volume, 0.4 * volume[-1])])
    # Fringes of cytoplasm and platelets are many, but narrow.
    return typical, int((widths > typical / 2).sum())


def find_cells(
    image: Image.Image,
    *,
    um_per_pixel: float | None = None,
    most_cells: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Smear:
    """Find the nucleated cells of a stained smear (Romanowsky stains: May-Grünwald-Giemsa, Wright, Leishman).

    Args:
        um_per_pixel: None measures the scale on the red cells, or on the nuclei where these are too few.
        check: called before each tile; what it raises ends the search.

    Raises:
        UnusableSmear: as `measure_stain`; a scale that no microscope has or that nothing shows; above `most_cells`.
    """
    stain = measure_stain(image)
    scale = None if um_per_pixel is None else Scale(um_per_pixel, "given")
    if scale is None and stain.share:
        scale = measure_scale(image, stain)
    if scale is None and stain.share >= SMEAR_NUCLEAR_SHARE:
        raise UnusableSmear("has too few red cells and no whole nucleus to measure its scale on: give --um_per_pixel")
    if scale is not None and not SCALES[0] <= scale.um_per_pixel <= SCALES[1]:
        raise UnusableSmear(
            f"scale {scale.um_per_pixel:.3g} µm per pixel ({scale.source}), but a microscope's is {SCALES[0]:g} to "
            f"{SCALES[1]:g}: check the unit of --um_per_pixel, or give it"
        )
    if scale is None or not stain.share:
        return Smear(image.size, (), scale)
    step = max(1.0, WORKING_PITCH / scale.um_per_pixel)  # pixels; what was never resolved is not made up
    shape = max(1, int(image.height / step)), max(1, int(image.width / step))
    cells: list[SmearCell] = []
    passed_over = 0
    for corner in product(*(range(0, side, TILE) for side in shape)):
        check()
        for cell in _cells_of_tile(image, stain, step, scale.um_per_pixel * step, corner, shape):
            if cell is None:
                passed_over += 1
            else:
                cells.append(cell)
        if most_cells is not None and len(cells) > most_cells:
            raise UnusableSmear(
                f"shows more than the {most_cells} nucleated cells predicted at once; crop it or check its scale, or "
                "use leukoscope smear on your own machine"
            )
    if cells and not any(cell.whole for cell in cells):
        cells = [cell for cell in cells if _may_be_cut_cell(cell, image.size, scale)]
        # Nor are its red cells any: their scale is that of the same regions.
        if not cells and scale.source != "given":
            return Smear(image.size, (), None)
    cells.sort(key=lambda cell: (cell.box[1], cell.box[0]))
    return Smear(image.size, tuple(cells), scale, tuple(_notes(scale, cells, passed_over)))


def _cells_of_tile(
    image: Image.Image, stain: Stain, step: float, pitch: float, corner: Sequence[int], shape: Sequence[int]
) -> Iterator[SmearCell | None]:
    """Cells whose centre lies in a tile, None for a region too large to be one.

    A working pixel is `step` pixels and `pitch` µm wide.
    """
    y, x = (max(0, at - round(OVERLAP / pitch)) for at in corner)
    v, u = (min(side, at + TILE + round(OVERLAP / pitch)) for at, side in zip(corner, shape, strict=True))
    pixels = image.resize((u - x, v - y), Image.Resampling.BOX, box=(x * step, y * step, u * step, v * step))
    level = gaussian(stain.nuclear(np.asarray(pixels)), 0.25 / pitch)
    # Without specks and threads thinner than a micrometre, their pale gaps filled.
    nuclei = binary_fill_holes(isotropic_opening(level > stain.threshold, 0.5 / pitch))
    if not nuclei.any():
        return
    near = isotropic_dilation(nuclei, CYTOPLASM_REACH / pitch)
    stained = isotropic_opening(near & (level > CYTOPLASM_SHARE * stain.threshold), 1 / pitch)
    mask = binary_fill_holes(isotropic_closing(nuclei | stained, LOBE_GAP / 2 / pitch))
    depth = gaussian(distance_transform_edt(mask), 0.6 / pitch)
    labels = watershed(-depth, label(h_maxima(depth, WAIST / pitch)), mask=mask)
    cell_area, nuclear_area = (np.bincount(labels.ravel(), part.ravel()) * pitch**2 for part in (mask, nuclei))
    labels[(nuclear_area < SMALLEST_NUCLEUS)[labels]] = 0
    for region in regionprops(labels):
        top, left, bottom, right = np.add(region.bbox, (y, x, y, x)).tolist()
        if ((top + bottom) // 2 // TILE * TILE, (left + right) // 2 // TILE * TILE) == corner:
            if cell_area[region.label] > LARGEST_CELL:
                yield None
                continue
            whole = min(top, left) > 1 and bottom < shape[0] - 1 and right < shape[1] - 1
            box = int(left * step), int(top * step), int(right * step + 0.5), int(bottom * step + 0.5)
            nucleus = region.image & nuclei[region.slice]
            yield SmearCell(box, region.image, nucleus, float(nucleus.sum() * pitch**2), whole)


def _may_be_cut_cell(cell: SmearCell, size: tuple[int, int], scale: Scale) -> bool:
    """Whether a region that the edge of a picture of that size cuts is small enough for a white cell."""
    left, top, right, bottom = cell.box
    longest = max(right - left, bottom - top) * scale.um_per_pixel
    share = (right - left) * (bottom - top) / (size[0] * size[1])
    return longest <= LONGEST_CUT_SIDE and share <= LARGEST_CUT_SHARE


def _notes(scale: Scale, cells: Sequence[SmearCell], passed_over: int) -> Iterator[str]:
    if cells:
        low, high = PLAUSIBLE_NUCLEI
        width = 2 * np.sqrt(np.median([cell.nucleus_area for cell in cells]) / np.pi)
        if not low <= width <= high:
            yield (
                f"The nuclei found are {width:.1f} µm wide at {scale.um_per_pixel:.3f} µm per pixel ({scale.source}); "
                f"those of white cells are {low:g} to {high:g} µm wide: {IMPLAUSIBLE_SCALE}"
            )
    if passed_over:
        regions = "1 stained region is" if passed_over == 1 else f"{passed_over} stained regions are"
        yield f"At {scale.um_per_pixel:.3f} µm per pixel ({scale.source}), {regions} {PASSED_OVER}"
    if scale.source == "red cells":
        yield "The scale is measured on the red cells, taken to be 7.5 µm wide; give it if you know it."
    elif scale.source == "nuclei":
        yield "There are too few red cells: the scale is measured on the nuclei and uncertain; give it if you know it."


def cut_out(image: Image.Image, cell: SmearCell, um_per_pixel: float) -> Image.Image:
    """A cell as C-NMC 2019 cuts them out: (450, 450) RGB at its scale, exactly 0 outside; a larger cell is cut off."""
    left, top, right, bottom = cell.box
    width, height = (max(1, round(side * um_per_pixel / CUT_OUT_PITCH)) for side in (right - left, bottom - top))
    pixels = image.resize((width, height), Image.Resampling.BICUBIC, box=cell.box)
    coarse = Image.fromarray(cell.mask.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    mask = gaussian(np.asarray(coarse), 0.15 / CUT_OUT_PITCH) > 0.5
    # The coarse outline takes a ring of plasma along, which is the palest outside; red cells may lie there too.
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] * CUT_OUT_PITCH
    green = np.asarray(pixels)[..., 1]
    inner = depth > PLASMA_REACH
    rim = green[inner & (depth < 2 * PLASMA_REACH)]
    if rim.size and not mask.all():
        midway = (np.percentile(green[~mask], 80) + np.median(rim)) / 2
        without_plasma = isotropic_opening(mask & (inner | (green <= midway)), 0.15 / CUT_OUT_PITCH)
        parts = label(binary_fill_holes(without_plasma))
        if parts.any():
            mask = parts == np.bincount(parts[parts > 0]).argmax()
    frame = Image.new("RGB", (CUT_OUT_SIDE, CUT_OUT_SIDE))
    place = (CUT_OUT_SIDE - width) // 2, (CUT_OUT_SIDE - height) // 2
    frame.paste(pixels, place, Image.fromarray(mask.astype(np.uint8) * 255))
    return frame
