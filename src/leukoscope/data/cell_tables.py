"""The one reader of tables that name cells: which file a cell is in, whose it is, and its class.

Laboratories export such tables from spreadsheets of many languages. Whatever is unambiguous is read; whatever could
give a cell to a wrong subject is refused with its row. `score`, `patient`, `--subject_csv` and the demo read them here.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

from leukoscope import LeukoscopeError
from leukoscope.data.images import IMAGE_SUFFIXES

FILE_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "image", "image_path")
SUBJECT_COLUMNS = ("subject", "subject_id", "patient_id", "patient", "person", "person_id", "donor", "donor_id")
LABEL_COLUMNS = ("label", "class")
ID_COLUMN = "cell_id"
HEADER = "give a header with the columns file,subject (and label, where classes are known)"
_DELIMITERS = (",", ";", "\t")
_NO_NAME = ("", "nan", "none", "null")


class CellRow(NamedTuple):
    """One cell of a table.

    Attributes:
        number: of its row, as a spreadsheet counts.
        file: with "/" between folders, without "./".
        subject, label: "" where the table does not say.
        cell_id: the table's own, else `file`.
    """

    number: int
    file: str
    subject: str
    label: str
    cell_id: str


@dataclass(frozen=True)
class CellTable:
    """The cells of a table, each picture once.

    Attributes:
        name: of the table, for messages.
        notes: one sentence on each thing that its author should know.
    """

    name: str
    rows: list[CellRow]
    notes: tuple[str, ...] = ()

    @property
    def has_subjects(self) -> bool:
        """Whether it names the subject of each cell; otherwise it names none."""
        return bool(self.rows) and bool(self.rows[0].subject)

    def require_subjects(self) -> None:
        """Raise `LeukoscopeError` where the table names no subject: no folder's name stands in for one."""
        if not self.has_subjects:
            raise LeukoscopeError(
                f"{self.name}: names no subject; add a column called subject (or {', '.join(SUBJECT_COLUMNS[1:])})"
            )


def subject_name(value: object) -> str:
    """The subject that an entry names, without blanks around it; "" for an empty entry, nan, None and null."""
    name = normalize("NFC", str(value)).strip().strip("\ufeff")
    return "" if value is None or name.casefold() in _NO_NAME else name


def read_csv(path: Path) -> CellTable:
    """Read a table from a file; see `parse_csv`.

    Raises:
        LeukoscopeError: it cannot be opened, or as `parse_csv`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LeukoscopeError(
            f"{path}: cannot be read ({error.strerror}); check the path and who may read it"
        ) from None
    return parse_csv(content, str(path))


def parse_csv(content: bytes, name: str) -> CellTable:
    """Read a table with a header, separated by commas, semicolons or tabs.

    Columns may be in any order and case; an index column, comments before the header and blank rows are skipped, and
    Excel's `sep=` line is followed. UTF-8, UTF-16 and, with a note, Windows-1252 are read.

    Args:
        name: stands in messages.

    Raises:
        LeukoscopeError: no table of cells, or as `cell_table`.
    """
    text, notes = _decoded(content, name)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    separator = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)
    named = [match[1] for line in lines if (match := separator.fullmatch(line.strip(" ")))]
    headers = (n for n, line in enumerate(lines) if line.strip() and not re.match(r'\s*#|"?sep=', line, re.IGNORECASE))
    if (first := next(headers, None)) is None:
        raise LeukoscopeError(f"{name}: is empty; {HEADER}")
    delimiter = named[0] if named else max(_DELIMITERS, key=lambda one: lines[first].count(one))
    reader = csv.reader(io.StringIO("\n".join(lines[first:])), delimiter=delimiter, skipinitialspace=True)
    try:
        header = next(reader)
        return cell_table(name, header, ((first + reader.line_num, row) for row in reader), notes)
    except csv.Error as error:
        raise LeukoscopeError(f"{name}: row {first + reader.line_num}: is no CSV ({error}); {HEADER}") from None


def _decoded(content: bytes, name: str) -> tuple[str, list[str]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16"), []
        except UnicodeDecodeError:
            raise LeukoscopeError(f"{name}: is damaged UTF-16; export it again") from None
    if b"\0" in content or content.startswith(b"PK\x03\x04"):
        raise LeukoscopeError(f"{name}: is no text; export the table as CSV (UTF-8)")
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        note = f"{name}: is not in UTF-8 and was read as Windows-1252; check names with umlauts or accents"
        return content.decode("cp1252", "replace"), [note]


def cell_table(
    name: str, header: Sequence[str], values: Iterable[tuple[int, Sequence[object]]], notes: Sequence[str] = ()
) -> CellTable:
    """Check the columns and rows of a table, wherever it was read.

    Args:
        header: names of the columns.
        values: (number, entries) of each row.

    Raises:
        LeukoscopeError: a missing or double column, a row of another length, a row without a file, a subject named in
            some rows only, or one picture with two subjects or labels.
    """
    at = _columns(name, header)
    rows: dict[str, CellRow] = {}
    twice = 0
    unnamed = named = None
    for number, entries in values:
        cells = [str(entry).strip().strip("\ufeff") if entry is not None else "" for entry in entries]
        if not any(cells) or (cells[0].startswith("#") and not any(cells[1:])):
            continue
        if any(cells[len(header) :]):
            raise LeukoscopeError(
                f"{name}: row {number} has {len(cells)} entries, the header {len(header)}; put quotes around an entry "
                "that holds the separator"
            )
        cells += [""] * (len(header) - len(cells))
        file = clean_path(cells[at["file"]])
        if not file:
            raise LeukoscopeError(f"{name}: row {number} names no file; fill it in, or delete the row")
        row = CellRow(
            number,
            file,
            subject_name(cells[at["subject"]]) if "subject" in at else "",
            cells[at["label"]] if "label" in at else "",
            (cells[at["cell_id"]] if "cell_id" in at else "") or file,
        )
        named, unnamed = (named or row, unnamed) if row.subject else (named, unnamed or row)
        if (other := rows.setdefault(file, row)) is not row:
            twice += 1
            for what, one, two in (("subject", other.subject, row.subject), ("label", other.label, row.label)):
                if one != two:
                    raise LeukoscopeError(
                        f"{name}: file {file!r} is there with {what} {one!r} (row {other.number}) and with {two!r} "
                        f"(row {number}); keep one of the two rows"
                    )
    if not rows:
        raise LeukoscopeError(f"{name}: has a header and no row; add one row for each picture")
    if named and unnamed:
        raise LeukoscopeError(
            f"{name}: row {unnamed.number} names no subject for {unnamed.file!r}, other rows name theirs; fill it in, "
            "or delete the row"
        )
    said = [*notes, *([f"{name}: {twice} row(s) repeat a picture; it counts once"] if twice else [])]
    if alike := _alike({row.subject for row in rows.values()}):
        said.append(f"{name}: subjects {' and '.join(map(repr, alike))} differ in case only; they count as two")
    return CellTable(name, list(rows.values()), tuple(said))


def _columns(name: str, header: Sequence[str]) -> dict[str, int]:
    """What a table's columns hold → their position."""
    titles = [re.sub(r"[\s-]+", "_", normalize("NFC", str(one)).strip().strip("\ufeff").casefold()) for one in header]
    kinds: Mapping[str, Sequence[str]] = {
        "file": FILE_COLUMNS, "subject": SUBJECT_COLUMNS, "label": LABEL_COLUMNS, "cell_id": (ID_COLUMN,),
    }  # fmt: skip
    at = {}
    for kind, names in kinds.items():
        found = [place for place, title in enumerate(titles) if title in names]
        if len(found) > 1 and (kind != "file" or len({titles[place] for place in found}) < len(found)):
            both = " and ".join(repr(str(header[place]).strip()) for place in found)
            raise LeukoscopeError(f"{name}: its columns {both} both name the {kind}; keep one of them")
        if found:
            at[kind] = min(found, key=lambda place: names.index(titles[place]))
    if "file" in at:
        return at
    shown = ", ".join(str(one).strip() for one in header)
    if any(title.endswith(IMAGE_SUFFIXES) for title in titles):
        raise LeukoscopeError(f"{name}: has no header, its first row is {shown}; {HEADER}")
    raise LeukoscopeError(
        f"{name}: has no column of image paths (one of {', '.join(FILE_COLUMNS)}), only {shown}; rename the one that "
        "holds them"
    )


def _alike(names: Iterable[str]) -> list[str]:
    """Two names that differ in case only; [] without."""
    spellings = defaultdict(list)
    for one in sorted(names):
        spellings[one.casefold()].append(one)
    return next((found for found in spellings.values() if len(found) > 1), [])[:2]


def clean_path(file: str) -> str:
    """A path with "/" between its folders, as Windows may have written it, and without "./"."""
    return posixpath.normpath(file.replace("\\", "/")) if file else ""


class FileIndex:
    """Finds files by names that may be written in another case or Unicode form, or without their suffix."""

    def __init__(self, names: Iterable[str]) -> None:
        self._named: dict[str, set[str]] = defaultdict(set)
        for name in names:
            for key in self._spellings(name):
                self._named[key].add(name)
            self._named[f"stem {self._folded(str(PurePosixPath(name).with_suffix('')))}"].add(name)

    @staticmethod
    def _folded(name: str) -> str:
        return normalize("NFC", name).casefold()

    def _spellings(self, name: str) -> tuple[str, ...]:
        return f"as it is {name}", f"folded {self._folded(name)}"

    def find(self, file: str) -> list[str]:
        """The files that a name may mean, those spelt most alike; [] for none."""
        keys = [*self._spellings(file)]
        if PurePosixPath(file).suffix.lower() not in IMAGE_SUFFIXES:
            keys.append(f"stem {self._folded(file)}")
        return next((sorted(self._named[key]) for key in keys if key in self._named), [])


def located(table: CellTable, root: Path) -> Iterator[tuple[CellRow, str]]:
    """Each row with the path of its file: below `root` relative to it, else absolute.

    Raises:
        LeukoscopeError: a file that is not there, or several that a name may mean.
    """

    @cache
    def files_in(folder: str) -> FileIndex:
        try:
            return FileIndex(entry.name for entry in os.scandir(folder))
        except OSError:
            return FileIndex(())

    home = str(root.resolve())
    for row in table.rows:
        path = os.path.join(root, row.file)
        if not _is_file(path):
            *folders, last = PurePosixPath(row.file).parts
            start, here = ([str(root)], folders) if not os.path.isabs(row.file) else (["/"], folders[1:])
            for part in (*here, last):
                start = [os.path.join(one, found) for one in start for found in files_in(one).find(part)]
            if len(start) > 1:
                raise LeukoscopeError(
                    f"{table.name}: row {row.number}: {row.file!r} may be {' or '.join(map(repr, start[:2]))}; write "
                    "the name as it is, with its suffix"
                )
            if not start or not _is_file(start[0]):
                raise LeukoscopeError(
                    f"{table.name}: row {row.number}: no such file {row.file!r} below {root}; correct the row"
                )
            path = start[0]
        if os.path.isabs(row.file) and (resolved := os.path.realpath(path)).startswith(home + os.sep):
            path = os.path.join(root, os.path.relpath(resolved, home))
        yield row, Path(os.path.relpath(path, root)).as_posix() if path.startswith(str(root)) else path


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a zero byte
        return False
