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
from leukoscope.evaluation.metrics import POOLED, CellPredictions


def point_figures(answers: CellPredictions) -> dict[str, float]:
    """The figures that the intervals below belong to: one float for each of their keys."""
    return {key: float(values[0]) for key, values in drawn_figures(answers, _any_draws(answers).once()).items()}


def subject_intervals(
    answers: CellPredictions, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """Intervals of every figure when subjects are drawn anew: what to expect on other patients.

    Returns:
        accuracy, balanced_accuracy, f1_weighted, f1_macro, recall_<class> and auroc over cells; the same, but for the
        recalls, as `…_by_subject`; auroc_equal_size where areas are known; and subject_auroc (each subject's mean
        logit; where every subject has one class) → low and high, 0–1; see `Draws.interval`. The AUROCs are one-vs-rest
        macro for more than two classes, and left out where a class has no cell.

    Raises:
        LeukoscopeError: see `subject_draws`.
    """
    return _intervals(answers, subject_draws(answers, draws=draws, seed=seed), level)


def cell_intervals(
    answers: CellPredictions, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """The naive intervals, drawing cells within their class: far too narrow where subjects bring many cells each.

    Returns:
        As `subject_intervals`, without what weighs or ranks subjects.
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
    # Cells drawn one by one have no subjects to weigh.
    evenly = answers.subject_weights if drawing.of_subjects else None
    if evenly is not None:
        weighted = drawing.sums(pairs * evenly[:, None]).reshape(-1, len(names), len(names))
        even = _from_confusion(weighted, names)
        figures |= {f"{key}_by_subject": even[key] for key in POOLED if key in even}
    if len(np.unique(references)) < len(names):
        return figures
    ranked = classes[:1] if len(names) == 2 else classes
    scores = [answers.probabilities[:, k] for k in classes]
    figures["auroc"] = _mean([drawing.auroc(scores[k], references == k) for k in ranked])
    if evenly is not None:
        figures["auroc_by_subject"] = _mean([drawing.auroc(scores[k], references == k, evenly) for k in ranked])
    deciles = answers.size_deciles
    if deciles is not None:
        figures["auroc_equal_size"] = _mean([drawing.auroc_within(scores[k], references == k, deciles) for k in ranked])
        if np.isnan(figures["auroc_equal_size"]).all():
            del figures["auroc_equal_size"]
    if drawing.of_subjects and _one_class_each(drawing, references):
        units = replace(drawing, unit_of_cell=np.arange(len(drawing.classes)))
        means = subject_logits(answers)[1]
        figures["subject_auroc"] = _mean([units.auroc(means[:, k], drawing.classes == k) for k in ranked])
    return figures


def simulated_coverage(
    answers: CellPredictions, *, studies: int = 400, draws: int = 400, seed: int = 0
) -> dict[str, Any]:
    """How often nominal 95 % intervals by subject would hold the truth in studies like this one.

    Each simulated study has as many subjects of each class, with numbers of cells drawn from those at hand; a subject's
    cells are right at a rate of its own, from the Beta distribution of its class that has the mean and variance (less
    that of chance) of the subjects' accuracies at hand.

    Returns:
        studies, level, and the coverage, 0–1, of the intervals of balanced_accuracy and balanced_accuracy_by_subject.

    Raises:
        LeukoscopeError: see `subject_draws`.
    """
    drawing, rng = subject_draws(answers, draws=draws, seed=seed), np.random.default_rng(seed)
    cells = np.bincount(drawing.unit_of_cell).astype(float)
    accuracy = np.bincount(drawing.unit_of_cell, answers.predictions == answers.references) / cells
    classes = [np.flatnonzero(drawing.classes == k) for k in np.unique(drawing.classes)]
    counts, truth = drawing.counts.astype(float), 0.0
    covered = {"balanced_accuracy": 0, "balanced_accuracy_by_subject": 0}
    shapes = []
    for units in classes:
        mean = float(accuracy[units].mean().clip(0.01, 0.99))
        chance = float((accuracy[units] * (1 - accuracy[units]) / cells[units]).mean())
        spread = float(np.clip(accuracy[units].var(ddof=1) - chance, 1e-4, 0.95 * mean * (1 - mean)))
        total = mean * (1 - mean) / spread - 1
        shapes.append((mean * total, (1 - mean) * total))
        truth += mean / len(classes)
    for _ in range(studies):
        over_cells, by_subject = np.zeros(draws), np.zeros(draws)
        for units, shape in zip(classes, shapes, strict=True):
            sizes = rng.choice(cells[units], len(units))
            right = rng.binomial(sizes.astype(int), rng.beta(*shape, len(units)))
            drawn = counts[:, units]
            over_cells += drawn @ right / (drawn @ sizes) / len(classes)
            by_subject += drawn @ (right / sizes) / len(units) / len(classes)
        for name, values in zip(covered, (over_cells, by_subject), strict=True):
            found = drawing.interval(values)
            covered[name] += found["low"] <= truth <= found["high"]
    return {"studies": studies, "level": LEVEL, **{name: hits / studies for name, hits in covered.items()}}


def subject_logits(answers: CellPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Each subject's mean logit, log p - log (1 - p), of each class.

    Returns:
        (U,) subject ids in order, and (U, K) float.
    """
    names, unit, cells = np.unique(answers.subjects, return_inverse=True, return_counts=True)
    # Half precision may have rounded a probability to 0 or 1.
    p = answers.probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)
    sums = np.zeros((len(names), p.shape[1]))
    np.add.at(sums, unit, np.log(p) - np.log1p(-p))
    return names, sums / cells[:, None]


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
    return replace(like, references=references, probabilities=answers.probabilities[rows][:, columns])


def _one_class_each(drawing: Draws, references: np.ndarray) -> bool:
    return bool((drawing.classes[drawing.unit_of_cell] == references).all())


def _class_of(key: str, names: Sequence[str]) -> int | None:
    """The class whose recall a figure is; None for figures of all classes."""
    return next((k for k, name in enumerate(names) if key == f"recall_{name}"), None)


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(values, axis=0)
