"""Tables that a visitor takes home: strangers' words in them must not become formulas of a spreadsheet."""

from __future__ import annotations

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(text: str) -> str:
    """Text that a spreadsheet shows rather than computes."""
    return f"'{text}" if text.startswith(_STARTS_A_FORMULA) else text
