"""How a network is optimised: groups of parameters, schedule, class weights, and the precision of its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from leukoscope import DataError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import head_parameters


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters for torch's optimisers: the head has a rate of its own; biases and norms do not decay."""
    head = {id(p) for p in head_parameters(network)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            rate = recipe.head_learning_rate if id(parameter) in head else recipe.learning_rate
            decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int) -> LambdaLR:
    """Make the recipe's schedule: one of transformers' that warms up linearly and ends after `total_steps`."""
    warmup = round(total_steps * recipe.warmup_share) if recipe.warmup_steps is None else recipe.warmup_steps
    scheduler: LambdaLR = get_scheduler(recipe.schedule, optimizer, warmup, total_steps)
    return scheduler


def rate_of_last_step(scheduler: LambdaLR) -> float:
    """The learning rate of the step before `scheduler.step()`, of the first group of parameters."""
    # `get_last_lr` is that of the step to come.
    return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](scheduler.last_epoch - 1))


def keep_depthwise_float32(network: nn.Module) -> None:
    """Let a network's depthwise convolutions compute in float32 under a CPU's autocast: in bf16 they are slower."""
    states: list[bool] = []

    def leave_autocast(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states.append(torch.is_autocast_enabled("cpu"))
        torch.set_autocast_enabled("cpu", False)
        return tuple(tensor.float() for tensor in inputs)

    def enter_again(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        torch.set_autocast_enabled("cpu", states.pop())

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.register_forward_pre_hook(leave_autocast)
            module.register_forward_hook(enter_again, always_call=True)


def remove_autocast(accelerator: Accelerator, model: nn.Module) -> None:
    """Take from a prepared model the wrapper that computes every call in the precision of training.

    The training step asks for that precision itself; predictions are made in float32.
    """
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # called for this effect; what it returns is not needed


def count_classes(cells: FramedCells, split: Split) -> torch.Tensor:
    """(K,) float32, training cells of each class.

    Raises:
        DataError: a class without training cells.
    """
    names = cells.data.info.labels
    counts = np.bincount(cells.labels[cells.rows(split.train)], minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            raise DataError(f"split: no training cell of class {name}; use another --split or more cells")
    return torch.tensor(counts, dtype=torch.float32)


def weigh_classes(recipe: Recipe, class_counts: torch.Tensor) -> torch.Tensor:
    """(K,) float32 weights in the loss: inverse class frequency, with mean 1 over the training cells.

    Ones where the recipe does not weigh classes, or samples them equally often.
    """
    if recipe.class_weighted and recipe.sampling == "cells":
        return class_counts.sum() / (len(class_counts) * class_counts)
    return torch.ones_like(class_counts)
