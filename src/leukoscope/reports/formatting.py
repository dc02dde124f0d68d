"""Format values and tables, by one rule each, for cards, README, HTML pages and the demo."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.data.registry import trained_on

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
    filters = (as_text, count, fraction, hundred, share, span, with_span)
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
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").splitlines())


# An underscore within a word formats nothing.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")


def as_text(name: str) -> str:
    """A name from metrics.json as Markdown that shows it as it is: no character formats, links or starts HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(name.splitlines()))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of that kind, such as "PNG", with Pillow's options of it."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """A file of that media type as an address that a page carries within itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def metric_name(key: str, unit: str = "subject") -> str:
    """The name of a metric of metrics.json or evaluation.json; `unit` is what subjects are, "subject" or "block"."""
    if key.endswith(_BY_SUBJECT):
        return f"{metric_name(key.removesuffix(_BY_SUBJECT))} by {unit}"
    if key == "subject_auroc":  # unlike the AUROC of the rule for subjects, which is cross-fitted
        return f"AUROC of {unit}s' mean logits"
    if key.startswith("recall_"):
        return f"recall of {key.removeprefix('recall_')}"
    return _METRIC_NAMES[key]


def share(value: Any) -> str:
    """A share of 1 with three digits; a dash for a missing value."""
    from jinja2 import Undefined

    if value is None or isinstance(value, Undefined):
        return "–"
    return f"{value:.3f}"


def hundred(value: float) -> str:
    """A share as a number of 100."""
    return f"{100 * value:.0f}"


def of_100(value: float | None, interval: Mapping[str, Any] | None = None) -> str:
    """A share as a number of 100, with its interval where there is one; a dash for a missing share."""
    if value is None:
        return "–"
    if not interval:
        return hundred(value)
    return f"{hundred(value)} ({hundred(interval['low'])}–{hundred(interval['high'])})"


def span(interval: Mapping[str, Any] | Sequence[float] | None) -> str:
    """An interval of shares with two digits: more would suggest too much precision. A dash for a missing one.

    It has three digits where two would round an end to 0 or 1, and up to four where fewer would make both ends equal.
    """
    if isinstance(interval, Mapping):
        interval = interval["low"], interval["high"]
    low, high = interval or (None, None)
    if low is None or high is None:
        return "–"
    ends = round(low, 6), round(high, 6)  # as metrics.json stores them
    digits = 2
    if any(round(end, 2) in (0, 1) and end not in (0, 1) for end in ends):
        digits = 3
    while ends[0] != ends[1] and round(ends[0], digits) == round(ends[1], digits) and digits < 4:
        digits += 1
    # A dash before a minus sign is unreadable.
    return f"{low:.{digits}f}{' to ' if low < 0 else '–'}{high:.{digits}f}"


def with_span(estimate: Mapping[str, Any] | None, key: str = "value") -> str:
    """A share and its interval, from one block that contains both; a dash where either is missing."""
    if estimate and estimate[key] is not None:
        return f"{share(estimate[key])} ({span(estimate)})"
    return "–"


def with_interval(block: Mapping[str, Any], metric: str) -> str:
    """A metric of an evaluation with its interval by subject, where there is one."""
    intervals = block.get("intervals", {}).get("by_subject", {})
    value = share(block["metrics"].get(metric))
    if metric in intervals:
        return f"{value} ({span(intervals[metric])})"
    return value


def fraction(rate: Mapping[str, Any]) -> str:
    """A share of few subjects: counts, share and interval; only the counts where there is no subject."""
    counts = f"{rate['right']} of {rate['of']}"
    if rate["of"]:
        return f"{counts}, {share(rate['right'] / rate['of'])} ({span(rate)})"
    return counts


def count(value: int) -> str:
    """A number of cells with thousands separated."""
    return f"{value:,}"


def new_aliases(metrics: Mapping[str, Any]) -> list[str]:
    """Ids that a release counts separately, but that are now known to be of one subject, like "H2 = H6 = H7"."""
    info = trained_on(metrics)
    if info is None:
        return []
    subjects: dict[str, list[str]] = {}
    for subject in metrics["training"]["subjects"]:
        subjects.setdefault(info.canonical_subject(subject), []).append(subject)
    return [" = ".join(sorted(ids)) for ids in subjects.values() if len(ids) > 1]
