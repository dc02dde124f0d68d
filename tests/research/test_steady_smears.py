"""What is counted as another outcome must be one, and a moved picture must show the same cells."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from leukoscope.inference.smear import UNSTEADY
from research import steady_smears
from research.outlines import outline


def cell(x: float, outcome: str) -> dict[str, Any]:
    return {"middle": [x, 1.0], "outcome": outcome}


def test_a_picture_moved_by_half_a_pixel_twice_is_moved_by_one() -> None:
    wave = 128 + 60 * np.sin(np.linspace(0, 20, 64))[:, None] * np.cos(np.linspace(0, 25, 96))
    image = Image.fromarray(np.repeat(wave[..., None], 3, axis=2).astype(np.uint8))
    twice = np.asarray(steady_smears.shifted(steady_smears.shifted(image)), int)
    assert np.abs(twice[8:-8, 8:-8] - np.asarray(image, int)[7:-9, 7:-9]).max() <= 4


def test_outcomes_are_compared_cell_by_cell_and_lost_cells_counted() -> None:
    unchanged = [cell(0, "ALL"), cell(10, "HEM"), cell(20, "ALL"), cell(30, "ALL")]
    same = {name: unchanged for name in (*steady_smears.SCALES, steady_smears.SHIFTED)}
    larger = [cell(20.4, "ALL"), cell(0, "abstain"), cell(10.2, "HEM")]
    picture = {**same, steady_smears.UNCHANGED: unchanged, "scale +2 %": larger}
    measured = steady_smears.changes([picture])
    changes = measured["changes"]
    assert measured["cells"] == 4
    assert (changes["scale +2 %"]["outcome_changed"], changes["scale +2 %"]["lost"]) == (25, 25)
    assert changes[steady_smears.SHIFTED]["outcome_changed"] == changes[steady_smears.SHIFTED]["lost"] == 0


def test_a_disc_is_round_and_whole_and_a_half_moon_is_not() -> None:
    y, x = np.mgrid[-60:60, -60:60]
    disc = np.hypot(y, x) < 40
    moon = disc & (np.hypot(y, x - 30) > 35)
    solidity, holes, pieces, roundness, area = outline(Image.fromarray(np.repeat(disc[..., None] * np.uint8(99), 3, 2)))
    assert solidity > 0.97 and holes == 0 and pieces == 1 and 0.85 < roundness < 1 and area == disc.sum()
    torn = outline(Image.fromarray(np.repeat(moon[..., None] * np.uint8(99), 3, 2)))
    assert torn[0] < 0.85 and torn[3] < 0.6


def test_a_smear_says_what_was_measured() -> None:
    changes = json.loads(steady_smears.RESULTS.read_text())["today"]["changes"]
    fewest, most = sorted(round(changes[f"scale {sign}0.5 %"]["outcome_changed"]) for sign in "+-")
    assert f"{fewest} to {most} got another one" in UNSTEADY
