"""What training minimises, and which class frequencies a network presumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import classifier_parameters


class TrainingLoss:
    """Cross-entropy with the recipe's label smoothing and class weights.

    Attributes:
        class_counts: (K,) float32, training cells of each class.
        class_weights: (K,) float32, inverse class frequency with mean 1 over the training cells; ones where the recipe
            does not weigh classes, or samples them equally often.
    """

    def __init__(self, recipe: Recipe, labels: np.ndarray, names: tuple[str, ...], device: torch.device):
        """Count the (N,) classes of the training cells.

        Raises:
            LeukoscopeError: one of the K `names` has none.
        """
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


def training_frequencies(recipe: Recipe, class_counts: torch.Tensor) -> torch.Tensor:
    """(K,) class frequencies that a network presumes after training: even where classes weigh so, else the cells'."""
    even = recipe.class_weighted or recipe.sampling != "cells"
    return _shares(torch.ones_like(class_counts) if even else class_counts)


def output_frequencies(given: Sequence[str], labels: Sequence[str], class_counts: torch.Tensor) -> torch.Tensor:
    """Compute the (K,) class frequencies that a release's probabilities presume, from --class_frequencies.

    Empty stands for "equal" with two classes, and for "data", the (K,) `class_counts` of training cells, with more.

    Raises:
        LeukoscopeError: a class that is unknown, missing or given twice, or a share that is not above 0.
    """
    words = tuple(given) or (("equal",) if len(labels) == 2 else ("data",))
    if words in (("equal",), ("data",)):
        return _shares(torch.ones_like(class_counts) if words == ("equal",) else class_counts)
    shares: dict[str, float] = {}
    for word in words:
        label, _, share = word.rpartition("=")
        with suppress(ValueError):
            if label in labels and label not in shares and math.isfinite(float(share)) and float(share) > 0:
                shares[label] = float(share)
                continue
        raise LeukoscopeError(
            f"--class_frequencies {word}: give equal, data, or a share above 0 for each class once: "
            + " ".join(f"{label}={1 / len(labels):.2g}" for label in labels)
        )
    if missing := [label for label in labels if label not in shares]:
        raise LeukoscopeError(f"--class_frequencies: has no share for class {missing[0]}; give one for each class")
    return _shares(torch.tensor([shares[label] for label in labels]))


def shift_class_frequencies(network: nn.Module, before: torch.Tensor, after: torch.Tensor) -> None:
    """Make a network's probabilities presume the (K,) class frequencies `after` instead of `before`.

    The logarithm of their ratio is added to the last bias, which is exact where classes look the same at any frequency
    (Saerens et al. 2002, doi:10.1162/089976602753284446).
    """
    shift = torch.log(after / before)
    with torch.no_grad():
        # timm's distilled networks have two last layers and predict the mean of both.
        for bias in (parameter for parameter in classifier_parameters(network) if parameter.ndim == 1):
            bias.add_((shift - shift.mean()).to(bias.device))


def _shares(counts: torch.Tensor) -> torch.Tensor:
    return counts / counts.sum()
