"""The blocks of metrics.json, evaluation.json and audit.json as tables: no other module makes a table of one.

Cards, README, results and the terminal show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leukoscope.models.release import OF_FIELDS
from leukoscope.reports.formatting import Table, count, hundred, metric_name, share, span, with_interval, with_span

Metrics = Mapping[str, Any]


def confusion_table(measured: Metrics, labels: Sequence[str]) -> Table:
    """Cells of each true class by predicted class, with their shares of the true class."""
    rows = []
    for label, predicted in zip(labels, measured["confusion_matrix"], strict=True):
        cells = sum(predicted)
        shares = [f"{count(number)} ({share(number / cells if cells else None)})" for number in predicted]
        rows.append([label, count(cells), *shares])
    return Table(("true class", "cells", *(f"predicted {label}" for label in labels)), rows)


def subjects_table(subjects: Metrics, unit: str = "subject", *, most: int | None = None) -> Table:
    """Accuracy on each subject's cells, worst first, of all or of so many."""
    worst_first = sorted(subjects.items(), key=lambda item: (item[1]["accuracy"], -item[1]["cells"]))[:most]
    rows = [[name, one["label"], count(one["cells"]), share(one["accuracy"])] for name, one in worst_first]
    return Table((unit, "class", "cells", "accuracy"), rows, text_columns=2)


# Of 100 cells of each class, how many are recognised

_CALLED = {"ALL": "blasts", "HEM": "normal cells"}


def many(label: str) -> str:
    """Cells of a class in words."""
    return _CALLED.get(label, f"{label} cells")


def recalls(block: Metrics) -> dict[str, tuple[float, Metrics | None]]:
    """Class → share of its cells that an evaluation recognised, each subject weighing the same, and its interval.

    {} where cells of one subject were in training and test, or subjects are not known.
    """
    measured, by_class = block["metrics"], dict[str, list[float]]()
    if block["split"]["disjoint_by"] == "cell" or not measured.get("subjects"):
        return {}
    for one in measured["subjects"].values():
        by_class.setdefault(one["label"], []).append(one["accuracy"])
    found = measured.get("recall_by_subject") or {label: sum(s) / len(s) for label, s in by_class.items()}
    intervals = (block.get("intervals") or {}).get("by_subject") or {}
    return {label: (value, intervals.get(f"recall_{label}_by_subject")) for label, value in found.items()}


def unseen_evaluation(metrics: Metrics) -> Metrics | None:
    """The first evaluation on subjects that the networks never saw, of a recalibrated release its own; else None."""
    found = [block for block in metrics.get("evaluations", ()) if block["split"]["disjoint_by"] != "cell"]
    return found[-1 if "recalibration" in metrics else 0] if found else None


def recognised_rows(metrics: Metrics) -> list[list[str]]:
    """Three rows a reader understands: on whom, of 100 cells of each class how many were recognised, AUROC.

    These are the release's unseen subjects, the further subjects of an outside check, and the former by cell size
    alone. Without unseen subjects, the first evaluation by its cells.
    """
    labels, rows, block = metrics["labels"], list[list[str]](), unseen_evaluation(metrics)
    if block is None:
        (block, *_) = metrics["evaluations"]
        shares = [hundred(block["metrics"]["per_class"][label]["recall"]) for label in labels]
        return [[block["split"]["detail"], *shares, with_interval(block, "auroc")]]
    unit = block["split"]["disjoint_by"]
    on = f"{len(block['metrics'].get('subjects', ()))} {'people' if unit == 'subject' else f'{unit}s'}"
    found = recalls(block)
    kind = "cross-validation" if block.get("folds") else block["split"]["detail"]
    rows.append([f"{kind}, {on}", *(_of_100(*found.get(one, (None, None))) for one in labels), _auroc(block)])
    if further := metrics.get("further_subjects"):
        shares = [_of_100(one["value"], one) for one in (further[f"recall_{label}"] for label in labels)]
        rows.append([f"{further['subjects']} further people", *shares, with_span(further["auroc_by_subject"])])
    if size := block.get("size_only_baseline"):
        alone = size.get("recall_by_subject") or {}
        shares = [_of_100(alone.get(label), None) for label in labels]
        rows.append([f"cell size alone, the same {on}", *shares, share(size.get("auroc_by_subject"))])
    return rows


def recognised_table(metrics: Metrics) -> Table:
    """`recognised_rows` with their heads."""
    heads = [f"of 100 {many(label)}, recognised" for label in metrics["labels"]]
    return Table(("measured on", *heads, f"AUROC by {metrics['data']['unit']}"), recognised_rows(metrics))


def _of_100(value: float | None, interval: Metrics | None) -> str:
    if value is None:
        return "–"
    ends = f" ({hundred(interval['low'])}–{hundred(interval['high'])})" if interval else ""
    return f"{hundred(value)}{ends}"


def _auroc(block: Metrics) -> str:
    by_subject = block["metrics"].get("auroc_by_subject") is not None
    return with_interval(block, "auroc_by_subject" if by_subject else "auroc")


def healthy_given(metrics: Metrics, labels: Sequence[str] | None = None, outcomes: str = "outcomes") -> str:
    """Of 100 white cells of healthy donors, how many are given one of the labels (any class where None).

    Args:
        outcomes: "outcomes" of the release, or "most_probable" for the network without the OOD detector.
    """
    sources = metrics.get("ood", {}).get("healthy", {})
    # Nothing is known of the people in fields of view.
    kinds = [kind for name, source in sources.items() if name != OF_FIELDS for kind in source.values()]
    cells = sum(kind["cells"] for kind in kinds)
    chosen = metrics["labels"] if labels is None else labels
    if not cells or not chosen:
        return "–"
    return f"{100 * sum(kind[outcomes][label] for kind in kinds for label in chosen) / cells:.0f}"


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
        "subjects": findings["data"]["unit"] == "subject",
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
