"""How far a figure may be off: intervals from drawing whole subjects anew, and the naive ones from drawing cells.

All figures of `measure` are computed for thousands of draws at once; two models are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.draws import DRAWS, LEVEL, Draws, Interval, cell_draws, subject_draws
from leukoscope.evaluation.metrics import CellPredictions


def point_figures(answers: CellPredictions) -> dict[str, float]:
    """The figures that the intervals below belong to: one float for each of their keys."""
    return {key: float(values[0]) for key, values in drawn_figures(answers, _any_draws(answers).once()).items()}


def subject_intervals(
    answers: CellPredictions, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """Intervals of every figure when subjects are drawn anew: what to expect on other patients.

    Returns:
        accuracy, balanced_accuracy, f1_weighted, f1_macro, recall_<class>, auroc (over cells) and subject_auroc (each
        subject's mean probability; where every subject has one class) → low and high, 0–1; see `Draws.interval`.
        The AUROCs are one-vs-rest macro for more than two classes, and left out where a class has no cell.

    Raises:
        LeukoscopeError: see `subject_draws`.
    """
    return _intervals(answers, subject_draws(answers, draws=draws, seed=seed), level)


def cell_intervals(
    answers: CellPredictions, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """The naive intervals, drawing cells within their class: far too narrow where subjects bring many cells each.

    Returns:
        As `subject_intervals`, without subject_auroc.
    """
    return _intervals(answers, cell_draws(answers, draws=draws, seed=seed), level)


def paired_difference(
    a: CellPredictions, b: CellPredictions, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, dict[str, float]]:
    """Compare two models on the same cells, both judged on the same drawn subjects.

    Returns:
        figure → a, b, difference (a - b), low and high of the difference, and share_a_better: the share of draws in
        which a is better (a draw where both are equal counts half).

    Raises:
        LeukoscopeError: the two do not answer the same cells or classes; and see `subject_draws`.
    """
    b = aligned(b, a)
    drawing = subject_draws(a, draws=draws, seed=seed)
    at_a, at_b = point_figures(a), point_figures(b)
    drawn_a, drawn_b = drawn_figures(a, drawing), drawn_figures(b, drawing)
    return {
        key: {
            "a": at_a[key],
            "b": at_b[key],
            "difference": at_a[key] - at_b[key],
            **drawing.interval(drawn_a[key] - drawn_b[key], level=level, of_class=_class_of(key, a.label_names)),
            "share_a_better": float(np.nanmean((np.sign(drawn_a[key] - drawn_b[key]) + 1) / 2)),
        }
        for key in drawn_a
    }


def drawn_figures(answers: CellPredictions, drawing: Draws) -> dict[str, np.ndarray]:
    """Every figure of `subject_intervals` in each sample: key → (D,)."""
    names, references = answers.label_names, answers.references
    classes = range(len(names))
    pairs = np.eye(len(names) ** 2)[references * len(names) + answers.predictions]
    figures = _from_confusion(drawing.sums(pairs).reshape(-1, len(names), len(names)), names)
    if len(np.unique(references)) < len(names):
        return figures
    ranked = classes[:1] if len(names) == 2 else classes
    figures["auroc"] = _mean([drawing.auroc(answers.probabilities[:, k], references == k) for k in ranked])
    by_subject = len(drawing.classes) < len(references) and _one_class_each(drawing, references)
    if by_subject and len(np.unique(drawing.classes)) == len(names):
        units = replace(drawing, unit_of_cell=np.arange(len(drawing.classes)))
        cells = np.bincount(drawing.unit_of_cell)
        means = [np.bincount(drawing.unit_of_cell, answers.probabilities[:, k]) / cells for k in classes]
        figures["subject_auroc"] = _mean([units.auroc(means[k], drawing.classes == k) for k in ranked])
    return figures


def _from_confusion(confusion: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """(D, K, K) weighted confusion matrices, rows the truth → figure → (D,)."""
    right, true, answered = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)
    present = np.flatnonzero(true.any(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right[:, present] / true[:, present]
        f1 = 2 * right[:, present] / (true + answered)[:, present]
    total = true.sum(axis=1)
    return {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": recall.mean(axis=1),
        "f1_weighted": (f1 * true[:, present]).sum(axis=1) / total,
        "f1_macro": f1.mean(axis=1),
        **{f"recall_{names[int(k)]}": recall[:, i] for i, k in enumerate(present)},
    }


def _intervals(answers: CellPredictions, drawing: Draws, level: float) -> dict[str, Interval]:
    return {
        key: drawing.interval(values, level=level, of_class=_class_of(key, answers.label_names))
        for key, values in drawn_figures(answers, drawing).items()
    }


def _any_draws(answers: CellPredictions) -> Draws:
    """Subjects where they are known, so that the figures by subject are among the point estimates."""
    try:
        return subject_draws(answers, draws=1)
    except LeukoscopeError:
        return cell_draws(answers, draws=1)


def aligned(answers: CellPredictions, like: CellPredictions) -> CellPredictions:
    """The same answers with the cells and classes of `like`, in its order.

    Raises:
        LeukoscopeError: the two do not answer the same cells or classes, or label a cell differently.
    """
    if set(answers.label_names) != set(like.label_names):
        raise LeukoscopeError(
            f"comparison: one model answers {', '.join(like.label_names)}, the other {', '.join(answers.label_names)}; "
            "compare models of the same classes"
        )
    row_of: Mapping[str, Any] = {cell: row for row, cell in enumerate(answers.cell_ids)}
    asked = set(like.cell_ids)
    for cell in (*like.cell_ids, *answers.cell_ids):
        if cell not in row_of or cell not in asked:
            which = "second" if cell not in row_of else "first"
            raise LeukoscopeError(
                f"comparison: cell {cell} has no answer of the {which} model; both must answer the same cells"
            )
    rows = [row_of[cell] for cell in like.cell_ids]
    columns = [answers.label_names.index(name) for name in like.label_names]
    references = np.argsort(columns)[answers.references[rows]]
    if (differs := references != like.references).any():
        cell = like.cell_ids[int(differs.argmax())]
        raise LeukoscopeError(
            f"comparison: cell {cell} is labelled differently in the two sets of answers; make both from the same data"
        )
    return CellPredictions(
        like.cell_ids, like.subjects, references, answers.probabilities[rows][:, columns], like.label_names
    )


def _one_class_each(drawing: Draws, references: np.ndarray) -> bool:
    return bool((drawing.classes[drawing.unit_of_cell] == references).all())


def _class_of(key: str, names: Sequence[str]) -> int | None:
    """The class whose recall a figure is; None for figures of all classes."""
    return next((k for k, name in enumerate(names) if key == f"recall_{name}"), None)


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(values, axis=0)
