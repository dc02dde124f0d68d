"""`leukoscope doctor` for scripts and people: a table or JSON, and an exit code that tells broken from advice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cli import app


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["doctor", *map(str, arguments)])


def test_advice_ends_with_0_and_names_the_next_step(tmp_path: Path) -> None:
    result = run("--releases", tmp_path)
    assert result.exit_code == 0, result.output
    assert "releases, next step: train one with `leukoscope train`" in result.stdout
    assert RESEARCH_NOTICE in result.stdout
    assert json.loads(run("--releases", tmp_path, "--json").stdout)["state"] == "advice"


def test_a_damaged_release_ends_with_1(tiny_release: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_release, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    result = run("--releases", tmp_path, "--json")
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert (said["version"], said["state"], said["notice"]) == (__version__, "broken", RESEARCH_NOTICE)
    (broken,) = (finding for finding in said["findings"] if finding["state"] == "broken")
    assert broken["name"] == "release damaged" and broken["next_step"]
