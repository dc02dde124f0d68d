"""Read tables of cells: the file, subject and class of each cell.

Laboratories export such tables from spreadsheets of many languages, or from Label Studio. Whatever is unambiguous is
read; whatever could give a cell to a wrong subject is refused with its row.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from leukoscope import DataError
from leukoscope.data.images import IMAGE_SUFFIXES
from leukoscope.data.subject_ids import check_subject_ids, subject_name
from leukoscope.data.table_files import HEADER_HINT, TableFile, long_row_error, open_table
from leukoscope.progress import note

FILE_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "image", "image_path")
SUBJECT_COLUMNS = ("subject", "subject_id", "patient_id", "patient", "person", "person_id", "donor", "donor_id")
# `choice` is what Label Studio's template of image classification calls its classes.
LABEL_COLUMNS = ("label", "class", "choice")
_COLUMNS = {"file": FILE_COLUMNS, "subject": SUBJECT_COLUMNS, "label": LABEL_COLUMNS, "cell_id": ("cell_id",)}
# Values of --label_column_name that leave the choice to `LABEL_COLUMNS`.
_USUAL = ("", "label")


class CellRow(NamedTuple):
    """One cell of a table; `subject` and `label` are "" where it does not say."""

    number: int  # of its row, as a spreadsheet counts
    file: str  # with "/" between folders, without "./"
    subject: str
    label: str
    cell_id: str  # the table's own, else `file`


@dataclass(frozen=True)
class CellTable:
    """The cells of a table, each picture once.

    Attributes:
        name: of its file, for messages.
        header: the columns, as the file spells them.
        flags: columns of 0 and 1 of which each row has one 1, as in a one-hot table of classes; () if there are none.
    """

    name: str
    rows: list[CellRow]
    header: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def has_subjects(self) -> bool:
        """Whether the table names the subject of every cell; else it names no subject at all."""
        return bool(self.rows) and bool(self.rows[0].subject)

    @property
    def has_labels(self) -> bool:
        """Whether it names the class of a cell."""
        return any(row.label for row in self.rows)


def require_subjects(table: object, has_subjects: bool) -> None:
    """Raise `DataError` if a table names no subjects; folder names are not used instead."""
    if not has_subjects:
        columns = f"a column called subject (or {', '.join(SUBJECT_COLUMNS[1:])})"
        raise DataError(f"{table}: names no subject; add {columns}, or give --subject_pattern")


def require_labels(table: CellTable) -> None:
    """Raise `DataError` if a table names no classes, with the fix for a one-hot table."""
    if table.has_labels:
        return
    if table.flags:
        raise DataError(
            f"{table.name}: has no column of classes; its columns {', '.join(table.flags)} hold 0 and 1 (one-hot): "
            "replace them by one column called label that holds the name of the class"
        )
    raise DataError(
        f"{table.name}: has no column of classes (one of {', '.join(LABEL_COLUMNS)}), only {', '.join(table.header)}; "
        "name the one that holds them with --label_column_name, or add it"
    )


def read_table(path: Path, label_column: str = "") -> CellTable:
    """Read a CSV, such as an export of Label Studio, lines of JSON (`.jsonl`) or Parquet; errors as `cell_table`.

    Raises:
        DataError: a file that cannot be opened or holds no table.
    """
    return cell_table(open_table(path), label_column=label_column)


def read_metadata(path: Path, label_column: str = "") -> CellTable | None:
    """Read a `metadata.csv` or `metadata.jsonl` as 🤗 datasets lays it beside pictures; None for one of another kind.

    It may name subjects alone; raises `DataError` for one with columns of other things, but none of classes.
    """
    file = open_table(path)
    if not names_files(file.header):
        return None
    table = cell_table(file, label_column=label_column)
    usual = [name for names in _COLUMNS.values() for name in names]
    others = [column for column in table.header if _title(column) not in usual]
    if others and not table.has_labels:
        raise DataError(
            f"{path}: has no column called label, but {', '.join(others)}; name that of the classes with "
            f"--label_column_name {others[0]}, or move the file away where folders name the classes"
        )
    return table


def names_files(header: Iterable[str]) -> bool:
    """Whether a table has a column of image paths."""
    return any(_title(column) in FILE_COLUMNS for column in header)


def cell_table(file: TableFile, *, label_column: str = "") -> CellTable:
    """Check the columns and rows of a table of cells.

    Columns may be in any order and case; an index column and blank rows are skipped.

    Args:
        label_column: the column of the classes; "label" for one with a usual name, "" where the reader can do without
            classes.

    Raises:
        DataError: a missing or double column, a row of another length, a row without a file, a subject named in
            some rows only, subject ids as of `check_subject_ids`, a row with several classes, a class spelt in two
            ways, or one picture with two subjects or labels; where a `label_column` is given, a table of labels that
            names no class.
    """
    place_of = _columns(file, label_column)
    flags = _FlagColumns(len(file.header), place_of.values())
    rows: dict[str, CellRow] = {}
    for number, entries in file.rows:
        texts = ["" if entry is None else _stripped(entry) for entry in entries]
        if not any(texts):
            continue
        if any(texts[len(file.header) :]):
            raise long_row_error(file.name, number, len(_without_empty_end(texts)), len(file.header))
        flags.add(texts)
        row = _cell_row(file.name, number, entries, texts, place_of)
        earlier = rows.setdefault(row.file, row)
        for kind in ("subject", "label"):
            _require_same(file.name, earlier, row, kind)
    header = tuple(str(column).strip() for column in file.header)
    table = CellTable(file.name, list(rows.values()), header, tuple(header[place] for place in flags.found()))
    _check_rows(table)
    if label_column and "label" in place_of and not table.has_labels:
        column = header[place_of["label"]]
        raise DataError(f"{table.name}: its column {column!r} names no class in any row; fill it in")
    return table


def _cell_row(
    name: str, number: int, entries: Sequence[Any], texts: Sequence[str], place_of: Mapping[str, int]
) -> CellRow:
    """A row as a cell; `entries` are as the file holds them, `texts` the same without blanks around them."""
    named = {kind: texts[place] for kind, place in place_of.items() if place < len(texts)}
    file = named.get("file")
    if not file:
        raise DataError(f"{name}: row {number} names no file; fill it in, or delete the row")
    file = posixpath.normpath(_without_server(file).replace("\\", "/"))
    label = named.get("label", "")
    if label:
        label = _one_class(entries[place_of["label"]], f"{name}: row {number}")
    # The names of no subject are those of no class, too.
    return CellRow(
        number=number,
        file=file,
        subject=subject_name(named.get("subject")),
        label=subject_name(label),
        cell_id=named.get("cell_id") or file,
    )


def _require_same(name: str, earlier: CellRow, row: CellRow, kind: str) -> None:
    """Refuse two rows of one picture that differ in its subject or label."""
    first = getattr(earlier, kind)
    second = getattr(row, kind)
    if first != second:
        raise DataError(
            f"{name}: file {row.file!r} is there with {kind} {first!r} (row {earlier.number}) and with {second!r} "
            f"(row {row.number}); keep one of the two rows"
        )


class _FlagColumns:
    """Finds the columns of a one-hot table, row by row."""

    def __init__(self, columns: int, others: Iterable[int]):
        self.places = sorted(set(range(columns)) - set(others))  # where all entries are 0 or 1 so far
        self.patterns: set[tuple[int, ...]] = set()  # where the rows have a 1

    def add(self, texts: Sequence[str]) -> None:
        """Look at one row."""
        self.places = [place for place in self.places if place < len(texts) and texts[place] in ("0", "1")]
        if self.places:
            self.patterns.add(tuple(place for place in self.places if texts[place] == "1"))

    def found(self) -> list[int]:
        """The places of two or more such columns; [] if there are none."""
        flags = set(self.places)
        one_hot = len(flags) > 1 and all(len(flags.intersection(pattern)) == 1 for pattern in self.patterns)
        if one_hot:
            return self.places
        return []


def _without_empty_end(texts: Sequence[str]) -> Sequence[str]:
    end = len(texts)
    while end and not texts[end - 1]:
        end -= 1
    return texts[:end]


def _one_class(entry: Any, row: str) -> str:
    """The class that an entry names; Label Studio writes several as {"choices": […]}, other programs as A|B."""
    if isinstance(entry, str) and entry.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            entry = json.loads(entry)
    if isinstance(entry, dict):
        entry = entry.get("choices", [])
    if not isinstance(entry, list):
        entry = str(entry).split("|")
    names = [_stripped(choice) for choice in entry]
    if len(names) > 1 or any(isinstance(choice, dict | list) for choice in entry):
        listed = reprlib.repr(", ".join(names))
        raise DataError(f"{row} names {len(names)} classes ({listed}); give each picture one class, as a text")
    return "".join(names)


def folded(name: str) -> str:
    """A class name without differences in case, Unicode form and number of blanks, to compare it with others."""
    return " ".join(normalize("NFKC", name).casefold().split())


def _check_rows(table: CellTable) -> None:
    """Refuse no row, subjects in some rows only and a class spelt in two ways; say which subjects look alike."""
    name = table.name
    rows = table.rows
    if not rows:
        raise DataError(f"{name}: has a header and no row; add one row for each picture")
    unnamed = [row for row in rows if not row.subject]
    if unnamed and len(unnamed) < len(rows):
        raise DataError(
            f"{name}: row {unnamed[0].number} names no subject for {unnamed[0].file!r}, other rows name theirs; fill "
            "it in, or delete the row"
        )
    spelt: dict[str, CellRow] = {}
    for row in rows:
        other = spelt.setdefault(folded(row.label), row)
        if other.label != row.label:
            raise DataError(
                f"{name}: row {other.number} names the class {other.label!r}, row {row.number} {row.label!r}; spell "
                "one class in one way"
            )
    places: dict[str, str] = {}
    for row in rows:
        if row.subject:
            places.setdefault(row.subject, f"row {row.number}")
    check_subject_ids(places, name)
    _note_similar_subjects(name, places)


def _note_similar_subjects(name: str, subjects: Iterable[str]) -> None:
    """Say which two subjects differ in case only: the first two of what may be thousands."""
    spelt: dict[str, str] = {}
    for subject in sorted(subjects):
        other = spelt.setdefault(subject.casefold(), subject)
        if other != subject:
            note(f"{name}: subjects {other!r} and {subject!r} differ in case only; they count as two", err=True)
            return


def _without_server(file: str) -> str:
    """The file that Label Studio serves under a path of its own; any other as it is."""
    local = re.match(r"(?:https?://[^/]+)?/data/local-files/\?d=", file)
    if local is not None:
        return unquote(file[local.end() :])
    return re.sub(r"^(?:https?://[^/]+)?/data/upload/\d+/[0-9a-f]{8}-", "", file)


def _stripped(entry: object) -> str:
    return str(entry).strip().strip("\ufeff")


def _title(column: object) -> str:
    """The name of a column in lower case, with an underscore for blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", _stripped(normalize("NFC", str(column))).casefold())


def _columns(file: TableFile, label_column: str) -> dict[str, int]:
    """What a table's columns hold ("file", "subject", "label", "cell_id") → their position."""
    titles = [_title(column) for column in file.header]
    listed = ", ".join(str(column).strip() for column in file.header)
    names_of = dict(_COLUMNS)
    if label_column not in _USUAL:
        names_of["label"] = (_title(label_column),)
        if _title(label_column) not in titles:
            raise DataError(f"{file.name}: has no column {label_column!r} (--label_column_name), only {listed}")
    place_of: dict[str, int] = {}
    for kind, names in names_of.items():
        places = [place for place, title in enumerate(titles) if title in names]
        different = {titles[place] for place in places}
        # Two columns of files may stand side by side, such as a name and a path.
        if len(places) > 1 and (kind != "file" or len(different) < len(places)):
            both = " and ".join(repr(str(file.header[place]).strip()) for place in places)
            raise DataError(f"{file.name}: its columns {both} both name the {kind}; keep one of them")
        if places:
            place_of[kind] = min(places, key=lambda place: names.index(titles[place]))
    if "file" in place_of:
        return place_of
    if any(title.endswith(IMAGE_SUFFIXES) for title in titles):
        raise DataError(f"{file.name}: has no header, its first row is {listed}; {HEADER_HINT}")
    raise DataError(
        f"{file.name}: has no column of image paths (one of {', '.join(FILE_COLUMNS)}), only {listed}; rename the one "
        "that holds them"
    )


def located(table: CellTable, root: Path) -> Iterator[tuple[CellRow, str]]:
    """Each row with the path of its file: below `root` relative to it, else absolute.

    A row may name a picture without its suffix. Raises `DataError` for a file that is not there or has two rows,
    or a name without suffix that fits two files.
    """
    home = os.path.realpath(root) + os.sep
    row_of: dict[str, CellRow] = {}
    images_in = cache(_images_by_stem)
    for row in table.rows:
        # Archives made on a Mac hold names in another Unicode form.
        forms = (row.file, normalize("NFC", row.file), normalize("NFD", row.file))
        paths = [form for form in forms if os.path.isfile(os.path.join(root, form))][:1]
        for form in forms:
            # In one form: a Mac finds a folder by both, and its pictures twice.
            if not paths:
                folder, stem = posixpath.split(form)
                paths = [posixpath.join(folder, image) for image in images_in(root / folder)[stem]]
        if not paths:
            raise DataError(f"{table.name}: row {row.number}: no such file {row.file!r} below {root}; correct the row")
        if len(paths) > 1:
            raise DataError(
                f"{table.name}: row {row.number}: {row.file!r} may be {' or '.join(sorted(paths))}; add its suffix"
            )
        path = paths[0]
        if os.path.isabs(path):
            resolved = os.path.realpath(path)
            if resolved.startswith(home):
                path = Path(resolved.removeprefix(home)).as_posix()
        other = row_of.setdefault(path, row)
        if other is not row:
            raise DataError(
                f"{table.name}: row {row.number}: {row.file!r} is the file of row {other.number}, too; keep one of the "
                "two rows"
            )
        yield row, path


def _images_by_stem(folder: Path) -> defaultdict[str, list[str]]:
    """Name without suffix → the pictures of that name in a folder."""
    images = defaultdict[str, list[str]](list)
    with suppress(OSError, ValueError):  # no folder, or none that can be read; a path may hold a zero byte
        for stem, suffix in map(os.path.splitext, os.listdir(folder)):
            if suffix.lower() in IMAGE_SUFFIXES:
                images[stem].append(stem + suffix)
    return images
