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
from leukoscope.evaluation.subjects import least_cells, measure_subject_rule, subject_rule_block, why_no_rule
from leukoscope.inference.subject import SubjectRule
from leukoscope.models.metrics import Metrics, Rate, SubjectRuleBlock
from leukoscope.reports.tables import fraction, with_span


def rule_of(block: dict[str, Any]) -> SubjectRule:
    rule = SubjectRule.from_metrics(Metrics.model_validate({"subject_rule": block}), ("ALL", "HEM"))
    assert rule is not None
    return rule


def block_of(predictions: CellPredictions, **options: Any) -> SubjectRuleBlock:
    block = subject_rule_block(predictions, "ALL", **options)
    assert block is not None
    return block


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
    block = block_of(_predictions(logits), temperature=2.0).content()

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
    block_of(_predictions(logits))
    # One rule a subject, without that subject, and the rule to ship.
    assert sorted(next(iter(logits.keys() - names)) for names in seen[:-1]) == sorted(logits)
    assert seen[-1] == set(logits)


def _curve_of(logits: dict[str, np.ndarray]) -> dict[int, tuple[float, float]]:
    subjects = module._subjects(_predictions(logits), "ALL")
    rules = [module._fit_rule(subjects, ("ALL", "HEM"), "ALL")] * len(subjects)
    truth = np.array([subject.positive for subject in subjects])
    curve = module._curve(subjects, rules, truth, (module._scores(subjects, rules) >= 0.5) == truth)
    return {cells: (few, every) for cells, few, every in curve}


def test_more_cells_tell_subjects_apart_better_and_the_curve_says_from_how_many_on() -> None:
    logits = _made_subjects(0.7, cells=60, between=0.1)
    curve = _curve_of(logits)
    assert list(curve) == [1, 3, 5, 10, 20, 50]
    assert curve[1][0] < 0.8 < 0.95 < curve[20][0]
    assert block_of(_predictions(logits)).least_cells > 1


def test_where_no_number_of_cells_is_enough_the_block_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = _predictions(_made_subjects(2.0))
    block = block_of(predictions).content()
    assert block["least_cells"] < 20 and block["least_cells_suffice"] is True
    monkeypatch.setattr(module, "MAY_LOSE", -1.0)
    block = block_of(predictions).content()
    assert (block["least_cells"], block["least_cells_suffice"]) == (20, False), "the largest number tried"
    assert "too few cells" not in {one["outcome"] for one in block["subjects"].values()}


def test_size_alone_is_measured_by_the_same_rule_on_the_same_subjects() -> None:
    logits = _made_subjects(2.0)
    logits["HEM3"] += 5.0  # on the other side
    predictions, size_only = _predictions(_made_subjects(2.0)), _predictions(logits)
    block = block_of(predictions, size_only=size_only).content()
    alone, own = block["size_only"], block_of(size_only).content()["measured"]
    assert alone == {key: own[key] for key in ("auroc", "sensitivity", "specificity")} | {
        "difference": alone["difference"]
    }
    found = alone["difference"]
    assert found["difference"] == pytest.approx(block["measured"]["auroc"]["value"] - own["auroc"]["value"])
    assert found["low"] <= found["difference"] <= found["high"] and found["difference"] > 0
    Metrics.model_validate({"subject_rule": json.loads(json.dumps(block))})
    assert block_of(predictions).size_only is None


def test_of_nobody_there_is_no_share() -> None:
    block = block_of(_predictions(_made_subjects(2.0))).content() | {"least_cells": 99}
    judged = measure_subject_rule(_predictions(_made_subjects(2.0)), rule_of(block))
    assert judged is not None and judged["given_a_class"] == 0
    nothing = {"share": None, "low": None, "high": None, "right": 0, "of": 0}
    assert judged["sensitivity"] == judged["specificity"] == nothing
    rate = Rate.model_validate(nothing)
    assert fraction(rate) == "0 of 0" and with_span(rate, "share") == "–"


def test_a_dip_at_many_cells_is_not_passed_over() -> None:
    rows = [(n, few, 0.9) for n, few in ((1, 0.7), (3, 0.89), (5, 0.8), (10, 0.89), (20, 0.9))]
    assert least_cells(rows) == 10
    assert least_cells(rows[:3]) is None, "even the largest number loses too much"


def test_subjects_with_too_few_cells_are_left_out_of_the_curve_and_get_no_class() -> None:
    logits = _made_subjects(0.7, subjects=5, cells=60, between=0.1)
    few = {"ALL": np.ones(2), "HEM": -np.ones(2)}
    assert _curve_of(few).keys() == {1}, "of more cells, no subject is left"
    assert _curve_of(few | logits).keys() == _curve_of(logits).keys()
    block = block_of(_predictions(few | logits)).content()
    assert block["least_cells"] > 2
    assert block["subjects"]["ALL"]["outcome"] == "too few cells"
    assert block["measured"]["given_a_class"] <= 10


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("three classes", "it needs two classes, and there are 3"),
        ("no positive class", "neither class is the positive one (name it with --positive_label)"),
        ("unknown subject", "the subject of a cell is not known (name subjects with --subject_pattern"),
        ("two classes in a subject", "a subject has cells of both classes"),
        ("few subjects", "it needs 3 validation subjects of each class, and there are 2 of ALL and 2 of HEM (gather "),
    ],
)
def test_no_block_where_subjects_cannot_be_measured(
    why: str, said: str, calibrated_cells: Callable[..., CellPredictions]
) -> None:
    logits = _made_subjects(1.0, subjects=2 if why == "few subjects" else 6)
    predictions = _predictions(logits)
    if why == "three classes":
        predictions = calibrated_cells(300, classes=3)
    elif why == "unknown subject":
        predictions = replace(predictions, subjects=("", *predictions.subjects[1:]))
    elif why == "two classes in a subject":
        predictions.references[0] = 1
    positive = "" if why == "no positive class" else "ALL"
    assert subject_rule_block(predictions, positive) is None
    reason = why_no_rule(predictions.subjects, predictions.references, predictions.label_names, positive)
    assert reason.startswith(said)


def test_the_rule_stands_on_the_scale_of_the_release() -> None:
    predictions = _predictions(_made_subjects(1.0))
    as_they_are, scaled = (block_of(predictions, temperature=t).content() for t in (1.0, 2.0))
    assert scaled["rule"]["coefficients"] == pytest.approx(
        [2 * c for c in as_they_are["rule"]["coefficients"]], rel=1e-4
    )
    assert scaled["rule"]["intercept"] == pytest.approx(as_they_are["rule"]["intercept"], abs=1e-4)


def test_a_release_judges_subjects_by_its_own_rule() -> None:
    rule = {"pooling": "quantiles", "coefficients": [0.2] * 5, "intercept": 0.0}
    block = {"positive_label": "ALL", "rule": rule, "least_cells": 3, "measured": {"error_rate": {}}}
    logits = {"ALL0": np.full(5, 2.0), "ALL1": np.full(5, -2.0), "ALL2": np.full(2, 2.0), "HEM0": np.full(5, -1.0)}
    judged = measure_subject_rule(_predictions(logits), rule_of(block))
    assert judged is not None
    assert (len(judged["subjects"]), judged["given_a_class"]) == (4, 3)
    assert (judged["sensitivity"]["right"], judged["sensitivity"]["of"]) == (1, 2)
    assert (judged["specificity"]["right"], judged["specificity"]["of"]) == (1, 1)
    assert {name: one["outcome"] for name, one in judged["subjects"].items()} == {
        "ALL0": "ALL", "ALL1": "HEM", "ALL2": "too few cells", "HEM0": "HEM",
    }  # fmt: skip
