"""What a run folder holds: which run it is, epochs, predictions and metrics; and the logging to a tracker.

Flags, recipe, start weights and cells, files by their content, decide whether a checkpoint is resumed, a finished run
folder is replaced, and a run of a protocol is done. Every block of metrics states what it estimates; a number without
that misleads.
"""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from filelock import FileLock, Timeout
from torch import nn
from transformers.utils import flatten_dict

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.data.pixel_cache import FramedCells, require_space
from leukoscope.data.splits import Split
from leukoscope.evaluation.baselines import size_only_predictions
from leukoscope.evaluation.metrics import POOLED, headline, measure, versions
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import content_hashes, disk_errors, first_line, write_atomic
from leukoscope.models.build import start_file
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import SCHEMA_VERSION, WEIGHTS
from leukoscope.progress import note
from leukoscope.training.config import NOT_THE_RESULT, TrainingConfig

ARGS = "args.yaml"
KEPT = 2  # checkpoints; the second is for when the last is damaged
# Tables and logs; measured on runs of several thousand cells, generously rounded.
_BESIDES_WEIGHTS = 50_000_000
# What these name is compared by content: the cells, their labels and subjects, their split, and the start weights.
_BY_CONTENT = (
    *("train_dir", "labels", "subject_pattern", "image_column_name", "label_column_name", "subject_column"),
    *("split", "split_file", "pretrained_weights", "model_name_or_path"),
)
# It changes no weight: a finished run is kept where it is named afterwards.
_NOT_COMPARED = (*NOT_THE_RESULT, *_BY_CONTENT, "positive_label")
_WORDS = {
    "start": "the start weights' sha256",
    "data": "the data's fingerprint",
    "split": "the split's fingerprint",
    "precision": "--mixed_precision",
    "processes": "processes (accelerate launch --num_processes)",
}


@dataclass(frozen=True)
class RunIdentity:
    """What determines the result of a run. What is None is not known yet, and not compared.

    Attributes:
        start: sha256 of the start weights, or of the weights of the release that is fine-tuned; "" for random ones.
        data, split: their fingerprints.
    """

    flags: dict[str, Any]
    recipe: dict[str, Any]
    start: str | None = None
    data: str | None = None
    split: str | None = None
    precision: str | None = None
    processes: int | None = None

    @classmethod
    def of(cls, config: TrainingConfig, recipe: Recipe) -> RunIdentity:
        """The identity of a run before its cells are loaded; start weights on the Hub are downloaded."""
        start = None
        with suppress(LeukoscopeError):  # a training that needs them says why they cannot be had
            if name := config.model.model_name_or_path:
                file: Path | None = find_release(name, KNOWN_CELLS)[0] / WEIGHTS
            else:
                file = start_file(recipe, config.start_weights)
            start = "" if file is None else content_hashes([file])[str(file)] or None
        return cls(plain(config.as_dict()), plain(asdict(recipe)), start)

    def save(self, run_folder: Path) -> None:
        """Write args.yaml: the flags as given, the resolved recipe, and what else is known."""
        known = {name: getattr(self, name) for name in _WORDS if getattr(self, name) is not None}
        content = {"flags": self.flags, "resolved_recipe": self.recipe, "identity": known, "leukoscope": __version__}
        write_atomic(run_folder / ARGS, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def differences(self, now: RunIdentity) -> list[str]:
        """What differs in the run that is to begin, as "name: the value here"; [] where it is the same run."""
        different = []
        for prefix, made, wanted in (("", self.flags, now.flags), ("recipe's ", self.recipe, now.recipe)):
            names = [name for name in {**wanted, **made} if name not in _NOT_COMPARED]
            different += [f"{prefix}{name}: {made.get(name)}" for name in names if made.get(name) != wanted.get(name)]
        for name, words in _WORDS.items():
            then, here = getattr(self, name), getattr(now, name)
            if None not in (then, here) and then != here:
                different.append(f"{words}: {str(then)[:12] or 'none'}")
        return different

    def differences_in(self, run_folder: Path) -> list[str]:
        """What differs in the finished run of a folder, as `differences` says it."""
        if not (args := run_folder / ARGS).is_file():
            return [f"no {ARGS} names them"]
        made = yaml.safe_load(args.read_text(encoding="utf-8"))
        return RunIdentity(made["flags"], made["resolved_recipe"], **made.get("identity", {})).differences(self)


def plain(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    return json.loads(json.dumps(value))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes' trainings out of a run folder within the block; the system drops the lock of a dead one.

    Raises:
        LeukoscopeError: another process trains there.
    """
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LeukoscopeError(
            f"--output_dir {out}: another training is writing there; wait until it has ended, or give another folder"
        ) from None
    except (NotImplementedError, OSError) as error:
        note(f"--output_dir {out}: cannot be locked ({first_line(error)}); start no other training into it")
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; it stays, and locks nothing
            (out / ".lock").unlink(missing_ok=True)
        lock.release()


def require_disk_space(out: Path, network: nn.Module, recipe: Recipe) -> None:
    """Refuse a disk that cannot hold the release and the checkpoints, before an earlier run is replaced."""
    weights = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
    trained = 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    # The weights, those of the best epoch, perhaps their average; AdamW's two numbers for each trained parameter.
    checkpoint = (3 if recipe.ema_decay else 2) * weights + 2 * trained
    # Those that lie there are resumed from, or removed first.
    kept = sum(file.stat().st_size for file in (out / "checkpoints").rglob("*") if file.is_file())
    needed = max(0, weights + (KEPT + 1) * checkpoint + _BESIDES_WEIGHTS - kept)
    with disk_errors(f"--output_dir {out}: no space for the results", "give a folder on another disk", needed=needed):
        require_space(out, needed)


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
        "estimates": "these weights",
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
