"""Which epoch is kept, and the moment to stop, as tables."""

from __future__ import annotations

from leukoscope.training.trainer import Selection, best_epoch, gain


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
