"""Statistics taken anew must be those of the cells shown, and leave alone what is frozen."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from leukoscope.training.data import Inputs
from research.prior_training import recompute_batch_norm

VALUES = np.random.default_rng(0).normal(5.0, 3.0, size=(40, 2)).astype(np.float32)


class Numbers:
    """Inputs that are numbers already."""

    decodes = False

    def items(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(VALUES[rows])

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        raise AssertionError("statistics are taken without augmentation")

    def for_prediction(self, items: torch.Tensor) -> torch.Tensor:
        return items


NUMBERS = cast("Inputs", Numbers())


def network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.Dropout(0.9)).train()


def test_statistics_are_the_mean_over_whole_batches() -> None:
    net = network()
    net.get_buffer("0.running_mean").fill_(-100.0)

    recompute_batch_norm(net, NUMBERS, np.arange(35), Accelerator(cpu=True), batch_size=10)

    batches = VALUES[:30].reshape(3, 10, 2)
    assert torch.allclose(net.get_buffer("0.running_mean"), torch.from_numpy(batches.mean(axis=(0, 1))), atol=1e-5)
    assert torch.allclose(
        net.get_buffer("0.running_var"), torch.from_numpy(batches.var(axis=1, ddof=1).mean(axis=0)), rtol=1e-5
    )
    assert net[0].momentum == 0.1, "training goes on with the momentum it had"
    assert not any(module.training for module in net.modules())


def test_what_is_frozen_keeps_its_statistics() -> None:
    net = network()
    net[0].eval()
    net.get_buffer("0.running_mean").fill_(1.0)

    recompute_batch_norm(net, NUMBERS, np.arange(20), Accelerator(cpu=True), batch_size=10)

    assert net.get_buffer("0.running_mean").tolist() == [1.0, 1.0]
    assert net.get_buffer("1.running_mean").tolist() == pytest.approx((VALUES[:20].mean(axis=0) - 1).tolist(), abs=1e-3)

    recompute_batch_norm(fewer := network(), NUMBERS, np.arange(6), Accelerator(cpu=True), batch_size=10)
    assert torch.allclose(fewer.get_buffer("0.running_mean"), torch.from_numpy(VALUES[:6].mean(axis=0)), atol=1e-5)
