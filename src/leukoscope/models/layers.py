"""Which parameters of a network are its last layer, its head and its backbone.

A network is a timm model; or, in training only, a timm model as `backbone` under a `head` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def classifier_names(network: nn.Module) -> list[str]:
    """The names of the last linear layer; timm's distilled networks have two."""
    names = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return [names] if isinstance(names, str) else list(names)


def classifier_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last linear layer."""
    return [p for name in classifier_names(network) for p in network.get_submodule(name).parameters()]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What is new in a network that starts from pretrained weights: a head of its own, else the last linear layer."""
    head = getattr(network, "head", None) if hasattr(network, "backbone") else None
    return list(head.parameters()) if isinstance(head, nn.Module) else classifier_parameters(network)


def backbone_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics of all but the head, by name."""
    if isinstance(backbone := getattr(network, "backbone", None), nn.Module):
        return backbone.state_dict()
    last = tuple(f"{name}." for name in classifier_names(network))
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(last)}


def frozen_modules(network: nn.Module, frozen: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that a recipe's `frozen` names; "backbone" of a timm model is all but its last linear layer."""
    if "backbone" not in frozen or hasattr(network, "backbone"):
        return {name: network.get_submodule(name) for name in frozen}
    last = [f"{name}." for name in classifier_names(network)]
    modules = network.named_modules()
    return {name: module for name, module in modules if name and not any(one.startswith(f"{name}.") for one in last)}


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
