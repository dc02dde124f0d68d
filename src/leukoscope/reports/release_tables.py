"""The blocks of metrics.json, evaluation.json and audit.json as tables: no other module makes a table of one.

The cards of models and data sets, the README, the Evidence tab of the demo, the page of an evaluation and the terminal
show them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from leukoscope.evaluation.metrics import class_report
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.models.release import OF_FIELDS
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
"""The metrics of an evaluation that tables show, in this order."""
_DETAIL_METRICS = ("auroc_by_subject", "balanced_accuracy_by_subject", "auroc", "balanced_accuracy", "f1_weighted")
"""The metrics of folds, baselines and test-time augmentation, where they were measured."""
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
    """The evaluation to show in detail: that of the recalibration, else the first; None without evaluations."""
    evaluations = metrics["evaluations"]
    return evaluations[-1 if "recalibration" in metrics else 0] if evaluations else None


def evaluation_row(metrics: Metrics, block: Metrics) -> dict[str, str]:
    """One evaluation as text.

    Returns:
        detail (of the split), both_sides (whether subjects are in training and test), estimates, cells, the
        `RESULT_METRICS` with their intervals, accuracy; and of the cell's area alone size_auroc, size_aurocs (that and
        the one at equal size) and size_f1.
    """
    # One subject under several ids may be on two sides of a split by subject.
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
        "size_aurocs": " / ".join(share(size_only.get(key)) for key in ("auroc_by_subject", "auroc_equal_size"))
        if size_only
        else "–",
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


def baselines_table(block: Metrics, unit: str = "subject") -> Table:
    """Metrics of logistic regression on trivial features, on the cells of an evaluation, and of the network."""
    baselines = block["shortcut_baselines"]
    keys = _measured_of((_DETAIL_METRICS[0], "auroc_equal_size", *_DETAIL_METRICS[1:]), baselines.values())
    values = {**baselines, "*the network*": block["metrics"]}
    return Table(
        ("feature", *(metric_name(key, unit) for key in keys)),
        [[feature, *(share(measured.get(key)) for key in keys)] for feature, measured in values.items()],
    )


def _measured_of(keys: Iterable[str], blocks: Collection[Metrics]) -> list[str]:
    """The keys that at least one block holds: releases made earlier lack some."""
    return [key for key in keys if any(key in block for block in blocks)]


def folds_table(block: Metrics, unit: str) -> Table:
    """Every fold of a cross-validation."""
    keys = _measured_of(_DETAIL_METRICS, block["folds"])
    rows = [
        [str(fold["fold"]), count(fold["cells"]), str(len(fold["subjects"])), *(share(fold.get(key)) for key in keys)]
        for fold in block["folds"]
    ]
    return Table(("fold", "cells", f"{unit}s", *(metric_name(key, unit) for key in keys)), rows, text_columns=0)


def subjects_table(subjects: Metrics, unit: str = "subject", *, most: int | None = None) -> Table:
    """Accuracy on each subject's cells, worst first, of all or of so many."""
    rows = [
        [name, one["label"], count(one["cells"]), share(one["accuracy"])] for name, one in worst_first(subjects)[:most]
    ]
    return Table((unit, "class", "cells", "accuracy"), rows, text_columns=2)


def worst_first(subjects: Metrics) -> list[tuple[str, Metrics]]:
    """Sort subjects by accuracy, and those of equal accuracy by their number of cells, most first."""
    return sorted(subjects.items(), key=lambda item: (item[1]["accuracy"], -item[1]["cells"]))


def calibration_table(block: Metrics, unit: str = "subject") -> Table:
    """Calibration before and after temperature scaling, over cells and, where it was measured so, by subject."""
    names = {f"{key}_by_subject": f"{name}, by {unit}" for key, name in _CALIBRATION_NAMES.items()} | _CALIBRATION_NAMES
    rows = [
        [name, *(f"{share(block[side][key])} ({span(block[side]['intervals'][key])})" for side in ("before", "after"))]
        for key, name in names.items()
        if key in block["before"]
    ]
    return Table(("", "before", "after"), rows)


def points_table(points: Metrics, unit: str = "subject") -> Table:
    """The operating points of a two-class release, with cross-fitted metrics."""
    keys = _measured_of([*(f"{rate}_by_subject" for rate in _RATES), *_RATES], [points["youden"]["cross_fitted"]])
    rows = []
    for point, name in POINT_NAMES.items():
        measured = points[point]["cross_fitted"]
        rates = [f"{share(measured[key])} ({span(measured['intervals'][key])})" for key in keys]
        rows.append([name, share(points[point]["threshold"]), *rates, share(measured["ppv"]), share(measured["npv"])])
    names = [metric_name(key, unit) for key in keys]
    return Table(("operating point", "threshold", *names, "PPV", "NPV"), rows)


_RATES = ("sensitivity", "specificity")


def subject_rule_table(block: Metrics) -> Table:
    """Metrics of one prediction per subject: the block "subject_rule"."""
    measured = block["measured"]
    without_class = (
        f"{measured['abstained']} abstained from, {measured['too_few_cells']} with fewer than {block['least_cells']} "
        "cells"
    )
    of_rates = {f"sensitivity for {block['positive_label']}": "sensitivity", "specificity": "specificity"}
    rows = [
        ["AUROC", with_span(measured["auroc"])],
        *([name, fraction(measured[rate])] for name, rate in of_rates.items()),
        ["given a class", f"{measured['given_a_class']} of {measured['subjects']}: {without_class}"],
        ["cells needed", cells_needed(block)],
        ["of these wrong", with_span(measured["error_rate"], "share")],
    ]
    if alone := block.get("size_only"):
        rows += [
            ["AUROC, cell size alone", with_span(alone["auroc"])],
            ["AUROC, less that of cell size alone", difference(alone["difference"])],
            *([f"{name}, cell size alone", fraction(alone[rate])] for name, rate in of_rates.items()),
        ]
    return Table(("subjects", "value"), rows)


def cells_needed(block: Metrics) -> str:
    """The fewest cells of a subject that gets a class; "more than" where so many were measured not to suffice."""
    number = count(block["least_cells"])
    return number if block.get("least_cells_suffice", True) else f"more than {number}"


def fewer_cells_table(block: Metrics) -> Table:
    """The same metrics where only some cells of each subject, drawn at random, are used."""
    keys = ("auroc", "sensitivity", "specificity", "balanced_accuracy", "balanced_accuracy_all_cells")
    names = ("AUROC", *_RATES, "balanced accuracy", "with all their cells")
    rows = [[str(row["cells"]), str(row["subjects"]), *(share(row[key]) for key in keys)] for row in block["curve"]]
    return Table(("cells per subject, drawn at random", "subjects", *names), rows, text_columns=0)


def ood_table(block: Metrics) -> Table:
    """Share of the pictures of each kind that the OOD detector refuses."""
    rows = [
        [kind["shows"], str(kind["pictures"]), share(kind["auroc"]), share(kind["refused_share"])]
        for kind in block["kinds"].values()
    ]
    return Table(("shown instead", "pictures", "AUROC", "refused"), rows)


def healthy_table(block: Metrics, labels: Sequence[str]) -> Table:
    """Predictions for white cells of healthy donors, none of them leukaemic, and for those found in fields."""
    rows = [
        [
            "of fields of view, donors not described" if source == OF_FIELDS else name,
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
    """The checks of the Grad-CAM maps: the block "heat_maps"."""
    rows = [
        [check.replace("_", " "), name.replace("_", " "), with_span(one, "mean") if one.get("low") is not None else
         share(one["mean"]), count(one["cells"])]
        for check, values in block.items()
        if isinstance(values, Mapping) and check != "definitions"
        for name, one in values.items()
    ]  # fmt: skip
    return Table(("check", "metric", "mean", "cells"), rows, text_columns=2)


def tta_table(block: Metrics, unit: str = "subject") -> Table:
    """Metrics with and without test-time augmentation: the block "views"."""
    rows = []
    for key in _measured_of(_DETAIL_METRICS, [block["difference"]]):
        one = block["difference"][key]
        rows.append(
            [metric_name(key, unit), share(one["b"]), share(one["a"]), f"{gain(one['difference'])} ({span(one)})"]
        )
    return Table(("", "without", "with TTA", "difference"), rows)


def metrics_table(values: Metrics, intervals: Metrics, unit: str) -> Table:
    """Every metric of an evaluation with its `intervals`: by_subject (or None), by_cell, level."""
    by_subject, by_cell = intervals["by_subject"] or {}, intervals["by_cell"]
    rows = [
        [metric_name(key, unit), share(value), span(by_subject.get(key)), span(by_cell.get(key))]
        for key, value in values.items()
    ]
    return Table(("metric", "value", f"{intervals['level']:.0%} interval, by {unit}", "naive, by cell"), rows)


# Audits of data sets

_CROSSED = {
    "pairs": "pairs",
    "subjects": "across subjects, as published",
    "classes": "across classes",
    "official_folds": "across official folds",
    "split_sides": "across the sides of the split",
    "units": "across what splits keep together",
    "inflates": "would inflate metrics",
}


def copies_table(findings: Mapping[str, Any]) -> Table:
    """Counts of the copies that cross subjects, classes and splits, as far as these are known."""
    known = {
        "subjects": findings["subjects"],
        "official_folds": findings["data"]["official_folds"],
        "split_sides": findings["split"],
    }
    kinds = [findings["duplicates"][kind] for kind in ("identical", "near")]
    crossed = {name: text for name, text in _CROSSED.items() if known.get(name, True)}
    rows = [(text, *(count(kind[name]) for kind in kinds)) for name, text in crossed.items()]
    return Table(("copies", "identical", "near-identical"), rows)


def shortcuts_table(findings: Mapping[str, Any]) -> Table:
    """Metrics of each feature alone, "–" where one could not be measured; no rows where none was measured."""
    keys = ("balanced_accuracy", "f1_weighted", "auroc")
    features = findings["shortcuts"].get("features", {})
    rows = [(name, *(share(measured[key]) for key in keys)) for name, measured in features.items()]
    return Table(("predicted from", "balanced accuracy", "weighted F1", "AUROC"), rows)
