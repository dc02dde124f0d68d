"""What metrics.json says of a run: its data, its training, its machine, and the metrics of its test side.

Every block of metrics states what it estimates; a number without that misleads.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.evaluation.baselines import size_only_predictions
from leukoscope.evaluation.metrics import versions
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.metrics import SCHEMA_VERSION, Evaluation, Metrics
from leukoscope.training.config import TrainingConfig
from leukoscope.training.identity import RunIdentity


def describe_run(
    config: TrainingConfig,
    identity: RunIdentity,
    cells: FramedCells,
    split: Split,
    start_weights: str,
    device: torch.device,
) -> Metrics:
    """The part of metrics.json that describes data and training, without evaluations.

    Args:
        start_weights: what the network started from, for the card.
        device: where it was trained.
    """
    data = cells.data
    labels = data.info.labels
    rows = cells.rows(split.train)
    subjects = {cells.subjects[row] for row in rows} - {""}
    shares = np.bincount(cells.labels[rows], minlength=len(labels)) / len(rows)
    content = {
        "schema_version": SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "recipe": identity.recipe,
        "labels": list(labels),
        "positive_label": data.info.positive_label,
        "data": {
            **data.info.about(),
            "fingerprint": data.fingerprint,
            "cells": sum(len(rows) for rows in data.cells.values()),
            "unreadable": len(data.unreadable),
            "count_differences": list(data.count_differences),
        },
        "training": {
            "cells": len(split.train),
            "subjects": sorted(subjects),
            "class_frequencies": dict(zip(labels, shares.tolist(), strict=True)),
            "split": split.detail,
            "start_weights": start_weights,
            "start_weights_sha256": identity.start,
            "seed": config.run.seed,
            "command": config.command(),
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hardware": hardware(device),
            "versions": versions(),
        },
        "evaluations": [],
    }
    return Metrics.model_validate(content)


def hardware(device: torch.device) -> str:
    """GPU or CPU of a run, for the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"


def evaluation_block(metrics: Mapping[str, Any], split: Split, size_only: Mapping[str, Any] | None) -> Evaluation:
    """One block of metrics.json: what the metrics estimate, on which split, and the metrics themselves.

    `size_only` are the metrics of predictions from cell size alone.
    """
    block = {
        "name": "test",
        "estimates": "these weights",
        "split": {**split.about(), "train_cells": len(split.train), "notes": list(split.notes)},
        "thresholds_fitted_on": None,
        "metrics": metrics,
    }
    if size_only:
        block["size_only_baseline"] = size_only
    return Evaluation.model_validate(block)


def size_only_baseline(cells: FramedCells, split: Split, tested: CellPredictions) -> CellPredictions | None:
    """Predict the tested cells from their size alone; None for cells that are not cut out on black."""
    train = cells.rows(split.train)
    areas = cells.areas_of(train)
    if areas is None or tested.areas is None:
        return None
    return size_only_predictions(areas, cells.labels[train], tested.areas, tested)


def result_lines(evaluation: Evaluation) -> str:
    """A test's metrics for the terminal, with the size-only baseline below it."""
    metrics = evaluation.metrics
    auroc = "–" if metrics.auroc is None else f"{metrics.auroc:.3f}"
    lines = [
        f"test ({metrics.cells:,} cells): accuracy {metrics.accuracy:.3f}, balanced accuracy "
        f"{metrics.balanced_accuracy:.3f}, weighted F1 {metrics.f1_weighted:.3f}, AUROC {auroc}"
    ]
    baseline = evaluation.size_only_baseline
    if baseline:
        lines.append(
            f"  cell size alone: balanced accuracy {baseline.balanced_accuracy:.3f}, "
            f"weighted F1 {baseline.f1_weighted:.3f}"
        )
    lines.append(f"  {RESEARCH_NOTICE}")
    return "\n".join(lines)
