"""What training minimises, and the correction of a class-weighted network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.layers import classifier_parameters
from leukoscope.models.recipes import Recipe


class TrainingLoss:
    """Cross-entropy with the recipe's label smoothing and class weights.

    Attributes:
        class_counts: (K,) float32, training cells of each class.
        class_weights: (K,) float32, inverse class frequency with mean 1 over the training cells; ones where the recipe
            does not weigh classes, or samples them equally often.
    """

    def __init__(self, recipe: Recipe, labels: np.ndarray, names: tuple[str, ...], device: torch.device):
        """Count the (N,) classes of the training cells; an error where one of the K `names` has none."""
        self.recipe = recipe
        counts = np.bincount(labels, minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                raise LeukoscopeError(f"split: no training cell of class {name}; use another --split or more cells")
        self.class_counts = torch.tensor(counts, dtype=torch.float32)
        weights = self.class_counts.sum() / (len(names) * self.class_counts)
        if not recipe.class_weighted or recipe.sampling != "cells":
            weights = torch.ones_like(weights)
        self.class_weights = weights.to(device)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a batch, () float32, from (B, K) logits and (B,) labels."""
        losses = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        # Divided by the batch size, not by the sum of the weights: the same on one process as on many.
        return (losses * self.class_weights[labels]).mean()

    def undo_class_weights(self, network: nn.Module) -> None:
        """Restore the training data's class frequencies where training weighed or sampled the classes equally."""
        if self.recipe.class_weighted or self.recipe.sampling != "cells":
            restore_class_frequencies(network, self.class_counts)


def restore_class_frequencies(network: nn.Module, class_counts: torch.Tensor) -> None:
    """Make the probabilities follow the training data's class frequencies again, given the (K,) cells of each class.

    A class-weighted loss teaches a network to predict as if all classes were equally frequent. Adding the logarithm of
    the true frequencies to the head's bias undoes that exactly (Saerens et al. 2002, doi:10.1162/089976602753284446).
    """
    shift = torch.log(class_counts / class_counts.sum())
    with torch.no_grad():
        # timm's distilled networks have two last layers and predict the mean of both.
        for bias in (parameter for parameter in classifier_parameters(network) if parameter.ndim == 1):
            bias.add_((shift - shift.mean()).to(bias.device))
