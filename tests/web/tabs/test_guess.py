"""The tab "Guess first" without a browser: who is right how often, and on which cells."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gradio_events import event
from leukoscope import LeukoscopeError
from leukoscope.web.app import build_demo
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.tabs.guess import CELLS, hint, new_round, phantoms, score, shared_round

EMBEDDED = Path(__file__).parents[3] / "model_card"


def test_a_round_is_drawn_again_from_its_number() -> None:
    one, again, other = phantoms(7), phantoms(7), phantoms(8)
    assert [label for _, label in one].count("ALL") == [label for _, label in one].count("HEM") == CELLS // 2
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for (a, _), (b, _) in zip(one, again, strict=True))
    assert [np.asarray(a).tobytes() for a, _ in one] != [np.asarray(a).tobytes() for a, _ in other]


def test_you_the_model_and_size_alone_are_counted_on_the_same_cells() -> None:
    models = ModelCache({"cnmc": EMBEDDED / "leukoscope-densenet169-cnmc"})
    found = new_round(models, "cnmc", phantoms(7), 7)
    sizes = {one.size for one in found.cells}
    assert len(found.cells) == CELLS and sizes <= {"ALL", "HEM"}
    ended = found
    for cell in found.cells:
        ended = ended.guessed(models, cell.label)
    assert len(ended.answers) == CELLS and set(ended.answers) <= {"ALL", "HEM"}
    wrong = replace(ended, answers=("HEM",) * CELLS, guesses=("ALL",) * CELLS)
    number = next(number for number, cell in enumerate(found.cells) if cell.label == cell.size == "ALL")
    assert wrong.told(number) == "ALL: you ✓, the model ✗, size alone ✓"
    page = score(ended)
    assert f"{CELLS} / {CELLS}" in page and "?tab=guess&amp;round=7" in page
    lead = "If it had to name a class for each of 100 cells of people it has not seen"
    assert f"Cells drawn by a program test no model. On real ones: {lead}" in page
    assert "Cell size alone: 78." in page
    assert ended.right([one.size for one in found.cells]) == sum(one.size == one.label for one in found.cells)
    assert "who shared it" not in page
    assert re.search(r'"\?tab=guess&amp;round=7&amp;right=10" target="_blank"', page)
    assert "<td>6 / 10</td>" in score(replace(ended, rival=6)) and "who shared it" in score(replace(ended, rival=6))
    real = score(replace(ended, seed=-1))
    assert "test no model" not in real and "round=" not in real, "real cells cannot be drawn again"


@pytest.mark.parametrize(
    ("address", "round", "said"),
    [
        ({"round": "7", "right": "6"}, (7, 6), "To beat: 6 of 10."),
        ({"round": "10007"}, (7, -1), "you, the model, and size alone"),
        ({"round": "7", "right": "11"}, (7, -1), "you, the model, and size alone"),
        ({"round": "9" * 5000, "right": "²"}, (-1, -1), "you, the model, and size alone"),
        ({"right": "6"}, (-1, -1), "you, the model, and size alone"),
    ],
)
def test_a_shared_round_is_announced_with_the_score_to_beat(
    address: dict[str, str], round: tuple[int, int], said: str
) -> None:
    assert shared_round(address) == round
    assert said in hint(SimpleNamespace(query_params=address))  # type: ignore[arg-type]


def test_a_model_of_other_classes_is_named() -> None:
    models = ModelCache({"ball4": EMBEDDED / "leukoscope-densenet201-ball4"})
    with pytest.raises(LeukoscopeError, match="^ball4: tells Benign, Early, Pre, Pro apart; choose a model of ALL"):
        new_round(models, "ball4", phantoms(1), 1)


def test_a_round_begun_while_real_cells_are_downloaded_is_not_replaced_by_them() -> None:
    demo = build_demo(ModelCache({}))
    real, start = event(demo, "on_real"), event(demo, "on_start")
    assert any(real._id in one.cancels and one.targets == start.targets for one in demo.fns.values())
