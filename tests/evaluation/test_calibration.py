"""Temperatures and calibration errors that are known beforehand, and judged only by subjects who fitted nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import bootstrap_subjects
from leukoscope.evaluation.calibration import (
    calibration_block,
    calibration_metrics,
    cross_fitted,
    fit_temperature,
    leave_one_subject_out,
    scaled,
    shipped_temperature,
    who_fitted,
)
from leukoscope.evaluation.predictions import CellPredictions, pooled

Maker = Callable[..., CellPredictions]


def _measured(predictions: CellPredictions) -> dict[str, Any]:
    return calibration_metrics(predictions, bootstrap_subjects(predictions, samples=200))


def _rows(predictions: CellPredictions, rows: np.ndarray) -> CellPredictions:
    return predictions.take(np.flatnonzero(rows))


@pytest.fixture(scope="module")
def two_bins() -> CellPredictions:
    """Ten cells claimed with .6 of which five are right, ten claimed with .9 of which eight are; always ALL.

    Each is of a subject of its own; a third class, of which there is no cell, keeps classes from being weighed evenly.
    """
    right = [True] * 5 + [False] * 5 + [True] * 8 + [False] * 2
    blast = np.repeat([0.6, 0.9], 10)
    return CellPredictions(
        tuple(f"cell-{i}" for i in range(20)),
        tuple(f"subject-{i}" for i in range(20)),
        np.where(right, 0, 1),
        np.stack([blast, 1 - blast, np.zeros(20)], axis=1),
        ("ALL", "HEM", "OTHER"),
    )


# Temperature


@pytest.mark.parametrize(("classes", "temperature"), [(2, 0.5), (2, 1.0), (3, 2.5)])
def test_the_temperature_of_synthetic_logits_is_recovered(
    calibrated_cells: Maker, classes: int, temperature: float
) -> None:
    predictions = calibrated_cells(10_000, classes=classes, too_sharp=temperature)

    assert fit_temperature(predictions) == pytest.approx(temperature, rel=0.05)


def test_every_subject_weighs_the_same_in_the_temperature(calibrated_cells: Maker) -> None:
    """Copies of one subject's cells are no news about anybody else."""
    predictions = calibrated_cells(2_000, too_sharp=2.0)
    own = predictions.take(np.flatnonzero(np.asarray(predictions.subjects) == predictions.subjects[0]))
    copies = [replace(own, cell_ids=tuple(f"{n}-{cell}" for cell in own.cell_ids)) for n in range(30)]

    assert fit_temperature(pooled([predictions, *copies])) == pytest.approx(fit_temperature(predictions), abs=1e-3)


def test_scaling_stays_one_where_it_hurts_unseen_subjects_and_is_shipped_where_it_helps(
    calibrated_cells: Maker,
) -> None:
    sharp = calibrated_cells(4_000, too_sharp=2.0)
    left_out = leave_one_subject_out(sharp)
    assert shipped_temperature(sharp, left_out) == fit_temperature(sharp)
    # Each subject scaled by what the others would never have asked for.
    worse = dict.fromkeys(left_out, 0.25)
    assert shipped_temperature(sharp, worse) == 1.0


def test_rounding_does_not_decide_where_no_subject_is_scaled(calibrated_cells: Maker) -> None:
    predictions = calibrated_cells(subjects=6)
    unscaled = dict.fromkeys(leave_one_subject_out(predictions), 1.0)
    assert shipped_temperature(predictions, unscaled) == 1.0


def test_scaling_divides_log_odds_and_keeps_the_answer() -> None:
    odds = np.array([[0.9, 0.1], [0.2, 0.8]])

    cooler = scaled(odds, 2.0)

    assert np.log(cooler[:, 0] / cooler[:, 1]) == pytest.approx(np.log(odds[:, 0] / odds[:, 1]) / 2)
    assert cooler.sum(axis=1) == pytest.approx([1, 1])
    assert scaled(odds, 1.0) == pytest.approx(odds)
    assert np.isfinite(scaled(np.array([[1.0, 0.0]], dtype=np.float32), 3.0)).all(), "rounded to zero"


def test_cells_that_are_all_right_do_not_buy_certainty(calibrated_cells: Maker) -> None:
    predictions = calibrated_cells(200)
    perfect = replace(predictions, probabilities=np.where(np.eye(2)[predictions.references], 0.8, 0.2))

    assert fit_temperature(perfect) == pytest.approx(0.1, rel=1e-3)


# Calibration error


def test_metrics_of_a_constructed_case_are_those_worked_out_by_hand(two_bins: CellPredictions) -> None:
    metrics = _measured(two_bins)

    assert metrics["ece"] == pytest.approx((0.1 * 10 + 0.1 * 10) / 20)
    assert metrics["overconfidence"] == pytest.approx(0.75 - 0.65)
    assert metrics["brier"] == pytest.approx((5 * 0.4**2 + 5 * 0.6**2 + 8 * 0.1**2 + 2 * 0.9**2) / 20)
    assert metrics["nll"] == pytest.approx(-(5 * log(0.6) + 5 * log(0.4) + 8 * log(0.9) + 2 * log(0.1)) / 20)


def test_errors_of_opposite_sign_do_not_cancel_in_ece(two_bins: CellPredictions) -> None:
    predictions = replace(two_bins, probabilities=np.repeat([[0.55, 0.45, 0], [0.75, 0.25, 0]], 10, axis=0))

    metrics = _measured(predictions)

    assert metrics["overconfidence"] == pytest.approx(0)
    assert metrics["ece"] == pytest.approx(0.05)


@pytest.mark.parametrize("claimed", [0.0, 0.08])
def test_the_interval_of_ece_holds_the_true_error(claimed: float) -> None:
    """Subjects are each off in their own way but right on average: plain percentiles would miss an error of 0."""
    rng = np.random.default_rng(0)
    intervals = [_measured(_subjects_each_off(rng, claimed))["intervals"]["ece"] for _ in range(60)]

    assert np.mean([one["low"] <= claimed + 0.002 and claimed <= one["high"] for one in intervals]) >= 0.93
    if claimed:
        assert np.mean([one["low"] > 0.0 for one in intervals]) > 0.5, "one that always includes 0 says nothing"


def _subjects_each_off(rng: np.random.Generator, claimed: float, subjects: int = 40) -> CellPredictions:
    """50 cells of each subject, whose chance to be right is the confidence less `claimed`, give or take .05."""
    confidence = rng.uniform(0.65, 0.85, (subjects, 50))
    right = rng.random((subjects, 50)) < confidence - claimed + rng.normal(0, 0.05, (subjects, 1))
    truth = np.repeat([0, 1], subjects // 2)[:, None]
    blast = np.where(right == (truth == 0), confidence, 1 - confidence).ravel()
    return CellPredictions(
        tuple(f"cell-{i}" for i in range(subjects * 50)),
        tuple(str(s) for s in np.repeat(np.arange(subjects), 50)),
        np.broadcast_to(truth, (subjects, 50)).ravel(),
        np.stack([blast, 1 - blast], axis=1),
        ("ALL", "HEM"),
    )


# Leaving a subject out


def test_a_subject_is_calibrated_by_all_others_alone(calibrated_cells: Maker) -> None:
    predictions = calibrated_cells(600, subjects=3, too_sharp=2)
    left_out = leave_one_subject_out(predictions)
    rows = np.asarray(predictions.subjects) == "HEM1"

    assert len(left_out) == 6
    assert left_out["HEM1"] == pytest.approx(fit_temperature(_rows(predictions, ~rows)), rel=1e-6)
    assert cross_fitted(predictions, left_out).probabilities[rows] == pytest.approx(
        scaled(predictions.probabilities[rows], left_out["HEM1"])
    )


def test_too_few_subjects_of_a_class_are_refused_with_their_number(calibrated_cells: Maker) -> None:
    predictions = calibrated_cells(100, subjects=3)
    two_left = _rows(predictions, np.asarray(predictions.subjects) != "HEM2")

    with pytest.raises(LeukoscopeError) as refused:
        leave_one_subject_out(two_left)

    assert str(refused.value) == (
        "class HEM: 2 subject(s) have it; calibration and thresholds need 3 or more subjects of each class"
    )


def test_a_cell_of_unknown_subject_is_refused_by_name(calibrated_cells: Maker) -> None:
    predictions = calibrated_cells(100, subjects=3)

    with pytest.raises(LeukoscopeError) as refused:
        leave_one_subject_out(
            replace(predictions, subjects=(*predictions.subjects[:50], "", *predictions.subjects[51:]))
        )

    assert str(refused.value) == (
        "cell cell-50: its subject is not known; calibration and thresholds are measured on unseen subjects: give "
        "--subject_pattern, --subject_folders, --labels or --subject_column"
    )


# The block


def test_the_block_says_what_it_rests_on_and_that_scaling_repairs_sharp_predictions_on_unseen_subjects(
    calibrated_cells: Maker,
) -> None:
    predictions = calibrated_cells(4000, too_sharp=2.5)
    left_out = leave_one_subject_out(predictions)
    block = calibration_block(predictions, left_out, estimates="these weights").content()

    assert block["estimates"] == "these weights" and block["fitted_on"] == who_fitted(predictions)
    assert block["fitted_on"] == {"cells": 4000, "subjects": {"ALL": 20, "HEM": 20}}
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert block["temperature_range"]["low"] <= block["temperature"] <= block["temperature_range"]["high"]
    assert block["before"]["ece"] > 0.1 > 0.03 > block["after"]["ece"]
    assert block["after"]["nll"] == pytest.approx(_measured(cross_fitted(predictions, left_out))["nll"], rel=1e-9)
    assert block["before"]["intervals"]["overconfidence"]["low"] > 0
    assert all(block["after"][name] < block["before"][name] for name in ("overconfidence", "brier", "nll"))
