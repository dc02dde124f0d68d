"""Read tables of cells: the file, subject and class of each cell.

Laboratories export such tables from spreadsheets of many languages, or from Label Studio. Whatever is unambiguous is
read; whatever could give a cell to a wrong subject is refused with its row. `score`, `patient`, `--labels` and the demo
read them here.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from leukoscope import LeukoscopeError
from leukoscope.data.images import IMAGE_SUFFIXES

FILE_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "image", "image_path")
SUBJECT_COLUMNS = ("subject", "subject_id", "patient_id", "patient", "person", "person_id", "donor", "donor_id")
# `choice` is what Label Studio's template of image classification calls its classes.
LABEL_COLUMNS = ("label", "class", "choice")
HEADER = "give a header with the columns file,subject (and label, where classes are known)"
_COLUMNS = {"file": FILE_COLUMNS, "subject": SUBJECT_COLUMNS, "label": LABEL_COLUMNS, "cell_id": ("cell_id",)}
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
        """Whether the table names the subject of every cell; else it names no subject at all."""
        return bool(self.rows) and bool(self.rows[0].subject)

    @property
    def has_labels(self) -> bool:
        """Whether it names the class of a cell."""
        return any(row.label for row in self.rows)


def require_subjects(table: object, has_subjects: bool) -> None:
    """Raise `LeukoscopeError` if a table names no subjects; folder names are not used instead."""
    if not has_subjects:
        columns = ", ".join(SUBJECT_COLUMNS[1:])
        raise LeukoscopeError(
            f"{table}: names no subject; add a column called subject (or {columns}), or give --subject_pattern"
        )


def subject_name(value: object) -> str:
    """The subject that an entry names, without blanks around it; "" for an empty entry, nan, None and null."""
    name = _stripped(normalize("NFC", str(value)))
    return "" if value is None or name.casefold() in _NO_NAME else name


def read_table(path: Path) -> CellTable:
    """Read a CSV or an export of Label Studio (JSON, JSON-MIN or CSV); raises `LeukoscopeError` for any other file."""
    content = content_of(path)
    if path.suffix.lower() != ".json":
        return parse_csv(content, str(path))
    rows = label_studio_rows(content, str(path))
    header = list(dict.fromkeys(column for row in rows for column in row))
    return cell_table(str(path), header, enumerate(([row.get(column) for column in header] for row in rows), start=1))


def label_studio_rows(content: bytes, name: str) -> list[dict[str, Any]]:
    """Rows of Label Studio's JSON or JSON-MIN export: the task's own columns, and `label`.

    https://labelstud.io/guide/export: a task holds `data` and `annotations`, whose `result` lists the choices. Raises
    `LeukoscopeError` for no such export, or an annotation with several classes.
    """
    fix = "give Label Studio's JSON export, or a CSV with the columns file,label,subject"
    try:
        tasks = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LeukoscopeError(f"{name}: is no JSON ({error}); {fix}") from None
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise LeukoscopeError(f"{name}: is no list of tasks; {fix}")
    rows = []
    for number, task in enumerate(tasks, start=1):
        data = task.get("data", task)
        finished = [one for one in task.get("annotations", []) if not one.get("was_cancelled")]
        results = [one["value"]["choices"] for two in finished for one in two["result"] if one["type"] == "choices"]
        for choices in results:
            if len(choices) != 1:
                raise LeukoscopeError(
                    f"{name}: task {task.get('id', number)} names {len(choices)} classes ({', '.join(choices)}); "
                    'annotate one, with choice="single" in the labelling setup'
                )
        rows += [{**data, "label": choices[0]} for choices in results] or [data]
    return rows


def content_of(path: Path) -> bytes:
    """The bytes of a table; raises `LeukoscopeError` where it cannot be opened."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise LeukoscopeError(
            f"{path}: cannot be read ({error.strerror}); check the path and who may read it"
        ) from None


def parse_csv(content: bytes, name: str) -> CellTable:
    """Read a table of cells; messages call it `name`. Raises `LeukoscopeError` as `csv_rows` and `cell_table` do."""
    header, rows, notes = csv_rows(content, name, HEADER)
    return cell_table(name, header, rows, notes)


def csv_rows(content: bytes, name: str, fix: str) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """Read a table with a header, separated by commas, semicolons or tabs.

    Comments before the header are skipped and Excel's `sep=` line is followed. UTF-8, UTF-16 and, with a note,
    Windows-1252 are read. Raises `LeukoscopeError` for no table; messages call it `name` and end with `fix`.

    Returns:
        the header, (number, entries) of each row, and notes for the table's author.
    """
    text, notes = _decoded(content, name)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    separator = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)
    named = [match[1] for line in lines if (match := separator.fullmatch(line.strip(" ")))]
    headers = (n for n, line in enumerate(lines) if line.strip() and not re.match(r'\s*#|"?sep=', line, re.IGNORECASE))
    if (first := next(headers, None)) is None:
        raise LeukoscopeError(f"{name}: is empty; {fix}")
    delimiter = named[0] if named else max(_DELIMITERS, key=lambda one: lines[first].count(one))
    reader = csv.reader(io.StringIO("\n".join(lines[first:])), delimiter=delimiter, skipinitialspace=True)
    try:
        header, *rows = [(first + reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise LeukoscopeError(f"{name}: row {first + reader.line_num}: is no CSV ({error}); {fix}") from None
    return header[1], rows, notes


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
    """Check the columns and rows of a table of cells.

    Columns may be in any order and case; an index column, comments and blank rows are skipped. `values` are the
    (number, entries) of each row.

    Raises:
        LeukoscopeError: a missing or double column, a row of another length, a row without a file, a subject named in
            some rows only, or one picture with two subjects or labels.
    """
    at = _columns(name, header)
    rows: dict[str, CellRow] = {}
    twice = 0
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
        if not named.get("file"):
            raise LeukoscopeError(f"{name}: row {number} names no file; fill it in, or delete the row")
        file = posixpath.normpath(_without_server(named["file"]).replace("\\", "/"))
        # The names of no subject are those of no class, too.
        subject, label = (subject_name(named.get(kind)) for kind in ("subject", "label"))
        row = CellRow(number, file, subject, label, named.get("cell_id") or file)
        other = rows.setdefault(file, row)
        twice += other is not row
        for what, one, two in (("subject", other.subject, subject), ("label", other.label, label)):
            if one != two:
                raise LeukoscopeError(
                    f"{name}: file {file!r} is there with {what} {one!r} (row {other.number}) and with {two!r} "
                    f"(row {number}); keep one of the two rows"
                )
    if not rows:
        raise LeukoscopeError(f"{name}: has a header and no row; add one row for each picture")
    unnamed = [row for row in rows.values() if not row.subject]
    if unnamed and len(unnamed) < len(rows):
        raise LeukoscopeError(
            f"{name}: row {unnamed[0].number} names no subject for {unnamed[0].file!r}, other rows name theirs; fill "
            "it in, or delete the row"
        )
    said = [*notes, *([f"{name}: {twice} row(s) repeat a picture; it counts once"] if twice else [])]
    spellings: dict[str, str] = {}
    for subject in sorted({row.subject for row in rows.values()}):
        if (other_name := spellings.setdefault(subject.casefold(), subject)) != subject:
            said.append(f"{name}: subjects {other_name!r} and {subject!r} differ in case only; they count as two")
            break
    return CellTable(name, list(rows.values()), tuple(said))


def _without_server(file: str) -> str:
    """The file that Label Studio serves under a path of its own; any other as it is."""
    if (local := re.match(r"(?:https?://[^/]+)?/data/local-files/\?d=", file)) is not None:
        return unquote(file[local.end() :])
    return re.sub(r"^(?:https?://[^/]+)?/data/upload/\d+/[0-9a-f]{8}-", "", file)


def _stripped(entry: object) -> str:
    return str(entry).strip().strip("\ufeff")


def _columns(name: str, header: Sequence[str]) -> dict[str, int]:
    """What a table's columns hold → their position."""
    titles = [re.sub(r"[\s-]+", "_", _stripped(normalize("NFC", str(one))).casefold()) for one in header]
    at = {}
    for kind, names in _COLUMNS.items():
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


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()


class FileIndex:
    """Finds files by names written in another case or Unicode form, or without their suffix."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._folded: dict[str, list[str]] = defaultdict(list)
        self._stems: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._names):
            self._folded[_folded(name)].append(name)
            self._stems[_folded(str(PurePosixPath(name).with_suffix("")))].append(name)

    def find(self, file: str) -> list[str]:
        """The files that a name may mean, those spelt most alike; [] for none."""
        if file in self._names:
            return [file]
        has_suffix = PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES
        return self._folded.get(_folded(file)) or ([] if has_suffix else self._stems.get(_folded(file), []))


def located(table: CellTable, root: Path) -> Iterator[tuple[CellRow, str]]:
    """Each row with the path of its file: below `root` relative to it, else absolute.

    Raises `LeukoscopeError` for a file that is not there, or several that a name may mean.
    """

    @cache
    def files_in(folder: str) -> FileIndex:
        try:
            return FileIndex(entry.name for entry in os.scandir(folder))
        except OSError:
            return FileIndex(())

    home = str(root.resolve())
    for row in table.rows:
        is_absolute, path = os.path.isabs(row.file), os.path.join(root, row.file)
        if not _is_file(path):
            found = ["/" if is_absolute else str(root)]
            for part in PurePosixPath(row.file).parts[is_absolute:]:
                found = [os.path.join(folder, name) for folder in found for name in files_in(folder).find(part)]
            if len(found) > 1:
                raise LeukoscopeError(
                    f"{table.name}: row {row.number}: {row.file!r} may be {' or '.join(map(repr, found[:2]))}; write "
                    "the name as it is, with its suffix"
                )
            if not found or not _is_file(found[0]):
                raise LeukoscopeError(
                    f"{table.name}: row {row.number}: no such file {row.file!r} below {root}; correct the row"
                )
            path = found[0]
        if is_absolute and (resolved := os.path.realpath(path)).startswith(home + os.sep):
            path = os.path.join(root, os.path.relpath(resolved, home))
        yield row, Path(os.path.relpath(path, root)).as_posix() if path.startswith(str(root)) else path


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a zero byte
        return False
