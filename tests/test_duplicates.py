"""Copies are found however they were stored or turned; different cells are never taken for copies."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope import duplicates as module
from leukoscope.duplicates import Duplicate, find_duplicates, picture_key
from leukoscope.synthetic import Background, draw_cell


def phantom(cell: int, *, label: str = "ALL", background: Background = "black", size: int = 160) -> Image.Image:
    return Image.fromarray(draw_cell(label, cell=cell, size=size, background=background).image)


def stored(image: Image.Image, **how: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, **how)
    return Image.open(file).convert("RGB")


def duplicates(*images: Image.Image) -> list[Duplicate]:
    return find_duplicates([picture_key(image) for image in images])


def test_pixels_count_not_files_and_the_first_of_many_is_paired_with_each() -> None:
    as_png, as_bmp = stored(phantom(0), format="PNG"), stored(phantom(0), format="BMP")
    found = [Duplicate(1, other, identical=True) for other in (2, 3)]
    assert duplicates(phantom(1), as_png, as_bmp, phantom(0)) == found


def test_one_changed_pixel_is_near_and_not_identical() -> None:
    pixels = np.array(phantom(0))
    pixels[80, 80] ^= 1
    (pair,) = duplicates(phantom(0), Image.fromarray(pixels))
    assert not pair.identical and pair.difference < 0.5


@pytest.mark.parametrize("background", ["black", "smear"])
@pytest.mark.parametrize(
    "how", [{"format": "JPEG", "quality": 75}, {"format": "WEBP", "quality": 80}], ids=["jpeg", "webp"]
)
def test_a_reencoded_copy_is_found(background: Background, how: dict[str, Any]) -> None:
    images = [phantom(k, background=background) for k in range(4)]
    for copy in (stored(images[2], **how), images[2].resize((120, 120))):
        (pair,) = duplicates(*images, copy)
        assert (pair.first, pair.second, pair.identical, pair.turned) == (2, 4, False, False)


@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name.lower())
def test_a_turned_or_mirrored_copy_is_found(turn: Image.Transpose) -> None:
    (pair,) = duplicates(phantom(0), phantom(1), phantom(0).transpose(turn))
    assert (pair.first, pair.second, pair.turned) == (0, 2, True)
    assert pair.difference < 0.5, "only rounding remains"


@pytest.mark.parametrize("background", ["black", "smear"])
def test_different_cells_of_one_subject_are_no_copies(background: Background) -> None:
    images = [phantom(k, label=label, background=background, size=96) for label in ("ALL", "HEM") for k in range(40)]
    assert duplicates(*images) == []


def test_pairs_are_the_same_however_few_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [stored(phantom(1), format="JPEG", quality=quality) for quality in (60, 70, 80, 90)]
    together = duplicates(*cells)
    assert len(together) == 6
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 1)
    assert duplicates(*cells) == together


def test_nothing_one_picture_and_pictures_without_structure_have_no_copies() -> None:
    plain = [Image.new("RGB", (64, 64), (level, level, level)) for level in (200, 201, 202)]
    other_proportions = [Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))]
    for pictures in ([], [phantom(0)], plain, other_proportions):
        assert duplicates(*pictures) == []
