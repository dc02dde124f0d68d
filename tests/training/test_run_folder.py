"""What metrics.json says of a run's making, and how its rows and figures are written."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import append_row, describe_run, hardware, locked, result_lines


@pytest.fixture
def config() -> TrainingConfig:
    return parse_config(["--dataset_name", "imagefolder", "--train_dir", "/data/of/mine/cells", "--seed", "3"])


def test_a_run_is_described_by_its_cells_start_and_machine(
    config: TrainingConfig, cells: FramedCells, split: Split
) -> None:
    made = describe_run(config, RunIdentity.of(config, config.resolve()), cells, split, "ImageNet", torch.device("cpu"))
    training = made["training"]
    assert (training["cells"], training["start_weights"], training["seed"]) == (len(split.train), "ImageNet", 3)
    assert training["subjects"] == sorted({cells.subjects[row] for row in cells.rows(split.train)})
    assert sum(training["class_frequencies"].values()) == pytest.approx(1)
    assert training["versions"] == {"leukoscope": __version__, "python": platform.python_version()} | {
        name: version(name)
        for name in ("torch", "timm", "transformers", "datasets", "accelerate", "evaluate", "scikit-learn")
    }
    assert training["hardware"] == f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"
    assert made["notice"] == RESEARCH_NOTICE
    assert "/data/of/mine" not in json.dumps(made)


def test_a_run_on_the_cpu_names_the_cpu_though_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"a GPU, {device}")
    assert hardware(torch.device("cpu")).startswith("CPU, ")
    assert hardware(torch.device("cuda:1")) == "a GPU, cuda:1"


def test_args_are_written_as_plain_values(config: TrainingConfig, tmp_path: Path) -> None:
    RunIdentity.of(config, config.resolve()).save(tmp_path)
    args = yaml.safe_load((tmp_path / "args.yaml").read_text())
    assert args["flags"]["train_dir"] == "/data/of/mine/cells"
    assert isinstance(args["resolved_recipe"]["frozen"], list)


def test_a_row_an_epoch_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    path.write_text("of an earlier run")
    for epoch in (1, 2):
        append_row(path, {"epoch": epoch, "train_loss": 0.5 / epoch})
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "train_loss": "0.5"}, {"epoch": "2", "train_loss": "0.25"}]


def test_figures_for_the_terminal_stand_with_their_baseline_and_the_notice() -> None:
    figures = {"cells": 1234, "accuracy": 0.8, "balanced_accuracy": 0.75, "f1_weighted": 0.7, "auroc": None}
    baseline = {"balanced_accuracy": 0.7, "f1_weighted": 0.6}
    assert result_lines({"metrics": figures, "size_only_baseline": baseline}).splitlines() == [
        "test (1,234 cells): accuracy 0.800, balanced accuracy 0.750, weighted F1 0.700, AUROC –",
        "  cell size alone: balanced accuracy 0.700, weighted F1 0.600",
        f"  {RESEARCH_NOTICE}",
    ]


# Trains, as far as a lock can tell, until it is killed; a worker forked from it goes on while its input is open.
_TRAINING = """
import os, sys
from pathlib import Path
from leukoscope.training.run_folder import locked
with locked(Path(sys.argv[1])):
    if worker := os.fork():
        print(worker, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is started forks")
def test_a_run_folder_is_locked_while_a_process_trains_into_it_and_no_longer(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _TRAINING, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        worker = int(running.stdout.readline())
        with pytest.raises(LeukoscopeError) as error, locked(tmp_path):
            pass
        assert str(error.value) == (
            f"--output_dir {tmp_path}: another training is writing there; wait until it has ended, or give another "
            "folder"
        )
        running.kill()
        running.wait()
        os.kill(worker, 0)  # an error unless it lives
        for _ in range(2):  # one training after another
            with locked(tmp_path):
                pass
        assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refused)
    with locked(tmp_path):
        said = capsys.readouterr().out
    assert said == (
        f"--output_dir {tmp_path}: its disk knows no locks (No locks available); start no other training into it\n"
    )
