"""A phantom field must be reproducible and its truth exact, or nothing measured on it means anything."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from leukoscope.synthetic import draw_smear


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
