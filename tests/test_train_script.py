"""`train.py` as a person runs it: launched, it ends in a release; mistaken, it ends in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def _run(command: list[str], folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run in an empty folder, offline, with a cache of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "LEUKOSCOPE_CACHE": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def _accelerate(*flags: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    return [*launcher, str(ROOT / "train.py"), *flags]


def test_a_launched_run_ends_with_a_release(tmp_path: Path) -> None:
    flags = ("--image_size", "32", "--max_train_samples", "48", "--num_train_epochs", "1", "--output_dir", "run")
    ended = _run(_accelerate(*flags), tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "Smoke run on synthetic phantoms: it shows that everything works, and nothing about patients." in lines
    assert "run folder: run" in lines
    release = tmp_path / "run" / "release"
    assert {path.name for path in release.iterdir()} >= {"config.json", "metrics.json", "model.safetensors"}
    assert json.loads((release / "config.json").read_text())["label_names"] == ["ALL", "HEM"]


def test_it_trains_on_real_cells_and_judges_them_subject_by_subject(tmp_path: Path, real_data: Path) -> None:
    cells = ("--dataset_name", "cnmc2019", "--train_dir", str(real_data / "cnmc2019"), "--split", "official")
    small = ("--image_size", "48", "--max_train_samples", "64", "--max_eval_samples", "128", "--num_train_epochs", "1")
    ended = _run(_accelerate(*cells, *small, "--from_scratch", "--no_validation", "--output_dir", "run"), tmp_path, 900)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (block,) = metrics["evaluations"]
    assert block["split"]["detail"] == "fold_0 → fold_1"
    assert {"H10", "H14", "H22"} & set(block["metrics"]["subjects"])
    assert not set(metrics["training"]["subjects"]) & set(block["metrics"]["subjects"])
    assert metrics["training"]["cells"] == 64
    assert str(tmp_path) not in json.dumps(metrics) and str(real_data) not in json.dumps(metrics)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_name", "cnmc2019", "--train_dir", "nowhere"], "error: --train_dir nowhere: no such folder; "),
        (["--recipe", "vgg"], "error: --recipe vgg: unknown; choose one of "),
        (["--seed", "-1"], "error: --seed -1: give 0 or more"),
    ],
    ids=["folder", "recipe", "seed"],
)
def test_a_mistake_ends_in_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    ended = _run([sys.executable, str(ROOT / "train.py"), *flags], tmp_path, timeout=300)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_without_arguments_it_learns_phantoms_of_subjects_it_never_saw(tmp_path: Path) -> None:
    ended = _run([sys.executable, str(ROOT / "train.py")], tmp_path, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "runs" / "phantoms-densenet121" / "metrics.json").read_text())
    (block,) = metrics["evaluations"]
    assert block["split"]["disjoint_by"] == "subject"
    assert not set(metrics["training"]["subjects"]) & set(block["metrics"]["subjects"])
    assert block["metrics"]["accuracy"] >= 0.95
