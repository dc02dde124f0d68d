"""Checkpoints: what changes during training, written to disk so that an interrupted run resumes bit-exactly.

A checkpoint is a folder with two files: tensors as safetensors, the rest as JSON with a digest over both. Own code,
because Accelerate's `save_state` writes pickles, which can run code when they are loaded, and not atomically.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from leukoscope.files import atomic_folder, disk_errors
from leukoscope.progress import note
from leukoscope.training.run_folder import CHECKPOINT_STATE, CHECKPOINT_TENSORS, RunFolder, remove_half_written

CHECKPOINTS_KEPT = 2  # the second is for when the last is damaged


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at one moment: tensors on the CPU, named `owner/…`, and all else in plain JSON values."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors below `name`/, by the rest of their names."""
        return {k.removeprefix(f"{name}/"): v for k, v in self.tensors.items() if k.startswith(f"{name}/")}


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    Attributes:
        folder: `RunFolder.checkpoints`.
        each_epoch: whether one is written after every epoch.
        every_steps: one is written also after so many steps; None for not.
        resumed: the checkpoint that the run continues from, after `resume` has read one.
    """

    def __init__(self, run_folder: RunFolder, *, steps: str = "epoch"):
        """`steps` is the value of --checkpointing_steps."""
        self._run_folder = run_folder
        self.folder = self._run_folder.checkpoints
        self.each_epoch = steps != "no"
        self.every_steps = int(steps) if steps.isdecimal() else None
        self.resumed: Checkpoint | None = None

    def save(self, checkpoint: Checkpoint, epoch: int, step: int) -> Path:
        """Write a checkpoint of the `epoch` under way, from 1, after so many steps of it; keep only the last ones.

        Raises:
            LeukoscopeError: it cannot be written; the earlier ones are untouched.
        """
        earlier = self._run_folder.checkpoint_folders()
        number = 1 + (int(earlier[-1].name[:5]) if earlier else 0)
        target = self.folder / f"{number:05d}-epoch-{epoch}-step-{step}"
        otherwise = "resume from the one before with --resume_from_checkpoint latest"
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        with disk_errors(f"{target}: the checkpoint cannot be written", otherwise):
            remove_half_written(self.folder)
            with atomic_folder(target) as temporary:
                temporary.mkdir()
                save_file(tensors, temporary / CHECKPOINT_TENSORS)
                record = {"values": checkpoint.values, "sha256": _digest(temporary, checkpoint.values)}
                (temporary / CHECKPOINT_STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for folder in earlier[: 1 - CHECKPOINTS_KEPT]:
            shutil.rmtree(folder)
        return target

    def resume(self) -> None:
        """Read the last whole checkpoint into `resumed`; without one, the run starts at the beginning."""
        for path in reversed(self._run_folder.checkpoint_folders()):
            self.resumed = _read(path)
            if self.resumed is not None:
                note(f"resuming from {path}")
                return
            note(f"{path}: is damaged; the checkpoint before it is used")
        note(f"{self.folder}: holds no complete checkpoint; training starts at the beginning")


def _read(folder: Path) -> Checkpoint | None:
    """A checkpoint; None where its files are not what was written."""
    try:
        record = json.loads((folder / CHECKPOINT_STATE).read_text(encoding="utf-8"))
        if record["sha256"] != _digest(folder, record["values"]):
            return None
        # Cloned, because what is loaded stays tied to its file, which will be removed in time.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / CHECKPOINT_TENSORS).items()}
        return Checkpoint(tensors, record["values"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def _digest(folder: Path, values: Mapping[str, Any]) -> str:
    """sha256 over a checkpoint's file of tensors and everything else."""
    with (folder / CHECKPOINT_TENSORS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass
class TrainingState:
    """What changes while a network, unwrapped, is trained.

    Attributes:
        average: exponential moving average of the weights, where the recipe keeps one.
        best_weights: those of the best epoch so far.
        rows: of summary.csv, one per epoch that is over.
        step: optimiser steps done in the epoch under way.
        batch_scores: (2,) loss and accuracy of every batch of that epoch that this process saw.
        started: on the clock of `time.perf_counter`, set back by the seconds before an interruption.
    """

    accelerator: Accelerator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    average: ModelEmaV3 | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    batch_scores: list[torch.Tensor] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return len(self.rows)

    @property
    def seconds(self) -> float:
        """Spent on the whole training, interruptions not counted."""
        return time.perf_counter() - self.started

    @property
    def eval_network(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.network if self.average is None else self.average.module

    def checkpoint(self) -> Checkpoint:
        """Snapshot the training state; every process must call it, because each gives its random state and losses."""
        parts: dict[str, dict[str, torch.Tensor]] = {
            "network": {k: v.detach() for k, v in self.network.state_dict().items()},
            "kept": self.best_weights,
            "optimizer": optimizer_tensors(self.optimizer),
            "random": {k: self._of_all(v) for k, v in random_states(self.accelerator.device).items()},
        }
        if self.batch_scores:
            parts["epoch"] = {"batches": self._of_all(torch.stack(self.batch_scores))}
        if self.average is not None:
            parts["average"] = self.average.module.state_dict()
        tensors = {f"{part}/{k}": v.cpu() for part, named in parts.items() for k, v in named.items()}
        values = {name: getattr(self, name) for name in ("rows", "step", "seconds")}
        values["scheduler"] = self.scheduler.state_dict()
        if self.accelerator.scaler is not None:
            values["loss_scale"] = self.accelerator.scaler.state_dict()  # of fp16
        return Checkpoint(tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that as many processes made."""
        process = self.accelerator.process_index
        device = self.accelerator.device
        values = checkpoint.values
        self.network.load_state_dict(checkpoint.part("network"))
        self.best_weights = {k: v.to(device) for k, v in checkpoint.part("kept").items()}
        load_optimizer_tensors(self.optimizer, checkpoint.part("optimizer"))
        self.scheduler.load_state_dict(values["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint.part("average"))
        if "loss_scale" in values and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["loss_scale"])
        scores = checkpoint.part("epoch").get("batches")
        self.batch_scores = [] if scores is None else list(scores[process].to(device).unbind())
        self.rows = values["rows"]
        self.step = values["step"]
        self.started = time.perf_counter() - values["seconds"]
        # Cloned, because torch's generators misread a state that is part of a larger tensor.
        random = {name: states[process].clone() for name, states in checkpoint.part("random").items()}
        torch.set_rng_state(random["torch"])
        if "device" in random:
            torch.get_device_module(device).set_rng_state(random["device"])

    def _of_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """(P, …), the tensor of each process."""
        if self.accelerator.num_processes == 1:
            return tensor[None]
        return self.accelerator.gather(tensor[None].to(self.accelerator.device))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimiser's state, by "<number of the parameter>/<what>"."""
    return {
        f"{number}/{key}": tensor
        for number, state in optimizer.state_dict()["state"].items()
        for key, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restore what `optimizer_tensors` read."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            # Laid out in memory as its parameter is, which fused optimisers take for granted.
            tensor = torch.empty_like(parameter).copy_(tensor)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's random generators in this process; training draws from no others."""
    states = {"torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Processes must agree on the step they stop after, and asking each other costs a wait for the accelerator.
_STEPS_BETWEEN_AGREEMENTS = 16


class Interrupted(SystemExit):
    """Training ended early, as requested, after a checkpoint was written.

    Left alone, the process exits with 128 + the number of the signal, as one that the signal ended does in a shell.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Notes the number of SIGTERM or Ctrl-C (else 0) inside its `with` block; a second signal acts as it always does.

    Signals reach the main thread alone.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def agreed(self, accelerator: Accelerator, step: int) -> int:
        """The signal that any process noted, else 0; every process gets the same value at the same step."""
        if accelerator.num_processes == 1:
            return self.noted
        if step % _STEPS_BETWEEN_AGREEMENTS:
            return 0
        asked = torch.tensor([self.noted], device=accelerator.device)
        return int(accelerator.gather(asked).max())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
