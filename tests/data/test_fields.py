"""Cells must be found where they are, whatever lies between them, and a picture that is no smear must be refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from leukoscope.data.fields import CUT_OUT_PITCH, Field, FieldCell, UnusableField, cut_out, find_cells
from leukoscope.data.framing import BACKGROUND_LEVEL
from leukoscope.data.synthetic import PhantomField, draw_cell, draw_field

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


def test_finds_every_cell_and_nothing_else_among_red_cells_platelets_and_a_scale_bar():
    truth, image = drawn()

    found = find_cells(image, um_per_pixel=0.2)

    assert len(found.cells) == len(MIXED)
    assert min(overlaps(truth, found)) > 0.75
    assert all(cell.whole for cell in found.cells)
    assert found.scale is not None and found.scale.source == "given"


def test_red_cells_tell_the_scale_within_a_third():
    for um_per_pixel in (0.12, 0.35):
        truth, image = drawn(um_per_pixel=um_per_pixel, size=(round(84 / um_per_pixel), round(110 / um_per_pixel)))

        found = find_cells(image)

        assert found.scale is not None and found.scale.source == "red cells"
        assert 0.67 < found.scale.um_per_pixel / um_per_pixel < 1.5
        assert len(found.cells) == len(MIXED)
        assert min(overlaps(truth, found)) > 0.6


def test_without_red_cells_the_scale_is_a_guess_and_said_to_be_one():
    _, image = drawn(red_cells=0, platelets=0, scale_bar=False)

    found = find_cells(image)

    assert found.scale is not None and found.scale.source == "nuclei"
    assert any("guessed from the nuclei" in note for note in found.notes)


def test_touching_cells_are_told_apart():
    truth, image = drawn(classes=("ALL", "HEM") * 10, size=(500, 620), spacing=0.98, seed=3, red_cells=20)

    found = find_cells(image, um_per_pixel=0.2)

    assert abs(len(found.cells) - 20) <= 1
    assert sum(overlap > 0.6 for overlap in overlaps(truth, found)) >= 19


def test_tiles_change_nothing_that_can_be_counted():
    _, image = drawn()

    whole, tiled = (find_cells(image, um_per_pixel=0.2, tile=tile) for tile in (4096, 150))

    assert len(whole.cells) == len(tiled.cells) == len(MIXED)
    for one, other in zip(whole.cells, tiled.cells, strict=True):
        assert np.abs(np.subtract(one.box, other.box)).max() <= 3


def test_an_empty_field_has_no_cells_and_is_no_error():
    _, with_red_cells = drawn(classes=(), scale_bar=True)
    assert find_cells(with_red_cells).cells == ()
    assert find_cells(Image.new("RGB", (300, 200), (238, 226, 222))).cells == ()
    assert find_cells(Image.new("RGB", (300, 200), (255, 255, 255)), um_per_pixel=0.2).cells == ()


def test_a_blurred_field_is_still_read_but_said_to_be_out_of_focus():
    _, sharp = drawn()
    blurred = sharp.filter(ImageFilter.GaussianBlur(7))

    assert not find_cells(sharp, um_per_pixel=0.2).notes
    found = find_cells(blurred, um_per_pixel=0.2)

    assert found.cells
    assert "out of focus" in found.notes[0]


def test_a_grey_field_is_refused():
    _, image = drawn()

    with pytest.raises(UnusableField, match="the picture is grey.*give the colour photograph"):
        find_cells(ImageOps.grayscale(image).convert("RGB"))


def test_an_inverted_field_and_a_cut_out_cell_are_refused():
    _, image = drawn()
    cell = Image.fromarray(draw_cell("ALL", size=200).image)

    for picture in (ImageOps.invert(image), cell):
        with pytest.raises(UnusableField, match="the plasma of a smear is pale: an inverted picture must be inverted"):
            find_cells(picture)


def test_a_photograph_through_an_eyepiece_is_read_and_one_mostly_dark_is_not():
    _, image = drawn()
    photograph = Image.new("RGB", (2 * image.width, 2 * image.height))
    photograph.paste(image, (image.width // 2, image.height // 2))
    assert len(find_cells(photograph, um_per_pixel=0.2).cells) == len(find_cells(image, um_per_pixel=0.2).cells)
    with pytest.raises(UnusableField, match=r"most of it is dark \(\d+ of 255\), but the plasma of a smear is pale"):
        find_cells(ImageOps.invert(image))


def test_an_impossible_scale_is_refused():
    with pytest.raises(UnusableField, match="scale 72 µm per pixel: .* check the unit"):
        find_cells(Image.new("RGB", (100, 100), "white"), um_per_pixel=72)


def test_a_cell_cut_by_the_edge_is_marked():
    _, image = drawn(classes=("ALL",), seed=1)
    (whole,) = find_cells(image, um_per_pixel=0.2).cells
    middle = (whole.box[0] + whole.box[2]) // 2

    (cut,) = find_cells(image.crop((middle, 0, *image.size)), um_per_pixel=0.2).cells

    assert whole.whole and not cut.whole


def test_a_cut_out_looks_like_the_phantom_it_came_from():
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


def test_a_cut_out_is_as_large_as_its_cell_at_the_scale_of_the_training_cells():
    truth, image = drawn(classes=("HEM",))
    (cell,) = find_cells(image, um_per_pixel=0.2).cells

    made = np.asarray(cut_out(image, cell, truth.um_per_pixel)).max(axis=-1) > 0

    (left, _, right, _), columns = cell.box, np.flatnonzero(made.any(axis=0))
    assert 0.9 < np.ptp(columns) * CUT_OUT_PITCH / ((right - left) * truth.um_per_pixel) < 1.02


@pytest.mark.slow
def test_a_hundred_megapixels_are_read_in_bounded_memory():
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
