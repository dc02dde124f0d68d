"""Classification metrics of a table of predictions: over cells, by subject, and among cells of equal size.

The pooled metrics come from a local `evaluate.Metric`, which combines with other 🤗 evaluate metrics and works offline.
`…_by_subject`: a cell weighs 1 / (cells of its subject), so that every subject has the same
weight. `auroc_equal_size`: AUROC within deciles of the cell area, each counted by the weight of its pairs of cells; it
measures what a network knows beyond a cell's size, and cells weigh as by subject where subjects are known.

In a cross-validation `auroc_equal_size` compares cells of one fold only: a fold with many cells of a class leaves few
of them to its network, which then gives that class less probability everywhere. Across folds, a constant would score
below 0.5 (Forman & Scholz 2010, doi:10.1145/1882471.1882479).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.bootstrap import point_metrics
from leukoscope.files import atomic_file

if TYPE_CHECKING:
    import evaluate

NOT_KNOWN = "these weights, on subjects of the recalibration data; whether some of them trained them cannot be told"
"""What metrics of a recalibration estimate where it is not known which cells trained the weights."""


@dataclass(frozen=True)
class CellPredictions:
    """One prediction per cell.

    Attributes:
        cell_ids: (N,) unique ids.
        subjects: (N,) subject of each cell, or its block of neighbouring images where subjects are not published;
            "" where neither is known.
        references: (N,) int, the true class.
        probabilities: (N, K) float, rows sum to 1.
        label_names: K class names in output order.
        areas: (N,) share of its image that each cell covers; None where cells are not cut out on black.
        pixel_hashes: `pixel_hash` of each cell's decoded image; None where they were not computed.
        folds: (N,) int, the fold of a cross-validation whose network predicted the cell; None where one network
            predicted all.
    """

    cell_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    references: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]
    areas: np.ndarray | None = None
    pixel_hashes: tuple[str, ...] | None = None
    folds: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(set(self.cell_ids)) != len(self.cell_ids):
            twice = next(c for c in self.cell_ids if self.cell_ids.count(c) > 1)
            raise LeukoscopeError(f"predictions: cell {twice} appears more than once; give one prediction per cell")
        if not len(self.cell_ids) == len(self.subjects) == len(self.references) == len(self.probabilities):
            raise LeukoscopeError("predictions: ids, subjects, references and probabilities differ in length")

    def require_subjects(self, why: str) -> None:
        """Raise `LeukoscopeError` with `why` subjects are needed, where a cell's subject is not known."""
        if "" in self.subjects:
            raise LeukoscopeError(
                f"cell {self.cell_ids[self.subjects.index('')]}: its subject is not known; {why}: give "
                "--subject_pattern or --labels"
            )

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int, the most probable class."""
        return self.probabilities.argmax(axis=1)

    @property
    def subject_weights(self) -> np.ndarray | None:
        """(N,) float, 1 / (cells of the cell's subject); None where a subject is not known."""
        if "" in self.subjects:
            return None
        _, subject, cells = np.unique(self.subjects, return_inverse=True, return_counts=True)
        return 1 / cells[subject]

    @property
    def subject_classes(self) -> dict[str, int]:
        """Each subject, in the order of their names → the class of most of its cells; of equally many, the first."""
        names, unit_of_cell = np.unique(self.subjects, return_inverse=True)
        cells = np.zeros((len(names), len(self.label_names)), dtype=int)
        np.add.at(cells, (unit_of_cell, self.references), 1)
        return dict(zip(names.tolist(), cells.argmax(axis=1).tolist(), strict=True))

    @property
    def equal_size_strata(self) -> np.ndarray | None:
        """(N,) int, one number for each decile of the areas and fold; None where areas are not known."""
        if self.areas is None:
            return None
        edges = np.quantile(self.areas, np.linspace(0, 1, 11)[1:-1])
        deciles = np.searchsorted(edges, self.areas, side="right")
        return deciles if self.folds is None else 10 * self.folds + deciles

    def take(self, rows: np.ndarray | Sequence[int]) -> CellPredictions:
        """Return the predictions of some rows, in the order given."""
        chosen = np.asarray(rows, dtype=int)
        return CellPredictions(
            tuple(self.cell_ids[row] for row in chosen),
            tuple(self.subjects[row] for row in chosen),
            self.references[chosen],
            self.probabilities[chosen],
            self.label_names,
            None if self.areas is None else self.areas[chosen],
            None if self.pixel_hashes is None else tuple(self.pixel_hashes[row] for row in chosen),
            None if self.folds is None else self.folds[chosen],
        )

    def save(self, path: Path) -> None:
        """Write a Parquet file with one row per cell; it holds no pixels."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = np.asarray(self.label_names)
        columns = {"cell_id": self.cell_ids, "subject": self.subjects, "label": names[self.references]}
        columns |= {f"p_{name}": self.probabilities[:, k].astype(np.float32) for k, name in enumerate(self.label_names)}
        if self.areas is not None:
            columns["area"] = self.areas.astype(np.float32)
        if self.pixel_hashes is not None:
            columns["pixel_hash"] = self.pixel_hashes
        if self.folds is not None:
            columns["fold"] = self.folds.astype(np.int32)
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @classmethod
    def load(cls, path: Path) -> CellPredictions:
        """Read a file that `save` wrote."""
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
            np.asarray(columns["fold"]) if "fold" in columns else None,
        )


def pooled(parts: Sequence[CellPredictions]) -> CellPredictions:
    """Concatenate the predictions of the folds of a cross-validation, in their order."""
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
        np.repeat(np.arange(len(parts)), [len(p.cell_ids) for p in parts]),
    )


def even_sample(labels: np.ndarray, subjects: Sequence[str], size: int, seed: int) -> np.ndarray:
    """Sample up to `size` rows evenly over classes and, within a class, over subjects; so is every first part of it."""

    def rank_in_group(groups: Sequence[Hashable]) -> list[int]:
        """For each entry, how many of its group came before."""
        seen: Counter[Hashable] = Counter()
        ranks = []
        for group in groups:
            ranks.append(seen[group])
            seen[group] += 1
        return ranks

    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(rank_in_group([(labels[i], subjects[i]) for i in order]), kind="stable")]
    order = order[np.argsort(rank_in_group([labels[i] for i in order]), kind="stable")]
    return order[:size]


POOLED = ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc")
BY_SUBJECT = tuple(f"{key}_by_subject" for key in POOLED)


def cell_metric(label_names: Sequence[str]) -> evaluate.Metric:
    """Make a local `evaluate.Metric` for K classes: predictions are (N, K) probabilities, references (N,) classes."""
    import datasets
    import evaluate
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    class CellMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            row = datasets.Features(
                predictions=datasets.List(datasets.Value("float64")), references=datasets.Value("int64")
            )
            return evaluate.MetricInfo(
                description="Classification of single cells", citation="", features=row, inputs_description=""
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
            names, cells = tuple(label_names), len(references)
            ids, truth = tuple(map(str, range(cells))), np.asarray(references)
            table = CellPredictions(ids, ("",) * cells, truth, np.asarray(predictions), names)
            points, classes = point_metrics(table), range(len(names))
            scores = precision_recall_fscore_support(truth, table.predicted, labels=classes, zero_division=0)
            keys = ("precision", "recall", "f1", "support")
            rows = zip(names, *(values.tolist() for values in scores), strict=True)
            return {
                **{key: points.get(key) for key in POOLED},
                "per_class": {name: dict(zip(keys, values, strict=True)) for name, *values in rows},
                "confusion_matrix": confusion_matrix(truth, table.predicted, labels=classes).tolist(),
            }

    return CellMetric()


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Select those metrics of `measure` that a table quotes."""
    return {key: metrics[key] for key in (*POOLED, *BY_SUBJECT, "auroc_equal_size") if key in metrics}


def measure(predictions: CellPredictions) -> dict[str, Any]:
    """Compute all metrics of one set of predictions.

    Returns:
        accuracy, balanced_accuracy, f1_weighted, f1_macro, auroc (one-vs-rest macro for more than two classes;
        None where a class is absent), per_class (precision, recall, f1, support), confusion_matrix (rows: truth),
        and `subjects` (id → label of most of its cells, cells, accuracy) where subjects are known. Where every cell's
        subject is known, the first five again as `…_by_subject`; where areas are known, `auroc_equal_size` (None where
        no decile of the areas holds two classes in one fold). All shares are 0–1.
    """
    names, references = predictions.label_names, predictions.references
    probabilities = predictions.probabilities.astype(float)
    metrics = cell_metric(names).compute(predictions=probabilities, references=references)
    assert metrics is not None
    points = point_metrics(predictions)
    if predictions.subject_weights is not None:
        metrics |= {key: points.get(key) for key in BY_SUBJECT}
    if predictions.areas is not None:
        metrics["auroc_equal_size"] = points.get("auroc_equal_size")
    subjects, correct = np.asarray(predictions.subjects), predictions.predicted == references
    per_subject = {}
    for subject, label in predictions.subject_classes.items():
        if not subject:
            continue
        rows = subjects == subject
        per_subject[subject] = {
            "label": names[label],
            "cells": int(rows.sum()),
            "accuracy": float(correct[rows].mean()),
        }
    return {"cells": len(predictions.cell_ids), **metrics, "subjects": per_subject}


def class_report(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Measure each class by itself and against all others, from what `measure` gives.

    One-vs-rest accuracy is that of deciding whether a cell is of one class. A wrong prediction is wrong for two of the
    K classes only, so with four classes its mean shows half the error rate: a published accuracy far above the recall
    beside it may be this metric.

    Returns:
        notice, cells, accuracy, balanced_accuracy; `classes`: name → precision, recall (sensitivity), specificity, f1,
        one_vs_rest_accuracy (shares, 0–1; specificity is None where all cells are of the class) and support; and
        `mean` of those shares over the classes that were tested.
    """
    matrix, cells = metrics["confusion_matrix"], metrics["cells"]
    classes = {}
    for k, (name, of_class) in enumerate(metrics["per_class"].items()):
        others, taken_for_it = cells - sum(matrix[k]), sum(row[k] for row in matrix) - matrix[k][k]
        missed = sum(matrix[k]) - matrix[k][k]
        classes[name] = {
            **{key: of_class[key] for key in ("precision", "recall")},
            "specificity": (others - taken_for_it) / others if others else None,
            "f1": of_class["f1"],
            "one_vs_rest_accuracy": (cells - taken_for_it - missed) / cells,
            "support": of_class["support"],
        }
    tested = [row for row in classes.values() if row["support"]]
    known = {key: [row[key] for row in tested if row[key] is not None] for key in tested[0] if key != "support"}
    return {
        "notice": RESEARCH_NOTICE,
        **{key: metrics[key] for key in ("cells", "accuracy", "balanced_accuracy")},
        "classes": classes,
        "mean": {key: sum(values) / len(values) if values else None for key, values in known.items()},
    }
