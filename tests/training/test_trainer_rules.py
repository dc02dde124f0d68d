"""Which parameters the optimiser moves and decays, how fast, which epoch is kept, and when training stops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe, Schedule
from leukoscope.models.weights import head_parameters
from leukoscope.training.trainer import Selection, best_epoch, gain, make_scheduler, parameter_groups

RECIPE = Recipe(
    name="small",
    architecture="densenet121",
    base_model="",
    image_size=32,
    learning_rate=0.01,
    head_learning_rate=0.1,
    weight_decay=0.5,
    block_config=(1, 1),
    pooled_norm=True,
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(RECIPE, 2)


def test_head_and_backbone_learn_at_their_own_rates(network: nn.Module) -> None:
    head = {id(p) for p in head_parameters(network)}
    rates = {id(p): group["lr"] for group in parameter_groups(network, RECIPE) for p in group["params"]}
    assert len(rates) == sum(1 for _ in network.parameters())
    assert {rate for p, rate in rates.items() if p in head} == {0.1}
    assert {rate for p, rate in rates.items() if p not in head} == {0.01}
    assert {id(p) for p in network.get_submodule("classifier.norm").parameters()} < head, (
        "its BatchNorm is as new as the last layer"
    )


def test_biases_and_norms_do_not_decay(network: nn.Module) -> None:
    decay = {id(p): group["weight_decay"] for group in parameter_groups(network, RECIPE) for p in group["params"]}
    for parameter in network.parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.5)


def test_what_is_frozen_is_left_out(network: nn.Module) -> None:
    network.features.requires_grad_(False)
    try:
        moved = {id(p) for group in parameter_groups(network, RECIPE) for p in group["params"]}
    finally:
        network.features.requires_grad_(True)
    assert moved == {id(p) for p in network.get_submodule("classifier").parameters()}


# The learning rate's course, as tables


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


# Which epoch is kept, and the moment to stop


def _selected(patience: int, *scores: float) -> list[Selection]:
    """What is selected after each epoch."""
    rows = [{"epoch": n + 1, "val_accuracy": score} for n, score in enumerate(scores)]
    return [best_epoch(rows[: n + 1], "val_accuracy", patience) for n in range(len(rows))]


def test_the_last_of_equal_scores_is_kept() -> None:
    assert [one.epoch for one in _selected(2, 0.5, 0.7, 0.7, 0.6)] == [1, 2, 3, 3]


def test_equal_scores_are_no_gain_to_wait_for() -> None:
    assert [bool(one.stop_reason) for one in _selected(2, 0.5, 0.5, 0.5, 0.5)] == [False, False, True, True]


def test_training_stops_after_as_many_epochs_without_gain_as_it_has_patience() -> None:
    selected = _selected(2, 0.5, 0.6, 0.4, 0.65, 0.6, 0.6)
    assert [one.stop_reason for one in selected] == [""] * 5 + ["no better validation score for 2 epochs"]


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    assert [one.epoch for one in _selected(3, float("nan"), 0.1, float("nan"))] == [0, 2, 2]


def test_a_metric_by_subject_gives_way_to_its_pooled_form() -> None:
    pooled = {"epoch": 1, "val_balanced_accuracy": 0.9}
    by_subject = pooled | {"val_balanced_accuracy_by_subject": 0.5}
    wanted = "val_balanced_accuracy_by_subject"
    assert best_epoch([pooled], wanted, 3).watched == "val_balanced_accuracy"
    assert best_epoch([by_subject], wanted, 3).watched == wanted


def test_a_loss_gains_by_falling() -> None:
    assert gain({"val_loss": 0.2}, "val_loss") > gain({"val_loss": 0.3}, "val_loss")
    assert gain({"val_accuracy": 0.3}, "val_accuracy") > gain({"val_accuracy": 0.2}, "val_accuracy")
