"""What a training batch is made of: pixels for a whole network, or stored features for the head of a frozen one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from leukoscope.cells.cache import FramedCells
from leukoscope.cells.splits import Split
from leukoscope.cells.transforms import Augmenter, Preprocessing
from leukoscope.models.recipes import Recipe
from leukoscope.training.features import HeadOnFeatures, can_be_kept, features_file, frozen_features, pays_off
from leukoscope.training.preflight import require_whole_step


class Inputs(Protocol):
    """From a row of the cells to what is fed forward."""

    def item(self, row: int) -> torch.Tensor:
        """What the loader reads of one cell."""

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """A batch of items as this epoch shows them."""

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        """A batch of items as they are, without augmentation."""


class PixelInputs:
    """Cells as a whole network sees them; items are (3, S, S) uint8."""

    def __init__(self, cells: FramedCells, preprocessing: Preprocessing, augment: Augmenter):
        self.pixels, self.preprocessing, self.augment = cells.pixels, preprocessing, augment

    def item(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.pixels[row].transpose(2, 0, 1)))

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        return self.preprocessing.normalise(self.augment(items, rows.tolist(), epoch))

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        return self.preprocessing.normalise(items)


class FeatureInputs:
    """A frozen backbone's features of every cell, kept in each look it can have; items are (V, F) float32."""

    def __init__(self, features: np.ndarray, augment: Augmenter):
        self.features, self.augment = features, augment

    def item(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.features[row]))

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        return items[torch.arange(len(items)), self.augment.mirrorings_of(rows.tolist(), epoch)]

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        return items[:, 0]


class Rows(Dataset[tuple[torch.Tensor, int, int]]):
    """Some rows of the cells, for a DataLoader: item, class, row."""

    def __init__(self, inputs: Inputs, labels: np.ndarray, rows: np.ndarray):
        self.inputs, self.labels, self.rows = inputs, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        row = int(self.rows[index])
        return self.inputs.item(row), int(self.labels[row]), row


def inputs_and_learner(
    accelerator: Accelerator,
    network: nn.Module,
    cells: FramedCells,
    split: Split,
    recipe: Recipe,
    preprocessing: Preprocessing,
    augment: Augmenter,
    *,
    keep_features: bool = True,
) -> tuple[Inputs, nn.Module]:
    """Pixels and the network; or, where the frozen backbone's features are kept, these and its head."""
    pixels = PixelInputs(cells, preprocessing, augment)
    if not (keep_features and can_be_kept(recipe)):
        return pixels, network
    path = features_file(network, cells, recipe)
    passes = recipe.num_train_epochs * (len(split.train) + len(split.validation)) + len(split.test)
    if not pays_off(path, cells, recipe, passes):
        return pixels, network
    network.to(accelerator.device)
    say, shows = partial(accelerator.print, flush=True), shows_progress(accelerator)
    looks = recipe.augmentation.mirrorings
    # One process computes; the others read what it kept.
    with accelerator.main_process_first():
        features = frozen_features(path, network, cells, preprocessing, looks, say=say, shows_progress=shows)
    return FeatureInputs(features, augment), HeadOnFeatures(network)


class WholeSteps(BatchSampler):
    """Batches of an epoch, less the last ones that do not fill a whole step of all processes."""

    def __init__(self, sampler: Sampler[int], batch_size: int, batches_per_step: int):
        super().__init__(sampler, batch_size, drop_last=True)
        self.batches_per_step = batches_per_step

    def __len__(self) -> int:
        batches = super().__len__()
        return batches - batches % self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        return islice(super().__iter__(), len(self))


def training_loader(
    rows: Rows, batch_size: int, accelerator: Accelerator, sampler: Sampler[int] | None = None
) -> DataLoader[Any]:
    """Batches of an epoch in whole optimiser steps, to be prepared by Accelerate.

    Args:
        batch_size: cells a batch of one process.
        sampler: draws each epoch's order; None shuffles.

    Raises:
        LeukoscopeError: fewer cells than a step takes.
    """
    processes, batches = accelerator.num_processes, accelerator.gradient_accumulation_steps
    sampler = sampler or RandomSampler(rows)
    steps = WholeSteps(sampler, batch_size, processes * batches)
    require_whole_step(len(rows), batch_size, processes, batches)
    return _loader(rows, accelerator, batch_sampler=steps)


def answering_loader(rows: Rows, batch_size: int, accelerator: Accelerator) -> DataLoader[Any]:
    """All rows in their order, prepared."""
    loader = _loader(rows, accelerator, batch_size=batch_size)
    return accelerator.prepare_data_loader(loader, device_placement=False)


def _loader(rows: Rows, accelerator: Accelerator, **how: Any) -> DataLoader[Any]:
    # A generator of its own: iterating must not disturb the one that dropout draws from.
    return DataLoader(rows, generator=torch.Generator(), pin_memory=accelerator.device.type == "cuda", **how)


def shows_progress(accelerator: Accelerator) -> bool:
    """Bars are for a person at a terminal; a log file keeps one line an epoch."""
    return accelerator.is_main_process and sys.stderr.isatty()
