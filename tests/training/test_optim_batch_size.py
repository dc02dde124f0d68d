"""A batch that does not fit is halved until it does, and the step stays as large."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from leukoscope import LeukoscopeError
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.optim import find_batch_size, try_step
from leukoscope.training.train import make_accelerator

RECIPE = Recipe(name="small", architecture="test_resnet", base_model="", image_size=32)


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator(TrainingConfig(run=RunArguments(mixed_precision="no")), RECIPE)


def _fits(accelerator: Accelerator, batch: int, room: int) -> tuple[int, list[int]]:
    tried: list[int] = []

    def attempt(cells: int) -> None:
        tried.append(cells)
        if cells > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    return find_batch_size(accelerator, replace(RECIPE, train_batch_size=batch), attempt), tried


@pytest.mark.parametrize(
    ("batch", "room", "tried"), [(32, 99, [32]), (32, 8, [32, 16, 8]), (30, 8, [30, 15, 6]), (7, 3, [7, 1])]
)
def test_parts_of_a_batch_make_one_step(accelerator: Accelerator, batch: int, room: int, tried: list[int]) -> None:
    assert _fits(accelerator, batch, room) == (tried[-1], tried)
    assert accelerator.gradient_accumulation_steps * tried[-1] == batch


def test_batches_that_add_up_already_add_up_further(
    accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator.gradient_accumulation_steps = 3
    _fits(accelerator, 32, 16)
    assert accelerator.gradient_accumulation_steps == 6
    assert "out of memory with 32 cells at a time: 2 batches of 16 make one step" in capsys.readouterr().out


def test_a_device_too_small_for_one_cell_is_refused(accelerator: Accelerator) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        _fits(accelerator, 4, 0)
    assert str(refused.value) == (
        "cpu: out of memory with one cell at a time; give a smaller --image_size (now 32) or free memory on the device"
    )


def test_other_errors_pass(accelerator: Accelerator) -> None:
    def attempt(cells: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        find_batch_size(accelerator, RECIPE, attempt)


def test_trying_a_step_changes_neither_the_network_nor_what_is_drawn_next(accelerator: Accelerator) -> None:
    network = build_network(RECIPE, 2)
    before, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    copy = try_step(accelerator, network, RECIPE, torch.randn(4, 3, 32, 32, generator=torch.Generator()))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in network.parameters())
    assert any(not torch.equal(v, before[k]) for k, v in copy.state_dict().items()), "a whole step was made"
