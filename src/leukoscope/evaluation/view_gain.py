"""What eight views of a cell gain over one: a cross-validation's networks asked both ways, each on unseen cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.cells.cache import FramedCells
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.intervals import paired_difference
from leukoscope.evaluation.metrics import CellPredictions, headline, measure, pooled
from leukoscope.inference.backends import open_backend
from leukoscope.inference.probabilities import softmax
from leukoscope.inference.views import VIEWS, disagreement, eight_views
from leukoscope.models.release_files import read_release

# Of cells; the network gets eight pictures for each.
BATCH = 8


def view_gain(
    folds: Sequence[tuple[Path, CellPredictions]],
    cells: FramedCells,
    *,
    sample: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """The "views" block of metrics.json.

    Args:
        folds: of each fold the release folder of its network, and what that answered for its test cells.
        cells: those cells, framed for the networks.
        sample: of all the folds' cells together, how many are asked about, drawn at random; all where there are fewer.
        device: a torch device such as "cpu" or "cuda".

    Returns:
        figures of one view and of the average of eight, their `difference` (eight less one) on the same drawn subjects,
        and of the cells on whose views the network agrees, and of the others, how many are answered right.

    Raises:
        LeukoscopeError: a damaged release, or too few subjects of a class for intervals.
    """
    ends = np.cumsum([0, *(len(answered.cell_ids) for _, answered in folds)])
    asked = np.sort(np.random.default_rng(seed).permutation(ends[-1])[:sample])
    alone, together, apart = [], [], []
    for (folder, of_fold), first, last in zip(folds, ends, ends[1:], strict=False):
        answered = of_fold.take(asked[(first <= asked) & (asked < last)] - first)
        each = _probabilities_of_views(folder, cells, cells.rows(answered.cell_ids), device)
        alone.append(replace(answered, probabilities=each[:, 0]))
        together.append(replace(answered, probabilities=each.mean(axis=1)))
        apart.append(disagreement(each))
    one, eight, share_apart = pooled(alone), pooled(together), np.concatenate(apart)
    right, agreed = eight.predictions == eight.references, share_apart == 0
    return {
        "estimates": OUT_OF_FOLD,
        "definition": "four quarter turns of a cell, each also mirrored",
        "views": VIEWS,
        "network_passes_per_cell": VIEWS,
        "cells": len(right),
        "one_view": headline(measure(one)),
        "all_views": headline(measure(eight)),
        "difference": paired_difference(eight, one),
        "mean_disagreement": float(share_apart.mean()),
        "agreeing_cells": _answered_right(right[agreed]),
        "disagreeing_cells": _answered_right(right[~agreed]),
    }


def _probabilities_of_views(folder: Path, cells: FramedCells, rows: np.ndarray, device: str) -> np.ndarray:
    """What the network in `folder` says of N cells, (N, 8, K): the upright view first."""
    backend = open_backend(read_release(folder), device=device)
    parts = []
    for first in range(0, len(rows), BATCH):
        pixels = np.asarray(cells.pixels[rows[first : first + BATCH]])
        logits = backend(eight_views(pixels)).logits
        parts.append(softmax(logits).reshape(len(pixels), VIEWS, -1))
    return np.concatenate(parts)


def _answered_right(right: np.ndarray) -> dict[str, Any]:
    return {"cells": len(right), "accuracy": float(right.mean()) if len(right) else None}
