"""A running mean of the weights over training steps, which generalises better than where the last step landed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch import nn

from leukoscope.models.recipes import Recipe

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


def make_average(network: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """The recipe's running mean, starting at the network's weights; None where it keeps the last step's.

    The decay rises to `recipe.ema_decay` over the first steps: a mean that remembers random start weights is of no use
    in a short run. What it holds, batch statistics included, is a network of its own, its `module`.
    """
    if not recipe.ema_decay:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)


def share_statistics(average: ModelEmaV3 | None, accelerator: Accelerator) -> None:
    """Give every process the main one's mean of the batch statistics.

    Each process saw batches of its own; what answers, and what is kept, must be one and the same network.
    """
    if average is None or accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for statistic in average.module.buffers():
        statistic.copy_(broadcast(statistic))
