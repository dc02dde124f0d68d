"""Cells must be found where they are, whatever lies between them, and a picture that is no smear must be refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from leukoscope.data import fields
from leukoscope.data.fields import (
    PEAKS_PER_CELL,
    Field,
    FieldCell,
    UnusableField,
    cut_out,
    find_cells,
    is_cut_out_cell,
    measure_scale,
    measure_stain,
)
from leukoscope.data.images import BACKGROUND_LEVEL, CUT_OUT_PITCH, open_field
from leukoscope.synthetic import PhantomField, draw_cell, draw_field

MIXED = ("ALL", "HEM") * 4


def drawn(**options: Any) -> tuple[PhantomField, Image.Image]:
    truth = draw_field(**{"classes": MIXED, "size": (400, 520), "um_per_pixel": 0.2, **options})
    return truth, Image.fromarray(truth.image)


def mask_of(cell: FieldCell, shape: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = cell.box
    whole = np.zeros(shape, bool)
    mask = Image.fromarray(cell.mask.astype(np.uint8)).resize((right - left, bottom - top))
    whole[top:bottom, left:right] = np.asarray(mask) > 0
    return whole


def overlaps(truth: PhantomField, found: Field) -> list[float]:
    """Intersection over union of each true cell with the found cell that overlaps it most."""
    masks = [mask_of(cell, truth.labels.shape) for cell in found.cells]
    return [
        max(((mask & true).sum() / (mask | true).sum() for mask in masks), default=0.0)
        for true in (truth.labels == number for number in range(1, len(truth.classes) + 1))
    ]


def test_finds_every_cell_and_nothing_else_among_red_cells_platelets_and_a_scale_bar() -> None:
    truth, image = drawn()

    found = find_cells(image, um_per_pixel=0.2)

    assert len(found.cells) == len(MIXED)
    assert min(overlaps(truth, found)) > 0.75
    assert all(cell.whole for cell in found.cells)
    assert found.scale is not None and found.scale.source == "given"


def test_red_cells_tell_the_scale_within_a_third() -> None:
    for um_per_pixel in (0.12, 0.35):
        truth, image = drawn(um_per_pixel=um_per_pixel, size=(round(84 / um_per_pixel), round(110 / um_per_pixel)))

        found = find_cells(image)

        assert found.scale is not None and found.scale.source == "red cells"
        assert 0.67 < found.scale.um_per_pixel / um_per_pixel < 1.5
        assert len(found.cells) == len(MIXED)
        assert min(overlaps(truth, found)) > 0.6


def test_without_red_cells_the_scale_is_a_guess_and_said_to_be_one() -> None:
    _, image = drawn(red_cells=0, platelets=0, scale_bar=False)

    found = find_cells(image)

    assert found.scale is not None and found.scale.source == "nuclei"
    assert any("guessed from the nuclei" in note for note in found.notes)


def test_touching_cells_are_told_apart() -> None:
    truth, image = drawn(classes=("ALL", "HEM") * 10, size=(500, 620), spacing=0.98, seed=3, red_cells=20)

    found = find_cells(image, um_per_pixel=0.2)

    assert abs(len(found.cells) - 20) <= 1
    assert sum(overlap > 0.6 for overlap in overlaps(truth, found)) >= 19


def test_tiles_change_nothing_that_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, image = drawn()

    whole = find_cells(image, um_per_pixel=0.2)
    monkeypatch.setattr(fields, "TILE", 150)
    tiled = find_cells(image, um_per_pixel=0.2)

    assert len(whole.cells) == len(tiled.cells) == len(MIXED)
    for one, other in zip(whole.cells, tiled.cells, strict=True):
        assert np.abs(np.subtract(one.box, other.box)).max() <= 3


def test_an_empty_field_has_no_cells_and_is_no_error() -> None:
    _, with_red_cells = drawn(classes=(), scale_bar=True)
    assert find_cells(with_red_cells).cells == ()
    assert find_cells(Image.new("RGB", (300, 200), (238, 226, 222))).cells == ()
    assert find_cells(Image.new("RGB", (300, 200), (255, 255, 255)), um_per_pixel=0.2).cells == ()


def test_a_blurred_field_is_still_read_but_said_to_be_out_of_focus() -> None:
    _, sharp = drawn()
    blurred = sharp.filter(ImageFilter.GaussianBlur(7))

    assert not find_cells(sharp, um_per_pixel=0.2).notes
    found = find_cells(blurred, um_per_pixel=0.2)

    assert found.cells
    assert "out of focus" in found.notes[0]


def test_a_grey_field_is_refused() -> None:
    _, image = drawn()

    with pytest.raises(UnusableField, match="the picture is grey.*give the colour photograph"):
        find_cells(ImageOps.grayscale(image).convert("RGB"))


def test_an_inverted_field_and_a_cut_out_cell_are_refused() -> None:
    _, image = drawn()
    cell = Image.fromarray(draw_cell("ALL", size=200).image)

    for picture in (ImageOps.invert(image), cell):
        with pytest.raises(UnusableField, match="the plasma of a smear is pale: an inverted picture must be inverted"):
            find_cells(picture)


def test_a_picture_that_is_mostly_dark_is_refused() -> None:
    with pytest.raises(UnusableField, match=r"most of it is dark \(\d+ of 255\), but the plasma of a smear is pale"):
        find_cells(ImageOps.invert(drawn()[1]))


# Pictures of which a field is only a part


def round_view(image: Image.Image, radius: float = 0.5, outside: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """A field through an eyepiece; the radius in shorter sides."""
    pixels = np.array(image)
    y, x = np.ogrid[: image.height, : image.width]
    seen = np.hypot(x - image.width / 2, y - image.height / 2) <= radius * min(image.size)
    return Image.fromarray(np.where(seen[..., None], pixels, np.array(outside, np.uint8)))


def screenshot(image: Image.Image, dark: bool = False) -> Image.Image:
    """A field in the window of a viewer: bars with a title, words and buttons above, a line of words below."""
    bar, ink = ((45, 45, 48), "white") if dark else ((212, 208, 200), "black")
    width, height = image.size
    window = Image.new("RGB", (width + 24, height + 110), bar)
    pen = ImageDraw.Draw(window)
    pen.rectangle((0, 0, width + 24, 32), fill=(0, 84, 166))
    pen.text((10, 10), "field.jpg - Viewer", fill="white")
    for number, word in enumerate(("File", "Edit", "View", "Image", "Help")):
        pen.text((8 + 50 * number, 42), word, fill=ink)
        pen.rectangle((280 + 28 * number, 38, 300 + 28 * number, 60), fill=(60 + 30 * number, 120, 200))
    pen.text((8, height + 90), "100 %", fill=ink)
    window.paste(image, (12, 72))
    return window


def as_jpeg(image: Image.Image) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return Image.open(file).convert("RGB")


SURROUNDED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black border": lambda image: ImageOps.expand(image, 60, "black"),
    "blue border as JPEG": lambda image: as_jpeg(ImageOps.expand(image, 37, (0, 84, 166))),
    "letterbox": lambda image: ImageOps.expand(image, (0, 80), "black"),
    "window": screenshot,
    "dark window as JPEG": lambda image: as_jpeg(screenshot(image, dark=True)),
    "window in a border": lambda image: ImageOps.expand(screenshot(image), 25, "grey"),
    "eyepiece": round_view,
    "wide eyepiece": lambda image: round_view(image, 0.6),
    "eyepiece as JPEG": lambda image: as_jpeg(round_view(image)),
}


@pytest.mark.parametrize("surround", SURROUNDED)
def test_a_field_that_is_only_a_part_of_its_picture_must_be_cropped(surround: str) -> None:
    picture = SURROUNDED[surround](drawn()[1])

    with pytest.raises(UnusableField, match="part of it is a border, a window's bar or the black .*: crop it to the"):
        find_cells(picture)
    assert not is_cut_out_cell(picture)


def test_a_white_border_changes_no_cell() -> None:
    image = drawn()[1]
    alone, found = find_cells(image), find_cells(ImageOps.expand(image, 60, "white"))

    assert alone.scale is not None and found.scale is not None
    assert found.scale.um_per_pixel == pytest.approx(alone.scale.um_per_pixel, rel=0.15)
    assert len(found.cells) == len(alone.cells)


def test_a_cell_cut_out_on_black_is_one_however_tight_its_frame() -> None:
    cell = Image.fromarray(draw_cell("ALL").image)
    assert is_cut_out_cell(cell) and is_cut_out_cell(cell.crop(cell.getbbox()))


def test_a_pale_cell_on_black_is_one(real_data: Path) -> None:
    files = sorted((real_data / "ball4" / "Segmented").rglob("*.jpg"))[::40]
    assert files and all(is_cut_out_cell(open_field(file)) for file in files)


@pytest.mark.parametrize("stained", ["dots", "stripes"])
def test_thousands_of_dots_are_counted_before_anything_is_made_of_them(
    stained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each too small for a nucleus, or all of them one: 80,000 took the demo's line for fields 35 seconds."""
    pixels = np.full((600, 600, 3), (225, 215, 220), np.uint8)
    for row in range(20, 580, 8):
        if stained == "stripes":
            pixels[row : row + 5, 20:580] = (90, 40, 130)
        for column in range(20, 580, 8):
            pixels[row : row + 5, column + row % 3 : column + row % 3 + 5] = (90, 40, 130)
    picture, compared, waist = Image.fromarray(pixels), [0], fields._waist

    def counted(*places: Any) -> float:
        compared[0] += 1
        return waist(*places)

    monkeypatch.setattr(fields, "_waist", counted)
    with pytest.raises(UnusableField, match="more than the 200 nucleated cells predicted at once"):
        find_cells(picture, um_per_pixel=0.3, most_cells=200)
    assert compared == [0]
    assert len(find_cells(picture, um_per_pixel=0.3).cells) < 200, "without a bound, they are looked at"
    assert PEAKS_PER_CELL * 200 < 70 * 70 and (stained == "dots" or compared[0] > 0)


def test_a_field_without_borders_is_not_taken_for_one_with_them() -> None:
    for _, image in (drawn(), drawn(classes=(), red_cells=5), drawn(classes=("ALL",), red_cells=0)):
        assert not measure_stain(image).problem
    # Overexposed: the plasma is as even as a border.
    pixels = np.array(drawn(spacing=1.3)[1])
    pixels[pixels.min(axis=-1) > 190] = 255
    assert not measure_stain(Image.fromarray(pixels)).problem


@pytest.mark.slow
def test_real_fields_are_refused_in_borders_and_windows_and_only_there(real_data: Path) -> None:
    paths = sorted((real_data / "bccd" / "BCCD" / "JPEGImages").glob("*.jpg"))
    for image in map(open_field, paths[7::18]):
        assert not measure_stain(image).problem
        for surround, put in SURROUNDED.items():
            assert "crop it to the field" in measure_stain(put(image)).problem, surround


def test_a_scale_from_red_cells_is_a_guess_and_said_to_be_one() -> None:
    found = find_cells(drawn()[1])

    assert found.scale is not None and found.scale.source == "red cells" and found.scale.guessed
    assert found.notes == ("The scale is guessed from the red cells, taken to be 7.5 µm wide; better give it.",)
    given = find_cells(drawn()[1], um_per_pixel=0.2)
    assert given.scale is not None and not given.scale.guessed and not given.notes


def test_nuclei_give_the_scale_of_a_crop_whose_red_cells_do_not() -> None:
    pixels = drawn(classes=("ALL",), size=(360, 360), um_per_pixel=0.1, red_cells=0, scale_bar=False)[0].image.copy()
    down, across = np.mgrid[:360, :360]
    ground, random = np.median(pixels.reshape(-1, 3), axis=0), np.random.default_rng(0)
    for top, left in random.integers(15, 345, (12, 2)):  # fragments of red cells
        disc = (down - top) ** 2 + (across - left) ** 2 < 12**2
        if abs(pixels[disc] - ground).max() < 40:
            pixels[disc] = (205, 150, 150)
    image = Image.fromarray(pixels)
    wrong = measure_scale(image, measure_stain(image))
    assert wrong is not None and wrong.um_per_pixel > 0.2 and wrong.source == "red cells"

    found = find_cells(image)

    assert len(found.cells) == 1 and found.scale is not None
    assert found.scale.source == "nuclei" and 0.05 < found.scale.um_per_pixel < 0.15
    assert any("do not fit the nuclei: the scale is guessed from these" in note for note in found.notes)


def test_crops_of_another_laboratory_are_cut_out(real_data: Path) -> None:
    right = []
    for folder in sorted(path for path in (real_data / "pbc").glob("*") if path.is_dir()):
        for file in sorted(folder.glob("*.jpg"))[:40:8]:
            scale = find_cells(open_field(file)).scale
            right.append(scale is not None and 0.06 < scale.um_per_pixel < 0.16)
    assert np.mean(right) >= 0.9, "about 0.1 µm per pixel"


def test_a_guess_that_no_nucleus_fits_gives_way_to_the_nuclei_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Specks as small as platelets, but many and round: they pass for red cells.
    _, image = drawn(red_cells=0, platelets=0, scale_bar=False, classes=("ALL",) * 4)
    level, pen = np.asarray(image).min(axis=-1), ImageDraw.Draw(image)
    for y in range(10, 390, 20):
        for x in range(10, 510, 20):
            if level[y - 9 : y + 10, x - 9 : x + 10].min() > 176:
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(214, 150, 150))

    said = (
        r"^the nuclei found would be \d+\.\d µm wide at the 0\.\d+ µm per pixel guessed from its red cells, and .* are "
    )
    found = find_cells(image)
    assert len(found.cells) == 4 and found.scale is not None and found.scale.source == "nuclei"
    assert any("that the red cells give do not fit the nuclei" in note for note in found.notes)
    assert len(find_cells(image, um_per_pixel=0.2).cells) == 4
    monkeypatch.setattr(fields, "_scale_of_largest", lambda *_: None)
    with pytest.raises(UnusableField, match=said + r"4 to 20: give the scale \(--um_per_pixel\)$"):
        find_cells(image)


def test_an_impossible_scale_is_refused() -> None:
    with pytest.raises(UnusableField, match="scale 72 µm per pixel: .* check the unit"):
        find_cells(Image.new("RGB", (100, 100), "white"), um_per_pixel=72)


def test_a_cell_cut_by_the_edge_is_marked() -> None:
    _, image = drawn(classes=("ALL",), seed=1)
    (whole,) = find_cells(image, um_per_pixel=0.2).cells
    middle = (whole.box[0] + whole.box[2]) // 2

    (cut,) = find_cells(image.crop((middle, 0, *image.size)), um_per_pixel=0.2).cells

    assert whole.whole and not cut.whole


def test_a_cut_out_looks_like_the_phantom_it_came_from() -> None:
    label, seed = "ALL", 2
    truth, image = drawn(classes=(label,), seed=seed)
    original = draw_cell(label, subject=seed, cell=0, seed=seed).image
    (cell,) = find_cells(image, um_per_pixel=0.2).cells

    made = np.asarray(cut_out(image, cell, truth.um_per_pixel))

    assert made.shape == (450, 450, 3)
    area, true_area = ((picture.max(axis=-1) > BACKGROUND_LEVEL).sum() for picture in (made, original))
    assert 0.95 < area / true_area < 1.1, "a thin fringe of cytoplasm lies round the original here"
    seen = made[made.max(axis=-1) > BACKGROUND_LEVEL]
    assert (seen.min(axis=-1) > 150).mean() < 0.003, "no ring of plasma"
    corner = made[:20, :20]
    assert not corner.any()


def test_a_cut_out_is_as_large_as_its_cell_at_the_scale_of_the_training_cells() -> None:
    truth, image = drawn(classes=("HEM",))
    (cell,) = find_cells(image, um_per_pixel=0.2).cells

    made = np.asarray(cut_out(image, cell, truth.um_per_pixel)).max(axis=-1) > 0

    (left, _, right, _), columns = cell.box, np.flatnonzero(made.any(axis=0))
    assert 0.9 < np.ptp(columns) * CUT_OUT_PITCH / ((right - left) * truth.um_per_pixel) < 1.02


@pytest.mark.slow
def test_a_hundred_megapixels_are_read_in_bounded_memory() -> None:
    truth = draw_field(MIXED, size=(1000, 1000), um_per_pixel=0.1, spacing=1.05, red_cells=40)
    part, field = Image.fromarray(truth.image), Image.new("RGB", (10_000, 10_000))
    for place in range(100):
        field.paste(part, (place % 10 * 1000, place // 10 * 1000))

    tracemalloc.start()
    found = find_cells(field, um_per_pixel=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(found.cells) == 100 * len(MIXED)
    assert peak < 250e6
