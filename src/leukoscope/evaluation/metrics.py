"""What a set of answers is worth: on cells, on each subject, and beside a baseline that only sees size.

`CellPredictions` is the one table every judgement is computed from: exactly one row a cell. The figures come from a
local `evaluate.Metric` over scikit-learn, so that they compose with the rest of the 🤗 evaluate world and need no
network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.cells.images import BACKGROUND_LEVEL

if TYPE_CHECKING:
    import evaluate


@dataclass(frozen=True)
class CellPredictions:
    """One answer a cell.

    Attributes:
        cell_ids: (N,) unique ids.
        subjects: (N,) subject of each cell, or its block of neighbouring images where subjects are not published;
            "" where neither is known.
        references: (N,) int, the true class.
        probabilities: (N, K) float, rows sum to 1.
        label_names: K class names in output order.
    """

    cell_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    references: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.cell_ids)) != len(self.cell_ids):
            twice = next(c for c in self.cell_ids if self.cell_ids.count(c) > 1)
            raise LeukoscopeError(
                f"predictions: cell {twice} is answered more than once; one prediction a cell is required"
            )
        if not len(self.cell_ids) == len(self.subjects) == len(self.references) == len(self.probabilities):
            raise LeukoscopeError("predictions: ids, subjects, references and probabilities differ in length")

    @property
    def predictions(self) -> np.ndarray:
        """(N,) int, the most probable class."""
        return self.probabilities.argmax(axis=1)

    def save(self, path: Path) -> None:
        """Write one Parquet row a cell; no pixels."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = np.asarray(self.label_names)
        columns = {"cell_id": self.cell_ids, "subject": self.subjects, "label": names[self.references]}
        columns |= {f"p_{name}": self.probabilities[:, k].astype(np.float32) for k, name in enumerate(self.label_names)}
        aside = path.with_suffix(".tmp")
        pq.write_table(pa.table(columns), aside)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> CellPredictions:
        """Read what `save` wrote."""
        import pyarrow.parquet as pq

        columns = pq.read_table(path).to_pydict()
        names = tuple(c.removeprefix("p_") for c in columns if c.startswith("p_"))
        return cls(
            tuple(columns["cell_id"]),
            tuple(columns["subject"]),
            np.asarray([names.index(label) for label in columns["label"]]),
            np.stack([np.asarray(columns[f"p_{name}"]) for name in names], axis=1),
            names,
        )


def pooled(parts: Sequence[CellPredictions]) -> CellPredictions:
    """Join predictions of disjoint test sets, as cross-validation leaves them."""
    return CellPredictions(
        tuple(c for p in parts for c in p.cell_ids),
        tuple(s for p in parts for s in p.subjects),
        np.concatenate([p.references for p in parts]),
        np.concatenate([p.probabilities for p in parts]),
        parts[0].label_names,
    )


def cell_metric(label_names: Sequence[str]) -> evaluate.Metric:
    """A local `evaluate.Metric` for K classes: predictions are (N, K) probabilities, references (N,) classes."""
    import datasets
    import evaluate

    class CellMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            row = datasets.Features(
                predictions=datasets.List(datasets.Value("float64")), references=datasets.Value("int64")
            )
            return evaluate.MetricInfo(
                description="Classification of single cells", citation="", features=row, inputs_description=""
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
            return _figures(np.asarray(predictions), np.asarray(references), list(label_names))

    return CellMetric()


def measure(answers: CellPredictions) -> dict[str, Any]:
    """All figures of one set of answers.

    Returns:
        accuracy, balanced_accuracy, f1_weighted, f1_macro, auroc (one-vs-rest macro for more than two classes;
        None where a class is absent), per_class (precision, recall, f1, support), confusion_matrix (rows: truth),
        and `subjects` (id → label, cells, accuracy) where subjects are known. All shares are 0–1.
    """
    metric = cell_metric(answers.label_names)
    figures = metric.compute(predictions=answers.probabilities.astype(float), references=answers.references)
    assert figures is not None
    return {"cells": len(answers.cell_ids), **figures, "subjects": _per_subject(answers)}


def headline(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of `measure` that a table quotes."""
    return {k: figures[k] for k in ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc")}


def _figures(probabilities: np.ndarray, references: np.ndarray, names: list[str]) -> dict[str, Any]:
    from sklearn import metrics as sk

    predictions, classes = probabilities.argmax(axis=1), list(range(len(names)))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        references, predictions, labels=classes, zero_division=0
    )
    present = np.unique(references)
    return {
        "accuracy": float((predictions == references).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "f1_weighted": float(np.average(f1, weights=support)),
        "f1_macro": float(f1[present].mean()),
        "auroc": _auroc(probabilities, references, classes),
        "per_class": {
            name: {
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
                "support": int(support[k]),
            }
            for k, name in enumerate(names)
        },
        "confusion_matrix": sk.confusion_matrix(references, predictions, labels=classes).tolist(),
    }


def _auroc(probabilities: np.ndarray, references: np.ndarray, classes: list[int]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if len(np.unique(references)) < len(classes):
        return None
    if len(classes) == 2:
        return float(roc_auc_score(references == 0, probabilities[:, 0]))
    return float(np.mean([roc_auc_score(references == k, probabilities[:, k]) for k in classes]))


def _per_subject(answers: CellPredictions) -> dict[str, dict[str, Any]]:
    subjects, right = np.asarray(answers.subjects), answers.predictions == answers.references
    return {
        subject: {
            "label": answers.label_names[answers.references[subjects == subject][0]],
            "cells": int((subjects == subject).sum()),
            "accuracy": float(right[subjects == subject].mean()),
        }
        for subject in sorted(set(answers.subjects) - {""})
    }


def cell_areas(cells: Iterable[np.ndarray]) -> np.ndarray:
    """Bounding-box area of cut-out cells as a share of the picture.

    Args:
        cells: N cells on black, (S, S, 3) uint8 each; read one at a time.

    Returns:
        (N,) float, 0–1; 0 for an empty picture.
    """
    return np.asarray([_box_share(cell.max(axis=2) > BACKGROUND_LEVEL) for cell in cells])


def _box_share(mask: np.ndarray) -> float:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0
    return float((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / mask.size)


def size_only_answers(
    train_areas: np.ndarray, train_references: np.ndarray, test_areas: np.ndarray, like: CellPredictions
) -> CellPredictions:
    """The baseline every network must beat: logistic regression on the logarithm of a cell's area alone.

    Args:
        train_areas, train_references: (M,) area and class of the cells that were trained on.
        test_areas: (N,) areas of the cells in `like`, in its order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def feature(areas: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(areas, 1e-4)).reshape(-1, 1)

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(feature(train_areas), train_references)
    seen = model.predict_proba(feature(test_areas))
    probabilities = np.zeros_like(like.probabilities, dtype=float)
    probabilities[:, model.classes_] = seen
    return CellPredictions(like.cell_ids, like.subjects, like.references, probabilities, like.label_names)
