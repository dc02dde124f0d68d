"""What a set of predictions is worth: over cells, with every subject weighing the same, and among cells of equal size.

`CellPredictions` is the one table every metric is computed from: exactly one row a cell. The pooled metrics come from
a local `evaluate.Metric` over scikit-learn, so that they compose with the rest of the 🤗 evaluate world and need no
network.

Two families of metrics stand beside the pooled ones. `…_by_subject`: a cell weighs 1 / (cells of its subject), so that
a metric speaks of subjects and not of the few who bring most cells. `auroc_equal_size`: AUROC within deciles of the
cells' areas, averaged with the number of pairs of each decile as weights: what a network knows beyond a cell's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import LeukoscopeError

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
        areas: (N,) the share of its picture that each cell covers; None where cells are not cut out on black.
        pixel_hashes: of each cell's decoded picture, as `pixel_hash` gives it; None where nobody took them.
    """

    cell_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    references: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]
    areas: np.ndarray | None = None
    pixel_hashes: tuple[str, ...] | None = None

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

    @property
    def subject_weights(self) -> np.ndarray | None:
        """(N,) float, 1 / (cells of the cell's subject); None where a cell's subject is not known."""
        if "" in self.subjects:
            return None
        _, unit, cells = np.unique(self.subjects, return_inverse=True, return_counts=True)
        return 1 / cells[unit]

    @property
    def size_deciles(self) -> np.ndarray | None:
        """(N,) int, 0–9: which tenth of the areas each cell belongs to; None where areas are not known."""
        if self.areas is None:
            return None
        edges = np.quantile(self.areas, np.linspace(0, 1, 11)[1:-1])
        return np.searchsorted(edges, self.areas, side="right")

    def take(self, rows: np.ndarray | Sequence[int]) -> CellPredictions:
        """The predictions of some rows, in the order given."""
        chosen = np.asarray(rows, dtype=int)
        return CellPredictions(
            tuple(self.cell_ids[row] for row in chosen),
            tuple(self.subjects[row] for row in chosen),
            self.references[chosen],
            self.probabilities[chosen],
            self.label_names,
            None if self.areas is None else self.areas[chosen],
            None if self.pixel_hashes is None else tuple(self.pixel_hashes[row] for row in chosen),
        )

    def save(self, path: Path) -> None:
        """Write one Parquet row a cell; no pixels."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = np.asarray(self.label_names)
        columns = {"cell_id": self.cell_ids, "subject": self.subjects, "label": names[self.references]}
        columns |= {f"p_{name}": self.probabilities[:, k].astype(np.float32) for k, name in enumerate(self.label_names)}
        if self.areas is not None:
            columns["area"] = self.areas.astype(np.float32)
        if self.pixel_hashes is not None:
            columns["pixel_hash"] = self.pixel_hashes
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
            np.asarray(columns["area"]) if "area" in columns else None,
            tuple(columns["pixel_hash"]) if "pixel_hash" in columns else None,
        )


def pooled(parts: Sequence[CellPredictions]) -> CellPredictions:
    """Join predictions of disjoint test sets, as cross-validation leaves them."""
    areas = [p.areas for p in parts if p.areas is not None]
    hashes = [p.pixel_hashes for p in parts if p.pixel_hashes is not None]
    return CellPredictions(
        tuple(c for p in parts for c in p.cell_ids),
        tuple(s for p in parts for s in p.subjects),
        np.concatenate([p.references for p in parts]),
        np.concatenate([p.probabilities for p in parts]),
        parts[0].label_names,
        np.concatenate(areas) if len(areas) == len(parts) else None,
        tuple(h for one in hashes for h in one) if len(hashes) == len(parts) else None,
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
        and `subjects` (id → label, cells, accuracy) where subjects are known. Where every cell's subject is known, the
        first five again as `…_by_subject`; where areas are known, `auroc_equal_size` (None where no decile of the
        areas holds two classes). All shares are 0–1.
    """
    metric = cell_metric(answers.label_names)
    probabilities = answers.probabilities.astype(float)
    figures = metric.compute(predictions=probabilities, references=answers.references)
    assert figures is not None
    weights = answers.subject_weights
    if weights is not None and len(weights):
        evenly = _figures(probabilities, answers.references, list(answers.label_names), weights)
        figures |= {f"{key}_by_subject": evenly[key] for key in POOLED}
    if answers.areas is not None:
        figures["auroc_equal_size"] = _auroc_equal_size(answers)
    return {"cells": len(answers.cell_ids), **figures, "subjects": _per_subject(answers)}


POOLED = ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc")
BY_SUBJECT = tuple(f"{key}_by_subject" for key in POOLED)


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `measure` that a table quotes."""
    return {key: figures[key] for key in (*POOLED, *BY_SUBJECT, "auroc_equal_size") if key in figures}


def _figures(
    probabilities: np.ndarray, references: np.ndarray, names: list[str], weights: np.ndarray | None = None
) -> dict[str, Any]:
    from sklearn import metrics as sk

    predictions, classes = probabilities.argmax(axis=1), list(range(len(names)))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        references, predictions, labels=classes, zero_division=0, sample_weight=weights
    )
    present = np.unique(references)
    return {
        "accuracy": float(np.average(predictions == references, weights=weights)),
        "balanced_accuracy": float(recall[present].mean()),
        "f1_weighted": float(np.average(f1, weights=support)),
        "f1_macro": float(f1[present].mean()),
        "auroc": _auroc(probabilities, references, classes, weights),
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


def _auroc(
    probabilities: np.ndarray, references: np.ndarray, classes: list[int], weights: np.ndarray | None
) -> float | None:
    from sklearn.metrics import roc_auc_score

    if len(np.unique(references)) < len(classes):
        return None
    ranked = classes[:1] if len(classes) == 2 else classes
    return float(np.mean([roc_auc_score(references == k, probabilities[:, k], sample_weight=weights) for k in ranked]))


def _auroc_equal_size(answers: CellPredictions) -> float | None:
    """AUROC within deciles of the areas, weighted by their numbers of pairs; one-vs-rest macro for more classes."""
    from sklearn.metrics import roc_auc_score

    deciles, names = answers.size_deciles, answers.label_names
    assert deciles is not None
    found = []
    for k in range(len(names))[: 1 if len(names) == 2 else None]:
        areas_under, pairs = [], []
        for decile in np.unique(deciles):
            rows = deciles == decile
            positive = answers.references[rows] == k
            if 0 < positive.sum() < len(positive):
                areas_under.append(roc_auc_score(positive, answers.probabilities[rows, k]))
                pairs.append(int(positive.sum()) * int((~positive).sum()))
        if pairs:
            found.append(np.average(areas_under, weights=pairs))
    return float(np.mean(found)) if found else None


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
    return replace(like, probabilities=probabilities)
