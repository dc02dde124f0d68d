"""Two models on the same cells: a difference must be seen where both intervals hide it, and other cells refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import point_metrics, subject_intervals
from leukoscope.evaluation.predictions import CellPredictions
from predicted import clustered
from research.paired import aligned, paired_difference


def test_pairing_sees_a_small_difference_that_both_intervals_hide() -> None:
    weaker = clustered()
    logits = np.log(weaker.probabilities)
    logits[np.arange(len(logits)), weaker.references] += 0.3
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    better = replace(weaker, probabilities=shares)
    found = paired_difference(better, weaker, samples=500)["accuracy"]
    assert found["difference"] == pytest.approx(found["a"] - found["b"])
    assert found["low"] > 0
    assert subject_intervals(better)["accuracy"]["low"] < found["b"]
    mirrored = paired_difference(weaker, better, samples=500)["accuracy"]
    assert mirrored["high"] < 0


def test_only_metrics_that_both_models_have_are_compared() -> None:
    """In a cross-validation with one subject a fold, no stratum of one size and fold holds two classes."""
    sizes = np.random.default_rng(0).uniform(size=240)
    alone = replace(clustered(subjects=4), areas=sizes)
    folded = replace(alone, folds=np.array([int(subject[1:]) for subject in alone.subjects]))
    assert "auroc_equal_size" in point_metrics(alone) and "auroc_equal_size" not in point_metrics(folded)
    forth, back = (paired_difference(*both, samples=20) for both in ((alone, folded), (folded, alone)))
    assert forth.keys() == back.keys() == point_metrics(folded).keys()


def test_order_of_cells_and_classes_does_not_matter_to_a_comparison() -> None:
    predictions = clustered(subjects=4)
    rows = np.random.default_rng(0).permutation(len(predictions.cell_ids))
    turned = CellPredictions(
        tuple(predictions.cell_ids[i] for i in rows),
        tuple(predictions.subjects[i] for i in rows),
        1 - predictions.references[rows],
        predictions.probabilities[rows][:, ::-1],
        ("B", "A"),
    )
    assert all(figure["difference"] == 0 for figure in paired_difference(predictions, turned, samples=50).values())


def test_a_comparison_on_other_cells_names_the_first_that_differs() -> None:
    predictions = clustered(subjects=4)
    short = predictions.take(range(len(predictions.cell_ids) - 1))
    last = predictions.cell_ids[-1]
    with pytest.raises(LeukoscopeError, match=f"cell {last} has no prediction of the second model; both must predict"):
        paired_difference(predictions, short)
    with pytest.raises(LeukoscopeError, match=f"cell {last} has no prediction of the first model; both must predict"):
        paired_difference(short, predictions)
    with pytest.raises(LeukoscopeError, match="one model predicts A, B, the other X, Y; compare models of the same"):
        paired_difference(predictions, replace(predictions, label_names=("X", "Y")))
    with pytest.raises(LeukoscopeError, match="cell cell-0 is labelled differently in the two sets of predictions"):
        paired_difference(predictions, replace(predictions, references=np.r_[1, predictions.references[1:]]))


def test_another_cross_validation_of_the_same_cells_keeps_its_own_folds() -> None:
    predictions = replace(clustered(subjects=4), folds=np.arange(240) % 2)
    rows = np.random.default_rng(1).permutation(240)
    other = aligned(replace(predictions, folds=1 - np.arange(240) % 2), predictions.take(rows))
    assert other.folds is not None
    assert other.folds.tolist() == (1 - rows % 2).tolist()
