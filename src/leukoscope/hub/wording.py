"""How figures are written in cards and tables: one rule each, so that the same figure reads the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leukoscope.cells.registry import DATASETS
from leukoscope.inference.patient import POOLINGS


def share(value: Any) -> str:
    """A share of 1 with three digits; a dash where a figure does not exist."""
    from jinja2 import Undefined

    return "–" if value is None or isinstance(value, Undefined) else f"{value:.3f}"


def gain(value: float | None) -> str:
    """A difference of shares, its sign always shown."""
    return "–" if value is None else f"{value:+.3f}"


def span(interval: Mapping[str, float | None] | None) -> str:
    """An interval of shares with two digits: more would claim to know it better. A dash where there is none."""
    low, high = (interval["low"], interval["high"]) if interval else (None, None)
    if low is None or high is None:
        return "–"
    # A dash before a minus sign cannot be read.
    return f"{low:.2f}{' to ' if low < 0 else '–'}{high:.2f}"


def with_interval(block: Mapping[str, Any], figure: str) -> str:
    """A figure of an evaluation with its interval by subject, where there is one."""
    intervals = block.get("intervals", {}).get("by_subject", {})
    value = share(block["metrics"].get(figure))
    return f"{value} ({span(intervals[figure])})" if figure in intervals else value


def pooling(rule: Mapping[str, Any]) -> str:
    """How the "patients" block of metrics.json pools a person's cells, in words."""
    return POOLINGS[rule["pooling"]]


def count(value: int) -> str:
    """A number of cells with thousands separated."""
    return f"{value:,}"


def minutes(seconds: float) -> str:
    """A duration in whole minutes."""
    return f"{seconds / 60:.0f} min"


def joined_since(metrics: Mapping[str, Any]) -> list[str]:
    """Subjects that a release still counts apart, although its data set is now known to hold one person under them.

    Returns:
        one "H2 = H6 = H7" a person; empty when the release was measured with all that is known today.
    """
    info = DATASETS.get(metrics["data"]["name"])
    if info is None:
        return []
    persons: dict[str, list[str]] = {}
    for subject in metrics["training"]["subjects"]:
        persons.setdefault(info.canonical_subject(subject), []).append(subject)
    return [" = ".join(sorted(ids)) for ids in persons.values() if len(ids) > 1]
