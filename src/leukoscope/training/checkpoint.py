"""Checkpoints: what changes during training, written to disk so that an interrupted run resumes bit-exactly.

A checkpoint is a folder with two files and no pickle: tensors as safetensors, the rest as JSON with a digest over both.
It is written whole or not at all; a damaged one is detected, and a run with other settings is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import Recipe
from leukoscope.models.release_files import METRICS
from leukoscope.progress import note
from leukoscope.training.config import NOT_THE_RESULT, TrainingConfig, file_name
from leukoscope.training.optim import Judge
from leukoscope.training.run_folder import ARGS, plain

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

FOLDER = "checkpoints"
LATEST = "latest"
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"(\d{5})-epoch-\d+-step-\d+")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at one moment.

    Attributes:
        tensors: by name, on the CPU; the part before the first "/" names their owner.
        values: all else, in plain JSON values.
    """

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors below `name`/, by the rest of their names."""
        return {k.removeprefix(f"{name}/"): v for k, v in self.tensors.items() if k.startswith(f"{name}/")}


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        resumed: the checkpoint that the run resumes from, once `resume` has found one.
    """

    def __init__(self, run_folder: Path, settings: Mapping[str, Any], *, steps: str = "epoch", limit: int = 2):
        """Keep checkpoints below a run folder.

        Args:
            settings: what determines the result of this run, as `run_settings` gives it.
            steps: "epoch" to save when an epoch ends, a number to save after every so many steps, too, or "no" to save
                only when asked to stop.
            limit: how many are kept.
        """
        self.folder, self.settings, self.limit = run_folder / FOLDER, plain(dict(settings)), limit
        self.each_epoch = steps != "no"
        self.every_steps = int(steps) if steps.isdecimal() else None
        self.resumed: Checkpoint | None = None

    def due(self, step: int) -> bool:
        """True where a checkpoint within an epoch is due after that many optimiser steps of the run."""
        return self.every_steps is not None and step % self.every_steps == 0

    def save(self, checkpoint: Checkpoint, epoch: int, step: int) -> Path:
        """Write a checkpoint, then remove those beyond the limit.

        Args:
            epoch: the epoch under way, counted from 1.
            step: optimiser steps done in it.

        Raises:
            LeukoscopeError: it cannot be written; the earlier ones are untouched.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        earlier = checkpoints_in(self.folder)
        number = int(earlier[-1].name[:5]) + 1 if earlier else 1
        target = self.folder / f"{number:05d}-epoch-{epoch}-step-{step}"
        temporary = self.folder / f".{target.name}.{os.getpid()}.tmp"
        try:
            # What a killed process was writing.
            for unfinished in self.folder.glob(".*.tmp"):
                shutil.rmtree(unfinished)
            temporary.mkdir(parents=True)
            save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, temporary / _TENSORS)
            record = {"settings": self.settings, "values": checkpoint.values}
            digest = _digest(temporary / _TENSORS, record)
            (temporary / _STATE).write_text(json.dumps({**record, "sha256": digest}, indent=1), encoding="utf-8")
            temporary.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise LeukoscopeError(
                f"{target}: the checkpoint cannot be written ({error}); free some space and resume from the one before "
                "with --resume_from_checkpoint latest"
            ) from None
        for path in [*earlier, target][: -self.limit]:
            shutil.rmtree(path)
        return target

    def resume(self, which: str) -> None:
        """Read the checkpoint to resume from into `resumed`.

        Args:
            which: "latest" or the folder of one; with "latest", a damaged one is skipped for the one before it.

        Raises:
            LeukoscopeError: the checkpoint named is damaged, or the run is another one.
        """
        named = [Path(which)] if which != LATEST else list(reversed(checkpoints_in(self.folder)))
        for path in named:
            if (found := _read(path)) is None:
                if which != LATEST:
                    raise LeukoscopeError(f"{path}: a damaged checkpoint")
                note(f"{path}: a damaged checkpoint; skipped for the one before it")
                continue
            checkpoint, settings = found
            if different := other_settings(settings, self.settings):
                raise LeukoscopeError(
                    f"{path}: a checkpoint of a run with other settings ({', '.join(different)}); give these again, or "
                    "start a new run in another --output_dir"
                )
            self.resumed = checkpoint
            note(f"resuming from {path}")
            return
        note(f"{self.folder}: no whole checkpoint; starting at the beginning")

    def remove(self) -> None:
        """Remove all checkpoints of a complete run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_settings(config: TrainingConfig, recipe: Recipe, **more: Any) -> dict[str, Any]:
    """What determines the result of a run: its flags, the resolved recipe, and `more` of the same kind."""
    return {"flags": config.as_dict(), "resolved_recipe": plain(asdict(recipe)), **more}


def other_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings of an earlier run that differ from this one's, as "name: the value then".

    Of the start weights the file's name counts, not its folder.

    Args:
        then: from `run_settings` or args.yaml. A flag or a recipe's field that it lacks is newer than the run and
            stands for its default; one that exists no more is ignored, within a part of the recipe where it was off.
        now: from `run_settings`.
    """
    defaults = {"flags": TrainingConfig().as_dict(), "resolved_recipe": plain(asdict(Recipe("", "", "")))}
    groups = (("flags", ""), ("resolved_recipe", "recipe's "))
    different = []
    for group, prefix in groups:
        made = {**defaults[group], **then[group]}
        # The cells of a split are compared by its fingerprint, whatever dealt them out.
        left_out = (*NOT_THE_RESULT, "finetuned_by", "about", "split", "split_file", "positive_label")
        names = [k for k in now[group] if k not in left_out]
        different += [
            f"{prefix}{k}: {made.get(k)}" for k in names if _still_known(made.get(k), now[group][k]) != now[group][k]
        ]
    weights = file_name(then["flags"].get("pretrained_weights"))
    if weights != file_name(now["flags"].get("pretrained_weights")):
        different.append(f"pretrained_weights: {weights}")
    rest = now.keys() - {group for group, _ in groups}
    return different + [f"{k}: {then.get(k)}" for k in sorted(rest) if then.get(k) != now[k]]


def _still_known(then: Any, now: Any) -> Any:
    """A setting of an earlier run; of a part of a recipe without fields that exist no more and were off."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {k: v for k, v in then.items() if k in now or v}
    return then


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; unfinished ones are not among them."""
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name)) if folder.is_dir() else []


def check_resume(run_folder: Path, which: str | None, settings: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, to resume a complete run, or to overwrite an unfinished or a different one.

    Args:
        which: --resume_from_checkpoint.
        settings: of the run that is to begin, from `run_settings`.

    Raises:
        LeukoscopeError: with what to do instead.
    """
    complete = (run_folder / METRICS).exists()
    if which == LATEST and complete:
        raise LeukoscopeError(
            f"--resume_from_checkpoint latest: the run in {run_folder} is complete; give another --output_dir, or "
            "leave the flag out to repeat the run"
        )
    if which not in (None, LATEST) and not (Path(str(which)) / _STATE).exists():
        raise LeukoscopeError(
            f"--resume_from_checkpoint {which}: no checkpoint; give latest, or one of the folders in "
            f"{run_folder / FOLDER}"
        )
    if which is None and not complete and (kept := checkpoints_in(run_folder / FOLDER)):
        raise LeukoscopeError(
            f"--output_dir {run_folder}: holds an unfinished run ({kept[-1].name}); resume it with "
            f"--resume_from_checkpoint latest, or remove {run_folder / FOLDER} to start again"
        )
    if complete and (different := _different_run(run_folder / ARGS, settings)):
        raise LeukoscopeError(
            f"--output_dir {run_folder}: holds a finished run with other settings ({', '.join(different)}); give "
            "another folder or remove it"
        )


def _different_run(args: Path, now: Mapping[str, Any]) -> list[str]:
    """The settings of the run that wrote this args.yaml that differ from this one's, its data folders included."""
    if not args.is_file():
        return [f"no {args.name} names them"]
    then = yaml.safe_load(args.read_text(encoding="utf-8"))
    made, wanted = then["flags"], now["flags"]
    folders = [f"{k}: {made.get(k)}" for k in ("train_dir", "validation_dir") if made.get(k) != wanted[k]]
    return [*other_settings(then, now), *folders]


def _read(folder: Path) -> tuple[Checkpoint, dict[str, Any]] | None:
    """A checkpoint and the settings of its run; None where its files are not what was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        digest = record.pop("sha256")
        if digest == _digest(folder / _TENSORS, record):
            # Cloned, because what is loaded stays tied to its file, which will be removed in time.
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / _TENSORS).items()}
            return Checkpoint(tensors, record["values"]), record["settings"]
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError):
        pass
    return None


def _digest(tensors: Path, record: Mapping[str, Any]) -> str:
    """sha256 over the tensors' file and everything else."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()


_PLAIN = ("epoch", "step", "rows", "waited", "kept_epoch", "kept_for", "stopped")


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: epochs that are over.
        step: optimiser steps done in the epoch under way.
        batches: (2,) loss and accuracy of every batch of that epoch that this process saw.
        rows: of summary.csv, one per epoch that is over.
        waited: seconds of the epoch under way that passed until batches were ready.
        kept_epoch: the epoch whose weights are kept, counted from 1; 0 for none.
        kept_for: its metric and value, for a person.
        stopped: further epochs would bring no gain.
        started, epoch_started: on the clock of `time.perf_counter`, set back by the seconds before an interruption.
    """

    epoch: int = 0
    step: int = 0
    batches: list[torch.Tensor] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    waited: float = 0.0
    kept_epoch: int = 0
    kept_for: str = ""
    stopped: bool = False
    started: float = field(default_factory=time.perf_counter)
    epoch_started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Spent on the whole training, interruptions not counted."""
        return time.perf_counter() - self.started

    @property
    def epoch_seconds(self) -> float:
        """Spent on the training side of the epoch under way, interruptions not counted."""
        return time.perf_counter() - self.epoch_started

    def add_waiting(self, seconds: float) -> None:
        """Add time that passed until a batch was ready."""
        self.waited += seconds

    def values(self) -> dict[str, Any]:
        """All but the batches, in plain JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {**plain, "seconds": self.seconds, "epoch_seconds": self.epoch_seconds}


@dataclass
class TrainingState:
    """What changes while a network is trained.

    Attributes:
        network: unwrapped.
        judge: remembers the best epoch.
        ema: of the weights, where the recipe keeps one.
        kept: weights of the best epoch so far.
    """

    accelerator: Accelerator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    judge: Judge
    ema: ModelEmaV3 | None = None
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def eval_network(self) -> nn.Module:
        """The network that is validated and kept: the EMA's, where there is one."""
        return self.network if self.ema is None else self.ema.module

    def keep_weights(self, reason: str) -> None:
        """Copy the weights as those of the epoch under way; `reason` is its `kept_for`."""
        self.kept = {k: v.detach().clone() for k, v in self.eval_network.state_dict().items()}
        self.progress.kept_epoch, self.progress.kept_for = self.progress.epoch + 1, reason

    def checkpoint(self) -> Checkpoint:
        """Copy this moment; every process must call it, because each gives its random states and losses."""
        parts: dict[str, dict[str, torch.Tensor]] = {
            "network": {k: v.detach() for k, v in self.network.state_dict().items()},
            "kept": self.kept,
            "optimizer": optimizer_tensors(self.optimizer, self.network),
            "random": {k: self._of_all(v) for k, v in random_states(self.accelerator.device).items()},
        }
        if self.progress.batches:
            parts["progress"] = {"figures": self._of_all(torch.stack(self.progress.batches))}
        if self.ema is not None:
            parts["average"] = self.ema.module.state_dict()
        tensors = {f"{part}/{k}": v.cpu() for part, named in parts.items() for k, v in named.items()}
        values = {"progress": self.progress.values(), "judge": self.judge.state_dict()}
        if (scaler := self.accelerator.scaler) is not None:
            values["loss_scale"] = scaler.state_dict()  # of fp16
        return Checkpoint(tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that as many processes made."""
        mine, device = self.accelerator.process_index, self.accelerator.device
        self.network.load_state_dict(checkpoint.part("network"))
        self.kept = {k: v.to(device) for k, v in checkpoint.part("kept").items()}
        load_optimizer_tensors(self.optimizer, self.network, checkpoint.part("optimizer"))
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.part("average"))
        self.judge.load_state_dict(checkpoint.values["judge"])
        if "loss_scale" in checkpoint.values and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.values["loss_scale"])
        batches = checkpoint.part("progress").get("figures")
        unbound = [] if batches is None else list(batches[mine].to(device).unbind())
        values, now = checkpoint.values["progress"], time.perf_counter()
        self.progress = Progress(
            **{name: values[name] for name in _PLAIN},
            batches=unbound,
            started=now - values["seconds"],
            epoch_started=now - values["epoch_seconds"],
        )
        # Cloned, because torch's generators misread a state that is part of a larger tensor.
        set_random_states({k: v[mine].clone() for k, v in checkpoint.part("random").items()}, device)

    def _of_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """(P, …), the tensor of each process."""
        if self.accelerator.num_processes == 1:
            return tensor[None]
        return self.accelerator.gather(tensor[None].to(self.accelerator.device))


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """An optimiser's state of each parameter, by "<parameter>/<what>"."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Restore what `optimizer_tensors` read."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    parameters = dict(network.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        # Laid out in memory as its parameter is, which fused optimisers take for granted.
        alike = tensor.shape == parameters[owner].shape
        states.setdefault(owner, {})[key] = torch.empty_like(parameters[owner]).copy_(tensor) if alike else tensor
    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: states[name] for number, name in enumerate(order) if name in states}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of all random generators of this process, each as a tensor of fixed length."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([math.nan if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss]),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set all random generators to what `random_states` read."""
    gauss = float(states["python_gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    cached = float(states["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"])


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
    """Notes SIGTERM and Ctrl-C inside its `with` block; a second signal acts as it always does.

    Signals reach the main thread alone; anywhere else nothing is noted.

    Attributes:
        noted: the signal's number; 0 before one came.
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
