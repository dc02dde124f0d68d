"""How figures are written in cards and tables: one rule each, so that the same figure reads the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def share(value: Any) -> str:
    """A share of 1 with three digits; a dash where a figure does not exist."""
    from jinja2 import Undefined

    return "–" if value is None or isinstance(value, Undefined) else f"{value:.3f}"


def gain(value: float | None) -> str:
    """A difference of shares, its sign always shown."""
    return "–" if value is None else f"{value:+.3f}"


def span(interval: Mapping[str, float] | None) -> str:
    """An interval of shares with two digits: more would claim to know it better."""
    return "–" if interval is None else f"{interval['low']:.2f}–{interval['high']:.2f}"


def with_interval(block: Mapping[str, Any], figure: str) -> str:
    """A figure of an evaluation with its interval by subject, where there is one."""
    intervals = block.get("intervals", {}).get("by_subject", {})
    value = share(block["metrics"][figure])
    return f"{value} ({span(intervals[figure])})" if figure in intervals else value


def count(value: int) -> str:
    """A number of cells with thousands separated."""
    return f"{value:,}"


def minutes(seconds: float) -> str:
    """A duration in whole minutes."""
    return f"{seconds / 60:.0f} min"
