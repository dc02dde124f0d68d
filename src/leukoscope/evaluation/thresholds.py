"""Thresholds on calibrated probabilities: operating points and abstention.

Every threshold that is released is fitted on all out-of-fold predictions. Its performance is measured differently: the
cells of each subject get the temperature and the threshold fitted on all other subjects, and intervals resample
subjects. Operating points are fitted with every subject weighing the same; their performance is given both by subject
and over cells.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_subjects
from leukoscope.evaluation.calibration import (
    OUT_OF_FOLD,
    LeftOut,
    calibrated,
    cross_fitted,
    leave_one_subject_out,
    own_thresholds,
    shipped_temperature,
    who_fitted,
)
from leukoscope.evaluation.predictions import CellPredictions

POINTS = ("sensitivity_95", "specificity_95", "youden")
TARGET_RATE = 0.95
"""Of the operating points named after a sensitivity or specificity."""
TARGET_RISK = 0.10
"""Share of the given classes that may be wrong at the default threshold, cells weighing by `fit_weights`."""
LEAST_COVERAGE = 0.20
"""Of the cells at least; the error rate of fewer is chance."""


def decision_block(
    predictions: CellPredictions,
    positive_label: str,
    *,
    estimates: str = OUT_OF_FOLD,
    unit: str = "subject",
    left_out: tuple[LeftOut, ...] = (),
) -> dict[str, Any]:
    """Make the "decisions" block of metrics.json; thresholds apply to the probabilities of the calibrated release.

    Args:
        predictions: out-of-fold, subject-disjoint and not yet calibrated.
        positive_label: the class that operating points look for; "" for none, as with more than two classes.
        estimates, unit, left_out: as for `calibration_block`.

    Raises:
        LeukoscopeError: no such label; or as `leave_one_subject_out`.
    """
    left_out, boot = left_out or leave_one_subject_out(predictions), bootstrap_subjects(predictions)
    if shipped_temperature(predictions, left_out) == 1:
        # The release is not scaled, so no subject's cells are scaled either.
        left_out = tuple(replace(one, temperature=1.0) for one in left_out)
    return {
        "estimates": estimates,
        "fitted_on": who_fitted(predictions),
        "judged_on": f"each {unit} with the temperature and thresholds fitted on all other {unit}s",
        "operating_points": operating_points(predictions, positive_label, left_out, boot),
        "abstention": abstention(predictions, left_out, boot),
    }


# Operating points


def operating_points(
    predictions: CellPredictions, positive_label: str, left_out: tuple[LeftOut, ...], boot: BootstrapSamples
) -> dict[str, Any]:
    """Fit thresholds on the positive class: 95 % sensitivity, 95 % specificity, and Youden's index (1950).

    Returns:
        {} for more than two classes, where no single threshold decides, and without a positive label. Else
        `positive_label` and for each of `points`: threshold (positive from there up), fitted (performance on the cells
        that fitted it) and cross_fitted, with intervals and by subject.

    Raises:
        LeukoscopeError: `positive_label` is neither class.
    """
    labels = predictions.label_names
    if len(labels) != 2 or not positive_label:
        return {}
    if positive_label not in labels:
        raise LeukoscopeError(
            f"positive label {positive_label!r}: not a class of these predictions; give one of {', '.join(labels)}"
        )
    positive = labels.index(positive_label)
    shipped = calibrated(predictions, shipped_temperature(predictions, left_out))
    held_out = cross_fitted(predictions, left_out).probabilities[:, positive]
    truth, weights = predictions.references == positive, predictions.subject_weights
    class_of = {"sensitivity": positive, "specificity": 1 - positive}
    rule = partial(_roc_thresholds, positive=positive)
    thresholds, all_own = rule(shipped), own_thresholds(predictions, left_out, rule)
    points = {}
    for name, threshold, own in zip(POINTS, thresholds, all_own.T, strict=True):
        called = held_out >= own
        fitted = _rates(truth, shipped.probabilities[:, positive] >= threshold, weights, boot.once())
        measured = _rates(truth, called, weights, boot.once())
        intervals = {
            key: None
            if np.isnan(values).all()
            else boot.interval(values, of_class=class_of.get(key.removesuffix("_by_subject")))
            for key, values in _rates(truth, called, weights, boot).items()
        }
        points[name] = {
            "threshold": float(threshold),
            "fitted": {key: None if np.isnan(rate) else float(rate) for key, (rate,) in fitted.items()},
            "cross_fitted": {
                **{key: None if np.isnan(rate) else float(rate) for key, (rate,) in measured.items()},
                "prevalence": float(truth.mean()),
                "intervals": intervals,
            },
        }
    return {"positive_label": positive_label, "points": points}


def _roc_thresholds(predictions: CellPredictions, positive: int) -> np.ndarray:
    """The thresholds, (3,), of 95 % sensitivity, of 95 % specificity and of Youden's index, on one ROC curve."""
    from sklearn.metrics import roc_curve

    false_positives, sensitivity, cuts = roc_curve(
        predictions.references == positive,
        predictions.probabilities[:, positive],
        drop_intermediate=False,
        sample_weight=predictions.subject_weights,
    )
    specificity = 1 - false_positives
    # Sums of weights reach a target only up to rounding, hence the 1e-9.
    at = np.array(
        [
            np.flatnonzero(sensitivity >= TARGET_RATE - 1e-9)[0],
            np.flatnonzero(specificity >= TARGET_RATE - 1e-9)[-1],
            (sensitivity + specificity).argmax(),
        ]
    )
    # Halfway to the next score below, so that rounding moves no cell to the other side.
    return (np.minimum(cuts[at], 1.0) + np.append(cuts, 0.0)[at + 1]) / 2


def _rates(
    truth: np.ndarray, called: np.ndarray, weights: np.ndarray | None, boot: BootstrapSamples
) -> dict[str, np.ndarray]:
    """The rates over cells, (D,) each, and by subject those that do not depend on the prevalence; NaN for no cells."""

    def rates(weights: np.ndarray) -> dict[str, np.ndarray]:
        sensitivity, specificity = boot.means(called, truth * weights), boot.means(~called, ~truth * weights)
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "ppv": boot.means(truth, called * weights),
            "npv": boot.means(~truth, ~called * weights),
        }

    found = rates(np.ones(len(truth)))
    if weights is not None:
        by_subject = {name: values for name, values in rates(weights).items() if name not in ("ppv", "npv")}
        found |= {f"{name}_by_subject": values for name, values in by_subject.items()}
    return found


# Abstention


def abstention(predictions: CellPredictions, left_out: tuple[LeftOut, ...], boot: BootstrapSamples) -> dict[str, Any]:
    """Measure selective prediction (El-Yaniv & Wiener 2010) and fit a default threshold.

    No class is given where the largest calibrated probability lies below the threshold: the lowest one at which no
    more than `TARGET_RISK` of the given classes are wrong.

    Returns:
        `default`: target_risk, threshold, and cross-fitted coverage (share of cells that get a class)
        and risk (share of these that is wrong), over cells and `…_by_subject`, overall and by class, with intervals.
        Overall `…_by_subject` weighs cells by `fit_weights`.
    """
    temperature = shipped_temperature(predictions, left_out)
    shipped, held_out = calibrated(predictions, temperature), cross_fitted(predictions, left_out)
    own, even = own_thresholds(predictions, left_out, _risk_rule), predictions.fit_weights
    kept = held_out.probabilities.max(axis=1) >= own
    wrong = held_out.predicted != held_out.references

    def selective(cells: np.ndarray, of_class: int | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        intervals = {}
        for suffix, weights in (("", cells.astype(float)), ("_by_subject", cells * even)):
            found[f"coverage{suffix}"] = float(np.average(kept, weights=weights))
            found[f"risk{suffix}"] = float(np.average(wrong, weights=kept * weights)) if (kept & cells).any() else None
            intervals[f"coverage{suffix}"] = boot.mean_interval(kept, weights, of_class=of_class)
            intervals[f"risk{suffix}"] = boot.mean_interval(wrong, kept * weights, of_class=of_class)
        return {**found, "intervals": intervals}

    default = selective(np.ones_like(kept))
    default["per_class"] = {
        name: selective(predictions.references == k, k) for k, name in enumerate(predictions.label_names)
    }
    return {"default": {"target_risk": TARGET_RISK, "threshold": _risk_rule(shipped), **default}}


def _risk_rule(predictions: CellPredictions) -> float:
    """The threshold of the largest coverage whose error rate is at most the target; where none is, of the lowest rate.

    Cells weigh by `fit_weights`.
    """
    confidence, wrong = predictions.probabilities.max(axis=1), predictions.predicted != predictions.references
    weights = predictions.fit_weights
    order = np.argsort(-confidence, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    covered = np.cumsum(weights[order])[last_of_tie]
    risk = np.cumsum((weights * wrong)[order])[last_of_tie] / covered
    enough = covered >= LEAST_COVERAGE * weights.sum() - 1e-9
    allowed = np.flatnonzero(enough & (risk <= TARGET_RISK + 1e-9))
    at = allowed[-1] if len(allowed) else np.flatnonzero(enough)[risk[enough].argmin()]
    if at == len(last_of_tie) - 1:
        return 0.0  # every cell gets a class
    ranked = confidence[order][last_of_tie]
    # Halfway to the next confidence below, so that rounding moves no cell to the other side.
    return float((ranked[at] + ranked[at + 1]) / 2)
