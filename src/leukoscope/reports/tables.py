"""The blocks of metrics.json, evaluation.json and audit.json as tables, and how figures are written.

Cards, README, results and the terminal show them; no other module makes a table of a block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.data.registry import cells_of
from leukoscope.models.metrics import (
    Estimate,
    Evaluation,
    Figures,
    HealthyCells,
    Interval,
    Intervals,
    Metrics,
    Ood,
    OutsideFigures,
    Rate,
    Robustness,
)
from leukoscope.models.release import OF_FIELDS

_METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_weighted": "weighted F1",
    "f1_macro": "macro F1",
    "auroc": "AUROC",
    "auroc_equal_size": "AUROC at equal size",
}
_BY_SUBJECT = "_by_subject"


def rendered(template: Path, **values: Any) -> str:
    """Render a Jinja template; a name without a value is an error, and values are escaped in .html only.

    It may use the functions below as filters, `notice` and `version`.
    """
    from jinja2 import Environment, StrictUndefined

    is_html = template.suffix == ".html"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=is_html)
    filters = (as_text, in_code, count, fraction, hundred, share, span, with_span)
    environment.filters |= {function.__name__: function for function in filters}
    text = environment.from_string(template.read_text(encoding="utf-8"))
    return text.render({"notice": RESEARCH_NOTICE, "version": __version__} | values)


@dataclass(frozen=True)
class Table:
    """A table of texts ready to be shown; the first `text_columns` are aligned left, the others hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1

    def __str__(self) -> str:
        """The table in Markdown; Markdown within a cell, such as **bold**, is kept."""
        rule = "---|" * self.text_columns + "--:|" * (len(self.columns) - self.text_columns)
        lines = [f"| {' | '.join(map(_in_one_cell, cells))} |" for cells in (self.columns, *self.rows)]
        return "\n".join([lines[0], f"|{rule}", *lines[1:]])


def _in_one_cell(text: str) -> str:
    """Escape what would end a Markdown cell or its line, or start an HTML element."""
    text = re.sub(r"(?<!\\)\|", r"\\|", text)
    return " ".join(re.sub(r"(?<!\\)<", "&lt;", text).splitlines())


# An underscore within a word formats nothing; a sign at the start makes a heading or a list.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|^[#+=-]")


def as_text(name: str) -> str:
    """Somebody's text as Markdown that shows it as it is: on one line, no character formats, links or starts HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(name.split()))


def in_code(text: str) -> str:
    """Somebody's text for a line of code or of BibTeX, which it cannot end."""
    return " ".join(re.sub(r"[`{}\\]", "", text).split())


def metric_name(key: str, unit: str = "subject") -> str:
    """The name of a metric of metrics.json or evaluation.json; `unit` is what subjects are, "subject" or "block"."""
    if key.endswith(_BY_SUBJECT):
        return f"{metric_name(key.removesuffix(_BY_SUBJECT))} by {unit}"
    if key == "subject_auroc":  # unlike the AUROC of the rule for subjects, which is cross-fitted
        return f"AUROC of {unit}s' mean logits"
    if key.startswith("recall_"):
        return f"recall of {as_text(key.removeprefix('recall_'))}"
    return _METRIC_NAMES[key]


def share(value: float | None) -> str:
    """A share of 1 with three digits; a dash for a missing value."""
    return "–" if value is None else f"{value:.3f}"


def hundred(value: float) -> str:
    """A share as a number of 100."""
    return f"{100 * value:.0f}"


def of_100(value: float | None, interval: Interval | None = None) -> str:
    """A share as a number of 100, with its interval where there is one; a dash for a missing share."""
    if value is None:
        return "–"
    if interval is None or interval.low is None or interval.high is None:
        return hundred(value)
    return f"{hundred(value)} ({hundred(interval.low)}–{hundred(interval.high)})"


def span(interval: Interval | None) -> str:
    """An interval of shares with two digits: more would suggest too much precision. A dash for a missing one.

    It has three digits where two would round an end to 0 or 1, and up to four where fewer would make both ends equal.
    """
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    low = interval.low
    high = interval.high
    ends = round(low, 6), round(high, 6)  # as metrics.json stores them
    digits = 2
    if any(round(end, 2) in (0, 1) and end not in (0, 1) for end in ends):
        digits = 3
    while ends[0] != ends[1] and round(ends[0], digits) == round(ends[1], digits) and digits < 4:
        digits += 1
    # A dash before a minus sign is unreadable.
    return f"{low:.{digits}f}{' to ' if low < 0 else '–'}{high:.{digits}f}"


def with_span(interval: Interval | None, key: str = "value") -> str:
    """A share and its interval, from one block that contains both; a dash where either is missing."""
    figure = getattr(interval, key, None)
    return "–" if figure is None else f"{share(figure)} ({span(interval)})"


def with_interval(evaluation: Evaluation, metric: str) -> str:
    """A metric of an evaluation with its interval by subject, where there is one."""
    figure = share(evaluation.metrics.figure(metric))
    interval = evaluation.intervals.by_subject.get(metric)
    return f"{figure} ({span(interval)})" if interval else figure


def fraction(rate: Rate) -> str:
    """A share of few subjects: counts, share and interval; only the counts where there is no subject."""
    counts = f"{rate.right} of {rate.of}"
    if rate.of:
        return f"{counts}, {share(rate.right / rate.of)} ({span(rate)})"
    return counts


def count(value: int) -> str:
    """A number of cells with thousands separated."""
    return f"{value:,}"


def _tenths(value: float) -> str:
    """A share as a number of 100, with one digit."""
    return f"{100 * value:.1f}"


# Evaluations


def confusion_table(figures: Figures, labels: Sequence[str]) -> Table:
    """Cells of each true class by predicted class, with their shares of the true class."""
    rows = [_confusion_row(label, predicted) for label, predicted in zip(labels, figures.confusion_matrix, strict=True)]
    return Table(("true class", "cells", *(f"predicted {as_text(label)}" for label in labels)), rows)


def _confusion_row(label: str, predicted: Sequence[int]) -> list[str]:
    """A true class, its cells, and how many were predicted as each class."""
    cells = sum(predicted)
    shares = [f"{count(number)} ({share(number / cells if cells else None)})" for number in predicted]
    return [as_text(label), count(cells), *shares]


def subjects_table(figures: Figures, unit: str = "subject", *, most: int | None = None) -> Table:
    """Accuracy on each subject's cells, worst first, of all or of so many."""
    worst_first = sorted(figures.subjects.items(), key=lambda pair: (pair[1].accuracy, -pair[1].cells))
    rows = [
        [as_text(name), as_text(subject.label), count(subject.cells), share(subject.accuracy)]
        for name, subject in worst_first[:most]
    ]
    return Table((unit, "class", "cells", "accuracy"), rows, text_columns=2)


def metrics_table(figures: Mapping[str, float], intervals: Intervals, unit: str) -> Table:
    """Every metric of an evaluation with its intervals by subject, where there are any, and by cell."""
    rows = [
        [metric_name(key, unit), share(number), span(intervals.by_subject.get(key)), span(intervals.by_cell.get(key))]
        for key, number in figures.items()
    ]
    return Table(("metric", "value", f"{intervals.level:.0%} interval, by {unit}", "naive, by cell"), rows)


# Of 100 cells of each class, how many are recognised


@dataclass(frozen=True)
class RecognisedRow:
    """On whom a release was measured, and what it recognised there.

    Attributes:
        kind: "outside" for people of an outside check, "batch" for a part of them; "unseen" for cross-validation or
            another test on subjects that the networks never saw; "changed" for cells under a small change; "cells" for
            a test whose subjects are in training, too; "size" for cell size alone.
        measured_on: the cells in words, with the number of people.
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


def recognised_rows(metrics: Metrics) -> list[RecognisedRow]:
    """What a release recognises of an outside check, of unseen subjects, of cells changed a little, and by size alone.

    The outside check comes first, with one more row for each of its batches. These rows weigh every subject the same.
    A release without unseen subjects has a single row, its first evaluation, which weighs every cell the same.
    """
    labels = metrics.labels
    evaluation = metrics.unseen_evaluation
    if evaluation is None:
        return [_row_by_cells(metrics.evaluations[0], labels)]
    rows = [*_outside_rows(metrics, labels), _unseen_row(evaluation, labels)]
    if metrics.robustness and metrics.robustness.unchanged.recall_by_subject:
        rows.append(_worst_change_row(metrics.robustness, evaluation, labels))
    size = evaluation.size_only_baseline
    if size:
        recognised = tuple(of_100(size.recall_by_subject.get(label)) for label in labels)
        measured_on = f"cell size alone, the same {people_text(evaluation)}"
        rows.append(RecognisedRow("size", measured_on, recognised, share(size.auroc_by_subject)))
    return rows


def _row_by_cells(evaluation: Evaluation, labels: Sequence[str]) -> RecognisedRow:
    """An evaluation whose subjects are in training, too."""
    recognised = tuple(hundred(evaluation.metrics.per_class[label].recall) for label in labels)
    return RecognisedRow("cells", as_text(evaluation.split.detail), recognised, with_interval(evaluation, "auroc"))


def _outside_rows(metrics: Metrics, labels: Sequence[str]) -> list[RecognisedRow]:
    """The people of an outside check together, then by batch; none where nothing was measured."""
    further = metrics.further_subjects
    if not further:
        return []
    rows = [_outside_row("outside", f"{further.subjects} further people", further, labels)]
    for name, batch in further.by_batch.items():
        measured_on = f"{batch.subjects} of these, {name.replace('_', ' ')}"
        rows.append(_outside_row("batch", measured_on, batch, labels))
    return rows


def _outside_row(kind: str, measured_on: str, outside: OutsideFigures, labels: Sequence[str]) -> RecognisedRow:
    """Recalls by subject alone: "–" where only those over all cells were measured."""
    recalls = [outside.recall(label) or Estimate() for label in labels]
    recognised = tuple(of_100(recall.value, recall) for recall in recalls)
    return RecognisedRow(kind, measured_on, recognised, with_span(outside.figures.get("auroc_by_subject")))


def _unseen_row(evaluation: Evaluation, labels: Sequence[str]) -> RecognisedRow:
    """An evaluation on subjects that the networks never saw."""
    by_class = evaluation.recalls
    recognised = tuple(of_100(*by_class.get(label, (None, None))) for label in labels)
    tested = "cross-validation" if evaluation.folds else as_text(evaluation.split.detail)
    has_auroc_by_subject = evaluation.metrics.auroc_by_subject is not None
    auroc = with_interval(evaluation, "auroc_by_subject" if has_auroc_by_subject else "auroc")
    return RecognisedRow("unseen", f"{tested}, {people_text(evaluation)}", recognised, auroc)


def people_text(evaluation: Evaluation, number: int | None = None) -> str:
    """How many subjects an evaluation tested, or a number of them, in words."""
    unit = evaluation.split.disjoint_by
    if number is None:
        number = len(evaluation.metrics.subjects)
    if unit == "subject":
        return "1 person" if number == 1 else f"{number} people"
    return f"{number} {unit}s"


def has_fewer_subjects(robustness: Robustness, evaluation: Evaluation) -> bool:
    """Whether small changes were measured on a part of the subjects of an evaluation only."""
    measured = robustness.subjects
    return measured is not None and measured < len(evaluation.metrics.subjects)


def recognised_table(metrics: Metrics) -> Table:
    """`recognised_rows` with their heads."""
    pictures = [_pictures_of(label, metrics) for label in metrics.labels]
    heads = [f"of 100 {pictures_of_class}, recognised" for pictures_of_class in pictures]
    rows = [row.texts for row in recognised_rows(metrics)]
    return Table(("measured on", *heads, f"AUROC by {metrics.data.unit}"), rows)


def _pictures_of(label: str, metrics: Metrics) -> str:
    """The pictures of a class in words."""
    return f"{as_text(label)} fields of view" if metrics.takes_fields else as_text(cells_of(label))


def _worst_change_row(robustness: Robustness, evaluation: Evaluation, labels: Sequence[str]) -> RecognisedRow:
    """Cells under the small change that changes most classes: of an evaluation, or of the validation side."""
    worst = robustness.worst
    recognised = tuple(
        of_100(worst.recall_by_subject.get(label), worst.interval(f"recall_{label}_by_subject")) for label in labels
    )
    auroc = "–"
    if worst.auroc_by_subject is not None:
        auroc = f"{share(worst.auroc_by_subject)} ({span(worst.interval('auroc_by_subject'))})"
    cells = f"{count(robustness.cells)} of these cells"
    if robustness.cells_of == "validation":
        cells = f"{count(robustness.cells)} validation cells of {people_text(evaluation, robustness.subjects or 0)}"
    elif has_fewer_subjects(robustness, evaluation):
        cells = f"{cells}, of {people_text(evaluation, robustness.subjects)}"
    return RecognisedRow("changed", f"{cells}, shown {worst.shows}", recognised, auroc)


def healthy_with_class(metrics: Metrics, labels: Sequence[str] | None = None, *, outcomes: str = "outcomes") -> str:
    """Of 100 white cells of healthy donors, how many are given one of the labels (any class where None).

    Args:
        outcomes: "outcomes" of the release, or "most_probable" for the network without the OOD detector.
    """
    kinds = healthy_kinds(metrics)
    cells = sum(kind.cells for kind in kinds)
    chosen = metrics.labels if labels is None else labels
    if not cells or not chosen:
        return "–"
    called = sum(getattr(kind, outcomes)[label] for kind in kinds for label in chosen)
    return hundred(called / cells)


def healthy_kinds(metrics: Metrics) -> list[HealthyCells]:
    """What became of each kind of white cell of healthy donors; of the people in fields of view nothing is known."""
    sources = (metrics.ood or Ood()).healthy
    return [kind for name, source in sources.items() if name != OF_FIELDS for kind in source.values()]


# Small changes of the pictures


def robustness_table(robustness: Robustness, labels: Sequence[str]) -> Table:
    """Of 100 cells, how many change from each class, are refused or get none under the worst change of each family."""
    rows = []
    for change in robustness.worst_of_families():
        lost: defaultdict[str, float] = defaultdict(float)
        for way in change.directions:
            lost[way.before] += way.share
        figures = map(_tenths, (*(lost[label] for label in labels), change.refused, change.abstained))
        rows.append([change.shows, *figures, share(change.auroc_shown)])
    changed = [f"{as_text(label)} → another" for label in labels]
    return Table(("shown", *changed, "now refused", "now no class", "AUROC"), rows)


def new_aliases(metrics: Metrics) -> list[str]:
    """Ids that a release counts separately, but that are now known to be of one subject, like "H2 = H6 = H7"."""
    info = metrics.dataset
    if info is None:
        return []
    subjects: dict[str, list[str]] = {}
    for subject in metrics.training.subjects:
        subjects.setdefault(info.canonical_subject(subject), []).append(subject)
    return [" = ".join(sorted(ids)) for ids in subjects.values() if len(ids) > 1]


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
