"""What a training batch is made of: pixels for a whole network, or stored features for the head of a frozen one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import CellsOnDemand, FramedCells
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.cells.splits import Split
from leukoscope.cells.transforms import Augmenter
from leukoscope.models.recipes import Recipe
from leukoscope.training.features import HeadOnFeatures, can_be_kept, features_file, frozen_features, pays_off
from leukoscope.training.preflight import require_whole_step

# More would read ahead of any network here.
_MOST_WORKERS = 8


class Inputs(Protocol):
    """From rows of the cells to what is fed forward.

    Attributes:
        decodes: reading a cell means decoding its picture, which processes of the loader's do ahead.
    """

    decodes: bool

    def items(self, rows: np.ndarray) -> torch.Tensor:
        """What the loader reads of a batch of cells, (B, …)."""

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """A batch of items as this epoch shows them."""

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        """A batch of items as they are, without augmentation."""


class PixelInputs:
    """Cells as a whole network sees them; items are (3, S, S) uint8, channels-last in memory as they are kept."""

    def __init__(self, cells: FramedCells, preprocessing: Preprocessing, augment: Augmenter):
        self.pixels, self.preprocessing, self.augment = cells.pixels, preprocessing, augment
        self.decodes = isinstance(cells.pixels, CellsOnDemand)

    def items(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2)

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        return self.preprocessing.normalise(self.augment(items, rows.tolist(), epoch))

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        return self.preprocessing.normalise(items)


class FeatureInputs:
    """A frozen backbone's features of every cell, kept in each look it can have; items are (V, F) float32."""

    decodes = False

    def __init__(self, features: np.ndarray, augment: Augmenter):
        self.features, self.augment = features, augment

    def items(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.features[rows])

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        looks = self.augment.mirrorings_of(rows.tolist(), epoch).to(items.device, non_blocking=True)
        return items[torch.arange(len(items), device=items.device), looks]

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        return items[:, 0]


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Rows(Dataset[Batch]):
    """Some rows of the cells, for a DataLoader, which takes a whole batch at once: items, classes, rows."""

    def __init__(self, inputs: Inputs, labels: np.ndarray, rows: np.ndarray):
        self.inputs, self.labels, self.rows = inputs, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = self.rows[indices]
        return self.inputs.items(rows), torch.from_numpy(self.labels[rows]), torch.from_numpy(rows)


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
    if not keep_features or pixels.decodes or not can_be_kept(recipe):
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
    # A batch of decoded cells is read in less time than another process takes to hand it over.
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = (os.cpu_count() or 1) // local_processes
    workers = min(max(cores // 2, 1), _MOST_WORKERS) if rows.inputs.decodes else 0
    return DataLoader(
        rows,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        # A generator of its own: iterating must not disturb the one that dropout draws from.
        generator=torch.Generator(),
        **how,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def read(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader.

    Raises:
        LeukoscopeError: a damaged cell, where cells are decoded when they are asked for.
    """
    try:
        yield from loader
    except LeukoscopeError as error:
        # From a process of the loader's an error comes with all its calls; the last line is what it says.
        raise LeukoscopeError(str(error).rpartition("LeukoscopeError: ")[2].strip()) from None


def rest_of_epoch(loader: DataLoader[Any], epoch: int, seen: int, *, shows_progress: bool) -> Iterable[Batch]:
    """The batches of an epoch after the first `seen` ones; their order follows from seed and epoch."""
    from tqdm.auto import tqdm

    loader.set_epoch(epoch)  # type: ignore[attr-defined]
    left = skip_first_batches(loader, seen) if seen else loader
    return tqdm(left, desc=f"epoch {epoch + 1}", initial=seen, disable=not shows_progress, leave=False)


def ready_batches(
    loader: Iterable[Batch],
    inputs: Inputs,
    device: torch.device,
    epoch: int,
    add_waiting: Callable[[float], None],
) -> Iterator[Batch]:
    """What an epoch shows: inputs as the network takes them, classes, both on the device; and rows, on the CPU.

    Args:
        add_waiting: told the seconds each batch took to be read, moved and augmented, the end of the last included. A
            GPU moves and augments by itself: there, what counts is asking for it.
    """
    batches = read(loader)
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is not None:
            # Rows stay where the augmentation draws from them.
            items, labels, rows = batch
            shown = inputs.for_training(items.to(device, non_blocking=True), rows, epoch)
            batch = shown, labels.to(device, non_blocking=True), rows
        add_waiting(time.perf_counter() - started)
        if batch is None:
            return
        yield batch


def shows_progress(accelerator: Accelerator) -> bool:
    """Bars are for a person at a terminal; a log file keeps one line an epoch."""
    return accelerator.is_main_process and sys.stderr.isatty()
