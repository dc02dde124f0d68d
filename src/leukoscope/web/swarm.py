"""Where the dots of a plot lie: each at its share along the row, and beside its neighbours instead of on them."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

RADII = (6.0, 5.0, 4.0, 3.0)
"""Pixels, the largest first: a plot has the largest with which its dots find places."""
MAY_LIE_OFF = 0.04
"""How far from its share a dot may lie, as a share of the row's width."""


@dataclass(frozen=True)
class Space:
    """The dots of one row, and the pixels that they have.

    Attributes:
        shares: of each dot, 0–1.
        width, height: in pixels, of the narrowest window that the page is designed for; in a wider one the dots lie
            further apart.
        may_lie_off: how far from its share a dot may lie, as a share of the width.
        borders: shares, ascending, on each side of which dots mean something else: every dot lies on its own side.
    """

    shares: Sequence[float]
    width: float
    height: float
    may_lie_off: float = MAY_LIE_OFF
    borders: Sequence[float] = ()


def common_radius(spaces: Sequence[Space]) -> float:
    """The largest radius with which the dots of all rows find places; the smallest one where they find none."""
    for radius in RADII:
        if all(_columns(space, radius, _rows(space, radius)) is not None for space in spaces):
            return radius
    return RADII[-1]


def swarm(space: Space, radius: float) -> list[tuple[float, float]]:
    """The centre of each dot, x and y as shares of width and height.

    Dots are stacked in columns as wide as a dot, from the middle of the row. Where a column is full, the next one takes
    its dots, as far as they may lie off; where all those are full, dots overlap.
    """
    rows = _rows(space, radius)
    columns = _columns(space, radius, rows)
    while columns is None:
        rows += 1 + rows // 4
        columns = _columns(space, radius, rows)
    stacks: dict[float, list[int]] = {}
    for dot, column in enumerate(columns):
        stacks.setdefault(column, []).append(dot)
    step = _step(radius)
    tallest = max(map(len, stacks.values()), default=1)
    if tallest > 1:
        step = min(step, (space.height - 2 * radius) / (tallest - 1))
    centres = [(0.0, 0.0)] * len(columns)
    for x, dots in stacks.items():
        for place, dot in enumerate(dots):
            off_middle = (place - (len(dots) - 1) / 2) * step
            centres[dot] = x, 0.5 + off_middle / space.height
    return centres


def _step(radius: float) -> float:
    """Pixels from a dot to the next one."""
    return 2 * radius + 1


def _rows(space: Space, radius: float) -> int:
    """How many dots find place in a column."""
    return max(1, int(space.height // _step(radius)))


def _parts(space: Space, radius: float) -> list[list[float]]:
    """Of each part between borders, where its columns have their middle, as shares of the width."""
    parts = []
    for low, high in pairwise([0.0, *space.borders, 1.0]):
        count = max(1, int(space.width * (high - low) // _step(radius)))
        parts.append([low + (high - low) * (column + 0.5) / count for column in range(count)])
    return parts


def _columns(space: Space, radius: float, rows: int) -> list[float] | None:
    """The column of each dot: the nearest of its part with a place; None where one finds no place near enough."""
    parts = _parts(space, radius)
    reach = space.may_lie_off + _step(radius) / space.width
    taken: Counter[float] = Counter()
    columns = [0.0] * len(space.shares)
    # From the ends to the middle: what is moved lies further from an end than it should, never nearer.
    order = sorted(range(len(space.shares)), key=lambda dot: -abs(space.shares[dot] - 0.5))
    for dot in order:
        share = space.shares[dot]
        part = parts[bisect(space.borders, share)]
        near = sorted((abs(x - share), x) for x in part if abs(x - share) <= reach)
        column = next((x for _, x in near if taken[x] < rows), None)
        if column is None:
            return None
        taken[column] += 1
        columns[dot] = column
    return columns
