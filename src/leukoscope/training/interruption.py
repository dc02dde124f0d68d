"""Ending a training early but in order: SIGTERM and Ctrl-C become a checkpoint at the next step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from leukoscope.training.config import TrainingConfig

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Processes must agree on the step they stop after, and asking each other costs a wait for the accelerator.
_STEPS_BETWEEN_AGREEMENTS = 16


class Interrupted(SystemExit):
    """Training ended early, as asked, after a checkpoint was written; left alone, the process exits with 0."""

    def __init__(self) -> None:
        super().__init__(0)


class StopRequest:
    """Notes SIGTERM and Ctrl-C while it is entered; a second one acts as it always does.

    Signals reach the main thread alone; anywhere else nothing is noted.
    """

    def __init__(self) -> None:
        self.noted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def agreed(self, accelerator: Accelerator, step: int) -> bool:
        """True where any process was asked to stop; every process gets the same answer at the same step."""
        if accelerator.num_processes == 1:
            return self.noted
        if step % _STEPS_BETWEEN_AGREEMENTS:
            return False
        import torch

        asked = torch.tensor([float(self.noted)], device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum").item())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def how_to_go_on(config: TrainingConfig) -> str:
    """The command that goes on with this run; on several machines its words, because each has a command of its own."""
    if os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE")):
        return "the same command on each machine, plus --resume_from_checkpoint latest"
    return config.resume_command(launch_words())


def launch_words() -> list[str]:
    """How this process was started, up to the script's name: by python, or with as many others by their launcher."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # What `accelerate launch` always sets for what it starts; and torchrun.
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        processes = os.environ.get("WORLD_SIZE", "1")
        return ["accelerate", "launch", *["--cpu"] * on_cpu, "--num_processes", processes, sys.argv[0]]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = os.environ["LOCAL_WORLD_SIZE"]
        return [*["ACCELERATE_USE_CPU=true"] * on_cpu, "torchrun", "--nproc_per_node", processes, sys.argv[0]]
    return ["python", sys.argv[0]]
