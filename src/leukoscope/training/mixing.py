"""Mixup: a batch blended with itself, pixels and labels by the same share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def mixing_share(alpha: float, seed: int, epoch: int, step: int) -> float:
    """The share of its own that each cell of a batch keeps, from Beta(alpha, alpha); 1 for alpha 0.

    It depends on (seed, epoch, step) alone, so a resumed run draws what the whole run would have drawn.
    """
    if not alpha:
        return 1.0
    rng = np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) + step]))
    return float(rng.beta(alpha, alpha))


def mixed(inputs: torch.Tensor, share: float) -> torch.Tensor:
    """Blend every cell with its mirror position in the batch; the batch is in random order.

    Args:
        inputs: (B, …), normalised.
        share: what each cell keeps of itself, 0–1.
    """
    return inputs if share == 1.0 else torch.lerp(inputs.flip(0), inputs, share)


def mixed_loss(loss: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor, share: float) -> torch.Tensor:
    """What the blended batch costs: `loss(labels)` for both labels of every cell, by their shares.

    Args:
        loss: (B,) labels → (B,) loss of each cell's logits under these labels.
    """
    own = loss(labels)
    return own if share == 1.0 else share * own + (1 - share) * loss(labels.flip(0))
