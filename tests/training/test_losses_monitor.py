"""A loss that is no number names its batch, soon, once, and the same on every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import leukoscope
from leukoscope import LeukoscopeError
from leukoscope.training.losses import LossMonitor

CELLS = {row: f"cell-{row}" for row in range(1000)}


@pytest.fixture
def monitor(tmp_path: Path) -> LossMonitor:
    return LossMonitor(Accelerator(cpu=True), CELLS, tmp_path, every=4)


def _feed(monitor: LossMonitor, *losses: float, size: int = 5) -> None:
    for batch, loss in enumerate(losses):
        monitor.note(1, batch, torch.tensor(loss), torch.arange(size) + 10 * batch)


def test_the_first_bad_batch_is_named_with_its_cells(monitor: LossMonitor, tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError) as stopped:
        _feed(monitor, 0.5, 0.4, 0.3, 0.2, 0.1, float("nan"), float("nan"), 0.1)
    assert str(stopped.value) == (
        f"epoch 2, batch 6: the loss is nan for the cells cell-50, cell-51, cell-52 and 2 more (all in "
        f"{tmp_path / 'bad_batch.json'}); look at them, or lower --learning_rate, and start again"
    )
    found = json.loads((tmp_path / "bad_batch.json").read_text())
    assert found["cells"] == [f"cell-{row}" for row in range(50, 55)]
    assert (found["epoch"], found["batch"], found["loss"]) == (2, 6, "nan")


def test_losses_are_checked_every_so_many_batches_and_when_asked(monitor: LossMonitor) -> None:
    _feed(monitor, 0.5, float("inf"), 0.3)
    with pytest.raises(LeukoscopeError, match="^epoch 2, batch 2: the loss is inf for the cells cell-10, cell-11, ce"):
        monitor.check(1, 2)
    monitor.check(1, 2)


def test_numbers_pass_and_nothing_is_written(monitor: LossMonitor, tmp_path: Path) -> None:
    _feed(monitor, *[0.5] * 9)
    monitor.check(1, 8)
    monitor.check(1, 8)
    assert list(tmp_path.iterdir()) == []


def test_a_small_batch_is_named_whole(monitor: LossMonitor) -> None:
    _feed(monitor, float("-inf"), size=2)
    with pytest.raises(LeukoscopeError, match="the loss is -inf for the cells cell-0, cell-1 \\(all in "):
        monitor.check(1, 0)


def test_a_loss_is_not_waited_for_until_it_is_checked(monitor: LossMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor's value, which a GPU would be waited for, happens once in four batches."""
    waits: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(torch.Tensor, name)

        def read(*args: Any, **options: Any) -> Any:
            waits.append(name)
            return real(*args, **options)

        return read

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, noted(name))
    _feed(monitor, 0.5, 0.5, 0.5)
    assert not waits
    _feed(monitor, 0.5)
    assert len(waits) == 1


TWO = """
import sys, torch
from pathlib import Path
from accelerate import Accelerator
from leukoscope import LeukoscopeError
from leukoscope.training.losses import LossMonitor

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
monitor = LossMonitor(accelerator, {row: f"cell-{row}" for row in range(100)}, Path(sys.argv[1]), every=3)
try:
    for batch in range(3):
        loss = float("nan") if (rank, batch) == (1, 1) else 0.5
        monitor.note(0, batch, torch.tensor(loss), torch.arange(2) + 10 * batch + 50 * rank)
except LeukoscopeError as error:
    Path(sys.argv[1], f"said-{rank}").write_text(str(error))
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_stop_together_when_one_of_them_diverges(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    source = str(Path(leukoscope.__file__).parents[1])
    subprocess.run(
        [sys.executable, *launch, str(tmp_path / "two.py"), str(tmp_path)],
        check=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )
    said = {(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    assert said.pop().startswith("epoch 1, batch 2: the loss is nan for the cells cell-60, cell-61 (all in ")
    assert json.loads((tmp_path / "bad_batch.json").read_text())["cells"] == ["cell-60", "cell-61"]
