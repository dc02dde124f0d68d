"""A decision in words: as firm as the numbers behind it, and without a class where none is decided on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leukoscope.inference.prediction import Decision, Reason, Thresholds
from leukoscope.models.metrics import Metrics
from leukoscope.reports.words import (
    brief_reason,
    foreign_text,
    meanings_text,
    model_text,
    percent,
    question,
    robustness_text,
    warnings,
)
from release_fixtures import ROBUSTNESS

ROOT = Path(__file__).parents[2]
SUBJECTS = {
    "1": {"label": "ALL", "accuracy": 0.9}, "2": {"label": "ALL", "accuracy": 1.0},
    "H1": {"label": "HEM", "accuracy": 0.8},
}  # fmt: skip
RECALLS = {"ALL": 0.95, "HEM": 0.8}
CONTENT: dict[str, Any] = {
    "labels": ["ALL", "HEM"],
    "data": {"title": "C-NMC 2019", "unit": "subject", "licence": "CC BY 3.0"},
    "training": {"subjects": ["1", "2"]},
    "evaluations": [
        {"split": {"disjoint_by": "subject"}, "metrics": {"subjects": SUBJECTS, "recall_by_subject": RECALLS}}
    ],
    "ood": {"held_out": {"kept_share_by_subject": 0.978}},
}  # fmt: skip

METRICS = Metrics.from_content(CONTENT)

DECIDED = Thresholds(abstain_below=0.7)
CALIBRATED: dict[str, Any] = {"calibration": {"temperature": 1.2}}


@pytest.mark.parametrize(("share", "text"), [(0.004, "<1"), (0.996, ">99"), (1.0, "100"), (0.0, "0")])
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == f"{text}\u00a0%"


@pytest.mark.parametrize(
    ("metrics", "has_detector", "said"),
    [
        (CALIBRATED, False, ["This model has no OOD detector: it gives a class to any"]),
        (CALIBRATED | {"data": {"synthetic": True}}, True, ["This model was trained on synthetic phantoms, not on"]),
        (CALIBRATED | {"data": {"synthetic": False}}, True, []),
        ({}, True, ["This model has no calibration: its percentages are not how often it is right."]),
        ({}, False, ["This model has no calibration:", "This model has no OOD detector:"]),
    ],
)
def test_what_a_model_lacks_is_said_once(metrics: dict[str, Any], has_detector: bool, said: list[str]) -> None:
    found = warnings(Metrics.model_validate(metrics), has_detector=has_detector)
    assert len(found) == len(said) and all(one.startswith(start) for one, start in zip(found, said, strict=True))


def test_a_release_is_described_in_one_line() -> None:
    assert model_text(METRICS) == "Trained on C-NMC 2019, 2 people · CC BY 3.0"
    assert model_text(Metrics()) == ""
    assert (
        model_text(Metrics.from_content({**CONTENT, "data": {"title": "B-ALL", "unit": "block", "licence": ""}}))
        == "Trained on B-ALL"
    )


def test_a_refused_picture_is_told_how_far_it_is_from_the_training_cells() -> None:
    far = Decision("out of distribution", (Reason("ood_texture", 12.34, 1.0),))
    assert foreign_text(far).startswith("Its texture is unlike that of the training cells. As a whole it is")
    assert "is 12 times as far from them as the limit allows" in foreign_text(far)
    assert "OOD score" not in foreign_text(far)
    near = Decision("out of distribution", (Reason("ood_texture", 1.04, 1.0),))
    assert " 1.04 times as far from them as the limit" in foreign_text(near)


def test_the_two_worst_kinds_of_changes_are_said_in_one_sentence() -> None:
    assert robustness_text(Metrics.from_content({"robustness": ROBUSTNESS})) == (
        "Of 100 cells, 11 change class when 10 % larger, 5 when 15 % more saturated."
    )
    assert robustness_text(Metrics()) == ""
    tested = {
        "split": {"disjoint_by": "subject"},
        "metrics": {"subjects": {f"H{number}": {"label": "HEM", "accuracy": 1.0} for number in range(50)}},
    }
    assert robustness_text(Metrics.from_content({"robustness": ROBUSTNESS, "evaluations": [tested]})) == (
        "Of 100 cells of 41 people, 11 change class when 10 % larger, 5 when 15 % more saturated."
    )
    still = {name: change | {"class_changed": 0.0} for name, change in ROBUSTNESS["changes"].items()}
    assert robustness_text(Metrics.from_content({"robustness": ROBUSTNESS | {"changes": still}})) == (
        "No class of 1200 unseen cells changes under the small changes that were tried."
    )


def test_the_question_on_top_follows_the_classes_of_the_model() -> None:
    assert question(("ALL", "HEM")) == "Is this white blood cell a leukaemic blast?"
    assert question(("Benign", "Early", "Pre", "Pro")) == "Is this white blood cell Benign, Early, Pre or Pro?"
    assert question(()) == question(tuple("abcdefgh")) == "Which kind of white blood cell is this?"
    said = meanings_text(("ALL", "HEM"))
    assert said == "ALL: a blast of acute lymphoblastic leukaemia. HEM: a normal cell, a B-cell precursor."
    assert meanings_text(("Benign", "x")) == "Benign: a benign haematogone."


def test_a_reason_beside_its_picture_names_the_class_and_the_limit() -> None:
    low = Reason("low_confidence", 0.69996, 0.7)
    assert brief_reason(low, "HEM") == "HEM has 69.996\u00a0%; the model gives a class from 70.000\u00a0%."
    between = Reason("low_confidence", 0.81, 0.823)
    assert brief_reason(between, "HEM") == "HEM has 81\u00a0%; the model gives a class from 82.3\u00a0%."
    off_cell = Reason("explanation_off_cell", 0.55, 0.63)
    assert brief_reason(off_cell, "ALL") == "Only 55\u00a0% of its map lies on the cell; 63\u00a0% or more is usual."
    views = Reason("views_disagree", 0.375, 0.25)
    assert brief_reason(views, "ALL") == views.text
