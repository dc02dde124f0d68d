"""`leukoscope release export` writes a graph, or says in one line why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli import app


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["release", "export", *(str(a) for a in arguments)])


@pytest.mark.slow
def test_a_release_from_the_hub_is_written_with_its_commit(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_release, tmp_path / "snapshots" / "c0ffee")
    monkeypatch.setattr("leukoscope.models.hub_download.fetch_files", lambda *asked: tmp_path / "snapshots" / "c0ffee")

    result = run("someone/tiny@main", "--output", tmp_path / "graph")

    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path / 'graph' / 'onnx' / 'model.onnx'}: at most" in result.stdout
    assert RESEARCH_NOTICE in result.stdout
    report = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert (report["model"], report["revision"]) == ("someone/tiny", "c0ffee")
    assert report["labels"] == ["ALL", "HEM"] and report["notice"] == RESEARCH_NOTICE


def test_a_folder_that_is_no_export_is_not_replaced(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(tiny_release, "--output", ".")
    assert result.exit_code == 1
    assert result.stderr == "error: --output .: exists and is no earlier export; name a new folder\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_release_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, "--output", tmp_path / "graph")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}: has no config.json")
