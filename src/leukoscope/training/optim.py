"""From a recipe to its optimiser: which parameters learn, how fast each starts, and what decays them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from leukoscope.models.build import head_parameters
from leukoscope.models.recipes import Recipe

# Of every system here that uses plain SGD; the usual value since Sutskever et al. 2013 (ICML, PMLR 28(3):1139).
_MOMENTUM = 0.9


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters that train.

    AdamW decays weights apart from the gradient (Loshchilov & Hutter 2019, arXiv:1711.05101) and spares biases and
    norms. Adam, Adamax and SGD add `weight_decay` to the gradient of every parameter, which is what torch does with
    `network.parameters()` and so what those who call it that way trained with.

    Args:
        network: as the build module makes it; what is frozen has `requires_grad` off.
    """
    groups = parameter_groups(network, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM)
    return torch.optim.Adamax(groups) if recipe.optimizer == "adamax" else torch.optim.Adam(groups)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Backbone and head at their own rates, each parameter decayed as the optimiser's kind wants it.

    Returns:
        groups as torch's optimisers take them; `initial_lr` stays the recipe's rate while `lr` follows the schedule.
    """
    head = {id(p) for p in head_parameters(network)}
    decays_all = recipe.optimizer != "adamw"
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in filter(lambda p: p.requires_grad, network.parameters()):
        groups.setdefault((id(parameter) in head, decays_all or parameter.ndim > 1), []).append(parameter)
    rates = {True: recipe.head_learning_rate, False: recipe.learning_rate}
    return [
        {
            "params": parameters,
            "lr": rates[in_head],
            "initial_lr": rates[in_head],
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), parameters in groups.items()
    ]
