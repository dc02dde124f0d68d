"""Thresholds reach their target where they were fitted, and are measured on subjects that fitted none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from leukoscope.evaluation.bootstrap import bootstrap_subjects
from leukoscope.evaluation.calibration import calibrated, fit_temperature, leave_one_subject_out
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.thresholds import TARGET_RISK, _risk_rule, abstention, decision_block
from predicted import two_class

Maker = Callable[..., CellPredictions]


@pytest.fixture(scope="module")
def predictions(calibrated_cells: Maker) -> CellPredictions:
    return calibrated_cells(3000, subjects=12, too_sharp=2.0)


def _ranked(right: list[bool], subjects: list[str] | None = None) -> CellPredictions:
    """Cells of confidence .99, .98, …: whether each is right, and whose it is (a subject each where not given).

    A third class, of which there is no cell, keeps classes from being weighed evenly.
    """
    confidence = 0.99 - 0.01 * np.arange(len(right))
    two = two_class(
        [0 if one else 1 for one in right], confidence.tolist(), subjects or [f"s{i}" for i in range(len(right))]
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
    assert _risk_rule(_ranked([True] * 9 + [False])) == 0.0, "one in ten is allowed"
    assert _risk_rule(_ranked([True] * 8 + [False])) == pytest.approx((0.92 + 0.91) / 2)


def test_errors_are_counted_with_every_subject_weighing_the_same() -> None:
    """Half the cells are one subject's, and wrong: an error in eleven by subject. By cell it would be one in two."""
    people = [f"s{i}" for i in range(10)]
    assert _risk_rule(_ranked([True] * 10 + [False] * 10, [*people, *["many"] * 10])) == 0.0
    # Of nineteen cells one is wrong, but of two people it is one.
    assert _risk_rule(_ranked([True] * 18 + [False], ["many"] * 18 + ["one"])) == pytest.approx((0.82 + 0.81) / 2)
    # Where a subject is unknown, every cell weighs the same.
    assert _risk_rule(_ranked([True] * 18 + [False], ["many"] * 17 + [""] * 2)) == 0.0


def test_cells_of_equal_confidence_get_a_class_together_or_not_at_all() -> None:
    blast, truth = [0.9] * 10 + [0.7] * 4, [0] * 12 + [1] * 2
    predictions = two_class(truth, blast, [f"s{i}" for i in range(14)])

    assert _risk_rule(predictions) == pytest.approx(0.8), "two of the four are right, and nothing tells which"


def test_where_no_threshold_errs_so_little_the_least_error_of_a_fifth_of_the_cells_counts() -> None:
    """The first two of 20 are right, of the first four three, and that is the best: fewer cells are chance."""
    predictions = _ranked([True, True, False, True] + [False] * 16)

    assert (predictions.probabilities.max(axis=1) >= _risk_rule(predictions)).sum() == 4


def test_the_default_threshold_errs_as_often_as_it_may_and_no_more(predictions: CellPredictions) -> None:
    left_out, boot = leave_one_subject_out(predictions), bootstrap_subjects(predictions, samples=200)
    default = abstention(predictions, left_out, boot)["default"]
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
    flat = dict.fromkeys(left_out, 30.0)
    judged = abstention(predictions, flat, boot)["default"]["coverage"]
    assert judged == pytest.approx(default["coverage"], abs=0.01), "cells and threshold have the others' temperature"


def test_coverage_and_risk_by_subject_are_those_worked_out_by_hand() -> None:
    """Sure and right but for one cell of H1; every threshold fitted without a subject keeps all its cells."""
    subjects = ["a"] * 9 + ["b", "c"] + ["H1"] * 4 + ["H2"] * 2 + ["H3"]
    predictions = two_class([0] * 11 + [1] * 7, [0.9] * 12 + [0.1] * 6, subjects)

    default = abstention(predictions, leave_one_subject_out(predictions), bootstrap_subjects(predictions, samples=50))[
        "default"
    ]

    assert (default["coverage"], default["risk"]) == (1.0, pytest.approx(1 / 18))
    assert (default["coverage_by_subject"], default["risk_by_subject"]) == (1.0, pytest.approx(1 / 4 / 6))


def test_the_block_says_what_it_rests_on_and_holds_plain_numbers(
    predictions: CellPredictions, calibrated_cells: Maker
) -> None:
    block = decision_block(predictions, leave_one_subject_out(predictions)).content()

    assert block["estimates"] == "recipe (cross-validated)"
    assert block["fitted_on"] == {"cells": 3000, "subjects": {"ALL": 12, "HEM": 12}}
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    three = calibrated_cells(600, classes=3, subjects=4)
    blocks = decision_block(three, leave_one_subject_out(three), unit="block").content()
    assert blocks["judged_on"] == "each block with the temperature and thresholds fitted on all other blocks"
    assert set(blocks["abstention"]["default"]["per_class"]) == {"ALL", "HEM", "OTHER"}


# What is fitted presumes that neither of two classes is more frequent


def test_a_fit_weighs_subjects_evenly_and_two_classes_evenly() -> None:
    cells = two_class([0, 0, 0, 0, 0, 1, 1], [0.5] * 7, ["a", "a", "a", "b", "c", "d", "d"])

    weights = cells.fit_weights

    assert weights[:5].sum() == pytest.approx(weights[5:].sum())
    assert weights[:3].sum() == pytest.approx(weights[3])
    assert weights.sum() == pytest.approx(4), "subjects"
