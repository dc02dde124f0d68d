"""Classification metrics of a table of predictions: over cells, by subject, and among cells of equal size.

`…_by_subject`: a cell weighs 1 / (cells of its subject), so that every subject has the same weight.
`auroc_equal_size`: AUROC within deciles of the cell area, each counted by the weight of its pairs of cells; it measures
what a network knows beyond a cell's size, and cells weigh as by subject where subjects are known.

In a cross-validation `auroc_equal_size` compares cells of one fold only: a fold with many cells of a class leaves few
of them to its network, which then gives that class less probability everywhere. Across folds, a constant would score
below 0.5 (Forman & Scholz 2010, doi:10.1145/1882471.1882479).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from leukoscope import __version__
from leukoscope.evaluation.bootstrap import point_metrics
from leukoscope.evaluation.predictions import CellPredictions

if TYPE_CHECKING:
    import evaluate

NOT_KNOWN = "these weights, on subjects of the recalibration data; whether some of them trained them cannot be told"
"""What metrics of a recalibration estimate where it is not known which cells trained the weights."""


# Each has its formula in `bootstrap._from_confusion` and its name in `reports.tables`.
POOLED_METRICS = ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc")
BY_SUBJECT = tuple(f"{key}_by_subject" for key in POOLED_METRICS)


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Select those metrics of `measure` that a table quotes."""
    return {key: metrics[key] for key in (*POOLED_METRICS, *BY_SUBJECT, "auroc_equal_size") if key in metrics}


def versions() -> dict[str, str]:
    """Versions of the packages that affect metrics."""
    packages = ("torch", "timm", "transformers", "datasets", "accelerate", "evaluate", "scikit-learn")
    return {"leukoscope": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def measure(predictions: CellPredictions) -> dict[str, Any]:
    """Compute all metrics of one set of predictions.

    Returns:
        accuracy, balanced_accuracy, f1_weighted, f1_macro, auroc (one-vs-rest macro for more than two classes;
        None where a class is absent), per_class (precision, recall, f1, support), confusion_matrix (rows: truth),
        and `subjects` (id → label of most of its cells, cells, accuracy) where subjects are known. Where every cell's
        subject is known, the first five again as `…_by_subject`, and `recall_by_subject` (class → share); where areas
        are known, `auroc_equal_size` (None where no decile of the areas holds two classes in one fold). All shares are
        0–1.
    """
    names = predictions.label_names
    references = predictions.references
    predicted = predictions.predicted
    points = point_metrics(predictions)
    classes = range(len(names))
    scores = list(precision_recall_fscore_support(references, predicted, labels=classes, zero_division=0))
    scores[3] = scores[3].astype(int)  # where no cell is right, scikit-learn counts in floats
    keys = ("precision", "recall", "f1", "support")
    rows = zip(names, *(values.tolist() for values in scores), strict=True)
    metrics: dict[str, Any] = {
        "cells": len(predictions.cell_ids),
        **{key: points.get(key) for key in POOLED_METRICS},
        "per_class": {name: dict(zip(keys, values, strict=True)) for name, *values in rows},
        "confusion_matrix": confusion_matrix(references, predicted, labels=classes).tolist(),
    }
    if predictions.subject_weights is not None:
        metrics |= {key: points.get(key) for key in BY_SUBJECT}
        recalls = {name: points.get(f"recall_{name}_by_subject") for name in names}
        metrics["recall_by_subject"] = {name: value for name, value in recalls.items() if value is not None}
    if predictions.areas is not None:
        metrics["auroc_equal_size"] = points.get("auroc_equal_size")
    subjects = np.asarray(predictions.subjects)
    metrics["subjects"] = {}
    for subject, label in predictions.subject_classes.items():
        if subject:
            right = (predicted == references)[subjects == subject]
            row = {"label": names[label], "cells": len(right), "accuracy": float(right.mean())}
            metrics["subjects"][subject] = row
    return metrics


def cell_metric(label_names: Sequence[str]) -> evaluate.Metric:
    """Make an `evaluate.Metric` for K classes, whose results are those of `measure`.

    Predictions are (N, K) probabilities in the order of `label_names`, references {"label": class, "subject": id} as of
    `references_of`; an unknown subject is "". It combines with other metrics of 🤗 evaluate. It fetches nothing, keeps
    what is added in memory, and writes nothing. Processes gather their predictions first, as Accelerate's
    `gather_for_metrics` does.
    """
    import datasets
    import evaluate

    reference = {"label": datasets.Value("int64"), "subject": datasets.Value("string")}
    features = datasets.Features(predictions=datasets.List(datasets.Value("float64")), references=reference)

    class CellMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Classification of single cells", citation="", features=features, inputs_description=""
            )

        def _build_data_dir(self) -> str:
            # Kept in memory, nothing is written; evaluate would make a folder anyway, also where it must not.
            return ""

        def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
            return measure(
                CellPredictions(
                    tuple(map(str, range(len(references)))),
                    tuple(cell["subject"] for cell in references),
                    np.asarray([cell["label"] for cell in references]),
                    np.asarray(predictions),
                    tuple(label_names),
                )
            )

    return CellMetric(keep_in_memory=True)


def references_of(predictions: CellPredictions) -> list[dict[str, Any]]:
    """What `cell_metric` takes as references: class and subject of each cell."""
    labels = predictions.references.tolist()
    return [{"label": label, "subject": subject} for label, subject in zip(labels, predictions.subjects, strict=True)]
