"""From calibrated probabilities to decisions: operating points, and when to say "not sure".

Every threshold to ship is fitted on all out-of-fold answers. What it is worth is measured differently: each subject's
cells meet the temperature and the threshold that all other subjects fitted, and intervals draw subjects anew. A cell
weighs a cell throughout, so subjects with many cells count for more; what single subjects get stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.calibration import (
    OUT_OF_FOLD,
    LeftOut,
    Rule,
    calibrated,
    cross_fitted,
    fit_temperature,
    leave_one_subject_out,
    own_thresholds,
    right_by_subject,
    who_fitted,
)
from leukoscope.evaluation.conformal import prediction_sets
from leukoscope.evaluation.draws import Draws, Interval, subject_draws
from leukoscope.evaluation.metrics import CellPredictions

TARGET_RATE = 0.95
"""Of the operating points named after a sensitivity or specificity."""
DEFAULT_COVERAGE = 0.80
"""Share of cells that get an answer at the default threshold."""
CURVE_POINTS = 50


def decision_block(
    answers: CellPredictions, positive_label: str, *, estimates: str = OUT_OF_FOLD, unit: str = "subject"
) -> dict[str, Any]:
    """The "decisions" block of metrics.json; thresholds stand on the scale of the calibrated release.

    Args:
        answers: out-of-fold, subject-disjoint and not yet calibrated.
        positive_label: the class that operating points look for; of no meaning for more than two classes.
        estimates, unit: as for `calibration_block`.

    Returns:
        operating_points, abstention and prediction_sets, with what they were fitted on and judged on.

    Raises:
        LeukoscopeError: no such label; or as `leave_one_subject_out`.
    """
    left_out, draws = leave_one_subject_out(answers), subject_draws(answers)
    return {
        "estimates": estimates,
        "fitted_on": who_fitted(answers),
        "judged_on": f"each {unit} with the temperature and thresholds fitted on all other {unit}s",
        "operating_points": operating_points(answers, positive_label, left_out, draws),
        "abstention": abstention(answers, left_out, draws),
        "prediction_sets": prediction_sets(answers, left_out, draws),
    }


# Operating points


def operating_points(
    answers: CellPredictions, positive_label: str, left_out: tuple[LeftOut, ...], draws: Draws
) -> dict[str, Any]:
    """Thresholds on the probability of the positive class: 95 % sensitivity, 95 % specificity, and Youden's (1950).

    Returns:
        {} for more than two classes, where no single threshold decides. Else `positive_label` and for each of
        `points`: threshold (positive from there up), threshold_range over leaving each subject out, rests_on (the
        subjects of the class whose tail sets it: few people, hence the wide intervals), fitted (performance on the
        cells that fitted it) and cross_fitted, with intervals and by subject.

    Raises:
        LeukoscopeError: `positive_label` is neither class.
    """
    if len(answers.label_names) != 2:
        return {}
    if positive_label not in answers.label_names:
        raise LeukoscopeError(
            f"positive label {positive_label!r}: not a class of these answers; give one of "
            f"{', '.join(answers.label_names)}"
        )
    positive = answers.label_names.index(positive_label)
    negative_label = answers.label_names[1 - positive]
    rules = {
        "sensitivity_95": (_sensitivity_rule, [positive_label]),
        "specificity_95": (_specificity_rule, [negative_label]),
        "youden": (_youden_rule, [positive_label, negative_label]),
    }
    return {
        "positive_label": positive_label,
        "points": {
            name: _operating_point(answers, positive, _on_scores_of(positive, choose), left_out, draws)
            | {"rests_on": {label: who_fitted(answers)["subjects"][label] for label in labels}}
            for name, (choose, labels) in rules.items()
        },
    }


def _operating_point(
    answers: CellPredictions, positive: int, rule: Rule, left_out: tuple[LeftOut, ...], draws: Draws
) -> dict[str, Any]:
    shipped = calibrated(answers, fit_temperature(answers))
    threshold = rule(shipped.probabilities, answers.references)
    own = own_thresholds(answers, left_out, rule)
    truth = answers.references == positive
    called = cross_fitted(answers, left_out).probabilities[:, positive] >= own
    fitted = _rates(_outcomes(truth, shipped.probabilities[:, positive] >= threshold).sum(axis=0))
    return {
        "threshold": float(threshold),
        "threshold_range": {"low": float(own.min()), "high": float(own.max())},
        "fitted": {name: _number(rate) for name, rate in fitted.items()},
        "cross_fitted": _performance(truth, called, positive, draws)
        | {"subjects": right_by_subject(answers, called == truth)},
    }


def _on_scores_of(positive: int, choose: Callable[[np.ndarray, np.ndarray], int]) -> Rule:
    """A rule from how to choose among the points of a ROC curve, given their sensitivities and specificities."""

    def rule(probabilities: np.ndarray, references: np.ndarray) -> float:
        from sklearn.metrics import roc_curve

        scores = probabilities[:, positive]
        false_positives, sensitivity, cuts = roc_curve(references == positive, scores, drop_intermediate=False)
        at = choose(sensitivity, 1 - false_positives)
        # Halfway to the next score below, so that rounding moves no cell to the other side.
        below = cuts[at + 1] if at + 1 < len(cuts) else 0.0
        return float((min(cuts[at], 1.0) + below) / 2)

    return rule


def _sensitivity_rule(sensitivity: np.ndarray, specificity: np.ndarray) -> int:
    return int(np.flatnonzero(sensitivity >= TARGET_RATE)[0])


def _specificity_rule(sensitivity: np.ndarray, specificity: np.ndarray) -> int:
    return int(np.flatnonzero(specificity >= TARGET_RATE)[-1])


def _youden_rule(sensitivity: np.ndarray, specificity: np.ndarray) -> int:
    return int((sensitivity + specificity).argmax())


def _outcomes(truth: np.ndarray, called: np.ndarray) -> np.ndarray:
    """(N, 4) 0 or 1: true positive, false negative, false positive, true negative."""
    return np.stack([truth & called, truth & ~called, ~truth & called, ~truth & ~called], axis=1).astype(float)


def _rates(outcomes: np.ndarray) -> dict[str, np.ndarray]:
    """(..., 4) counts of `_outcomes` → (...,) each; NaN where nothing was called so. PPV and NPV at this prevalence."""
    tp, fn, fp, tn = np.moveaxis(np.asarray(outcomes, dtype=float), -1, 0)
    with np.errstate(invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
        }


def _performance(truth: np.ndarray, called: np.ndarray, positive: int, draws: Draws) -> dict[str, Any]:
    outcomes = _outcomes(truth, called)
    drawn, alone = _rates(draws.sums(outcomes)), {"sensitivity": positive, "specificity": 1 - positive}
    return {
        **{name: _number(rate) for name, rate in _rates(outcomes.sum(axis=0)).items()},
        "prevalence": float(truth.mean()),
        "intervals": {name: _interval(draws, values, alone.get(name)) for name, values in drawn.items()},
    }


# Abstention


def abstention(answers: CellPredictions, left_out: tuple[LeftOut, ...], draws: Draws) -> dict[str, Any]:
    """Answering only where sure (El-Yaniv & Wiener 2010): what is gained, and a default threshold.

    "Not sure" is said where the largest calibrated probability lies below the threshold.

    Returns:
        `default`: target_coverage, threshold, threshold_range, and cross-fitted coverage (share of cells answered) and
        risk (share of answers that are wrong), overall and by class, with intervals. `curve`: risk at 50 coverages.
        `aurc`: area under it (Geifman & El-Yaniv 2017), 0–1, small is good; `risk_at_full_coverage` is the error
        rate without abstaining.
    """
    shipped, held_out = calibrated(answers, fit_temperature(answers)), cross_fitted(answers, left_out)
    own = own_thresholds(answers, left_out, _coverage_rule)
    answered = held_out.probabilities.max(axis=1) >= own
    return {
        "default": {
            "target_coverage": DEFAULT_COVERAGE,
            "threshold": _coverage_rule(shipped.probabilities, answers.references),
            "threshold_range": {"low": float(own.min()), "high": float(own.max())},
            **_selective(held_out, answered, draws),
        },
        # Ranking fits nothing: a temperature of their own would only shuffle subjects against each other.
        **risk_coverage(shipped, draws),
    }


def _coverage_rule(probabilities: np.ndarray, references: np.ndarray) -> float:
    return float(np.quantile(probabilities.max(axis=1), 1 - DEFAULT_COVERAGE))


def _selective(answers: CellPredictions, answered: np.ndarray, draws: Draws) -> dict[str, Any]:
    wrong = answers.predictions != answers.references

    def figures(cells: np.ndarray, of_class: int | None) -> dict[str, Any]:
        seen, erred = answered & cells, answered & wrong & cells
        drawn = draws.sums(np.stack([cells, seen, erred], axis=1).astype(float))
        with np.errstate(invalid="ignore"):
            intervals = {"coverage": drawn[:, 1] / drawn[:, 0], "risk": drawn[:, 2] / drawn[:, 1]}
        return {
            "coverage": float(seen.sum() / cells.sum()),
            "risk": float(erred.sum() / seen.sum()) if seen.any() else None,
            "intervals": {name: _interval(draws, values, of_class) for name, values in intervals.items()},
        }

    per_class = {name: figures(answers.references == k, k) for k, name in enumerate(answers.label_names)}
    return figures(np.ones_like(answered), None) | {"per_class": per_class}


def risk_coverage(answers: CellPredictions, draws: Draws) -> dict[str, Any]:
    """The risk–coverage curve of answers ranked by confidence; cells of equal confidence are answered together.

    Returns:
        curve (coverage, risk, and risk's interval), aurc and its interval, risk_at_full_coverage.
    """
    confidence, wrong = answers.probabilities.max(axis=1), answers.predictions != answers.references
    order = np.argsort(-confidence, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    wanted = np.linspace(1 / CURVE_POINTS, 1, CURVE_POINTS)
    chunks = [_curves(w[:, order], wrong[order], last_of_tie, wanted) for w in draws.cell_weights()]
    risks, areas = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    once, area = _curves(np.ones((1, len(order))), wrong[order], last_of_tie, wanted)
    return {
        "aurc": float(area[0]),
        "aurc_interval": draws.interval(areas),
        "risk_at_full_coverage": float(wrong.mean()),
        "curve": [
            {"coverage": float(coverage), "risk": float(once[0, i]), "interval": draws.interval(risks[:, i])}
            for i, coverage in enumerate(wanted)
        ],
    }


def _curves(
    weights: np.ndarray, wrong: np.ndarray, last_of_tie: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(d, N) cell weights, most confident first → (d, C) risks at the wanted coverages, (d,) areas."""
    answered = weights.cumsum(axis=1)[:, last_of_tie]
    errors = (weights * wrong).cumsum(axis=1)[:, last_of_tie]
    risk = errors / np.maximum(answered, 1)
    total = answered[:, -1:]
    area = (risk * np.diff(answered, axis=1, prepend=0)).sum(axis=1) / total[:, 0]
    at = [np.searchsorted(row, wanted * row[-1] * (1 - 1e-12)) for row in answered]
    return np.take_along_axis(risk, np.stack(at), axis=1), area


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(draws: Draws, values: np.ndarray, of_class: int | None) -> Interval | None:
    return None if np.isnan(values).all() else draws.interval(values, of_class=of_class)
