"""Probabilities move between class frequencies, and what is fitted presumes none of two classes."""

from __future__ import annotations

import numpy as np
import pytest

from leukoscope.evaluation.predictions import CellPredictions, frequencies_of_other_folds, with_frequencies


def _cells(blast: list[float], references: list[int], subjects: list[str], folds: list[int]) -> CellPredictions:
    p = np.asarray(blast)
    ids = tuple(map(str, range(len(p))))
    truth = np.asarray(references)
    both = np.stack([p, 1 - p], axis=1)
    return CellPredictions(ids, tuple(subjects), truth, both, ("ALL", "HEM"), folds=np.asarray(folds))


def test_a_probability_that_assumes_two_thirds_is_even_at_equal_frequencies() -> None:
    cells = _cells([2 / 3, 0.5], [0, 1], ["a", "b"], [0, 0])

    even = np.full(2, 1 / 2)
    shifted = with_frequencies(cells, np.array([2 / 3, 1 / 3]), even)
    back = with_frequencies(shifted, even, np.array([2 / 3, 1 / 3]))

    assert shifted.probabilities[:, 0] == pytest.approx([0.5, 1 / 3])
    assert back.probabilities == pytest.approx(cells.probabilities)


def test_each_fold_s_network_assumes_the_frequencies_of_the_other_folds() -> None:
    cells = _cells([0.5] * 6, [0, 0, 1, 0, 1, 1], ["a", "b", "c", "d", "e", "f"], [0, 0, 0, 1, 1, 1])

    assert frequencies_of_other_folds(cells)[:, 0] == pytest.approx([1 / 3] * 3 + [2 / 3] * 3)


def test_a_fit_weighs_subjects_evenly_and_two_classes_evenly() -> None:
    cells = _cells([0.5] * 7, [0, 0, 0, 0, 0, 1, 1], ["a", "a", "a", "b", "c", "d", "d"], [0] * 7)

    weights = cells.fit_weights

    assert weights[:5].sum() == pytest.approx(weights[5:].sum())
    assert weights[:3].sum() == pytest.approx(weights[3])
    assert weights.sum() == pytest.approx(4), "subjects"
