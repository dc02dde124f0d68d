"""What pooling a person's cells is worth: the "patients" block of metrics.json, measured on unseen persons.

Nested cross-validation: the person who is judged takes no part in choosing how cells are pooled, nor in fitting the
logistic regression on top. Class weights are balanced, so leaving a person out does not shift the threshold against
that person's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leukoscope.evaluation.calibration import OUT_OF_FOLD, SUBJECTS_NEEDED, calibrated, who_fitted
from leukoscope.evaluation.draws import Interval, subject_draws
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.inference.decision import ABSTAIN, WITHOUT_CLASS
from leukoscope.inference.patient import POOLINGS, TOO_FEW_CELLS, PatientRule, logits_of, pool

CELL_COUNTS = (1, 3, 5, 10, 20, 50)
REPEATS = 100
"""Times that n cells of a person are drawn for the curve."""
MAY_LOSE = 0.02
"""Balanced accuracy over persons that the smallest number of cells may lose against all their cells."""
OUTER_FOLDS = 50
"""Up to so many persons, each is left out alone."""
INNER_FOLDS = 10
_PENALTY = 1.0  # scikit-learn's C, on standardised features


@dataclass(frozen=True)
class _Person:
    """A person's name, class (True: positive) and cells' logits."""

    name: str
    positive: bool
    logits: np.ndarray


def patients_block(
    answers: CellPredictions, positive_label: str, *, temperature: float = 1.0, estimates: str = OUT_OF_FOLD
) -> dict[str, Any]:
    """The "patients" block; see the module.

    Args:
        answers: of two classes, out-of-fold and subject-disjoint, as the networks gave them.
        positive_label: the class whose logits are pooled.
        temperature: what the release's weights were scaled with: the rule stands on the scale of the release.
        estimates: what the answers stand for.

    Returns:
        positive_label; `rule` (pooling, coefficients, intercept) fitted on all persons; `candidates`: pooling →
        cross-validated log loss in nats; `chosen`: pooling → persons for whom the others chose it; least_cells;
        `measured` (nested): auroc, sensitivity and specificity over persons with intervals, abstained, error_rate (of
        those given a class); `curve` against the number of cells; `wrong`: the persons on the wrong side; `subjects`:
        id → label, cells, probability, interval, outcome. {} for more than two classes, unknown subjects, fewer than
        `SUBJECTS_NEEDED` + 1 persons of a class, or a subject with cells of both classes.
    """
    persons = _persons(calibrated(answers, temperature), positive_label)
    truth = np.array([person.positive for person in persons])
    if not persons or min(truth.sum(), (~truth).sum()) <= SUBJECTS_NEEDED:
        return {}
    labels = answers.label_names
    rules = _rules_of_the_others(persons, labels, positive_label)
    curve = _curve(persons, rules)
    least = least_cells(curve)
    rules = [replace(rule, least_cells=least) for rule in rules]
    subjects = {
        person.name: _judged(person, rule, answers.label_names) for person, rule in zip(persons, rules, strict=True)
    }
    rule, candidates = _fitted(persons, labels, positive_label)
    return {
        "estimates": estimates,
        "fitted_on": who_fitted(answers),
        "judged_on": "each person with pooling and regression chosen and fitted on other persons",
        "positive_label": positive_label,
        "rule": {
            "pooling": rule.pooling,
            "coefficients": list(rule.coefficients),
            "intercept": rule.intercept,
        },
        "candidates": candidates,
        "chosen": {name: sum(one.pooling == name for one in rules) for name in POOLINGS},
        "least_cells": least,
        "measured": _measured(persons, subjects),
        "curve": curve,
        "wrong": [name for name, one in subjects.items() if one["called"] != one["label"]],
        "subjects": subjects,
    }


def judged_by_rule(answers: CellPredictions, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a release's own rule says of the persons whose cells were predicted.

    Args:
        answers: of the release, on the scale of its probabilities.
        metrics: the release's metrics.json.

    Returns:
        persons, given_a_class, sensitivity and specificity of these with exact intervals, and `subjects`: id → label,
        cells, probability, interval, outcome. None where the release has no rule for persons, or the answers do not
        name persons of one class each.
    """
    rule = PatientRule.from_metrics(metrics, answers.label_names)
    persons = [] if rule is None else _persons(answers, rule.positive_label)
    if rule is None or not persons:
        return None
    subjects = {person.name: _judged(person, rule, answers.label_names) for person in persons}
    decided = [one for one in subjects.values() if one["outcome"] in answers.label_names]

    def right(positive: bool) -> dict[str, Any]:
        own = [one for one in decided if (one["label"] == rule.positive_label) == positive]
        return _exact(sum(one["outcome"] == one["label"] for one in own), len(own))

    return {
        "persons": len(persons),
        "given_a_class": len(decided),
        "sensitivity": right(True),
        "specificity": right(False),
        "subjects": subjects,
    }


def least_cells(curve: list[dict[str, Any]]) -> int:
    """The smallest number of cells from which on balanced accuracy stays within `MAY_LOSE` of that with all cells."""
    least = curve[-1]["cells"]
    for row in reversed(curve):
        if row["balanced_accuracy"] < row["balanced_accuracy_all_cells"] - MAY_LOSE:
            break
        least = row["cells"]
    return int(least)


def _persons(answers: CellPredictions, positive_label: str) -> list[_Person]:
    """In order of their names; none where the answers do not name persons of one class each."""
    if len(answers.label_names) != 2 or "" in answers.subjects:
        return []
    positive = answers.label_names.index(positive_label)
    subjects, logits = np.asarray(answers.subjects), logits_of(answers.probabilities[:, positive])
    found = []
    for name in np.unique(subjects):
        rows = subjects == name
        classes = np.unique(answers.references[rows])
        if len(classes) > 1:
            return []
        found.append(_Person(str(name), bool(classes[0] == positive), logits[rows]))
    return found


def _rules_of_the_others(persons: list[_Person], labels: tuple[str, ...], positive_label: str) -> list[PatientRule]:
    """For each person, the rule that was chosen and fitted without that person."""
    from sklearn.model_selection import KFold

    rules: list[Any] = [None] * len(persons)
    for others, left_out in KFold(min(OUTER_FOLDS, len(persons)), shuffle=True, random_state=0).split(persons):
        rule = _fitted([persons[i] for i in others], labels, positive_label)[0]
        for i in left_out:
            rules[i] = rule
    return rules


def _fitted(
    persons: list[_Person], labels: tuple[str, ...], positive_label: str
) -> tuple[PatientRule, dict[str, float]]:
    """The rule of the pooling with the lowest cross-validated log loss; and every pooling's log loss."""
    truth = np.array([person.positive for person in persons])
    features = {name: np.stack([pool(person.logits, name) for person in persons]) for name in POOLINGS}
    losses = {name: _cross_validated_loss(x, truth) for name, x in features.items()}
    best = min(losses, key=losses.__getitem__)
    coefficients, intercept = _logistic(features[best], truth)
    return PatientRule(labels, positive_label, best, tuple(coefficients.tolist()), intercept, 1), losses


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
    """Balanced logistic regression on standardised features, told on the features as they are."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    model = LogisticRegression(C=_PENALTY, class_weight="balanced").fit((features - mean) / spread, truth)
    coefficients = model.coef_[0] / spread
    return coefficients, float(model.intercept_[0] - coefficients @ mean)


def _curve(persons: list[_Person], rules: list[PatientRule]) -> list[dict[str, Any]]:
    """Persons judged by n of their cells, drawn without replacement; persons with fewer cells are left out."""
    rng = np.random.default_rng(0)
    rows = []
    for cells in CELL_COUNTS:
        known = [(person, rule) for person, rule in zip(persons, rules, strict=True) if len(person.logits) >= cells]
        truth = np.array([person.positive for person, _ in known])
        if len(np.unique(truth)) < 2:
            break
        drawn = np.stack(
            [
                rule.probability(rng.permuted(np.tile(person.logits, (REPEATS, 1)), axis=1)[:, :cells])
                for person, rule in known
            ]
        )
        everything = np.stack([rule.probability(person.logits) for person, rule in known])
        right = (drawn >= 0.5) == truth[:, None]
        rows.append(
            {
                "cells": cells,
                "persons": len(known),
                "auroc": float(np.mean([_auroc(truth, once) for once in drawn.T])),
                "sensitivity": float(right[truth].mean()),
                "specificity": float(right[~truth].mean()),
                "balanced_accuracy": float((right[truth].mean() + right[~truth].mean()) / 2),
                "balanced_accuracy_all_cells": _balanced(truth, everything >= 0.5),
            }
        )
    return rows


def _balanced(truth: np.ndarray, called: np.ndarray) -> float:
    return float((called[truth].mean() + (~called[~truth]).mean()) / 2)


def _auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores))


def _judged(person: _Person, rule: PatientRule, labels: tuple[str, ...]) -> dict[str, Any]:
    negative = next(label for label in labels if label != rule.positive_label)
    name = {True: rule.positive_label, False: negative}
    positive = 1 / (1 + np.exp(-person.logits))
    shares = np.stack([positive if label == rule.positive_label else 1 - positive for label in labels], axis=1)
    predicted = rule.predict(shares, ["" for _ in shares])
    assert predicted.probability is not None
    return {
        "label": name[person.positive],
        "cells": len(person.logits),
        "probability": predicted.probability,
        "interval": predicted.interval,
        "pooling": rule.pooling,
        "called": name[predicted.probability >= 0.5],
        "outcome": predicted.outcome,
    }


def _measured(persons: list[_Person], subjects: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every person on the side of its probability; and what is left when abstained and too small ones are set apart."""
    truth = np.array([person.positive for person in persons])
    scores = np.array([one["probability"] for one in subjects.values()])
    one_row_each = CellPredictions(
        tuple(subjects), tuple(subjects), truth.astype(int), np.stack([1 - scores, scores], axis=1), ("0", "1")
    )
    draws = subject_draws(one_row_each)
    right = (scores >= 0.5) == truth
    decided = [one for one in subjects.values() if one["outcome"] not in (*WITHOUT_CLASS, TOO_FEW_CELLS)]
    outcomes = [one["outcome"] for one in subjects.values()]
    return {
        "persons": len(truth),
        "auroc": {"value": _auroc(truth, scores), **draws.interval(draws.auroc(scores, truth))},
        "sensitivity": _exact(int(right[truth].sum()), int(truth.sum())),
        "specificity": _exact(int(right[~truth].sum()), int((~truth).sum())),
        "balanced_accuracy": _balanced(truth, scores >= 0.5),
        "abstained": outcomes.count(ABSTAIN),
        "too_few_cells": outcomes.count(TOO_FEW_CELLS),
        "given_a_class": len(decided),
        "error_rate": _share(sum(one["outcome"] != one["label"] for one in decided), len(decided)),
    }


def _exact(right: int, of: int) -> dict[str, Any]:
    return {**_share(right, of), "of": of, "right": right}


def _share(count: int, of: int) -> Interval:
    """A share of persons with its exact 95 % interval (Clopper & Pearson 1934)."""
    from scipy.stats import binomtest

    if not of:
        return {"share": 0.0, "low": 0.0, "high": 1.0}
    found = binomtest(count, of).proportion_ci(0.95, "exact")
    return {"share": count / of, "low": float(found.low), "high": float(found.high)}
