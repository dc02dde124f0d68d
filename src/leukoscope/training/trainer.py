"""The epochs: a network is trained on the training side, validated, checkpointed, and predicts for any cells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from accelerate.utils import AutocastKwargs, broadcast
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import get_total_norm

from leukoscope import ConfigError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.evaluation.metrics import cell_metric, references_of
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.runtime import memory_errors
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import freeze
from leukoscope.progress import note, track
from leukoscope.training.checkpoint import Checkpoints, Interrupted, StopRequest, TrainingState
from leukoscope.training.data import CellDataset, make_inputs, prediction_loader, training_loader, with_batch_that_fits
from leukoscope.training.optimization import (
    count_classes,
    keep_depthwise_float32,
    make_scheduler,
    parameter_groups,
    rate_of_last_step,
    remove_autocast,
    weigh_classes,
)
from leukoscope.training.selection import Selection, best_epoch

_VALIDATION_METRICS = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "f1_weighted",
    "auroc",
    "balanced_accuracy_by_subject",
    "auroc_by_subject",
)
_BATCHES_BETWEEN_CHECKS = 50
_LESS_MEMORY = "give a smaller --per_device_train_batch_size (with more --gradient_accumulation_steps) or --image_size"


class Trainer:
    """Trains a network on the training side of a split and predicts for any cells.

    Attributes:
        network: the whole network, as it is released.
        model: what is trained of it, wrapped for this device: all, or the head where the features below are cached.
        inputs: what feeds the model.
        state: what changes during `fit`; a checkpoint holds all of it.
        class_counts: (K,) float32, training cells of each class.
        class_weights: (K,) float32, inverse class frequency with mean 1 over the training cells; ones where the recipe
            does not weigh classes, or samples them equally often.
        seconds: after `fit`, what it took, sessions before an interruption included.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        cells: FramedCells,
        split: Split,
        recipe: Recipe,
        *,
        seed: int = 0,
        checkpoints: Checkpoints | None = None,
    ):
        """Put all that training needs on the device; continue from a checkpoint where `checkpoints` has resumed one.

        `network` has its start weights, and is trained in place. A training side smaller than an optimiser step gets
        smaller batches.

        Raises:
            LeukoscopeError: a class without training cells, or fewer training cells than a step has batches.
        """
        self.accelerator = accelerator
        self.network = network
        self.cells = cells
        self.split = split
        self.checkpoints = checkpoints
        self.stop = StopRequest()
        self.seconds = 0.0
        self.cell_of = {row: cell for cell, row in cells.row_of.items()}
        self.class_counts = count_classes(cells, split)
        self.class_weights = weigh_classes(recipe, self.class_counts).to(accelerator.device)

        # What the network is fed with
        rows = cells.rows(split.train)
        epoch_cells = min(recipe.epoch_cells or len(rows), len(rows))
        recipe = with_batch_that_fits(recipe, epoch_cells, accelerator)
        self.recipe = recipe
        freeze(network, recipe.frozen)
        passes = recipe.num_train_epochs * (epoch_cells + len(split.validation)) + len(split.test)
        rows_of_split = cells.rows((*split.train, *split.validation, *split.test))
        self.inputs = make_inputs(accelerator, network, cells, recipe, seed, rows=rows_of_split, passes=passes)
        dataset = CellDataset(self.inputs, cells.labels, rows)
        subjects = [cells.subjects[row] for row in rows]
        loader = training_loader(dataset, subjects, epoch_cells, recipe, accelerator, seed)
        self.steps_per_epoch = len(loader) // (accelerator.num_processes * accelerator.gradient_accumulation_steps)

        # What is trained
        optimizer = self.create_optimizer()
        scheduler = make_scheduler(optimizer, recipe, recipe.num_train_epochs * self.steps_per_epoch)
        # Row numbers stay on the CPU, where the augmentation uses them; the rest is moved batch by batch.
        self.model, self.optimizer, self.loader = accelerator.prepare(
            self.inputs.model(network), optimizer, loader, device_placement=[True, True, False]
        )
        remove_autocast(accelerator, self.model)
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
            keep_depthwise_float32(network)
        average = None
        if recipe.ema_decay:
            # The decay rises to the recipe's: an average that remembers random start weights is useless in a short run.
            average = ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)
        self.state = TrainingState(accelerator, network, optimizer, scheduler, average=average)
        if accelerator.process_index:
            # Dropout must not strike the same units in every process.
            torch.manual_seed(seed + accelerator.process_index)
        if checkpoints and checkpoints.resumed:
            self.state.restore(checkpoints.resumed)

    # What a trainer of another optimiser, loss or selection overrides

    def create_optimizer(self) -> torch.optim.Optimizer:
        """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over what is trained of `network`."""
        return torch.optim.AdamW(parameter_groups(self.network, self.recipe), fused=True)

    def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """The () loss of (B, K) logits and (B,) labels; `network` gave the logits, unwrapped.

        Cross-entropy with the recipe's label smoothing and class weights.
        """
        losses = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        # Divided by the batch size, not by the sum of the weights: the same on one process as on many.
        return (losses * self.class_weights[labels]).mean()

    def select_epoch(self) -> Selection:
        """Which of the epochs so far is kept, and whether training stops."""
        rows = self.state.rows
        if not rows or not self.split.validation:
            return Selection(len(rows))
        return best_epoch(rows, self.recipe.selected_by, self.recipe.early_stopping_patience)

    # Training

    def fit(self) -> Iterator[dict[str, Any]]:
        """Train epoch by epoch, yielding one row of summary.csv each; `network` ends with the best epoch's weights.

        After a resumption, the rows before it are yielded first.

        Raises:
            LeukoscopeError: a loss or a weight that is not finite, or a full disk.
            Interrupted: SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        state = self.state
        yield from list(state.rows)
        with self.stop if self.checkpoints else nullcontext():
            while state.epoch < self.recipe.num_train_epochs and not self.select_epoch().stop_reason:
                yield self._epoch()
        self.seconds = state.seconds
        self.network.load_state_dict(state.best_weights or state.eval_network.state_dict())
        state.average = None
        selection = self.select_epoch()
        if state.best_weights:
            score = state.rows[selection.epoch - 1][selection.watched]
            note(f"kept epoch {selection.epoch}: {_in_short(selection.watched)} {score:.3f}")

    def _epoch(self) -> dict[str, Any]:
        """Train and validate once, keep what is the best, write a checkpoint; the row of summary.csv."""
        state = self.state
        row = self._train_epoch()
        if self.accelerator.num_processes > 1:
            # Each process saw batches of its own; what predicts, and what is kept, must be the same network.
            for statistic in state.eval_network.buffers():
                statistic.copy_(broadcast(statistic))
        if self.split.validation:
            row |= self._validate()
        state.rows.append(row)
        state.step = 0
        state.batch_scores = []
        selection = self.select_epoch()
        if self.split.validation and selection.epoch == state.epoch:
            weights = state.eval_network.state_dict()
            state.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        columns = [column for column in ("train_loss", selection.watched, "val_loss") if column in row]
        figures = [f"{_in_short(column)} {row[column]:.3f}" for column in dict.fromkeys(columns)]
        note(f"epoch {row['epoch']}/{self.recipe.num_train_epochs}: {', '.join(figures)}, {row['seconds']:.0f} s")
        if selection.stop_reason:
            note(f"{selection.stop_reason}: stopped")
        if self.checkpoints and self.checkpoints.each_epoch:
            self._save()
        return row

    def _train_epoch(self) -> dict[str, Any]:
        """Train on the training side once, or on what is left of it; the training columns of summary.csv."""
        state = self.state
        accelerator = self.accelerator
        device = accelerator.device
        started = time.perf_counter()
        self.model.train()
        freeze(self.network, self.recipe.frozen)  # these keep weights and batch statistics
        epoch = state.epoch
        batches_per_step = accelerator.gradient_accumulation_steps
        seen = state.step * batches_per_step
        # The order follows from seed and epoch.
        self.loader.set_epoch(epoch)
        # Counted over all epochs, so that the time left is that of the whole training.
        batches = track(
            skip_first_batches(self.loader, seen) if seen else self.loader,
            f"epoch {epoch + 1} of {self.recipe.num_train_epochs}",
            len(self.loader) * self.recipe.num_train_epochs,
            unit="batches",
            done=len(self.loader) * epoch + seen,
        )
        for items, labels, rows in batches:
            with memory_errors(device, len(labels), _LESS_MEMORY):
                items = items.to(device, non_blocking=True)
                # Rows stay where the augmentation uses them.
                inputs = self.inputs.for_training(items, rows, epoch)
                unchanged = self.inputs.for_prediction(items) if self.recipe.consistency else None
                with accelerator.accumulate(self.model):
                    state.batch_scores.append(self._step(inputs, labels.to(device, non_blocking=True), unchanged))
            if len(state.batch_scores) % _BATCHES_BETWEEN_CHECKS == 0:
                self._require_finite_losses()
            if accelerator.sync_gradients:
                state.step += 1
                self._after_step()
        self._require_finite_losses()
        # The mean over processes too: they must come to one decision.
        loss, accuracy = accelerator.reduce(torch.stack(state.batch_scores).mean(dim=0), "mean").tolist()
        seconds = time.perf_counter() - started
        images = (len(state.batch_scores) - seen) * self.recipe.train_batch_size * accelerator.num_processes
        return {
            "epoch": epoch + 1,
            "train_loss": round(loss, 5),
            "train_accuracy": round(accuracy, 5),
            "learning_rate": rate_of_last_step(state.scheduler),
            "seconds": round(seconds, 1),
            "images_per_second": round(images / seconds, 1),
        }

    def _require_finite_losses(self) -> None:
        """Raise in every process where the last losses of any are not finite; reading each would make a GPU wait."""
        scores = self.state.batch_scores
        losses = torch.stack(scores[-_BATCHES_BETWEEN_CHECKS:])[:, 0]
        loss = float(self.accelerator.reduce(losses.mean(), "mean"))
        if not math.isfinite(loss):
            raise ConfigError(
                f"epoch {self.state.epoch + 1}, within {len(scores)} batches: the loss is {loss}; lower "
                "--learning_rate and start again"
            )

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor, unchanged: torch.Tensor | None = None) -> torch.Tensor:
        """Train on a batch of (B, …) inputs and (B,) labels, all on the device.

        Args:
            unchanged: (B, …) the same cells without augmentation, where the recipe has a weight for `consistency`: then
                classes are learnt from these, and `inputs` are to have the same logits.

        Returns:
            (2,) loss and accuracy of the batch before this step changed the weights.
        """
        accelerator = self.accelerator
        try:
            with accelerator.autocast():
                # Together, so that both are normalised alike where the network normalises over a batch.
                logits = self.model(inputs if unchanged is None else torch.cat([inputs, unchanged]))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "--per_device_train_batch_size 1: this network normalises over a batch; give 2 or more"
            ) from None
        if unchanged is None:
            loss = self.compute_loss(logits, labels, self.network)
        else:
            of_augmented, logits = logits.chunk(2)
            differences = (of_augmented - logits).float().square().sum(dim=1).mean()
            loss = self.compute_loss(logits, labels, self.network) + self.recipe.consistency * differences
        accelerator.backward(loss)
        if accelerator.sync_gradients and self.recipe.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        # Prepared, it does nothing until the last batch of a step.
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def _after_step(self) -> None:
        """After an optimiser step: schedule, average of the weights, a signal to stop, a checkpoint if one is due."""
        step = self._steps_done
        self.state.scheduler.step()
        if self.state.average is not None:
            self.state.average.update(self.network, step=step)
        self._stop_if_asked(step)
        # At the end of an epoch a checkpoint is written after validation.
        interval = self.checkpoints.every_steps if self.checkpoints else None
        if interval and step % interval == 0 and self.state.step < self.steps_per_epoch:
            self._save()

    @property
    def _steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    # Validation and prediction

    def predict(self, cell_ids: tuple[str, ...]) -> CellPredictions:
        """Predict the given cells, during `fit` with the averaged weights, where the recipe keeps an average."""
        return self._predictions(*self._logits(cell_ids, "prediction"))

    def _validate(self) -> dict[str, float]:
        """The validation columns of summary.csv; val_loss is the training loss on those cells."""
        # A checkpoint may be written between batches; after training the network is no longer what it resumes from.
        logits, rows = self._logits(self.split.validation, "validation", after_batch=self._stop_if_asked)
        device = self.accelerator.device
        labels = torch.from_numpy(self.cells.labels[rows.numpy()])
        with torch.inference_mode():
            loss = self.compute_loss(logits.to(device), labels.to(device), self.state.eval_network)
        # Of all processes' cells, so that they come to one decision.
        predictions = self._predictions(logits, rows)
        metric = cell_metric(predictions.label_names)
        measured = metric.compute(predictions=predictions.probabilities, references=references_of(predictions))
        metrics = {"loss": float(loss), **measured}
        columns = [name for name in _VALIDATION_METRICS if metrics.get(name) is not None]
        return {f"val_{name}": round(metrics[name], 5) for name in columns}

    def _logits(
        self, cell_ids: tuple[str, ...], label: str, after_batch: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the given cells: (N, K) logits and (N,) rows from all processes, on the CPU.

        Args:
            label: what is done, for the progress.
            after_batch: called with each batch's number.
        """
        accelerator = self.accelerator
        device = accelerator.device
        cells = CellDataset(self.inputs, self.cells.labels, self.cells.rows(cell_ids))
        model = self.inputs.model(self.state.eval_network).eval()
        gathered: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Without gradients twice as many fit as in training.
        loader = prediction_loader(cells, 2 * self.recipe.train_batch_size, accelerator)
        for number, (items, _, rows) in enumerate(track(loader, label, len(loader), unit="batches")):
            # In float32, as releases predict: metrics of half precision would be another network's.
            no_autocast = accelerator.autocast(AutocastKwargs(enabled=False))
            with memory_errors(device, len(rows), _LESS_MEMORY), torch.inference_mode(), no_autocast:
                logits = model(self.inputs.for_prediction(items.to(device, non_blocking=True))).float()
            gathered.append(accelerator.gather_for_metrics((logits, rows.to(device, non_blocking=True))))
            if after_batch:
                after_batch(number)
        # Moved at the end: a GPU would wait for each batch.
        of_all, predicted = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
        assert sorted(predicted.tolist()) == sorted(cells.rows.tolist()), "a cell was predicted twice or not at all"
        return of_all, predicted

    def _predictions(self, logits: torch.Tensor, rows: torch.Tensor) -> CellPredictions:
        """(N, K) logits as probabilities of the cells of (N,) rows."""
        cells = self.cells
        numbers = rows.numpy()
        return CellPredictions(
            tuple(self.cell_of[row] for row in rows.tolist()),
            tuple(cells.subjects[row] for row in rows.tolist()),
            cells.labels[numbers],
            logits.softmax(dim=1).numpy(),
            cells.data.info.labels,
            areas=cells.areas_of(numbers),
            pixel_hashes=cells.hashes_of(numbers),
        )

    # Checkpoints

    def _save(self) -> None:
        """Write a checkpoint; every process takes part, the main one writes."""
        assert self.checkpoints is not None
        state = self.state
        if state.batch_scores:
            self._require_finite_losses()
        # The largest absolute weight, in a few calls for all; the processes share them and come to the same conclusion.
        if not get_total_norm(list(self.network.parameters()), math.inf).isfinite():
            raise ConfigError(f"epoch {state.epoch + 1}: a weight is not finite; lower --learning_rate and start again")
        checkpoint = state.checkpoint()
        if self.accelerator.is_main_process:
            self.checkpoints.save(checkpoint, state.epoch + 1, state.step)

    def _stop_if_asked(self, count: int) -> None:
        """Write a checkpoint and end where a signal asked for it, at a moment that all processes agree on."""
        signal_number = self.stop.agreed(self.accelerator, count)
        if signal_number:
            self._save()
            moment = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            self.accelerator.print(f"asked to stop: checkpoint written at {moment}", flush=True)
            raise Interrupted(signal_number)


def _in_short(column: str) -> str:
    """A column of summary.csv as words: val_balanced_accuracy_by_subject → balanced accuracy."""
    return column.removesuffix("_by_subject").replace("_", " ").replace("val balanced", "balanced")
