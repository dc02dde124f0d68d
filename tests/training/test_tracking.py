"""A tracker logs a run's metrics, stays on this machine, and is refused early where it could not."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator

import leukoscope
from leukoscope import LeukoscopeError
from leukoscope.models.metrics import Evaluation
from leukoscope.models.recipes import get_recipe
from leukoscope.training import tracking
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.tracking import check_tracking, finish_tracking, start_tracking, track_epoch, track_test

ROWS = [{"epoch": 1, "train_loss": 0.75, "val_auroc": 0.5}, {"epoch": 2, "train_loss": 0.25, "val_auroc": 0.875}]
FIGURES = {"accuracy": 0.75, "balanced_accuracy": 0.5, "f1_weighted": 0.5, "f1_macro": 0.5, "auroc": None}
BLOCK = Evaluation.model_validate({"metrics": FIGURES})


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
    track_test(accelerator, BLOCK, epochs_run=2, kept_epoch=1)
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
        **{f"test_{name}": [(2, value)] for name, value in FIGURES.items() if value is not None},
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
from test_tracking import _config, _tracked
from leukoscope.training.tracking import check_tracking
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
