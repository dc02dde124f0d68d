"""Metrics per subject: pool the predictions of a subject's cells, and measure that on unseen subjects.

The "subject_rule" block of metrics.json comes from nested cross-validation: the subject who is measured takes no part
in choosing how cells are pooled, nor in fitting the logistic regression on top. Class weights are balanced, so leaving
a subject out does not shift the threshold against that subject's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leukoscope.evaluation.bootstrap import bootstrap_subjects, paired_difference
from leukoscope.evaluation.calibration import OUT_OF_FOLD, SUBJECTS_NEEDED, calibrated, who_fitted
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import ABSTAIN, TOO_FEW_CELLS, WITHOUT_CLASS
from leukoscope.inference.subject import POOLINGS, SubjectRule, logits_of, pool

CELL_COUNTS = (1, 3, 5, 10, 20, 50)
REPEATS = 5000
"""Random choices of n cells of each subject, for the curve: with these, its chance is far below `MAY_LOSE`."""
MAY_LOSE = 0.02
"""Balanced accuracy over subjects that the smallest number of cells may lose against all their cells."""
OUTER_FOLDS = 50
"""Up to so many subjects, each is left out alone."""
INNER_FOLDS = 10
_PENALTY = 1.0  # scikit-learn's C, on standardised features


@dataclass(frozen=True)
class _Subject:
    """A subject's name, class (True: positive) and logits of all cells."""

    name: str
    positive: bool
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
        positive_label; `rule` (pooling, coefficients, intercept) fitted on all subjects; least_cells, and
        least_cells_suffice: whether that number is the one that `least_cells` finds, else it is the largest
        tried; `measured` (nested): auroc, sensitivity and specificity over subjects with intervals, abstained,
        error_rate (of those given a class); `curve` against the number of cells; `wrong`: the subjects on the
        wrong side; `subjects`: id → label, cells, probability, interval, outcome; with `size_only` predictions,
        the same auroc, sensitivity and specificity of a rule chosen and fitted on these, and `difference`: the
        auroc measured less theirs, by `paired_difference`. {} without a positive label, for more than two
        classes, unknown subjects, fewer than `SUBJECTS_NEEDED` + 1 subjects of a class, or a subject with cells
        of both classes.
    """
    from sklearn.model_selection import KFold

    if not positive_label:
        return {}
    subjects, labels = _subjects(calibrated(predictions, temperature), positive_label), predictions.label_names
    truth = np.array([subject.positive for subject in subjects])
    if not subjects or min(truth.sum(), (~truth).sum()) <= SUBJECTS_NEEDED:
        return {}
    rule_without: dict[int, SubjectRule] = {}
    for others, left_out in KFold(min(OUTER_FOLDS, len(subjects)), shuffle=True, random_state=0).split(subjects):
        fitted = _fit_rule([subjects[i] for i in others], labels, positive_label)
        rule_without |= dict.fromkeys(left_out.tolist(), fitted)
    rules = [rule_without[i] for i in range(len(subjects))]
    curve = _curve(subjects, rules)
    found = least_cells(curve)
    least = found or curve[-1]["cells"]
    rules = [replace(rule, least_cells=least) for rule in rules]
    judged = {subject.name: _apply(rule, subject) for subject, rule in zip(subjects, rules, strict=True)}
    rule = _fit_rule(subjects, labels, positive_label)
    baseline = {}
    if size_only is not None:
        alone = subject_rule_block(size_only, positive_label)
        both = (_one_row_each(truth, ones) for ones in (judged, alone["subjects"]))
        baseline["size_only"] = {key: alone["measured"][key] for key in ("auroc", "sensitivity", "specificity")}
        baseline["size_only"]["difference"] = paired_difference(*both)["auroc"]
    return {
        "estimates": estimates,
        "fitted_on": who_fitted(predictions),
        "judged_on": "each subject with pooling and regression chosen and fitted on other subjects",
        "positive_label": positive_label,
        "rule": {"pooling": rule.pooling, "coefficients": list(rule.coefficients), "intercept": rule.intercept},
        "least_cells": least,
        "least_cells_suffice": found is not None,
        "measured": _measured(truth, judged),
        **baseline,
        "curve": curve,
        "wrong": [name for name, one in judged.items() if one["called"] != one["label"]],
        "subjects": judged,
    }


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
    judged = {subject.name: _apply(rule, subject) for subject in subjects}
    decided = [one for one in judged.values() if one["outcome"] in predictions.label_names]

    def correct(positive: bool) -> dict[str, Any]:
        own = [one for one in decided if (one["label"] == rule.positive_label) == positive]
        return _exact(sum(one["outcome"] == one["label"] for one in own), len(own))

    return {
        "given_a_class": len(decided),
        "sensitivity": correct(True),
        "specificity": correct(False),
        "subjects": judged,
    }


def least_cells(curve: list[dict[str, Any]]) -> int | None:
    """Return the number of cells from which on balanced accuracy is within `MAY_LOSE` of that with all; None if not."""
    least = None
    for row in reversed(curve):
        if row["balanced_accuracy"] < row["balanced_accuracy_all_cells"] - MAY_LOSE:
            break
        least = int(row["cells"])
    return least


def _subjects(predictions: CellPredictions, positive_label: str) -> list[_Subject]:
    """The subjects in order of their names; none unless each is named and has one class."""
    if len(predictions.label_names) != 2 or "" in predictions.subjects:
        return []
    positive = predictions.label_names.index(positive_label)
    subjects, logits = np.asarray(predictions.subjects), logits_of(predictions.probabilities[:, positive])
    found = []
    for name in np.unique(subjects):
        rows = subjects == name
        classes = np.unique(predictions.references[rows])
        if len(classes) > 1:
            return []
        found.append(_Subject(str(name), bool(classes[0] == positive), logits[rows]))
    return found


def _fit_rule(subjects: list[_Subject], labels: tuple[str, ...], positive_label: str) -> SubjectRule:
    """The rule of the pooling with the lowest cross-validated log loss."""
    truth = np.array([subject.positive for subject in subjects])
    features = {name: np.stack([pool(subject.logits, name) for subject in subjects]) for name in POOLINGS}
    losses = {name: _cross_validated_loss(x, truth) for name, x in features.items()}
    best = min(losses, key=losses.__getitem__)
    coefficients, intercept = _logistic(features[best], truth)
    return SubjectRule(labels, positive_label, best, tuple(coefficients.tolist()), intercept, 1)


def _cross_validated_loss(features: np.ndarray, truth: np.ndarray) -> float:
    """Log loss in nats, both classes weighing the same."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(INNER_FOLDS, int(truth.sum()), int((~truth).sum()))
    losses = np.zeros(len(truth))
    for others, left_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, truth):
        coefficients, intercept = _logistic(features[others], truth[others])
        scores = features[left_out] @ coefficients + intercept
        losses[left_out] = np.logaddexp(0, np.where(truth[left_out], -scores, scores))
    return float((losses[truth].mean() + losses[~truth].mean()) / 2)


def _logistic(features: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Balanced logistic regression on standardised features; its coefficients are for the features themselves."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    model = LogisticRegression(C=_PENALTY, class_weight="balanced").fit((features - mean) / spread, truth)
    coefficients = model.coef_[0] / spread
    return coefficients, float(model.intercept_[0] - coefficients @ mean)


def _curve(subjects: list[_Subject], rules: list[SubjectRule]) -> list[dict[str, Any]]:
    """Metrics from n random cells per subject, without replacement; subjects with fewer cells are left out."""
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    pairs = list(zip(subjects, rules, strict=True))
    of_few = []  # of each subject: number of cells → (REPEATS,) probability; within a repeat, fewer are the first ones
    for subject, rule in pairs:
        most = min(len(subject.logits), CELL_COUNTS[-1])
        drawn = np.stack([rng.choice(subject.logits, most, replace=False) for _ in range(REPEATS)])
        of_few.append({cells: rule.probability(drawn[:, :cells]) for cells in CELL_COUNTS if cells <= most})
    rows = []
    for cells in CELL_COUNTS:
        known = [(*pair, few[cells]) for pair, few in zip(pairs, of_few, strict=True) if cells in few]
        truth = np.array([subject.positive for subject, *_ in known])
        if len(np.unique(truth)) < 2:
            break
        probabilities = np.stack([few for *_, few in known])
        all_cells = np.stack([rule.probability(subject.logits) for subject, rule, _ in known])
        right = (probabilities >= 0.5) == truth[:, None]
        # AUROC, the mean over all repeats: how often a positive subject comes before a negative one; a tie counts half.
        negative = probabilities[~truth]
        before = [(one > negative).mean() / 2 + (one >= negative).mean() / 2 for one in probabilities[truth]]
        rows.append(
            {
                "cells": cells,
                "subjects": len(known),
                "auroc": float(np.mean(before)),
                "sensitivity": float(right[truth].mean()),
                "specificity": float(right[~truth].mean()),
                "balanced_accuracy": float((right[truth].mean() + right[~truth].mean()) / 2),
                "balanced_accuracy_all_cells": float(balanced_accuracy_score(truth, all_cells >= 0.5)),
            }
        )
    return rows


def _apply(rule: SubjectRule, subject: _Subject) -> dict[str, Any]:
    positive = rule.labels.index(rule.positive_label)
    probability = 1 / (1 + np.exp(-subject.logits))
    both = np.stack([probability, 1 - probability] if positive == 0 else [1 - probability, probability], axis=1)
    predicted = rule.predict(both, ["" for _ in both])
    assert predicted.probability is not None
    name = {True: rule.positive_label, False: rule.labels[1 - positive]}
    return {
        "label": name[subject.positive],
        "cells": len(subject.logits),
        "probability": predicted.probability,
        "interval": predicted.interval,
        "pooling": rule.pooling,
        "called": name[predicted.probability >= 0.5],
        "outcome": predicted.outcome,
    }


def _one_row_each(truth: np.ndarray, subjects: Mapping[str, Mapping[str, Any]]) -> CellPredictions:
    """Subjects as if they were cells; the second class is the positive one."""
    scores = np.array([one["probability"] for one in subjects.values()])
    both = np.stack([1 - scores, scores], axis=1)
    return CellPredictions(tuple(subjects), tuple(subjects), truth.astype(int), both, ("0", "1"))


def _measured(truth: np.ndarray, subjects: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics with every subject on the side of its probability, and without those abstained from or too small."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    one_row_each = _one_row_each(truth, subjects)
    scores, boot = one_row_each.probabilities[:, 1], bootstrap_subjects(one_row_each)
    right = (scores >= 0.5) == truth
    decided = [one for one in subjects.values() if one["outcome"] not in (*WITHOUT_CLASS, TOO_FEW_CELLS)]
    outcomes = [one["outcome"] for one in subjects.values()]
    return {
        "subjects": len(truth),
        "auroc": {"value": float(roc_auc_score(truth, scores)), **boot.interval(boot.auroc(scores, truth))},
        "sensitivity": _exact(int(right[truth].sum()), int(truth.sum())),
        "specificity": _exact(int(right[~truth].sum()), int((~truth).sum())),
        "balanced_accuracy": float(balanced_accuracy_score(truth, scores >= 0.5)),
        "abstained": outcomes.count(ABSTAIN),
        "too_few_cells": outcomes.count(TOO_FEW_CELLS),
        "given_a_class": len(decided),
        "error_rate": _share(sum(one["outcome"] != one["label"] for one in decided), len(decided)),
    }


def _exact(right: int, of: int) -> dict[str, Any]:
    return {**_share(right, of), "of": of, "right": right}


def _share(count: int, of: int) -> dict[str, float | None]:
    """A share of subjects with its exact 95 % interval (Clopper & Pearson 1934); None of nobody."""
    from scipy.stats import binomtest

    if not of:
        return {"share": None, "low": None, "high": None}
    found = binomtest(count, of).proportion_ci(0.95, "exact")
    return {"share": count / of, "low": float(found.low), "high": float(found.high)}
