"""The running mean of the weights: what it holds, and that the network gets its own back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leukoscope.models.recipes import Recipe
from leukoscope.training.averaging import averaged_weights, make_average

RECIPE = Recipe(name="r", architecture="test_resnet", base_model="", ema_decay=0.9)


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.zeros_(net[0].weight)
    return net


def test_a_recipe_without_decay_keeps_no_mean() -> None:
    net = network()
    assert make_average(net, Recipe(name="r", architecture="test_resnet", base_model="")) is None
    with averaged_weights(net, None):
        nn.init.ones_(net[0].weight)
    assert net[0].weight.item() == 1.0, "without a mean nothing is put back"


def test_the_mean_lags_behind_the_weights_and_holds_their_statistics() -> None:
    net = network()
    average = make_average(net, RECIPE)
    assert average is not None
    average.update(net, step=1)
    nn.init.ones_(net[0].weight)
    net[1].running_mean.fill_(1.0)
    for step in range(2, 200):
        average.update(net, step=step)
        if step == 4:
            early = average.module[0].weight.item()
    assert 0.7 < early < 1.0, "the decay starts low: start weights are soon forgotten"
    assert average.module[0].weight.item() == pytest.approx(1.0, abs=1e-4)
    assert average.module[1].running_mean.item() == pytest.approx(1.0, abs=1e-4)


def test_the_network_carries_the_mean_for_a_while_and_gets_its_own_back() -> None:
    net = network()
    average = make_average(net, RECIPE)
    nn.init.ones_(net[0].weight)
    with pytest.raises(RuntimeError, match="stop"), averaged_weights(net, average):
        assert net[0].weight.item() == 0.0
        raise RuntimeError("stop")
    assert net[0].weight.item() == 1.0
    assert net[0].weight.requires_grad
    assert torch.is_grad_enabled()
