"""How values and tables are written in cards, README, HTML pages and the demo: one rule each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.data.registry import trained_on
from leukoscope.inference.subject import POOLINGS

_METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_weighted": "weighted F1",
    "f1_macro": "macro F1",
    "auroc": "AUROC",
    "auroc_equal_size": "AUROC at equal size",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_BY_SUBJECT = "_by_subject"


def rendered(template: Path, **values: Any) -> str:
    """Render a Jinja template, in which a name without a value is an error; values are escaped in .html alone.

    Args:
        template: it may use the functions below as filters, `notice` and `version`.
        values: by their names in the template.
    """
    from jinja2 import Environment, StrictUndefined

    is_html = template.suffix == ".html"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=is_html)
    filters = (cell_html, count, minutes, pooling, share, span, with_interval)
    environment.filters |= {one.__name__: one for one in filters}
    text = environment.from_string(template.read_text(encoding="utf-8"))
    return text.render({"notice": RESEARCH_NOTICE, "version": __version__} | values)


@dataclass(frozen=True)
class Table:
    """A table whose cells are text ready to be shown.

    Attributes:
        columns: the headings.
        rows: as many cells each as there are columns.
        text_columns: how many columns, from the left, are aligned left; the others hold numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1

    def __str__(self) -> str:
        """The table in Markdown; what a cell holds of it, such as **bold**, stays."""
        rule = "---|" * self.text_columns + "--:|" * (len(self.columns) - self.text_columns)
        lines = [f"| {' | '.join(map(_in_one_cell, cells))} |" for cells in (self.columns, *self.rows)]
        return "\n".join([lines[0], f"|{rule}", *lines[1:]])


def _in_one_cell(text: str) -> str:
    """A text that ends neither its cell nor its line and starts no HTML element."""
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").splitlines())


def cell_html(text: str) -> str:
    """A table cell's text as HTML in which no interval, such as 0.81–0.94, is broken at its dash."""
    return re.sub(r"(?<![\d.,])\(?[\d.,]+–[\d.,]+\)?", r'<span style="white-space: nowrap">\g<0></span>', escape(text))


def metric_name(key: str, unit: str = "subject") -> str:
    """The name of a metric of metrics.json or evaluation.json.

    Args:
        unit: what stands for a person in the data set, "subject" or "block".
    """
    if key.endswith(_BY_SUBJECT):
        return f"{metric_name(key.removesuffix(_BY_SUBJECT))} by {unit}"
    if key == "subject_auroc":  # not the AUROC of subjects, for whom a rule was chosen on others
        return f"AUROC of {unit}s' mean logits"
    return _METRIC_NAMES.get(key) or f"recall of {key.removeprefix('recall_')}"


def share(value: Any) -> str:
    """A share of 1 with three digits; a dash where a value does not exist."""
    from jinja2 import Undefined

    return "–" if value is None or isinstance(value, Undefined) else f"{value:.3f}"


def gain(value: float | None) -> str:
    """A difference of shares, its sign always shown."""
    return "–" if value is None else f"{value:+.3f}"


def span(interval: Mapping[str, Any] | None) -> str:
    """An interval of shares with two digits: more would suggest too much precision. A dash where there is none.

    It has three where two would show an end as 0 or 1 that is neither; and as many, up to four, as two ends differ in.
    """
    low, high = (interval["low"], interval["high"]) if interval else (None, None)
    if low is None or high is None:
        return "–"
    ends = round(low, 6), round(high, 6)  # as metrics.json stores them
    digits = 3 if any(round(end, 2) in (0, 1) and end not in (0, 1) for end in ends) else 2
    while ends[0] != ends[1] and round(ends[0], digits) == round(ends[1], digits) and digits < 4:
        digits += 1
    # A dash before a minus sign cannot be read.
    return f"{low:.{digits}f}{' to ' if low < 0 else '–'}{high:.{digits}f}"


def with_span(estimate: Mapping[str, Any] | None, key: str = "value") -> str:
    """A share and its interval, from one block that contains both; a dash where there is none, or it is of nobody."""
    return f"{share(estimate[key])} ({span(estimate)})" if estimate and estimate[key] is not None else "–"


def with_interval(block: Mapping[str, Any], metric: str) -> str:
    """A metric of an evaluation with its interval by subject, where there is one."""
    intervals = block.get("intervals", {}).get("by_subject", {})
    value = share(block["metrics"].get(metric))
    return f"{value} ({span(intervals[metric])})" if metric in intervals else value


def difference(estimate: Mapping[str, Any] | None) -> str:
    """A difference of shares and its interval; a dash where there is none."""
    return (
        "–" if not estimate else f"{gain(estimate['difference'])} ({gain(estimate['low'])} to {gain(estimate['high'])})"
    )


def fraction(rate: Mapping[str, Any]) -> str:
    """A share of few subjects: counts, share and interval; of nobody the counts alone."""
    counts = f"{rate['right']} of {rate['of']}"
    return f"{counts}, {share(rate['right'] / rate['of'])} ({span(rate)})" if rate["of"] else counts


def pooling(rule: Mapping[str, Any]) -> str:
    """How the "patients" block of metrics.json pools a subject's cells, in words."""
    return POOLINGS[rule["pooling"]]


def count(value: int) -> str:
    """A number of cells with thousands separated."""
    return f"{value:,}"


def minutes(seconds: float) -> str:
    """A duration in whole minutes."""
    return f"{seconds / 60:.0f} min"


def new_aliases(metrics: Mapping[str, Any]) -> list[str]:
    """Subjects that a release counts separately, although its data set is now known to hold one person under them.

    Returns:
        one "H2 = H6 = H7" a person; empty when the release was measured with all that is known today.
    """
    info = trained_on(metrics)
    if info is None:
        return []
    persons: dict[str, list[str]] = {}
    for subject in metrics["training"]["subjects"]:
        persons.setdefault(info.canonical_subject(subject), []).append(subject)
    return [" = ".join(sorted(ids)) for ids in persons.values() if len(ids) > 1]
