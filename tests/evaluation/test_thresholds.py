"""Thresholds reach their target where they were fitted, and are measured on subjects that fitted none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import bootstrap_subjects
from leukoscope.evaluation.calibration import calibrated, fit_temperature, leave_one_subject_out
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.thresholds import TARGET_RISK, _risk_rule, abstention, decision_block, operating_points

Maker = Callable[..., CellPredictions]


def _points(predictions: CellPredictions, positive_label: str = "ALL") -> dict[str, Any]:
    boot = bootstrap_subjects(predictions, samples=200)
    return operating_points(predictions, positive_label, leave_one_subject_out(predictions), boot)["points"]


def _two_class(blast: list[float], references: list[int], subjects: list[str]) -> CellPredictions:
    p = np.asarray(blast)
    ids = tuple(f"cell-{i}" for i in range(len(p)))
    return CellPredictions(ids, tuple(subjects), np.asarray(references), np.stack([p, 1 - p], axis=1), ("ALL", "HEM"))


@pytest.fixture(scope="module")
def predictions(calibrated_cells: Maker) -> CellPredictions:
    return calibrated_cells(3000, subjects=12, too_sharp=2.0)


# Operating points


def test_thresholds_reach_their_target_on_the_cells_that_fitted_them_and_no_more(predictions: CellPredictions) -> None:
    points, weights = _points(predictions), predictions.subject_weights
    assert weights is not None
    # The largest share of its class that one cell has, every subject weighing the same.
    step = [weights[predictions.references == k].max() / weights[predictions.references == k].sum() for k in (0, 1)]

    assert 0.95 <= points["sensitivity_95"]["fitted"]["sensitivity_by_subject"] < 0.95 + step[0]
    assert 0.95 <= points["specificity_95"]["fitted"]["specificity_by_subject"] < 0.95 + step[1]
    best = points["youden"]["fitted"]["balanced_accuracy_by_subject"]
    assert all(best >= point["fitted"]["balanced_accuracy_by_subject"] for point in points.values())


@pytest.mark.parametrize("positive", [0, 1])
def test_a_threshold_stands_on_the_calibrated_scale_of_its_class(predictions: CellPredictions, positive: int) -> None:
    point = _points(predictions, predictions.label_names[positive])["sensitivity_95"]
    shipped = calibrated(predictions, fit_temperature(predictions)).probabilities[:, positive]

    found = (shipped >= point["threshold"])[predictions.references == positive].mean()

    assert found == pytest.approx(point["fitted"]["sensitivity"], abs=1e-12)


def test_rounding_a_threshold_for_json_moves_no_cell(predictions: CellPredictions) -> None:
    threshold = _points(predictions)["youden"]["threshold"]
    scores = calibrated(predictions, fit_temperature(predictions)).probabilities[:, 0].astype(np.float32)

    assert ((scores >= threshold) == (scores >= float(f"{threshold:.6g}"))).all()


def test_rates_of_a_separable_case_are_those_worked_out_by_hand() -> None:
    """Three blasts' subjects at .8, three normal ones' at .3, and one normal cell that looks like a blast."""
    subjects = ["a", "b", "c"] * 4 + ["H1", "H2", "H3"] * 2 + ["H1"]
    predictions = _two_class([0.8] * 12 + [0.3] * 6 + [0.9], [0] * 12 + [1] * 7, subjects)

    youden = _points(predictions)["youden"]

    assert youden["fitted"] == {
        "sensitivity": 1.0,
        "specificity": pytest.approx(6 / 7),
        "balanced_accuracy": pytest.approx(13 / 14),
        "ppv": pytest.approx(12 / 13),
        "npv": 1.0,
        # H1 has three cells, one of them wrong; H2 and H3 have two.
        "sensitivity_by_subject": 1.0,
        "specificity_by_subject": pytest.approx((2 / 3 + 1 + 1) / 3),
        "balanced_accuracy_by_subject": pytest.approx((1 + 8 / 9) / 2),
    }
    assert youden["cross_fitted"]["prevalence"] == pytest.approx(12 / 19)


def test_an_outlying_subject_cannot_vouch_for_its_own_threshold(predictions: CellPredictions) -> None:
    """Its normal cells look like blasts: the threshold it fitted reaches 95 % specificity, the others' does not."""
    outlier = np.asarray(predictions.subjects) == "HEM3"
    blast = np.where(outlier, 0.999, predictions.probabilities[:, 0])
    odd = replace(predictions, probabilities=np.stack([blast, 1 - blast], axis=1))

    plain, point = _points(predictions)["specificity_95"], _points(odd)["specificity_95"]

    assert plain["cross_fitted"]["specificity"] == pytest.approx(0.95, abs=0.01)
    assert point["fitted"]["specificity"] >= 0.95
    assert point["cross_fitted"]["specificity"] < 0.92


def test_intervals_hold_their_figure_and_widen_when_subjects_differ(predictions: CellPredictions) -> None:
    outlier = np.isin(predictions.subjects, ["HEM3", "HEM4", "HEM5"])
    blast = np.where(outlier, 0.999, predictions.probabilities[:, 0])
    found = _points(predictions)["youden"]["cross_fitted"]
    odd = _points(replace(predictions, probabilities=np.stack([blast, 1 - blast], axis=1)))["youden"]["cross_fitted"]

    def width(metrics: dict[str, Any], name: str) -> float:
        return metrics["intervals"][name]["high"] - metrics["intervals"][name]["low"]

    for name, interval in found["intervals"].items():
        assert interval["low"] < found[name] < interval["high"]
    assert width(odd, "specificity") > 3 * width(found, "specificity")


def test_a_rate_without_cells_is_none_rather_than_not_a_number() -> None:
    """No threshold but the highest gives 95 % specificity here, and above it no cell is called ALL."""
    subjects = ["a", "b", "c"] * 2 + ["H1", "H2", "H3"] * 2
    predictions = _two_class([0.4] * 6 + [0.6] * 6, [0] * 6 + [1] * 6, subjects)

    found = _points(predictions)["specificity_95"]["cross_fitted"]

    assert found["sensitivity"] == 0.0
    assert found["ppv"] is None
    assert found["intervals"]["ppv"] is None


def test_two_classes_of_which_none_is_positive_have_no_operating_point(predictions: CellPredictions) -> None:
    block = decision_block(predictions, "")
    assert block["operating_points"] == {} and block["abstention"]["default"]["per_class"].keys() == {"ALL", "HEM"}


def test_more_than_two_classes_have_no_operating_point(calibrated_cells: Maker) -> None:
    block = decision_block(calibrated_cells(600, classes=3, subjects=4), "", unit="block")

    assert block["operating_points"] == {}
    assert block["judged_on"] == "each block with the temperature and thresholds fitted on all other blocks"
    assert set(block["abstention"]["default"]["per_class"]) == {"ALL", "HEM", "OTHER"}


def test_an_unknown_positive_label_is_refused_with_the_known_ones(predictions: CellPredictions) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        decision_block(predictions, "blast")

    assert str(refused.value) == "positive label 'blast': not a class of these predictions; give one of ALL, HEM"


# Abstention


def _ranked(right: list[bool], subjects: list[str] | None = None) -> CellPredictions:
    """Cells of confidence .99, .98, …: whether each is right, and whose it is (a subject each where not given).

    A third class, of which there is no cell, keeps classes from being weighed evenly.
    """
    confidence = 0.99 - 0.01 * np.arange(len(right))
    two = _two_class(
        confidence.tolist(), [0 if one else 1 for one in right], subjects or [f"s{i}" for i in range(len(right))]
    )
    three = np.concatenate([two.probabilities, np.zeros((len(right), 1))], axis=1)
    return replace(two, probabilities=three, label_names=(*two.label_names, "OTHER"))


def test_of_two_classes_the_rarer_counts_as_much_as_the_other() -> None:
    """One in ten of the cells called ALL is wrong, all the normal ones there are: half of what counts."""
    cells = _ranked([True] * 9 + [False])
    two = replace(cells, probabilities=cells.probabilities[:, :2], label_names=("ALL", "HEM"))

    assert _risk_rule(cells) == 0.0
    assert _risk_rule(two) == pytest.approx((0.91 + 0.90) / 2)


def test_the_threshold_is_that_of_the_largest_coverage_with_one_error_in_ten() -> None:
    """Wrong are the 5th, 15th and 16th of 20. Of the first 10 one in ten is wrong, of 14 fewer, of 15 more."""
    predictions = _ranked([rank not in (5, 15, 16) for rank in range(1, 21)])

    threshold = _risk_rule(predictions)

    answered = predictions.probabilities.max(axis=1) >= threshold
    assert answered.sum() == 14
    assert threshold == pytest.approx((0.86 + 0.85) / 2), "halfway, so that rounding moves no cell"


def test_exactly_one_error_in_ten_is_allowed() -> None:
    assert _risk_rule(_ranked([True] * 9 + [False])) == 0.0
    assert _risk_rule(_ranked([True] * 8 + [False])) == pytest.approx((0.92 + 0.91) / 2)


def test_errors_are_counted_with_every_subject_weighing_the_same() -> None:
    """Half the cells are one subject's, and wrong: an error in eleven by subject. By cell it would be one in two."""
    people = [f"s{i}" for i in range(10)]
    assert _risk_rule(_ranked([True] * 10 + [False] * 10, [*people, *["many"] * 10])) == 0.0
    # Of nineteen cells one is wrong, but of two people it is one.
    assert _risk_rule(_ranked([True] * 18 + [False], ["many"] * 18 + ["one"])) == pytest.approx((0.82 + 0.81) / 2)


def test_where_a_subject_is_unknown_every_cell_weighs_the_same() -> None:
    cells = [True] * 18 + [False]
    assert _risk_rule(_ranked(cells, ["many"] * 17 + [""] * 2)) == 0.0


def test_cells_of_equal_confidence_get_a_class_together_or_not_at_all() -> None:
    blast, truth = [0.9] * 10 + [0.7] * 4, [0] * 12 + [1] * 2
    predictions = _two_class(blast, truth, [f"s{i}" for i in range(14)])

    assert _risk_rule(predictions) == pytest.approx(0.8), "two of the four are right, and nothing tells which"


def test_where_no_threshold_errs_so_little_the_least_error_of_a_fifth_of_the_cells_counts() -> None:
    """The first two of 20 are right, of the first four three, and that is the best: fewer cells are chance."""
    predictions = _ranked([True, True, False, True] + [False] * 16)

    assert (predictions.probabilities.max(axis=1) >= _risk_rule(predictions)).sum() == 4


def test_a_perfect_classifier_never_abstains() -> None:
    subjects = ["a", "b", "c"] * 4 + ["H1", "H2", "H3"] * 4
    predictions = _two_class([0.6] * 6 + [0.9] * 6 + [0.1] * 6 + [0.45] * 6, [0] * 12 + [1] * 12, subjects)
    assert _risk_rule(predictions) == 0.0

    default = abstention(predictions, leave_one_subject_out(predictions), bootstrap_subjects(predictions, samples=50))[
        "default"
    ]

    assert default["threshold"] == 0.0
    assert (default["coverage"], default["risk"]) == (1.0, 0.0)
    assert (default["coverage_by_subject"], default["risk_by_subject"]) == (1.0, 0.0)


def test_the_default_threshold_errs_as_often_as_it_may_and_no_more(predictions: CellPredictions) -> None:
    found = abstention(predictions, leave_one_subject_out(predictions), bootstrap_subjects(predictions, samples=200))
    default = found["default"]
    shipped = calibrated(predictions, fit_temperature(predictions))
    answered = shipped.probabilities.max(axis=1) >= default["threshold"]
    wrong = (predictions.predicted != predictions.references)[answered]

    assert default["target_risk"] == TARGET_RISK == 0.1
    assert predictions.subject_weights is not None
    fitted = np.average(wrong, weights=predictions.subject_weights[answered])
    assert 0.098 < fitted <= 0.1, "where it was fitted"
    assert default["risk_by_subject"] == pytest.approx(0.1, abs=0.01), "where it was not"
    assert default["risk"] < (predictions.predicted != predictions.references).mean() - 0.03
    assert 0.5 < default["coverage"] < 0.9
    cells = np.bincount(predictions.references)
    by_class = [default["per_class"][name]["coverage"] for name in predictions.label_names]
    assert np.average(by_class, weights=cells) == pytest.approx(default["coverage"])
    for name, interval in default["intervals"].items():
        assert interval["low"] < default[name] < interval["high"]


def test_coverage_and_risk_by_subject_are_those_worked_out_by_hand() -> None:
    """Sure and right but for one cell of H1; every threshold fitted without a subject keeps all its cells."""
    subjects = ["a"] * 9 + ["b", "c"] + ["H1"] * 4 + ["H2"] * 2 + ["H3"]
    predictions = _two_class([0.9] * 12 + [0.1] * 6, [0] * 11 + [1] * 7, subjects)

    default = abstention(predictions, leave_one_subject_out(predictions), bootstrap_subjects(predictions, samples=50))[
        "default"
    ]

    assert (default["coverage"], default["risk"]) == (1.0, pytest.approx(1 / 18))
    assert (default["coverage_by_subject"], default["risk_by_subject"]) == (1.0, pytest.approx(1 / 4 / 6))


def test_the_block_says_what_it_rests_on_and_holds_plain_numbers(predictions: CellPredictions) -> None:
    block = decision_block(predictions, "HEM")

    assert block["estimates"] == "recipe (cross-validated)"
    assert block["fitted_on"] == {"cells": 3000, "subjects": {"ALL": 12, "HEM": 12}}
    assert block["operating_points"]["positive_label"] == "HEM"
    assert json.loads(json.dumps(block, allow_nan=False)) == block
