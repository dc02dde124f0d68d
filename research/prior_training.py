"""How the prior systems are trained, where Leukoscope's own recipes are not: optimiser, penalty, plateau, PreciseBN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leukoscope import LeukoscopeError
from leukoscope.data.splits import Split
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import freeze
from leukoscope.training.data import Inputs, evenly_spread
from leukoscope.training.optimization import parameter_groups
from leukoscope.training.selection import Selection, gain
from leukoscope.training.train import train
from leukoscope.training.trainer import Trainer
from research.prior_networks import build_prior, penalty
from research.prior_recipes import Plateau

# The usual value since Sutskever et al. 2013 (ICML, PMLR 28(3):1139).
_MOMENTUM = 0.9


class PriorTrainer(Trainer):
    """Trains a `PriorRecipe` as its author describes; any other recipe as `Trainer` does."""

    def __init__(self, *args: Any, **settings: Any):
        """As `Trainer`.

        Raises:
            LeukoscopeError: the recipe's learning rate follows validation cells and there are none.
        """
        super().__init__(*args, **settings)
        self.plateau: Plateau | None = getattr(self.recipe, "plateau", None)
        if self.plateau:
            _require_validation(self.split, self.recipe)

    def create_optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimiser."""
        return make_optimizer(self.network, self.recipe)

    def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """The loss with the recipe's penalty."""
        return super().compute_loss(logits, labels, network) + penalty(network, self.recipe)

    def select_epoch(self) -> Selection:
        """By the plateau, where the recipe has one."""
        if not self.plateau:
            return super().select_epoch()
        return follow_plateau(self.state.rows, self.plateau)[0]

    def _train_epoch(self) -> dict[str, Any]:
        """Cut the rate by the plateau before the epoch; take the BatchNorm statistics anew after it."""
        if self.plateau:
            _, rate = follow_plateau(self.state.rows, self.plateau)
            scheduler = self.state.scheduler
            scheduler.base_lrs = [group["initial_lr"] * rate for group in self.optimizer.param_groups]
            for group, lr in zip(self.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = lr  # the schedule of these recipes is constant
        row = super()._train_epoch()
        if cells := getattr(self.recipe, "batch_norm_cells", 0):
            # Evenly spread over the training side, whatever its order; for the network that is validated and kept.
            spread = evenly_spread(self.cells.rows(self.split.train), cells)
            model = self.inputs.model(self.state.eval_network).train()
            freeze(self.state.eval_network, self.recipe.frozen)
            recompute_batch_norm(model, self.inputs, spread, self.accelerator, self.recipe.train_batch_size)
        return row


train_prior = partial(train, build=build_prior, trainer_class=PriorTrainer)
"""`leukoscope.training.train.train`, for a `PriorRecipe` too."""


def _require_validation(split: Split, recipe: Recipe) -> None:
    if not split.validation:
        raise LeukoscopeError(
            f"--recipe {recipe.name}: its learning rate follows the validation cells and split {split.strategy} "
            f"({split.detail}) has none; leave out --no_validation or choose another --split"
        )


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the recipe's optimiser over the parameters that are trained.

    AdamW spares biases and norms from its decay. Adam, Adamax and SGD add `weight_decay` to the gradient of every
    parameter, as torch does with `network.parameters()`.

    Args:
        network: as `build_prior` makes it; what is frozen has `requires_grad` off.
    """
    groups, kind = parameter_groups(network, recipe), getattr(recipe, "optimizer", "adamw")
    if kind == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    for group in groups:
        group["weight_decay"] = recipe.weight_decay
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, fused=True)
    # torch has no fused Adamax.
    return torch.optim.Adamax(groups) if kind == "adamax" else torch.optim.Adam(groups, fused=True)


def follow_plateau(rows: Sequence[Mapping[str, Any]], plateau: Plateau) -> tuple[Selection, float]:
    """Cut the learning rate when a metric stops improving; stop after several cuts in a row without a gain.

    The best of both watched columns is remembered at every epoch, so that a change of what is watched starts from the
    best value seen so far.

    Args:
        rows: of summary.csv, with train_accuracy and the plateau's `monitor`.

    Returns:
        the last epoch that improved what was watched then, and the factor on the learning rate.
    """
    best: dict[str, float] = {}
    rate, waited, cuts, kept, kept_by, until = 1.0, 0, 0, 0, "", plateau.until_train_accuracy
    for row in rows:
        watched = "train_accuracy" if until is not None and row["train_accuracy"] < until else plateau.monitor
        # A value that is no number is never better.
        columns = ("train_accuracy", plateau.monitor)
        better = {name: gain(row, name) for name in columns if gain(row, name) > best.get(name, -math.inf)}
        best |= better
        waited = 0 if watched in better else waited + 1
        if watched in better:
            cuts, kept, kept_by = 0, row["epoch"], watched
        elif waited >= plateau.patience:
            rate, waited, cuts = rate * plateau.factor, 0, cuts + 1
    stop = cuts >= plateau.stop_patience
    return Selection(kept, kept_by, f"{cuts} cuts of the learning rate brought no gain" * stop), rate


def recompute_batch_norm(
    learner: nn.Module, inputs: Inputs, rows: np.ndarray, accelerator: Accelerator, batch_size: int
) -> None:
    """Replace the running statistics of every BatchNorm that is trained by their mean over batches of training cells.

    "PreciseBN" of Wu & Johnson (2021, arXiv:2105.07576). `torch.optim.swa_utils.update_bn` would reset frozen ones too
    and switch dropout on. Every process sees the same cells, so that all keep the same statistics.

    Args:
        learner: in training mode, but for what is frozen; left in evaluation mode.
        rows: (N,) of the cells, which are shown without augmentation.
        batch_size: cells at a time; a last batch that is not full is left out, unless it is the only one.
    """
    trained = [m for m in learner.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in trained]
    learner.eval()
    for norm in trained:
        norm.reset_running_stats()
        norm.momentum = None  # for torch, a plain mean over batches
        norm.train()
    for first in range(0, max(1, len(rows) - batch_size + 1), batch_size):
        items = inputs.items(rows[first : first + batch_size]).to(accelerator.device)
        with torch.no_grad(), accelerator.autocast():
            learner(inputs.for_prediction(items))
    for norm, momentum in zip(trained, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
