"""Where and with what a run was made: environment.json, written when it starts and completed when it ends.

metrics.json travels with a release and says this in two lines; here stands all that a repetition could depend on.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cells.loading import LoadedCells
from leukoscope.models.release_files import write_json
from leukoscope.training.config import TrainingConfig

ENVIRONMENT = "environment.json"


def write_environment(
    out: Path, accelerator: Accelerator, config: TrainingConfig, data: LoadedCells, *, resumed: bool = False
) -> None:
    """Write environment.json into the run folder; called by every process, written by the main one.

    Args:
        resumed: the run goes on after an interruption; what it ran on before is kept under "earlier".
    """
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    if not accelerator.is_main_process:
        return
    path = out / ENVIRONMENT
    before = _read(path) if resumed else {}
    now = {
        "notice": RESEARCH_NOTICE,
        "started": _now(),
        "command": config.command(),
        "data": {"name": data.info.name, "fingerprint": data.fingerprint},
        "leukoscope": {"version": __version__, **_checkout()},
        "compute": {
            "device": str(accelerator.device),
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
        },
        "machine": machine(),
        "python": platform.python_version(),
        "packages": {d.metadata["Name"]: d.version for d in sorted(distributions(), key=lambda d: d.metadata["Name"])},
    }
    write_json(path, now | ({"earlier": [*before.pop("earlier", []), before]} if before else {}), exact=True)


def complete_environment(out: Path, accelerator: Accelerator, seconds: float, *, batch_size: int) -> None:
    """Add when the run ended, how long it took and the most memory it held; called by every process.

    Args:
        seconds: of wall time since it started, or went on.
        batch_size: cells that a process took at a time: fewer than asked for where a GPU was too small for them.
    """
    memory = accelerator.gather(torch.tensor([peak_memory()], dtype=torch.int64, device=accelerator.device))
    if not accelerator.is_main_process:
        return
    process, gpu = memory.T.tolist()
    peaks: dict[str, Any] = {"process_bytes": process}
    if accelerator.device.type == "cuda":
        peaks["gpu_bytes"] = gpu
    path = out / ENVIRONMENT
    batch = {"cells": batch_size, "batches_a_step": accelerator.gradient_accumulation_steps}
    ended = {"finished": _now(), "wall_seconds": seconds, "batch": batch, "peak_memory": peaks}
    write_json(path, _read(path) | ended, exact=True)


def peak_memory() -> tuple[int, int]:
    """The most bytes this process ever held in main memory, and PyTorch on its GPU since the run began (else 0)."""
    import psutil

    if sys.platform == "win32":
        resident = psutil.Process().memory_info().peak_wset
    else:
        import resource

        # Linux counts in KiB, macOS in bytes.
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return resident, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def machine() -> dict[str, Any]:
    """System, processor, main memory and GPUs; sizes in bytes."""
    import psutil

    gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def hardware() -> str:
    """What a run computes on, in a few words for the card."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions of what decides a run's figures, for metrics.json."""
    packages = ("torch", "timm", "transformers", "datasets", "accelerate", "evaluate", "scikit-learn")
    return {"leukoscope": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _checkout() -> dict[str, Any]:
    """The commit that the code is of, and whether files of it were changed since; {} for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return {}
    try:
        commit, changes = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "src")))
    except (OSError, subprocess.SubprocessError):
        # No git on this machine, or a folder it does not trust.
        return {}
    return {"commit": commit, "changed_since": bool(changes)}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
