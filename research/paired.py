"""Two models on the same cells: the differences of their metrics, with intervals from the same bootstrap samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import (
    BOOTSTRAP_SAMPLES,
    bootstrap_metrics,
    bootstrap_subjects,
    class_of,
    point_metrics,
)
from leukoscope.evaluation.predictions import CellPredictions


def paired_difference(
    a: CellPredictions, b: CellPredictions, *, samples: int = BOOTSTRAP_SAMPLES
) -> dict[str, dict[str, float]]:
    """Compare two models on the same cells and the same bootstrap samples of subjects; errors as of `aligned`.

    Returns:
        metric that both have → a, b, difference (a - b), low and high of the difference.
    """
    b, boot = aligned(b, a), bootstrap_subjects(a, samples=samples)
    point_a, point_b, samples_b = point_metrics(a), point_metrics(b), bootstrap_metrics(b, boot)
    # AUROC at equal size may be defined for the folds of one model alone.
    both = {key: values - samples_b[key] for key, values in bootstrap_metrics(a, boot).items() if key in samples_b}
    return {
        key: {
            "a": point_a[key],
            "b": point_b[key],
            "difference": point_a[key] - point_b[key],
            **boot.interval(differences, of_class=class_of(key, a.label_names)),
        }
        for key, differences in both.items()
    }


def aligned(predictions: CellPredictions, like: CellPredictions) -> CellPredictions:
    """Reorder predictions to the cells and classes of `like`.

    Raises:
        LeukoscopeError: other classes, other cells, or another true class of a cell.
    """
    if set(predictions.label_names) != set(like.label_names):
        raise LeukoscopeError(
            f"comparison: one model predicts {', '.join(like.label_names)}, the other "
            f"{', '.join(predictions.label_names)}; compare models of the same classes"
        )
    row_of = {cell: row for row, cell in enumerate(predictions.cell_ids)}
    if differing := set(like.cell_ids) ^ row_of.keys():
        cell = min(differing)
        which = "first" if cell in row_of else "second"
        raise LeukoscopeError(
            f"comparison: cell {cell} has no prediction of the {which} model; both must predict the same cells"
        )
    rows = [row_of[cell] for cell in like.cell_ids]
    columns = [predictions.label_names.index(name) for name in like.label_names]
    references = np.argsort(columns)[predictions.references[rows]]
    if (differs := references != like.references).any():
        cell = like.cell_ids[int(differs.argmax())]
        raise LeukoscopeError(
            f"comparison: cell {cell} is labelled differently in the two sets of predictions; make both from the same "
            "data"
        )
    return replace(
        like,
        references=references,
        probabilities=predictions.probabilities[rows][:, columns],
        folds=None if predictions.folds is None else predictions.folds[rows],
    )
