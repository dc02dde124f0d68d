"""How figures are written in cards and tables: one rule each, so that the same figure reads the same everywhere."""

from __future__ import annotations

from typing import Any


def share(value: Any) -> str:
    """A share of 1 with three digits; a dash where a figure does not exist."""
    from jinja2 import Undefined

    return "–" if value is None or isinstance(value, Undefined) else f"{value:.3f}"


def gain(value: float | None) -> str:
    """A difference of shares, its sign always shown."""
    return "–" if value is None else f"{value:+.3f}"


def count(value: int) -> str:
    """A number of cells with thousands separated."""
    return f"{value:,}"


def minutes(seconds: float) -> str:
    """A duration in whole minutes."""
    return f"{seconds / 60:.0f} min"
