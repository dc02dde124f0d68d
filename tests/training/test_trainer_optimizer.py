"""The optimiser: which parameters it moves and decays, and how fast."""

from __future__ import annotations

import pytest
from torch import nn

from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import head_parameters
from leukoscope.training.trainer import parameter_groups

RECIPE = Recipe(
    name="small",
    architecture="densenet121",
    base_model="",
    image_size=32,
    learning_rate=0.01,
    head_learning_rate=0.1,
    weight_decay=0.5,
    block_config=(1, 1),
    pooled_norm=True,
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(RECIPE, 2)


def test_head_and_backbone_learn_at_their_own_rates(network: nn.Module) -> None:
    head = {id(p) for p in head_parameters(network)}
    rates = {id(p): group["lr"] for group in parameter_groups(network, RECIPE) for p in group["params"]}
    assert len(rates) == sum(1 for _ in network.parameters())
    assert {rate for p, rate in rates.items() if p in head} == {0.1}
    assert {rate for p, rate in rates.items() if p not in head} == {0.01}
    assert {id(p) for p in network.get_submodule("classifier.norm").parameters()} < head, (
        "its BatchNorm is as new as the last layer"
    )


def test_biases_and_norms_do_not_decay(network: nn.Module) -> None:
    decay = {id(p): group["weight_decay"] for group in parameter_groups(network, RECIPE) for p in group["params"]}
    for parameter in network.parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.5)


def test_what_is_frozen_is_left_out(network: nn.Module) -> None:
    network.features.requires_grad_(False)
    try:
        moved = {id(p) for group in parameter_groups(network, RECIPE) for p in group["params"]}
    finally:
        network.features.requires_grad_(True)
    assert moved == {id(p) for p in network.get_submodule("classifier").parameters()}
