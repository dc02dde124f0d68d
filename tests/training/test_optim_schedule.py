"""The learning rate's course and the moment to stop, as tables."""

from __future__ import annotations

import json

import pytest
import torch

from leukoscope.models.recipes import Recipe, Schedule
from leukoscope.training.optim import BestEpoch, EpochOutcome, cosine_with_warmup, gain, set_rates


def test_rate_rises_linearly_then_falls_along_half_a_cosine() -> None:
    shares = [cosine_with_warmup(step, total_steps=12, warmup_share=1 / 3) for step in range(12)]
    assert shares[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    # cos² of 0, 1/8, 1/4, 3/8 … of a half turn
    assert shares[4:] == pytest.approx([1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806], abs=1e-5)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_rate_stays_within_0_and_1_never_jumps_up_and_reaches_its_peak(total: int, warmup: float) -> None:
    shares = [cosine_with_warmup(step, total, warmup) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == 1
    peak = shares.index(1)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)


def test_rate_is_nought_at_and_beyond_the_end() -> None:
    assert cosine_with_warmup(100, 100, 0.1) == pytest.approx(0)
    assert cosine_with_warmup(150, 100, 0.1) == pytest.approx(0)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1]),
        ("polynomial", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
        ("cosine_with_restarts", [0, 0.5, 1, 0.8536, 0.5, 0.1464]),
        ("constant", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_every_schedule_of_hugging_faces_script_warms_up_and_falls(schedule: Schedule, shares: list[float]) -> None:
    recipe = Recipe("r", "test_resnet", "", schedule=schedule, warmup_steps=2, learning_rate=0.1)
    groups = [{"params": [torch.zeros(1)], "initial_lr": 0.1}, {"params": [torch.zeros(1)], "initial_lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    rates = [set_rates(optimizer, recipe, step, 6) for step in range(6)]
    assert rates == pytest.approx([0.1 * share for share in shares], abs=1e-4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(4 * rates[-1])


def test_no_warm_up_starts_at_the_peak() -> None:
    recipe = Recipe("r", "test_resnet", "", warmup_steps=0, learning_rate=0.1)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "initial_lr": 0.1}], lr=0.1)
    assert set_rates(optimizer, recipe, 0, 10) == pytest.approx(0.1)


def _judged(best: BestEpoch, *scores: float) -> list[EpochOutcome]:
    return [best.update({"epoch": n + 1, "val_accuracy": score}) for n, score in enumerate(scores)]


def test_best_epoch_keeps_the_last_of_equal_scores() -> None:
    best = BestEpoch(2, "val_accuracy")
    assert [o.improved for o in _judged(best, 0.5, 0.7, 0.7, 0.6)] == [True, True, True, False]
    assert (best.epoch, best.score) == (2, 0.7)


def test_equal_scores_are_no_gain_to_wait_for() -> None:
    outcomes = _judged(BestEpoch(2, "val_accuracy"), 0.5, 0.5, 0.5, 0.5)
    assert [bool(o.stop_reason) for o in outcomes] == [False, False, True, True]


def test_stops_after_as_many_epochs_without_gain_as_it_has_patience() -> None:
    outcomes = _judged(BestEpoch(2, "val_accuracy"), 0.5, 0.6, 0.4, 0.65, 0.6, 0.6)
    assert [bool(o.stop_reason) for o in outcomes] == [False, False, False, False, False, True]


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    assert [o.improved for o in _judged(BestEpoch(3, "val_accuracy"), float("nan"), 0.1)] == [False, True]


def test_a_metric_by_subject_gives_way_to_its_pooled_form() -> None:
    best = BestEpoch(3, "val_balanced_accuracy_by_subject")
    pooled = {"epoch": 1, "val_balanced_accuracy": 0.9}
    assert best.update(pooled).watched == "val_balanced_accuracy"
    assert best.update(pooled | {"val_balanced_accuracy_by_subject": 0.5}).watched == best.selected_by


def test_a_loss_gains_by_falling() -> None:
    assert gain({"val_loss": 0.2}, "val_loss") > gain({"val_loss": 0.3}, "val_loss")
    assert gain({"val_accuracy": 0.3}, "val_accuracy") > gain({"val_accuracy": 0.2}, "val_accuracy")


def test_the_best_epoch_is_remembered_through_a_checkpoint() -> None:
    columns = [{"epoch": n + 1, "val_loss": loss} for n, loss in enumerate([0.5, 0.4, 0.4, 0.6, 0.6])]
    whole = BestEpoch(3, "val_loss")
    outcomes = [whole.update(row) for row in columns]
    assert [o.improved for o in outcomes] == [True, True, True, False, False]
    assert [o.stop_reason for o in outcomes] == [""] * 4 + ["no better validation score for 3 epochs"]
    for stop in range(6):
        before = BestEpoch(3, "val_loss")
        seen = [before.update(row) for row in columns[:stop]]
        after = BestEpoch(3, "val_loss")
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert seen + [after.update(row) for row in columns[stop:]] == outcomes
