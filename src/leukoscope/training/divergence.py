"""A loss that is no number is found soon, and the batch it came from is named, without waiting for the GPU each step.

Reading a loss makes the processor wait for the device. Here the losses stay on the device and are read together, every
so many batches; all processes read at the same one, so all of them stop, and with one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.models.release_files import write_json

BAD_BATCH = "bad_batch.json"
_NAMED = 3  # cells in the message; the file has them all


@dataclass
class LossWatch:
    """Remembers the losses since they were last read, and the rows of the cells they are of.

    Attributes:
        cell_of: row of the cells → cell id.
        out: run folder, for the list of a bad batch.
        every: batches between two readings.
    """

    accelerator: Accelerator
    cell_of: Mapping[int, str]
    out: Path
    every: int = 50
    _unread: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, init=False)

    def note(self, epoch: int, batch: int, loss: torch.Tensor, rows: torch.Tensor) -> None:
        """Remember a batch, and read all since the last reading when it is time.

        Args:
            epoch, batch: counted from 0; the batch within the epoch.
            loss: () on any device.
            rows: (B,) of its cells on any device, as many on each process.

        Raises:
            LeukoscopeError: as `read`.
        """
        self._unread.append((loss.detach(), rows))
        if len(self._unread) >= self.every:
            self.read(epoch, batch)

    def read(self, epoch: int, batch: int) -> None:
        """Read what is unread: at an epoch's end, and before a checkpoint is written, which it would spoil.

        Args:
            epoch, batch: of the last batch noted, counted from 0.

        Raises:
            LeukoscopeError: a loss that is no number, with its batch.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        bad = ~torch.stack([loss for loss, _ in unread]).isfinite()
        # (P,) the first bad batch of each process; their number where there is none.
        first = torch.where(bad.any(), bad.int().argmax(), len(unread))
        firsts: list[int] = self.accelerator.gather(first.reshape(1).to(self.accelerator.device)).tolist()
        if (at := min(firsts)) < len(unread):
            self._stop(epoch, batch - len(unread) + 1 + at, *unread[at], process=firsts.index(at))

    def _stop(self, epoch: int, batch: int, loss: torch.Tensor, rows: torch.Tensor, *, process: int) -> None:
        """End every process with the same message; `loss` and `rows` are each one's own."""
        device, processes = self.accelerator.device, self.accelerator.num_processes
        value = self.accelerator.gather(loss.to(device).reshape(1)).tolist()[process]
        gathered = self.accelerator.gather(rows.to(device)).reshape(processes, -1)
        cells = [self.cell_of[row] for row in gathered[process].tolist()]
        if self.accelerator.is_main_process:
            found = {"notice": RESEARCH_NOTICE, "epoch": epoch + 1, "batch": batch + 1, "loss": str(value)}
            write_json(self.out / BAD_BATCH, found | {"cells": cells})
        named = ", ".join(cells[:_NAMED]) + (f" and {len(cells) - _NAMED} more" if len(cells) > _NAMED else "")
        raise LeukoscopeError(
            f"epoch {epoch + 1}, batch {batch + 1}: the loss is {value} for the cells {named} (all in "
            f"{self.out / BAD_BATCH}); look at them, or lower --learning_rate, and start again"
        )
