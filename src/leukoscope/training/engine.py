"""The epochs themselves: a network learns the training side, is judged on the validation side, and answers for cells.

What the recipe says is read here and in `optim`, `schedule` and `features`; nothing below knows files or flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.cells.splits import Split
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.models.recipes import Recipe
from leukoscope.training.answers import logits_of, predictions_of
from leukoscope.training.averaging import share_statistics
from leukoscope.training.checkpoints import Checkpoints
from leukoscope.training.config import RunArguments
from leukoscope.training.divergence import LossWatch
from leukoscope.training.environment import peak_memory
from leukoscope.training.inputs import Inputs, Rows, ready_batches, rest_of_epoch, shows_progress
from leukoscope.training.interruption import Interrupted, StopRequest
from leukoscope.training.mixing import mixing_share
from leukoscope.training.objective import Objective
from leukoscope.training.optim import set_rates
from leukoscope.training.preparation import prepare
from leukoscope.training.schedule import BestEpoch, Decision, PlateauController
from leukoscope.training.state import TrainingState
from leukoscope.training.statistics import settle_statistics
from leukoscope.training.step import Step

_JUDGED_BY_SUBJECT = ("balanced_accuracy_by_subject", "auroc_by_subject")


class Engine:
    """Fits a network on the training side and answers for any cells; holds what both need.

    Attributes:
        network: the whole network, as it is released.
        learner: what learns: the network, or its head alone where the features below it are kept.
        answerer: what answers: the learner, while fitting with the running mean of its weights where there is one.
        state: what changes while fitting; a checkpoint holds all of it.
        batch_size: cells each process takes at a time: the recipe's batch, or less where that does not fit a GPU.
        epochs_run, kept_epoch: after `fit`, counted from 1.
        seconds: after `fit`, what it took, sessions before an interruption included.
    """

    network: nn.Module
    learner: nn.Module
    answerer: nn.Module
    inputs: Inputs
    state: TrainingState
    learn: Step
    steps_per_epoch: int
    batch_size: int

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
        checkpoints: Checkpoints | None = None,
        watch: LossWatch | None = None,
    ):
        self.accelerator, self.cells, self.split = accelerator, cells, split
        self.recipe, self.preprocessing, self.run, self.keep_features = recipe, preprocessing, run, keep_features
        self.checkpoints, self.stop, self.watch = checkpoints, StopRequest(), watch
        rows = cells.rows(split.train)
        subjects = [cells.subjects[row] for row in rows]
        self.objective = Objective(recipe, cells.labels[rows], subjects, cells.data.info.labels, accelerator.device)
        self.controller = PlateauController(recipe.plateau) if recipe.plateau else None
        self.best = BestEpoch(run.early_stopping_patience)
        self.epochs_run = self.kept_epoch = 0
        self.seconds = 0.0

    def fit(self, network: nn.Module) -> Iterator[dict[str, Any]]:
        """Train epoch by epoch, yielding one summary row each; the best epoch's weights are left in `network`.

        Where `checkpoints` has one to go on from, its rows are yielded first and training goes on behind it.

        Raises:
            LeukoscopeError: fewer training cells than a step takes, a loss that is no number, or no room on the disk.
            Interrupted: SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        self.network = network
        resumed = self.checkpoints.resumed if self.checkpoints else None
        if resumed:
            network.load_state_dict(resumed.part("network"))
        loader = self._prepare(network)
        if resumed:
            self.state.restore(resumed)
        progress = self.state.progress
        yield from list(progress.rows)
        with self.stop if self.checkpoints else nullcontext():
            while progress.epoch < self.recipe.num_train_epochs and not progress.stopped:
                yield self._one_epoch(loader)
        self._finish()

    def _prepare(self, network: nn.Module) -> DataLoader[Any]:
        """Put all that fitting needs on the device; the training cells' loader."""
        ready = prepare(
            self.accelerator,
            network,
            self.cells,
            self.split,
            self.recipe,
            self.preprocessing,
            self.run,
            self.objective,
            self.controller or self.best,
            keep_features=self.keep_features,
        )
        self.inputs, self.learner, self.answerer = ready.inputs, ready.learner, ready.answerer
        self.learn, self.state, self.batch_size = ready.step, ready.state, ready.batch_size
        self.steps_per_epoch = len(ready.loader) // self.accelerator.gradient_accumulation_steps
        if self.accelerator.process_index:
            # Dropout must not strike the same units in every process.
            torch.manual_seed(self.run.seed + self.accelerator.process_index)
        return ready.loader

    def _one_epoch(self, loader: DataLoader[Any]) -> dict[str, Any]:
        """Train and validate once, keep what is the best, write a checkpoint; the row of summary.csv."""
        progress = self.state.progress
        row = self._epoch(loader)
        if self.recipe.batch_norm_cells and not self.recipe.batch_norm_frozen:
            # Evenly spread over the training side, whatever its order.
            rows = self.cells.rows(self.split.train)
            spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), self.recipe.batch_norm_cells)).astype(int)]
            # Of the network that is judged and kept, which may be the running mean.
            self.answerer.train()
            for name in self.recipe.frozen:
                self.state.judged.get_submodule(name).eval()
            settle_statistics(self.answerer, self.inputs, spread, self.accelerator, self.batch_size)
        share_statistics(self.state.average, self.accelerator)
        row |= self._validate() if self.split.validation else {}
        decision = self._judge(row) if self.split.validation else None
        if decision and decision.improved:
            self.state.keep_weights(f"{_in_words(decision.watched)} {row[decision.watched]:.3f}")
        progress.end_epoch(row, stopped=decision is not None and decision.stop)
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        self.accelerator.print("  ".join(shown), flush=True)
        if decision and decision.stop:
            self.accelerator.print(f"{decision.reason}: stopped")
        if self.checkpoints and (self.checkpoints.each_epoch or self.checkpoints.due(self._steps_done)):
            self._save()
        return row

    def _finish(self) -> None:
        """Leave the kept weights in the network, speaking for the true class frequencies."""
        progress = self.state.progress
        self.epochs_run, self.seconds = progress.epoch, progress.watch.seconds
        self.kept_epoch = progress.kept_epoch or self.epochs_run
        self.network.load_state_dict(self.state.kept or self.state.judged.state_dict())
        self.answerer = self.learner
        if self.state.kept:
            self.accelerator.print(f"kept epoch {self.kept_epoch}: {progress.kept_for}")
        self.objective.undo_class_weights(self.network)

    def _save(self) -> None:
        """Write a checkpoint of this moment; every process takes part, the main one writes."""
        assert self.checkpoints is not None
        self._read_losses()
        checkpoint, progress = self.state.checkpoint(), self.state.progress
        # Figures of all processes, and weights, which they share: all come to the same conclusion.
        for figures in checkpoint.part("progress").values():
            self._require_numbers("loss", figures[..., 0])
        for weight in self.network.parameters():
            self._require_numbers("weight", weight.detach())
        if self.accelerator.is_main_process:
            self.checkpoints.save(checkpoint, progress.epoch + 1, progress.step)

    def _after_step(self) -> None:
        if self.state.average is not None:
            self.state.average.update(self.network, step=self._steps_done)
        self._stop_if_asked(self._steps_done)
        # At the end of an epoch one is written after validation.
        if (
            self.checkpoints
            and self.checkpoints.due(self._steps_done)
            and self.state.progress.step < self.steps_per_epoch
        ):
            self._save()

    def _stop_if_asked(self, count: int) -> None:
        """Write a checkpoint and end where a signal asked for it, at a moment that all processes agree on."""
        if self.stop.agreed(self.accelerator, count):
            self._save()
            at = f"epoch {self.state.progress.epoch + 1}, step {self.state.progress.step}"
            self.accelerator.print(f"asked to stop: checkpoint written at {at}", flush=True)
            raise Interrupted

    @property
    def _steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return self.state.progress.epoch * self.steps_per_epoch + self.state.progress.step

    def answer(self, cell_ids: tuple[str, ...]) -> CellPredictions:
        """Probabilities for the given cells, each exactly once however many processes share the work.

        A request to stop is not honoured here: fitting is over, and the run soon complete.
        """
        return predictions_of(self.cells, *self._logits(cell_ids))

    def _logits(
        self, cell_ids: tuple[str, ...], between: Callable[[int], None] = lambda number: None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K) logits and the (N,) rows they belong to, on the CPU; `between` is called after each batch."""
        return logits_of(
            self.answerer,
            self.inputs,
            self._rows(self.cells.rows(cell_ids)),
            self.accelerator,
            self.run.per_device_eval_batch_size,
            between=between,
        )

    def _rows(self, rows: np.ndarray) -> Rows:
        return Rows(self.inputs, self.cells.labels, rows)

    def _epoch(self, loader: DataLoader[Any]) -> dict[str, Any]:
        """One pass over the training side, or what is left of it; its columns of a summary row."""
        progress, accelerator = self.state.progress, self.accelerator
        if not progress.step:
            progress.begin_epoch()
        self.learn.train_mode()
        seen = progress.step * accelerator.gradient_accumulation_steps
        left = rest_of_epoch(loader, progress.epoch, seen, shows_progress=shows_progress(accelerator))
        for inputs, labels, rows in ready_batches(
            left, self.inputs, accelerator.device, progress.epoch, progress.add_waiting
        ):
            self._set_rates(progress.step)
            with accelerator.accumulate(self.learner):
                progress.figures.append(self._step(inputs, labels, rows))
            if self.watch:
                self.watch.note(progress.epoch, len(progress.figures) - 1, progress.figures[-1][0], rows)
            if accelerator.sync_gradients:
                progress.step += 1
                self._after_step()
        self._read_losses()
        # The mean over processes too: they must come to one decision.
        figures = accelerator.reduce(torch.stack(progress.figures).mean(dim=0), "mean")
        self._require_numbers("loss", figures[0])
        loss, accuracy = figures.tolist()
        row = {"epoch": progress.epoch + 1, "train_loss": round(loss, 5), "train_accuracy": round(accuracy, 5)}
        return row | {"learning_rate": self._set_rates(progress.step - 1)} | self._speed()

    def _speed(self) -> dict[str, float]:
        """How the epoch's training side went: all processes' cells a second, and what this process waited and held."""
        progress, (resident, on_gpu) = self.state.progress, peak_memory()
        seconds = progress.epoch_watch.seconds
        cells = len(progress.figures) * self.batch_size * self.accelerator.num_processes
        return {
            "seconds": round(seconds, 1),
            "images_per_second": round(cells / seconds, 1),
            "data_wait_percent": round(100 * progress.waited / seconds, 1),
            "peak_memory_mb": round((on_gpu or resident) / 1e6),
        }

    def _set_rates(self, step: int) -> float:
        """Give every parameter its rate for a step of this epoch; that of the first group."""
        done, total = self.state.progress.epoch * self.steps_per_epoch, self.recipe.num_train_epochs
        cut = self.controller.rate if self.controller else 1.0
        return set_rates(self.state.optimizer, self.recipe, done + step, total * self.steps_per_epoch, cut)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Learn from one batch; (2,) its loss and accuracy before that."""
        progress, accelerator = self.state.progress, self.accelerator
        # Every process mixes its own cells.
        batch = len(progress.figures) * accelerator.num_processes + accelerator.process_index
        return self.learn(inputs, labels, rows, mixing_share(self.recipe.mixup, self.run.seed, progress.epoch, batch))

    def _validate(self) -> dict[str, float]:
        """The validation columns of a summary row; val_loss is the training loss on those cells."""
        # Only while fitting: afterwards the network is no longer what a checkpoint goes on from.
        logits, rows = self._logits(self.split.validation, between=self._stop_if_asked)
        device, labels = self.accelerator.device, torch.from_numpy(self.cells.labels[rows.numpy()])
        with torch.inference_mode():
            loss = self.objective.loss(logits.to(device), labels.to(device), self.network)
        figures = {"loss": float(loss)} | measure(predictions_of(self.cells, logits, rows))
        names = (*("loss", "accuracy", "balanced_accuracy", "f1_weighted", "auroc"), *_JUDGED_BY_SUBJECT)
        return {f"val_{name}": round(figures[name], 5) for name in names if figures.get(name) is not None}

    def _judge(self, row: dict[str, Any]) -> Decision:
        """Whether to keep this epoch's weights, and whether to go on."""
        if self.controller:
            return self.controller.update(row)
        wanted = self.recipe.selected_by
        return self.best.judge(row, wanted if wanted in row else wanted.removesuffix("_by_subject"))

    def _read_losses(self) -> None:
        """Stop every process, naming the batch, where a loss since the last reading is no number."""
        if self.watch:
            self.watch.read(self.state.progress.epoch, len(self.state.progress.figures) - 1)

    def _require_numbers(self, what: str, values: torch.Tensor) -> None:
        """Stop before what is no number any more is written anywhere."""
        if not bool(values.isfinite().all()):
            value, epoch = float(values.float().mean()), self.state.progress.epoch + 1
            raise LeukoscopeError(f"epoch {epoch}: the {what} is {value}; lower --learning_rate and start again")


def _in_words(column: str) -> str:
    """A column of summary.csv as a person says it."""
    return column.replace("val_", "validation ").replace("train_", "training ").replace("_", " ")
