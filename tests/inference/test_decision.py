"""Thresholds as a release carries them, and what they make of probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leukoscope.inference.verdicts import Thresholds

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet121-cnmc"
TWO = Thresholds("ALL", {"sensitivity_95": 0.3, "specificity_95": 0.9}, abstain_below=0.7)


@pytest.mark.parametrize(
    ("p_all", "sensitive", "specific", "abstains"),
    [(0.29, False, False, False), (0.30, True, False, False), (0.31, True, False, True), (0.90, True, True, False)],
)
def test_a_cell_is_positive_from_the_threshold_up(p_all: float, sensitive: bool, specific: bool, abstains: bool):
    probabilities = np.array([[p_all, 1 - p_all]])
    called = TWO.positives(probabilities, ("ALL", "HEM"))
    assert {name: bool(which[0]) for name, which in called.items()} == {
        "sensitivity_95": sensitive,
        "specificity_95": specific,
    }
    sure = TWO.abstains(probabilities)
    assert sure is not None and bool(sure[0]) is abstains


def test_the_positive_class_is_found_by_name_not_by_place():
    called = TWO.positives(np.array([[0.05, 0.95]]), ("HEM", "ALL"))
    assert called["specificity_95"].tolist() == [True]


def test_thresholds_of_a_committed_release_are_those_of_its_metrics():
    metrics = json.loads((RELEASE / "metrics.json").read_text())
    thresholds = Thresholds.from_metrics(metrics)
    points = metrics["decisions"]["operating_points"]["points"]
    assert thresholds.positive_label == "ALL"
    assert thresholds.operating_points == {name: point["threshold"] for name, point in points.items()}
    assert thresholds.abstain_below == metrics["decisions"]["abstention"]["default"]["threshold"]


def test_a_release_without_decisions_gives_no_verdict():
    nothing = Thresholds.from_metrics({"decisions": {"operating_points": {}, "abstention": {}}})
    assert nothing == Thresholds.from_metrics({}) == Thresholds()
    assert nothing.abstains(np.array([[0.5, 0.5]])) is None
    assert nothing.positives(np.array([[0.5, 0.5]]), ("ALL", "HEM")) == {}


def test_more_than_two_classes_have_no_operating_point():
    four = Thresholds.from_metrics(
        {"decisions": {"operating_points": {}, "abstention": {"default": {"threshold": 0.6}}}}
    )
    assert four.positives(np.full((1, 4), 0.25), ("a", "b", "c", "d")) == {}
    assert four.abstains(np.full((1, 4), 0.25)) == np.array([True])
