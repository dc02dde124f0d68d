"""The epochs: a network is trained on the training side, validated, checkpointed, and predicts for any cells.

`Trainer.fit` is the loop; it knows no files and no flags beyond `RunArguments`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from accelerate.utils import AutocastKwargs, broadcast
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, RandomSampler, Sampler

from leukoscope import LeukoscopeError
from leukoscope.data.augmentation import Augmenter
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import Split
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.models.layers import freeze
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import round_as_stored
from leukoscope.progress import duration, note, track
from leukoscope.training.checkpoint import Checkpoints, Interrupted, StopRequest, TrainingState
from leukoscope.training.config import RunArguments
from leukoscope.training.data import (
    CellDataset,
    FeatureInputs,
    HeadOnFeatures,
    Inputs,
    PixelInputs,
    SubjectBalancedSampler,
    caching_pays_off,
    can_cache_features,
    features_file,
    features_suffice,
    frozen_features,
    prediction_loader,
    read,
    ready_batches,
    training_loader,
)
from leukoscope.training.losses import LossMonitor, TrainingLoss
from leukoscope.training.optim import (
    BestEpoch,
    Judge,
    find_batch_size,
    make_ema,
    make_optimizer,
    set_rates,
    try_step,
)
from leukoscope.training.run_folder import peak_memory

_VALIDATION_METRICS = (
    *("loss", "accuracy", "balanced_accuracy", "f1_weighted", "auroc"),
    *("balanced_accuracy_by_subject", "auroc_by_subject"),
)


class Trainer:
    """Trains a network on the training side of a split and predicts for any cells.

    Attributes:
        network: the whole network, as it is released.
        learner: what is trained: the network, or its head alone where the features below it are cached.
        eval_model: what predicts: the learner, or during `fit` its EMA where the recipe keeps one.
        inputs: what feeds both.
        state: what changes during `fit`; a checkpoint holds all of it.
        batch_size: cells each process takes at a time: the recipe's batch, or less where that does not fit a GPU.
        epochs_run, kept_epoch: after `fit`, counted from 1.
        seconds: after `fit`, what it took, sessions before an interruption included.
    """

    network: nn.Module
    learner: nn.Module
    eval_model: nn.Module
    inputs: Inputs
    optimizer: torch.optim.Optimizer
    loader: DataLoader[Any]
    state: TrainingState
    steps_per_epoch: int
    total_steps: int
    epochs: int
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
        cache_features: bool = True,
        checkpoints: Checkpoints | None = None,
        monitor: LossMonitor | None = None,
    ):
        """Prepare nothing yet but the loss.

        Args:
            cache_features: let a frozen backbone's features be computed once, where that pays off.
            checkpoints: where checkpoints are kept, and the one to resume from.
            monitor: stops training at a loss that is no number.

        Raises:
            LeukoscopeError: a class without training cells.
        """
        self.accelerator, self.cells, self.split, self.recipe = accelerator, cells, split, recipe
        self.preprocessing, self.run, self.cache_features = preprocessing, run, cache_features
        self.checkpoints, self.monitor, self.stop = checkpoints, monitor, StopRequest()
        self.loss = TrainingLoss(
            recipe, cells.labels[cells.rows(split.train)], cells.data.info.labels, accelerator.device
        )
        self.judge: Judge = BestEpoch(run.early_stopping_patience, recipe.selected_by)
        self.epochs_run = self.kept_epoch = 0
        self.seconds = 0.0

    def fit(self, network: nn.Module) -> Iterator[dict[str, Any]]:
        """Train epoch by epoch, yielding one row of summary.csv each; `network` ends with the best epoch's weights.

        Where `checkpoints` has one to resume from, its rows are yielded first and training continues behind it.

        Raises:
            LeukoscopeError: fewer training cells than a step takes, a loss that is no number, or a full disk.
            Interrupted: SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        self.network = network
        resumed = self.checkpoints.resumed if self.checkpoints else None
        if resumed:
            network.load_state_dict(resumed.part("network"))
        self._prepare()
        if resumed:
            self.state.restore(resumed)
        progress = self.state.progress
        yield from list(progress.rows)
        epochs = 0 if progress.stopped else self.epochs - progress.epoch
        if epochs:
            batches = (self.total_steps - self._steps_done) * self.accelerator.gradient_accumulation_steps
            # A batch is predicted in about a third of the time that it is trained on in.
            predicted = epochs * len(self.split.validation) / self.batch_size / 3
            left = duration((batches + predicted) * self._step_seconds)
            note(f"training takes about {left}: {epochs} epoch(s), {batches:,} batches in all, going by one batch")
        with self.stop if self.checkpoints else nullcontext():
            while progress.epoch < self.epochs and not progress.stopped:
                yield self._epoch()
        self.epochs_run, self.seconds = progress.epoch, progress.seconds
        self.kept_epoch = progress.kept_epoch or self.epochs_run
        network.load_state_dict(self.state.kept or self.state.eval_network.state_dict())
        self.eval_model = self.learner
        if self.state.kept:
            note(f"kept epoch {self.kept_epoch}: {progress.kept_for}")
        self.loss.undo_class_weights(network)

    def predict(self, cell_ids: tuple[str, ...]) -> CellPredictions:
        """Probabilities for the given cells, each exactly once however many processes share the work.

        A request to stop is not honoured here: training is over, and the run soon complete.
        """
        logits, rows = self._logits(cell_ids, "prediction")
        return replace(self._predictions(logits, rows), areas=self.cells.areas_of(rows.numpy()))

    # What a trainer of another optimiser or loss overrides

    def create_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser over what is trained of `network`."""
        return make_optimizer(self.network, self.recipe)

    def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """The loss of a batch, ().

        Args:
            logits, labels: (B, K) and (B,).
            network: what gave the logits, unwrapped.
        """
        return self.loss(logits, labels)

    # Before the first epoch

    def _prepare(self) -> None:
        """Freeze what the recipe freezes, and put everything that training needs on the device."""
        accelerator, recipe, network = self.accelerator, self.recipe, self.network
        freeze(network, recipe.frozen)
        rows = self.cells.rows(self.split.train)
        self.inputs, learner = self._inputs_and_learner()
        train = CellDataset(self.inputs, self.cells.labels, rows)
        self.batch_size = self._fitting_batch_size(learner, train)
        self._step_seconds = self._timed_step(learner, train)
        shown = min(recipe.epoch_cells or len(train), len(train))
        sampler: Sampler[int] = RandomSampler(train, num_samples=shown)
        if recipe.sampling != "cells":
            subjects = [self.cells.subjects[row] for row in rows]
            sampler = SubjectBalancedSampler(self.cells.labels[rows], subjects, self.run.seed, size=shown)
        loader = training_loader(train, self.batch_size, accelerator, sampler)
        # Row numbers stay on the CPU, where the augmentation uses them; the rest is moved when its turn comes.
        prepared, self.optimizer, self.loader = accelerator.prepare(
            learner, self.create_optimizer(), loader, device_placement=[True, True, False]
        )
        # Prepared, the network would always be in the precision of training; the step asks for that itself, and
        # predictions are made in float32.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        # Compiled, it is a wrapper: what is saved is the network inside, under its own names.
        learned: Any = torch.compile(prepared) if self.run.torch_compile else prepared
        self.learner = learned
        ema = make_ema(network, recipe)
        self.eval_model = self.learner
        if ema is not None:
            self.eval_model = HeadOnFeatures(ema.module) if isinstance(learner, HeadOnFeatures) else ema.module
        self.state = TrainingState(accelerator, network, self.optimizer, self.judge, ema)
        self.steps_per_epoch = len(self.loader) // accelerator.gradient_accumulation_steps
        self.total_steps = self.run.max_train_steps or recipe.num_train_epochs * self.steps_per_epoch
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        if accelerator.process_index:
            # Dropout must not strike the same units in every process.
            torch.manual_seed(self.run.seed + accelerator.process_index)

    def _inputs_and_learner(self) -> tuple[Inputs, nn.Module]:
        """Pixels and the network; or, where a frozen backbone's features are cached, these and its head."""
        accelerator, cells, recipe = self.accelerator, self.cells, self.recipe
        augment = Augmenter(recipe.augmentation, cells.data.info.background, self.run.seed)
        pixels = PixelInputs(cells, self.preprocessing, augment)
        if "backbone" in recipe.frozen:
            # It stays as it is: its features, which may be computed only once, are to be those of the release.
            round_as_stored(self.network, head=False)
        if not self.cache_features or pixels.decodes or not can_cache_features(recipe):
            return pixels, self.network
        if not caching_pays_off(cells, recipe, self._forward_passes()):
            return pixels, self.network
        path = features_file(self.network, cells, recipe)
        self.network.to(accelerator.device)
        if not features_suffice(self.network, pixels.for_prediction(pixels.items(cells.rows(self.split.train[:1])))):
            return pixels, self.network
        # One process computes; the others read what it kept.
        with accelerator.main_process_first():
            features = frozen_features(path, self.network, cells, self.preprocessing, recipe.augmentation.views)
        return FeatureInputs(features, augment), HeadOnFeatures(self.network)

    def _forward_passes(self) -> int:
        """How many cells the whole run shows the network: for training, validation and the test."""
        accelerator, recipe, split, steps = self.accelerator, self.recipe, self.split, self.run.max_train_steps
        shown = min(recipe.epoch_cells or len(split.train), len(split.train))
        trained = recipe.num_train_epochs * shown
        if steps is not None:
            trained = steps * recipe.train_batch_size * accelerator.num_processes
            trained *= accelerator.gradient_accumulation_steps
        return trained + math.ceil(trained / shown) * len(split.validation) + len(split.test)

    def _fitting_batch_size(self, learner: nn.Module, train: CellDataset) -> int:
        """How many cells of a batch each process takes at a time; tried out on a GPU."""
        accelerator, recipe = self.accelerator, self.recipe
        if accelerator.device.type != "cuda" or len(train) < recipe.train_batch_size:
            return recipe.train_batch_size
        items, _, rows = train.__getitems__(list(range(recipe.train_batch_size)))
        batch = self.inputs.for_training(items.to(accelerator.device), rows, epoch=0)
        return find_batch_size(accelerator, recipe, lambda cells: try_step(accelerator, learner, recipe, batch[:cells]))

    def _timed_step(self, learner: nn.Module, train: CellDataset) -> float:
        """Seconds that a batch takes, measured on a copy of the network; the training to come is not changed by it."""
        accelerator = self.accelerator
        items, *_ = train.__getitems__(list(range(min(self.batch_size, len(train)))))
        for _ in range(2):  # the first one is slower
            started = time.perf_counter()
            # Not augmented, which takes little beside the step.
            try_step(accelerator, learner, self.recipe, self.inputs.for_prediction(items.to(accelerator.device)))
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize(accelerator.device)
        return time.perf_counter() - started

    # One epoch

    def _epoch(self) -> dict[str, Any]:
        """Train and validate once, keep what is the best, write a checkpoint; the row of summary.csv."""
        state, progress, accelerator = self.state, self.state.progress, self.accelerator
        row = self._train_epoch()
        if state.ema is not None and accelerator.num_processes > 1:
            # Each process saw batches of its own; what predicts, and what is kept, must be the same network.
            for statistic in state.ema.module.buffers():
                statistic.copy_(broadcast(statistic))
        row |= self._validate() if self.split.validation else {}
        outcome = self.judge.update(row) if self.split.validation else None
        if outcome and outcome.improved:
            column = outcome.watched.replace("val_", "validation ").replace("train_", "training ").replace("_", " ")
            state.keep_weights(f"{column} {row[outcome.watched]:.3f}")
        progress.rows.append(row)
        progress.epoch, progress.step, progress.batches = progress.epoch + 1, 0, []
        progress.stopped = bool(outcome and outcome.stop_reason)
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        note("  ".join(shown))
        if outcome and outcome.stop_reason:
            note(f"{outcome.stop_reason}: stopped")
        if self.checkpoints and self.checkpoints.each_epoch:
            self._save()
        return row

    def _train_epoch(self) -> dict[str, Any]:
        """Train on the training side once, or on what is left of it after resuming; its columns of summary.csv."""
        progress, accelerator = self.state.progress, self.accelerator
        if not progress.step:
            progress.epoch_started, progress.waited = time.perf_counter(), 0.0
        self._train_mode()
        seen = progress.step * accelerator.gradient_accumulation_steps
        # The order follows from seed and epoch.
        self.loader.set_epoch(progress.epoch)  # type: ignore[attr-defined]
        # Counted over all epochs, so that the time left is that of the whole training.
        left = track(
            skip_first_batches(self.loader, seen) if seen else self.loader,
            f"epoch {progress.epoch + 1} of {self.epochs}",
            self.total_steps * accelerator.gradient_accumulation_steps,
            done=len(self.loader) * progress.epoch + seen,
        )
        device, epoch = accelerator.device, progress.epoch
        for inputs, labels, rows in ready_batches(left, self.inputs, device, epoch, progress.add_waiting):
            # Before a step rather than after it: the last one may have been taken before an interruption.
            if self._steps_done == self.total_steps:
                break
            self._set_rates(progress.step)
            with accelerator.accumulate(self.learner):
                progress.batches.append(self._step(inputs, labels))
            if self.monitor:
                self.monitor.note(epoch, len(progress.batches) - 1, progress.batches[-1][0], rows)
            if accelerator.sync_gradients:
                progress.step += 1
                self._after_step()
        self._check_losses()
        # The mean over processes too: they must come to one decision.
        means = accelerator.reduce(torch.stack(progress.batches).mean(dim=0), "mean")
        self._require_finite("loss", means[0])
        loss, accuracy = means.tolist()
        resident, on_gpu = peak_memory()
        seconds = progress.epoch_seconds
        cells = len(progress.batches) * self.batch_size * accelerator.num_processes
        return {
            "epoch": progress.epoch + 1,
            "train_loss": round(loss, 5),
            "train_accuracy": round(accuracy, 5),
            "learning_rate": self._set_rates(progress.step - 1),
            "seconds": round(seconds, 1),
            "images_per_second": round(cells / seconds, 1),
            "data_wait_percent": round(100 * progress.waited / seconds, 1),
            "peak_memory_mb": round((on_gpu or resident) / 1e6),
        }

    def _train_mode(self) -> None:
        """Training mode, but for frozen modules: those keep weights and batch statistics."""
        self.learner.train()
        freeze(self.network, self.recipe.frozen)
        if self.recipe.batch_norm_frozen:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _set_rates(self, step: int) -> float:
        """Set every parameter's learning rate for a step of this epoch; that of the first group."""
        done = self.state.progress.epoch * self.steps_per_epoch
        return set_rates(self.optimizer, self.recipe, done + step, self.total_steps)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Train on one batch.

        Args:
            inputs, labels: (B, …) and (B,), on the device.

        Returns:
            (2,) its loss and accuracy before that, on the device: reading them would make the processor wait.
        """
        accelerator = self.accelerator
        with accelerator.autocast():
            logits = self.learner(inputs)
        loss = self.compute_loss(logits, labels, self.network)
        accelerator.backward(loss)
        if accelerator.sync_gradients and self.recipe.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.max_grad_norm)
        # Prepared, it does nothing until the last batch of a step.
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def _after_step(self) -> None:
        if self.state.ema is not None:
            self.state.ema.update(self.network, step=self._steps_done)
        self._stop_if_asked(self._steps_done)
        # At the end of an epoch a checkpoint is written after validation.
        within_epoch = self.state.progress.step < self.steps_per_epoch and self._steps_done < self.total_steps
        if self.checkpoints and self.checkpoints.due(self._steps_done) and within_epoch:
            self._save()

    @property
    def _steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return self.state.progress.epoch * self.steps_per_epoch + self.state.progress.step

    # Validation and prediction

    def _validate(self) -> dict[str, float]:
        """The validation columns of summary.csv; val_loss is the training loss on those cells."""
        # A checkpoint may be written between batches; after training the network is no longer what it resumes from.
        logits, rows = self._logits(self.split.validation, "validation", between=self._stop_if_asked)
        device, labels = self.accelerator.device, torch.from_numpy(self.cells.labels[rows.numpy()])
        with torch.inference_mode():
            # Of the weights that gave the logits and are kept, an average of the trained ones where there is one.
            loss = self.compute_loss(logits.to(device), labels.to(device), self.state.eval_network)
        metrics = {"loss": float(loss)} | measure(self._predictions(logits, rows))
        return {f"val_{k}": round(metrics[k], 5) for k in _VALIDATION_METRICS if metrics.get(k) is not None}

    def _logits(
        self, cell_ids: tuple[str, ...], what: str, between: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K) logits in evaluation mode and float32, and the (N,) rows of their cells, on the CPU.

        Args:
            what: the work is called while it is shown.
            between: called after each batch with its number.
        """
        accelerator, device = self.accelerator, self.accelerator.device
        cells = CellDataset(self.inputs, self.cells.labels, self.cells.rows(cell_ids))
        self.eval_model.eval()
        gathered: list[tuple[torch.Tensor, torch.Tensor]] = []
        loader = prediction_loader(cells, self.run.per_device_eval_batch_size, accelerator)
        for number, (items, _, rows) in enumerate(track(read(loader), what, len(loader))):
            # In float32, as releases predict: metrics of half precision would be another network's.
            with torch.inference_mode(), accelerator.autocast(AutocastKwargs(enabled=False)):
                logits = self.eval_model(self.inputs.for_prediction(items.to(device, non_blocking=True))).float()
            gathered.append(accelerator.gather_for_metrics((logits, rows.to(device, non_blocking=True))))
            if between:
                between(number)
        logits, seen = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
        assert sorted(seen.tolist()) == sorted(cells.rows.tolist()), "a cell was predicted twice or not at all"
        return logits, seen

    def _predictions(self, logits: torch.Tensor, rows: torch.Tensor) -> CellPredictions:
        """Logits as probabilities of named cells, without their areas."""
        cells = self.cells
        ids = {row: cell for cell, row in cells.row_of.items()}
        return CellPredictions(
            tuple(ids[row] for row in rows.tolist()),
            tuple(cells.subjects[row] for row in rows.tolist()),
            cells.labels[rows.numpy()],
            logits.softmax(dim=1).numpy(),
            cells.data.info.labels,
            pixel_hashes=cells.hashes_of(rows.numpy()),
        )

    # Checkpoints

    def _save(self) -> None:
        """Write a checkpoint of this moment; every process takes part, the main one writes."""
        assert self.checkpoints is not None
        self._check_losses()
        checkpoint, progress = self.state.checkpoint(), self.state.progress
        # Losses of all processes, and weights, which they share: all come to the same conclusion.
        for batches in checkpoint.part("progress").values():
            self._require_finite("loss", batches[..., 0])
        for weight in self.network.parameters():
            self._require_finite("weight", weight.detach())
        if self.accelerator.is_main_process:
            self.checkpoints.save(checkpoint, progress.epoch + 1, progress.step)

    def _stop_if_asked(self, count: int) -> None:
        """Write a checkpoint and end where a signal asked for it, at a moment that all processes agree on."""
        if number := self.stop.agreed(self.accelerator, count):
            self._save()
            at = f"epoch {self.state.progress.epoch + 1}, step {self.state.progress.step}"
            self.accelerator.print(f"asked to stop: checkpoint written at {at}", flush=True)
            raise Interrupted(number)

    def _check_losses(self) -> None:
        if self.monitor:
            self.monitor.check(self.state.progress.epoch, len(self.state.progress.batches) - 1)

    def _require_finite(self, what: str, values: torch.Tensor) -> None:
        """Stop before what is no number is written anywhere."""
        if not bool(values.isfinite().all()):
            value, epoch = float(values.float().mean()), self.state.progress.epoch + 1
            raise LeukoscopeError(f"epoch {epoch}: the {what} is {value}; lower --learning_rate and start again")
