"""The running mean of the weights: what it holds, and how it starts."""

from __future__ import annotations

import pytest
from torch import nn

from leukoscope.models.recipes import Recipe
from leukoscope.training.optim import make_ema

RECIPE = Recipe(name="r", architecture="test_resnet", base_model="", ema_decay=0.9)


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.zeros_(net[0].weight)
    return net


def test_a_recipe_without_decay_keeps_no_mean() -> None:
    net = network()
    assert make_ema(net, Recipe(name="r", architecture="test_resnet", base_model="")) is None


def test_the_mean_lags_behind_the_weights_and_holds_their_statistics() -> None:
    net = network()
    average = make_ema(net, RECIPE)
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
