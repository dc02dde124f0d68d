"""How weights change: optimiser, learning rates, choice of the best epoch, EMA, and the batch size that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import nn
from transformers import get_scheduler

from leukoscope import LeukoscopeError
from leukoscope.models.layers import head_parameters
from leukoscope.models.recipes import Recipe
from leukoscope.training.data import HeadOnFeatures

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the parameters that are trained.

    Args:
        network: as `build_network` makes it; what is frozen has `requires_grad` off.
    """
    return torch.optim.AdamW(parameter_groups(network, recipe), fused=True)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay; biases and norms do not decay.

    Returns:
        groups as torch's optimisers take them; `initial_lr` stays the recipe's rate while `lr` follows the schedule.
    """
    head = {id(p) for p in head_parameters(network)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            rate = recipe.head_learning_rate if id(parameter) in head else recipe.learning_rate
            decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total_steps: int) -> float:
    """Set the learning rate of every group for a step of the run.

    Returns:
        the rate of the first group.
    """
    warmup_share = recipe.warmup_share if recipe.warmup_steps is None else recipe.warmup_steps / total_steps
    if recipe.schedule == "constant":
        share = 1.0
    elif recipe.schedule == "cosine":
        share = cosine_with_warmup(step, total_steps, warmup_share)
    else:
        # A scheduler of its own for every step: what it keeps would have to be in checkpoints.
        aside = torch.optim.SGD([torch.zeros(1)], lr=recipe.learning_rate)
        schedule = get_scheduler(recipe.schedule, aside, round(total_steps * warmup_share), total_steps)
        share = schedule.lr_lambdas[0](step)
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


class Judge(Protocol):
    """Decides after each epoch whether its weights are kept, and whether training stops."""

    def update(self, row: Mapping[str, Any]) -> EpochOutcome:
        """Judge an epoch by its row of summary.csv."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""


class BestEpoch:
    """Keeps the best epoch by one validation metric, and stops after `patience` epochs without a better one."""

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


def make_ema(network: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """Make the recipe's exponential moving average of the weights and BatchNorm statistics; None without one.

    The decay rises to `recipe.ema_decay` over the first steps: an average that remembers random start weights is of no
    use in a short run.
    """
    if not recipe.ema_decay:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)


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
