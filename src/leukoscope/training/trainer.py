"""The epochs: a network is trained on the training side, validated, checkpointed, and predicts for any cells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from accelerate.utils import AutocastKwargs, broadcast
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.runtime import memory_errors
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import freeze, head_parameters
from leukoscope.progress import note, track
from leukoscope.training.checkpoint import Checkpoints, Interrupted, StopRequest, TrainingState
from leukoscope.training.data import CellDataset, make_inputs, prediction_loader, require_whole_step, training_loader

_VALIDATION_METRICS = (
    *("loss", "accuracy", "balanced_accuracy", "f1_weighted", "auroc"),
    *("balanced_accuracy_by_subject", "auroc_by_subject"),
)
_BATCHES_BETWEEN_CHECKS = 50


@dataclass(frozen=True)
class Selection:
    """Which epoch is kept, from 1 (0: none), by which column of summary.csv, and why training stops ("" for not)."""

    epoch: int
    watched: str = ""
    stop_reason: str = ""


def gain(row: Mapping[str, Any], column: str) -> float:
    """A column of summary.csv with the sign that makes more better; a loss counts negative."""
    return -row[column] if column.endswith("_loss") else row[column]


def best_epoch(rows: Sequence[Mapping[str, Any]], selected_by: str, patience: int) -> Selection:
    """Select the best epoch by one validation metric: of equal scores the longer-trained one.

    Where a metric by subject is missing in `rows` of summary.csv, its pooled form takes its place. Training should stop
    `patience` epochs after the last better score.
    """
    best, kept, gained, watched = -math.inf, 0, 0, selected_by
    for row in rows:
        watched = selected_by if selected_by in row else selected_by.removesuffix("_by_subject")
        score = gain(row, watched)
        if score > best:
            gained = row["epoch"]
        if score >= best:
            best, kept = score, row["epoch"]
    stop = len(rows) - gained >= patience
    return Selection(kept, watched, f"no better validation score for {patience} epochs" * stop)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters for torch's optimisers: the head has a rate of its own; biases and norms do not decay."""
    head = {id(p) for p in head_parameters(network)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            rate = recipe.head_learning_rate if id(parameter) in head else recipe.learning_rate
            decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int) -> LambdaLR:
    """Make the recipe's schedule: one of transformers' that warms up linearly and ends after `total_steps`."""
    warmup = round(total_steps * recipe.warmup_share) if recipe.warmup_steps is None else recipe.warmup_steps
    schedule: LambdaLR = get_scheduler(recipe.schedule, optimizer, warmup, total_steps)
    return schedule


def keep_depthwise_float32(network: nn.Module) -> None:
    """Let a network's depthwise convolutions compute in float32 under a CPU's autocast: in bf16 they are slower."""
    states: list[bool] = []

    def leave_autocast(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states.append(torch.is_autocast_enabled("cpu"))
        torch.set_autocast_enabled("cpu", False)
        return tuple(one.float() for one in inputs)

    def enter_again(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        torch.set_autocast_enabled("cpu", states.pop())

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.register_forward_pre_hook(leave_autocast)
            module.register_forward_hook(enter_again, always_call=True)


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
        cache_features: bool = True,
        checkpoints: Checkpoints | None = None,
    ):
        """Put all that training needs on the device; continue from a checkpoint where `checkpoints` has resumed one.

        `network` has its start weights, and is trained in place. `cache_features` has a frozen backbone's features
        computed only once, where that pays off.

        Raises:
            LeukoscopeError: a class without training cells, or fewer training cells than a step takes.
        """
        self.accelerator, self.network, self.cells, self.split, self.recipe = accelerator, network, cells, split, recipe
        self.checkpoints, self.stop, self.seconds = checkpoints, StopRequest(), 0.0
        rows = cells.rows(split.train)
        names, counts = cells.data.info.labels, np.bincount(cells.labels[rows], minlength=len(cells.data.info.labels))
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                raise LeukoscopeError(f"split: no training cell of class {name}; use another --split or more cells")
        self.class_counts = torch.tensor(counts, dtype=torch.float32)
        weights = self.class_counts.sum() / (len(names) * self.class_counts)
        weighted = recipe.class_weighted and recipe.sampling == "cells"
        self.class_weights = (weights if weighted else torch.ones_like(weights)).to(accelerator.device)
        self.cell_of = {row: cell for cell, row in cells.row_of.items()}
        shown = min(recipe.epoch_cells or len(rows), len(rows))
        require_whole_step(len(rows), shown, recipe.train_batch_size, accelerator)
        freeze(network, recipe.frozen)
        passes = recipe.num_train_epochs * (shown + len(split.validation)) + len(split.test)
        self.inputs = make_inputs(accelerator, network, cells, recipe, seed, passes=passes if cache_features else 0)
        train = CellDataset(self.inputs, cells.labels, rows)
        loader = training_loader(train, [cells.subjects[row] for row in rows], shown, recipe, accelerator, seed)
        self.steps_per_epoch = len(loader) // (accelerator.num_processes * accelerator.gradient_accumulation_steps)
        optimizer = self.create_optimizer()
        scheduler = make_scheduler(optimizer, recipe, recipe.num_train_epochs * self.steps_per_epoch)
        # Row numbers stay on the CPU, where the augmentation uses them; the rest is moved batch by batch.
        self.model, self.optimizer, self.loader = accelerator.prepare(
            self.inputs.model(network), optimizer, loader, device_placement=[True, True, False]
        )
        # The step asks for the precision of training itself; predictions are made in float32.
        accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
            keep_depthwise_float32(network)
        self.state = TrainingState(accelerator, network, optimizer, scheduler)
        if recipe.ema_decay:
            # The decay rises to the recipe's: an average that remembers random start weights is useless in a short run.
            self.state.average = ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)
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
        self.network.load_state_dict(state.kept or state.eval_network.state_dict())
        state.average = None
        selection = self.select_epoch()
        if state.kept:
            column = selection.watched.replace("val_", "validation ").replace("train_", "training ").replace("_", " ")
            note(f"kept epoch {selection.epoch}: {column} {state.rows[selection.epoch - 1][selection.watched]:.3f}")

    def _epoch(self) -> dict[str, Any]:
        """Train and validate once, keep what is the best, write a checkpoint; the row of summary.csv."""
        state = self.state
        row = self._train_epoch()
        if self.accelerator.num_processes > 1:
            # Each process saw batches of its own; what predicts, and what is kept, must be the same network.
            for statistic in state.eval_network.buffers():
                statistic.copy_(broadcast(statistic))
        row |= self._validate() if self.split.validation else {}
        state.rows.append(row)
        state.step, state.batches = 0, []
        selection = self.select_epoch()
        if self.split.validation and selection.epoch == state.epoch:
            state.kept = {k: v.detach().clone() for k, v in state.eval_network.state_dict().items()}
        note("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        if selection.stop_reason:
            note(f"{selection.stop_reason}: stopped")
        if self.checkpoints and self.checkpoints.each_epoch:
            self._save()
        return row

    def _train_epoch(self) -> dict[str, Any]:
        """Train on the training side once, or on what is left of it; the training columns of summary.csv."""
        state, accelerator = self.state, self.accelerator
        started, device = time.perf_counter(), accelerator.device
        self.model.train()
        freeze(self.network, self.recipe.frozen)  # these keep weights and batch statistics
        epoch, seen = state.epoch, state.step * accelerator.gradient_accumulation_steps
        # The order follows from seed and epoch.
        self.loader.set_epoch(epoch)
        # Counted over all epochs, so that the time left is that of the whole training.
        left = track(
            skip_first_batches(self.loader, seen) if seen else self.loader,
            f"epoch {epoch + 1} of {self.recipe.num_train_epochs}",
            len(self.loader) * self.recipe.num_train_epochs,
            done=len(self.loader) * epoch + seen,
        )
        for items, labels, rows in left:
            parts = accelerator.gradient_accumulation_steps
            with memory_errors(device, len(labels), self._smaller_batch(2 * parts)):
                # Rows stay where the augmentation uses them.
                inputs = self.inputs.for_training(items.to(device, non_blocking=True), rows, epoch)
                with accelerator.accumulate(self.model):
                    state.batches.append(self._step(inputs, labels.to(device, non_blocking=True)))
            if len(state.batches) % _BATCHES_BETWEEN_CHECKS == 0:
                self._require_finite_losses()
            if accelerator.sync_gradients:
                state.step += 1
                self._after_step()
        self._require_finite_losses()
        # The mean over processes too: they must come to one decision.
        loss, accuracy = accelerator.reduce(torch.stack(state.batches).mean(dim=0), "mean").tolist()
        seconds = time.perf_counter() - started
        images = (len(state.batches) - seen) * self.recipe.train_batch_size * accelerator.num_processes
        return {
            "epoch": epoch + 1,
            "train_loss": round(loss, 5),
            "train_accuracy": round(accuracy, 5),
            "learning_rate": self.state.scheduler.get_last_lr()[0],
            "seconds": round(seconds, 1),
            "images_per_second": round(images / seconds, 1),
        }

    def _require_finite_losses(self) -> None:
        """Raise in every process where the last losses of any are not finite; reading each would make a GPU wait."""
        batches = self.state.batches
        losses = torch.stack(batches[-_BATCHES_BETWEEN_CHECKS:])[:, 0]
        loss = float(self.accelerator.reduce(losses.mean(), "mean"))
        if not math.isfinite(loss):
            raise LeukoscopeError(
                f"epoch {self.state.epoch + 1}, within {len(batches)} batches: the loss is {loss}; lower "
                "--learning_rate and start again"
            )

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Train on a batch, (B, …) and (B,): (2,) its loss and accuracy before that, all on the device."""
        accelerator = self.accelerator
        try:
            with accelerator.autocast():
                logits = self.model(inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise LeukoscopeError(
                "--per_device_train_batch_size 1: this network normalises over a batch; give 2 or more"
            ) from None
        loss = self.compute_loss(logits, labels, self.network)
        accelerator.backward(loss)
        if accelerator.sync_gradients and self.recipe.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        # Prepared, it does nothing until the last batch of a step.
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def _after_step(self) -> None:
        step = self._steps_done
        self.state.scheduler.step()
        if self.state.average is not None:
            self.state.average.update(self.network, step=step)
        self._stop_if_asked(step)
        # At the end of an epoch a checkpoint is written after validation.
        every = self.checkpoints.every_steps if self.checkpoints else None
        if every and step % every == 0 and self.state.step < self.steps_per_epoch:
            self._save()

    @property
    def _steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    # Validation and prediction

    def predict(self, cell_ids: tuple[str, ...]) -> CellPredictions:
        """Predict the given cells, during `fit` with the averaged weights, where the recipe keeps an average."""
        logits, rows = self._logits(cell_ids, "prediction")
        return replace(self._predictions(logits, rows), areas=self.cells.areas_of(rows.numpy()))

    def _validate(self) -> dict[str, float]:
        """The validation columns of summary.csv; val_loss is the training loss on those cells."""
        # A checkpoint may be written between batches; after training the network is no longer what it resumes from.
        logits, rows = self._logits(self.split.validation, "validation", between=self._stop_if_asked)
        device, labels = self.accelerator.device, torch.from_numpy(self.cells.labels[rows.numpy()])
        with torch.inference_mode():
            loss = self.compute_loss(logits.to(device), labels.to(device), self.state.eval_network)
        metrics = {"loss": float(loss)} | measure(self._predictions(logits, rows))
        return {f"val_{k}": round(metrics[k], 5) for k in _VALIDATION_METRICS if metrics.get(k) is not None}

    def _logits(
        self, cell_ids: tuple[str, ...], what: str, between: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K) logits and the (N,) rows of their cells, on the CPU; `between` is called with each batch's number."""
        accelerator, device = self.accelerator, self.accelerator.device
        cells = CellDataset(self.inputs, self.cells.labels, self.cells.rows(cell_ids))
        model = self.inputs.model(self.state.eval_network).eval()
        gathered: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Without gradients twice as many fit as in training.
        loader = prediction_loader(cells, 2 * self.recipe.train_batch_size, accelerator)
        for number, (items, _, rows) in enumerate(track(loader, what, len(loader))):
            # In float32, as releases predict: metrics of half precision would be another network's.
            no_autocast = accelerator.autocast(AutocastKwargs(enabled=False))
            with memory_errors(device, len(rows), self._smaller_batch()), torch.inference_mode(), no_autocast:
                logits = model(self.inputs.for_prediction(items.to(device, non_blocking=True))).float()
            gathered.append(accelerator.gather_for_metrics((logits, rows.to(device, non_blocking=True))))
            if between:
                between(number)
        logits, seen = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
        assert sorted(seen.tolist()) == sorted(cells.rows.tolist()), "a cell was predicted twice or not at all"
        return logits, seen

    def _smaller_batch(self, parts: int = 0) -> str:
        """What to give where the memory is full; `parts` batches then make a step."""
        if (size := self.recipe.train_batch_size) == 1:
            return "give a smaller --image_size"
        more = f" --gradient_accumulation_steps {parts}" * bool(parts)
        return f"give --per_device_train_batch_size {size // 2}{more}"

    def _predictions(self, logits: torch.Tensor, rows: torch.Tensor) -> CellPredictions:
        """Logits as probabilities of named cells, without their areas."""
        cells = self.cells
        return CellPredictions(
            tuple(self.cell_of[row] for row in rows.tolist()),
            tuple(cells.subjects[row] for row in rows.tolist()),
            cells.labels[rows.numpy()],
            logits.softmax(dim=1).numpy(),
            cells.data.info.labels,
            pixel_hashes=cells.hashes_of(rows.numpy()),
        )

    # Checkpoints

    def _save(self) -> None:
        """Write a checkpoint; every process takes part, the main one writes."""
        assert self.checkpoints is not None
        state = self.state
        if state.batches:
            self._require_finite_losses()
        # The largest absolute weight, in a few calls for all; the processes share them and come to the same conclusion.
        if not get_total_norm(list(self.network.parameters()), math.inf).isfinite():
            raise LeukoscopeError(
                f"epoch {state.epoch + 1}: a weight is not finite; lower --learning_rate and start again"
            )
        checkpoint = state.checkpoint()
        if self.accelerator.is_main_process:
            self.checkpoints.save(checkpoint, state.epoch + 1, state.step)

    def _stop_if_asked(self, count: int) -> None:
        """Write a checkpoint and end where a signal asked for it, at a moment that all processes agree on."""
        if number := self.stop.agreed(self.accelerator, count):
            self._save()
            at = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            self.accelerator.print(f"asked to stop: checkpoint written at {at}", flush=True)
            raise Interrupted(number)
