"""Answers whose truth is known: cells drawn from given probabilities, dealt out to subjects of one class each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from leukoscope.evaluation.predictions import CellPredictions

LABELS = ("ALL", "HEM", "OTHER")


@pytest.fixture(scope="session")
def calibrated_cells() -> Callable[..., CellPredictions]:
    """Makes N predictions that are calibrated by construction, or too sharp by a known temperature.

    Cells of a class are dealt to its subjects at random, so subjects are exchangeable and none differs from another.
    """

    def make(
        cells: int = 4000, *, classes: int = 2, subjects: int = 20, too_sharp: float = 1.0, seed: int = 0
    ) -> CellPredictions:
        rng = np.random.default_rng(seed)
        logits = 1.5 * rng.standard_normal((cells, classes))
        true = _softmax(logits)
        references = (rng.random((cells, 1)) > true.cumsum(axis=1)[:, :-1]).sum(axis=1)
        dealt = rng.integers(subjects, size=cells)
        names = LABELS[:classes]
        return CellPredictions(
            tuple(f"cell-{i}" for i in range(cells)),
            tuple(f"{names[k]}{s}" for k, s in zip(references, dealt, strict=True)),
            references,
            _softmax(logits * too_sharp),
            names,
        )

    return make


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
