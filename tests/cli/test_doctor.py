"""`leukoscope doctor` for scripts and people: a table or JSON, and an exit code that tells broken from advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cli import app


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["doctor", *map(str, arguments)])


def test_advice_ends_with_0_and_names_the_next_step() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "network, next step: embedded releases, cached models and --from_scratch work without" in result.stdout
    assert RESEARCH_NOTICE in result.stdout
    assert json.loads(run("--json").stdout)["state"] == "advice"


def test_a_cache_that_cannot_be_written_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    result = run("--json")
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert (said["version"], said["state"], said["notice"]) == (__version__, "broken", RESEARCH_NOTICE)
    (broken,) = (finding for finding in said["findings"] if finding["state"] == "broken")
    assert broken["name"] == "cache" and broken["next_step"]
