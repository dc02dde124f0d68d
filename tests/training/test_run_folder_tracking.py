"""A tracker logs a run's metrics, stays on this machine, and is refused early where it could not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate import Accelerator

import leukoscope
from hub_server import WRITE_TOKEN, Hub, serving
from leukoscope import LeukoscopeError
from leukoscope.models.recipes import get_recipe
from leukoscope.training import run_folder as tracking
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.run_folder import (
    check_tracking,
    finish_tracking,
    start_tracking,
    track_epoch,
    track_result,
)

ROWS = [{"epoch": 1, "train_loss": 0.75, "val_auroc": 0.5}, {"epoch": 2, "train_loss": 0.25, "val_auroc": 0.875}]
BLOCK = {"metrics": {"accuracy": 0.75, "balanced_accuracy": 0.5, "f1_weighted": 0.5, "f1_macro": 0.5, "auroc": None}}


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: pip install 'leukoscope[tracking]'")


def _config(out: Path, *flags: str) -> TrainingConfig:
    return parse_config(["--with_tracking", "--output_dir", str(out), *flags])


def _tracked(out: Path, config: TrainingConfig) -> None:
    """A run's course, without the training."""
    accelerator = Accelerator(cpu=True, log_with=config.tracker, project_dir=out)
    start_tracking(accelerator, config, get_recipe("densenet121"))
    for row in ROWS:
        track_epoch(accelerator, row)
    track_result(accelerator, BLOCK, epochs_run=2, kept_epoch=1)
    finish_tracking(accelerator)


def test_without_the_flag_nothing_is_tracked_and_every_call_is_idle(tmp_path: Path) -> None:
    config = parse_config(["--output_dir", str(tmp_path)])
    assert config.tracker is None
    check_tracking(config)
    _tracked(tmp_path, config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tracker", ["trackio", "tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_fix(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["mlflow"])
    with pytest.raises(LeukoscopeError) as refused:
        check_tracking(_config(tmp_path, "--report_to", tracker))
    assert str(refused.value) == (
        f"--report_to {tracker}: {tracker} is not installed; `pip install {tracker}`, or train without --with_tracking"
    )


@pytest.mark.parametrize("name", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID"])
def test_settings_that_would_send_metrics_away_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["trackio", "tensorboard"])
    monkeypatch.setenv(name, "somewhere")
    with pytest.raises(LeukoscopeError) as refused:
        check_tracking(_config(tmp_path))
    assert str(refused.value) == (
        f"{name}=somewhere: trackio would send the run's metrics there; unset it, tracking here stays on this machine "
        "unless you name a Space with --trackio_space_id"
    )
    check_tracking(_config(tmp_path, "--report_to", "tensorboard"))


def test_settings_are_told_in_values_that_every_tracker_takes() -> None:
    config = parse_config(["--train_folds", "fold_0", "fold_2"])
    flat = tracking._flat({**config.as_dict(), "recipe": {"augmentation": {"scale": 0.25}, "frozen": ("a", "b")}})
    assert flat["train_folds"] == "['fold_0', 'fold_2']"
    assert flat["recipe.augmentation.scale"] == 0.25
    assert flat["recipe.frozen"] == "('a', 'b')"
    assert flat["no_validation"] is False
    assert "image_size" not in flat, "what is unset is left out"
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}


@_needs("tensorboard")
def test_tensorboard_files_lie_in_the_run_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _tracked(tmp_path, _config(tmp_path, "--report_to", "tensorboard"))
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    told = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert told == {
        "train_loss": [(1, 0.75), (2, 0.25)],
        "val_auroc": [(1, 0.5), (2, 0.875)],
        # At the last step, though an earlier epoch was kept: wandb leaves out what is logged at an earlier step.
        **{f"test_{name}": [(2, value)] for name, value in BLOCK["metrics"].items() if value is not None},
        "kept_epoch": [(2, 1)],
    }


@_needs("wandb")
def test_wandb_offline_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _tracked(tmp_path, _config(tmp_path, "--report_to", "wandb"))
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
from test_run_folder_tracking import _config, _tracked
from leukoscope.training.run_folder import check_tracking
out = Path(sys.argv[2])
config = _config(out)
check_tracking(config)
_tracked(out, config)
from huggingface_hub import constants
assert constants.HF_HUB_OFFLINE is False, "the setting is given back"
assert not asked, asked
"""


@_needs("trackio")
def test_trackio_keeps_the_metrics_on_this_machine_and_works_offline(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_HUB_OFFLINE")}
    # With a token at hand trackio would like to know whose it is.
    environment |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_TOKEN": "hf_" + "a" * 34}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(leukoscope.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", TRACKED, __file__, str(tmp_path / "runs" / "mine")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    # How trackio lays out its database is its own affair; what it was told must be in there.
    kept = b"".join(path.read_bytes() for path in (tmp_path / "trackio").glob("leukoscope*"))
    assert all(name in kept for name in (b"runs/mine", b"train_loss", b"test_accuracy", b"resolved_recipe.image_size"))


# A Space of the Hub

BOARD = ("--trackio_space_id", "lab/board")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--report_to", "tensorboard", *BOARD), "--trackio_space_id lab/board: needs --with_tracking and no other"),
        (("--trackio_public",), "--trackio_public: has no effect alone; name the Space with --trackio_space_id"),
    ],
)
def test_flags_of_a_space_that_would_have_no_effect_are_refused(flags: tuple[str, ...], problem: str) -> None:
    with pytest.raises(LeukoscopeError, match=f"^{problem}"):
        parse_config(["--with_tracking", *flags]).resolve()
    if BOARD[0] in flags:
        with pytest.raises(LeukoscopeError, match=f"^{problem}"):
            parse_config(list(BOARD)).resolve()


@_needs("trackio")
def test_metrics_go_to_a_public_space_only_if_asked_to(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tracking(_config(tmp_path, *BOARD))  # trackio will make it
    hub.storage.create("spaces/lab/board", private=False)
    with pytest.raises(LeukoscopeError) as refused:
        check_tracking(_config(tmp_path, *BOARD))
    assert str(refused.value) == (
        "--trackio_space_id lab/board: everybody can see this Space; add --trackio_public to show the metrics there, "
        "or name another one"
    )
    check_tracking(_config(tmp_path, *BOARD, "--trackio_public"))
    hub.storage.create("spaces/lab/mine", private=True)
    check_tracking(_config(tmp_path, "--trackio_space_id", "lab/mine"))
    with pytest.raises(LeukoscopeError, match="^--trackio_space_id board: give the Space as owner/name$"):
        check_tracking(_config(tmp_path, "--trackio_space_id", "board"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LeukoscopeError, match="^--trackio_space_id lab/board: the Hub cannot be reached"):
        check_tracking(_config(tmp_path, *BOARD))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(LeukoscopeError, match="^--trackio_space_id lab/board: no Hub token found; run `hf auth login`"):
        check_tracking(_config(tmp_path, *BOARD))


# What the Space itself would answer is not there: trackio keeps the metrics for later and says so.
SENT = """
import json, socket, sys
from pathlib import Path
asked, known = [], socket.getaddrinfo
def only_here(host, *args, **named):
    if host not in ("127.0.0.1", b"127.0.0.1"):
        asked.append(host)
        raise OSError("no network here")
    return known(host, *args, **named)
socket.getaddrinfo = only_here
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_run_folder_tracking import _config, _tracked
from leukoscope.training.run_folder import check_tracking
out = Path(sys.argv[2])
config = _config(out, *sys.argv[3:])
check_tracking(config)
_tracked(out, config)
print("asked:", json.dumps(asked))
"""


@pytest.mark.slow
@_needs("trackio")
@pytest.mark.parametrize("public", [False, True])
def test_a_space_that_trackio_makes_is_private_unless_the_flag_says_otherwise(tmp_path: Path, public: bool) -> None:
    with serving(tmp_path / "hub") as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITE_TOKEN}
        environment |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(leukoscope.__file__).parents[1]), *sys.path])
        command = [sys.executable, "-c", SENT, __file__, str(tmp_path / "run"), *BOARD, *["--trackio_public"] * public]
        done = subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True, text=True)
        made = {name: repository.private for name, repository in hub.storage.repositories.items()}
    assert made == {"spaces/lab/board": not public, "buckets/lab/board-bucket": not public}
    assert set(json.loads(done.stdout.rpartition("asked: ")[2])) <= {"lab-board.hf.space"}
