"""Which parameters of a network are its last layer, its head and its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def classifier_names(network: nn.Module) -> list[str]:
    """The names of the last linear layer; timm's distilled networks have two."""
    names = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return [names] if isinstance(names, str) else list(names)


def classifier_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last linear layer."""
    return [p for name in classifier_names(network) for p in network.get_submodule(name).parameters()]


def head_names(network: Any) -> list[str]:
    """The names of what follows the pooled features: the last linear layer, and what else is new in front of it."""
    head = network.get_classifier()
    modules = head if isinstance(head, tuple) else (head,)
    return [name for name, module in network.named_modules() if any(module is one for one in modules)]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are new in a network with pretrained weights."""
    return [parameter for name in head_names(network) for parameter in network.get_submodule(name).parameters()]


def backbone_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics of all but the head, by name."""
    head = tuple(f"{name}." for name in head_names(network))
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(head)}


def frozen_modules(network: nn.Module, frozen: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that a recipe's `frozen` names; "backbone" is all but the head."""
    if "backbone" not in frozen:
        return {name: network.get_submodule(name) for name in frozen}
    head = [f"{name}." for name in head_names(network)]

    def holds_head(name: str) -> bool:
        return any(one.startswith(f"{name}.") or f"{name}.".startswith(one) for one in head)

    return {name: module for name, module in network.named_modules() if name and not holds_head(name)}


def freeze(network: nn.Module, frozen: Sequence[str]) -> None:
    """Keep the weights and statistics of what a recipe's `frozen` names; called after `network.train()`."""
    for module in frozen_modules(network, frozen).values():
        module.requires_grad_(False).eval()
    if "backbone" in frozen:
        # Some parameters belong to no module inside: a vision transformer's position embedding.
        trained = {id(parameter) for parameter in head_parameters(network)}
        for parameter in network.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
