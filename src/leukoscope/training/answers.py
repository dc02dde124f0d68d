"""What a network in training answers for cells it is asked about: each cell once, however many processes share them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import nn

from leukoscope.cells.cache import FramedCells
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.training.inputs import Inputs, Rows, answering_loader, read


def logits_of(
    learner: nn.Module,
    inputs: Inputs,
    rows: Rows,
    accelerator: Accelerator,
    batch_size: int,
    *,
    between: Callable[[int], None] = lambda number: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask a network, in evaluation mode and float32.

    Args:
        learner: on the device of `accelerator`.
        inputs: what feeds it.
        batch_size: cells a batch of one process.
        between: called after each batch with its number.

    Returns:
        (N, K) logits and the (N,) rows of the cells they belong to, on the CPU.
    """
    device = accelerator.device
    learner.eval()
    gathered: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (items, _, row) in enumerate(read(answering_loader(rows, batch_size, accelerator))):
        # In float32, as releases answer: figures of half precision would be another network's.
        with torch.inference_mode(), accelerator.autocast(AutocastKwargs(enabled=False)):
            logits = learner(inputs.for_answers(items.to(device, non_blocking=True))).float()
        gathered.append(accelerator.gather_for_metrics((logits, row.to(device, non_blocking=True))))
        between(number)
    logits, seen = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
    assert sorted(seen.tolist()) == sorted(rows.rows.tolist()), "a cell was answered twice or not at all"
    return logits, seen


def predictions_of(cells: FramedCells, logits: torch.Tensor, rows: torch.Tensor) -> CellPredictions:
    """Logits as probabilities of named cells."""
    ids = {row: cell for cell, row in cells.row_of.items()}
    return CellPredictions(
        tuple(ids[row] for row in rows.tolist()),
        tuple(cells.subjects[row] for row in rows.tolist()),
        cells.labels[rows.numpy()],
        logits.softmax(dim=1).numpy(),
        cells.data.info.labels,
        cells.areas_of(rows.numpy()),
        cells.hashes_of(rows.numpy()),
    )
