"""Views of a cell: eight different views of the same pixels, and every map turned back onto the picture."""

from __future__ import annotations

import numpy as np
import pytest

from leukoscope.inference.prediction import VIEWS, disagreement, turned, turned_back


def test_the_first_view_is_the_picture_and_no_two_are_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)

    views = [turned(pixels, view) for view in range(VIEWS)]

    assert np.array_equal(views[0], pixels)
    assert len({one.tobytes() for view in views for one in view}) == 2 * VIEWS


@pytest.mark.parametrize("view", range(VIEWS))
def test_a_map_is_turned_back_onto_the_picture(view: int) -> None:
    pixels = np.random.default_rng(1).random((3, 4, 4, 2))
    # A map that shows where a pixel lies follows it through every view.
    assert np.array_equal(turned_back(np.moveaxis(turned(pixels, view), -1, 1), view), np.moveaxis(pixels, -1, 1))


def test_disagreement_counts_the_views_that_differ_from_their_average() -> None:
    agreeing = np.tile([0.9, 0.1], (VIEWS, 1))
    two_differ = agreeing.copy()
    two_differ[:2] = [0.4, 0.6]

    assert disagreement(np.stack([agreeing, two_differ])).tolist() == [0.0, 0.25]
