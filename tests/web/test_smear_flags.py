"""The numbers of a smear's boxes lie over no other box."""

from __future__ import annotations

import pytest

from leukoscope.web.smear_flags import FLAG_HEIGHT, place_flags

AREA = (0.0, 0.0, 400.0, 300.0)


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((100, 100, 140, 140), ""),
        ((380, 100, 400, 140), "lk-right"),
        ((100, 5, 140, 45), "lk-below"),
        ((380, 5, 400, 45), "lk-below lk-right"),
        ((100, 0, 140, 300), "lk-after"),
        ((360, 0, 400, 300), "lk-before"),
    ],
)
def test_a_flag_stands_above_its_box_unless_it_would_leave_the_picture(
    box: tuple[float, float, float, float], place: str
) -> None:
    assert place_flags([box], ["1 ?"], AREA) == [(place, False)]


def test_a_flag_gives_way_to_other_boxes_and_to_their_flags() -> None:
    lower = (100.0, 100.0, 140.0, 140.0)
    upper = (95.0, 70.0, 145.0, 95.0)
    assert place_flags([lower, upper], ["1", "2"], AREA) == [("lk-below", False), ("", False)]
    # The flag of the first, below it, lies where that of the second would stand first.
    beneath = (100.0, 140.0 + FLAG_HEIGHT, 140.0, 190.0)
    assert place_flags([lower, upper, beneath], ["1", "2", "3"], AREA)[2] == ("lk-below", False)


def test_a_flag_without_room_says_that_it_covers_another_box() -> None:
    middle = (150.0, 150.0, 170.0, 170.0)
    around = [(100.0, 100.0, 220.0, 149.0), (100.0, 171.0, 220.0, 220.0), (100.0, 149.0, 149.0, 171.0),
              (171.0, 149.0, 220.0, 171.0)]  # fmt: skip
    places = place_flags([middle, *around], ["1", "", "", "", ""], AREA)
    assert places[0][1] and places[1:] == [("", False)] * 4, "boxes of cells that cannot be opened have none"
