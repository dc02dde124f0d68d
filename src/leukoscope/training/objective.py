"""What training makes small, and how a network that learnt from a weighted loss is set right again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import classifier_parameters, penalty
from leukoscope.models.recipes import Penalty, Recipe
from leukoscope.training.mixing import mixed_loss
from leukoscope.training.robustness import SubjectWeights


class Objective:
    """Cross-entropy with the recipe's smoothing, weights and penalty.

    Attributes:
        class_counts: (K,) float32, training cells of each class.
        class_weights: (K,) float32, inverse class frequency with mean 1 over the training cells; ones where the recipe
            does not weigh, or evens out the classes by other means.
        subject_weights: of the training subjects, where training turns to those that do worst; else None.
    """

    def __init__(
        self, recipe: Recipe, labels: np.ndarray, subjects: Sequence[str], names: Sequence[str], device: torch.device
    ):
        """Count the classes.

        Args:
            labels, subjects: N classes and subject ids, of the training cells.
            names: of the K classes.
            device: where losses are computed.

        Raises:
            LeukoscopeError: a class without training cells.
        """
        self.recipe = recipe
        counts = np.bincount(labels, minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                raise LeukoscopeError(f"split: no training cell of class {name}; use another --split or more cells")
        self.class_counts = torch.tensor(counts, dtype=torch.float32)
        weights = self.class_counts.sum() / (len(names) * self.class_counts)
        weighs = recipe.class_weighted and not _evens_out_classes(recipe)
        self.class_weights = (weights if weighs else torch.ones_like(weights)).to(device)
        step_size = recipe.subject_robustness
        self.subject_weights = SubjectWeights(labels, subjects, step_size) if step_size else None

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """() the loss of (B, K) logits under (B,) labels; `network` unwrapped, for the penalty on its weights."""
        return self._with_penalty(self._cell_losses(logits, labels).mean(), network)

    def training_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        network: nn.Module,
        *,
        share: float,
        groups: torch.Tensor | None,
        total: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """() the loss of a training batch, as `loss` where the recipe neither mixes cells nor weighs subjects.

        Args:
            share: what each cell kept of itself when the batch was mixed.
            groups: (B,) which of the `subject_weights` each cell belongs to, where there are any.
            total: adds a tensor over processes.
        """
        losses = mixed_loss(partial(self._cell_losses, logits), labels, share)
        if self.subject_weights is None or groups is None:
            return self._with_penalty(losses.mean(), network)
        return self._with_penalty(self.subject_weights.loss(losses, groups, total), network)

    def undo_class_weights(self, network: nn.Module) -> None:
        """Make the probabilities speak for the training data's class frequencies, where the classes were evened out."""
        if self.recipe.class_weighted or _evens_out_classes(self.recipe):
            restore_class_frequencies(network, self.class_counts)

    def _cell_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        # To be divided by the batch size, not by the batch's weights: the same on one process as on many.
        return loss * self.class_weights[labels]

    def _with_penalty(self, loss: torch.Tensor, network: nn.Module) -> torch.Tensor:
        return loss if self.recipe.penalty == Penalty() else loss + penalty(network, self.recipe)


def _evens_out_classes(recipe: Recipe) -> bool:
    """Whether classes count equally already, by who is shown or by whose loss is weighed."""
    return recipe.sampling != "cells" or recipe.subject_robustness > 0


def restore_class_frequencies(network: nn.Module, class_counts: torch.Tensor) -> None:
    """Make the probabilities speak for the training data's class frequencies again.

    A class-weighted loss teaches a network to answer as if all classes were equally frequent. Adding the logarithm of
    the true frequencies to the head's bias undoes that exactly (Saerens et al. 2002, doi:10.1162/089976602753284446).

    Args:
        class_counts: (K,) training cells of each class.
    """
    bias = next(p for p in classifier_parameters(network) if p.ndim == 1)
    shift = torch.log(class_counts / class_counts.sum())
    with torch.no_grad():
        bias.add_((shift - shift.mean()).to(bias.device))
