"""Where the dots of a plot lie: each in the column of its share, above and below those of like shares."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

RADII = (6.0, 5.0, 4.0, 3.0)
"""Pixels, the largest first: a plot has the largest with which its dots find places."""
LEAST_APART = 0.5
"""How far dots of one column lie apart at least while they find places, as a share of their width."""


@dataclass(frozen=True)
class Space:
    """The dots of one row, and the pixels that they have.

    Attributes:
        shares: of each dot, 0–1.
        width, height: in pixels, of the narrowest window that the page is designed for; in a wider one the dots lie
            further apart.
        borders: shares, ascending, on each side of which dots mean something else: every dot lies on its own side.
        stacked: the shares mean nothing: all dots stand in the middle, in as few columns as hold them.
    """

    shares: Sequence[float]
    width: float
    height: float
    borders: Sequence[float] = ()
    stacked: bool = False


def common_radius(spaces: Sequence[Space]) -> float:
    """The largest radius with which the dots of all rows find places; the smallest one where they find none."""
    for radius in RADII:
        if all(_tallest(_columns(space, radius)) <= _rows(space, radius) for space in spaces):
            return radius
    return RADII[-1]


def swarm(space: Space, radius: float) -> list[tuple[float, float]]:
    """The centre of each dot, x and y as shares of width and height.

    Columns are as wide as a dot; each is filled from the middle of the row. No dot is moved to another column: where
    one has more dots than find place, they overlap.
    """
    columns = _columns(space, radius)
    step = _step(radius)
    tallest = _tallest(columns)
    if tallest > 1:
        step = min(step, (space.height - 2 * radius) / (tallest - 1))
    heights = Counter(columns)
    placed: Counter[float] = Counter()
    centres = []
    for x in columns:
        off_middle = (placed[x] - (heights[x] - 1) / 2) * step
        centres.append((x, 0.5 + off_middle / space.height))
        placed[x] += 1
    return centres


def _step(radius: float) -> float:
    """Pixels from a dot to the next one."""
    return 2 * radius + 1


def _rows(space: Space, radius: float) -> int:
    """How many dots find place in a column, above each other and partly on each other."""
    return 1 + max(0, int((space.height - 2 * radius) / (LEAST_APART * 2 * radius)))


def _tallest(columns: Sequence[float]) -> int:
    """How many dots the fullest column has."""
    return max(Counter(columns).values(), default=0)


def _columns(space: Space, radius: float) -> list[float]:
    """The middle of each dot's column, the nearest one on its side of the borders, as a share of the width."""
    if space.stacked:
        return _columns_of_stack(space, radius)
    parts = _parts(space, radius)
    return [min(parts[bisect(space.borders, share)], key=lambda x: abs(x - share)) for share in space.shares]


def _columns_of_stack(space: Space, radius: float) -> list[float]:
    """The middle of each dot's column where all columns stand beside each other in the middle of the width."""
    dots = len(space.shares)
    step = _step(radius)
    dots_of_column = 1 + max(0, int((space.height - 2 * radius) // step))
    columns = min(math.ceil(dots / dots_of_column), max(1, int(space.width // step)))
    middles = [0.5 + (column - (columns - 1) / 2) * step / space.width for column in range(columns)]
    return [middles[dot % columns] for dot in range(dots)]


def _parts(space: Space, radius: float) -> list[list[float]]:
    """Of each part between borders, where its columns have their middle, as shares of the width."""
    parts = []
    for low, high in pairwise([0.0, *space.borders, 1.0]):
        count = max(1, int(space.width * (high - low) // _step(radius)))
        parts.append([low + (high - low) * (column + 0.5) / count for column in range(count)])
    return parts
