"""Synthetic smears, unlike other pictures, read as smears."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from leukoscope.data.registry import DATASETS
from leukoscope.data.smear import looks_like_smear
from leukoscope.synthetic import SMEAR_LABELS, Background, draw_cell, draw_smear, smear_picture


def test_labels_are_those_of_the_real_set() -> None:
    assert DATASETS["ball4"].labels == SMEAR_LABELS


def test_every_field_reads_as_a_smear() -> None:
    drawn = [smear_picture(label, row) for label in SMEAR_LABELS for row in range(5)]
    assert all(looks_like_smear(Image.fromarray(image)) for image in drawn)


@pytest.mark.parametrize("background", ["black", "smear"])
def test_one_cell_reads_as_a_smear_only_where_it_lies_in_one(background: Background) -> None:
    cell = Image.fromarray(draw_cell("ALL", background=background).image)
    assert looks_like_smear(cell) is (background == "smear")


def _blank_page() -> np.ndarray:
    return np.full((300, 400, 3), 250, np.uint8)


def _page_of_text() -> np.ndarray:
    page = _blank_page()
    page[20:280:20, 30:370] = 40
    return page


def _photograph() -> np.ndarray:
    """Sky over a meadow: pale, coloured, and nothing of the stain of a nucleus."""
    picture = np.zeros((300, 400, 3), np.float32)
    picture[:150] = np.linspace((150, 190, 235), (220, 230, 240), 150)[:, None]
    picture[150:] = np.linspace((150, 190, 120), (90, 140, 60), 150)[:, None]
    return (picture + np.random.default_rng(0).normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 90, (64, 64, 3), np.uint8)


def _plasma_without_a_cell() -> np.ndarray:
    return np.full((300, 400, 3), (236, 220, 217), np.uint8)


@pytest.mark.parametrize("picture", [_blank_page, _page_of_text, _photograph, _noise, _plasma_without_a_cell])
def test_what_shows_no_nuclear_stain_is_no_smear(picture: Callable[[], np.ndarray]) -> None:
    assert looks_like_smear(Image.fromarray(picture())) is False


# Fields with their truth


def test_equal_arguments_give_equal_pixels_and_another_seed_another_field() -> None:
    one, again, other = (draw_smear(size=(300, 300), um_per_pixel=0.3, seed=seed) for seed in (0, 0, 1))

    assert np.array_equal(one.image, again.image) and np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.image, other.image)


def test_truth_names_each_cell_once_and_lies_on_dark_pixels() -> None:
    field = draw_smear(("ALL", "HEM", "ALL"), size=(360, 480), um_per_pixel=0.2)

    assert sorted(set(np.unique(field.labels)) - {0}) == [1, 2, 3]
    assert ndimage.label(field.labels)[1] == len(field.classes) == 3
    brightness = field.image.mean(axis=-1)
    assert brightness[field.labels > 0].mean() < brightness[field.labels == 0].mean() - 60


def test_the_scale_sets_the_size_of_cells() -> None:
    fine, coarse = (draw_smear(("ALL",), size=(400, 400), um_per_pixel=um, red_cells=0) for um in (0.1, 0.2))

    assert (fine.labels > 0).sum() / (coarse.labels > 0).sum() == pytest.approx(4, rel=0.1)


def test_refuses_more_cells_than_fit_and_scales_too_coarse_for_one() -> None:
    with pytest.raises(ValueError, match="30 cells do not fit into 200×200 pixels"):
        draw_smear(("ALL",) * 30, size=(200, 200), um_per_pixel=0.3)
    with pytest.raises(ValueError, match="um_per_pixel is 1.5; a cell needs 32 px"):
        draw_smear(um_per_pixel=1.5)
