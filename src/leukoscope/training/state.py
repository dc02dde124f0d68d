"""All that a running training is made of, as a checkpoint keeps it: taken up again, it goes on to the bit.

Order and augmentation are not among it: they follow from seed, epoch and row.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from leukoscope.training.checkpoints import Checkpoint
from leukoscope.training.robustness import SubjectWeights
from leukoscope.training.schedule import BestEpoch, PlateauController

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


class Stopwatch:
    """Seconds of work, those before an interruption included."""

    def __init__(self, seconds: float = 0.0):
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Since it was made, and what it was made with."""
        return time.perf_counter() - self._started


_PLAIN = ("epoch", "step", "rows", "waited", "kept_epoch", "kept_for", "stopped")


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: epochs that are over.
        step: optimiser steps done in the epoch under way.
        figures: (2,) loss and accuracy of every batch of that epoch that this process saw.
        rows: of summary.csv, one an epoch that is over.
        watch, epoch_watch: time spent on the whole and on the training side of the epoch under way.
        waited: seconds of the latter that passed until batches were ready.
        kept_epoch: the epoch whose weights are kept, counted from 1; 0 for none.
        kept_for: the figure that speaks for it, in words.
        stopped: there is no use in further epochs.
    """

    epoch: int = 0
    step: int = 0
    figures: list[torch.Tensor] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)
    epoch_watch: Stopwatch = field(default_factory=Stopwatch)
    waited: float = 0.0
    kept_epoch: int = 0
    kept_for: str = ""
    stopped: bool = False

    def begin_epoch(self) -> None:
        """Start the clocks of an epoch."""
        self.epoch_watch, self.waited = Stopwatch(), 0.0

    def add_waiting(self, seconds: float) -> None:
        """Note time that passed until a batch was ready."""
        self.waited += seconds

    def end_epoch(self, row: dict[str, Any], *, stopped: bool) -> None:
        """Note an epoch that is over."""
        self.rows.append(row)
        self.epoch, self.step, self.figures, self.stopped = self.epoch + 1, 0, [], stopped

    def values(self) -> dict[str, Any]:
        """All but the figures, in plain JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {**plain, "seconds": self.watch.seconds, "epoch_seconds": self.epoch_watch.seconds}

    @classmethod
    def from_values(cls, values: dict[str, Any], figures: list[torch.Tensor]) -> Progress:
        """What `values` and the figures were taken from."""
        rest = {k: v for k, v in values.items() if k not in ("seconds", "epoch_seconds")}
        watch, epoch_watch = Stopwatch(values["seconds"]), Stopwatch(values["epoch_seconds"])
        return cls(**rest, figures=figures, watch=watch, epoch_watch=epoch_watch)


@dataclass
class TrainingState:
    """What changes while a network is fitted.

    Attributes:
        network: unwrapped.
        judge: what remembers the best epoch.
        average: the running mean of its weights, where the recipe keeps one.
        subject_weights: of the loss, where the recipe turns to the subjects that do worst.
        kept: weights of the best epoch so far.
    """

    accelerator: Accelerator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    judge: PlateauController | BestEpoch
    average: ModelEmaV3 | None = None
    subject_weights: SubjectWeights | None = None
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def judged(self) -> nn.Module:
        """The network whose answers count: that of the running mean, where there is one."""
        return self.network if self.average is None else self.average.module

    def keep_weights(self, reason: str) -> None:
        """Remember the weights as they are now, as those of the epoch under way; `reason` is its `kept_for`."""
        self.kept = {k: v.detach().clone() for k, v in self.judged.state_dict().items()}
        self.progress.kept_epoch, self.progress.kept_for = self.progress.epoch + 1, reason

    def checkpoint(self) -> Checkpoint:
        """This moment; every process must ask for it, because each gives its random states and figures."""
        parts: dict[str, dict[str, torch.Tensor]] = {
            "network": {k: v.detach() for k, v in self.network.state_dict().items()},
            "kept": self.kept,
            "optimizer": optimizer_tensors(self.optimizer, self.network),
            "random": {k: self._of_all(v) for k, v in random_states(self.accelerator.device).items()},
        }
        if self.progress.figures:
            parts["progress"] = {"figures": self._of_all(torch.stack(self.progress.figures))}
        if self.average is not None:
            parts["average"] = self.average.module.state_dict()
        if self.subject_weights is not None:
            parts["subjects"] = {"weights": self.subject_weights.weights}
        tensors = {f"{part}/{k}": v.cpu() for part, named in parts.items() for k, v in named.items()}
        return Checkpoint(tensors, {"progress": self.progress.values(), "judge": self.judge.state_dict()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint that as many processes made."""
        mine, device = self.accelerator.process_index, self.accelerator.device
        self.network.load_state_dict(checkpoint.part("network"))
        self.kept = {k: v.to(device) for k, v in checkpoint.part("kept").items()}
        load_optimizer_tensors(self.optimizer, self.network, checkpoint.part("optimizer"))
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint.part("average"))
        if self.subject_weights is not None:
            self.subject_weights.weights = checkpoint.part("subjects")["weights"].to(device)
        self.judge.load_state_dict(checkpoint.values["judge"])
        figures = checkpoint.part("progress").get("figures")
        unbound = [] if figures is None else list(figures[mine].to(device).unbind())
        self.progress = Progress.from_values(checkpoint.values["progress"], unbound)
        # Cloned, because torch's generators misread a state that is part of a larger tensor.
        set_random_states({k: v[mine].clone() for k, v in checkpoint.part("random").items()}, device)

    def _of_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """(P, …), the tensor of each process."""
        if self.accelerator.num_processes == 1:
            return tensor[None]
        return self.accelerator.gather(tensor[None].to(self.accelerator.device))


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """An optimiser's memory of each parameter, by "<parameter>/<what>"."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Give an optimiser back what `optimizer_tensors` took."""
    memories: dict[str, dict[str, torch.Tensor]] = {}
    parameters = dict(network.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        # Laid out in memory as its parameter is, which fused optimisers take for granted.
        alike = tensor.shape == parameters[owner].shape
        memories.setdefault(owner, {})[key] = torch.empty_like(parameters[owner]).copy_(tensor) if alike else tensor
    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: memories[name] for number, name in enumerate(order) if name in memories}
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
    """Put all random generators where `random_states` found them."""
    gauss = float(states["python_gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    cached = float(states["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"])
