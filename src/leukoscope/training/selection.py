"""Which epoch is kept, and when training stops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Selection:
    """Which epoch is kept, from 1 (0: none), by which column of summary.csv, and why training stops ("" for not)."""

    epoch: int
    watched: str = ""
    stop_reason: str = ""


def gain(row: Mapping[str, Any], column: str) -> float:
    """A column of summary.csv with the sign that makes more better; a loss counts negative."""
    return -row[column] if column.endswith("_loss") else row[column]


def best_epoch(rows: Sequence[Mapping[str, Any]], selected_by: str, patience: int) -> Selection:
    """Select the best epoch by one validation metric: of equal scores the longer-trained one.

    Where a metric by subject is missing in `rows` of summary.csv, its pooled form takes its place. Training should stop
    `patience` epochs after the last better score.
    """
    best_score = -math.inf
    best = 0
    last_gain = 0
    watched = selected_by
    for row in rows:
        watched = selected_by if selected_by in row else selected_by.removesuffix("_by_subject")
        score = gain(row, watched)
        if score > best_score:
            last_gain = row["epoch"]
        if score >= best_score:
            best_score = score
            best = row["epoch"]
    if len(rows) - last_gain >= patience:
        return Selection(best, watched, f"no better validation score for {patience} epochs")
    return Selection(best, watched)
