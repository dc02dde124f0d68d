"""Flags that cannot be meant, refused at once: otherwise they would be found after a whole data set is decoded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.cells.splits import STRATEGIES

TRACKERS = ("trackio", "tensorboard")
_LEAST = {
    "max_train_samples": 1,
    "max_eval_samples": 1,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "early_stopping_patience": 1,
    "save_total_limit": 1,
    "seed": 0,
}


def check_choices(flags: Mapping[str, Any]) -> None:
    """Look at every flag that has wrong values.

    Args:
        flags: their values by name, all of them.

    Raises:
        LeukoscopeError: names the flag, its value and what to give instead.
    """
    if flags["split"] not in STRATEGIES:
        raise LeukoscopeError(f"--split {flags['split']}: unknown; choose one of {', '.join(STRATEGIES)}")
    check_one_start(flags)
    _check_tracker(flags["report_to"], flags["with_tracking"])
    steps = flags["checkpointing_steps"]
    if steps not in ("epoch", "no") and not (steps.isdecimal() and int(steps) > 0):
        raise LeukoscopeError(f"--checkpointing_steps {steps}: give epoch, no, or a number of steps from 1")
    _check_numbers(flags)
    for flag in ("split_file", "pretrained_weights"):
        if flags[flag] and not Path(flags[flag]).is_file():
            raise LeukoscopeError(f"--{flag} {flags[flag]}: no such file; check the path")
    if flags["torch_compile"]:
        _require_compiler()


def check_one_start(flags: Mapping[str, Any]) -> None:
    """Refuse flags that name two starts."""
    given = [f"--{flag}" for flag in ("from_scratch", "pretrained_weights", "init_from") if flags[flag]]
    if len(given) > 1:
        raise LeukoscopeError(f"{' and '.join(given)} exclude each other; leave one out")


def _check_tracker(report_to: str | None, with_tracking: bool) -> None:
    if report_to not in (None, *TRACKERS):
        raise LeukoscopeError(f"--report_to {report_to}: unknown; choose {' or '.join(TRACKERS)}")
    if report_to and not with_tracking:
        raise LeukoscopeError(f"--report_to {report_to}: has no effect alone; add --with_tracking")


def _check_numbers(flags: Mapping[str, Any]) -> None:
    for flag in ("learning_rate", "head_learning_rate"):
        if flags[flag] is not None and not flags[flag] > 0:
            raise LeukoscopeError(f"--{flag} {flags[flag]}: give a number above 0")
    if flags["weight_decay"] is not None and not flags["weight_decay"] >= 0:
        raise LeukoscopeError(f"--weight_decay {flags['weight_decay']}: give 0 or more")
    if flags["seed"] >= 2**32:
        raise LeukoscopeError(f"--seed {flags['seed']}: give a number below {2**32}")
    for flag, least in _LEAST.items():
        if flags[flag] is not None and flags[flag] < least:
            raise LeukoscopeError(f"--{flag} {flags[flag]}: give {least} or more")


def _require_compiler() -> None:
    """Compiled networks are C++ on a CPU, and on a GPU started by it."""
    named = os.environ.get("CXX")
    if not any(map(shutil.which, [named] if named else ["g++", "clang++", "cl"])):
        raise LeukoscopeError(
            f"--torch_compile: no C++ compiler ({named or 'g++'}) on this machine; install one "
            "(Debian, Ubuntu: apt install g++), name it in CXX, or leave the flag out"
        )
