"""A release says what the checks of its maps found, and that they were not checked where no block tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leukoscope.models.map_check import MapCheck
from leukoscope.models.release import read_release

RELEASES = Path(__file__).parents[2] / "model_card"


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
    check = MapCheck.from_metrics(metrics)
    assert check.passed is passed
    assert check.text == f"This model's Grad-CAM maps {text}"
    assert json.loads(json.dumps(check.to_dict())) == {**vars(check), "text": check.text}


@pytest.mark.parametrize("release", sorted(RELEASES.glob("*/metrics.json")), ids=lambda path: path.parent.name)
def test_the_releases_that_come_along_say_what_their_checks_found(release: Path) -> None:
    about = read_release(release.parent)
    checks = json.loads(release.read_text(encoding="utf-8"))["heat_maps"]
    assert about.maps_passed is about.map_check.passed is checks["passed"]
    assert about.map_check.deletion_gain == checks["deletion"]["gain_over_random"]["mean"]
