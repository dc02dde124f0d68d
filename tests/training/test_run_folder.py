"""What metrics.json says of a run's making, and how its rows and figures are written."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock

import leukoscope
from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.models.recipes import get_recipe
from leukoscope.training import run_folder as tracking
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.run_folder import (
    RunIdentity,
    check_tracking,
    describe_run,
    finish_tracking,
    hardware,
    locked,
    result_lines,
    start_tracking,
    track_epoch,
    track_result,
)


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


def test_figures_for_the_terminal_stand_with_their_baseline_and_the_notice() -> None:
    figures = {"cells": 1234, "accuracy": 0.8, "balanced_accuracy": 0.75, "f1_weighted": 0.7, "auroc": None}
    baseline = {"balanced_accuracy": 0.7, "f1_weighted": 0.6}
    assert result_lines({"metrics": figures, "size_only_baseline": baseline}).splitlines() == [
        "test (1,234 cells): accuracy 0.800, balanced accuracy 0.750, weighted F1 0.700, AUROC –",
        "  cell size alone: balanced accuracy 0.700, weighted F1 0.600",
        f"  {RESEARCH_NOTICE}",
    ]


# Trains, as far as a lock can tell, until it is killed; importing `locked` would take ten seconds.
_TRAINING = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_is_locked_while_a_process_trains_into_it_and_no_longer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TRAINING, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.readline()
        with pytest.raises(LeukoscopeError) as error, locked(tmp_path):
            pass
        assert str(error.value) == (
            f"--output_dir {tmp_path}: another training is writing there; wait until it has ended, or give another "
            "folder"
        )
        running.kill()
        running.wait()
        for _ in range(2):  # one training after another
            with locked(tmp_path):
                pass
        assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refused)
    with locked(tmp_path):
        said = capsys.readouterr().out
    assert said == (
        f"--output_dir {tmp_path}: cannot be locked (No locks available); start no other training into it\n"
    )


# A tracker logs a run's metrics, stays on this machine, and is refused early where it could not


ROWS = [{"epoch": 1, "train_loss": 0.75, "val_auroc": 0.5}, {"epoch": 2, "train_loss": 0.25, "val_auroc": 0.875}]
BLOCK = {"metrics": {"accuracy": 0.75, "balanced_accuracy": 0.5, "f1_weighted": 0.5, "f1_macro": 0.5, "auroc": None}}


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: pip install 'leukoscope[tracking]'")


def _config(out: Path, tracker: str) -> TrainingConfig:
    return parse_config(["--report_to", tracker, "--output_dir", str(out)])


def _tracked(out: Path, config: TrainingConfig) -> None:
    """A run's course, without the training."""
    accelerator = Accelerator(cpu=True, log_with=config.run.report_to, project_dir=out)
    start_tracking(accelerator, config, get_recipe("densenet121"))
    for row in ROWS:
        track_epoch(accelerator, row)
    track_result(accelerator, BLOCK, epochs_run=2, kept_epoch=1)
    finish_tracking(accelerator)


def test_a_tracker_that_is_not_installed_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["mlflow"])
    with pytest.raises(LeukoscopeError) as refused:
        check_tracking("wandb")
    assert str(refused.value) == (
        "--report_to wandb: wandb is not installed; `pip install wandb`, or leave the flag out"
    )


@_needs("tensorboard")
def test_tensorboard_gets_metrics_and_settings_in_the_run_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _tracked(tmp_path, _config(tmp_path, "tensorboard"))
    assert [path.name for path in tmp_path.iterdir()] == ["leukoscope"]
    events = EventAccumulator(str(tmp_path / "leukoscope"))
    events.Reload()
    told = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert told == {
        "train_loss": [(1, 0.75), (2, 0.25)],
        "val_auroc": [(1, 0.5), (2, 0.875)],
        # At the last step, though an earlier epoch was kept: wandb leaves out what is logged at an earlier step.
        **{f"test_{name}": [(2, value)] for name, value in BLOCK["metrics"].items() if value is not None},
        "kept_epoch": [(2, 1)],
    }
    (file,) = tmp_path.rglob("hparams.yml")
    settings = yaml.safe_load(file.read_text())
    assert settings["train_folds"] == "['fold_0']" and settings["no_validation"] is False
    assert settings["resolved_recipe.name"] == "densenet121" and "image_size" not in settings, "unset, it is left out"
    assert {type(value) for value in settings.values()} <= {bool, int, float, str}


@_needs("wandb")
def test_wandb_can_be_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    _tracked(tmp_path, _config(tmp_path, "wandb"))
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert len(list(run.glob("*.wandb"))) == 1


# trackio reads its folder once, when imported, and every connection is to be seen: a process of its own.
TRACKED = """
import os, socket, sys, webbrowser
from pathlib import Path
asked = []
def refused(*args, **named):
    asked.append(args)
    raise OSError("no network here")
socket.getaddrinfo = socket.socket.connect = refused
webbrowser.open = lambda *args, **named: asked.append(args)
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_run_folder import _config, _tracked
from leukoscope.training.run_folder import check_tracking
out = Path(sys.argv[2])
config = _config(out, "trackio")
check_tracking("trackio")
_tracked(out, config)
assert not asked, asked
"""


@pytest.mark.slow
@_needs("trackio")
def test_trackio_keeps_the_metrics_on_this_machine_and_works_offline(tmp_path: Path) -> None:
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(leukoscope.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", TRACKED, __file__, str(tmp_path / "runs" / "mine")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    # How trackio lays out its database is its own affair; what it was told must be in there.
    kept = b"".join(path.read_bytes() for path in (tmp_path / "trackio").glob("leukoscope*"))
    assert all(name in kept for name in (b"train_loss", b"test_accuracy", b"resolved_recipe.image_size"))
