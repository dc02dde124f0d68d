"""Check the ids of subjects: one person must have one id, and one id must be one person's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from unicodedata import normalize

from leukoscope import DataError

_NO_NAME = ("", "nan", "none", "null")
_NUMBER = re.compile(r"[+-]?(?:\d+[.,]?\d*|[.,]\d+)")
# What a spreadsheet makes of a long id: 1.67683E+15, with a decimal comma 1,67683E+15, or 1E+15. A ward may be called
# 2E5 or 2E-5.
_SCIENTIFIC = re.compile(r"[+-]?\d+(?:[.,]\d+E[+-]\d+|E\+\d\d+)", re.IGNORECASE)


def subject_name(entry: object) -> str:
    """The subject that an entry of a table names, without blanks around it; "" for an empty entry, nan, None, null."""
    if entry is None:
        return ""
    name = normalize("NFC", str(entry)).strip().strip("\ufeff")
    return "" if name.casefold() in _NO_NAME else name


def subject_key(subject: str) -> str | Decimal:
    """What two spellings of one subject have in common: the number for `012` and `12.0`, else the id itself.

    Numbers are decimal ones, so that ids of 17 digits are not rounded.
    """
    return Decimal(subject.replace(",", ".")) if _NUMBER.fullmatch(subject) else subject


def check_subject_ids(places: Mapping[str, str], source: str) -> None:
    """Refuse ids that may stand for two people, and two ids that may stand for one person.

    Args:
        places: each subject of a data set, and where it is named, such as "row 2 of cells.csv".
        source: the data set, for messages.

    Raises:
        DataError: an id in a spreadsheet's scientific form, or two ids that are the same number.
    """
    first: dict[Decimal, str] = {}
    for subject, place in places.items():
        if _SCIENTIFIC.fullmatch(subject):
            raise DataError(
                f"{source}: subject {subject!r} ({place}) is in scientific form, to which a spreadsheet shortens long "
                "ids, so that several people share one; format the column as text in the spreadsheet and export it "
                "again"
            )
        number = subject_key(subject)
        if not isinstance(number, Decimal):
            continue
        other = first.setdefault(number, subject)
        if other != subject:
            raise DataError(
                f"{source}: subjects {other!r} ({places[other]}) and {subject!r} ({place}) are the same number; write "
                "the id of one person in one way, and add a letter to the ids of different people (P12)"
            )
