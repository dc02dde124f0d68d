"""Predictions made up for tests: two classes by the probability of the first, and subjects that differ."""

from __future__ import annotations

import numpy as np

from leukoscope.evaluation.predictions import CellPredictions


def two_class(
    references: list[int], p_all: list[float], subjects: list[str] | None = None, start: int = 0
) -> CellPredictions:
    """Two-class predictions given by the probability of ALL (class 0)."""
    blast, ids = np.asarray(p_all, np.float64), tuple(f"cell-{start + i}" for i in range(len(references)))
    probabilities = np.stack([blast, 1 - blast], axis=1)
    return CellPredictions(
        ids, tuple(subjects or [""] * len(ids)), np.asarray(references), probabilities, ("ALL", "HEM")
    )


def clustered(
    subjects: int = 12, cells: int = 30, classes: int = 2, spread: float = 1.5, seed: int = 0
) -> CellPredictions:
    """`subjects` a class, each with a difficulty of its own that all its cells share."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(subjects * classes), cells)
    references = owner % classes
    logits = rng.normal(size=(len(owner), classes))
    logits[np.arange(len(owner)), references] += 1 + spread * rng.normal(size=subjects * classes)[owner]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = tuple(f"cell-{i}" for i in range(len(owner)))
    return CellPredictions(ids, tuple(f"s{o}" for o in owner), references, shares, tuple("ABCD"[:classes]))
