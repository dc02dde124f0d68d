"""Predictions made up for tests: two classes by the probability of the first, and subjects that differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import Decision, Prediction
from leukoscope.models.metrics import Metrics
from leukoscope.models.release import ReleaseInfo


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


class Bright:
    """Says how bright a picture is; no network, but a predictor in every other respect."""

    def __init__(self, labels: tuple[str, ...] = ("ALL", "HEM"), outcomes: Iterator[str] | None = None) -> None:
        self.labels, self.outcomes = labels, outcomes or itertools.repeat(labels[0])
        self.release = ReleaseInfo(labels, Preprocessing(32, 1.0), Metrics(), "house/bright", "abc")

    def __call__(self, pictures: list[Image.Image], *, batch_size: int) -> list[Prediction]:
        bright = [np.asarray(picture).mean() / 255 for picture in pictures]
        shares = [dict(zip(self.labels, (one, 1 - one), strict=True)) for one in bright]
        decided = [Decision(next(self.outcomes)) for _ in pictures]
        return [
            Prediction(decision, share, "", "house/bright", "abc", 0.0, None, (0, 0, 1, 1))
            for decision, share in zip(decided, shares, strict=True)
        ]


def classifier(labels: tuple[str, ...] = ("ALL", "HEM"), outcomes: Iterator[str] | None = None) -> Any:
    return Bright(labels, outcomes)
