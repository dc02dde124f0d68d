"""From calibrated probabilities to decisions: operating points, and when to say "not sure".

Every threshold to ship is fitted on all out-of-fold answers. What it is worth is measured differently: each subject's
cells meet the temperature and the threshold that all other subjects fitted, and intervals draw subjects anew.
Operating points are fitted with every subject weighing the same; what they reach is told so, and over cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.calibration import (
    OUT_OF_FOLD,
    LeftOut,
    Rule,
    calibrated,
    cross_fitted,
    leave_one_subject_out,
    own_thresholds,
    right_by_subject,
    shipped_temperature,
    who_fitted,
)
from leukoscope.evaluation.conformal import prediction_sets
from leukoscope.evaluation.draws import Draws, Interval, subject_draws
from leukoscope.evaluation.metrics import CellPredictions

TARGET_RATE = 0.95
"""Of the operating points named after a sensitivity or specificity."""
TARGET_RISK = 0.10
"""Share of the given classes that may be wrong at the default threshold, every subject weighing the same."""
LEAST_COVERAGE = 0.20
"""Of the cells at least; the error rate of fewer is chance."""
CURVE_POINTS = 50
_BY_SUBJECT = ("sensitivity", "specificity", "balanced_accuracy")


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
    if shipped_temperature(answers, left_out) == 1:
        # Thresholds stand on the scale of the release: where it is not scaled, nobody's cells are.
        left_out = tuple(replace(one, temperature=1.0) for one in left_out)
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
    shipped = calibrated(answers, shipped_temperature(answers, left_out))
    threshold = rule(shipped)
    own = own_thresholds(answers, left_out, rule)
    truth = answers.references == positive
    called = cross_fitted(answers, left_out).probabilities[:, positive] >= own
    outcomes = _outcomes(truth, shipped.probabilities[:, positive] >= threshold)
    return {
        "threshold": float(threshold),
        "threshold_range": {"low": float(own.min()), "high": float(own.max())},
        "fitted": _rates_both_ways(outcomes, answers.subject_weights),
        "cross_fitted": _performance(truth, called, positive, draws, answers.subject_weights)
        | {"subjects": right_by_subject(answers, called == truth)},
    }


def _on_scores_of(positive: int, choose: Callable[[np.ndarray, np.ndarray], int]) -> Rule:
    """A rule from how to choose among the points of a ROC curve, given their sensitivities and specificities."""

    def rule(answers: CellPredictions) -> float:
        from sklearn.metrics import roc_curve

        scores, truth = answers.probabilities[:, positive], answers.references == positive
        false_positives, sensitivity, cuts = roc_curve(
            truth, scores, drop_intermediate=False, sample_weight=answers.subject_weights
        )
        at = choose(sensitivity, 1 - false_positives)
        # Halfway to the next score below, so that rounding moves no cell to the other side.
        below = cuts[at + 1] if at + 1 < len(cuts) else 0.0
        return float((min(cuts[at], 1.0) + below) / 2)

    return rule


# Sums of weights reach a target only to rounding.
def _sensitivity_rule(sensitivity: np.ndarray, specificity: np.ndarray) -> int:
    return int(np.flatnonzero(sensitivity >= TARGET_RATE - 1e-9)[0])


def _specificity_rule(sensitivity: np.ndarray, specificity: np.ndarray) -> int:
    return int(np.flatnonzero(specificity >= TARGET_RATE - 1e-9)[-1])


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


def _performance(
    truth: np.ndarray, called: np.ndarray, positive: int, draws: Draws, by_subject: np.ndarray | None
) -> dict[str, Any]:
    outcomes = _outcomes(truth, called)
    drawn, alone = _rates(draws.sums(outcomes)), {"sensitivity": positive, "specificity": 1 - positive}
    intervals = {name: _interval(draws, values, alone.get(name)) for name, values in drawn.items()}
    if by_subject is not None:
        evenly = _rates(draws.sums(outcomes * by_subject[:, None]))
        intervals |= {f"{name}_by_subject": _interval(draws, evenly[name], alone.get(name)) for name in _BY_SUBJECT}
    rates = _rates_both_ways(outcomes, by_subject)
    return {**rates, "prevalence": float(truth.mean()), "intervals": intervals}


def _rates_both_ways(outcomes: np.ndarray, by_subject: np.ndarray | None) -> dict[str, float | None]:
    """The rates over cells, and with every subject weighing the same those that prevalence does not change."""
    rates = {name: _number(rate) for name, rate in _rates(outcomes.sum(axis=0)).items()}
    if by_subject is not None:
        evenly = _rates((outcomes * by_subject[:, None]).sum(axis=0))
        rates |= {f"{name}_by_subject": _number(evenly[name]) for name in _BY_SUBJECT}
    return rates


# Abstention


def abstention(answers: CellPredictions, left_out: tuple[LeftOut, ...], draws: Draws) -> dict[str, Any]:
    """Answering only where sure (El-Yaniv & Wiener 2010): what is gained, and a default threshold.

    No class is given where the largest calibrated probability lies below the threshold: the lowest one at which no
    more than `TARGET_RISK` of the given classes are wrong.

    Returns:
        `default`: target_risk, threshold, threshold_range, and cross-fitted coverage (share of cells answered) and
        risk (share of answers that are wrong), overall and by class, with intervals. `curve`: risk at 50 coverages.
        `aurc`: area under it (Geifman & El-Yaniv 2017), 0–1, small is good; `risk_at_full_coverage` is the error
        rate without abstaining.
    """
    temperature = shipped_temperature(answers, left_out)
    shipped, held_out = calibrated(answers, temperature), cross_fitted(answers, left_out)
    own = own_thresholds(answers, left_out, _risk_rule)
    answered = held_out.probabilities.max(axis=1) >= own
    return {
        "default": {
            "target_risk": TARGET_RISK,
            "threshold": _risk_rule(shipped),
            "threshold_range": {"low": float(own.min()), "high": float(own.max())},
            **_selective(held_out, answered, draws),
        },
        # Ranking fits nothing: a temperature of their own would only shuffle subjects against each other.
        **risk_coverage(shipped, draws),
    }


def _risk_rule(answers: CellPredictions) -> float:
    """The threshold of the largest coverage whose error rate is at most the target; where none is, of the lowest rate.

    Every subject weighs the same where subjects are known.
    """
    confidence, wrong = answers.probabilities.max(axis=1), answers.predictions != answers.references
    weights = np.ones(len(wrong)) if answers.subject_weights is None else answers.subject_weights
    order, last_of_tie = _surest_first(confidence)
    answered = np.cumsum(weights[order])[last_of_tie]
    risk = np.cumsum((weights * wrong)[order])[last_of_tie] / answered
    enough = answered >= LEAST_COVERAGE * weights.sum() - 1e-9
    allowed = np.flatnonzero(enough & (risk <= TARGET_RISK + 1e-9))
    at = allowed[-1] if len(allowed) else np.flatnonzero(enough)[risk[enough].argmin()]
    if at == len(last_of_tie) - 1:
        return 0.0  # every cell gets a class
    ranked = confidence[order][last_of_tie]
    # Halfway to the next confidence below, so that rounding moves no cell to the other side.
    return float((ranked[at] + ranked[at + 1]) / 2)


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
    evenly = {}
    if answers.subject_weights is not None and answered.any():
        weights = answers.subject_weights
        evenly = {
            "coverage_by_subject": float(np.average(answered, weights=weights)),
            "risk_by_subject": float(np.average(wrong[answered], weights=weights[answered])),
        }
    return figures(np.ones_like(answered), None) | evenly | {"per_class": per_class}


def _surest_first(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) rows in order of confidence, and the place of the last of each run of equal confidences."""
    order = np.argsort(-confidence, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))


def risk_coverage(answers: CellPredictions, draws: Draws) -> dict[str, Any]:
    """The risk–coverage curve of answers ranked by confidence; cells of equal confidence are answered together.

    Returns:
        curve (coverage, risk, and risk's interval), aurc and its interval, risk_at_full_coverage.
    """
    confidence, wrong = answers.probabilities.max(axis=1), answers.predictions != answers.references
    order, last_of_tie = _surest_first(confidence)
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
