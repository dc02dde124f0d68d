"""What a run folder holds: epochs, predictions and metrics; and the logging to a tracker.

Every block of metrics states what it estimates; a number without that misleads.
"""

from __future__ import annotations

import csv
import errno
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import nn
from transformers.utils import flatten_dict

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells, require_space
from leukoscope.data.splits import Split
from leukoscope.evaluation.baselines import size_only_predictions
from leukoscope.evaluation.metrics import POOLED, headline, measure, versions
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import disk_errors
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import SCHEMA_VERSION
from leukoscope.progress import note
from leukoscope.training.config import TrainingConfig
from leukoscope.training.identity import RunIdentity

THESE_WEIGHTS = "these weights"
KEPT = 2  # checkpoints; the second is for when the last is damaged
# Tables and logs; measured on runs of several thousand cells, generously rounded.
_BESIDES_WEIGHTS = 50_000_000


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes' trainings out of a run folder within the block; the system drops the lock of a dead one.

    Raises:
        LeukoscopeError: another process trains there, or the lock cannot be written.
    """
    busy = LeukoscopeError(
        f"--output_dir {out}: another training is writing there; wait until it has ended, or give another folder"
    )
    path = out / ".lock"
    with disk_errors(f"--output_dir {out}: cannot be written", "give another folder"):
        file = path.open("a")
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                # Unlike `flock`, no process forked from this one holds it on: workers may outlive a killed training.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise busy from None
            note(f"--output_dir {out}: its disk knows no locks ({error.strerror}); start no other training into it")
        # A training that just ended removed the file that was opened here, and a third may lock a new one.
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise busy
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file; it stays, and locks nothing
                path.unlink()


def require_disk_space(out: Path, network: nn.Module, recipe: Recipe) -> None:
    """Raise `LeukoscopeError` where the run folder's disk has too little space for the release and the checkpoints."""
    # Those that lie there are resumed from, or removed first.
    kept = sum(file.stat().st_size for file in (out / "checkpoints").rglob("*") if file.is_file())
    needed = max(0, disk_space_needed(network, recipe) - kept)
    with disk_errors(f"--output_dir {out}: no space for the results", "give a folder on another disk", needed=needed):
        require_space(out, needed)


def disk_space_needed(network: nn.Module, recipe: Recipe) -> int:
    """Bytes that a run folder may come to hold: the release, and one checkpoint more than are kept."""
    weights = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
    trained = 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    # The weights, those of the best epoch, perhaps their average; AdamW's two numbers for each trained parameter.
    checkpoint = (3 if recipe.ema_decay else 2) * weights + 2 * trained
    return weights + (KEPT + 1) * checkpoint + _BESIDES_WEIGHTS


def evaluate_predictions(out: Path, predictions: CellPredictions, cells: FramedCells, split: Split) -> dict[str, Any]:
    """Write the predictions on the test side, and those of cell size alone, to the run folder; measure both."""
    predictions.save(out / "predictions.parquet")
    block = evaluation_block(predictions, split)
    if cells.data.info.background == "black":
        train = cells.rows(split.train)
        areas = cells.areas_of(train)
        assert areas is not None and predictions.areas is not None, "cells are cut out"
        baseline = size_only_predictions(areas, cells.labels[train], predictions.areas, predictions)
        baseline.save(out / "size_only_predictions.parquet")
        block["size_only_baseline"] = headline(measure(baseline))
    return block


def evaluation_block(predictions: CellPredictions, split: Split) -> dict[str, Any]:
    """One block of metrics.json: what it estimates, on which split, and the metrics."""
    return {
        "name": "test",
        "estimates": THESE_WEIGHTS,
        "split": {**split.about(), "train_cells": len(split.train), "notes": list(split.notes)},
        "thresholds_fitted_on": None,
        "metrics": measure(predictions),
    }


def describe_run(
    config: TrainingConfig, identity: RunIdentity, cells: FramedCells, split: Split, started: str, device: torch.device
) -> dict[str, Any]:
    """The part of metrics.json that describes data and training: on which `device`, and what it `started` from."""
    data, rows = cells.data, cells.rows(split.train)
    subjects = {cells.subjects[row] for row in rows} - {""}
    shares = np.bincount(cells.labels[rows], minlength=len(data.info.labels)) / len(rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "recipe": identity.recipe,
        "labels": list(data.info.labels),
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
            "class_frequencies": dict(zip(data.info.labels, shares.tolist(), strict=True)),
            "split": split.detail,
            "start_weights": started,
            "start_weights_sha256": identity.start,
            "seed": config.run.seed,
            "command": config.command(),
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hardware": hardware(device),
            "versions": versions(),
        },
        "evaluations": [],
    }


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one epoch to summary.csv; the first begins the file."""
    first = row["epoch"] == 1
    with path.open("w" if first else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if first:
            writer.writeheader()
        writer.writerow(row)


def result_lines(block: dict[str, Any]) -> str:
    """A block of metrics for the terminal, with the size-only baseline below it."""
    metrics = block["metrics"]
    auroc = "–" if metrics["auroc"] is None else f"{metrics['auroc']:.3f}"
    lines = [
        f"test ({metrics['cells']:,} cells): accuracy {metrics['accuracy']:.3f}, balanced accuracy "
        f"{metrics['balanced_accuracy']:.3f}, weighted F1 {metrics['f1_weighted']:.3f}, AUROC {auroc}"
    ]
    if baseline := block.get("size_only_baseline"):
        lines.append(
            f"  cell size alone: balanced accuracy {baseline['balanced_accuracy']:.3f}, "
            f"weighted F1 {baseline['f1_weighted']:.3f}"
        )
    return "\n".join([*lines, f"  {RESEARCH_NOTICE}"])


def hardware(device: torch.device) -> str:
    """GPU or CPU of a run, for the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"


def check_tracking(tracker: str | None) -> None:
    """Refuse a tracker that is not installed, before anything is loaded; Accelerate would only warn and track none."""
    if tracker is not None and tracker not in map(str, get_available_trackers()):
        raise LeukoscopeError(
            f"--report_to {tracker}: {tracker} is not installed; `pip install {tracker}`, or leave the flag out"
        )


def start_tracking(accelerator: Accelerator, config: TrainingConfig, recipe: Recipe) -> None:
    """Start the tracker of --report_to, which `make_accelerator` was given; does nothing without the flag."""
    settings = flatten_dict({**config.public(), "resolved_recipe": asdict(recipe)})
    # TensorBoard takes plain values only.
    plain_ones = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items() if v is not None}
    accelerator.init_trackers("leukoscope", config=plain_ones)


def track_epoch(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
    """Log a row of summary.csv; does nothing without a tracker."""
    accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=row["epoch"])


def track_result(accelerator: Accelerator, block: Mapping[str, Any], *, epochs_run: int, kept_epoch: int) -> None:
    """Log the test metrics and the epoch whose weights were kept; does nothing without a tracker."""
    metrics = {f"test_{k}": block["metrics"][k] for k in POOLED if block["metrics"][k] is not None}
    # At the last epoch: wandb leaves out what is logged at an earlier step than the one before.
    accelerator.log({**metrics, "kept_epoch": kept_epoch}, step=epochs_run)


def finish_tracking(accelerator: Accelerator) -> None:
    """Write out what the tracker still buffers; does nothing without one."""
    # `end_training` would also close the processes' connection, which the next run of a protocol needs.
    for tracker in accelerator.trackers:
        tracker.finish()
