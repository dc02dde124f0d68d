"""What is fitted presumes that neither of two classes is more frequent."""

from __future__ import annotations

import numpy as np
import pytest

from leukoscope.evaluation.predictions import CellPredictions


def _cells(blast: list[float], references: list[int], subjects: list[str], folds: list[int]) -> CellPredictions:
    p = np.asarray(blast)
    ids = tuple(map(str, range(len(p))))
    truth = np.asarray(references)
    both = np.stack([p, 1 - p], axis=1)
    return CellPredictions(ids, tuple(subjects), truth, both, ("ALL", "HEM"), folds=np.asarray(folds))


def test_a_fit_weighs_subjects_evenly_and_two_classes_evenly() -> None:
    cells = _cells([0.5] * 7, [0, 0, 0, 0, 0, 1, 1], ["a", "a", "a", "b", "c", "d", "d"], [0] * 7)

    weights = cells.fit_weights

    assert weights[:5].sum() == pytest.approx(weights[5:].sum())
    assert weights[:3].sum() == pytest.approx(weights[3])
    assert weights.sum() == pytest.approx(4), "subjects"
