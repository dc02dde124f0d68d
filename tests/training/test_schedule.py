"""The learning rate's course and the moment to stop, as tables."""

from __future__ import annotations

import pytest

from leukoscope.training.schedule import BestEpoch, cosine_with_warmup


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


def test_best_epoch_keeps_the_last_of_equal_scores() -> None:
    best = BestEpoch(patience=2)
    assert [best.update(epoch, score) for epoch, score in enumerate((0.5, 0.7, 0.7, 0.6))] == [True, True, True, False]
    assert (best.epoch, best.score) == (2, 0.7)


def test_equal_scores_are_no_gain_to_wait_for() -> None:
    best = BestEpoch(patience=2)
    stops = [best.update(epoch, 0.5) and best.should_stop(epoch) for epoch in range(4)]
    assert stops == [False, False, True, True]


def test_stops_after_as_many_epochs_without_gain_as_it_has_patience() -> None:
    best = BestEpoch(patience=2)
    stops = []
    for epoch, score in enumerate((0.5, 0.6, 0.4, 0.65, 0.6, 0.6)):
        best.update(epoch, score)
        stops.append(best.should_stop(epoch))
    assert stops == [False, False, False, False, False, True]


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    best = BestEpoch(patience=3)
    assert not best.update(0, float("nan"))
    assert best.update(1, 0.1)
