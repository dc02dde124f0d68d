"""What training makes small, and how a network that learnt from a weighted loss is set right again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import classifier_parameters, penalty
from leukoscope.models.recipes import Penalty, Recipe


class Objective:
    """Cross-entropy with the recipe's smoothing, class weights and penalty.

    Attributes:
        class_counts: (K,) float32, training cells of each class.
        class_weights: (K,) float32, inverse class frequency with mean 1 over the training cells; ones where the recipe
            does not weigh.
    """

    def __init__(self, recipe: Recipe, labels: np.ndarray, names: Sequence[str], device: torch.device):
        """Count the classes.

        Args:
            labels: (N,) class of each training cell.
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
        self.class_weights = (weights if recipe.class_weighted else torch.ones_like(weights)).to(device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """() the loss of a batch: (B, K) logits, (B,) labels; `network` unwrapped, for the penalty on its weights."""
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        # Divided by the batch size, not by the batch's weights: the same on one process as on many.
        loss = (loss * self.class_weights[labels]).mean()
        return loss if self.recipe.penalty == Penalty() else loss + penalty(network, self.recipe)

    def undo_class_weights(self, network: nn.Module) -> None:
        """Make the probabilities speak for the training data's class frequencies, where the loss was weighted."""
        if self.recipe.class_weighted:
            restore_class_frequencies(network, self.class_counts)


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
