"""Whether a probability means what it says: temperature scaling, and how far scores are from the truth.

Fitted and judged on out-of-fold answers, each from a network that never saw the subject. Judging a temperature on the
cells that fitted it would flatter it, so here each subject's cells are judged with the temperature of all the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.draws import Draws, Interval, subject_draws
from leukoscope.evaluation.metrics import CellPredictions

OUT_OF_FOLD = "recipe (cross-validated)"
"""What figures from out-of-fold answers stand for: the recipe's networks, not one set of weights."""
ECE_BINS = 15
"""As Guo et al. 2017 and most who compare with them."""
TEMPERATURE_BOUNDS = (0.1, 10.0)
"""Cells that are all answered right ask for a temperature of 0: certainty that no finite number of cells supports."""
SUBJECTS_NEEDED = 3
"""Of each class: leaving one out must leave two, or a threshold would rest on a single person."""
HISTOGRAM_BINS = 20

Rule: TypeAlias = Callable[[CellPredictions], Any]
"""Fits thresholds: calibrated predictions of M cells → one number, or (K,)."""


@dataclass(frozen=True)
class LeftOut:
    """One subject, and what all the others say about how to calibrate it.

    Attributes:
        subject: its id.
        rows: (N,) bool, the subject's cells.
        temperature: fitted on the cells of every other subject.
    """

    subject: str
    rows: np.ndarray
    temperature: float


def scaled(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """softmax(log p / T): temperature scaling (Guo et al. 2017), with log-probabilities in the place of logits.

    Args:
        probabilities: (N, K), rows sum to 1.
        temperature: one for all, or (N, 1).

    Returns:
        (N, K) float64, rows sum to 1.
    """
    from scipy.special import softmax

    return softmax(_logits(probabilities) / temperature, axis=1)


def fit_temperature(answers: CellPredictions) -> float:
    """The temperature under which the true classes are most likely (Guo et al. 2017), within `TEMPERATURE_BOUNDS`.

    Every subject weighs the same: who brings many cells must not decide how sure a release is of everybody else's.
    """
    weights = answers.subject_weights
    return _fit(_logits(answers.probabilities), answers.references, weights)


def shipped_temperature(answers: CellPredictions, left_out: tuple[LeftOut, ...]) -> float:
    """The temperature to fold into a release: the fitted one where it helps on unseen subjects, else 1.

    It helps where the likelihood of the true classes, each subject scaled with the temperature that the others fitted
    and all subjects weighing the same, is higher than without scaling.
    """
    weights = answers.subject_weights
    before, after = (
        float(np.average(_cell_scores(some)["nll"], weights=weights))
        # Both through the same softmax: rounding must not decide.
        for some in (calibrated(answers, 1.0), cross_fitted(answers, left_out))
    )
    return fit_temperature(answers) if after < before else 1.0


def calibrated(answers: CellPredictions, temperature: float) -> CellPredictions:
    """The same answers with scaled probabilities."""
    return replace(answers, probabilities=scaled(answers.probabilities, temperature))


def leave_one_subject_out(answers: CellPredictions) -> tuple[LeftOut, ...]:
    """Each subject with the temperature fitted on all others, in order of their ids.

    The others' answers may come from networks that trained on the subject, as in all cross-conformal prediction (Vovk
    2015, doi:10.1007/s10472-013-9368-4): the one way in which it still touches what is fitted for it.

    Raises:
        LeukoscopeError: subjects unknown, or fewer than `SUBJECTS_NEEDED` of a class.
    """
    _require_subjects(answers)
    subjects, weights = np.asarray(answers.subjects), answers.subject_weights
    assert weights is not None, "every subject is known"
    logits, references = _logits(answers.probabilities), answers.references
    rows_of = {str(subject): subjects == subject for subject in np.unique(subjects)}
    return tuple(
        LeftOut(subject, rows, _fit(logits[~rows], references[~rows], weights[~rows]))
        for subject, rows in rows_of.items()
    )


def cross_fitted(answers: CellPredictions, left_out: tuple[LeftOut, ...]) -> CellPredictions:
    """The same answers, each subject's scaled with the temperature that the other subjects fitted."""
    temperatures = np.ones((len(answers.cell_ids), 1))
    for one in left_out:
        temperatures[one.rows] = one.temperature
    return replace(answers, probabilities=scaled(answers.probabilities, temperatures))


def own_thresholds(answers: CellPredictions, left_out: tuple[LeftOut, ...], rule: Rule) -> np.ndarray:
    """The threshold each cell meets: fitted, like the temperature before it, on all subjects but its own.

    Returns:
        (N,), or (N, K) for a rule that fits one for each class.
    """
    fitted = [rule(calibrated(answers.take(np.flatnonzero(~one.rows)), one.temperature)) for one in left_out]
    thresholds = np.zeros((len(answers.cell_ids), *np.shape(fitted[0])))
    for one, threshold in zip(left_out, fitted, strict=True):
        thresholds[one.rows] = threshold
    return thresholds


def calibration_block(
    answers: CellPredictions, *, estimates: str = OUT_OF_FOLD, unit: str = "subject"
) -> dict[str, Any]:
    """The "calibration" block of metrics.json: the temperature to ship, and what scaling is worth on new subjects.

    Args:
        answers: out-of-fold and subject-disjoint, as the networks gave them. Where a data set names no subjects, put
            its blocks of one slide in their place.
        estimates: what the answers stand for.
        unit: what the answers' subjects are: "subject", or "block" where blocks stand in their place.

    Returns:
        temperature (1 where scaling does not make unseen subjects' classes likelier), fitted_temperature,
        temperature_range over leaving each subject out, method, fitted_on, estimates; `before` and `after`
        (cross-fitted) with the figures of `calibration_figures`; `reliability` and `histogram` of each.

    Raises:
        LeukoscopeError: as `leave_one_subject_out`.
    """
    left_out, draws = leave_one_subject_out(answers), subject_draws(answers)
    after = cross_fitted(answers, left_out)
    each = [one.temperature for one in left_out]
    return {
        "temperature": shipped_temperature(answers, left_out),
        "fitted_temperature": fit_temperature(answers),
        "temperature_range": {"low": min(each), "high": max(each)},
        "method": "temperature scaling (Guo et al. 2017) of out-of-fold log-probabilities, subjects weighing evenly",
        "fitted_on": who_fitted(answers),
        "judged_on": f"each {unit} with the temperature fitted on all other {unit}s",
        "estimates": estimates,
        "before": calibration_figures(answers, draws),
        "after": calibration_figures(after, draws),
        "reliability": {"before": reliability_bins(answers, draws), "after": reliability_bins(after, draws)},
        "histogram": _histogram(before=answers, after=after),
    }


def who_fitted(answers: CellPredictions) -> dict[str, Any]:
    """How many cells, and how many subjects of each class, a temperature or threshold rests on."""
    pairs = set(zip(answers.subjects, answers.references.tolist(), strict=True))
    counts = np.bincount([reference for _, reference in pairs], minlength=len(answers.label_names))
    return {
        "cells": len(answers.cell_ids),
        "subjects": dict(zip(answers.label_names, counts.tolist(), strict=True)),
    }


def right_by_subject(answers: CellPredictions, right: np.ndarray) -> dict[str, dict[str, float]]:
    """By class, the lowest, median and highest share of right cells that one subject of the class gets."""
    subjects = np.asarray(answers.subjects)
    found = {}
    for k, name in enumerate(answers.label_names):
        mine = answers.references == k
        shares = [right[mine & (subjects == one)].mean() for one in np.unique(subjects[mine])]
        found[name] = {
            "lowest": float(min(shares)),
            "median": float(np.median(shares)),
            "highest": float(max(shares)),
        }
    return found


def calibration_figures(answers: CellPredictions, draws: Draws) -> dict[str, Any]:
    """How far probabilities are from what came true.

    Returns:
        ece: Σ_b n_b/N · |accuracy_b - confidence_b| over 15 bins of equally many cells (Naeini et al. 2015; equal
            mass: Nixon et al. 2019), of the most probable class, 0–1. Noise alone makes it larger than 0.
        overconfidence: mean confidence minus accuracy, -1–1; positive claims too much.
        brier: mean of Σ_k (p_k - y_k)² / 2, 0–1; for two classes (p - y)² (Brier 1950, halved).
        nll: mean -log p of the true class, in nats.
        ece_by_subject, …, nll_by_subject: the same with every subject weighing the same; where subjects are known.
        intervals: 95 %, by resampling subjects within class; what was fitted stays as it is.
    """
    found: dict[str, Any] = {}
    intervals: dict[str, Interval] = {}
    each, bins = _cell_scores(answers), _in_bins(answers)
    for suffix, weights in (("", np.ones(len(bins))), ("_by_subject", answers.subject_weights)):
        if weights is None:
            continue
        per_bin = bins * (each["overconfidence"] * weights)[:, None]
        gaps, total = per_bin.sum(axis=0) / weights.sum(), draws.sums(weights)
        found |= {f"ece{suffix}": float(np.abs(gaps).sum())}
        found |= {f"{name}{suffix}": float(np.average(scores, weights=weights)) for name, scores in each.items()}
        intervals |= {f"ece{suffix}": _ece_interval(gaps, draws.sums(per_bin) / total[:, None], draws)}
        intervals |= {
            f"{name}{suffix}": draws.interval(draws.sums(scores * weights) / total) for name, scores in each.items()
        }
    return {**found, "intervals": intervals}


def reliability_bins(answers: CellPredictions, draws: Draws) -> list[dict[str, Any]]:
    """The points of a reliability diagram: the bins of the ECE, in order of confidence.

    Returns:
        confidence and accuracy (means, 0–1), cells, and accuracy's 95 % interval by resampling subjects.
    """
    bins, right = _in_bins(answers), answers.predictions == answers.references
    confidence, cells = answers.probabilities.max(axis=1), bins.sum(axis=0)
    with np.errstate(invalid="ignore"):  # a draw may hold no cell of a bin
        accuracy_draws = draws.sums(bins * right[:, None]) / draws.sums(bins)
    return [
        {
            "confidence": float(confidence @ bins[:, b] / cells[b]),
            "accuracy": float(right @ bins[:, b] / cells[b]),
            "cells": int(cells[b]),
            "interval": draws.interval(accuracy_draws[:, b]),
        }
        for b in range(len(cells))
    ]


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # Half precision may have rounded a probability to 0.
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _fit(logits: np.ndarray, references: np.ndarray, weights: np.ndarray | None) -> float:
    from scipy.optimize import minimize_scalar

    # With the largest logit at 0, no temperature makes the exponential overflow.
    below = logits - logits.max(axis=1, keepdims=True)
    true = np.average(below[np.arange(len(below)), references], weights=weights)

    def nll(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        log_sums = np.log(np.exp(below * sharpness).sum(axis=1))
        return float(np.average(log_sums, weights=weights) - true * sharpness)

    best = minimize_scalar(nll, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(best.x))


def _require_subjects(answers: CellPredictions) -> None:
    if "" in answers.subjects:
        unknown = answers.cell_ids[answers.subjects.index("")]
        raise LeukoscopeError(
            f"cell {unknown}: its subject is not known; calibration and thresholds are judged on unseen subjects and "
            "need a subject id for every cell"
        )
    found = who_fitted(answers)["subjects"]
    for label, count in found.items():
        if count < SUBJECTS_NEEDED:
            raise LeukoscopeError(
                f"class {label}: {count} subject(s) have it; calibration and thresholds need {SUBJECTS_NEEDED} or more "
                "subjects of each class"
            )


def _cell_scores(answers: CellPredictions) -> dict[str, np.ndarray]:
    """(N,) each: the figures that are means over cells."""
    rows, truth = np.arange(len(answers.references)), answers.references
    right = answers.predictions == truth
    return {
        "overconfidence": answers.probabilities.max(axis=1) - right,
        "brier": ((answers.probabilities - np.eye(answers.probabilities.shape[1])[truth]) ** 2).sum(axis=1) / 2,
        "nll": -_logits(answers.probabilities)[rows, truth],
    }


def _in_bins(answers: CellPredictions) -> np.ndarray:
    """(N, B) 0 or 1, in which bin of confidence a cell lies; equal confidences share a bin, so bins may be fewer."""
    confidence = answers.probabilities.max(axis=1)
    edges = np.quantile(confidence, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    _, bins = np.unique(np.searchsorted(edges, confidence, side="right"), return_inverse=True)
    return np.eye(bins.max() + 1)[bins]


def _ece_interval(gaps: np.ndarray, drawn: np.ndarray, draws: Draws) -> Interval:
    """The interval of Σ_b |gap_b|, from the (B,) gaps found and the (D, B) drawn ones.

    A sum of absolute values grows with noise and each draw adds some, so its percentiles miss a truth near 0. They
    serve above. Below serves the triangle inequality: the ECE errs by no more than Σ_b |error of gap_b|, which the
    draws' distance from what was found imitates. Together that is wider than 95 % needs, but never flattering.
    """
    noise = draws.interval(np.abs(drawn - gaps).sum(axis=1))["high"]
    return {
        "low": max(0.0, float(np.abs(gaps).sum()) - noise),
        "high": draws.interval(np.abs(drawn).sum(axis=1))["high"],
    }


def _histogram(**answers: CellPredictions) -> dict[str, list[float]]:
    """How many cells have which confidence, `edges` from 1 / classes to 1."""
    classes = len(next(iter(answers.values())).label_names)
    edges = np.linspace(1 / classes, 1, HISTOGRAM_BINS + 1)
    # A softmax sums to 1 only to rounding: no cell may fall off an end.
    counts = {
        name: np.histogram(some.probabilities.max(axis=1).clip(edges[0], 1), edges)[0] for name, some in answers.items()
    }
    return {"edges": edges.tolist(), **{name: count.tolist() for name, count in counts.items()}}
