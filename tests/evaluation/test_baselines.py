"""A planted shortcut is found by its own feature, and by no other; without one the baselines know nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leukoscope.evaluation.baselines import (
    ALL_TOGETHER,
    TRIVIAL_FEATURES,
    is_torn,
    shortcut_metrics,
    shortcut_predictions,
    size_only_out_of_fold,
    size_only_predictions,
    trivial_features,
)
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.synthetic import Background, draw_cell
from predicted import two_class

CELLS = 48
ROWS = np.arange(CELLS)
FOLDS = [(np.delete(ROWS, ROWS[k::3]), ROWS[k::3]) for k in range(3)]
CLASSES = ROWS // 3 % 2
TRUTH = CellPredictions(tuple(map(str, ROWS)), ("",) * CELLS, CLASSES, np.zeros((CELLS, 2)), ("ALL", "HEM"))


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """Fields of one class each, whose named class is unrelated to them."""
    return np.stack([draw_cell("ALL", cell=k, size=112, background="smear").image for k in range(CELLS)])


def balanced(cells: np.ndarray, background: Background = "smear") -> dict[str, float]:
    of_cells = [trivial_features(cell, background) for cell in cells]
    features = {name: np.stack([of_cell[name] for of_cell in of_cells]) for name in of_cells[0]}
    metrics = shortcut_metrics(features, FOLDS, TRUTH)
    return {name: figure["balanced_accuracy"] for name, figure in metrics.items()}


def test_without_a_shortcut_the_baselines_are_near_chance(fields: np.ndarray) -> None:
    found = balanced(fields)
    assert list(found) == ["mean colour", "background", "corner", ALL_TOGETHER]
    assert set(found) <= set(TRIVIAL_FEATURES)
    assert max(found.values()) < 0.75


def test_a_background_colour_and_a_scale_bar_are_found(fields: np.ndarray) -> None:
    tinted = fields.copy()
    tinted[CLASSES == 1, ..., 2] = np.maximum(tinted[CLASSES == 1, ..., 2].astype(int) - 25, 0)
    found = balanced(tinted)
    assert found["background"] > 0.95 and found["corner"] < 0.75
    marked = fields.copy()
    marked[CLASSES == 1, 104:108, 98:110] = 0
    found = balanced(marked)
    assert found["corner"] > 0.95 and found["background"] < 0.75


def test_the_size_of_a_cell_on_black_is_found_and_the_background_left_out() -> None:
    cells = np.zeros((CELLS, 64, 64, 3), np.uint8)
    for cell, (row, large) in zip(cells, enumerate(CLASSES), strict=True):
        side = 20 + 12 * large + row % 5
        cell[10 : 10 + side, 10 : 10 + side] = 120
    found = balanced(cells, "black")
    assert list(found) == ["size", "outline", "mean colour", ALL_TOGETHER]
    assert found["size"] == 1 and found["mean colour"] == pytest.approx(0.5)
    empty = trivial_features(np.zeros((32, 32, 3), np.uint8), "black")
    assert all(np.isfinite(values).all() for values in empty.values())


def test_the_outline_of_a_cell_on_black_is_found_and_a_torn_one_is_told_apart() -> None:
    cells = np.zeros((CELLS, 64, 64, 3), np.uint8)
    y, x = np.mgrid[-32:32, -32:32]
    for cell, (row, ragged) in zip(cells, enumerate(CLASSES), strict=True):
        radius = 20 + row % 3 + 4 * ragged * np.cos(9 * np.arctan2(y, x))
        cell[np.hypot(y, x) < radius] = 120
    assert balanced(cells, "black")["outline"] == 1
    two = np.zeros((64, 64, 3), np.uint8)
    two[5:30, 5:30] = two[35:60, 35:60] = 120
    assert is_torn(two) and not is_torn(cells[0]) and not is_torn(np.zeros_like(two))


def test_predictions_cover_the_tested_cells_and_a_class_never_seen_gets_nothing() -> None:
    references = np.asarray([0, 0, 1, 1, 2])
    truth = CellPredictions(tuple("abcde"), ("s",) * 5, references, np.zeros((5, 3)), ("x", "y", "z"))
    train, test = np.asarray([0, 1, 2, 3]), np.asarray([4, 0])
    predictions = shortcut_predictions(np.asarray([[0.0], [0.1], [1.0], [1.1], [9.0]]), [(train, test)], truth)
    assert predictions.cell_ids == ("e", "a")
    assert (predictions.probabilities[:, 2] == 0).all()
    assert predictions.probabilities.sum(axis=1) == pytest.approx(1)
    assert predictions.predicted.tolist() == [1, 0]


# The baseline that only knows the size


def test_size_alone_separates_large_from_small() -> None:
    dice = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    areas = np.where(labels == 0, 0.35, 0.15) * dice.uniform(0.9, 1.1, 80)
    like = two_class([0, 1, 0], [0.5, 0.5, 0.5], ["a", "b", "a"])
    predictions = size_only_predictions(areas, labels, np.array([0.34, 0.16, 0.36]), like)
    assert predictions.predicted.tolist() == [0, 1, 0]
    assert (predictions.cell_ids, predictions.subjects, predictions.label_names) == (
        like.cell_ids,
        like.subjects,
        like.label_names,
    )
    assert np.allclose(predictions.probabilities.sum(axis=1), 1)
    reversed_ = size_only_predictions(areas, 1 - labels, np.array([0.34, 0.16, 0.36]), like)
    assert reversed_.predicted.tolist() == [1, 0, 1], "it learns which class is larger, it does not assume it"


def test_size_alone_predicts_each_fold_from_the_areas_of_the_others() -> None:
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(60) % 3 > 0).astype(int)
    areas = rng.uniform(0.1, 0.3, 60) + 0.1 * classes
    like = replace(two_class(classes.tolist(), [0.5] * 60), areas=areas, folds=np.arange(60) // 20)
    found = size_only_out_of_fold(like)
    assert found is not None and sorted(found.cell_ids) == sorted(like.cell_ids)
    for fold in range(3):
        mine, others = np.flatnonzero(like.folds == fold), np.flatnonzero(like.folds != fold)
        expected = size_only_predictions(areas[others], classes[others], areas[mine], like.take(mine))
        of_fold = found.take(np.flatnonzero(found.folds == fold))
        assert of_fold.cell_ids == expected.cell_ids
        assert np.array_equal(of_fold.probabilities, expected.probabilities)
        shares = np.bincount(classes[others]) / len(others)
        even = size_only_out_of_fold(like, np.array([0.5, 0.5]))
        assert even is not None
        odds = np.divide(*even.take(np.flatnonzero(even.folds == fold)).probabilities.T)
        assert odds == pytest.approx(np.divide(*(expected.probabilities / shares).T)), "it trained on other shares"
    assert size_only_out_of_fold(replace(like, areas=None)) is size_only_out_of_fold(replace(like, folds=None)) is None
