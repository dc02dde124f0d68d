"""metrics.json is read once into types; what an older file lacks is filled in and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leukoscope.models.metrics import Metrics
from release_fixtures import METRICS, ROBUSTNESS

EMBEDDED = sorted((Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


@pytest.mark.parametrize("file", EMBEDDED, ids=lambda path: path.parent.name)
def test_what_is_read_is_written_again_with_every_figure(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    metrics = Metrics.model_validate(content)
    assert metrics.content() == content
    assert metrics.changed(notice="ours").content() == content | {"notice": "ours"}
    assert "views" not in metrics.changed(views=None).content(), "None leaves a block out"


def test_an_older_file_says_what_was_filled_in() -> None:
    training = METRICS["training"] | {"class_frequencies": {"ALL": 0.6, "HEM": 0.4}}
    metrics = Metrics.from_content(METRICS | {"training": training, "robustness": ROBUSTNESS})
    assert metrics.training.output_frequencies == {"ALL": 0.6, "HEM": 0.4}
    assert metrics.robustness is not None and metrics.robustness.cells_of == "test"
    assert len(metrics.filled_in) == 2 and Metrics.from_content(metrics.content()).filled_in == []


def test_a_training_without_folds_measured_what_decides_on_its_validation_side() -> None:
    (first, *_) = METRICS["evaluations"]
    evaluations = [{name: block for name, block in first.items() if name != "folds"}]
    decisions = {"abstention": {"default": {"threshold": 0.6}}}
    metrics = Metrics.from_content(METRICS | {"evaluations": evaluations, "decisions": decisions})
    assert metrics.decisions is not None and metrics.decisions.cells_of == "validation"


def test_the_worst_change_is_the_one_that_changes_most_classes() -> None:
    robustness = Metrics.from_content({"robustness": ROBUSTNESS}).robustness
    assert robustness is not None and robustness.worst.shows == "10 % larger"


def block(gain: float | None = None, **content: Any) -> dict[str, Any]:
    return {"heat_maps": {"method": "evidence", "deletion": {"gain_over_random": {"mean": gain}}} | content}


@pytest.mark.parametrize(
    ("metrics", "passed", "text"),
    [
        ({}, None, "were not checked."),
        ({"heat_maps": {}}, None, "were not checked."),
        (block(0.2, passed=True, method="gradcam"), None, "were not checked."),
        (
            block(0.093, passed=True),
            True,
            "passed our checks. Removing what they mark leaves the class's probability 0.09 lower than removing random "
            "pixels.",
        ),
        (
            block(-0.147, passed=False),
            False,
            "failed our checks. Removing what they mark leaves the class's probability 0.15 higher than removing "
            "random pixels.",
        ),
        (block(0.08, passed=False), False, "failed our checks."),
        (block(passed=False), False, "failed our checks."),
    ],
)
def test_the_finding_of_the_checks_is_read_and_put_into_words(
    metrics: dict[str, Any], passed: bool | None, text: str
) -> None:
    check = Metrics.model_validate(metrics).map_check
    assert check.passed is passed
    assert check.text == f"This model's Grad-CAM maps {text}"
    facts = {"method": "evidence", "passed": passed, "deletion_gain": check.deletion_gain, "text": check.text}
    assert json.loads(json.dumps(check.to_dict())) == facts
