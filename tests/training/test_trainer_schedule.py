"""The learning rate's course, as tables."""

from __future__ import annotations

import pytest
import torch

from leukoscope.models.recipes import Recipe, Schedule
from leukoscope.training.trainer import make_scheduler


def _rates(recipe: Recipe, steps: int) -> list[list[float]]:
    groups = [{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule, rates = make_scheduler(optimizer, recipe, steps), []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1]),
        ("polynomial", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.8536, 0.5, 0.1464]),
        ("cosine_with_restarts", [0, 0.5, 1, 0.8536, 0.5, 0.1464]),
        ("constant", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_every_schedule_of_hugging_faces_script_warms_up_and_falls(schedule: Schedule, shares: list[float]) -> None:
    rates = _rates(Recipe("r", "test_resnet", "", schedule=schedule, warmup_steps=2), 6)
    assert [first for first, _ in rates] == pytest.approx([0.1 * share for share in shares], abs=1e-4)
    assert [second for _, second in rates] == pytest.approx([0.4 * share for share in shares], abs=1e-4)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert _rates(Recipe("r", "test_resnet", "", warmup_steps=0), 10)[0] == pytest.approx([0.1, 0.4])


def test_the_warm_up_is_a_share_of_all_steps_unless_its_steps_are_given() -> None:
    rates = _rates(Recipe("r", "test_resnet", "", warmup_share=0.2), 20)
    assert [first for first, _ in rates].index(max(first for first, _ in rates)) == 4
