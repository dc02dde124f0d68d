"""The optimiser and the learning rate's schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from leukoscope.models.layers import head_parameters
from leukoscope.models.recipes import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the parameters that are trained.

    Args:
        network: as `build_network` makes it; what is frozen has `requires_grad` off.
    """
    return torch.optim.AdamW(parameter_groups(network, recipe), fused=True)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay, as torch's optimisers take them.

    The head has a rate of its own; biases and norms do not decay.
    """
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
    schedule: LambdaLR = get_scheduler(recipe.schedule, optimizer, warmup, total_steps)
    return schedule
