"""Sets of possible classes instead of one answer: conformal prediction, measured on subjects it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from leukoscope.evaluation.calibration import (
    LeftOut,
    Rule,
    calibrated,
    cross_fitted,
    own_thresholds,
    right_by_subject,
    shipped_temperature,
)
from leukoscope.evaluation.draws import Draws
from leukoscope.evaluation.metrics import CellPredictions

SET_COVERAGE = 0.90
"""Share of cells whose prediction set is to hold the true class."""


def prediction_sets(answers: CellPredictions, left_out: tuple[LeftOut, ...], draws: Draws) -> dict[str, Any]:
    """Sets of classes that hold the true one for 90 % of cells: split-conformal, cross-fitted by subject.

    A class is in a cell's set when its calibrated probability is at least `least_probability` (the LAC score of
    Sadinle et al. 2019). "marginal" has one such number for all classes; "class_conditional" one for each (Vovk 2012),
    and is shipped, since the smaller class pays otherwise. Conformal prediction promises its coverage for exchangeable
    cells. Cells of one patient are not exchangeable with another's, so nothing is promised here: the coverage is
    measured on subjects that fitted no threshold, and single subjects lie far from it.

    Returns:
        target, shipped, and for each of `methods`: least_probability by class, coverage overall and by class, mean
        set size, shares of sets with one class and with none, each with intervals, and coverage by subject.
    """
    rules: Mapping[str, Rule] = {"marginal": _marginal_rule, "class_conditional": _class_conditional_rule}
    temperature = shipped_temperature(answers, left_out)
    shipped, held_out = calibrated(answers, temperature), cross_fitted(answers, left_out)
    methods = {}
    for name, rule in rules.items():
        least = rule(shipped)
        sets = held_out.probabilities >= own_thresholds(answers, left_out, rule)
        methods[name] = {
            "least_probability": dict(zip(answers.label_names, least.tolist(), strict=True)),
            **_set_figures(answers, sets, draws),
        }
    return {"target": SET_COVERAGE, "shipped": "class_conditional", "methods": methods}


def _marginal_rule(answers: CellPredictions) -> np.ndarray:
    of_truth = answers.probabilities[np.arange(len(answers.references)), answers.references]
    return np.full(len(answers.label_names), _conformal_bound(of_truth))


def _class_conditional_rule(answers: CellPredictions) -> np.ndarray:
    probabilities, references = answers.probabilities, answers.references
    return np.asarray([_conformal_bound(probabilities[references == k, k]) for k in range(len(answers.label_names))])


def _conformal_bound(of_truth: np.ndarray) -> float:
    """The ⌊(n + 1) · 10 %⌋-th smallest probability of a true class; 0, hence every class, where n is too small."""
    below = int(np.floor((len(of_truth) + 1) * (1 - SET_COVERAGE) + 1e-9))
    return float(np.sort(of_truth)[below - 1]) if below else 0.0


def _set_figures(answers: CellPredictions, sets: np.ndarray, draws: Draws) -> dict[str, Any]:
    covered = sets[np.arange(len(sets)), answers.references]
    size = sets.sum(axis=1)
    overall = {"coverage": covered, "mean_size": size, "singletons": size == 1, "empty": size == 0}
    return {
        **{name: float(values.mean()) for name, values in overall.items()},
        "intervals": {name: draws.interval(draws.means(values.astype(float))) for name, values in overall.items()},
        "per_class": {name: _class_coverage(answers, covered, k, draws) for k, name in enumerate(answers.label_names)},
        "subjects": right_by_subject(answers, covered),
    }


def _class_coverage(answers: CellPredictions, covered: np.ndarray, of_class: int, draws: Draws) -> dict[str, Any]:
    cells = answers.references == of_class
    drawn = draws.sums((covered & cells).astype(float)) / draws.sums(cells.astype(float))
    return {"coverage": float(covered[cells].mean()), "interval": draws.interval(drawn, of_class=of_class)}
