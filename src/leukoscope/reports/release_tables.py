"""The blocks of a release's metrics.json as tables, for the model card, the README and the Evidence tab of the demo.

The page of an evaluation shows the tables that `measure` alone suffices for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leukoscope.evaluation.metrics import class_report
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.reports.formatting import (
    Table,
    count,
    difference,
    fraction,
    gain,
    metric_name,
    new_aliases,
    share,
    span,
    with_interval,
    with_span,
)

Metrics = Mapping[str, Any]

RESULT_METRICS = ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted")
"""The metrics of an evaluation that are shown, in their order."""
POINT_NAMES = {
    "sensitivity_95": "95 % sensitivity wanted",
    "specificity_95": "95 % specificity wanted",
    "youden": "Youden's index",
}
_CALIBRATION_NAMES = {
    "ece": "expected calibration error, 15 bins of equal mass",
    "brier": "Brier score",
    "nll": "negative log-likelihood, nats",
}


def detailed_evaluation(metrics: Metrics) -> Metrics | None:
    """The evaluation that is shown in detail: that of the recalibration, else the first; None without any."""
    evaluations = metrics["evaluations"]
    return evaluations[-1 if "recalibration" in metrics else 0] if evaluations else None


def evaluation_row(metrics: Metrics, block: Metrics) -> dict[str, str]:
    """One evaluation as text.

    Returns:
        detail (of the split), both_sides (whether persons are in training and test), estimates, cells, the
        `RESULT_METRICS` with their intervals, accuracy, size_auroc and size_f1 (of the cell's area alone).
    """
    # Subjects found under several ids after the measurement may be on two sides of a split by subject.
    by_subject = "a few, found since" if new_aliases(metrics) else "no"
    both_sides = {"cell": "yes", "subject": by_subject, "block": "not known, but no block of neighbouring images"}
    size_only = block.get("size_only_baseline") or {}
    return {
        "detail": block["split"]["detail"],
        "both_sides": both_sides.get(block["split"]["disjoint_by"], "not known"),
        "estimates": block["estimates"],
        "cells": count(block["metrics"]["cells"]),
        **{key: with_interval(block, key) for key in RESULT_METRICS},
        "accuracy": share(block["metrics"]["accuracy"]),
        "size_auroc": share(size_only.get("auroc_by_subject")),
        "size_f1": share(size_only.get("f1_weighted")),
    }


def evaluations_table(metrics: Metrics) -> Table:
    """Every evaluation of a release."""
    unit = metrics["data"]["unit"]
    keys = ("detail", "estimates", "cells", *RESULT_METRICS, "accuracy")
    rows = []
    for block in metrics["evaluations"]:
        row = evaluation_row(metrics, block)
        rows.append([*(row[key] for key in keys), f"{row['size_auroc']}, {row['size_f1']}"])
    names = [metric_name(key, unit) for key in RESULT_METRICS]
    size = f"size-only: AUROC by {unit}, weighted F1"
    return Table(("measured on", "estimates", "cells", *names, "accuracy", size), rows, text_columns=2)


def confusion_table(measured: Metrics, labels: Sequence[str]) -> Table:
    """Cells of each true class by predicted class, with their shares of the true class."""
    rows = []
    for label, predicted in zip(labels, measured["confusion_matrix"], strict=True):
        cells = sum(predicted)
        shares = [f"{count(number)} ({share(number / cells if cells else None)})" for number in predicted]
        rows.append([label, count(cells), *shares])
    return Table(("true class", "cells", *(f"predicted {label}" for label in labels)), rows)


def classes_table(measured: Metrics) -> Table:
    """Each class against all others, and the mean over classes."""
    report = class_report(measured)
    names = {"precision": "precision", "recall": "sensitivity (recall)", "specificity": "specificity", "f1": "F1"}
    if len(report["classes"]) > 2:
        names["one_vs_rest_accuracy"] = "one-vs-rest accuracy"
    classes = {**report["classes"], "*mean over classes*": report["mean"]}
    return Table(
        ("class", *names.values()),
        [[label, *(share(values[key]) for key in names)] for label, values in classes.items()],
    )


def baselines_table(block: Metrics) -> Table:
    """What logistic regression on trivial features reaches on the cells of an evaluation, beside the model."""
    keys = ("f1_weighted", "balanced_accuracy", "auroc")
    values = {**block["shortcut_baselines"], "*the network*": block["metrics"]}
    return Table(
        ("feature", *map(metric_name, keys)),
        [[feature, *(share(measured[key]) for key in keys)] for feature, measured in values.items()],
    )


def folds_table(block: Metrics, unit: str) -> Table:
    """Every fold of a cross-validation."""
    keys = ("f1_weighted", "balanced_accuracy", "auroc")
    rows = [
        [str(fold["fold"]), count(fold["cells"]), str(len(fold["subjects"])), *(share(fold[key]) for key in keys)]
        for fold in block["folds"]
    ]
    return Table(("fold", "cells", f"{unit}s", *map(metric_name, keys)), rows, text_columns=0)


def subjects_table(subjects: Metrics, unit: str = "subject", *, most: int | None = None) -> Table:
    """Accuracy on each subject's cells, worst first.

    Args:
        subjects: id → label, cells, accuracy.
        most: how many rows; None for all.
    """
    rows = [
        [name, one["label"], count(one["cells"]), share(one["accuracy"])] for name, one in worst_first(subjects)[:most]
    ]
    return Table((unit, "class", "cells", "accuracy"), rows, text_columns=2)


def worst_first(subjects: Metrics) -> list[tuple[str, Metrics]]:
    """Subjects by their accuracy; of equal ones, the one with more cells comes first."""
    return sorted(subjects.items(), key=lambda item: (item[1]["accuracy"], -item[1]["cells"]))


def calibration_table(block: Metrics) -> Table:
    """Calibration before and after temperature scaling."""
    rows = [
        [name, *(f"{share(block[side][key])} ({span(block[side]['intervals'][key])})" for side in ("before", "after"))]
        for key, name in _CALIBRATION_NAMES.items()
    ]
    return Table(("", "before", "after"), rows)


def points_table(points: Metrics) -> Table:
    """The operating points of a two-class release; sensitivity and specificity are cross-fitted."""
    rows = []
    for key, name in POINT_NAMES.items():
        measured = points[key]["cross_fitted"]
        rates = [f"{share(measured[rate])} ({span(measured['intervals'][rate])})" for rate in _RATES]
        rows.append([name, share(points[key]["threshold"]), *rates, share(measured["ppv"]), share(measured["npv"])])
    return Table(("operating point", "threshold", *_RATES, "PPV", "NPV"), rows)


_RATES = ("sensitivity", "specificity")


def persons_table(block: Metrics) -> Table:
    """One prediction for a person: the measurements of the "patients" block."""
    measured = block["measured"]
    without_class = (
        f"{measured['abstained']} abstained from, {measured['too_few_cells']} with fewer than {block['least_cells']} "
        "cells"
    )
    rows = [
        ["AUROC", with_span(measured["auroc"])],
        [f"sensitivity for {block['positive_label']}", fraction(measured["sensitivity"])],
        ["specificity", fraction(measured["specificity"])],
        ["given a class", f"{measured['given_a_class']} of {measured['persons']}: {without_class}"],
        ["of these wrong", with_span(measured["error_rate"], "share")],
    ]
    return Table(("persons", "value"), rows)


def person_cells_table(block: Metrics) -> Table:
    """The same for persons of whom only some cells, chosen at random, are used."""
    keys = ("auroc", "sensitivity", "specificity", "balanced_accuracy", "balanced_accuracy_all_cells")
    names = ("AUROC", *_RATES, "balanced accuracy", "with all their cells")
    rows = [[str(row["cells"]), str(row["persons"]), *(share(row[key]) for key in keys)] for row in block["curve"]]
    return Table(("cells a person, drawn at random", "persons", *names), rows, text_columns=0)


def ood_table(block: Metrics) -> Table:
    """How many pictures of each kind the OOD detector refuses."""
    rows = [
        [kind["shows"], str(kind["pictures"]), share(kind["auroc"]), share(kind["refused_share"])]
        for kind in block["kinds"].values()
    ]
    return Table(("shown instead", "pictures", "AUROC", "refused"), rows)


def healthy_table(block: Metrics, labels: Sequence[str]) -> Table:
    """What white cells of healthy people, none of them leukaemic, are predicted as."""
    rows = [
        [
            f"{name}{' of fields' if source.endswith('fields') else ''}",
            str(kind["cells"]),
            *(str(kind["outcomes"][label]) for label in labels),
            str(sum(kind["outcomes"][outcome] for outcome in WITHOUT_CLASS)),
            " / ".join(str(kind["most_probable"][label]) for label in labels),
        ]
        for source, kinds in block["healthy"].items()
        for name, kind in kinds.items()
    ]
    return Table(("white cells", "cells", *labels, "no class", f"network alone: {' / '.join(labels)}"), rows)


def explanation_table(block: Metrics) -> Table:
    """The checks of the Grad-CAM maps, block "heat_maps"."""
    rows = [
        [check.replace("_", " "), name.replace("_", " "), with_span(one, "mean") if one.get("low") is not None else
         share(one["mean"])]
        for check, values in block.items()
        if isinstance(values, Mapping) and check != "definitions"
        for name, one in values.items()
    ]  # fmt: skip
    return Table(("check", "metric", "mean"), rows, text_columns=2)


def tta_table(block: Metrics) -> Table:
    """What test-time augmentation changes, block "views"."""
    rows = []
    for key in ("f1_weighted", "balanced_accuracy", "auroc"):
        one = block["difference"][key]
        rows.append([metric_name(key), share(one["b"]), share(one["a"]), f"{gain(one['difference'])} ({span(one)})"])
    return Table(("", "without", "with TTA", "difference"), rows)


def metrics_table(values: Metrics, intervals: Metrics) -> Table:
    """Every metric of an evaluation with both its intervals.

    Args:
        values: metric → value.
        intervals: by_subject (or None), by_cell, level.
    """
    by_subject, by_cell = intervals["by_subject"] or {}, intervals["by_cell"]
    rows = [
        [metric_name(key), share(value), span(by_subject.get(key)), span(by_cell.get(key))]
        for key, value in values.items()
    ]
    return Table(("metric", "value", f"{intervals['level']:.0%} interval, by subject", "naive, by cell"), rows)


def comparison_table(differences: Metrics, level: float) -> Table:
    """Two models on the same cells and the same bootstrap samples of subjects."""
    rows = [
        [metric_name(key), share(one["a"]), share(one["b"]), difference(one), share(one["share_a_better"])]
        for key, one in differences.items()
    ]
    interval = f"difference ({level:.0%} interval, by subject)"
    return Table(("metric", "this model", "the other", interval, "share of samples in which it is better"), rows)
