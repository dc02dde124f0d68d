"""Each optimiser by its class and numbers, and which parameters it moves and decays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from leukoscope.models.build import build_network, head_parameters
from leukoscope.models.recipes import Head, Hidden, Recipe
from leukoscope.training.optim import make_optimizer, parameter_groups

RECIPE = Recipe(
    name="small",
    architecture="test_resnet",
    base_model="",
    learning_rate=0.01,
    head_learning_rate=0.1,
    weight_decay=0.5,
    head=Head(hidden=(Hidden(8, batch_norm=True),)),
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(RECIPE, 2)


@pytest.mark.parametrize(
    ("name", "kind", "numbers"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "fused": True}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": False, "fused": True}),
        ("adamax", torch.optim.Adamax, {"betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "fused": True}),
    ],
)
def test_a_recipe_names_its_optimiser(network: nn.Module, name: str, kind: type, numbers: dict[str, object]) -> None:
    optimizer = make_optimizer(network, replace(RECIPE, optimizer=name))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in numbers} == numbers


def test_head_and_backbone_learn_at_their_own_rates(network: nn.Module) -> None:
    head = {id(p) for p in head_parameters(network)}
    rates = {id(p): group["lr"] for group in parameter_groups(network, RECIPE) for p in group["params"]}
    assert len(rates) == sum(1 for _ in network.parameters())
    assert {rate for p, rate in rates.items() if p in head} == {0.1}
    assert {rate for p, rate in rates.items() if p not in head} == {0.01}
    assert {id(p) for p in network.head.hidden.parameters()} < head, "a hidden layer is as new as the last one"


@pytest.mark.parametrize(("name", "spares"), [("adamw", True), ("adam", False), ("adamax", False), ("sgd", False)])
def test_adamw_spares_biases_and_norms_and_the_others_decay_everything(
    network: nn.Module, name: str, spares: bool
) -> None:
    groups = parameter_groups(network, replace(RECIPE, optimizer=name))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for parameter in network.parameters():
        assert decay[id(parameter)] == (0.0 if spares and parameter.ndim == 1 else 0.5)


@pytest.mark.parametrize("name", ["adam", "sgd", "adamax"])
def test_plain_optimisers_step_as_torch_does_on_all_parameters(name: str) -> None:
    """Weight decay is L2: part of the gradient, on every parameter."""
    recipe = replace(RECIPE, optimizer=name, learning_rate=0.1)
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adamax": torch.optim.Adamax}[name]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    networks = []
    for ours in (True, False):
        torch.manual_seed(0)
        twin = build_network(recipe, 2)
        parameters = twin.parameters()
        optimizer = make_optimizer(twin, recipe) if ours else kind(parameters, lr=0.1, weight_decay=0.5, **extra)
        for _ in range(2):
            twin.eval()(torch.ones(2, 3, 32, 32)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        networks.append(twin)
    for one, other in zip(*(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_frozen_is_left_out(network: nn.Module) -> None:
    network.backbone.requires_grad_(False)
    try:
        moved = {id(p) for group in parameter_groups(network, RECIPE) for p in group["params"]}
    finally:
        network.backbone.requires_grad_(True)
    assert moved == {id(p) for p in network.head.parameters()}
