"""Interrupted and resumed, a run ends as if nothing had happened — or says why it cannot."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from leukoscope.training.checkpoint import Checkpoint, Checkpoints, Interrupted, StopRequest, random_states
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.data import FeatureInputs
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.selection import Selection
from leukoscope.training.trainer import Trainer
from trainers import MIRRORED, SMALL, MakeTrainer

RECIPE = replace(SMALL, drop_rate=0.5)
KEPT_FEATURES = {"augmentation": MIRRORED, "frozen": ("backbone",), "drop_rate": 0.0, "num_train_epochs": 5}
IDENTITY = RunIdentity({"deterministic": False, "seed": 0}, {"image_size": 32}, start="a" * 64, processes=1)
STATE = Checkpoint(
    {"network/weight": torch.arange(6.0).view(2, 3), "kept/weight": torch.ones(2)}, {"rows": [{"loss": 0.1}]}
)


class Killed(Exception):
    """Stands for the end of a process."""


# On the disk


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(RunFolder(tmp_path))


def test_a_checkpoint_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(STATE, epoch=2, step=5)
    assert path.name == "00001-epoch-2-step-5"
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}, "nothing that could run code"
    checkpoints.resume()
    assert checkpoints.resumed is not None
    assert checkpoints.resumed.values == STATE.values
    assert checkpoints.resumed.part("network").keys() == {"weight"}
    assert torch.equal(checkpoints.resumed.part("network")["weight"], STATE.tensors["network/weight"])


def test_only_the_last_ones_are_kept_and_nothing_half_written(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / ".00001-epoch-1-step-1.99.tmp").mkdir(parents=True)
    for step in range(8, 13):
        checkpoints.save(STATE, epoch=1, step=step)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["00004-epoch-1-step-11", "00005-epoch-1-step-12"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: data.replace(b"0.1", b"0.2"), lambda data: b""]
)
def test_a_damaged_one_gives_way_to_the_one_before(
    checkpoints: Checkpoints, file: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(replace(STATE, values={"n": 1}), epoch=1, step=0)
    last = checkpoints.save(STATE, epoch=2, step=0)
    content = (last / file).read_bytes()
    # Of the tensors, the last number is changed.
    (last / file).write_bytes(damage(content) if damage(content) != content else content[:-1] + b"\x7f")
    checkpoints.resume()
    assert checkpoints.resumed is not None and checkpoints.resumed.values == {"n": 1}
    assert capsys.readouterr().out.splitlines() == [
        f"{last}: is damaged; the checkpoint before it is used",
        f"resuming from {checkpoints.folder / '00001-epoch-1-step-0'}",
    ]


def test_without_a_whole_one_the_run_starts_at_the_beginning(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.resume()
    assert checkpoints.resumed is None
    message = f"{checkpoints.folder}: holds no complete checkpoint; training starts at the beginning"
    assert capsys.readouterr().out == f"{message}\n"


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoints.save(STATE, epoch=1, step=1)

    def full(*_: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LeukoscopeError, match="No space left on device.*resume from the one before with --resume_from"):
        checkpoints.save(STATE, epoch=1, step=2)
    assert list(checkpoints.folder.iterdir()) == [first]


# Which run


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"flags": {"deterministic": True, "seed": 0}}, "deterministic: False instead of True"),
        ({"recipe": {"image_size": 64}}, "recipe's image_size: 32 instead of 64"),
        ({"processes": 2}, "processes (accelerate launch --num_processes): 1 instead of 2"),
        ({"start": "b" * 64}, "the start weights' sha256: aaaaaaaaaaaa instead of bbbbbbbbbbbb"),
        ({"data": "others"}, "the data's fingerprint: None instead of others"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_another_run_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str, is_finished: bool) -> None:
    Checkpoints(RunFolder(tmp_path)).save(STATE, epoch=1, step=1)
    if is_finished:
        RunFolder(tmp_path).metrics.touch()
    RunFolder(tmp_path).save_identity(IDENTITY, IDENTITY.flags)
    RunFolder(tmp_path).check(IDENTITY, resume=True)
    with pytest.raises(LeukoscopeError) as refused:
        RunFolder(tmp_path).check(replace(IDENTITY, **change), resume=True)
    assert str(refused.value) == (
        f"--output_dir {tmp_path}: holds a run with other settings ({named}); give another folder or remove it"
    )


def _identity(config: TrainingConfig) -> RunIdentity:
    return replace(RunIdentity.of(config, config.resolve()), data="cells", split="split")


def test_flags_that_change_no_result_may_change() -> None:
    flags = ("--output_dir", "x", "--checkpointing_steps", "7", "--report_to", "tensorboard", "--quiet")
    other = parse_config([*flags, "--resume_from_checkpoint"])
    assert other.run.resume_from_checkpoint == "latest"
    assert _identity(parse_config([])).differences(_identity(other)) == []


def test_a_setting_that_one_of_two_runs_lacks_is_another_setting() -> None:
    now = _identity(parse_config([]))
    flags = {name: value for name, value in now.flags.items() if name != "gradient_accumulation_steps"}
    then = replace(now, flags=flags, recipe=now.recipe | {"cutout": 0.3})
    assert then.differences(now) == [
        "gradient_accumulation_steps: None instead of 1",
        "recipe's cutout: 0.3 instead of None",
    ]


def test_an_unfinished_run_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for resume in (True, False):
        folder.check(IDENTITY, resume=resume)
    Checkpoints(folder).save(STATE, epoch=3, step=4)
    folder.save_identity(IDENTITY, IDENTITY.flags)
    folder.check(IDENTITY, resume=True)
    with pytest.raises(LeukoscopeError) as refused:
        folder.check(IDENTITY, resume=False)
    assert str(refused.value) == (
        f"--output_dir {tmp_path}: holds an unfinished run (00001-epoch-3-step-4); resume it with "
        f"--resume_from_checkpoint latest, or remove {tmp_path / 'checkpoints'} to start again"
    )


def test_a_finished_run_whose_settings_are_not_known_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").touch()
    with pytest.raises(LeukoscopeError, match=r"holds a run with other settings \(no args.yaml names them\); "):
        RunFolder(tmp_path).check(IDENTITY, resume=False)


@pytest.mark.parametrize(
    ("steps", "written"),
    [("no", []), ("epoch", ["2-step-0"]), ("999", ["2-step-0"]), ("2", ["1-step-2", "1-step-4", "2-step-0"])],
)
def test_an_interval_adds_to_the_checkpoints_of_the_epochs(
    trainer_for: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, written: list[str]
) -> None:
    trainer = Runs(trainer_for, replace(RECIPE, num_train_epochs=1), tmp_path, steps).trainer()
    monkeypatch.setattr("leukoscope.training.checkpoint.CHECKPOINTS_KEPT", 9)
    list(trainer.fit())
    assert [path.name.partition("-epoch-")[2] for path in RunFolder(tmp_path).checkpoint_folders()] == written


# Resuming


def _forgotten(recipe: Recipe, classes: int) -> nn.Module:
    """Other start weights and random numbers, which are of no consequence: all comes from the checkpoint."""
    network = build_network(recipe, classes)
    with torch.no_grad():
        network.get_parameter("classifier.last.weight").zero_()
    torch.rand(3)
    return network


class Runs:
    """Runs of one recipe in one folder, each in its own process as it were."""

    def __init__(self, trainer_for: MakeTrainer, recipe: Recipe, folder: Path, steps: str, **flags: Any):
        self.make, self.recipe, self.folder, self.steps, self.flags = trainer_for, recipe, folder, steps, flags

    def trainer(self, *, resume: bool = False, checkpoints: bool = True) -> Trainer:
        kept = Checkpoints(RunFolder(self.folder), steps=self.steps) if checkpoints else None
        if kept and resume:
            kept.resume()
            assert kept.resumed is not None
        build = _forgotten if resume else build_network
        return self.make(self.recipe, build=build, checkpoints=kept, **self.flags)

    def whole(self) -> tuple[Trainer, list[dict[str, Any]]]:
        trainer = self.trainer(checkpoints=False)
        return trainer, list(trainer.fit())

    def killed_after(self, steps: int, *, resume: bool = False) -> None:
        trainer = self.trainer(resume=resume)
        after_step = trainer._after_step

        def dying() -> None:
            after_step()
            if trainer._steps_done == steps:
                raise Killed

        trainer._after_step = dying  # type: ignore[method-assign]
        with pytest.raises(Killed):
            list(trainer.fit())

    def resumed(self) -> tuple[Trainer, list[dict[str, Any]]]:
        trainer = self.trainer(resume=True)
        return trainer, list(trainer.fit())


def _same(one: tuple[Trainer, list[dict[str, Any]]], other: tuple[Trainer, list[dict[str, Any]]]) -> None:
    """Weights bit-exactly, and every metric but the time and memory it took."""
    for (name, ours), theirs in zip(
        one[0].network.state_dict().items(), other[0].network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    of_the_machine = {"seconds", "images_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in of_the_machine} for row in run[1]] for run in (one, other)]
    assert rows[0] == rows[1]
    assert one[0].select_epoch() == other[0].select_epoch()
    answers = [trainer.predict(trainer.split.test) for trainer, _ in (one, other)]
    assert np.array_equal(answers[0].probabilities, answers[1].probabilities)


@pytest.mark.parametrize(
    ("change", "steps", "batches"),
    [
        ({}, "1", 1),
        ({}, "epoch", 1),
        ({"schedule": "constant", "selected_by": "val_loss", "frozen": ("features.conv0",)}, "2", 1),
        ({"sampling": "subjects", "ema_decay": 0.9, "train_batch_size": 2}, "1", 2),
        (KEPT_FEATURES, "2", 1),
    ],
    ids=["every step", "every epoch", "constant rate, frozen layer", "for unseen subjects, two batches", "features"],
)
def test_a_killed_run_resumes_bit_exactly(
    trainer_for: MakeTrainer, tmp_path: Path, change: dict[str, Any], steps: str, batches: int
) -> None:
    runs = Runs(trainer_for, replace(RECIPE, **change), tmp_path, steps, gradient_accumulation_steps=batches)
    whole = runs.whole()
    assert isinstance(whole[0].inputs, FeatureInputs) is (change is KEPT_FEATURES)
    per_epoch = whole[0].steps_per_epoch
    assert per_epoch > 3
    # In the middle of the second epoch; resumed, at the very end of it, before validation.
    runs.killed_after(per_epoch + 3)
    runs.killed_after(2 * per_epoch, resume=True)
    _same(runs.resumed(), whole)


def test_a_resumed_run_knows_the_best_epoch_before_it(
    trainer_for: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = (0.1, 0.5, 0.5)
    monkeypatch.setattr(Trainer, "_validate", lambda trainer: {"val_loss": losses[trainer.state.epoch]})
    runs = Runs(trainer_for, replace(RECIPE, selected_by="val_loss"), tmp_path, "1")
    whole = runs.whole()
    assert whole[0].select_epoch().epoch == 1
    runs.killed_after(whole[0].steps_per_epoch + 3)
    _same(runs.resumed(), whole)


def test_a_run_that_had_stopped_early_is_not_trained_further_and_its_time_counts(
    trainer_for: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, num_train_epochs=9, selected_by="val_accuracy", early_stopping_patience=2)
    monkeypatch.setattr(Trainer, "_validate", lambda trainer: {"val_accuracy": 0.5})
    runs = Runs(trainer_for, recipe, tmp_path, "epoch")
    trainer = runs.trainer()
    rows = list(trainer.fit())
    assert len(rows) == 3
    spent = json.loads((RunFolder(tmp_path).checkpoint_folders()[-1] / "state.json").read_text())["values"]["seconds"]
    assert 0 < spent <= trainer.seconds
    resumed = runs.resumed()
    assert resumed[0].seconds > spent
    _same(resumed, (trainer, rows))


def test_each_process_gets_its_own_random_state_back(trainer_for: MakeTrainer, tmp_path: Path) -> None:
    trainer = Runs(trainer_for, RECIPE, tmp_path, "no").trainer()
    first = random_states(torch.device("cpu"))
    expected = torch.rand(3).tolist()
    second, later = random_states(torch.device("cpu")), torch.rand(3).tolist()
    saved = trainer.state.checkpoint()
    states = {f"random/{k}": torch.stack([first[k], second[k]]) for k in first}
    for process, numbers in ((0, expected), (1, later)):
        accelerator = SimpleNamespace(process_index=process, num_processes=2, device=torch.device("cpu"))
        state = replace(trainer.state, accelerator=accelerator)
        state.restore(replace(saved, tensors=saved.tensors | states))
        assert torch.rand(3).tolist() == numbers


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_what_is_no_number_never_reaches_a_checkpoint(
    trainer_for: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    trainer = Runs(trainer_for, RECIPE, tmp_path, "1").trainer()
    step = trainer._step

    def third_fails(*batch: torch.Tensor) -> torch.Tensor:
        metrics = step(*batch)
        if trainer.state.step < 2:
            return metrics
        if what == "loss":
            return metrics * torch.nan
        with torch.no_grad():
            trainer.network.get_parameter("classifier.last.weight")[0, 0] = torch.inf
        return metrics

    monkeypatch.setattr(trainer, "_step", third_fails)
    bad_loss = "^epoch 1, within 3 batches: the loss is nan; lower --learning_rate and start again$"
    said = {"loss": bad_loss, "weight": "^epoch 1: a weight is not finite; lower --learning_rate and start"}[what]
    with pytest.raises(LeukoscopeError, match=said):
        list(trainer.fit())
    assert RunFolder(tmp_path).checkpoint_folders()[-1].name == "00002-epoch-1-step-2"


# Asked to stop


@pytest.fixture
def signals() -> Iterator[list[Any]]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield before
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "validating"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_writes_a_checkpoint_and_ends_with_its_number(
    trainer_for: MakeTrainer,
    tmp_path: Path,
    signals: list[Any],
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    validating: bool,
) -> None:
    runs = Runs(trainer_for, RECIPE, tmp_path, "no")
    whole = runs.whole()
    trainer = runs.trainer()
    after_step, validate = trainer._after_step, trainer._validate

    def signalled_step() -> None:
        if not validating and trainer._steps_done == 2:
            os.kill(os.getpid(), number)
        after_step()

    def signalled_validation() -> dict[str, float]:
        if validating:
            os.kill(os.getpid(), number)
        return validate()

    trainer._after_step, trainer._validate = signalled_step, signalled_validation  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stopped:
        list(trainer.fit())
    step = whole[0].steps_per_epoch if validating else 2
    assert stopped.value.code == 128 + number
    assert f"asked to stop: checkpoint written at epoch 1, step {step}" in capsys.readouterr().out
    assert [path.name for path in RunFolder(tmp_path).checkpoint_folders()] == [f"00001-epoch-1-step-{step}"]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == signals, "as they were before"
    _same(runs.resumed(), whole)


def test_a_signal_after_the_last_epoch_leaves_nothing_to_resume(
    trainer_for: MakeTrainer, tmp_path: Path, signals: list[Any]
) -> None:
    trainer = Runs(trainer_for, replace(RECIPE, num_train_epochs=1), tmp_path, "no").trainer()
    select = trainer.select_epoch

    def signalled() -> Selection:
        # Validation is over, and with it the last moment that a checkpoint is taken at.
        if trainer.state.rows and not trainer.stop.noted:
            os.kill(os.getpid(), signal.SIGTERM)
        return select()

    trainer.select_epoch = signalled  # type: ignore[method-assign]
    assert len(list(trainer.fit())) == 1 and trainer.stop.noted
    assert RunFolder(tmp_path).checkpoint_folders() == []


def test_a_second_signal_acts_at_once(signals: list[Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.noted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
