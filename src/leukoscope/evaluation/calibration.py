"""Calibration: temperature scaling, and how far probabilities are from the observed frequencies.

Fitted and measured on out-of-fold predictions. A temperature measured on the cells that fitted it would look too good,
so the cells of each subject are measured with the temperature fitted on all other subjects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from leukoscope import DataError
from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_subjects
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.metrics import Calibration

OUT_OF_FOLD = "recipe (cross-validated)"
"""What metrics of out-of-fold predictions estimate: the networks of a recipe, not one set of weights."""
ECE_BINS = 15
"""As in Guo et al. 2017 and most papers that compare with it."""
TEMPERATURE_BOUNDS = (0.1, 10.0)
"""Where all cells are correct, the likelihood has its maximum at temperature 0: certainty that no data support."""
MIN_SUBJECTS_FOR_CALIBRATION = 3
"""Of each class: leaving one out must leave two, or a threshold would depend on a single subject."""


def scaled(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Return softmax(log p / T), float64, of (N, K) probabilities p and a temperature T, one for all or (N, 1)."""
    from scipy.special import softmax

    return softmax(_logits(probabilities) / temperature, axis=1)


def fit_temperature(predictions: CellPredictions) -> float:
    """Fit the temperature under which the true classes are most likely (Guo et al. 2017), in `TEMPERATURE_BOUNDS`.

    Cells weigh by `fit_weights`: a subject with many cells does not decide the confidence for all others, and of two
    classes, both are assumed equally frequent.
    """
    from scipy.optimize import minimize_scalar

    logits = _logits(predictions.probabilities)
    weights = predictions.fit_weights
    # With the largest logit at 0, no temperature makes the exponential overflow.
    below = logits - logits.max(axis=1, keepdims=True)
    true = np.average(below[np.arange(len(below)), predictions.references], weights=weights)

    def nll(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        log_sums = np.log(np.exp(below * sharpness).sum(axis=1))
        return float(np.average(log_sums, weights=weights) - true * sharpness)

    best = minimize_scalar(nll, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(best.x))


def shipped_temperature(predictions: CellPredictions, held_out: Mapping[str, float]) -> float:
    """Return the temperature to put into a release: the fitted one where it helps on unseen subjects, else 1.

    It helps where the true classes are likelier than without scaling, each subject scaled with the temperature that the
    others fitted; cells weigh by `fit_weights`.
    """
    # Both through the same softmax, so that rounding does not decide.
    sides = (calibrated(predictions, 1.0), cross_fitted(predictions, held_out))
    before, after = (np.average(_cell_scores(side)["nll"], weights=predictions.fit_weights) for side in sides)
    return fit_temperature(predictions) if after < before else 1.0


def calibrated(predictions: CellPredictions, temperature: float) -> CellPredictions:
    """Return the same predictions with scaled probabilities."""
    return replace(predictions, probabilities=scaled(predictions.probabilities, temperature))


def too_few_subjects(subjects_of_class: Mapping[str, int], needed: int) -> str:
    """Why nothing can be fitted on so many subjects of each class; "" where it can."""
    for label, count in subjects_of_class.items():
        if count < needed:
            return (
                f"class {label}: {count} subject(s) have it; calibration and thresholds need {needed} or more subjects "
                "of each class"
            )
    return ""


def leave_one_subject_out(predictions: CellPredictions, needed: int = MIN_SUBJECTS_FOR_CALIBRATION) -> dict[str, float]:
    """Fit for each subject, in order of their ids, the temperature on all others: subject → temperature.

    As in all cross-conformal prediction (Vovk 2015, doi:10.1007/s10472-013-9368-4), the others' predictions may come
    from networks that trained on the subject.

    Raises:
        LeukoscopeError: fewer than `needed` subjects of a class, or a cell of an unknown subject.
    """
    predictions.require_subjects("calibration and thresholds are measured on unseen subjects")
    reason = too_few_subjects(predictions.subjects_of_class, needed)
    if reason:
        raise DataError(reason)
    subjects = np.asarray(predictions.subjects)
    return {
        str(subject): fit_temperature(predictions.take(np.flatnonzero(subjects != subject)))
        for subject in np.unique(subjects)
    }


def cross_fitted(predictions: CellPredictions, held_out: Mapping[str, float]) -> CellPredictions:
    """Return the same predictions, each subject's scaled with the temperature that the other subjects fitted."""
    temperatures = np.array([[held_out[subject]] for subject in predictions.subjects])
    return replace(predictions, probabilities=scaled(predictions.probabilities, temperatures))


def calibration_block(
    predictions: CellPredictions, held_out: Mapping[str, float], *, estimates: str = OUT_OF_FOLD, unit: str = "subject"
) -> Calibration:
    """Make the "calibration" block of metrics.json: the temperature to ship, and what scaling gains on new subjects.

    Args:
        predictions: out-of-fold and subject-disjoint, not yet scaled; `estimates` is what their metrics estimate.
        held_out: of `leave_one_subject_out`.
        unit: what the predictions' subjects are: "subject" or "block".

    Returns:
        temperature (1 where scaling does not make unseen subjects' classes likelier), fitted_temperature and
        temperature_range over leaving each subject out; `before` and `after` (cross-fitted) with the results of
        `calibration_metrics`.
    """
    boot = bootstrap_subjects(predictions)
    sides = {"before": predictions, "after": cross_fitted(predictions, held_out)}
    block = {
        "temperature": shipped_temperature(predictions, held_out),
        "fitted_temperature": fit_temperature(predictions),
        "temperature_range": {"low": min(held_out.values()), "high": max(held_out.values())},
        "method": "temperature scaling (Guo et al. 2017) of out-of-fold log-probabilities",
        "fitted_on": who_fitted(predictions),
        "judged_on": f"each {unit} with the temperature fitted on all other {unit}s",
        "estimates": estimates,
        **{side: calibration_metrics(some, boot) for side, some in sides.items()},
    }
    return Calibration.model_validate(block)


def who_fitted(predictions: CellPredictions) -> dict[str, Any]:
    """Count the cells, and the subjects of each class, of a fit."""
    return {"cells": len(predictions.cell_ids), "subjects": predictions.subjects_of_class}


def calibration_metrics(predictions: CellPredictions, boot: BootstrapSamples) -> dict[str, Any]:
    """Measure how far probabilities are from the observed classes, cells weighing by `fit_weights`.

    Returns:
        ece: Σ_b w_b/W · |accuracy_b - confidence_b| over 15 bins of equally many cells (Naeini et al. 2015; equal
            mass: Nixon et al. 2019), of the most probable class, 0–1. Noise alone makes it larger than 0.
        overconfidence: mean confidence minus accuracy, -1–1; positive where probabilities are too high.
        brier: mean of Σ_k (p_k - y_k)² / 2, 0–1; for two classes (p - y)² (Brier 1950, halved).
        nll: mean -log p of the true class, in nats.
        intervals: 95 %, by resampling subjects within class; what was fitted stays as it is.
    """
    scores = _cell_scores(predictions)
    bins = _confidence_bins(predictions)
    weights = predictions.fit_weights
    gap_of_cell = bins * (scores["overconfidence"] * weights)[:, None]
    gaps = gap_of_cell.sum(axis=0) / weights.sum()
    sampled = boot.sums(gap_of_cell) / boot.sums(weights)[:, None]
    # A sum of absolute values grows with noise and each bootstrap sample adds some, so its percentiles miss a true
    # value near 0 and give the upper end only. The lower end uses the triangle inequality: the ECE errs by no more
    # than Σ_b |error of gap_b|, which the distance of the samples from the estimate imitates.
    noise = boot.interval(np.abs(sampled - gaps).sum(axis=1))["high"]
    ece = float(np.abs(gaps).sum())
    of_ece = {"low": max(0.0, ece - noise), "high": boot.interval(np.abs(sampled).sum(axis=1))["high"]}
    return {
        "ece": ece,
        **{name: float(np.average(values, weights=weights)) for name, values in scores.items()},
        "intervals": {
            "ece": of_ece,
            **{name: boot.mean_interval(per_cell, weights) for name, per_cell in scores.items()},
        },
    }


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # Half precision may have rounded a probability to 0.
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _cell_scores(predictions: CellPredictions) -> dict[str, np.ndarray]:
    """The metrics that are means over cells, before averaging: (N,) each."""
    rows = np.arange(len(predictions.references))
    truth = predictions.references
    one_hot = np.eye(predictions.probabilities.shape[1])[truth]
    return {
        "overconfidence": predictions.probabilities.max(axis=1) - (predictions.predicted == truth),
        "brier": ((predictions.probabilities - one_hot) ** 2).sum(axis=1) / 2,
        "nll": -_logits(predictions.probabilities)[rows, truth],
    }


def _confidence_bins(predictions: CellPredictions) -> np.ndarray:
    """(N, B) 0 or 1, the confidence bin of each cell; equal confidences share a bin, so bins may be fewer."""
    confidence = predictions.probabilities.max(axis=1)
    edges = np.quantile(confidence, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    _, bins = np.unique(np.searchsorted(edges, confidence, side="right"), return_inverse=True)
    return np.eye(bins.max() + 1)[bins]
