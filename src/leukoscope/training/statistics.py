"""BatchNorm statistics taken anew from training cells, for networks whose running ones lag behind their weights.

Running statistics remember earlier weights. Trained from random weights on cells cut out on black, whose first layers
hardly vary on most of a picture, they can lie so far off that a network that learns well answers one class for every
cell in evaluation mode.
"""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leukoscope.training.inputs import Inputs


def settle_statistics(
    learner: nn.Module, inputs: Inputs, rows: np.ndarray, accelerator: Accelerator, batch_size: int
) -> None:
    """Replace the running statistics of every BatchNorm that learns by their mean over batches of training cells.

    "PreciseBN" of Wu & Johnson (2021, arXiv:2105.07576). Frozen ones keep theirs. Every process sees the same cells,
    so that all keep the same statistics.

    Args:
        learner: in training mode, but for what is frozen; left in evaluation mode.
        rows: (N,) of the cells, which are shown without augmentation.
        batch_size: cells at a time; a last batch that is not full is left out, unless it is the only one.
    """
    learning = [m for m in learner.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in learning]
    learner.eval()
    for norm in learning:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean over batches
        norm.train()
    for first in range(0, max(1, len(rows) - batch_size + 1), batch_size):
        items = inputs.items(rows[first : first + batch_size]).to(accelerator.device)
        with torch.no_grad(), accelerator.autocast():
            learner(inputs.for_answers(items))
    for norm, momentum in zip(learning, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
