"""What stain a smear carries: its plasma, how much nuclear stain a pixel holds, and whether it is a smear at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope.data.framing import BACKGROUND_LEVEL

Floats = NDArray[np.floating]

# Nuclear stain (difference of the optical densities of green and blue) lies near 0 in red cells and at 0.4 to 1.3 in
# nuclei of BCCD and the four-class B-ALL set; bluish red cells of the latter reach 0.3.
THRESHOLD_RANGE = (0.24, 0.50)
# Less than this holds no nucleus of any field that fits under a microscope's camera.
SMALLEST_NUCLEAR_SHARE = 1e-6
SMEAR_NUCLEAR_SHARE = 0.005
THUMBNAIL = 512
DARKEST_PLASMA = 110
# An inverted plasma lies at 20 to 40; a nucleus that fills the picture, in the darkest stain, above 50.
DARKEST_MIDDLE = 45
# Yellow lamps reach 1.5 between red and blue.
LARGEST_TINT = 1.8
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


def measure_stain(image: Image.Image) -> Stain:
    """Read plasma and threshold off the whole field, reduced to 512 pixels a side at most."""
    pixels = np.asarray(image.reduce(-(-max(image.size) // THUMBNAIL)))
    plasma = _plasma(pixels)
    stain = Stain(plasma, THRESHOLD_RANGE[1], 0.0, False, _background_problem(pixels, plasma))
    if stain.problem:
        return stain
    density = stain.density(pixels)
    density = density[density.mean(axis=-1) > STAINED]
    if not density.size:
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
    """A threshold that bluish red cells stay below, however few nuclei a field holds.

    With hardly a nucleus, the best division is one between darker and paler red cells; so it is raised until it lies
    clear of what it leaves below.
    """
    for _ in range(10):
        below = level[level <= threshold]
        if not below.size:
            return threshold
        middle = float(np.median(below))
        spread = float(np.median(middle - below[below <= middle])) * 1.4826
        if threshold >= middle + RED_SPREADS * spread:
            return threshold
        threshold = middle + RED_SPREADS * spread
    return threshold


def looks_like_smear(image: Image.Image) -> bool:
    """Whether a picture shows cells as they lie in a smear, rather than one cell cut out on black."""
    small = image.copy()
    small.thumbnail((256, 256))
    pixels = np.asarray(small)
    black = float((pixels.max(axis=-1) <= BACKGROUND_LEVEL).mean())
    plasma = _plasma(pixels)
    if black >= 0.05 or _background_problem(pixels, plasma):
        return False
    # A blank page and a photograph of something pale are no smears.
    stain = measure_stain(image)
    return bool((stain.nuclear(pixels) > stain.threshold).mean() >= SMEAR_NUCLEAR_SHARE)


def _plasma(pixels: NDArray[np.uint8]) -> Floats:
    """Mean colour of the brightest fifth, but for the very brightest, where reflections and labels lie."""
    brightness = pixels.sum(axis=-1, dtype=np.int32)
    low, high = np.percentile(brightness, [80, 95])
    return pixels[(brightness >= low) & (brightness <= high)].mean(axis=0, dtype=np.float64).astype(np.float32)


def _background_problem(pixels: NDArray[np.uint8], plasma: Floats) -> str:
    tint = float(plasma.max() / max(float(plasma.min()), 1))
    brightness = pixels.mean(axis=-1)
    # Round what an eyepiece shows, a photograph is black.
    lit = brightness[brightness > BACKGROUND_LEVEL]
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


# The largest disc within a red cell of 7.5 µm, as a threshold on its stain leaves it (BCCD's training list).
RED_CELL_WIDTH = 5.9
NUCLEUS_WIDTH = 8.0
# Width of the smoothing of widths' logarithms. Chosen on BCCD's training list, where 95 % of the scales so read lie
# within a quarter of the median.
SMOOTHING = 0.25
PALLOR = 0.6  # half-width of a pale middle, at most, in widths of the ring about it
FEWEST_RED_CELLS = 8
WINDOW, SAMPLE = 2048, 512


@dataclass(frozen=True)
class Scale:
    """Micrometres a pixel, and what says so: the caller, the red cells, or (a guess) the nuclei."""

    um_per_pixel: float
    source: Literal["given", "red cells", "nuclei"]


def measure_scale(image: Image.Image, stain: Stain) -> Scale | None:
    """Read the scale off up to five windows of a field; None where nothing in it has a size.

    Args:
        image: RGB field.
    """
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
    # Fringes of cytoplasm and platelets are many, but narrow.
    typical = _typical(red) if red else 0.0
    if sum(width > typical / 2 for width in red) >= FEWEST_RED_CELLS:
        return Scale(RED_CELL_WIDTH / typical, "red cells")
    return Scale(NUCLEUS_WIDTH / _typical(nuclear), "nuclei") if nuclear else None


def _windows(image: Image.Image) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Centre and quarters of a large field, else all of it; each at most 512 pixels a side, with its reduction."""
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


def _widths(mask: NDArray[np.bool_], counted: NDArray[np.bool_]) -> list[float]:
    """Widths (pixels) of the largest discs that fit in a mask, where `counted`; those cut by the edge left out."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    peaks = (depth == ndimage.maximum_filter(depth, 5)) & counted & (depth >= 2.5)
    # A wide disc has a plateau of equal peaks, which must count once.
    discs, count = ndimage.label(ndimage.binary_dilation(peaks, iterations=2))
    return (2 * ndimage.maximum(depth * peaks, discs, np.arange(1, count + 1))).tolist() if count else []


def _without_pallor(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
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
    """The commonest width, each counted by its size: specks are many but small, clumps wide but few."""
    logs = np.log(widths)
    at = np.linspace(logs.min(), logs.max(), 200)
    density = (np.asarray(widths) ** 1.5 * np.exp(-(((at[:, None] - logs) / SMOOTHING) ** 2) / 2)).sum(axis=1)
    return float(np.exp(at[density.argmax()]))
