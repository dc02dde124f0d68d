"""Intervals must cover what they promise, tell subjects from cells, and agree with the plain definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import (
    bootstrap_metrics,
    bootstrap_subjects,
    cell_intervals,
    point_metrics,
    subject_intervals,
)
from leukoscope.evaluation.metrics import BY_SUBJECT
from leukoscope.evaluation.predictions import CellPredictions
from predicted import clustered


def width(interval: dict[str, float]) -> float:
    return interval["high"] - interval["low"]


def test_point_metrics_are_those_of_scikit_learn() -> None:
    from sklearn import metrics as sk

    classes = 3
    predictions = clustered(classes=classes)
    truth, said = predictions.references, predictions.predicted
    metrics = point_metrics(predictions)
    expected = {
        "accuracy": sk.accuracy_score(truth, said),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
        "f1_weighted": sk.f1_score(truth, said, average="weighted"),
        "f1_macro": sk.f1_score(truth, said, average="macro"),
        "recall_B": sk.recall_score(truth, said, average=None)[1],
        "auroc": np.mean([sk.roc_auc_score(truth == k, predictions.probabilities[:, k]) for k in range(classes)]),
    }
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key


def test_subjects_are_ranked_by_their_mean_logit() -> None:
    from sklearn.metrics import roc_auc_score

    predictions = clustered(subjects=8, cells=5)
    logits = np.log(predictions.probabilities[:, 0] / predictions.probabilities[:, 1])
    subjects = np.asarray(predictions.subjects)
    means = [logits[subjects == one].mean() for one in np.unique(subjects)]
    classes = [predictions.references[subjects == one][0] for one in np.unique(subjects)]
    expected = roc_auc_score(np.asarray(classes) == 0, means)
    assert point_metrics(predictions)["subject_auroc"] == pytest.approx(expected, abs=1e-12)


def test_each_draw_has_the_metrics_of_what_it_drew_by_cell_and_by_subject() -> None:
    from sklearn import metrics as sk

    predictions = clustered(subjects=4, cells=9)
    predictions = predictions.take([row for row in range(72) if row % 9 < 9 - int(predictions.subjects[row][1:])])
    # Coarse scores tie often, across classes too.
    positive = np.round(predictions.probabilities[:, 0], 1)
    predictions = replace(predictions, probabilities=np.stack([positive, 1 - positive], axis=1))
    boot = bootstrap_subjects(predictions, samples=5, seed=1)
    metrics, truth, said = bootstrap_metrics(predictions, boot), predictions.references, predictions.predicted
    for draw, counts in enumerate(boot.counts):
        times = counts[boot.unit_of_cell]
        for suffix, weights in (("", times), ("_by_subject", times * predictions.subject_weights)):
            expected = {
                "auroc": sk.roc_auc_score(truth == 0, positive, sample_weight=weights),
                "accuracy": sk.accuracy_score(truth, said, sample_weight=weights),
                "f1_macro": sk.f1_score(truth, said, average="macro", sample_weight=weights),
            }
            for key, value in expected.items():
                assert metrics[f"{key}{suffix}"][draw] == pytest.approx(value, abs=1e-12), key


def test_subjects_are_drawn_whole_and_within_their_class() -> None:
    predictions = clustered(subjects=6, cells=5)
    boot = bootstrap_subjects(predictions, samples=200)
    for k in (0, 1):
        assert (boot.counts[:, boot.classes == k].sum(axis=1) == 6).all()
    assert boot.counts.std(axis=0).min() > 0, "every subject is drawn sometimes and left out sometimes"
    weights = np.concatenate(list(boot.chunks()))[:, boot.unit_of_cell]
    for unit in range(12):
        own = weights[:, boot.unit_of_cell == unit]
        assert (own == own[:, :1]).all(), "all cells of a subject go with it"


def test_naive_intervals_are_narrower_where_a_subject_s_cells_agree_and_a_seed_draws_the_same_again() -> None:
    by_subject, by_cell = subject_intervals(clustered()), cell_intervals(clustered())
    assert by_subject == subject_intervals(clustered())
    assert by_subject != subject_intervals(clustered(), seed=1)
    recalls = {"recall_A_by_subject", "recall_B_by_subject"}
    assert set(by_subject) - set(by_cell) == {"subject_auroc", *BY_SUBJECT, *recalls}
    for key in by_cell:
        assert width(by_subject[key]) > 2 * width(by_cell[key]), key


def test_both_intervals_agree_where_every_cell_is_a_subject_of_its_own() -> None:
    predictions = clustered(subjects=400, cells=1)
    by_subject, by_cell = subject_intervals(predictions), cell_intervals(predictions)
    for key in by_cell:
        assert width(by_subject[key]) == pytest.approx(width(by_cell[key]), rel=0.15), key


def test_nominal_95_percent_intervals_cover_95_percent() -> None:
    """2,000 simulated studies: each subject has a rate of its own, its cells are right at that rate."""
    rng = np.random.default_rng(0)
    studies, subjects = 2000, 80
    cells = rng.permutation(np.linspace(10, 150, subjects).astype(int))
    rates = rng.beta(np.where(np.arange(subjects) % 2, 9, 4), 1.5, size=(studies, subjects)).T
    right = rng.binomial(cells[:, None], rates)
    owner = np.repeat(np.arange(subjects), cells)
    # A subject's cells enter as its mean: only their sums count.
    per_cell = (right / cells[:, None])[owner]
    predictions = CellPredictions(
        tuple(map(str, range(len(owner)))), tuple(map(str, owner)), owner % 2, np.eye(2)[owner % 2], ("A", "B")
    )
    boot = bootstrap_subjects(predictions, samples=1000)
    drawn = boot.sums(per_cell) / boot.sums(np.ones(len(owner)))[:, None]
    truth = np.average(np.where(np.arange(subjects) % 2, 9 / 10.5, 4 / 5.5), weights=cells)
    intervals = [boot.interval(drawn[:, study]) for study in range(studies)]
    covered = np.mean([interval["low"] <= truth <= interval["high"] for interval in intervals])
    assert 0.93 <= covered <= 0.97, covered


def test_few_subjects_widen_the_interval_beyond_plain_percentiles() -> None:
    boot = bootstrap_subjects(clustered(subjects=6), samples=10)
    values = np.linspace(0, 1, 2001)
    interval = boot.interval(values)
    assert interval["low"] < 0.01 and interval["high"] > 0.99, "plain percentiles would give 0.025 and 0.975"
    many = bootstrap_subjects(clustered(subjects=400, cells=1), samples=10).interval(values)
    assert many["low"] == pytest.approx(0.025, abs=2e-3) and many["high"] == pytest.approx(0.975, abs=2e-3)


def test_recall_widens_by_the_subjects_of_its_own_class() -> None:
    predictions = clustered(subjects=200, cells=2)
    few = [int(subject[1:]) < 8 for subject in predictions.subjects]
    predictions = predictions.take(np.flatnonzero((predictions.references == 1) | few))
    boot, values = bootstrap_subjects(predictions, samples=10), np.linspace(0, 1, 2001)
    assert width(boot.interval(values, of_class=0)) > width(boot.interval(values, of_class=1))
    assert boot.interval(values) == boot.interval(values, of_class=0), "the smallest class decides for all"


def test_a_class_without_cells_leaves_the_auroc_out() -> None:
    predictions = clustered()
    alone = predictions.take(np.flatnonzero(predictions.references == 0))
    plain = {"accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "recall_A"}
    assert set(point_metrics(alone)) == {*plain, *(f"{key}_by_subject" for key in plain)}
    assert set(subject_intervals(alone)) == set(point_metrics(alone))


def test_a_subject_with_cells_of_two_classes_has_no_subject_auroc() -> None:
    predictions = clustered(subjects=6)
    mixed = replace(
        predictions, references=np.where(np.arange(360) % 30 == 0, 1 - predictions.references, predictions.references)
    )
    assert "subject_auroc" in subject_intervals(predictions)
    assert "subject_auroc" not in subject_intervals(mixed)


def test_cells_of_unknown_subject_are_refused_by_subject_only() -> None:
    predictions = clustered(subjects=3)
    unknown = replace(predictions, subjects=("", *predictions.subjects[1:]))
    with pytest.raises(LeukoscopeError, match="cell cell-0: its subject is not known; intervals by subject need"):
        subject_intervals(unknown)
    assert cell_intervals(unknown) == cell_intervals(predictions)


def test_a_class_that_one_subject_has_is_refused_and_one_that_many_have_is_not() -> None:
    with pytest.raises(LeukoscopeError, match="class A: a single subject has it; intervals by subject need two"):
        bootstrap_subjects(clustered(subjects=1))
    predictions = clustered(subjects=6)
    subjects, first = np.asarray(predictions.subjects), predictions.subjects[0]
    in_first = np.where((subjects == first) & (np.arange(len(subjects)) % 5 == 0), 1, 0)
    with pytest.raises(LeukoscopeError, match="class B: a single subject has it; intervals by subject need two"):
        bootstrap_subjects(replace(predictions, references=in_first))
    mostly_in_first = np.where(subjects == first, 1, np.arange(len(subjects)) % 5 == 0).astype(int)
    found = subject_intervals(replace(predictions, references=mostly_in_first))
    assert found["recall_B"]["low"] < found["recall_B"]["high"]


def test_where_subjects_are_known_cells_that_are_resampled_have_no_auroc_at_equal_size() -> None:
    predictions = replace(clustered(subjects=4), areas=np.random.default_rng(0).uniform(size=240))
    assert "auroc_equal_size" in subject_intervals(predictions)
    assert "auroc_equal_size" not in cell_intervals(predictions), "it weighs subjects"
    unknown = replace(predictions, subjects=("",) * 240)
    assert "auroc_equal_size" in cell_intervals(unknown)
