"""One step of learning: what a batch teaches the network, and which parts of it take part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leukoscope.models.recipes import Recipe
from leukoscope.training.mixing import mixed
from leukoscope.training.objective import Objective


@dataclass
class Step:
    """Learns from one batch after the other.

    Attributes:
        network: unwrapped.
        learner: what answers for a batch: the network, or its head, as Accelerate prepared it.
        optimizer: as Accelerate prepared it: it does nothing until the last batch of a step.
        groups: (N,) by row of the cells: which of the objective's subject weights a training cell belongs to, else 0.
    """

    accelerator: Accelerator
    recipe: Recipe
    objective: Objective
    network: nn.Module
    learner: nn.Module
    optimizer: torch.optim.Optimizer
    groups: torch.Tensor

    def train_mode(self) -> None:
        """Training mode, but for frozen modules: those keep weights and batch statistics."""
        self.learner.train()
        for name in self.recipe.frozen:
            self.network.get_submodule(name).eval()
        if self.recipe.batch_norm_frozen:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, share: float) -> torch.Tensor:
        """Learn from a batch.

        Args:
            inputs, labels: (B, …) and (B,), on the device.
            rows: (B,) of the cells, on the CPU.
            share: what each cell keeps of itself when the batch is mixed.

        Returns:
            (2,) its loss and accuracy before that, on the device: reading them would make the processor wait.
        """
        with self.accelerator.autocast():
            logits = self.learner(mixed(inputs, share))
        loss = self.objective.training_loss(
            logits,
            labels,
            self.network,
            share=share,
            groups=self.groups[rows].to(labels.device, non_blocking=True),
            total=partial(self.accelerator.reduce, reduction="sum"),
        )
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.recipe.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])


def loss_groups(objective: Objective, train_rows: np.ndarray, labels: np.ndarray, subjects: list[str]) -> torch.Tensor:
    """`Step.groups` for as many rows as reach the last training cell; `labels` and `subjects` are of `train_rows`."""
    groups, weights = torch.zeros(int(train_rows.max()) + 1, dtype=torch.long), objective.subject_weights
    if weights is not None:
        groups[torch.from_numpy(train_rows)] = weights.groups(labels, subjects)
    return groups
