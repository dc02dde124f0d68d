"""Mixup: the share, the blended pixels, and the loss of both labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope.models.recipes import Recipe
from leukoscope.training.data import mixup, mixup_share
from leukoscope.training.losses import TrainingLoss


def test_the_share_is_drawn_from_a_beta_by_seed_epoch_and_step() -> None:
    assert mixup_share(0.0, 0, 0, 0) == 1.0
    assert mixup_share(0.4, 0, 1, 2) == mixup_share(0.4, 0, 1, 2)
    drawn = np.asarray(
        [mixup_share(2.0, seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in range(250)]
    )
    assert len(set(drawn)) == 1000
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.var() - 0.05) < 0.01, "Beta(2, 2) has variance 1/20"


def test_cells_are_blended_with_their_mirror_position() -> None:
    inputs = torch.tensor([[0.0], [1.0], [5.0]])
    assert torch.allclose(mixup(inputs, 0.75), torch.tensor([[1.25], [1.0], [3.75]]))
    assert mixup(inputs, 1.0) is inputs


def test_the_loss_is_that_of_soft_labels() -> None:
    torch.manual_seed(0)
    recipe = Recipe("r", "test_resnet", "", label_smoothing=0.0, class_weighted=False)
    training_loss = TrainingLoss(recipe, np.asarray([0, 1, 2]), ("a", "b", "c"), torch.device("cpu"))
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 1])
    soft = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels.flip(0), 3)
    assert torch.allclose(training_loss(logits, labels, nn.Identity(), 0.7), F.cross_entropy(logits, soft))
