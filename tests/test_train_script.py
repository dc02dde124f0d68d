"""`train.py` as a person runs it: launched, it ends in a release; mistaken, it ends in one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warm import Warm

ROOT = Path(__file__).parents[1]
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu")
pytestmark = pytest.mark.slow


def _run(command: list[str], folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run in an empty folder, offline, with a cache of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "LEUKOSCOPE_CACHE": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def test_a_launched_run_ends_with_a_release(warm: str, tmp_path: Path) -> None:
    flags = ("--image_size", "32", "--max_train_samples", "48", "--num_train_epochs", "1", "--output_dir", "run")
    ended = _run([warm, *LAUNCH, str(ROOT / "train.py"), *flags], tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stderr
    lines, release = ended.stdout.splitlines(), tmp_path / "run" / "release"
    assert "Smoke run on synthetic phantoms: it shows that everything works, and nothing about patients." in lines
    assert "precision no: accelerate launch" in lines
    assert "run folder: run" in lines
    assert lines[-1] == "release:    run/release", "said when it is complete, with its card"
    files = {"README.md", "config.json", "metrics.json", "model.safetensors"}
    assert {path.name for path in release.iterdir()} >= files
    assert json.loads((release / "config.json").read_text())["label_names"] == ["ALL", "HEM"]


def test_without_flags_it_learns_phantoms_of_subjects_it_never_saw(warm: str, tmp_path: Path) -> None:
    # Not launched: that would take every core, also those of the tests beside it.
    ended = _run([warm, str(ROOT / "train.py")], tmp_path, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "runs" / "phantoms-densenet121" / "metrics.json").read_text())
    (block,) = metrics["evaluations"]
    assert block["split"]["disjoint_by"] == "subject"
    assert not set(metrics["training"]["subjects"]) & set(block["metrics"]["subjects"])
    # Three subjects are tested, and one that leans over the threshold costs several hundredths of the accuracy.
    assert block["metrics"]["auroc"] >= 0.93 and block["metrics"]["accuracy"] >= 0.7


def test_it_trains_on_real_cells_and_judges_them_subject_by_subject(
    warm: str, tmp_path: Path, few_real_cells: Path
) -> None:
    cells = ("--dataset_name", "cnmc2019", "--train_dir", str(few_real_cells), "--split", "official")
    small = ("--image_size", "48", "--max_train_samples", "64", "--max_eval_samples", "128", "--num_train_epochs", "1")
    flags = (*cells, *small, "--from_scratch", "--no_validation", "--output_dir", "run")
    ended = _run([warm, str(ROOT / "train.py"), *flags], tmp_path, 900)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (block,) = metrics["evaluations"]
    assert block["split"]["detail"] == "fold_0 → fold_1"
    assert {"H10", "H14", "H22"} & set(block["metrics"]["subjects"])
    assert not set(metrics["training"]["subjects"]) & set(block["metrics"]["subjects"])
    assert metrics["training"]["cells"] == 64
    assert str(tmp_path) not in json.dumps(metrics) and str(few_real_cells) not in json.dumps(metrics)


@pytest.mark.parametrize(
    ("launcher", "flags", "message"),
    [
        (
            [*LAUNCH, "--quiet", str(ROOT / "train.py")],
            ["--dataset_name", "cnmc2019", "--train_dir", "nowhere"],
            "error: --train_dir nowhere: no such folder; ",
        ),
        (
            ["-m", "leukoscope", "train"],
            ["--seed", "-1"],
            "error: --seed -1: input should be greater than or equal to 0",
        ),
    ],
    ids=["quiet launcher", "leukoscope train"],
)
def test_a_mistake_is_the_last_line_and_without_a_traceback(
    warm: str, tmp_path: Path, launcher: list[str], flags: list[str], message: str
) -> None:
    ended = _run([warm, *launcher, *flags], tmp_path, timeout=300)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and ended.stderr.splitlines()[-1] == errors[0]
    assert errors[0].startswith(message)


# Killed, asked to stop, and gone on with

SMALL = (
    *("--image_size", "32", "--max_train_samples", "64", "--num_train_epochs", "3", "--mixed_precision", "no"),
    *("--override", "block_config=[6,12]"),  # so large that a checkpoint is seen half-written
)
EVERY_STEP = ("--checkpointing_steps", "1")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    own = {"HF_HUB_OFFLINE": "1", "LEUKOSCOPE_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    return os.environ | own


@pytest.fixture(scope="module")
def whole(warm: str, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The run folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    command = [warm, str(ROOT / "train.py"), *SMALL, "--output_dir", "run"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture
def start(warm: str, tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Warm]]:
    """Starts `train.py` on phantoms in an empty folder; what still runs at the end is killed."""
    started: list[Warm] = []

    def begin(*flags: str) -> Warm:
        command = [warm, str(ROOT / "train.py"), *flags]
        started.append(Warm(command, environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _when(there: Callable[[], bool], running: Warm) -> None:
    until = time.monotonic() + 900
    while not there():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def test_killed_three_times_and_asked_to_stop_once_it_ends_as_if_never_interrupted(
    tmp_path: Path, start: Callable[..., Warm], whole: Path
) -> None:
    flags, folder = (*SMALL, *EVERY_STEP, "--output_dir", "run"), tmp_path / "run" / "checkpoints"

    def written(number: int) -> bool:
        return any(folder.glob(f"{number:05d}-*"))

    def half_written() -> bool:
        return written(3) and any(folder.glob(".*.tmp/*/tensors.safetensors"))

    first = start(*flags)
    _when(lambda: written(2), first)
    first.kill()
    assert first.wait(60) == 128 + signal.SIGKILL

    second = start(*flags, "--resume_from_checkpoint", "latest")
    while True:
        _when(half_written, second)
        # What was seen half-written may be whole when the signal arrives: then the run goes on to the next one.
        second.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        if half_written():
            break
        second.send_signal(signal.SIGCONT)
    second.kill()
    second.wait(60)
    assert any(folder.glob(".*.tmp")), "killed while it wrote"

    last = sorted(folder.glob("0*"))[-1]
    with (last / "tensors.safetensors").open("r+b") as file:
        file.truncate(10_000)
    third = start(*flags, "--resume_from_checkpoint", "latest")
    _when(lambda: any(folder.glob("*-epoch-2-step-1")), third)
    third.kill()
    said, _ = third.communicate()
    assert f"{Path('run', 'checkpoints', last.name)}: is damaged; the checkpoint before it is used" in said

    old = set(folder.glob("0*"))
    fourth = start(*flags, "--resume_from_checkpoint", "latest")
    _when(lambda: bool(set(folder.glob("0*")) - old), fourth)
    fourth.send_signal(signal.SIGTERM)
    said, problems = fourth.communicate(timeout=300)
    assert fourth.returncode == 128 + signal.SIGTERM, problems
    assert "resume with the same command and --resume_from_checkpoint latest" in said
    assert start(*flags, "--resume_from_checkpoint", "latest").wait(900) == 0

    expected, run = whole, tmp_path / "run"
    for name in ("release/model.safetensors", "predictions.parquet"):
        assert (run / name).read_bytes() == (expected / name).read_bytes()
    blocks = [json.loads((folder / "metrics.json").read_text())["evaluations"] for folder in (run, expected)]
    assert blocks[0] == blocks[1]
    assert _figures(run / "summary.csv") == _figures(expected / "summary.csv")
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}


def _figures(summary: Path) -> list[dict[str, str]]:
    with summary.open(newline="") as file:
        # Some columns say how the machine fared, not what was learnt.
        fared = ("seconds", "images_per_second")
        return [{k: v for k, v in row.items() if k not in fared} for row in csv.DictReader(file)]
