"""The epochs themselves: a network learns the training side, is judged on the validation side, and answers for cells.

What the recipe says is read here and in `optim`, `schedule` and `features`; nothing below knows files or flags.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells
from leukoscope.cells.splits import Split
from leukoscope.cells.transforms import Augmenter, Preprocessing
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.models.build import classifier_parameters, penalty
from leukoscope.models.recipes import Penalty, Recipe
from leukoscope.training.config import RunArguments
from leukoscope.training.features import HeadOnFeatures, can_be_kept, features_file, frozen_features, pays_off
from leukoscope.training.inputs import FeatureInputs, Inputs, PixelInputs, Rows
from leukoscope.training.optim import make_optimizer
from leukoscope.training.schedule import BestEpoch, Decision, PlateauController, cosine_with_warmup, gain


class Engine:
    """Fits a network on the training side and answers for any cells; holds what both need.

    Attributes:
        network: the whole network, as it is released.
        learner: what learns and answers: the network, or its head alone where the features below it are kept.
        epochs_run, kept_epoch: after `fit`, counted from 1.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        cells: FramedCells,
        split: Split,
        recipe: Recipe,
        preprocessing: Preprocessing,
        run: RunArguments,
        *,
        keep_features: bool = True,
    ):
        self.accelerator, self.cells, self.split = accelerator, cells, split
        self.recipe, self.preprocessing, self.run, self.keep_features = recipe, preprocessing, run, keep_features
        self.augment = Augmenter(recipe.augmentation, cells.data.info.background, run.seed)
        self.train_rows = cells.rows(split.train)
        self.class_counts = self._class_counts()
        # Inverse class frequency, mean 1 over the training cells.
        weights = self.class_counts.sum() / (len(self.class_counts) * self.class_counts)
        weights = weights if recipe.class_weighted else torch.ones_like(weights)
        self.class_weights = weights.to(accelerator.device)
        self.controller = PlateauController(recipe.plateau) if recipe.plateau else None
        self.best = BestEpoch(run.early_stopping_patience)
        self.network: nn.Module
        self.learner: nn.Module
        self.inputs: Inputs
        self.epochs_run = self.kept_epoch = 0

    def fit(self, network: nn.Module) -> Iterator[dict[str, Any]]:
        """Train epoch by epoch, yielding one summary row each; the best epoch's weights are left in `network`.

        Raises:
            LeukoscopeError: fewer training cells than a batch, a loss that is no number, or no room for features.
        """
        recipe, accelerator, self.network = self.recipe, self.accelerator, network
        for name in recipe.frozen:
            network.get_submodule(name).requires_grad_(False)
        self.inputs, learner = self._inputs_and_learner()
        loader = DataLoader(self._rows(self.train_rows), recipe.train_batch_size, shuffle=True, drop_last=True)
        if not len(loader):
            raise LeukoscopeError(
                f"--per_device_train_batch_size {recipe.train_batch_size}: larger than the {len(self.train_rows)} "
                "training cells; give a smaller one"
            )
        optimizer = make_optimizer(network, recipe)
        self.learner, optimizer, loader = accelerator.prepare(learner, optimizer, loader)
        kept_weights = None
        for epoch in range(recipe.num_train_epochs):
            row = self._epoch(epoch, loader, optimizer)
            decision = self._judge(epoch, row) if self.split.validation else None
            if decision and decision.improved:
                kept_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
                self.kept_epoch, kept = epoch + 1, f"{_in_words(decision.watched)} {row[decision.watched]:.3f}"
            shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            accelerator.print("  ".join(shown), flush=True)
            yield row
            if decision and decision.stop:
                accelerator.print(f"{decision.reason}: stopped")
                break
        self.epochs_run = epoch + 1
        self.kept_epoch = self.kept_epoch or self.epochs_run
        if kept_weights is not None:
            network.load_state_dict(kept_weights)
            accelerator.print(f"kept epoch {self.kept_epoch}: {kept}")
        if recipe.class_weighted:
            restore_class_frequencies(network, self.class_counts)

    def answer(self, cell_ids: tuple[str, ...]) -> CellPredictions:
        """Probabilities for the given cells, each exactly once however many processes share the work."""
        logits, rows = self._logits(cell_ids)
        return self._predictions(logits, rows)

    def _predictions(self, logits: torch.Tensor, rows: torch.Tensor) -> CellPredictions:
        ids = {row: cell for cell, row in self.cells.row_of.items()}
        return CellPredictions(
            tuple(ids[row] for row in rows.tolist()),
            tuple(self.cells.subjects[row] for row in rows.tolist()),
            self.cells.labels[rows.numpy()],
            logits.softmax(dim=1).numpy(),
            self.cells.data.info.labels,
        )

    def _logits(self, cell_ids: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K) logits and the (N,) rows they belong to, on the CPU."""
        rows = self.cells.rows(cell_ids)
        loader = self.accelerator.prepare(DataLoader(self._rows(rows), self.run.per_device_eval_batch_size))
        self.learner.eval()
        gathered: list[tuple[torch.Tensor, torch.Tensor]] = []
        for items, _, row in loader:
            with torch.inference_mode():
                logits = self.learner(self.inputs.for_answers(items)).float()
            gathered.append(self.accelerator.gather_for_metrics((logits, row)))
        logits, seen = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
        assert sorted(seen.tolist()) == sorted(rows.tolist()), "a cell was answered twice or not at all"
        return logits, seen

    def _inputs_and_learner(self) -> tuple[Inputs, nn.Module]:
        """Pixels and the network; or, where the frozen backbone's features are kept, these and its head."""
        recipe, network = self.recipe, self.network
        pixels = PixelInputs(self.cells, self.preprocessing, self.augment)
        if not (self.keep_features and can_be_kept(recipe)):
            return pixels, network
        path = features_file(network, self.cells, recipe)
        passes = recipe.num_train_epochs * (len(self.train_rows) + len(self.split.validation)) + len(self.split.test)
        if not pays_off(path, self.cells, recipe, passes):
            return pixels, network
        network.to(self.accelerator.device)
        say = partial(self.accelerator.print, flush=True)
        # One process computes; the others read what it kept.
        with self.accelerator.main_process_first():
            features = frozen_features(
                path,
                network,
                self.cells,
                self.preprocessing,
                recipe.augmentation.mirrorings,
                say=say,
                shows_progress=shows_progress(self.accelerator),
            )
        return FeatureInputs(features, self.augment), HeadOnFeatures(network)

    def _rows(self, rows: np.ndarray) -> Rows:
        return Rows(self.inputs, self.cells.labels, rows)

    def _train_mode(self) -> None:
        """Training mode, but for frozen modules: those keep weights and batch statistics."""
        self.learner.train()
        for name in self.recipe.frozen:
            self.network.get_submodule(name).eval()

    def _epoch(self, epoch: int, loader: DataLoader[Any], optimizer: Any) -> dict[str, Any]:
        """One pass over the training side; its row of summary.csv, validation included."""
        started, figures = time.perf_counter(), []
        self._train_mode()
        for step, (items, labels, rows) in enumerate(self._progress(loader, epoch)):
            share = self._rate_share(epoch * len(loader) + step, self.recipe.num_train_epochs * len(loader))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            figures.append(self._step(self.inputs.for_training(items, rows, epoch), labels, optimizer))
        seconds = time.perf_counter() - started
        # The mean over processes too: they must come to one decision.
        loss, accuracy = self.accelerator.reduce(torch.stack(figures, dim=1).mean(dim=1), "mean").tolist()
        if not np.isfinite(loss):
            raise LeukoscopeError(f"epoch {epoch + 1}: the loss is {loss}; lower --learning_rate and start again")
        row = {"epoch": epoch + 1, "train_loss": round(loss, 5), "train_accuracy": round(accuracy, 5)}
        row |= {"learning_rate": optimizer.param_groups[0]["lr"], "seconds": round(seconds, 1)}
        row |= {"images_per_second": round(len(self.train_rows) / seconds, 1)}
        return row | (self._validate() if self.split.validation else {})

    def _rate_share(self, step: int, total_steps: int) -> float:
        """Share of the recipe's learning rate at a step of the run."""
        cut = self.controller.rate if self.controller else 1.0
        if self.recipe.schedule == "constant":
            return cut
        return cut * cosine_with_warmup(step, total_steps, self.recipe.warmup_share)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor, optimizer: Any) -> torch.Tensor:
        """Learn one batch; (2,) its loss and accuracy before that."""
        with self.accelerator.autocast():
            logits = self.learner(inputs)
        loss = self._loss(logits, labels)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.recipe.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy with the recipe's smoothing, class weights and penalty: what training makes small."""
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        # Divided by the batch size, not by the batch's weights: the same on one process as on many.
        loss = (loss * self.class_weights[labels]).mean()
        return loss if self.recipe.penalty == Penalty() else loss + penalty(self.network, self.recipe)

    def _validate(self) -> dict[str, float]:
        """The validation columns of a summary row; val_loss is the training loss on those cells."""
        logits, rows = self._logits(self.split.validation)
        device = self.accelerator.device
        with torch.inference_mode():
            loss = self._loss(logits.to(device), torch.from_numpy(self.cells.labels[rows.numpy()]).to(device))
        figures = {"loss": float(loss)} | measure(self._predictions(logits, rows))
        names = ("loss", "accuracy", "balanced_accuracy", "f1_weighted", "auroc")
        return {f"val_{name}": round(figures[name], 5) for name in names if figures[name] is not None}

    def _judge(self, epoch: int, row: dict[str, Any]) -> Decision:
        """Whether to keep this epoch's weights, and whether to go on."""
        if self.controller is not None:
            return self.controller.update(row)
        improved = self.best.update(epoch, gain(row, self.recipe.selected_by))
        reason = f"no better validation score for {self.best.patience} epochs" * self.best.should_stop(epoch)
        return Decision(self.recipe.selected_by, improved, reason)

    def _class_counts(self) -> torch.Tensor:
        """Training cells of each class, (K,) float32."""
        names = self.cells.data.info.labels
        counts = np.bincount(self.cells.labels[self.train_rows], minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                raise LeukoscopeError(f"split: no training cell of class {name}; use another --split or more cells")
        return torch.tensor(counts, dtype=torch.float32)

    def _progress(self, loader: DataLoader[Any], epoch: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(loader, desc=f"epoch {epoch + 1}", disable=not shows_progress(self.accelerator), leave=False)


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


def shows_progress(accelerator: Accelerator) -> bool:
    """Bars are for a person at a terminal; a log file keeps one line an epoch."""
    return accelerator.is_main_process and sys.stderr.isatty()


def _in_words(column: str) -> str:
    """A column of summary.csv as a person says it."""
    return column.replace("val_", "validation ").replace("train_", "training ").replace("_", " ")
