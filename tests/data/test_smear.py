"""Cells must be found where they are, whatever lies between them, and a picture that is no smear must be refused."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from leukoscope.data import smear
from leukoscope.data.images import BACKGROUND_LEVEL, CUT_OUT_PITCH, open_smear
from leukoscope.data.smear import Smear, SmearCell, UnusableSmear, cut_out, find_cells, measure_stain
from leukoscope.synthetic import EXAMPLE_SMEAR_PITCH, PhantomSmear, draw_cell, draw_smear, example_smear

MIXED = ("ALL", "HEM") * 4
PLASMA = (236, 220, 217)


def drawn(**options: Any) -> tuple[PhantomSmear, Image.Image]:
    truth = draw_smear(**{"classes": MIXED, "size": (400, 520), "um_per_pixel": 0.2, **options})
    return truth, Image.fromarray(truth.image)


def mask_of(cell: SmearCell, shape: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = cell.box
    whole = np.zeros(shape, bool)
    mask = Image.fromarray(cell.mask.astype(np.uint8)).resize((right - left, bottom - top))
    whole[top:bottom, left:right] = np.asarray(mask) > 0
    return whole


def overlaps(truth: PhantomSmear, found: Smear) -> list[float]:
    """Intersection over union of each true cell with the found cell that overlaps it most."""
    masks = [mask_of(cell, truth.labels.shape) for cell in found.cells]
    return [
        max(((mask & true).sum() / (mask | true).sum() for mask in masks), default=0.0)
        for true in (truth.labels == number for number in range(1, len(truth.classes) + 1))
    ]


def scale_of(found: Smear) -> tuple[float, str]:
    assert found.scale is not None
    return found.scale.um_per_pixel, found.scale.source


def test_finds_every_cell_and_nothing_else_among_red_cells_and_platelets() -> None:
    truth, image = drawn()
    found = find_cells(image, um_per_pixel=0.2)
    assert len(found.cells) == len(MIXED) and min(overlaps(truth, found)) > 0.75
    assert all(cell.whole for cell in found.cells)
    assert scale_of(found) == (0.2, "given") and not found.notes


@pytest.mark.parametrize("um_per_pixel", [0.12, 0.35])
def test_red_cells_tell_the_scale_within_a_tenth(um_per_pixel: float) -> None:
    truth, image = drawn(um_per_pixel=um_per_pixel, size=(round(84 / um_per_pixel), round(110 / um_per_pixel)))
    found = find_cells(image)
    measured, source = scale_of(found)
    assert source == "red cells" and measured == pytest.approx(um_per_pixel, rel=0.1)
    assert len(found.cells) == len(MIXED) and min(overlaps(truth, found)) > 0.6
    assert found.notes == ("The scale is measured on the red cells, taken to be 7.5 µm wide; give it if you know it.",)


def test_without_red_cells_the_scale_is_that_of_the_nuclei_and_said_to_be_uncertain() -> None:
    _, image = drawn(red_cells=0, platelets=0)
    found = find_cells(image)
    measured, source = scale_of(found)
    assert source == "nuclei" and 0.67 < measured / 0.2 < 1.5 and len(found.cells) == len(MIXED)
    said = "There are too few red cells: the scale is measured on the nuclei and uncertain; give it if you know it."
    assert found.notes == (said,)


def test_touching_cells_are_told_apart() -> None:
    truth, image = drawn(classes=("ALL", "HEM") * 10, size=(500, 620), spacing=0.98, seed=3, red_cells=20)
    found = find_cells(image, um_per_pixel=0.2)
    assert abs(len(found.cells) - 20) <= 1
    assert sum(overlap > 0.6 for overlap in overlaps(truth, found)) >= 19


def test_tiles_change_nothing_that_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, image = drawn()
    whole = find_cells(image, um_per_pixel=0.2)
    monkeypatch.setattr(smear, "TILE", 150)
    tiled = find_cells(image, um_per_pixel=0.2)
    assert len(whole.cells) == len(tiled.cells) == len(MIXED)
    for one, other in zip(whole.cells, tiled.cells, strict=True):
        assert np.abs(np.subtract(one.box, other.box)).max() <= 3


def test_a_smear_without_a_nucleus_has_no_cells_and_is_no_error() -> None:
    for red_cells_only in (drawn(classes=())[1], drawn(classes=(), platelets=0)[1]):
        assert find_cells(red_cells_only).cells == find_cells(red_cells_only, um_per_pixel=0.2).cells == ()
    for colour in (PLASMA, (255, 255, 255)):
        blank = Image.new("RGB", (300, 200), colour)
        assert find_cells(blank).cells == find_cells(blank, um_per_pixel=0.2).cells == ()
        assert find_cells(blank).scale is None


# Pictures that are no smear


def gradient(start: tuple[int, int, int], end: tuple[int, int, int], slant: float) -> Image.Image:
    y, x = np.mgrid[0:1:400j, 0:1:600j]
    share = np.clip((x + slant * y) / (1 + slant), 0, 1)[..., None]
    return Image.fromarray((np.array(start) + share * (np.array(end) - start)).astype(np.uint8))


@pytest.mark.parametrize("slant", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("end", [(90, 40, 130), (40, 40, 200), (120, 60, 150)])
def test_a_colour_gradient_is_refused_or_has_no_cell(end: tuple[int, int, int], slant: float) -> None:
    """Two nucleated cells at .003 µm per pixel were found in one."""
    for start in (PLASMA, (255, 255, 255)):
        try:
            found = find_cells(gradient(start, end, slant))
        except UnusableSmear:
            continue
        assert not found.cells


@pytest.mark.parametrize("channels", [(230, "x", "y"), (200, "y", "x"), ("x", "y", 180)])
def test_a_region_far_larger_than_a_cell_is_none_and_gives_no_scale(channels: tuple[int | str, ...]) -> None:
    """One "cell cut by the edge", more than a quarter of the picture, had 0.02 µm per pixel "from its red cells"."""
    y, x = np.mgrid[100:255:450j, 100:255:600j]
    ramps = {"x": x, "y": y}
    planes = [ramps[channel] if isinstance(channel, str) else np.full_like(x, channel) for channel in channels]
    found = find_cells(Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)))
    assert found.cells == () and found.scale is None and found.notes == ()


@pytest.mark.parametrize("um_per_pixel", [72, 0.51, 0.019, 0.003, 0.0, -0.2, float("nan")])
def test_a_scale_that_no_microscope_has_is_refused(um_per_pixel: float) -> None:
    said = f"^scale {um_per_pixel:g} µm per pixel (given), but a microscope's is 0.02 to 0.5: check the unit"
    with pytest.raises(UnusableSmear, match=re.escape(said).replace(r"\^", "^")):
        find_cells(Image.new("RGB", (100, 100), "white"), um_per_pixel=um_per_pixel)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((200, 200, 900, 900), r"^scale 0\.01\d* µm per pixel \(nuclei\), but a microscope's is 0.02 to"),
        ((0, 0, 850, 180), "^has too few red cells and no whole nucleus to measure its scale on: give"),
    ],
    ids=["too large", "no scale"],
)
def test_stain_of_an_impossible_or_no_scale_is_refused(shape: tuple[int, int, int, int], said: str) -> None:
    image = Image.new("RGB", (1200, 1200), PLASMA)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape[0] else draw.rectangle)(shape, fill=(90, 50, 140))
    with pytest.raises(UnusableSmear, match=said):
        find_cells(image)


def test_a_grey_or_inverted_smear_and_a_cut_out_cell_are_refused() -> None:
    smear_, pale = drawn()[1], "plasma of a smear is pale: give the picture as it was taken, not inv"
    for picture, said in (
        (ImageOps.grayscale(smear_).convert("RGB"), "the picture is grey.*give the colour photograph"),
        (ImageOps.invert(smear_), pale),
        (Image.fromarray(draw_cell("ALL", size=200).image), pale),
    ):
        with pytest.raises(UnusableSmear, match=said):
            find_cells(picture)


def round_view(image: Image.Image) -> Image.Image:
    """A smear through an eyepiece."""
    y, x = np.ogrid[: image.height, : image.width]
    seen = np.hypot(x - image.width / 2, y - image.height / 2) <= min(image.size) / 2
    return Image.fromarray(np.where(seen[..., None], np.array(image), np.uint8(0)))


def screenshot(image: Image.Image, bar: tuple[int, int, int] = (212, 208, 200)) -> Image.Image:
    """A smear in the window of a viewer."""
    window = Image.new("RGB", (image.width + 24, image.height + 110), bar)
    ImageDraw.Draw(window).rectangle((0, 0, image.width + 24, 32), fill=(0, 84, 166))
    window.paste(image, (12, 72))
    return window


def as_jpeg(image: Image.Image) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return Image.open(file).convert("RGB")


SURROUNDED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black border": lambda image: ImageOps.expand(image, 60, "black"),
    "blue border as JPEG": lambda image: as_jpeg(ImageOps.expand(image, 37, (0, 84, 166))),
    "window": screenshot,
    "dark window as JPEG": lambda image: as_jpeg(screenshot(image, (45, 45, 48))),
    "eyepiece as JPEG": lambda image: as_jpeg(round_view(image)),
}


@pytest.mark.parametrize("surround", SURROUNDED)
def test_a_smear_that_is_only_a_part_of_its_picture_must_be_cropped(surround: str) -> None:
    with pytest.raises(UnusableSmear, match="^part of it is black, a border or a window's bar: crop it to the smear$"):
        find_cells(SURROUNDED[surround](drawn()[1]))


def test_a_smear_without_borders_is_not_taken_for_one_with_them() -> None:
    for image in (drawn()[1], drawn(classes=(), red_cells=5)[1], drawn(classes=("ALL",), red_cells=0)[1]):
        measure_stain(image)
    # Overexposed: the plasma is as even as a border.
    pixels = np.array(drawn(spacing=1.3)[1])
    pixels[pixels.min(axis=-1) > 190] = 255
    measure_stain(Image.fromarray(pixels))


def test_a_white_border_changes_no_cell_and_a_wrong_scale_is_said() -> None:
    image = drawn()[1]
    alone, found = find_cells(image), find_cells(ImageOps.expand(image, 60, "white"))
    assert scale_of(found)[0] == pytest.approx(scale_of(alone)[0], rel=0.15)
    assert len(found.cells) == len(alone.cells)
    (note,) = find_cells(image, um_per_pixel=0.4).notes
    assert "of white cells are 5.5 to 15 µm wide: the count is not plausible, check the scale." in note


def test_cells_that_are_too_large_at_a_scale_are_said_not_to_be_counted() -> None:
    image = Image.fromarray(example_smear())
    assert len(find_cells(image, um_per_pixel=EXAMPLE_SMEAR_PITCH).cells) == 5
    # Its platelets are as large as nuclei then, and nothing else of the result is implausible.
    found = find_cells(image, um_per_pixel=0.45)
    assert found.cells and found.notes == (
        "At 0.450 µm per pixel (given), 5 stained regions are larger than a white cell and not counted.",
    )
    assert "2 stained regions are larger than" in find_cells(image, um_per_pixel=0.25).notes[1]


def test_crops_of_another_laboratory_are_cut_out(real_data: Path) -> None:
    right = []
    for folder in sorted(path for path in (real_data / "pbc").glob("*") if path.is_dir()):
        for file in sorted(folder.glob("*.jpg"))[:40:8]:
            found = find_cells(open_smear(file))
            right.append(0.06 < scale_of(found)[0] < 0.16 and any(cell.whole for cell in found.cells))
    assert np.mean(right) >= 0.9, "about 0.1 µm per pixel"


def test_more_cells_than_wanted_end_the_search_and_dots_and_clumps_are_none() -> None:
    image = drawn()[1]
    assert len(find_cells(image, um_per_pixel=0.2, most_cells=len(MIXED)).cells) == len(MIXED)
    with pytest.raises(UnusableSmear, match="^shows more than the 7 nucleated cells predicted at once; crop"):
        find_cells(image, um_per_pixel=0.2, most_cells=7)
    pixels = np.full((600, 600, 3), (225, 215, 220), np.uint8)
    for row in range(20, 580, 8):
        for column in range(20, 580, 8):
            pixels[row : row + 5, column : column + 5] = (90, 40, 130)
    assert not find_cells(Image.fromarray(pixels), um_per_pixel=0.3, most_cells=1).cells
    image = Image.new("RGB", (600, 400), PLASMA)
    ImageDraw.Draw(image).rectangle((100, 100, 500, 300), fill=(90, 50, 140))
    assert not [cell for cell in find_cells(image, um_per_pixel=0.2).cells if cell.mask.sum() * 0.3**2 > 700]


def test_a_cell_cut_by_the_edge_is_marked() -> None:
    _, image = drawn(classes=("ALL",), seed=1)
    (whole,) = find_cells(image, um_per_pixel=0.2).cells
    middle = (whole.box[0] + whole.box[2]) // 2
    (cut,) = find_cells(image.crop((middle, 0, *image.size)), um_per_pixel=0.2).cells
    assert whole.whole and not cut.whole


def test_a_cut_out_looks_like_the_phantom_it_came_from() -> None:
    truth, image = drawn(classes=("ALL",), seed=2)
    original = draw_cell("ALL", subject=2, cell=0, seed=2).image
    (cell,) = find_cells(image, um_per_pixel=0.2).cells
    made = np.asarray(cut_out(image, cell, truth.um_per_pixel))
    assert made.shape == (450, 450, 3)
    area, true_area = ((picture.max(axis=-1) > BACKGROUND_LEVEL).sum() for picture in (made, original))
    assert 0.95 < area / true_area < 1.1, "a thin fringe of cytoplasm lies round the original here"
    seen = made[made.max(axis=-1) > BACKGROUND_LEVEL]
    assert (seen.min(axis=-1) > 150).mean() < 0.003, "no ring of plasma"
    assert not made[:20, :20].any()
    (left, _, right, _), columns = cell.box, np.flatnonzero((made.max(axis=-1) > 0).any(axis=0))
    assert 0.9 < np.ptp(columns) * CUT_OUT_PITCH / ((right - left) * truth.um_per_pixel) < 1.02


@pytest.mark.slow
def test_a_hundred_megapixels_are_read_in_bounded_memory() -> None:
    truth = draw_smear(MIXED, size=(1000, 1000), um_per_pixel=0.1, spacing=1.05, red_cells=40)
    part, picture = Image.fromarray(truth.image), Image.new("RGB", (10_000, 10_000))
    for place in range(100):
        picture.paste(part, (place % 10 * 1000, place // 10 * 1000))
    tracemalloc.start()
    found = find_cells(picture, um_per_pixel=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.cells) == 100 * len(MIXED)
    assert peak < 250e6
