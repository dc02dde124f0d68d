"""What training minimises, the check that it stays finite, and the correction of a class-weighted network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.models.layers import classifier_parameters
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import write_json

BAD_BATCH = "bad_batch.json"
_NAMED_CELLS = 3  # in the message; the file lists all


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


@dataclass
class LossMonitor:
    """Collects the losses of batches and checks many of them at once: reading one would make a GPU wait.

    Attributes:
        cell_of: row of the cells → cell id.
        out: run folder, for the list of a bad batch; None writes none.
        every: batches between two checks.
    """

    accelerator: Accelerator
    cell_of: Mapping[int, str]
    out: Path | None
    every: int = 50
    _unread: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, init=False)

    def note(self, epoch: int, batch: int, loss: torch.Tensor, rows: torch.Tensor) -> None:
        """Add a batch, its () loss and the (B,) rows of its cells, as many on each process; `check` every so many."""
        self._unread.append((loss.detach(), rows))
        if len(self._unread) >= self.every:
            self.check(epoch, batch)

    def check(self, epoch: int, batch: int) -> None:
        """Check the losses since the last check: an error for one that is not finite; `epoch`, `batch` count from 0."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        bad = ~torch.stack([loss for loss, _ in unread]).isfinite()
        # (P,) the first bad batch of each process; their number where there is none.
        first = torch.where(bad.any(), bad.int().argmax(), len(unread))
        firsts: list[int] = self.accelerator.gather(first.reshape(1).to(self.accelerator.device)).tolist()
        if (at := min(firsts)) == len(unread):
            return
        # Every process ends with the same message; `loss` and `rows` are each process's own.
        (loss, rows), process, batch = unread[at], firsts.index(at), batch - len(unread) + 1 + at
        device, processes = self.accelerator.device, self.accelerator.num_processes
        value = self.accelerator.gather(loss.to(device).reshape(1)).tolist()[process]
        gathered = self.accelerator.gather(rows.to(device)).reshape(processes, -1)
        cells = [self.cell_of[row] for row in gathered[process].tolist()]
        listed = ""
        if self.out is not None:
            listed = f" (all in {self.out / BAD_BATCH})"
            if self.accelerator.is_main_process:
                found = {"notice": RESEARCH_NOTICE, "epoch": epoch + 1, "batch": batch + 1, "loss": str(value)}
                write_json(self.out / BAD_BATCH, found | {"cells": cells})
        more = f" and {len(cells) - _NAMED_CELLS} more" if len(cells) > _NAMED_CELLS else ""
        raise LeukoscopeError(
            f"epoch {epoch + 1}, batch {batch + 1}: the loss is {value} for the cells "
            f"{', '.join(cells[:_NAMED_CELLS])}{more}{listed}; look at them, or lower --learning_rate, and start again"
        )
