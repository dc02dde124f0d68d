"""A batch that does not fit a GPU is taken in parts: gradients add up over them, so a step still sees as many cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import Recipe


def require_fitting(accelerator: Accelerator, recipe: Recipe, attempt: Callable[[int], None]) -> int:
    """How many cells of the recipe's batch each process takes at a time; all processes come to the same.

    Where they are fewer than the batch, the accelerator's gradient accumulation is raised to make up for it. The loss
    of a step stays the same; batch normalisation sees the parts.

    Args:
        attempt: learns from so many cells, and runs out of memory where they are too many.

    Raises:
        LeukoscopeError: not even one cell fits.
    """
    sizes = _halvings(recipe.train_batch_size)

    def tried(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    try:
        search = find_executable_batch_size(
            tried, starting_batch_size=next(sizes), reduce_batch_size_fn=lambda: next(sizes)
        )
        fitting = int(search())
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        # The others wait for this process's answer.
        fitting = 0
    fitting = int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())
    if not fitting:
        raise LeukoscopeError(
            f"{accelerator.device}: out of memory with one cell at a time; give a smaller --image_size (now "
            f"{recipe.image_size}) or free memory on the device"
        )
    if (parts := recipe.train_batch_size // fitting) > 1:
        accelerator.gradient_accumulation_steps *= parts
        accelerator.print(
            f"out of memory with {recipe.train_batch_size} cells at a time: {parts} batches of {fitting} make one step "
            "(batch normalisation sees the smaller ones)",
            flush=True,
        )
    return fitting


def try_step(
    accelerator: Accelerator,
    learner: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    inputs: torch.Tensor,
) -> None:
    """One step of a copy of the network, which needs at least the memory that a step of its own will.

    Args:
        inputs: (B, …) on the device.
    """
    device = accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        copy = deepcopy(learner).to(device).train()
        optimizer = make_optimizer(copy)
        with accelerator.autocast():
            logits = copy(inputs)
        F.cross_entropy(logits.float(), torch.zeros(len(inputs), dtype=torch.long, device=device)).backward()
        optimizer.step()


def _halvings(batch_size: int) -> Iterator[int]:
    """A number and its divisors, each at most half of the one before; at last 0."""
    size = batch_size
    while size:
        yield size
        size = next((n for n in range(size // 2, 0, -1) if batch_size % n == 0), 0)
    yield 0
