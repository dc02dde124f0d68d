"""What all spellings of one name have in common: of a column, a side of a split, a class and a person."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from itertools import groupby
from unicodedata import category, normalize

from leukoscope import DataError

SPLIT_SIDES = ("train", "validation", "test")
"""The sides of a split, in this order."""
_SIDE_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_SIDE_SUFFIX = re.compile(r"(dataset|data|set|split|images|imgs|cells|folder|files)$")
_NO_NAME = ("", "nan", "none", "null")
_NUMBER = re.compile(r"[+-]?(?:\d+[.,]?\d*|[.,]\d+)")
# What a spreadsheet makes of a long id: 1.67683E+15, with a decimal comma 1,67683E+15, or 1E+15. A ward may be called
# 2E5 or 2E-5.
_SCIENTIFIC = re.compile(r"[+-]?\d+(?:[.,]\d+E[+-]\d+|E\+\d\d+)", re.IGNORECASE)


def column_key(name: object) -> str:
    """The name of a column in lower case, with all but letters and digits dropped."""
    return re.sub(r"[\W_]+", "", normalize("NFKC", str(name)).casefold())


def side_named(name: str) -> str:
    """The side of a split that a word names, such as "Training set" or "val"; "" for none."""
    key = column_key(name)
    words = (key, _SIDE_SUFFIX.sub("", key))
    return next((side for side, names in _SIDE_NAMES.items() if not set(names).isdisjoint(words)), "")


def subject_name(entry: object) -> str:
    """The subject that an entry names, without blanks around it; "" for an empty entry, nan, None, null."""
    name = normalize("NFC", str(entry)).strip().strip("\ufeff")
    if name.casefold() in _NO_NAME:
        return ""
    return name


def subject_key(subject: str) -> tuple[str, ...]:
    """What all spellings of one id have in common: its runs of letters and of digits, numbers without leading zeros.

    `P-01` is `P1`, `12.0` is `12` and `="001"` is `1`, but `P1_2` is not `P12`.
    """
    text = "".join(sign for sign in normalize("NFKC", subject).casefold() if category(sign) != "Cf").strip("=\"' ")
    if _NUMBER.fullmatch(text):
        return (str(Decimal(text.replace(",", ".")).normalize()),)
    runs = [(kind, "".join(signs)) for kind, signs in groupby(text, _kind) if kind]
    return tuple(str(int(run)) if kind == "digits" else run for kind, run in runs) or (text,)


def _kind(sign: str) -> str:
    if sign.isdecimal():
        return "digits"
    if category(sign)[0] in "LM":
        return "letters"
    return ""


def check_subject_ids(named: Iterable[tuple[str, str]], source: str) -> None:
    """Refuse ids that may stand for two people, and two ids that may stand for one person.

    Args:
        named: subjects of a data set, each with where it is named, such as "cell 7"; "" is no subject.
        source: the data set, for messages.

    Raises:
        DataError: an id in a spreadsheet's scientific form, or two spellings of one `subject_key`.
    """
    places: dict[str, str] = {}
    for subject, place in named:
        places.setdefault(subject, place)
    places.pop("", None)
    spelt: dict[tuple[str, ...], str] = {}
    for subject, place in places.items():
        if _SCIENTIFIC.fullmatch(subject):
            raise DataError(
                f"{source}: subject {subject!r} ({place}) is in scientific form, to which a spreadsheet shortens long "
                "ids, so that several people share one; format the column as text in the spreadsheet and export it "
                "again"
            )
        other = spelt.setdefault(subject_key(subject), subject)
        if other != subject:
            raise DataError(
                f"{source}: subjects {other!r} ({places[other]}) and {subject!r} ({place}) are two spellings of one "
                "id; write the id of one person in one way, and add a letter to the ids of different people (P12a)"
            )


def folded(name: str) -> str:
    """A class name without differences in case, Unicode form, blanks and zeros of a number, to compare it."""
    text = " ".join(normalize("NFKC", name).casefold().split())
    if _NUMBER.fullmatch(text):
        return str(Decimal(text.replace(",", ".")).normalize())
    return text


def check_class(label: str, place: str) -> None:
    """Raise `DataError` where an entry names several classes, as a list or with a separator."""
    if re.search(r"[,;|]|^[\[{(].*[\]})]$", label):
        raise DataError(
            f"{place} names the class {label!r}; a class is one plain text without , ; | and brackets around it: give "
            "each picture one class"
        )
