"""Metrics per subject: pool the predictions of a subject's cells, and measure that on unseen subjects.

The "subject_rule" block of metrics.json comes from cross-validation: the subject who is measured takes no part in
fitting the logistic regression on the pooled logits. Class weights are balanced, so leaving a subject out does not
shift the threshold against that subject's class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_cells
from leukoscope.evaluation.calibration import MIN_SUBJECTS_FOR_CALIBRATION, OUT_OF_FOLD, calibrated, who_fitted
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import logits_of
from leukoscope.inference.subject import SubjectRule, pool

CELL_COUNTS = (1, 3, 5, 10, 20, 50)
REPEATS = 5000
"""Random choices of n cells of each subject: with these, chance moves balanced accuracy far less than `MAY_LOSE`."""
MAY_LOSE = 0.02
"""Balanced accuracy over subjects that the smallest number of cells may lose against all their cells."""
SUBJECT_RULE_FOLDS = 50
"""Up to so many subjects, each is left out alone."""
_PENALTY = 1.0  # scikit-learn's C, on standardised features


@dataclass(frozen=True)
class _Subject:
    """A subject's name, class (True: positive), and of all cells (N, 2) probabilities and (N,) logits."""

    name: str
    positive: bool
    labels: tuple[str, ...]
    probabilities: np.ndarray
    logits: np.ndarray


def subject_rule_block(
    predictions: CellPredictions,
    positive_label: str,
    *,
    temperature: float = 1.0,
    estimates: str = OUT_OF_FOLD,
    size_only: CellPredictions | None = None,
) -> dict[str, Any]:
    """Make the "subject_rule" block of metrics.json.

    Args:
        predictions: of two classes, out-of-fold and subject-disjoint, not yet scaled.
        positive_label: the class whose logits are pooled; "" for none.
        temperature: of the release; the rule applies to its scaled probabilities.
        estimates: what metrics of the predictions estimate.
        size_only: of the same cells from their areas alone; None where these are not known.

    Returns:
        `rule` (pooling, coefficients, intercept) fitted on all subjects; least_cells, and least_cells_suffice: whether
        that number is the one that `least_cells` finds, else it is the largest tried; `measured` (cross-validated):
        auroc, sensitivity and specificity over subjects, given_a_class, error_rate (of these); `subjects`: id → label,
        cells, probability, interval, outcome; `size_only`: auroc, sensitivity and specificity of a rule fitted on
        those predictions, and the `difference` of the two AUROCs. {} without a positive label, for more than two
        classes, unknown subjects, fewer than `MIN_SUBJECTS_FOR_CALIBRATION` + 1 subjects of a class, or a subject with
        cells of both classes.
    """
    subjects = _subjects(calibrated(predictions, temperature), positive_label)
    truth = np.array([subject.positive for subject in subjects], dtype=bool)
    if min(truth.sum(), (~truth).sum()) <= MIN_SUBJECTS_FOR_CALIBRATION:
        return {}
    rules = _held_out_rules(subjects, positive_label)
    rule = _fit_rule(subjects, positive_label)
    curve = _curve(subjects, rules)
    enough_cells = least_cells(curve)
    least = enough_cells or curve[-1][0]
    pairs = zip(subjects, rules, strict=True)
    judged = {subject.name: _judge(replace(held_out, least_cells=least), subject) for subject, held_out in pairs}
    decided = [row for row in judged.values() if row["outcome"] in predictions.label_names]
    wrong = sum(row["outcome"] != row["label"] for row in decided)
    names = tuple(judged)
    classes = truth.astype(int)
    boot = bootstrap_cells(CellPredictions(names, names, classes, np.eye(2)[classes], ("0", "1")))
    scores = _scores(subjects, rules)
    measured = {"subjects": len(truth), **_measured(truth, scores, boot), "given_a_class": len(decided)}
    return {
        "estimates": estimates,
        "fitted_on": who_fitted(predictions),
        "judged_on": "each subject with the regression fitted on other subjects",
        "positive_label": positive_label,
        "rule": {"pooling": "quantiles", "coefficients": list(rule.coefficients), "intercept": rule.intercept},
        "least_cells": least,
        "least_cells_suffice": enough_cells is not None,
        "measured": {**measured, "error_rate": _share(wrong, len(decided))},
        **_size_only_block(size_only, positive_label, truth, scores, boot),
        "subjects": judged,
    }


def _size_only_block(
    size_only: CellPredictions | None,
    positive_label: str,
    truth: np.ndarray,
    scores: np.ndarray,
    boot: BootstrapSamples,
) -> dict[str, Any]:
    """The block of a rule fitted on predictions from cell size alone, against the (U,) scores of a model's rule."""
    if size_only is None:
        return {}
    others = _subjects(size_only, positive_label)
    alone = _scores(others, _held_out_rules(others, positive_label))
    between = boot.interval(boot.auroc(scores, truth) - boot.auroc(alone, truth))
    between["difference"] = float(roc_auc_score(truth, scores) - roc_auc_score(truth, alone))
    return {"size_only": {**_measured(truth, alone, boot), "difference": between}}


def measure_subject_rule(predictions: CellPredictions, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measure a release's rule for subjects on the subjects whose cells were predicted.

    Returns:
        given_a_class, sensitivity and specificity of these with exact intervals, and `subjects`: id → label,
        cells, probability, interval, outcome. None where the release has no rule for subjects, or the predictions do
        not name subjects of one class each.
    """
    rule = SubjectRule.from_metrics(metrics, predictions.label_names)
    subjects = [] if rule is None else _subjects(predictions, rule.positive_label)
    if rule is None or not subjects:
        return None
    judged = {subject.name: _judge(rule, subject) for subject in subjects}
    decided = [row for row in judged.values() if row["outcome"] in predictions.label_names]
    right = np.array([row["outcome"] == row["label"] for row in decided], dtype=bool)
    positive = np.array([row["label"] == rule.positive_label for row in decided], dtype=bool)
    return {
        "given_a_class": len(decided),
        "sensitivity": _right(right[positive]),
        "specificity": _right(right[~positive]),
        "subjects": judged,
    }


def least_cells(curve: Sequence[tuple[int, float, float]]) -> int | None:
    """Return the number of cells from which on balanced accuracy is within `MAY_LOSE` of that with all; None if not.

    `curve` holds the number of cells, and the balanced accuracy with so many and with all.
    """
    least = None
    for cells, few, every in reversed(curve):
        if few < every - MAY_LOSE:
            break
        least = cells
    return least


def _subjects(predictions: CellPredictions, positive_label: str) -> list[_Subject]:
    """The subjects in order of their names; none without a label, or unless each is named and has one class."""
    if not positive_label or len(predictions.label_names) != 2 or "" in predictions.subjects:
        return []
    positive = predictions.label_names.index(positive_label)
    subjects = np.asarray(predictions.subjects)
    with_class = []
    for name in np.unique(subjects):
        rows = subjects == name
        classes = np.unique(predictions.references[rows])
        if len(classes) > 1:
            return []
        of_both = predictions.probabilities[rows]
        identity = str(name), bool(classes[0] == positive), predictions.label_names
        with_class.append(_Subject(*identity, of_both, logits_of(of_both[:, positive])))
    return with_class


def _held_out_rules(subjects: list[_Subject], positive_label: str) -> list[SubjectRule]:
    """For each subject the rule that the subjects of other folds fit."""
    rule_without: dict[int, SubjectRule] = {}
    for others, left_out in KFold(min(SUBJECT_RULE_FOLDS, len(subjects)), shuffle=True, random_state=0).split(subjects):
        fitted = _fit_rule([subjects[i] for i in others], positive_label)
        rule_without |= dict.fromkeys(left_out.tolist(), fitted)
    return [rule_without[i] for i in range(len(subjects))]


def _fit_rule(subjects: list[_Subject], positive_label: str) -> SubjectRule:
    """Balanced logistic regression on standardised features; its coefficients are for the features themselves."""
    features = np.stack([pool(subject.logits) for subject in subjects])
    mean = features.mean(axis=0)
    spread = features.std(axis=0) + 1e-9
    model = LogisticRegression(C=_PENALTY, class_weight="balanced")
    model.fit((features - mean) / spread, [subject.positive for subject in subjects])
    coefficients = model.coef_[0] / spread
    intercept = float(model.intercept_[0] - coefficients @ mean)
    return SubjectRule(subjects[0].labels, positive_label, tuple(coefficients.tolist()), intercept, 1)


def _scores(subjects: list[_Subject], rules: list[SubjectRule]) -> np.ndarray:
    """(U,) probabilities of the positive class from all cells."""
    return np.array([rule.probability(subject.logits) for subject, rule in zip(subjects, rules, strict=True)])


def _curve(subjects: list[_Subject], rules: list[SubjectRule]) -> list[tuple[int, float, float]]:
    """Balanced accuracy from n random cells per subject and from all; subjects with fewer cells are left out."""
    truth = np.array([subject.positive for subject in subjects])
    rng = np.random.default_rng(0)
    right_with_all = (_scores(subjects, rules) >= 0.5) == truth
    right_with_few = np.full((len(CELL_COUNTS), len(subjects)), np.nan)  # share of the repeats
    for i, (subject, rule) in enumerate(zip(subjects, rules, strict=True)):
        most = min(len(subject.logits), CELL_COUNTS[-1])
        # Within a repeat, fewer cells are the first ones.
        drawn = np.stack([rng.choice(subject.logits, most, replace=False) for _ in range(REPEATS)])
        for row, cells in enumerate(CELL_COUNTS):
            if cells <= most:
                called = rule.probability(drawn[:, :cells]) >= 0.5
                right_with_few[row, i] = (called == subject.positive).mean()
    curve = []
    for cells, right in zip(CELL_COUNTS, right_with_few, strict=True):
        sides = [np.flatnonzero(~np.isnan(right) & (truth == positive)) for positive in (True, False)]
        if all(map(len, sides)):
            few = float(np.mean([right[side].mean() for side in sides]))
            every = float(np.mean([right_with_all[side].mean() for side in sides]))
            curve.append((cells, few, every))
    return curve


def _judge(rule: SubjectRule, subject: _Subject) -> dict[str, Any]:
    predicted = rule.predict(subject.probabilities, [""] * len(subject.logits))
    positive = rule.labels.index(rule.positive_label)
    return {
        "label": rule.labels[positive if subject.positive else 1 - positive],
        "cells": len(subject.logits),
        "probability": predicted.probability,
        "interval": predicted.interval,
        "outcome": predicted.outcome,
    }


def _measured(truth: np.ndarray, scores: np.ndarray, boot: BootstrapSamples) -> dict[str, Any]:
    """Metrics with every subject on the side of its probability, also those that get no class."""
    right = (scores >= 0.5) == truth
    return {
        "auroc": {"value": float(roc_auc_score(truth, scores)), **boot.interval(boot.auroc(scores, truth))},
        "sensitivity": _right(right[truth]),
        "specificity": _right(right[~truth]),
    }


def _right(right: np.ndarray) -> dict[str, Any]:
    return {**_share(int(right.sum()), len(right)), "of": len(right), "right": int(right.sum())}


def _share(count: int, of: int) -> dict[str, float | None]:
    """A share of subjects with its exact 95 % interval (Clopper & Pearson 1934); None of nobody."""
    if not of:
        return {"share": None, "low": None, "high": None}
    interval = binomtest(count, of).proportion_ci(0.95, "exact")
    return {"share": count / of, "low": float(interval.low), "high": float(interval.high)}
