"""The threshold on calibrated probabilities below which a release gives no class.

It is fitted on all out-of-fold predictions. Its performance is measured differently: the cells of each subject get the
temperature and the threshold fitted on all other subjects, and intervals resample subjects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_subjects
from leukoscope.evaluation.calibration import OUT_OF_FOLD, calibrated, cross_fitted, shipped_temperature, who_fitted
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.metrics import Decisions

TARGET_RISK = 0.10
"""Share of the given classes that may be wrong at the default threshold, cells weighing by `fit_weights`."""
LEAST_COVERAGE = 0.20
"""Of the cells at least; the error rate of fewer is chance."""


def decision_block(
    predictions: CellPredictions, held_out: Mapping[str, float], *, estimates: str = OUT_OF_FOLD, unit: str = "subject"
) -> Decisions:
    """Make the "decisions" block of metrics.json; thresholds apply to the probabilities of the calibrated release.

    Args:
        predictions: out-of-fold, subject-disjoint and not yet calibrated.
        held_out, estimates, unit: as for `calibration_block`.
    """
    boot = bootstrap_subjects(predictions)
    if shipped_temperature(predictions, held_out) == 1:
        # The release is not scaled, so no subject's cells are scaled either.
        held_out = dict.fromkeys(held_out, 1.0)
    block = {
        "estimates": estimates,
        "fitted_on": who_fitted(predictions),
        "judged_on": f"each {unit} with the temperature and thresholds fitted on all other {unit}s",
        "abstention": abstention(predictions, held_out, boot),
    }
    return Decisions.model_validate(block)


def abstention(predictions: CellPredictions, held_out: Mapping[str, float], boot: BootstrapSamples) -> dict[str, Any]:
    """Measure selective prediction (El-Yaniv & Wiener 2010) and fit a default threshold.

    No class is given where the largest calibrated probability lies below the threshold: the lowest one at which no
    more than `TARGET_RISK` of the given classes are wrong.

    Returns:
        `default`: target_risk, threshold, and cross-fitted coverage (share of cells that get a class)
        and risk (share of these that is wrong), over cells and `…_by_subject`, overall and by class, with intervals.
        Overall `…_by_subject` weighs cells by `fit_weights`.
    """
    shipped = calibrated(predictions, shipped_temperature(predictions, held_out))
    scaled = cross_fitted(predictions, held_out)
    subjects = np.asarray(predictions.subjects)
    own = np.zeros(len(subjects))
    for subject, temperature in held_out.items():
        others = predictions.take(np.flatnonzero(subjects != subject))
        own[subjects == subject] = _risk_rule(calibrated(others, temperature))
    even = predictions.fit_weights
    is_decided = scaled.probabilities.max(axis=1) >= own
    wrong = scaled.predicted != scaled.references

    def selective(cells: np.ndarray, of_class: int | None = None) -> dict[str, Any]:
        shares: dict[str, Any] = {}
        intervals = {}
        for suffix, weights in (("", cells.astype(float)), ("_by_subject", cells * even)):
            shares[f"coverage{suffix}"] = float(np.average(is_decided, weights=weights))
            shares[f"risk{suffix}"] = None
            if (is_decided & cells).any():
                shares[f"risk{suffix}"] = float(np.average(wrong, weights=is_decided * weights))
            intervals[f"coverage{suffix}"] = boot.mean_interval(is_decided, weights, of_class=of_class)
            intervals[f"risk{suffix}"] = boot.mean_interval(wrong, is_decided * weights, of_class=of_class)
        return {**shares, "intervals": intervals}

    default = selective(np.ones_like(is_decided))
    default["per_class"] = {
        name: selective(predictions.references == k, k) for k, name in enumerate(predictions.label_names)
    }
    return {"default": {"target_risk": TARGET_RISK, "threshold": _risk_rule(shipped), **default}}


def _risk_rule(predictions: CellPredictions) -> float:
    """The threshold of the largest coverage whose error rate is at most the target; where none is, of the lowest rate.

    Cells weigh by `fit_weights`.
    """
    confidence = predictions.probabilities.max(axis=1)
    wrong = predictions.predicted != predictions.references
    weights = predictions.fit_weights
    order = np.argsort(-confidence, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    covered = np.cumsum(weights[order])[last_of_tie]
    risk = np.cumsum((weights * wrong)[order])[last_of_tie] / covered
    enough = covered >= LEAST_COVERAGE * weights.sum() - 1e-9
    allowed = np.flatnonzero(enough & (risk <= TARGET_RISK + 1e-9))
    if len(allowed):
        at = allowed[-1]
    else:
        at = np.flatnonzero(enough)[risk[enough].argmin()]
    if at == len(last_of_tie) - 1:
        return 0.0  # every cell gets a class
    ranked = confidence[order][last_of_tie]
    # Halfway to the next confidence below, so that rounding moves no cell to the other side.
    return float((ranked[at] + ranked[at + 1]) / 2)
