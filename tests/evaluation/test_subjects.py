"""A subject must be judged by a rule that other subjects chose and fitted, and from as many cells as were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from leukoscope.evaluation import subjects as module
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.subjects import least_cells, measure_subject_rule, subject_rule_block
from leukoscope.models.release import Metrics
from leukoscope.reports.formatting import fraction, with_span


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEATS", 300)


def _predictions(logits: dict[str, np.ndarray]) -> CellPredictions:
    """Cells of subjects named ALL… or HEM…, with the logits of ALL given."""
    subjects = [name for name, values in logits.items() for _ in values]
    p = 1 / (1 + np.exp(-np.concatenate(list(logits.values()))))
    return CellPredictions(
        tuple(f"cell-{i}" for i in range(len(p))),
        tuple(subjects),
        np.array([0 if name.startswith("ALL") else 1 for name in subjects]),
        np.stack([p, 1 - p], axis=1),
        ("ALL", "HEM"),
    )


def _made_subjects(
    apart: float, *, subjects: int = 6, cells: int = 30, between: float = 0.5, seed: int = 0
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{label}{i}": sign * apart + between * rng.standard_normal() + rng.standard_normal(cells)
        for label, sign in (("ALL", 1), ("HEM", -1))
        for i in range(subjects)
    }


def test_the_block_can_be_read_and_says_who_is_wrong() -> None:
    logits = _made_subjects(2.0)
    logits["HEM3"] += 5.0  # on the other side
    block = subject_rule_block(_predictions(logits), "ALL", temperature=2.0)

    Metrics.model_validate({"subject_rule": json.loads(json.dumps(block))})
    outcomes = {name: one["outcome"] for name, one in block["subjects"].items() if one["outcome"] != one["label"]}
    assert outcomes == {"HEM3": "ALL"}
    measured = block["measured"]
    assert (measured["sensitivity"]["right"], measured["specificity"]["right"]) == (6, 5)
    exact = binomtest(5, 6).proportion_ci(0.95, "exact")
    assert measured["specificity"]["low"] == pytest.approx(exact.low)
    assert measured["specificity"]["high"] == pytest.approx(exact.high)
    truth = [one["label"] == "ALL" for one in block["subjects"].values()]
    scores = [one["probability"] for one in block["subjects"].values()]
    assert measured["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert measured["error_rate"]["share"] == pytest.approx(1 / measured["given_a_class"])


def test_the_judged_subject_takes_no_part_in_its_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    fitted = module._fit_rule

    def noting(subjects: list[Any], *more: Any) -> Any:
        seen.append({subject.name for subject in subjects})
        return fitted(subjects, *more)

    monkeypatch.setattr(module, "_fit_rule", noting)
    logits = _made_subjects(1.0, subjects=5)
    subject_rule_block(_predictions(logits), "ALL")
    # One rule a subject, without that subject, and the rule to ship.
    assert sorted(next(iter(logits.keys() - names)) for names in seen[:-1]) == sorted(logits)
    assert seen[-1] == set(logits)


def _curve_of(logits: dict[str, np.ndarray]) -> dict[int, tuple[float, float]]:
    subjects = module._subjects(_predictions(logits), "ALL")
    curve = module._curve(subjects, [module._fit_rule(subjects, "ALL")] * len(subjects))
    return {cells: (few, every) for cells, few, every in curve}


def test_more_cells_tell_subjects_apart_better_and_the_curve_says_from_how_many_on() -> None:
    logits = _made_subjects(0.7, cells=60, between=0.1)
    curve = _curve_of(logits)
    assert list(curve) == [1, 3, 5, 10, 20, 50]
    assert curve[1][0] < 0.8 < 0.95 < curve[20][0]
    assert subject_rule_block(_predictions(logits), "ALL")["least_cells"] > 1


def test_where_no_number_of_cells_is_enough_the_block_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = _predictions(_made_subjects(2.0))
    block = subject_rule_block(predictions, "ALL")
    assert block["least_cells"] < 20 and block["least_cells_suffice"] is True
    monkeypatch.setattr(module, "MAY_LOSE", -1.0)
    block = subject_rule_block(predictions, "ALL")
    assert (block["least_cells"], block["least_cells_suffice"]) == (20, False), "the largest number tried"
    assert "too few cells" not in {one["outcome"] for one in block["subjects"].values()}


def test_size_alone_is_measured_by_the_same_rule_on_the_same_subjects() -> None:
    logits = _made_subjects(2.0)
    logits["HEM3"] += 5.0  # on the other side
    predictions, size_only = _predictions(_made_subjects(2.0)), _predictions(logits)
    block = subject_rule_block(predictions, "ALL", size_only=size_only)
    alone, own = block["size_only"], subject_rule_block(size_only, "ALL")["measured"]
    assert alone == {key: own[key] for key in ("auroc", "sensitivity", "specificity")} | {
        "difference": alone["difference"]
    }
    found = alone["difference"]
    assert found["difference"] == pytest.approx(block["measured"]["auroc"]["value"] - own["auroc"]["value"])
    assert found["low"] <= found["difference"] <= found["high"] and found["difference"] > 0
    Metrics.model_validate({"subject_rule": json.loads(json.dumps(block))})
    assert "size_only" not in subject_rule_block(predictions, "ALL")


def test_of_nobody_there_is_no_share() -> None:
    block = subject_rule_block(_predictions(_made_subjects(2.0)), "ALL") | {"least_cells": 99}
    judged = measure_subject_rule(_predictions(_made_subjects(2.0)), {"subject_rule": block})
    assert judged is not None and judged["given_a_class"] == 0
    nothing = {"share": None, "low": None, "high": None, "right": 0, "of": 0}
    assert judged["sensitivity"] == judged["specificity"] == nothing
    assert fraction(nothing) == "0 of 0" and with_span(nothing, "share") == "–"


def test_a_dip_at_many_cells_is_not_passed_over() -> None:
    rows = [(n, few, 0.9) for n, few in ((1, 0.7), (3, 0.89), (5, 0.8), (10, 0.89), (20, 0.9))]
    assert least_cells(rows) == 10
    assert least_cells(rows[:3]) is None, "even the largest number loses too much"


def test_subjects_with_too_few_cells_are_left_out_of_the_curve_and_get_no_class() -> None:
    logits = _made_subjects(0.7, subjects=5, cells=60, between=0.1)
    few = {"ALL": np.ones(2), "HEM": -np.ones(2)}
    assert _curve_of(few).keys() == {1}, "of more cells, no subject is left"
    assert _curve_of(few | logits).keys() == _curve_of(logits).keys()
    block = subject_rule_block(_predictions(few | logits), "ALL")
    assert block["least_cells"] > 2
    assert block["subjects"]["ALL"]["outcome"] == "too few cells"
    assert block["measured"]["given_a_class"] <= 10


@pytest.mark.parametrize(
    "why", ["three classes", "no positive class", "unknown subject", "two classes in a subject", "few subjects"]
)
def test_no_block_where_subjects_cannot_be_measured(why: str, calibrated_cells: Callable[..., CellPredictions]) -> None:
    logits = _made_subjects(1.0, subjects=3 if why == "few subjects" else 6)
    predictions = _predictions(logits)
    if why == "three classes":
        predictions = calibrated_cells(300, classes=3)
    elif why == "unknown subject":
        predictions = replace(predictions, subjects=("", *predictions.subjects[1:]))
    elif why == "two classes in a subject":
        predictions.references[0] = 1
    assert subject_rule_block(predictions, "" if why == "no positive class" else "ALL") == {}


def test_the_rule_stands_on_the_scale_of_the_release() -> None:
    predictions = _predictions(_made_subjects(1.0))
    as_they_are, scaled = (subject_rule_block(predictions, "ALL", temperature=t) for t in (1.0, 2.0))
    assert scaled["rule"]["coefficients"] == pytest.approx(
        [2 * c for c in as_they_are["rule"]["coefficients"]], rel=1e-4
    )
    assert scaled["rule"]["intercept"] == pytest.approx(as_they_are["rule"]["intercept"], abs=1e-4)


def test_a_release_judges_subjects_by_its_own_rule() -> None:
    rule = {"pooling": "quantiles", "coefficients": [0.2] * 5, "intercept": 0.0}
    block = {"positive_label": "ALL", "rule": rule, "least_cells": 3, "measured": {"error_rate": {}}}
    logits = {"ALL0": np.full(5, 2.0), "ALL1": np.full(5, -2.0), "ALL2": np.full(2, 2.0), "HEM0": np.full(5, -1.0)}
    judged = measure_subject_rule(_predictions(logits), {"subject_rule": block})
    assert judged is not None
    assert (len(judged["subjects"]), judged["given_a_class"]) == (4, 3)
    assert (judged["sensitivity"]["right"], judged["sensitivity"]["of"]) == (1, 2)
    assert (judged["specificity"]["right"], judged["specificity"]["of"]) == (1, 1)
    assert {name: one["outcome"] for name, one in judged["subjects"].items()} == {
        "ALL0": "ALL", "ALL1": "HEM", "ALL2": "too few cells", "HEM0": "HEM",
    }  # fmt: skip
    assert measure_subject_rule(_predictions(logits), {}) is None
