"""From a recipe to its optimiser: which parameters learn, how fast each starts, and what decays them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import head_parameters
from leukoscope.models.recipes import Recipe
from leukoscope.training.schedule import cosine_with_warmup

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
        return torch.optim.SGD(groups, momentum=_MOMENTUM, fused=True)
    # torch has no fused Adamax.
    return torch.optim.Adamax(groups) if recipe.optimizer == "adamax" else torch.optim.Adam(groups, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total_steps: int, cut: float = 1.0) -> float:
    """Give every group its learning rate for a step of the run.

    Args:
        cut: what a plateau has left of the rate.

    Returns:
        the rate of the first group.
    """
    constant = recipe.schedule == "constant"
    share = cut * (1.0 if constant else cosine_with_warmup(step, total_steps, recipe.warmup_share))
    head_alone = step < recipe.head_first * total_steps
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if head_alone and not group["is_head"] else group["initial_lr"] * share
    return float(optimizer.param_groups[0]["lr"])


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Backbone and head at their own rates, each parameter decayed as the optimiser's kind wants it.

    Returns:
        groups as torch's optimisers take them; `initial_lr` stays the recipe's rate while `lr` follows the schedule.
    """
    rates, decays_all = _rates(network, recipe), recipe.optimizer != "adamw"
    head = {id(p) for p in head_parameters(network)}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = (rates[name], decays_all or parameter.ndim > 1, id(parameter) in head)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "initial_lr": rate,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "is_head": is_head,
        }
        for (rate, decayed, is_head), parameters in groups.items()
    ]


def _rates(network: nn.Module, recipe: Recipe) -> dict[str, float]:
    """The peak rate of every parameter, by name."""
    head = {id(p) for p in head_parameters(network)}
    above = _blocks_above(network) if recipe.layer_decay != 1 else {}
    return {
        name: recipe.head_learning_rate
        if id(parameter) in head
        else recipe.learning_rate * recipe.layer_decay ** above.get(name, 0)
        for name, parameter in network.named_parameters()
    }


def _blocks_above(network: nn.Module) -> dict[str, int]:
    """How many blocks stand between each parameter's own and the head, by the parameter's name."""
    from timm.models import group_parameters

    if not hasattr(network, "group_matcher"):
        raise LeukoscopeError("layer_decay: this network has no blocks that timm knows; leave it at 1")
    depth: dict[str, int] = group_parameters(network, network.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    # The classifier is the deepest group of all, the last block the one before.
    last = max(depth.values()) - 1
    return {name: max(last - number, 0) for name, number in depth.items()}
