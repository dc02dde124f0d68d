"""Dots of a plot: each at its share, beside its neighbours."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from leukoscope.web.swarm import LEAST_APART, RADII, Space, common_radius, swarm


@pytest.mark.parametrize("seed", range(5))
def test_dots_lie_at_their_shares_and_at_most_half_on_each_other(seed: int) -> None:
    shares = np.random.default_rng(seed).beta(0.7, 0.7, size=40).tolist()
    space = Space(shares, 270, 132)
    radius = common_radius([space])
    centres = swarm(space, radius)
    for share, (x, y) in zip(shares, centres, strict=True):
        assert abs(x - share) <= (2 * radius + 1) / 270, "in its own column"
        assert radius <= 132 * y <= 132 - radius and radius <= 270 * x <= 270 - radius, "whole in sight"
    for (x, y), (other_x, other_y) in combinations(centres, 2):
        assert math.hypot(270 * (x - other_x), 132 * (y - other_y)) >= 2 * radius * LEAST_APART - 1e-6


def test_all_rows_have_dots_of_one_size_and_few_dots_are_large() -> None:
    few, many = Space([0.2, 0.9], 270, 48), Space([0.99] * 30, 270, 48)
    assert common_radius([few]) == RADII[0] and swarm(few, RADII[0])[0][1] == 0.5, "alone, in the middle"
    assert common_radius([few, many]) == common_radius([many]) < RADII[0]


def test_more_dots_than_places_overlap_where_they_belong() -> None:
    crowd = Space([1.0] * 500, 270, 48)
    radius = common_radius([crowd])
    assert radius == RADII[-1]
    for x, y in swarm(crowd, radius):
        assert x >= 1 - (2 * radius + 1) / 270 and radius <= 48 * y <= 48 - radius


@pytest.mark.parametrize("limit", [0.55, 0.72, 0.823, 0.97])
def test_a_dot_and_its_whole_circle_lie_on_its_own_side_of_a_border(limit: float) -> None:
    borders = [1 - limit, limit]
    shares = np.random.default_rng(0).uniform(size=60).tolist()
    shares += [limit - 0.001] * 9 + [limit] * 9 + [1 - limit - 0.001] * 9 + [1 - limit] * 9
    space = Space(shares, 260, 132, borders=borders)
    radius = common_radius([space])
    for share, (x, _) in zip(shares, swarm(space, radius), strict=True):
        for border in borders:
            beyond = x - border if share >= border else border - x
            assert 260 * beyond >= min(radius, 260 * (2 * limit - 1) / 2, 260 * (1 - limit) / 2) - 1e-6


@pytest.mark.parametrize(("dots", "columns"), [(1, 1), (3, 1), (4, 2), (12, 4), (30, 6)])
def test_dots_whose_shares_mean_nothing_stand_in_few_columns_in_the_middle(dots: int, columns: int) -> None:
    """They were spread sideways, as if that meant something."""
    space = Space([0.5] * dots, 78, 40, stacked=True)
    radius = common_radius([space])
    centres = swarm(space, radius)
    across = sorted({x for x, _ in centres})
    assert radius == RADII[0] and len(across) == columns
    assert across[0] + across[-1] == pytest.approx(1), "in the middle"
    for (x, y), (other_x, other_y) in combinations(centres, 2):
        assert math.hypot(78 * (x - other_x), 40 * (y - other_y)) >= 2 * radius * LEAST_APART - 1e-6
    for x, y in centres:
        assert radius - 1e-6 <= 40 * y <= 40 - radius + 1e-6 and radius <= 78 * x <= 78 - radius


def test_no_dot_is_no_plot() -> None:
    assert swarm(Space([], 270, 48), 4) == []
