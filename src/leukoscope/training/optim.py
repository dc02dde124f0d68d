"""How weights change: the optimiser, its learning rates, the choice of the best epoch, EMA, precise BatchNorm,
and the batch size that fits the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import get_scheduler

from leukoscope import LeukoscopeError
from leukoscope.models.build import head_parameters
from leukoscope.models.recipes import Plateau, Recipe
from leukoscope.training.data import HeadOnFeatures, Inputs

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

# For every recipe that uses SGD; the usual value since Sutskever et al. 2013 (ICML, PMLR 28(3):1139).
_MOMENTUM = 0.9


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the recipe's optimiser over the parameters that are trained.

    AdamW decays weights apart from the gradient (Loshchilov & Hutter 2019, arXiv:1711.05101) and spares biases and
    norms. Adam, Adamax and SGD add `weight_decay` to the gradient of every parameter, as torch does with
    `network.parameters()`.

    Args:
        network: as `build_network` makes it; what is frozen has `requires_grad` off.
    """
    groups = parameter_groups(network, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, fused=True)
    # torch has no fused Adamax.
    return torch.optim.Adamax(groups) if recipe.optimizer == "adamax" else torch.optim.Adam(groups, fused=True)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay.

    Returns:
        groups as torch's optimisers take them; `initial_lr` stays the recipe's rate while `lr` follows the schedule.
    """
    head = {id(p) for p in head_parameters(network)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            rate = recipe.head_learning_rate if id(parameter) in head else recipe.learning_rate
            decay = recipe.weight_decay if recipe.optimizer != "adamw" or parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total_steps: int, cut: float = 1.0) -> float:
    """Set the learning rate of every group for a step of the run.

    Args:
        cut: factor by which a plateau has lowered the rate.

    Returns:
        the rate of the first group.
    """
    warmup_share = recipe.warmup_share if recipe.warmup_steps is None else recipe.warmup_steps / total_steps
    if recipe.schedule == "constant":
        share = cut
    elif recipe.schedule == "cosine":
        share = cut * cosine_with_warmup(step, total_steps, warmup_share)
    else:
        # A scheduler of its own for every step: what it keeps would have to be in checkpoints.
        aside = torch.optim.SGD([torch.zeros(1)], lr=recipe.learning_rate)
        schedule = get_scheduler(recipe.schedule, aside, round(total_steps * warmup_share), total_steps)
        share = cut * schedule.lr_lambdas[0](step)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    return float(optimizer.param_groups[0]["lr"])


def cosine_with_warmup(step: int, total_steps: int, warmup_share: float) -> float:
    """Compute the share of the peak learning rate at a step (from 0): linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(total_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def gain(row: Mapping[str, Any], column: str) -> float:
    """A column of summary.csv with the sign that makes more better; a loss counts negative."""
    return -row[column] if column.endswith("_loss") else row[column]


@dataclass(frozen=True)
class EpochOutcome:
    """What follows from an epoch.

    Attributes:
        watched: the column of summary.csv that was judged.
        improved: it was the best so far: these are the weights to keep.
        stop_reason: why training should stop; "" to continue.
    """

    watched: str
    improved: bool
    stop_reason: str = ""


class BestEpoch:
    """Keeps the best epoch by one validation metric, and stops after `patience` epochs without a better one.

    Attributes:
        rate: factor on the scheduled learning rate; always 1.
    """

    rate = 1.0

    def __init__(self, patience: int, selected_by: str):
        self.patience, self.selected_by = patience, selected_by
        self.score, self.epoch, self._gained = -math.inf, -1, -1

    def update(self, row: Mapping[str, Any]) -> EpochOutcome:
        """Judge an epoch by its row of summary.csv: of equal scores, the longer-trained epoch is kept.

        Where a metric by subject is missing, its pooled form takes its place.
        """
        watched = self.selected_by if self.selected_by in row else self.selected_by.removesuffix("_by_subject")
        epoch, score = row["epoch"] - 1, gain(row, watched)
        if score > self.score:
            self._gained = epoch
        improved = score >= self.score
        if improved:
            self.score, self.epoch = score, epoch
        stop = epoch - self._gained >= self.patience
        return EpochOutcome(watched, improved, f"no better validation score for {self.patience} epochs" * stop)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON values."""
        return {"score": self.score if self.epoch >= 0 else None, "epoch": self.epoch, "gained": self._gained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.score = -math.inf if state["score"] is None else state["score"]
        self.epoch, self._gained = state["epoch"], state["gained"]


class PlateauController:
    """Cuts the learning rate when a metric stops improving, and ends training after several cuts without a gain.

    The best of both watched columns is remembered at every epoch, so that a change of what is watched starts from the
    best value seen so far.

    Attributes:
        rate: factor on the scheduled learning rate.
    """

    def __init__(self, plateau: Plateau):
        self.plateau = plateau
        self.rate = 1.0
        self._best: dict[str, float] = {}
        self._waited = self._cuts = 0

    def update(self, row: Mapping[str, Any]) -> EpochOutcome:
        """Judge an epoch by its row of summary.csv, which holds train_accuracy and the plateau's `monitor`."""
        plateau = self.plateau
        until = plateau.until_train_accuracy
        watched = "train_accuracy" if until is not None and row["train_accuracy"] < until else plateau.monitor
        # A value that is no number is never better.
        columns = ("train_accuracy", plateau.monitor)
        better = {name: gain(row, name) for name in columns if gain(row, name) > self._best.get(name, -math.inf)}
        self._best |= better
        self._waited = 0 if watched in better else self._waited + 1
        if watched in better:
            self._cuts = 0
        elif self._waited >= plateau.patience:
            self.rate *= plateau.factor
            self._waited, self._cuts = 0, self._cuts + 1
        stop = self._cuts >= plateau.stop_patience
        return EpochOutcome(
            watched, watched in better, f"{self._cuts} cuts of the learning rate brought no gain" * stop
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON values."""
        return {"rate": self.rate, "best": dict(self._best), "waited": self._waited, "cuts": self._cuts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.rate, self._best = state["rate"], dict(state["best"])
        self._waited, self._cuts = state["waited"], state["cuts"]


def make_ema(network: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """Make the recipe's exponential moving average of the weights and BatchNorm statistics; None without one.

    The decay rises to `recipe.ema_decay` over the first steps: an average that remembers random start weights is of no
    use in a short run.
    """
    if not recipe.ema_decay:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)


def recompute_batch_norm(
    learner: nn.Module, inputs: Inputs, rows: np.ndarray, accelerator: Accelerator, batch_size: int
) -> None:
    """Replace the running statistics of every BatchNorm that is trained by their mean over batches of training cells.

    "PreciseBN" of Wu & Johnson (2021, arXiv:2105.07576). `torch.optim.swa_utils.update_bn` would reset frozen ones too
    and switch dropout on. Every process sees the same cells, so that all keep the same statistics.

    Args:
        learner: in training mode, but for what is frozen; left in evaluation mode.
        rows: (N,) of the cells, which are shown without augmentation.
        batch_size: cells at a time; a last batch that is not full is left out, unless it is the only one.
    """
    trained = [m for m in learner.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in trained]
    learner.eval()
    for norm in trained:
        norm.reset_running_stats()
        norm.momentum = None  # for torch, a plain mean over batches
        norm.train()
    for first in range(0, max(1, len(rows) - batch_size + 1), batch_size):
        items = inputs.items(rows[first : first + batch_size]).to(accelerator.device)
        with torch.no_grad(), accelerator.autocast():
            learner(inputs.for_prediction(items))
    for norm, momentum in zip(trained, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def find_batch_size(accelerator: Accelerator, recipe: Recipe, attempt: Callable[[int], object]) -> int:
    """How many cells of the recipe's batch each process takes at a time; all processes come to the same.

    Where they are fewer than the batch, the accelerator's gradient accumulation is raised to make up for it. The loss
    of a step stays the same; batch normalisation sees the parts.

    Args:
        attempt: trains on so many cells, and runs out of memory where they are too many.

    Raises:
        LeukoscopeError: not even one cell fits.
    """
    batch_size = recipe.train_batch_size
    # The batch, then its divisors that are at most half of the one before; at last 0.
    sizes = [batch_size]
    while sizes[-1]:
        sizes.append(next((n for n in range(sizes[-1] // 2, 0, -1) if batch_size % n == 0), 0))
    remaining = iter(sizes)

    def tried(size: int) -> int:
        attempt(size)
        return size

    try:
        search = find_executable_batch_size(
            tried, starting_batch_size=next(remaining), reduce_batch_size_fn=lambda: next(remaining)
        )
        fitting = int(search())
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        # The other processes wait for this one's result.
        fitting = 0
    fitting = int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())
    if not fitting:
        raise LeukoscopeError(
            f"{accelerator.device}: out of memory with one cell at a time; give a smaller --image_size (now "
            f"{recipe.image_size}) or free memory on the device"
        )
    if (parts := batch_size // fitting) > 1:
        accelerator.gradient_accumulation_steps *= parts
        accelerator.print(
            f"out of memory with {batch_size} cells at a time: {parts} batches of {fitting} make one step (batch "
            "normalisation sees the smaller ones)",
            flush=True,
        )
    return fitting


def try_step(accelerator: Accelerator, learner: nn.Module, recipe: Recipe, inputs: torch.Tensor) -> nn.Module:
    """Make one step of a copy of the network, which needs at least the memory that a step of its own will.

    Args:
        inputs: (B, …) on the device.

    Returns:
        the copy.
    """
    device = accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        copy = deepcopy(learner).to(device).train()
        for name, module in copy.named_modules():
            if f".{name}".endswith(tuple(f".{frozen}" for frozen in recipe.frozen)):
                module.eval()
        optimizer = make_optimizer(copy.network if isinstance(copy, HeadOnFeatures) else copy, recipe)
        with accelerator.autocast():
            logits = copy(inputs)
        F.cross_entropy(logits.float(), torch.zeros(len(inputs), dtype=torch.long, device=device)).backward()
        optimizer.step()
    return copy
