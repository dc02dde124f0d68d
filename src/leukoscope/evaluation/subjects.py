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

from leukoscope.data.splits import SUBJECTS_FOR_RULE
from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_cells
from leukoscope.evaluation.calibration import OUT_OF_FOLD, calibrated, who_fitted
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import logits_of
from leukoscope.inference.subject import SubjectRule, pool
from leukoscope.models.metrics import SubjectRuleBlock

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
    """A subject's name, class (`positive`: the positive one), and of all cells (N, 2) probabilities and (N,) logits."""

    name: str
    label: str
    positive: bool
    probabilities: np.ndarray
    logits: np.ndarray


def subject_rule_block(
    predictions: CellPredictions,
    positive_label: str,
    *,
    temperature: float = 1.0,
    estimates: str = OUT_OF_FOLD,
    size_only: CellPredictions | None = None,
) -> SubjectRuleBlock | None:
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
        those predictions, and the `difference` of the two AUROCs. None where `why_no_rule` gives a reason.
    """
    if why_no_rule(predictions.subjects, predictions.references, predictions.label_names, positive_label):
        return None
    subjects = _subjects(calibrated(predictions, temperature), positive_label)
    truth = np.array([subject.positive for subject in subjects], dtype=bool)
    labels = predictions.label_names
    rules = _held_out_rules(subjects, labels, positive_label)
    rule = _fit_rule(subjects, labels, positive_label)
    scores = _scores(subjects, rules)
    curve = _curve(subjects, rules, truth, (scores >= 0.5) == truth)
    enough_cells = least_cells(curve)
    least = enough_cells or curve[-1][0]
    judged = _judge(subjects, [replace(held_out, least_cells=least) for held_out in rules])
    is_right = _right_of_given(judged, labels)
    names = tuple(judged)
    classes = truth.astype(int)
    boot = bootstrap_cells(CellPredictions(names, names, classes, np.eye(2)[classes], ("0", "1")))
    measured = {"subjects": len(truth), **_measured(truth, scores, boot), "given_a_class": len(is_right)}
    sizes: dict[str, Any] = {}
    if size_only is not None:
        others = _subjects(size_only, positive_label)
        alone = _scores(others, _held_out_rules(others, labels, positive_label))
        difference = boot.interval(boot.auroc(scores, truth) - boot.auroc(alone, truth))
        difference["difference"] = float(roc_auc_score(truth, scores) - roc_auc_score(truth, alone))
        sizes["size_only"] = {**_measured(truth, alone, boot), "difference": difference}
    block = {
        "estimates": estimates,
        "fitted_on": who_fitted(predictions),
        "judged_on": "each subject with the regression fitted on other subjects",
        "positive_label": positive_label,
        "rule": {"pooling": "quantiles", "coefficients": list(rule.coefficients), "intercept": rule.intercept},
        "least_cells": least,
        "least_cells_suffice": enough_cells is not None,
        "measured": {**measured, "error_rate": _share(is_right.count(False), len(is_right))},
        **sizes,
        "subjects": judged,
    }
    return SubjectRuleBlock.model_validate(block)


def why_no_rule(
    subjects: Sequence[str], references: np.ndarray, label_names: Sequence[str], positive_label: str
) -> str:
    """Why no rule for subjects can be fitted on the cells of N `subjects` and (N,) `references`; "" where it can."""
    if len(label_names) != 2:
        return f"it needs two classes, and there are {len(label_names)}"
    if not positive_label:
        return "neither class is the positive one (name it with --positive_label)"
    if "" in subjects:
        return "the subject of a cell is not known (name subjects with --subject_pattern, --subject_folders or a table)"
    pairs = set(zip(subjects, references.tolist(), strict=True))
    if len(pairs) > len(set(subjects)):
        return "a subject has cells of both classes"
    counts = [sum(reference == number for _, reference in pairs) for number in range(2)]
    if min(counts) >= SUBJECTS_FOR_RULE:
        return ""
    fitted = " and ".join(f"{count} of {name}" for count, name in zip(counts, label_names, strict=True))
    return (
        f"it needs {SUBJECTS_FOR_RULE} validation subjects of each class, and there are {fitted} (gather cells of more "
        "subjects for --split subject, or run `leukoscope release recalibrate` on others)"
    )


def measure_subject_rule(predictions: CellPredictions, rule: SubjectRule) -> dict[str, Any] | None:
    """Measure a rule for subjects on the subjects whose cells were predicted.

    Returns:
        given_a_class, sensitivity and specificity of these with exact intervals, and `subjects`: id → label,
        cells, probability, interval, outcome. None where the predictions do not name subjects of one class each.
    """
    classes = set(zip(predictions.subjects, predictions.references.tolist(), strict=True))
    subjects = _subjects(predictions, rule.positive_label)
    if "" in predictions.subjects or len(classes) > len(subjects):
        return None
    judged = _judge(subjects, [rule] * len(subjects))
    positives = {subject.name for subject in subjects if subject.positive}
    labels = predictions.label_names
    return {
        "given_a_class": len(_right_of_given(judged, labels)),
        "sensitivity": _right(_right_of_given({name: judged[name] for name in positives}, labels)),
        "specificity": _right(_right_of_given({name: judged[name] for name in judged.keys() - positives}, labels)),
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
    """The subjects in order of their names, each with the class of most of its cells."""
    positive = predictions.label_names.index(positive_label)
    names = np.asarray(predictions.subjects)
    subjects = []
    for name, reference in predictions.subject_classes.items():
        of_both = predictions.probabilities[names == name]
        logits = logits_of(of_both[:, positive])
        subjects.append(_Subject(name, predictions.label_names[reference], reference == positive, of_both, logits))
    return subjects


def _held_out_rules(subjects: list[_Subject], labels: tuple[str, ...], positive_label: str) -> list[SubjectRule]:
    """For each subject the rule that the subjects of other folds fit."""
    rules = np.empty(len(subjects), dtype=object)
    for others, left_out in KFold(min(SUBJECT_RULE_FOLDS, len(subjects)), shuffle=True, random_state=0).split(subjects):
        rules[left_out] = _fit_rule([subjects[i] for i in others], labels, positive_label)
    return list(rules)


def _fit_rule(subjects: list[_Subject], labels: tuple[str, ...], positive_label: str) -> SubjectRule:
    """Balanced logistic regression on standardised features; its coefficients are for the features themselves."""
    features = np.stack([pool(subject.logits) for subject in subjects])
    mean = features.mean(axis=0)
    spread = features.std(axis=0) + 1e-9
    model = LogisticRegression(C=_PENALTY, class_weight="balanced")
    model.fit((features - mean) / spread, [subject.positive for subject in subjects])
    coefficients = model.coef_[0] / spread
    intercept = float(model.intercept_[0] - coefficients @ mean)
    return SubjectRule(labels, positive_label, tuple(coefficients.tolist()), intercept, 1)


def _scores(subjects: list[_Subject], rules: list[SubjectRule]) -> np.ndarray:
    """(U,) probabilities of the positive class from all cells."""
    return np.array([rule.probability(subject.logits) for subject, rule in zip(subjects, rules, strict=True)])


def _curve(
    subjects: list[_Subject], rules: list[SubjectRule], truth: np.ndarray, right_with_all: np.ndarray
) -> list[tuple[int, float, float]]:
    """Balanced accuracy from n random cells per subject and from all; subjects with fewer cells are left out."""
    rng = np.random.default_rng(0)
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
        sides = [~np.isnan(right) & (truth == positive) for positive in (True, False)]
        if all(side.any() for side in sides):
            few = float(np.mean([right[side].mean() for side in sides]))
            every = float(np.mean([right_with_all[side].mean() for side in sides]))
            curve.append((cells, few, every))
    return curve


def _judge(subjects: list[_Subject], rules: list[SubjectRule]) -> dict[str, dict[str, Any]]:
    """Subject → its class, and what a rule says of it."""
    judged = {}
    for subject, rule in zip(subjects, rules, strict=True):
        predicted = rule.predict(subject.probabilities, [""] * len(subject.logits))
        judged[subject.name] = {
            "label": subject.label,
            "cells": len(subject.logits),
            "probability": predicted.probability,
            "interval": predicted.interval,
            "outcome": predicted.outcome,
        }
    return judged


def _right_of_given(judged: Mapping[str, Mapping[str, Any]], labels: tuple[str, ...]) -> list[bool]:
    """For each subject that gets a class whether it is right."""
    return [row["outcome"] == row["label"] for row in judged.values() if row["outcome"] in labels]


def _measured(truth: np.ndarray, scores: np.ndarray, boot: BootstrapSamples) -> dict[str, Any]:
    """Metrics with every subject on the side of its probability, also those that get no class."""
    right = (scores >= 0.5) == truth
    return {
        "auroc": {"value": float(roc_auc_score(truth, scores)), **boot.interval(boot.auroc(scores, truth))},
        "sensitivity": _right(right[truth].tolist()),
        "specificity": _right(right[~truth].tolist()),
    }


def _right(right: list[bool]) -> dict[str, Any]:
    return {**_share(sum(right), len(right)), "of": len(right), "right": sum(right)}


def _share(count: int, of: int) -> dict[str, float | None]:
    """A share of subjects with its exact 95 % interval (Clopper & Pearson 1934); None of nobody."""
    if not of:
        return {"share": None, "low": None, "high": None}
    interval = binomtest(count, of).proportion_ci(0.95, "exact")
    return {"share": count / of, "low": float(interval.low), "high": float(interval.high)}
