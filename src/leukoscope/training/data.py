"""What a training batch is made of: pixels for a whole network, or cached features for the head of a frozen one.

The order of cells (shuffled or balanced by subject), the loaders, and the cache of a frozen backbone's features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, default_convert

from leukoscope import ConfigError
from leukoscope.cache import cache_root, entry_folder, intact, replacing
from leukoscope.data.augmentation import Augmenter
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import TRAINING_RANGES
from leukoscope.data.pixel_cache import FramedCells, read_rows
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.files import disk_errors
from leukoscope.inference.runtime import memory_errors
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import backbone_state, round_as_stored
from leukoscope.progress import note, progress

_CELLS_PER_PASS = 64
_CELLS_PER_CPU_PASS = 2  # the maps of more pictures do not fit its cache
_RUN_SHARE = 0.25
"""Of its cells' features, that a run must read for them to be computed; the runs of a protocol share them."""


class PixelInputs:
    """Cells as a whole network sees them; items are (3, S, S) uint8, channels-last in memory as they are kept."""

    def __init__(self, cells: FramedCells, preprocessing: Preprocessing, augment: Augmenter):
        self.pixels = cells.pixels
        self.preprocessing = preprocessing
        self.augment = augment

    def items(self, rows: np.ndarray) -> torch.Tensor:
        """What the loader reads of a batch of cells, (B, …)."""
        return torch.from_numpy(read_rows(self.pixels, rows)).permute(0, 3, 1, 2)

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """A batch of items with this epoch's augmentation."""
        return self.preprocessing.normalise(self.augment(items, rows.tolist(), epoch))

    def for_prediction(self, items: torch.Tensor) -> torch.Tensor:
        """A batch of items without augmentation."""
        return self.preprocessing.normalise(items)

    def model(self, network: nn.Module) -> nn.Module:
        """The part of a network that takes these inputs: all of it."""
        return network


class FeatureInputs:
    """A frozen backbone's features of cells in each of their V versions; items are (V, F) float32.

    Attributes:
        folder: the entry of the cache that keeps them, in the parts that were written.
        places: row of `FramedCells.pixels` → number of the part, and place in it.
    """

    def __init__(self, folder: Path, augment: Augmenter):
        """Open the undamaged parts that are there."""
        self.folder = folder
        self.augment = augment
        self.places: dict[int, tuple[int, int]] = {}
        self._parts: list[np.ndarray] = []  # (n, V, F) float32, memory-mapped
        for path in sorted(folder.glob("*.npy")):
            if intact(path):
                self._open(path)

    def _open(self, path: Path) -> None:
        part = np.load(path, mmap_mode="r")
        self.places |= {row: (len(self._parts), place) for place, row in enumerate(part["row"].tolist())}
        self._parts.append(part["features"])

    def keep(self, rows: np.ndarray, features: np.ndarray, *, needed: int) -> None:
        """Write the (n, V, F) features of (n,) rows as a part; `OSError` where fewer bytes than needed are free."""
        part = np.empty(len(rows), [("row", np.int64), ("features", np.float32, features.shape[1:])])
        part["row"] = rows
        part["features"] = features
        # No row is in two parts; a damaged one is replaced by that of the same rows.
        path = self.folder / f"from-{rows[0]:08d}.npy"
        with replacing(path, needed=needed) as temporary, temporary.open("wb") as file:
            np.save(file, part)
        self._open(path)

    def items(self, rows: np.ndarray) -> torch.Tensor:
        places = [self.places[row] for row in rows.tolist()]
        return torch.from_numpy(np.stack([self._parts[part][place] for part, place in places]))

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        versions = self.augment.versions_of(rows.tolist(), epoch).to(items.device, non_blocking=True)
        return items[torch.arange(len(items), device=items.device), versions]

    def for_prediction(self, items: torch.Tensor) -> torch.Tensor:
        return items[:, 0]

    def model(self, network: nn.Module) -> nn.Module:
        return network.get_classifier()  # type: ignore[operator]


Inputs = PixelInputs | FeatureInputs


# Loaders

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class CellDataset(Dataset[Batch]):
    """Some rows of the cells, for a DataLoader, which takes a whole batch at once: items, classes, rows."""

    def __init__(self, inputs: Inputs, labels: np.ndarray, rows: np.ndarray):
        self.inputs = inputs
        self.labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = self.rows[indices]
        return self.inputs.items(rows), torch.from_numpy(self.labels[rows]), torch.from_numpy(rows)


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
    cells: CellDataset, subjects: Sequence[str], epoch_cells: int, recipe: Recipe, accelerator: Accelerator, seed: int
) -> DataLoader[Any]:
    """Batches of an epoch that shows `epoch_cells` cells, in whole optimiser steps, to be prepared by Accelerate."""
    sampler: Sampler[int] = RandomSampler(cells, num_samples=epoch_cells)
    if recipe.sampling != "cells":
        sampler = SubjectBalancedSampler(cells.labels[cells.rows], subjects, seed, size=epoch_cells)
    batches_per_step = accelerator.num_processes * accelerator.gradient_accumulation_steps
    return _loader(cells, accelerator, batch_sampler=WholeSteps(sampler, recipe.train_batch_size, batches_per_step))


def prediction_loader(cells: CellDataset, batch_size: int, accelerator: Accelerator) -> DataLoader[Any]:
    """All rows in their order, prepared by Accelerate."""
    loader = _loader(cells, accelerator, batch_size=batch_size)
    return accelerator.prepare_data_loader(loader, device_placement=False)


def _loader(cells: CellDataset, accelerator: Accelerator, **how: Any) -> DataLoader[Any]:
    # In this process: a batch of decoded cells is read in less time than another process takes to hand it over.
    return DataLoader(
        cells,
        collate_fn=default_convert,  # a batch is one already
        pin_memory=accelerator.device.type == "cuda",
        # A generator of its own: iterating must not change the one that dropout uses.
        generator=torch.Generator(),
        **how,
    )


def with_batch_that_fits(recipe: Recipe, epoch_cells: int, accelerator: Accelerator) -> Recipe:
    """The recipe, with a smaller batch where an epoch has fewer cells than an optimiser step takes, which is noted.

    Raises:
        ConfigError: fewer cells than batches in a step.
    """
    batches = accelerator.num_processes * accelerator.gradient_accumulation_steps
    size = min(recipe.train_batch_size, epoch_cells // batches)
    if size == 0:
        raise ConfigError(
            f"{epoch_cells} training cells: fewer than the {batches} batches of an optimiser step; give a smaller "
            "--gradient_accumulation_steps, or start fewer processes"
        )
    if size < recipe.train_batch_size:
        note(f"batches of {size} cells, not {recipe.train_batch_size}: an epoch has {epoch_cells} cells")
    return replace(recipe, train_batch_size=size)


def evenly_spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most that many of (N,) rows, evenly spread over them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


# Sampling


class SubjectBalancedSampler(Sampler[int]):
    """Samples every class equally often, and in a class every subject equally often.

    Subjects differ in their number of cells by a factor of ten and more: sampled by cell, a few of them decide what a
    class looks like. No cell of a subject comes a second time before all others came once.
    """

    def __init__(self, labels: np.ndarray, subjects: Sequence[str], seed: int, *, size: int):
        """Take (N,) classes and N subjects; cells whose subject is unnamed ("") count as one subject per class.

        `size` is the number of cells per epoch.
        """
        self.seed = seed
        self.epoch = 0
        self.size = size
        subject_of_cell = np.asarray(subjects)
        self._groups: list[list[np.ndarray]] = []  # for each class, the cells of each subject
        for k in np.unique(labels):
            of_class = labels == k
            names = np.unique(subject_of_cell[of_class])
            self._groups.append([np.flatnonzero(of_class & (subject_of_cell == name)) for name in names])

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Cells an epoch."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        sampled = []
        for subjects, quota in zip(self._groups, _shares(self.size, len(self._groups), rng), strict=True):
            for cells, count in zip(subjects, _shares(quota, len(subjects), rng), strict=True):
                rounds = [rng.permutation(cells) for _ in range(-(-count // len(cells)))]
                sampled.append(np.concatenate([cells[:0], *rounds])[:count])
        yield from rng.permutation(np.concatenate(sampled)).tolist()


def _shares(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """(P,) equal counts that add up to `total`; who gets the remainder is random."""
    counts = np.full(parts, total // parts)
    remainder = total % parts
    if remainder:
        counts[rng.choice(parts, size=remainder, replace=False)] += 1
    return counts


# Cached features of a frozen backbone
#
# Where nothing below the head is trained and a cell has finitely many versions (turned by right angles, mirrored, and
# changed a little), the pooled features of every version are computed once, kept on disk, and read by every run that
# asks for this cell. The entry is named for the decoded cells, the backbone's weights and the versions.


def make_inputs(
    accelerator: Accelerator,
    network: nn.Module,
    cells: FramedCells,
    recipe: Recipe,
    seed: int,
    *,
    rows: np.ndarray,
    passes: int,
) -> Inputs:
    """Make the inputs that a recipe's network is trained on: pixels, or cached features where these pay off.

    Args:
        network: with its start weights; a frozen backbone is rounded to what its release will hold.
        rows: (N,) of `cells.pixels`, those that the run shows the network.
        passes: how often it shows one in all; 0 for no cached features.
    """
    augment = Augmenter(recipe.augmentation, cells.data.info.background, seed)
    preprocessing = preprocessing_for(recipe, cells.data)
    pixels = PixelInputs(cells, preprocessing, augment)
    if "backbone" in recipe.frozen:
        round_as_stored(network, head=False)
    # Whether another run left them does not count: the same command would then give other weights.
    pays_off = passes and passes >= _RUN_SHARE * len(rows) * recipe.augmentation.version_count
    if not can_cache_features(recipe) or not pays_off:
        return pixels
    network.to(accelerator.device)
    folder = features_folder(network, cells, recipe)
    if not features_suffice(network, pixels.for_prediction(pixels.items(rows[:1]))):
        return pixels
    # One process computes; the others read what it kept.
    with accelerator.main_process_first():
        return frozen_features(folder, rows, network, pixels)


def preprocessing_for(recipe: Recipe, data: LoadedCells) -> Preprocessing:
    """This recipe's preprocessing of this data set."""
    return Preprocessing(recipe.image_size, data.info.crop_pct, recipe.interpolation, recipe.mean, recipe.std)


def can_cache_features(recipe: Recipe) -> bool:
    """True where the whole backbone is frozen and each cell has finitely many versions."""
    # Dropout before timm's last layer would strike the features.
    return "backbone" in recipe.frozen and recipe.augmentation.only_views and not recipe.drop_rate


def features_suffice(network: nn.Module, picture: torch.Tensor) -> bool:
    """True where the head gives for a (1, 3, S, S) picture's pooled features what the whole network gives for it.

    Some networks of timm do not pool the features that their last layer sees.
    """
    try:
        features = _pooled(network, picture)
        with torch.inference_mode():
            ours = network.get_classifier()(features)  # type: ignore[operator]
            whole = network(picture.to(features.device))
    except (RuntimeError, TypeError):
        return False
    return ours.shape == whole.shape and torch.allclose(ours, whole, rtol=1e-3, atol=1e-3)


def features_folder(network: nn.Module, cells: FramedCells, recipe: Recipe) -> Path:
    """The entry of the cache with features of these cells from this backbone."""
    import timm

    # The decoded cells' folder is itself named for the data, and how they are framed.
    decoded = Path(cells.pixels.filename).parent.name  # type: ignore[attr-defined]
    backbone = (recipe.architecture, timm.__version__, backbone_hash(network), str(getattr(network, "global_pool", "")))
    # A GPU rounds otherwise than a CPU.
    device = next(network.parameters()).device.type
    augmentation = recipe.augmentation
    versions: tuple[Any, ...] = (augmentation.views, augmentation.small_changes, augmentation.version_count)
    if augmentation.small_changes:
        versions += tuple((family, low, high) for family, (_, low, high) in TRAINING_RANGES.items())
    return entry_folder("features", decoded, *backbone, device, versions)


def backbone_hash(network: nn.Module) -> str:
    """sha256 over names, types, shapes and values of a backbone's weights and statistics."""
    digest = sha256()
    for name, tensor in backbone_state(network).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def frozen_features(folder: Path, rows: np.ndarray, network: nn.Module, pixels: PixelInputs) -> FeatureInputs:
    """Read the features kept in an entry of the cache; compute those of (N,) rows that are not there, in float32.

    They are kept as they come: a run that is killed loses those of `_CELLS_PER_PASS` cells at most.

    Raises:
        LeukoscopeError: the cache cannot be written.
    """
    inputs = FeatureInputs(folder, pixels.augment)
    missing = np.array([row for row in np.sort(rows).tolist() if row not in inputs.places], dtype=np.int64)
    if not len(missing):
        note(f"frozen backbone: features of {len(rows):,} cells read from {folder}")
        return inputs
    versions = pixels.augment.augmentation.version_count
    on_cpu = next(network.parameters()).device.type == "cpu"
    at_once = _CELLS_PER_CPU_PASS if on_cpu else _CELLS_PER_PASS
    problem = f"{cache_root()}: cannot keep the frozen backbone's features there"
    label = "features of the frozen backbone"
    done = versions * (len(rows) - len(missing))
    with (
        disk_errors(problem, "set LEUKOSCOPE_CACHE to another folder"),
        progress(label, versions * len(rows), unit="pictures", done=done) as advance,
    ):
        for start in range(0, len(missing), _CELLS_PER_PASS):
            part = missing[start : start + _CELLS_PER_PASS]
            # Always as many at once: a cell's features must not depend on which others were missing.
            batches = np.pad(part, (0, -len(part) % at_once), mode="edge").reshape(-1, at_once)
            features = np.concatenate([_features_of(batch, network, pixels) for batch in batches])[: len(part)]
            inputs.keep(part, features, needed=features[0].nbytes * (len(missing) - start))
            advance(versions * len(part))
    note(f"frozen backbone: features of {len(rows):,} cells in {versions} version(s) kept in {folder}")
    return inputs


def _features_of(rows: np.ndarray, network: nn.Module, pixels: PixelInputs) -> np.ndarray:
    """(B, V, F) float32 features of these rows of the cells in each of their versions."""
    # Moved as bytes: a quarter of floats.
    items = pixels.items(rows).to(next(network.parameters()).device)
    versions = []
    for number in range(pixels.augment.augmentation.version_count):
        inputs = pixels.preprocessing.normalise(pixels.augment.version(items, rows.tolist(), number))
        versions.append(_pooled(network, inputs.contiguous(memory_format=torch.channels_last)))
    return torch.stack(versions, dim=1).cpu().numpy()


def _pooled(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """(B, F) float32, the features that the head's layers see."""
    device = next(network.parameters()).device
    network.eval()
    with memory_errors(device, len(inputs), "give a smaller --image_size"), torch.inference_mode():
        features = network.forward_features(inputs.to(device))  # type: ignore[operator]
        return network.forward_head(features, pre_logits=True).float()  # type: ignore[operator]
