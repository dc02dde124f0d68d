"""Prediction sets must hold the truth as often as they say, on subjects that fitted no threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from leukoscope.evaluation.calibration import calibrated, fit_temperature, leave_one_subject_out
from leukoscope.evaluation.conformal import prediction_sets
from leukoscope.evaluation.draws import subject_draws
from leukoscope.evaluation.metrics import CellPredictions

Maker = Callable[..., CellPredictions]


def _methods(answers: CellPredictions) -> dict[str, Any]:
    return prediction_sets(answers, leave_one_subject_out(answers), subject_draws(answers, draws=200))["methods"]


@pytest.mark.parametrize("classes", [2, 3])
def test_sets_hold_nine_of_ten_cells_of_exchangeable_subjects(calibrated_cells: Maker, classes: int) -> None:
    methods = _methods(calibrated_cells(6000, classes=classes, too_sharp=2.0))

    for found in methods.values():
        assert found["coverage"] == pytest.approx(0.9, abs=0.02)
        assert found["intervals"]["coverage"]["low"] < 0.9 < found["intervals"]["coverage"]["high"]
    for found in methods["class_conditional"]["per_class"].values():
        assert found["coverage"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("method", ["marginal", "class_conditional"])
def test_shipped_thresholds_hold_nine_of_ten_cells_of_new_subjects(calibrated_cells: Maker, method: str) -> None:
    answers, unseen = (calibrated_cells(6000, classes=3, too_sharp=2.0, seed=seed) for seed in (1, 2))
    least = np.array(list(_methods(answers)[method]["least_probability"].values()))

    sets = calibrated(unseen, fit_temperature(answers)).probabilities >= least

    assert sets[np.arange(6000), unseen.references].mean() == pytest.approx(0.9, abs=0.02)


def test_one_threshold_for_all_lets_the_smaller_class_pay(calibrated_cells: Maker) -> None:
    """With nine in ten normal cells gone and the same network, normal cells are rare and look doubtful."""
    answers = calibrated_cells(8000, subjects=10)
    kept = (answers.references == 0) | (np.arange(8000) % 10 == 0)
    rare = CellPredictions(
        tuple(np.asarray(answers.cell_ids)[kept]),
        tuple(np.asarray(answers.subjects)[kept]),
        answers.references[kept],
        answers.probabilities[kept] * [10, 1] / (answers.probabilities[kept] * [10, 1]).sum(axis=1, keepdims=True),
        answers.label_names,
    )

    methods = _methods(rare)

    assert methods["marginal"]["coverage"] == pytest.approx(0.9, abs=0.02)
    assert methods["marginal"]["per_class"]["HEM"]["coverage"] < 0.5
    assert methods["class_conditional"]["per_class"]["HEM"]["coverage"] == pytest.approx(0.9, abs=0.03)


def test_a_subject_unlike_the_others_is_not_covered(calibrated_cells: Maker) -> None:
    answers = calibrated_cells(3000, subjects=8)
    outlier = np.asarray(answers.subjects) == "HEM3"
    blast = np.where(outlier, 0.999, answers.probabilities[:, 0])

    found = _methods(replace(answers, probabilities=np.stack([blast, 1 - blast], axis=1)))["class_conditional"]

    assert found["subjects"]["HEM"]["lowest"] == 0.0
    assert found["subjects"]["ALL"]["lowest"] > 0.8
    assert found["per_class"]["HEM"]["coverage"] < 0.88


def test_sizes_add_up(calibrated_cells: Maker) -> None:
    """Two classes: a set is empty, single or both, and both count double."""
    for found in _methods(calibrated_cells(2000, subjects=5)).values():
        both = 1 - found["singletons"] - found["empty"]
        assert found["mean_size"] == pytest.approx(found["singletons"] + 2 * both)


@pytest.mark.parametrize(("cells", "admits"), [(8, "all"), (9, "the least"), (19, "the second least")])
def test_the_bound_is_the_conformal_quantile_of_small_samples(cells: int, admits: str) -> None:
    """⌊(n + 1) / 10⌋ is 0, 1 and 2 for 8, 9 and 19 cells of a class."""
    right = np.linspace(0.6, 0.9, cells)
    probabilities = np.stack([np.r_[right, 1 - right], np.r_[1 - right, right]], axis=1)
    subjects = [f"{name}{i % 3}" for name in ("ALL", "HEM") for i in range(cells)]
    answers = CellPredictions(
        tuple(f"cell-{i}" for i in range(2 * cells)),
        tuple(subjects),
        np.repeat([0, 1], cells),
        probabilities,
        ("ALL", "HEM"),
    )
    shipped = np.sort(calibrated(answers, fit_temperature(answers)).probabilities[:cells, 0])

    least = _methods(answers)["class_conditional"]["least_probability"]["ALL"]

    assert least == pytest.approx({"all": 0.0, "the least": shipped[0], "the second least": shipped[1]}[admits])
