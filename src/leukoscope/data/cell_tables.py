"""Read tables of cells: the file, subject and class of each cell.

Laboratories export such tables from spreadsheets of many languages, or from Label Studio. Whatever is unambiguous is
read; whatever could give a cell to a wrong subject is refused with its row.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from leukoscope import LeukoscopeError
from leukoscope.data.images import IMAGE_SUFFIXES
from leukoscope.progress import note

FILE_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "image", "image_path")
SUBJECT_COLUMNS = ("subject", "subject_id", "patient_id", "patient", "person", "person_id", "donor", "donor_id")
# `choice` is what Label Studio's template of image classification calls its classes.
LABEL_COLUMNS = ("label", "class", "choice")
HEADER = "give a header with the columns file,subject (and label, where classes are known)"
_COLUMNS = {"file": FILE_COLUMNS, "subject": SUBJECT_COLUMNS, "label": LABEL_COLUMNS, "cell_id": ("cell_id",)}
_USUAL = ("", "label")
_NO_NAME = ("", "nan", "none", "null")


class CellRow(NamedTuple):
    """One cell of a table; `subject` and `label` are "" where it does not say."""

    number: int  # of its row, as a spreadsheet counts
    file: str  # with "/" between folders, without "./"
    subject: str
    label: str
    cell_id: str  # the table's own, else `file`


@dataclass(frozen=True)
class CellTable:
    """The cells of a table, each picture once; `name` is for messages."""

    name: str
    rows: list[CellRow]

    @property
    def has_subjects(self) -> bool:
        """Whether the table names the subject of every cell; else it names no subject at all."""
        return bool(self.rows) and bool(self.rows[0].subject)

    @property
    def has_labels(self) -> bool:
        """Whether it names the class of a cell."""
        return any(row.label for row in self.rows)


def require_subjects(table: object, has_subjects: bool) -> None:
    """Raise `LeukoscopeError` if a table names no subjects; folder names are not used instead."""
    if not has_subjects:
        named = f"a column called subject (or {', '.join(SUBJECT_COLUMNS[1:])})"
        raise LeukoscopeError(f"{table}: names no subject; add {named}, or give --subject_pattern")


def subject_name(value: object) -> str:
    """The subject that an entry names, without blanks around it; "" for an empty entry, nan, None and null."""
    name = _stripped(normalize("NFC", str(value)))
    return "" if value is None or name.casefold() in _NO_NAME else name


def read_table(path: Path, label_column: str = "") -> CellTable:
    """Read a CSV, such as an export of Label Studio, or lines of JSON (`.jsonl`); arguments and errors as `cell_table`.

    Raises:
        LeukoscopeError: a file that cannot be opened or holds no table.
    """
    return cell_table(str(path), *_entries(path), label_column=label_column)


def read_metadata(path: Path, label_column: str = "") -> CellTable | None:
    """Read a `metadata.csv` or `metadata.jsonl` as 🤗 datasets lays it beside pictures; None for one of another kind.

    It may name subjects alone; raises `LeukoscopeError` for one with columns of other things, but none of classes.
    """
    header, values = _entries(path)
    titles = {_title(one): str(one) for one in header}
    if not set(FILE_COLUMNS) & set(titles):
        return None
    table = cell_table(str(path), header, values, label_column=label_column)
    known = {name for names in _COLUMNS.values() for name in names}
    if not table.has_labels and (other := [titles[one] for one in titles if one not in known]):
        raise LeukoscopeError(
            f"{path}: has no column called label, but {', '.join(other)}; name that of the classes with "
            f"--label_column_name {other[0]}, or move the file away where folders name the classes"
        )
    return table


def _entries(path: Path) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    if path.suffix.lower() != ".jsonl":
        return csv_rows(path, HEADER)
    try:
        rows = [json.loads(line) for line in _content_of(path).splitlines() if line.strip()]
        header = list(dict.fromkeys(column for row in rows for column in row))
        return header, list(enumerate(([row.get(column) for column in header] for row in rows), start=1))
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise LeukoscopeError(f"{path}: holds no lines of JSON ({error}); {HEADER}, as CSV") from None


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LeukoscopeError(
            f"{path}: cannot be read ({error.strerror}); check the path and who may read it"
        ) from None


def csv_rows(path: Path, fix: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a table with a header, separated by commas, semicolons or tabs: the header, (number, entries) of each row.

    Comments before the header are skipped. UTF-8, UTF-16 and, with a note, Windows-1252 are read. Raises
    `LeukoscopeError` for no table; messages end with `fix`.
    """
    lines = re.split(r"\r\n|\r|\n", _decoded(_content_of(path), path))
    if (first := next((n for n, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"), None)) is None:
        raise LeukoscopeError(f"{path}: is empty; {fix}")
    delimiter = max(",;\t", key=lines[first].count)
    reader = csv.reader(io.StringIO("\n".join(lines[first:])), delimiter=delimiter, skipinitialspace=True)
    try:
        header, *rows = [(first + reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise LeukoscopeError(f"{path}: row {first + reader.line_num}: is no CSV ({error}); {fix}") from None
    return header[1], rows


def _decoded(content: bytes, path: Path) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise LeukoscopeError(f"{path}: is damaged UTF-16; export it again") from None
    if b"\0" in content or content.startswith(b"PK\x03\x04"):
        raise LeukoscopeError(f"{path}: is no text; export the table as CSV (UTF-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        said = "is not in UTF-8 and was read as Windows-1252; check names with umlauts or accents"
        note(f"{path}: {said}", err=True)
        return content.decode("cp1252", "replace")


def cell_table(
    name: str, header: Sequence[str], values: Iterable[tuple[int, Sequence[object]]], *, label_column: str = ""
) -> CellTable:
    """Check the columns and rows of a table of cells.

    Columns may be in any order and case; an index column, comments and blank rows are skipped.

    Args:
        values: the (number, entries) of each row.
        label_column: the column of the classes; "label" for one with a usual name, "" where the reader can do without
            classes.

    Raises:
        LeukoscopeError: a missing or double column, a row of another length, a row without a file, a subject named in
            some rows only, a row with several classes, a class spelt in two ways, or one picture with two subjects or
            labels; where a `label_column` is given, a table of labels that names no class.
    """
    at = _columns(name, header, label_column)
    rows: dict[str, CellRow] = {}
    for number, entries in values:
        cells = ["" if entry is None else _stripped(entry) for entry in entries]
        if not any(cells) or (cells[0].startswith("#") and not any(cells[1:])):
            continue
        if any(cells[len(header) :]):
            raise LeukoscopeError(
                f"{name}: row {number} has {len(cells)} entries, the header {len(header)}; put quotes around an entry "
                "that holds the separator"
            )
        named = {kind: cells[place] for kind, place in at.items() if place < len(cells)}
        if named.get("label"):
            named["label"] = _one_class(entries[at["label"]], f"{name}: row {number}")
        if not named.get("file"):
            raise LeukoscopeError(f"{name}: row {number} names no file; fill it in, or delete the row")
        file = posixpath.normpath(_without_server(named["file"]).replace("\\", "/"))
        # The names of no subject are those of no class, too.
        subject, label = (subject_name(named.get(kind)) for kind in ("subject", "label"))
        other = rows.setdefault(file, CellRow(number, file, subject, label, named.get("cell_id") or file))
        for what, one, two in (("subject", other.subject, subject), ("label", other.label, label)):
            if one != two:
                raise LeukoscopeError(
                    f"{name}: file {file!r} is there with {what} {one!r} (row {other.number}) and with {two!r} "
                    f"(row {number}); keep one of the two rows"
                )
    table = CellTable(name, list(rows.values()))
    _check_rows(table)
    if label_column and "label" in at and not table.has_labels:
        column = str(header[at["label"]]).strip()
        raise LeukoscopeError(f"{name}: its column {column!r} names no class in any row; fill it in")
    return table


def _one_class(entry: Any, row: str) -> str:
    """The class that an entry names; Label Studio writes several as {"choices": […]}, other programs as A|B."""
    if isinstance(entry, str) and entry.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            entry = json.loads(entry)
    if isinstance(entry, dict):
        entry = entry.get("choices", [])
    names = [_stripped(one) for one in (entry if isinstance(entry, list) else str(entry).split("|"))]
    if len(names) > 1 or (isinstance(entry, list) and any(isinstance(one, dict | list) for one in entry)):
        shown = reprlib.repr(", ".join(names))
        raise LeukoscopeError(f"{row} names {len(names)} classes ({shown}); give each picture one class, as a text")
    return "".join(names)


def folded(name: str) -> str:
    """A class name as readers take it who see no difference in case, Unicode form or number of blanks."""
    return " ".join(normalize("NFKC", name).casefold().split())


def _check_rows(table: CellTable) -> None:
    """Refuse no row, subjects in some rows only and a class spelt in two ways; say which subjects look alike."""
    name, rows = table.name, table.rows
    if not rows:
        raise LeukoscopeError(f"{name}: has a header and no row; add one row for each picture")
    unnamed = [row for row in rows if not row.subject]
    if unnamed and len(unnamed) < len(rows):
        raise LeukoscopeError(
            f"{name}: row {unnamed[0].number} names no subject for {unnamed[0].file!r}, other rows name theirs; fill "
            "it in, or delete the row"
        )
    first: dict[str, CellRow] = {}
    for row in rows:
        other = first.setdefault(folded(row.label), row)
        if other.label != row.label:
            raise LeukoscopeError(
                f"{name}: row {other.number} names the class {other.label!r}, row {row.number} {row.label!r}; spell "
                "one class in one way"
            )
    spellings: dict[str, str] = {}
    for subject in sorted({row.subject for row in rows}):
        if (same := spellings.setdefault(subject.casefold(), subject)) != subject:
            note(f"{name}: subjects {same!r} and {subject!r} differ in case only; they count as two", err=True)
            break  # one is told, of what may be thousands


def _without_server(file: str) -> str:
    """The file that Label Studio serves under a path of its own; any other as it is."""
    if (local := re.match(r"(?:https?://[^/]+)?/data/local-files/\?d=", file)) is not None:
        return unquote(file[local.end() :])
    return re.sub(r"^(?:https?://[^/]+)?/data/upload/\d+/[0-9a-f]{8}-", "", file)


def _stripped(entry: object) -> str:
    return str(entry).strip().strip("\ufeff")


def _title(column: object) -> str:
    return re.sub(r"[\s-]+", "_", _stripped(normalize("NFC", str(column))).casefold())


def _columns(name: str, header: Sequence[str], label_column: str) -> dict[str, int]:
    """What a table's columns hold → their position."""
    titles, at, asked = [_title(one) for one in header], {}, _title(label_column)
    labels = LABEL_COLUMNS if label_column in _USUAL else (asked,)
    if label_column not in _USUAL and asked not in titles:
        shown = ", ".join(str(one).strip() for one in header)
        raise LeukoscopeError(f"{name}: has no column {label_column!r} (--label_column_name), only {shown}")
    for kind, names in (_COLUMNS | {"label": labels}).items():
        found = [place for place, title in enumerate(titles) if title in names]
        # Two columns of files may stand side by side, such as a name and a path.
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


def located(table: CellTable, root: Path) -> Iterator[tuple[CellRow, str]]:
    """Each row with the path of its file: below `root` relative to it, else absolute.

    A row may name a picture without its suffix. Raises `LeukoscopeError` for a file that is not there or has two rows,
    or a name without suffix that fits two files.
    """
    home, row_of = os.path.realpath(root) + os.sep, dict[str, CellRow]()
    images_in = cache(_images_by_stem)
    for row in table.rows:
        # Archives made on a Mac hold names in another Unicode form.
        forms = (row.file, normalize("NFC", row.file), normalize("NFD", row.file))
        if not (found := [one for one in forms if os.path.isfile(os.path.join(root, one))][:1]):
            # In one form: a Mac finds a folder by both, and its pictures twice.
            fitting = ((at, images_in(root / at)[stem]) for at, stem in map(posixpath.split, forms))
            found = next(([posixpath.join(at, image) for image in images] for at, images in fitting if images), [])
        if len(found) != 1:
            several = f"{row.file!r} may be {' or '.join(sorted(found))}; add its suffix"
            said = several if found else f"no such file {row.file!r} below {root}; correct the row"
            raise LeukoscopeError(f"{table.name}: row {row.number}: {said}")
        (path,) = found
        if os.path.isabs(path) and (resolved := os.path.realpath(path)).startswith(home):
            path = Path(resolved.removeprefix(home)).as_posix()
        if (other := row_of.setdefault(path, row)) is not row:
            said = f"row {row.number}: {row.file!r} is the file of row {other.number}, too"
            raise LeukoscopeError(f"{table.name}: {said}; keep one of the two rows")
        yield row, path


def _images_by_stem(folder: Path) -> defaultdict[str, list[str]]:
    """Name without suffix → the pictures of that name in a folder."""
    found = defaultdict[str, list[str]](list)
    with suppress(OSError, ValueError):  # no folder, or none that can be read; a path may hold a zero byte
        for stem, suffix in map(os.path.splitext, os.listdir(folder)):
            if suffix.lower() in IMAGE_SUFFIXES:
                found[stem].append(stem + suffix)
    return found
