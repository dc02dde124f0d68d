"""`leukoscope release export` writes a graph that anyone's OpenVINO runs, or says in one line why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli import app


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["release", "export", *(str(a) for a in arguments)])


def test_a_graph_is_written_that_openvino_runs_alone(tiny_release: Path, tmp_path: Path) -> None:
    import openvino

    result = run(tiny_release, "--format", "openvino", "--output", tmp_path / "graph")

    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path / 'graph' / 'model.xml'}: at most" in result.stdout and RESEARCH_NOTICE in result.stdout
    report = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert report["labels"] == ["ALL", "HEM"] and report["notice"] == RESEARCH_NOTICE
    compiled = openvino.compile_model(tmp_path / "graph" / "model.xml", "CPU")
    logits, features = compiled(np.zeros((3, 96, 96, 3), np.uint8)).values()
    assert logits.shape == (3, 2) and features.shape == (3, 128, 3, 3)


def test_a_release_from_the_hub_is_written_with_its_commit(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_release, tmp_path / "snapshots" / "c0ffee")
    monkeypatch.setattr("leukoscope.models.hub_download.fetch_files", lambda *asked: tmp_path / "snapshots" / "c0ffee")

    result = run("someone/tiny@main", "--format", "openvino", "--output", tmp_path / "graph")

    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert (report["model"], report["revision"]) == ("someone/tiny", "c0ffee")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--format", "tflite"], "error: --format tflite: unknown; give one of onnx, openvino"),
        (["--output", "."], "error: --output .: exists and is no earlier export; name a new folder"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run(tiny_release, "--output", "graph", *arguments)

    assert result.exit_code == 1
    assert result.stderr == f"{problem}\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_release_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, "--output", tmp_path / "graph")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}: has no config.json")
