"""Where the number of each box of a smear stands: outside its box, and over no other one if there is room."""

from __future__ import annotations

from collections.abc import Sequence

FLAG_HEIGHT = 19  # CSS pixels, as in page.css
LETTER = 9  # the width of a letter, at most
PADDING = 12  # of a flag, left and right together
Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def place_flags(boxes: Sequence[Rectangle], texts: Sequence[str], area: Rectangle) -> list[tuple[str, bool]]:
    """For each box the CSS classes that place its flag, and whether the flag still covers another box.

    Args:
        boxes: in CSS pixels.
        texts: what stands on each flag; "" for a box without one.
        area: where flags may lie, in CSS pixels.
    """
    flags: list[Rectangle] = []
    places = []
    for number, (box, text) in enumerate(zip(boxes, texts, strict=True)):
        if not text:
            places.append(("", False))
            continue
        others = [*boxes[:number], *boxes[number + 1 :]]
        candidates = _candidates(box, LETTER * len(text) + PADDING)
        hidden = {
            place: _outside(flag, area) + sum(_overlap(flag, other) for other in [*others, *flags])
            for place, flag in candidates.items()
        }
        place = min(hidden, key=hidden.__getitem__)
        flags.append(candidates[place])
        places.append((place, any(_overlap(candidates[place], other) for other in others)))
    return places


def _candidates(box: Rectangle, width: float) -> dict[str, Rectangle]:
    """CSS classes → where they place a flag, the usual place first."""
    left, top, right, bottom = box
    return {
        "": (left, top - FLAG_HEIGHT, left + width, top),
        "lk-right": (right - width, top - FLAG_HEIGHT, right, top),
        "lk-below": (left, bottom, left + width, bottom + FLAG_HEIGHT),
        "lk-below lk-right": (right - width, bottom, right, bottom + FLAG_HEIGHT),
        "lk-after": (right, top, right + width, top + FLAG_HEIGHT),
        "lk-before": (left - width, top, left, top + FLAG_HEIGHT),
    }


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """The area that two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _outside(flag: Rectangle, area: Rectangle) -> float:
    """How much of a flag lies outside the area."""
    return (flag[2] - flag[0]) * (flag[3] - flag[1]) - _overlap(flag, area)
