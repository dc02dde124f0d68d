"""A run's figures in a tracker, through Accelerate: trackio or TensorBoard, both on this machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import TrainingConfig

_PROJECT = "leukoscope"
# With one of these set, trackio sends figures to a server or to the Hub.
_SENDS_AWAY = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID")


def check_tracking(config: TrainingConfig) -> None:
    """Refuse before anything is loaded what would end the run when its tracker starts.

    Raises:
        LeukoscopeError: the tracker is not installed, or set to send figures to a server.
    """
    tracker = config.tracker
    if tracker is None:
        return
    # Accelerate itself would only warn, and track nothing.
    if tracker not in map(str, get_available_trackers()):
        raise LeukoscopeError(
            f"--report_to {tracker}: {tracker} is not installed; `pip install {tracker}`, or train without "
            "--with_tracking"
        )
    for name in _SENDS_AWAY if tracker == "trackio" else ():
        if os.environ.get(name):
            raise LeukoscopeError(
                f"{name}={os.environ[name]}: trackio would send the run's figures there; unset it, tracking here stays "
                "on this machine"
            )


def start_tracking(accelerator: Accelerator, config: TrainingConfig, recipe: Recipe) -> None:
    """Start the run's tracker; does nothing without --with_tracking.

    TensorBoard's files lie in the run folder's `tensorboard`, trackio's where `trackio show` looks for them.

    Args:
        accelerator: made with `log_with=config.tracker` and `project_dir=config.output_dir`.
    """
    if config.tracker is None:
        return
    # A run that goes on after an interruption tells its earlier epochs again: its line is a new one, and whole.
    trackio = {"name": "/".join(config.output_dir.resolve().parts[-2:]), "resume": "never", "embed": False}
    with _hub_unasked():
        accelerator.init_trackers(
            # To TensorBoard this is the folder.
            _PROJECT if config.tracker == "trackio" else config.tracker,
            config=_flat({**config.as_dict(), "resolved_recipe": asdict(recipe)}),
            init_kwargs={"trackio": trackio},
        )


def track_epoch(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
    """Show a row of summary.csv; does nothing without a tracker."""
    accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=row["epoch"])


def track_result(accelerator: Accelerator, block: Mapping[str, Any], *, epoch: int) -> None:
    """Show a block of test figures at the epoch whose weights they are of; does nothing without a tracker."""
    names = ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc")
    figures = block["metrics"]
    accelerator.log({f"test_{k}": figures[k] for k in names if figures[k] is not None}, step=epoch)


def finish_tracking(accelerator: Accelerator) -> None:
    """Write out what the tracker still holds; does nothing without one."""
    # `end_training` would also close the processes' connection, which the next run of a protocol needs.
    for tracker in accelerator.trackers:
        tracker.finish()


@contextmanager
def _hub_unasked() -> Iterator[None]:
    """trackio asks the Hub for the name behind one's token when a run starts; a run that stays here has none."""
    from huggingface_hub import constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings under dotted names, in the plain values that trackers take; what is unset is left out."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value if isinstance(value, bool | int | float) else str(value)
    return flat
