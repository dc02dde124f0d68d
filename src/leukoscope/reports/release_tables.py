"""The blocks of metrics.json, evaluation.json and audit.json as tables: no other module makes a table of one.

Cards, README, results and the terminal show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leukoscope.data.registry import cells_of, trained_on_fields_of_view
from leukoscope.models.release import OF_FIELDS
from leukoscope.reports.formatting import (
    Table,
    count,
    hundred,
    metric_name,
    of_100,
    share,
    span,
    with_interval,
    with_span,
)

Metrics = Mapping[str, Any]


def confusion_table(measured: Metrics, labels: Sequence[str]) -> Table:
    """Cells of each true class by predicted class, with their shares of the true class."""
    rows = [
        _confusion_row(label, predicted) for label, predicted in zip(labels, measured["confusion_matrix"], strict=True)
    ]
    return Table(("true class", "cells", *(f"predicted {label}" for label in labels)), rows)


def _confusion_row(label: str, predicted: Sequence[int]) -> list[str]:
    """A true class, its cells, and how many were predicted as each class."""
    cells = sum(predicted)
    row = [label, count(cells)]
    for number in predicted:
        of_class = share(number / cells) if cells else share(None)
        row.append(f"{count(number)} ({of_class})")
    return row


def subjects_table(subjects: Metrics, unit: str = "subject", *, most: int | None = None) -> Table:
    """Accuracy on each subject's cells, worst first, of all or of so many."""
    worst_first = sorted(subjects.items(), key=lambda pair: (pair[1]["accuracy"], -pair[1]["cells"]))
    rows = [
        [name, subject["label"], count(subject["cells"]), share(subject["accuracy"])]
        for name, subject in worst_first[:most]
    ]
    return Table((unit, "class", "cells", "accuracy"), rows, text_columns=2)


# Of 100 cells of each class, how many are recognised


@dataclass(frozen=True)
class RecognisedRow:
    """On whom a release was measured, and what it recognised there.

    Attributes:
        kind: "outside" for people of an outside check; "unseen" for cross-validation or another test on subjects that
            the networks never saw; "changed" for some of their cells under a small change; "cells" for a test whose
            subjects are in training, too; "size" for cell size alone.
        measured_on: the same for a reader, with the number of people.
        recognised: one text for each class.
    """

    kind: str
    measured_on: str
    recognised: tuple[str, ...]
    auroc: str

    @property
    def texts(self) -> list[str]:
        """The row of a table."""
        return [self.measured_on, *self.recognised, self.auroc]


def recalls(block: Metrics) -> dict[str, tuple[float, Metrics | None]]:
    """Class → share of its cells that an evaluation recognised, each subject weighing the same, and its interval.

    {} where cells of one subject were in training and test, or subjects are not known.
    """
    measured = block["metrics"]
    if block["split"]["disjoint_by"] == "cell" or not measured.get("subjects"):
        return {}
    by_class = measured.get("recall_by_subject") or _mean_accuracies(measured["subjects"])
    intervals = (block.get("intervals") or {}).get("by_subject") or {}
    return {label: (recall, intervals.get(f"recall_{label}_by_subject")) for label, recall in by_class.items()}


def _mean_accuracies(subjects: Metrics) -> dict[str, float]:
    """Class → mean of its subjects' accuracies: the recall by subject of metrics that do not state it."""
    by_class: dict[str, list[float]] = {}
    for subject in subjects.values():
        by_class.setdefault(subject["label"], []).append(subject["accuracy"])
    return {label: sum(accuracies) / len(accuracies) for label, accuracies in by_class.items()}


def unseen_evaluation(metrics: Metrics) -> Metrics | None:
    """The first evaluation on subjects that the networks never saw, None without any.

    A recalibrated release has one on its own cells, the last, which is returned instead.
    """
    unseen = [block for block in metrics.get("evaluations", ()) if block["split"]["disjoint_by"] != "cell"]
    if not unseen:
        return None
    if "recalibration" in metrics:
        return unseen[-1]
    return unseen[0]


def recognised_rows(metrics: Metrics) -> list[RecognisedRow]:
    """What a release recognises of an outside check, of unseen subjects, these changed a little, and by size alone.

    The outside check comes first, with one more row for each of its batches. These rows weigh every subject the same.
    A release without unseen subjects has a single row, its first evaluation, which weighs every cell the same.
    """
    labels = metrics["labels"]
    block = unseen_evaluation(metrics)
    if block is None:
        return [_row_by_cells(metrics["evaluations"][0], labels)]
    rows = [*_outside_rows(metrics.get("further_subjects"), labels), _unseen_row(block, labels)]
    robustness = metrics.get("robustness")
    if robustness and "recall_by_subject" in robustness["unchanged"]:
        rows.append(_worst_change_row(robustness, block, labels))
    size = block.get("size_only_baseline")
    if size:
        alone = size.get("recall_by_subject") or {}
        recognised = tuple(of_100(alone.get(label), None) for label in labels)
        measured_on = f"cell size alone, the same {people_text(block)}"
        rows.append(RecognisedRow("size", measured_on, recognised, share(size.get("auroc_by_subject"))))
    return rows


def _row_by_cells(block: Metrics, labels: Sequence[str]) -> RecognisedRow:
    """An evaluation whose subjects are in training, too."""
    recognised = tuple(hundred(block["metrics"]["per_class"][label]["recall"]) for label in labels)
    return RecognisedRow("cells", block["split"]["detail"], recognised, with_interval(block, "auroc"))


def _outside_rows(further: Metrics | None, labels: Sequence[str]) -> list[RecognisedRow]:
    """The people of an outside check together, then by batch; none where nothing was measured."""
    if not further:
        return []
    rows = [_outside_row(f"{further['subjects']} further people", further, labels)]
    for name, batch in further.get("by_batch", {}).items():
        measured_on = f"{batch['subjects']} of these, {name.replace('_', ' ')}"
        rows.append(_outside_row(measured_on, batch, labels))
    return rows


def _outside_row(measured_on: str, measured: Metrics, labels: Sequence[str]) -> RecognisedRow:
    """Recalls by subject alone: "–" where only those over all cells were measured."""
    recognised = []
    for label in labels:
        recall = measured.get(f"recall_{label}_by_subject") or {}
        recognised.append(of_100(recall.get("value"), recall))
    return RecognisedRow("outside", measured_on, tuple(recognised), with_span(measured["auroc_by_subject"]))


def _unseen_row(block: Metrics, labels: Sequence[str]) -> RecognisedRow:
    """An evaluation on subjects that the networks never saw."""
    by_class = recalls(block)
    recognised = tuple(of_100(*by_class.get(label, (None, None))) for label in labels)
    tested = "cross-validation" if block.get("folds") else block["split"]["detail"]
    has_auroc_by_subject = block["metrics"].get("auroc_by_subject") is not None
    auroc = with_interval(block, "auroc_by_subject" if has_auroc_by_subject else "auroc")
    return RecognisedRow("unseen", f"{tested}, {people_text(block)}", recognised, auroc)


def people_text(block: Metrics, number: int | None = None) -> str:
    """How many subjects an evaluation tested, or a number of them, in words."""
    unit = block["split"]["disjoint_by"]
    if number is None:
        number = len(block["metrics"].get("subjects", ()))
    if unit == "subject":
        return "1 person" if number == 1 else f"{number} people"
    return f"{number} {unit}s"


def has_fewer_subjects(robustness: Metrics, block: Metrics) -> bool:
    """Whether small changes were measured on a part of the subjects of the evaluation `block` only."""
    measured = robustness["subjects"]
    return measured is not None and measured < len(block["metrics"].get("subjects", ()))


def recognised_table(metrics: Metrics) -> Table:
    """`recognised_rows` with their heads."""
    in_fields = trained_on_fields_of_view(metrics)
    pictures = [f"{label} fields of view" if in_fields else cells_of(label) for label in metrics["labels"]]
    heads = [f"of 100 {pictures_of_class}, recognised" for pictures_of_class in pictures]
    rows = [row.texts for row in recognised_rows(metrics)]
    return Table(("measured on", *heads, f"AUROC by {metrics['data']['unit']}"), rows)


def _worst_change_row(robustness: Metrics, block: Metrics, labels: Sequence[str]) -> RecognisedRow:
    """Some of the cells of the evaluation `block` under the small change that changes most classes."""
    worst = worst_of_families(robustness, "class_changed")[0]
    recalls_of = worst["recall_by_subject"]
    intervals = worst.get("intervals") or {}
    recognised = tuple(of_100(recalls_of.get(name), intervals.get(f"recall_{name}_by_subject")) for name in labels)
    auroc = {"value": worst["auroc_by_subject"], **intervals.get("auroc_by_subject", {"low": None, "high": None})}
    cells = f"{count(robustness['cells'])} of these cells"
    if has_fewer_subjects(robustness, block):
        cells = f"{cells}, of {people_text(block, robustness['subjects'])}"
    measured_on = f"{cells}, shown {worst['shows']}"
    return RecognisedRow("changed", measured_on, recognised, with_span(auroc))


def healthy_with_class(metrics: Metrics, labels: Sequence[str] | None = None, outcomes: str = "outcomes") -> str:
    """Of 100 white cells of healthy donors, how many are given one of the labels (any class where None).

    Args:
        outcomes: "outcomes" of the release, or "most_probable" for the network without the OOD detector.
    """
    kinds = healthy_kinds(metrics)
    cells = sum(kind["cells"] for kind in kinds)
    chosen = labels
    if labels is None:
        chosen = metrics["labels"]
    if not cells or not chosen:
        return "–"
    called = sum(kind[outcomes][label] for kind in kinds for label in chosen)
    return hundred(called / cells)


def healthy_kinds(metrics: Metrics) -> list[Metrics]:
    """What became of each kind of white cell of healthy donors; of the people in fields of view nothing is known."""
    sources = metrics.get("ood", {}).get("healthy", {})
    return [kind for name, source in sources.items() if name != OF_FIELDS for kind in source.values()]


def metrics_table(metrics: Metrics, intervals: Metrics, unit: str) -> Table:
    """Every metric of an evaluation with its `intervals`: by_subject (or None), by_cell, level."""
    by_subject = intervals["by_subject"] or {}
    by_cell = intervals["by_cell"]
    rows = [
        [metric_name(key, unit), share(number), span(by_subject.get(key)), span(by_cell.get(key))]
        for key, number in metrics.items()
    ]
    return Table(("metric", "value", f"{intervals['level']:.0%} interval, by {unit}", "naive, by cell"), rows)


# Small changes of the pictures


def worst_of_families(robustness: Metrics, by: str = "changed") -> list[Metrics]:
    """The worst change of each family by one of the block's shares, the worst family first."""
    worst: dict[str, Metrics] = {}
    for change in robustness["changes"].values():
        before = worst.get(change["family"])
        if before is None or change[by] > before[by]:
            worst[change["family"]] = change
    return sorted(worst.values(), key=lambda change: -change[by])


def robustness_table(robustness: Metrics) -> Table:
    """Of 100 cells, how many get another class, are refused or get none under the worst change of each family."""
    rows = []
    for change in worst_of_families(robustness):
        directions = [f"{_tenths(way['share'])} {way['from']} → {way['to']}" for way in change["directions"]]
        interval = (change.get("intervals") or {}).get("class_changed")
        ends = ""
        if interval:
            ends = f" ({_tenths(interval['low'])}–{_tenths(interval['high'])})"
        rows.append(
            [
                change["shows"],
                f"{_tenths(change['class_changed'])}{ends}",
                ", ".join(directions) or "–",
                _tenths(change["refused"]),
                _tenths(change["abstained"]),
                share(change.get("auroc_by_subject", change.get("auroc"))),
            ]
        )
    heads = ("of 100 cells, another class", "which", "now refused", "now no class", "AUROC")
    return Table(("shown", *heads), rows)


def _tenths(value: float) -> str:
    """A share as a number of 100, with one digit."""
    return f"{100 * value:.1f}"


# Audits of data sets

_COPIES_ACROSS = {
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
    is_measured = {
        "subjects": findings["data"]["unit"] == "subject",
        "official_folds": findings["data"]["official_folds"],
        "split_sides": findings["split"],
    }
    identical = findings["duplicates"]["identical"]
    near = findings["duplicates"]["near"]
    rows = [
        (text, count(identical[name]), count(near[name]))
        for name, text in _COPIES_ACROSS.items()
        if is_measured.get(name, True)
    ]
    return Table(("copies", "identical", "near-identical"), rows)


def shortcuts_table(findings: Mapping[str, Any]) -> Table:
    """Metrics of each feature alone, "–" where one could not be measured; no rows where none was measured."""
    features = findings["shortcuts"].get("features", {})
    rows = [
        (name, share(measured["balanced_accuracy"]), share(measured["f1_weighted"]), share(measured["auroc"]))
        for name, measured in features.items()
    ]
    return Table(("predicted from", "balanced accuracy", "weighted F1", "AUROC"), rows)
