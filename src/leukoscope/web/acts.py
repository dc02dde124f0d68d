"""What a click asks for: `data-act` of a button, such as "example:3", parsed here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Acts without a value, with a number from 0, with or without one, and with a text.
_PLAIN = frozenset({"back", "stop"})
_NUMBERED = frozenset({"example", "recent", "given", "row", "cell"})
_PLAIN_OR_NUMBERED = frozenset({"smear", "people", "real"})
_NAMED = frozenset({"view", "label", "read", "save", "add"})


class NoSuchAct(ValueError):
    """A click that no button of the page makes."""


@dataclass(frozen=True)
class Act:
    """One act with its value: a number, a text or micrometres per pixel, as its name needs."""

    name: str
    number: int | None = None
    text: str = ""
    um_per_pixel: float | None = None


def parse_act(sent: object) -> Act:
    """The act that a click sends as "name" or "name:value".

    Raises:
        NoSuchAct: no button of the page sends this.
    """
    name, _, value = str(sent).partition(":")
    if name in _PLAIN and not value:
        return Act(name)
    if name in _PLAIN_OR_NUMBERED:
        return Act(name, number=_number(value) if value else None)
    if name in _NUMBERED:
        return Act(name, number=_number(value))
    if name in _NAMED and value:
        return Act(name, text=value.strip())
    if name == "pitch":
        return Act(name, um_per_pixel=_um_per_pixel(value))
    raise NoSuchAct(f"{str(sent)[:60]!r}: no button of the page says this")


def _number(value: str) -> int:
    """A number from 0 on of at most six digits."""
    if not (value.isascii() and value.isdecimal() and len(value) <= 6):
        raise NoSuchAct(f"{value[:60]!r}: is not a number of something on the page")
    return int(value)


def _um_per_pixel(value: str) -> float | None:
    """Micrometres per pixel; None, for which they are measured, where nothing or 0 is given."""
    try:
        pitch = float(value or 0)
    except ValueError:
        raise NoSuchAct(f"{value[:60]!r}: is not a number of micrometres per pixel") from None
    if not math.isfinite(pitch):
        raise NoSuchAct(f"{value[:60]!r}: is not a number of micrometres per pixel")
    return pitch or None
