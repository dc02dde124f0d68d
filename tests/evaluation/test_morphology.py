"""A cell drawn with known measurements is measured as it was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from leukoscope.evaluation.morphology import measure_cell, percentile
from research.checks import morphology_block

CYTOPLASM, NUCLEUS = (200, 150, 210), (90, 40, 120)


def cell(radius: int, nuclei: list[tuple[int, int, int]], side: int = 200) -> Image.Image:
    """A round cell in the middle; nuclei are discs of x, y and radius."""
    image = Image.new("RGB", (side, side))
    pen, middle = ImageDraw.Draw(image), side // 2
    pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), CYTOPLASM)
    for x, y, r in nuclei:
        pen.ellipse((x - r, y - r, x + r, y + r), NUCLEUS)
    return image


@pytest.mark.parametrize(("nuclei", "lobes"), [([(100, 100, 40)], 1), ([(78, 100, 16), (122, 100, 16)], 2)])
def test_area_nucleus_and_lobes(nuclei: list[tuple[int, int, int]], lobes: int) -> None:
    found = measure_cell(cell(60, nuclei))
    assert found is not None and found.lobes == lobes
    assert found.area == pytest.approx(np.pi * 60**2, rel=0.03)
    assert found.nucleus_share == pytest.approx(sum(r**2 for *_, r in nuclei) / 60**2, rel=0.15)


def test_the_area_is_in_pixels_of_the_picture_whatever_its_size() -> None:
    small = cell(60, [(100, 100, 40)])
    large = small.resize((1000, 1000))
    one, other = measure_cell(small), measure_cell(large)
    assert one is not None and other is not None
    assert other.area == pytest.approx(25 * one.area, rel=0.03)
    assert other.nucleus_share == pytest.approx(one.nucleus_share, abs=0.05)


@pytest.mark.parametrize("colour", ["white", "black"])
def test_a_picture_without_a_cell_on_black_has_no_measurements(colour: str) -> None:
    assert measure_cell(Image.new("RGB", (100, 100), colour)) is None


def test_a_cell_s_place_among_the_training_cells() -> None:
    block = morphology_block(cell(radius, [(100, 100, radius // 2)]) for radius in range(30, 71, 2))
    assert block["cells"] == 21 and block["lobes"] == {"1": 1.0}
    assert percentile(block, "area", np.pi * 50**2) == pytest.approx(0.5, abs=0.05)
    assert percentile(block, "area", 1.0) == 0 and percentile(block, "area", 1e9) == 1
    assert percentile({}, "area", 5.0) is None
