"""What would end or spoil a run is found before its first step, while it has cost nothing.

Flags are checked in `config`, files where they are read, trackers in `tracking`, the Hub's permission in `hub.publish`,
and that every class can be learnt in `objective`; here stands what else takes cells, split and network.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells, require_space
from leukoscope.cells.splits import Split
from leukoscope.models.recipes import Recipe

# Tables, figures and logs; measured on runs of several thousand cells, generously rounded.
_BESIDES_WEIGHTS = 50_000_000
# Numbers that the optimiser keeps of each parameter that learns.
_MOMENTS = {"adamw": 2, "adam": 2, "adamax": 2, "sgd": 1}


def check_before_training(
    out: Path | None,
    cells: FramedCells,
    split: Split,
    recipe: Recipe,
    network: nn.Module,
    *,
    processes: int = 1,
    batches: int = 1,
    checkpoints: int = 0,
) -> tuple[str, ...]:
    """Refuse a run that could not end well.

    Args:
        out: the run folder; it exists. None in a process that writes nothing: on another machine it may not be there.
        network: with what is frozen marked so, or not yet: then a little more room is asked for.
        processes: that share the training, each with batches of its own.
        batches: of each process in a step of learning.
        checkpoints: how many are kept at a time; 0 without.

    Returns:
        what makes its figures weaker than they look, one line each.

    Raises:
        LeukoscopeError: no validation cells to follow, fewer cells than a step takes, or no room for the results.
    """
    require_validation(split, recipe)
    require_whole_step(len(split.train), recipe.train_batch_size, processes, batches)
    if out is not None:
        require_room(out, room_needed(network, recipe, checkpoints))
    return thin_sides(cells, split)


def thin_sides(cells: FramedCells, split: Split) -> tuple[str, ...]:
    """One line a side that is judged by fewer classes than there are."""
    return tuple(
        f"{side} side: no cell of class {', '.join(missing)}; its figures speak of the other classes only"
        for side in ("validation", "test")
        if getattr(split, side) and (missing := _missing(cells, getattr(split, side)))
    )


def require_validation(split: Split, recipe: Recipe) -> None:
    """Raise `LeukoscopeError` where the recipe's learning rate follows validation cells and there are none."""
    if recipe.plateau and not split.validation:
        raise LeukoscopeError(
            f"--recipe {recipe.name}: its learning rate follows the validation cells and split {split.strategy} "
            f"({split.detail}) has none; leave out --no_validation or choose another --split"
        )


def require_whole_step(cells: int, batch_size: int, processes: int = 1, batches: int = 1) -> None:
    """Raise `LeukoscopeError` where an epoch has fewer cells than a step of learning takes."""
    if cells >= batch_size * processes * batches:
        return
    times = f" × {processes} processes" if processes > 1 else ""
    times += f" × --gradient_accumulation_steps {batches}" if batches > 1 else ""
    raise LeukoscopeError(
        f"--per_device_train_batch_size {batch_size}{times}: larger than the {cells} training cells; give a smaller one"
    )


def room_needed(network: nn.Module, recipe: Recipe, checkpoints: int) -> int:
    """Bytes that a run folder may come to hold.

    The release takes at most the weights in full precision. A checkpoint holds the weights, those of the best epoch and
    what the optimiser keeps; a new one is whole before an old one goes.
    """
    weights = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
    learning = 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    checkpoint = 2 * weights + _MOMENTS[recipe.optimizer] * learning
    return weights + (checkpoints + 1) * checkpoint * bool(checkpoints) + _BESIDES_WEIGHTS


def require_room(out: Path, needed: int) -> None:
    """Raise `LeukoscopeError` where the run folder's disk has fewer than `needed` bytes to spare."""
    try:
        require_space(out, needed)
    except OSError as error:
        raise LeukoscopeError(
            f"--output_dir {out}: no room for the results ({error.strerror}; up to {needed / 1e6:.0f} MB needed); free "
            "some space or give a folder on another disk"
        ) from None


def _missing(cells: FramedCells, cell_ids: tuple[str, ...]) -> list[str]:
    """Names of the classes that none of these cells is of."""
    names = cells.data.info.labels
    counts = np.bincount(cells.labels[cells.rows(cell_ids)], minlength=len(names))
    return [name for name, count in zip(names, counts, strict=True) if count == 0]
