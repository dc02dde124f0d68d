"""What identifies a cell that a release was made from; what follows from it is tested with `training_overlap`."""

from __future__ import annotations

from leukoscope.evaluation.overlap import KnownCells


def test_short_names_identify_no_cell() -> None:
    known = KnownCells(names=frozenset({"12", "UID_1_1_1_all"}))
    assert known.among(["ALL/12.png", "ALL/UID_1_1_1_all.bmp"], None) == 1
