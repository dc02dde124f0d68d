"""Logs a run's metrics to the tracker of --report_to; every function does nothing without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from transformers.utils import flatten_dict

from leukoscope import ConfigError
from leukoscope.evaluation.metrics import POOLED_METRICS
from leukoscope.models.metrics import Evaluation
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import TrainingConfig


def check_tracking(tracker: str | None) -> None:
    """Refuse a tracker that is not installed, before anything is loaded; Accelerate would only warn and track none."""
    if tracker is not None and tracker not in map(str, get_available_trackers()):
        raise ConfigError(
            f"--report_to {tracker}: {tracker} is not installed; `pip install {tracker}`, or leave the flag out"
        )


def start_tracking(accelerator: Accelerator, config: TrainingConfig, recipe: Recipe) -> None:
    """Start the tracker of --report_to, which `make_accelerator` was given."""
    settings = flatten_dict({**config.public(), "resolved_recipe": asdict(recipe)})
    # TensorBoard takes numbers, switches and texts.
    texts = {name: str(setting) for name, setting in settings.items() if isinstance(setting, str | list | tuple)}
    numbers = {name: setting for name, setting in settings.items() if isinstance(setting, bool | int | float)}
    accelerator.init_trackers("leukoscope", config={**texts, **numbers})


def track_epoch(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
    """Log a row of summary.csv."""
    columns = {name: figure for name, figure in row.items() if name != "epoch"}
    accelerator.log(columns, step=row["epoch"])


def track_test(accelerator: Accelerator, evaluation: Evaluation, *, epochs_run: int, kept_epoch: int) -> None:
    """Log the test metrics and the epoch whose weights were kept."""
    figures = {name: evaluation.metrics.figure(name) for name in POOLED_METRICS}
    metrics = {f"test_{name}": figure for name, figure in figures.items() if figure is not None}
    # At the last epoch: wandb leaves out what is logged at an earlier step than the one before.
    accelerator.log({**metrics, "kept_epoch": kept_epoch}, step=epochs_run)


def finish_tracking(accelerator: Accelerator) -> None:
    """Write out what the tracker still buffers."""
    # `end_training` would also close the processes' connection, which the next run of a protocol needs.
    for tracker in accelerator.trackers:
        tracker.finish()
