"""Group-robust training: who weighs how much, and what that does to a fit that a mean would give up on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from leukoscope.training.robustness import SubjectWeights

LABELS = np.asarray([0, 0, 0, 0, 1, 1])
SUBJECTS = ["a", "a", "a", "b", "c", "c"]


def test_classes_start_equal_and_in_them_subjects() -> None:
    weights = SubjectWeights(LABELS, SUBJECTS, 0.1)
    assert weights.weights.tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert weights.groups(LABELS[[0, 3, 5]], [SUBJECTS[i] for i in (0, 3, 5)]).tolist() == [0, 1, 2]


def test_the_subject_with_the_higher_loss_gains_weight() -> None:
    weights = SubjectWeights(LABELS, SUBJECTS, 1.0)
    losses = torch.tensor([0.0, 0.0, 0.0, 2.0, 1.0, 1.0])
    groups = weights.groups(LABELS, SUBJECTS)
    loss = weights.loss(losses, groups)
    # Within its class: the other class, whose one subject did badly too, keeps its half.
    first = 0.5 / (1 + np.exp(2))
    raised = np.asarray([first, 0.5 - first, 0.5])
    assert weights.weights.tolist() == pytest.approx(raised.tolist())
    assert loss.item() == pytest.approx(float((raised * [0, 2, 1]).sum()))


def test_classes_keep_equal_shares_whatever_their_losses() -> None:
    weights = SubjectWeights(LABELS, SUBJECTS, 1.0)
    groups = weights.groups(LABELS, SUBJECTS)
    for _ in range(20):
        weights.loss(torch.tensor([0.1, 0.1, 0.1, 0.2, 3.0, 3.0]), groups)
    assert weights.weights[:2].sum().item() == pytest.approx(0.5)
    assert weights.weights[2].item() == pytest.approx(0.5)


def test_a_subject_absent_from_the_batch_neither_counts_nor_gains() -> None:
    weights = SubjectWeights(LABELS, SUBJECTS, 1.0)
    loss = weights.loss(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(2.0)
    assert weights.weights[2].item() == pytest.approx(0.5)
    assert weights.weights[1].item() < 0.25 < weights.weights[0].item()


def test_processes_that_add_their_sums_keep_the_same_weights() -> None:
    whole, half = SubjectWeights(LABELS, SUBJECTS, 1.0), SubjectWeights(LABELS, SUBJECTS, 1.0)
    losses, groups = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 2, 2])
    whole.loss(losses, groups)
    other = torch.zeros(2, 3).index_add(1, groups[2:], torch.stack([losses[2:], torch.ones(2)]))
    half.loss(losses[:2], groups[:2], total=lambda sums: sums + other)
    assert torch.allclose(whole.weights, half.weights)


def test_a_small_subject_is_fitted_that_the_mean_gives_up_on() -> None:
    """Class 1: 95 cells at +1, and 5 of another person at −0.5, where class 0's 20 cells at −1 pull the other way."""
    x = torch.tensor([-1.0] * 20 + [1.0] * 95 + [-0.5] * 5)
    labels = np.asarray([0] * 20 + [1] * 100)
    subjects = ["a"] * 20 + ["b"] * 95 + ["c"] * 5
    worst = {}
    for step_size in (0.0, 0.1):
        w = torch.zeros(2, requires_grad=True)
        weights = SubjectWeights(labels, subjects, step_size)
        groups = weights.groups(labels, subjects)
        optimizer = torch.optim.SGD([w], lr=0.3)
        for _ in range(300):
            losses = F.binary_cross_entropy_with_logits(
                w[0] * x + w[1], torch.from_numpy(labels).float(), reduction="none"
            )
            loss = weights.loss(losses, groups) if step_size else losses.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        worst[step_size] = losses[groups == 2].mean().item()
    assert worst[0.1] < worst[0.0] - 0.1
