"""From a smear to its cells: nucleated cells found by their stain, each with its outline and a box.

A classifier of cut-out cells was not trained on red cells, scale bars or platelets; this module cuts a field of view
into its nucleated cells. Nuclei absorb far more green than blue, red cells as much of both, print and dirt as much of
all colours: the difference of the two optical densities tells them apart in each pixel, whatever the lamp. All lengths
are micrometres, and the field is processed in tiles at one fixed pitch, so memory does not grow with its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leukoscope import LeukoscopeError
from leukoscope.data.field_stain import Scale, Stain, measure_scale, measure_stain

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]

# Pixels of a 100× field are four times finer, which shows chromatin but no other outline.
WORKING_PITCH = 0.3
TILE = 1024  # working pixels
# Two cells side by side: no cell that a tile owns is cut by the tile's edge, nor is its neighbour.
OVERLAP = 40.0
# Micrometres a pixel of C-NMC 2019's cut-out cells. Not published: this makes its median normal cell (186 px) 11 µm
# and its median blast (216 px) 13 µm wide, as lymphoid cells are in smears.
CUT_OUT_PITCH = 0.06
CUT_OUT_SIDE = 450
PLASMA_REACH = 0.55  # µm: two working pixels
# µm; a lymphocyte's nucleus is 6 to 9 wide, a blast's up to 14.
PLAUSIBLE_NUCLEI = (5.5, 15.0)
# A nuclear outline wider than this has lost its chromatin; the sharp fields of BCCD measure 1.1 to 1.5 µm.
BLURRED_EDGE = 2.0


class UnusableField(LeukoscopeError):
    """A picture that cannot be read as a stained smear; the message says why and what to do."""


@dataclass(frozen=True)
class FinderSettings:
    """What counts as a nucleated cell.

    `cytoplasm_share` was chosen on BCCD's training list by benchmarks/fields.py; the others were set by eye on fields
    of that list and on a few of the four-class B-ALL set.

    Attributes:
        cytoplasm_share: cytoplasm is stained at least this share of the way from plasma to the nuclear threshold.
        cytoplasm_reach: how far from its nucleus a cell may extend, µm.
        smallest_nucleus: µm²; a platelet is below, a small lymphocyte's nucleus (about 6 µm across) above.
        largest_cell: µm²; beyond it lie smears of stain and clumps that no outline can be drawn in.
        round_nucleus: a nucleus that holds a disc of this radius is no lobe, µm.
        lobe_gap: lobes of one nucleus lie closer together than this, µm.
        split_distance: centres of two cells lie farther apart than this, µm.
        waist: between two touching cells the outline narrows to less than this share of the smaller one.
    """

    cytoplasm_share: float = 0.25
    cytoplasm_reach: float = 4.0
    smallest_nucleus: float = 18.0
    largest_cell: float = 700.0
    round_nucleus: float = 2.6
    lobe_gap: float = 2.0
    split_distance: float = 4.0
    waist: float = 0.8


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
        scale: micrometres a pixel, and where that was read; None in a field without a stained object.
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
    settings: FinderSettings | None = None,
    tile: int = TILE,
) -> Field:
    """Find the nucleated cells of a stained smear (Romanowsky stains: May-Grünwald-Giemsa, Wright, Leishman).

    Args:
        image: RGB, a field of view of any size.
        um_per_pixel: the picture's scale where it is known; else it is read from the red cells.
        settings: what counts as a cell.
        tile: side of the squares it is worked through in, in working pixels; more memory, fewer seams.

    Returns:
        The cells, and what their scale rests on. A field without stained nuclei has no cells, which is no error.

    Raises:
        UnusableField: a grey picture, one with a dark background, or a scale that cannot be true.
    """
    if um_per_pixel is not None and not 0.01 <= um_per_pixel <= 2:
        raise UnusableField(f"scale {um_per_pixel} µm a pixel: a microscope's lies between 0.01 and 2; check the unit")
    stain = measure_stain(image)
    if stain.problem:
        raise UnusableField(stain.problem)
    if not stain.holds_nuclei:
        return Field(image.size, (), Scale(um_per_pixel, "given") if um_per_pixel else None)
    scale = Scale(um_per_pixel, "given") if um_per_pixel else measure_scale(image, stain)
    if scale is None:
        return Field(image.size, (), None)
    grid = _Grid(image, max(1.0, WORKING_PITCH / scale.um_per_pixel), scale.um_per_pixel)
    rules = settings or FinderSettings()
    cells = [cell for core in grid.cores(tile) for cell in _cells_of_tile(grid, core, stain, rules)]
    cells.sort(key=lambda cell: (cell.box[1], cell.box[0]))
    return Field(image.size, tuple(cells), scale, tuple(_notes(scale, cells)))


def cut_out(
    image: Image.Image,
    cell: FieldCell,
    um_per_pixel: float,
    *,
    pitch: float = CUT_OUT_PITCH,
    side: int = CUT_OUT_SIDE,
) -> Image.Image:
    """A cell as cut-out classifiers know it: alone on black, at their scale; its stain is left as it is.

    Args:
        image: the field.
        um_per_pixel: the field's scale.
        pitch: micrometres a pixel in the cells the classifier learnt from.
        side: of the square frame, pixels; a larger cell is cut off at its rim.

    Returns:
        (side, side) RGB, exactly 0 outside the cell.
    """
    left, top, right, bottom = cell.box
    factor = um_per_pixel / pitch
    size = (max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor)))
    pixels = image.resize(size, Image.Resampling.BICUBIC, box=cell.box)
    # The finder's outline is as coarse as the pitch it works at.
    coarse = Image.fromarray(cell.mask.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    mask = _without_plasma(ndimage.gaussian_filter(np.asarray(coarse), 0.15 / pitch) > 0.5, pixels, pitch)
    frame = Image.new("RGB", (side, side))
    place = ((side - size[0]) // 2, (side - size[1]) // 2)
    frame.paste(pixels, place, Image.fromarray(mask.astype(np.uint8) * 255))
    return frame


def _without_plasma(mask: Mask, pixels: Image.Image, pitch: float) -> Mask:
    """A cell without the plasma that its coarse outline takes along: a pale ring, which no cut-out cell has.

    The outline moves inwards, by `PLASMA_REACH` at most, to where the stain lies midway between plasma and the cell.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] * pitch
    rim, outside = (depth > PLASMA_REACH) & (depth < 2 * PLASMA_REACH), ~mask
    if not rim.any() or not outside.any():
        return mask
    # Stained matter takes away green first. Red cells may lie beside the cell, so plasma is the palest there.
    green = np.asarray(pixels, np.float32)[..., 1]
    midway = (np.percentile(green[outside], 80) + np.median(green[rim])) / 2
    kept = ndimage.binary_opening(mask & ((depth > PLASMA_REACH) | (green <= midway)), disc(0.15 / pitch))
    parts, count = ndimage.label(ndimage.binary_fill_holes(kept))
    if count == 0:
        return mask
    return np.asarray(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))


@dataclass(frozen=True)
class _Grid:
    """The field at the working pitch, of which only what is asked for is ever made.

    Attributes:
        step: field pixels a working pixel, at least 1: what was never resolved is not made up.
    """

    image: Image.Image
    step: float
    um_per_pixel: float

    @property
    def pitch(self) -> float:
        """Micrometres a working pixel."""
        return self.step * self.um_per_pixel

    @property
    def shape(self) -> tuple[int, int]:
        width, height = self.image.size
        return max(1, int(height / self.step)), max(1, int(width / self.step))

    def cores(self, tile: int) -> Iterator[tuple[slice, slice]]:
        """Squares that cover the grid without overlap; each cell belongs to the one its centre lies in."""
        rows, columns = ([slice(at, min(at + tile, n)) for at in range(0, n, tile)] for n in self.shape)
        yield from product(rows, columns)

    def pixels(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """(h, w, 3) of one window."""
        box = tuple(edge * self.step for edge in (columns.start, rows.start, columns.stop, rows.stop))
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return np.asarray(self.image.resize(size, Image.Resampling.BOX, box=box))

    def box(self, rows: slice, columns: slice) -> Box:
        """Where a window lies in the field."""
        width, height = self.image.size
        return (
            int(columns.start * self.step),
            int(rows.start * self.step),
            min(width, round(columns.stop * self.step)),
            min(height, round(rows.stop * self.step)),
        )

    def touches_edge(self, rows: slice, columns: slice) -> bool:
        height, width = self.shape
        return rows.start <= 1 or columns.start <= 1 or rows.stop >= height - 1 or columns.stop >= width - 1


def _cells_of_tile(
    grid: _Grid, core: tuple[slice, slice], stain: Stain, settings: FinderSettings
) -> Iterator[FieldCell]:
    margin = round(OVERLAP / grid.pitch)
    around = [slice(max(0, c.start - margin), min(n, c.stop + margin)) for c, n in zip(core, grid.shape, strict=True)]
    level = ndimage.gaussian_filter(stain.nuclear(grid.pixels(*around)), 0.25 / grid.pitch)
    nuclei = _cleaned(level > stain.threshold, grid.pitch)
    if not nuclei.any():
        return
    labels = split_cells(_cell_region(level, nuclei, stain, grid.pitch, settings), nuclei, grid.pitch, settings)
    slope = ndimage.gaussian_gradient_magnitude(level, 0.5) / grid.pitch
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        if window is None:
            continue
        mask = labels[window] == number
        nucleus = mask & nuclei[window]
        if not _is_cell(mask, nucleus, grid.pitch, settings):
            continue
        rows, columns = (slice(w.start + a.start, w.stop + a.start) for w, a in zip(window, around, strict=True))
        middle = ((rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2)
        if all(c.start <= at < c.stop for c, at in zip(core, middle, strict=True)):
            yield FieldCell(
                box=grid.box(rows, columns),
                mask=mask,
                nucleus=nucleus,
                nucleus_area=float(nucleus.sum() * grid.pitch**2),
                edge_width=_edge_width(level[window], slope[window], nucleus),
                whole=not grid.touches_edge(rows, columns),
            )


def _cleaned(mask: Mask, pitch: float) -> Mask:
    """Nuclei without specks and threads thinner than a micrometre, their pale gaps filled."""
    opened = ndimage.binary_opening(mask, disc(0.5 / pitch))
    return ndimage.binary_fill_holes(opened)


def _cell_region(
    level: NDArray[np.floating], nuclei: Mask, stain: Stain, pitch: float, settings: FinderSettings
) -> Mask:
    """Nuclei and the cytoplasm about them; bluish red cells farther off are left out."""
    stained = level > min(max(stain.threshold * settings.cytoplasm_share, stain.red_level), stain.threshold)
    near = ndimage.distance_transform_edt(~nuclei) <= settings.cytoplasm_reach / pitch
    region = nuclei | ndimage.binary_opening(stained & near, disc(1.0 / pitch))
    # Padded: a closing would otherwise eat into cells at the edge.
    gap = max(1, round(settings.lobe_gap / 2 / pitch))
    closed = ndimage.binary_closing(np.pad(region, gap + 1), disc(gap))[gap + 1 : -gap - 1, gap + 1 : -gap - 1]
    return ndimage.binary_fill_holes(closed)


def _is_cell(mask: Mask, nucleus: Mask, pitch: float, settings: FinderSettings) -> bool:
    area, nuclear = mask.sum() * pitch**2, nucleus.sum() * pitch**2
    return bool(nuclear >= settings.smallest_nucleus and area <= settings.largest_cell)


def _edge_width(level: NDArray[np.floating], slope: NDArray[np.floating], nucleus: Mask) -> float:
    """Contrast of the nucleus over the steepness of its outline, µm."""
    rim = nucleus ^ ndimage.binary_erosion(nucleus)
    contrast = float(np.median(level[nucleus]))
    return contrast / max(float(np.percentile(slope[rim], 75)), 1e-6)


def _notes(scale: Scale, cells: list[FieldCell]) -> Iterator[str]:
    if cells and float(np.median([cell.edge_width for cell in cells])) > BLURRED_EDGE:
        yield "The field looks out of focus: chromatin cannot be judged in it."
    if cells:
        width = 2 * float(np.sqrt(np.median([cell.nucleus_area for cell in cells]) / np.pi))
        if not PLAUSIBLE_NUCLEI[0] <= width <= PLAUSIBLE_NUCLEI[1]:
            low, high = PLAUSIBLE_NUCLEI
            yield (
                f"The nuclei found are {width:.1f} µm wide at {scale.um_per_pixel:.3f} µm a pixel ({scale.source}); "
                f"those of white cells are {low:g} to {high:g} µm wide: the count is not plausible, check the scale."
            )
    if scale.source == "nuclei":
        yield "Too few red cells to read the scale from: it is guessed from the nuclei; better give it."


def split_cells(region: Mask, nuclei: Mask, pitch: float, settings: FinderSettings) -> NDArray[np.int32]:
    """Touching cells apart: each pixel to the disc it lies deepest in (a power diagram, Aurenhammer 1987).

    Args:
        region: (h, w) cells with their cytoplasm.
        nuclei: (h, w) their nuclei.
        pitch: micrometres a pixel.

    Returns:
        (h, w) 0, or the number of the cell from 1.
    """
    reach = round(np.sqrt(settings.largest_cell / np.pi) / pitch)
    labels, nearest = np.zeros(region.shape, np.int32), np.full(region.shape, np.inf, np.float32)
    for number, (y, x, radius) in enumerate(_discs(region, nuclei, pitch, settings), start=1):
        window = tuple(
            slice(max(0, at - reach), min(n, at + reach + 1)) for at, n in zip((y, x), region.shape, strict=True)
        )
        rows, columns = np.ogrid[window]
        power = (rows - y) ** 2 + (columns - x) ** 2 - radius**2
        nearer = region[window] & (power < nearest[window])
        labels[window][nearer] = number
        nearest[window][nearer] = power[nearer]
    return labels


def _discs(region: Mask, nuclei: Mask, pitch: float, settings: FinderSettings) -> list[tuple[int, int, float]]:
    """One disc (y, x, radius) a cell: a round nucleus stands for one, lobes share the disc of their cell."""
    round_ones = [disc for disc in _peaks(nuclei, pitch, settings) if disc[2] * pitch >= settings.round_nucleus]
    return round_ones + [
        (y, x, radius)
        for y, x, radius in _peaks(region, pitch, settings)
        if all(np.hypot(y - v, x - u) > radius + r for v, u, r in round_ones)
    ]


def _peaks(mask: Mask, pitch: float, settings: FinderSettings) -> list[tuple[int, int, float]]:
    """Where a mask is deepest and how deep, deepest first; two peaks without a waist between them are one."""
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask).astype(np.float32), 0.6 / pitch)
    # A square, because its filter costs the same at any size.
    tops = mask & (depth == ndimage.maximum_filter(depth, 2 * round(settings.split_distance / 2 / pitch) + 1))
    kept: list[tuple[int, int, float]] = []
    for y, x in sorted(np.argwhere(tops).tolist(), key=lambda at: -depth[at[0], at[1]]):
        radius = float(depth[y, x])
        near = [(v, u) for v, u, r in kept if np.hypot(v - y, u - x) <= 2 * r + radius]
        if not any(_waist(depth, at, (y, x)) >= settings.waist * radius for at in near):
            kept.append((y, x, radius))
    return kept


def _waist(depth: NDArray[np.floating], one: tuple[int, int], other: tuple[int, int]) -> float:
    """Least depth on the straight line between two centres."""
    steps = max(2, round(np.hypot(one[0] - other[0], one[1] - other[1])))
    rows, columns = (np.linspace(a, b, steps).round().astype(int) for a, b in zip(one, other, strict=True))
    return float(depth[rows, columns].min())


def disc(radius: float) -> Mask:
    """A disc as structuring element; radius in pixels, at least 1."""
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x**2 + y**2 <= max(radius, 1.0) ** 2 + 0.5)
