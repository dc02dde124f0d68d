"""A frozen backbone pays once: its pooled features of every cell are computed, kept on disk, and read by every run.

It applies where nothing below the head trains and a cell has only finitely many looks (as it is, mirrored): each look
is computed by itself, so training on what is kept is training on the cells. The file is named for the decoded cells
(which data, how prepared), the backbone's weights and the looks; a digest beside it tells a damaged one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells, require_space
from leukoscope.cells.files import cache_root, write_whole
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.models.recipes import Recipe

_BATCH = 64


class HeadOnFeatures(nn.Module):
    """A network whose backbone has done its work: it answers from pooled features, (B, F) → (B, K)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network.head.from_pooled(features)  # type: ignore[operator,union-attr]


def can_be_kept(recipe: Recipe) -> bool:
    """True where the whole backbone is frozen and no augmentation but mirroring changes what it is shown."""
    return "backbone" in recipe.frozen and recipe.augmentation.only_mirrors


def pays_off(path: Path, cells: FramedCells, recipe: Recipe, passes: int) -> bool:
    """True where a run of that many forward passes has them on disk, or would need more than keeping all takes."""
    return path.exists() or passes >= len(cells.pixels) * len(recipe.augmentation.mirrorings)


def features_file(network: nn.Module, cells: FramedCells, recipe: Recipe) -> Path:
    """Where the features of these cells from this backbone are kept."""
    import timm

    # The decoded cells' file is itself named for the data, its files' times of writing and the preprocessing.
    decoded = Path(cells.pixels.filename).name  # type: ignore[union-attr]
    backbone = (recipe.architecture, getattr(network, "levels", []), timm.__version__, backbone_hash(network))
    parts = (decoded, *backbone, recipe.augmentation.mirrorings)
    key = hashlib.sha256(repr((*parts, str(network.head.pool))).encode()).hexdigest()[:16]  # type: ignore[union-attr]
    return cache_root() / f"features-{key}.npy"


def backbone_hash(network: nn.Module) -> str:
    """sha256 over names, types, shapes and values of a backbone's weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in network.get_submodule("backbone").state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def frozen_features(
    path: Path,
    network: nn.Module,
    cells: FramedCells,
    preprocessing: Preprocessing,
    looks: Sequence[tuple[int, ...]],
    *,
    say: Callable[[str], None] = print,
    shows_progress: bool = False,
) -> np.ndarray:
    """The features kept in `path`, computed first where they are missing or damaged.

    Args:
        path: what `features_file` named.
        network: a network with `backbone` and `head`; used on the device it is on, in eval mode and float32.
        looks: the V mirrorings of a cell, as `Augmentation.mirrorings` lists them.
        say: told what was done.
        shows_progress: draw a bar.

    Returns:
        (N, V, F) float32, memory-mapped: every row of `cells.pixels` in each of its looks.

    Raises:
        LeukoscopeError: the cache folder cannot be written (full disk, no permission).
    """
    width = _pooled(network, preprocessing.normalise(_batch(cells, 0, 1))).shape[1]
    shape = (len(cells.pixels), len(looks), width)
    if path.exists():
        if (kept := _read(path, shape)) is not None:
            say(f"frozen backbone: features of {shape[0]:,} cells read from {path}")
            return kept
        say(f"{path}: damaged; the features are computed again")
    needed = int(np.prod(shape)) * 4
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, needed)
        _compute_to(path, shape, network, cells, preprocessing, looks, shows_progress)
    except OSError as error:
        raise LeukoscopeError(
            f"{path.parent}: cannot keep the frozen backbone's features there ({error.strerror or error}; "
            f"{needed / 1e6:.0f} MB needed); free some space or set LEUKOSCOPE_CACHE to another folder"
        ) from None
    say(f"frozen backbone: features of {shape[0]:,} cells in {shape[1]} look(s) kept in {path}")
    return np.load(path, mmap_mode="r")


def _compute_to(
    path: Path,
    shape: tuple[int, int, int],
    network: nn.Module,
    cells: FramedCells,
    preprocessing: Preprocessing,
    looks: Sequence[tuple[int, ...]],
    shows_progress: bool,
) -> None:
    from tqdm.auto import trange

    aside = path.with_suffix(f".{os.getpid()}.tmp")
    array = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
    try:
        for start in trange(0, shape[0], _BATCH, desc="frozen features", disable=not shows_progress, leave=False):
            stop = min(start + _BATCH, shape[0])
            inputs = preprocessing.normalise(_batch(cells, start, stop))
            for number, axes in enumerate(looks):
                array[start:stop, number] = _pooled(network, inputs.flip(axes)).cpu().numpy()
        array.flush()
        digest = _digest(aside)
        # An older file and its digest must never stand for each other: without one, a file is computed again.
        _digest_file(path).unlink(missing_ok=True)
        aside.replace(path)
        write_whole(_digest_file(path), digest)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _batch(cells: FramedCells, start: int, stop: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(cells.pixels[start:stop].transpose(0, 3, 1, 2)))


def _pooled(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """(B, F) float32, the features that the head's layers see."""
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        features = network.forward_features(inputs.to(device))  # type: ignore[operator]
        return network.head.pool(features).flatten(1).float()  # type: ignore[operator,union-attr]


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array, or None where the file is not the one that was written."""
    try:
        if _digest_file(path).read_text() != _digest(path):
            return None
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
