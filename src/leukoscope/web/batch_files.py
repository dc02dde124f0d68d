"""Many pictures at once: files, or one zip, checked for size before a picture is read and never unpacked to disk.

Labels and subjects come from a CSV, labels also from the folders of a zip, subjects also from the names.
"""

from __future__ import annotations

import csv
import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from leukoscope import LeukoscopeError
from leukoscope.web.upload import MAX_BYTES, file_name

MAX_FILES, MAX_UNPACKED, MAX_ZIP = 2000, 200 * 2**20, 64 * 2**20
MAX_TABLES, MAX_TABLE, MAX_ROWS = 4, 2**20, 20_000
LONGEST_NAME = 255
MOST_LABELS, MOST_UNKNOWN, LONGEST_LABEL = 20, 20, 60
LONGEST_PATTERN, PATTERN_SECONDS = 200, 0.5
_HOW_A_CSV_LOOKS = "give a header with the column file, and label or subject beside it"


@dataclass(frozen=True)
class BatchFile:
    """One file of a batch, not yet read.

    Attributes:
        name: as given, within a zip with its folders.
        read: its content.
    """

    name: str
    read: Callable[[], bytes]


@dataclass
class Batch:
    """The files given together.

    Attributes:
        files: the pictures, in the order given.
        labels, subjects: file name → its entry in a CSV.
        label_tables: label → the CSV that gives it first.
        problems: one sentence for each file that cannot be used.
    """

    files: list[BatchFile] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    label_tables: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def label_of(self, name: str, classes: Sequence[str]) -> str:
        """A file's true class: by the CSV, else by the folder it lies in; "" where neither names one."""
        known = {one.casefold(): one for one in classes}
        label = _by_name(self.labels, name) or PurePosixPath(name).parent.name
        return known.get(label.casefold(), "")

    def unknown_labels(self, classes: Sequence[str]) -> list[str]:
        """One sentence for each label of a CSV that is none of the classes, at most 20 and how many more there are."""
        known = {one.casefold() for one in classes}
        unknown = [(label, table) for label, table in self.label_tables.items() if label.casefold() not in known]
        lines = [
            f"{table}: label {label[:LONGEST_LABEL]!r} is none of {', '.join(classes)}"
            for label, table in unknown[:MOST_LABELS]
        ]
        more = len(unknown) - MOST_LABELS
        return [*lines, f"{more} more labels are none of {', '.join(classes)}"] if more > 0 else lines


def open_batch(paths: Sequence[str]) -> Batch:
    """List what was uploaded; no picture is read here, each is read when it is needed.

    Args:
        paths: where Gradio put the files; they must stay until the last picture is read.

    Raises:
        LeukoscopeError: too many files or bytes, a zip with path tricks, or a CSV that cannot be read.
    """
    for path in paths:
        if not Path(path).is_file():
            raise LeukoscopeError(f"{file_name(path)}: is no longer here; send it again")
    if (size := sum(Path(path).stat().st_size for path in paths)) > MAX_UNPACKED:
        raise LeukoscopeError(
            f"{len(paths)} files of {size // 2**20} MB were given; at most {MAX_UNPACKED // 2**20} MB fit in one "
            "batch: split it"
        )
    batch, tables = Batch(), []
    for path in paths:
        name = file_name(path)
        if zipfile.is_zipfile(path):
            found = _entries(path, name)
        elif Path(path).stat().st_size > MAX_BYTES:
            raise LeukoscopeError(f"{name}: is over {MAX_BYTES // 2**20} MB; give pictures of single cells, or a zip")
        else:
            found = [BatchFile(name, Path(path).read_bytes)]
        tables += [one for one in found if one.name.casefold().endswith(".csv")]
        batch.files += [one for one in found if not one.name.casefold().endswith(".csv")]
    if len(batch.files) > MAX_FILES:
        raise LeukoscopeError(f"{len(batch.files)} files were given; at most {MAX_FILES} fit in one batch: split it")
    if len(tables) > MAX_TABLES:
        raise LeukoscopeError(f"{len(tables)} CSVs were given; at most {MAX_TABLES} belong to one batch: join them")
    # The first file of each name stays: rows are told apart by it.
    first: dict[str, BatchFile] = {}
    for file in batch.files:
        if file.name in first:
            batch.problems.append(f"{file.name}: was given twice; the first is used")
        first.setdefault(file.name, file)
    batch.files = list(first.values())
    for table in tables:
        _read_table(table, batch)
    return batch


def _entries(path: str, name: str) -> list[BatchFile]:
    if Path(path).stat().st_size > MAX_ZIP:
        raise LeukoscopeError(f"{name}: is over {MAX_ZIP // 2**20} MB; split it")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError):
        raise LeukoscopeError(f"{name}: the zip is damaged; pack it again") from None
    _require_safe(entries, name)
    files = []
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
        if "__MACOSX" not in parts and not hidden:  # what file managers add to archives
            files.append(BatchFile(entry.filename, partial(_unpacked, path, entry)))
    return files


def _require_safe(entries: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse zip bombs and path tricks by the zip's directory; no more than its sizes is ever unpacked."""
    if len(entries) > MAX_FILES + 1:
        raise LeukoscopeError(f"{name}: holds {len(entries)} files; at most {MAX_FILES} fit in one batch: split it")
    if (size := sum(entry.file_size for entry in entries)) > MAX_UNPACKED:
        raise LeukoscopeError(
            f"{name}: would unpack to {size // 2**20} MB, more than {MAX_UNPACKED // 2**20} MB; split it"
        )
    for entry in entries:
        if len(entry.filename) > LONGEST_NAME:
            raise LeukoscopeError(
                f"{name}: holds {entry.filename[:LONGEST_LABEL]}…, a name of {len(entry.filename)} letters; at most "
                f"{LONGEST_NAME} are read: rename it"
            )
        parts = PurePosixPath(entry.filename).parts
        if ".." in parts or entry.filename.startswith("/") or "\\" in entry.filename or ":" in entry.filename:
            raise LeukoscopeError(f"{name}: holds the path {entry.filename!r}, which leads out of it; pack it again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise LeukoscopeError(f"{name}: {entry.filename} is a link, not a file; pack the pictures themselves")
        if entry.flag_bits & 1:
            raise LeukoscopeError(f"{name}: {entry.filename} is encrypted; pack it without a password")
        # Of other methods, Python's zipfile expands a whole chunk before it counts what came out.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise LeukoscopeError(f"{name}: {entry.filename} is not packed by deflate; pack it again as a plain zip")
        if entry.file_size > MAX_BYTES:
            raise LeukoscopeError(f"{name}: {entry.filename} is over {MAX_BYTES // 2**20} MB; crop it to one cell")


def _unpacked(path: str, entry: zipfile.ZipInfo) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
        raise LeukoscopeError(f"{entry.filename}: is damaged within its zip; pack it again") from None


def _read_table(table: BatchFile, batch: Batch) -> None:
    content = table.read()
    if len(content) > MAX_TABLE:
        raise LeukoscopeError(f"{table.name}: is over {MAX_TABLE // 2**20} MB; give one row a picture")
    try:
        rows = [
            {(key or "").strip().casefold(): (value or "").strip() for key, value in row.items() if key is not None}
            for row in islice(csv.DictReader(io.StringIO(content.decode("utf-8-sig", "replace"))), MAX_ROWS + 1)
        ]
    except csv.Error as error:
        raise LeukoscopeError(f"{table.name}: is no CSV ({error}); {_HOW_A_CSV_LOOKS}") from None
    if len(rows) > MAX_ROWS:
        raise LeukoscopeError(f"{table.name}: holds more than {MAX_ROWS:,} rows; give one row a picture")
    if not rows or "file" not in rows[0] or not {"label", "subject"} & rows[0].keys():
        raise LeukoscopeError(f"{table.name}: lacks the columns; {_HOW_A_CSV_LOOKS}")
    known = {file.name for file in batch.files} | {file_name(file.name) for file in batch.files}
    unknown = [row["file"] for row in rows if row["file"] not in known]
    named = [f"{table.name}: names {file[:LONGEST_NAME]!r}, which was not given" for file in unknown[:MOST_UNKNOWN]]
    if (more := len(unknown) - MOST_UNKNOWN) > 0:
        named.append(f"{table.name}: names {more} more files that were not given")
    batch.problems += named
    for row in rows:
        if row["file"] not in known:
            continue
        for column, found in (("label", batch.labels), ("subject", batch.subjects)):
            if row.get(column):
                found[row["file"]] = row[column]
        if label := row.get("label"):
            batch.label_tables.setdefault(label, table.name)


def subjects_of(names: Sequence[str], pattern: str, by_table: Mapping[str, str]) -> dict[str, str]:
    """File name → subject: by the CSV, else what a pattern finds in the name; "" where neither names one.

    Args:
        pattern: a regular expression; its first group, or all of it where it has none, is the subject.

    Raises:
        LeukoscopeError: no regular expression, or one that takes too long.
    """
    # Unlike the standard library's, these patterns can be stopped: a visitor's may run for hours.
    import regex

    if len(pattern) > LONGEST_PATTERN:
        raise LeukoscopeError(f"pattern of {len(pattern)} letters; give one of at most {LONGEST_PATTERN}")
    try:
        wanted = regex.compile(pattern)
        found = {name: wanted.search(name, timeout=PATTERN_SECONDS) if pattern else None for name in names}
    except regex.error as error:
        raise LeukoscopeError(f"pattern {pattern!r}: {error}; give a regular expression such as ^([^_]+)_") from None
    except TimeoutError:
        raise LeukoscopeError(f"pattern {pattern!r}: takes too long; give one without nested repeats") from None
    subjects = {}
    for name, match in found.items():
        by_pattern = (match.groups() or (match.group(),))[0] or "" if match else ""
        subjects[name] = _by_name(by_table, name) or by_pattern
    return subjects


# Tried in this order on the names of a batch; the first that finds several persons in all of them is suggested.
SUGGESTIONS = (
    r"UID_(H?\d+)_",
    r"(?:^|/)([^/]*\d[^/]*)/[^/]+$",
    r"(?:^|/)([A-Za-z]+[-_ ]?\d+)[-_ .][^/]*$",
    r"(?:^|/)([^/_-]+)[_-][^/]*$",
)


def suggested_pattern(names: Sequence[str]) -> str:
    """A pattern that finds the persons in file names, for `subjects_of`; "" where none seems to.

    It must name a person for every file, two persons at least, and two files a person on average: the folders ALL and
    HEM are classes, and a number of its own for each file is the file's.
    """
    for pattern in SUGGESTIONS:
        found = subjects_of(names, pattern, {})
        persons = set(found.values())
        if "" not in persons and 2 <= len(persons) <= len(found) / 2:
            return pattern
    return ""


def _by_name(table: Mapping[str, str], name: str) -> str:
    return table.get(name) or table.get(file_name(name), "")
