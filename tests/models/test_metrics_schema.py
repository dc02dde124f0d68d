"""metrics.json keeps to its committed schema: that of every embedded release, and what breaks it is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from leukoscope.models import release
from leukoscope.models.release import SCHEMA_VERSION

SCHEMA = json.loads(Path(release.__file__).with_name("metrics.schema.json").read_text())
EMBEDDED = sorted((Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


def _problems(metrics: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(metrics)]


def test_the_schema_is_one_and_of_the_version_that_is_written() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.parent.name)
def test_embedded_releases_keep_to_it(path: Path) -> None:
    metrics = json.loads(path.read_text())
    assert _problems(metrics) == []
    assert {"calibration", "decisions", "ood", "heat_maps"} <= metrics.keys(), "each carries its evidence"


def _without_estimates(metrics: dict[str, Any]) -> None:
    del metrics["evaluations"][0]["estimates"]


def _share_above_one(metrics: dict[str, Any]) -> None:
    metrics["evaluations"][0]["metrics"]["f1_weighted"] = 82.0


def _too_few_draws(metrics: dict[str, Any]) -> None:
    metrics["evaluations"][0]["intervals"]["draws"] = 100


def _unknown_block(metrics: dict[str, Any]) -> None:
    metrics["miracle"] = 1


@pytest.mark.parametrize("spoil", [_without_estimates, _share_above_one, _too_few_draws, _unknown_block])
def test_what_breaks_it_is_found(spoil: Any) -> None:
    metrics = copy.deepcopy(json.loads(EMBEDDED[0].read_text()))
    spoil(metrics)
    assert len(_problems(metrics)) >= 1
