"""Sources of cells for bulk scoring: a folder, a table of paths, or a Parquet file with pictures.

A source knows the number of its cells, and a fingerprint of them, before a picture is opened. It gives its cells from
any of them on, so that memory stays flat and an interrupted run resumes anywhere.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import (
    SUBJECT_COLUMNS,
    CellTable,
    cell_table,
    located,
    read_table,
    require_subjects,
    subject_name,
)
from leukoscope.data.folders import left_out, walk
from leukoscope.data.images import EncodedImage

# Pictures are held encoded until they are predicted; a BMP of a cell takes half a megabyte.
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class SourceCell:
    """One cell to be scored; its id may be its path as the source gives it, and its subject is "" where not known."""

    cell_id: str
    subject: str
    picture: str | EncodedImage

    @property
    def file(self) -> str:
        """The name of its picture in errors."""
        return self.picture.name if isinstance(self.picture, EncodedImage) else self.picture


@dataclass(frozen=True)
class CellSource:
    """Cells to be scored, none of them opened yet.

    Attributes:
        count: number of cells.
        fingerprint: sha256 that changes with the cells, their order, their files or their subjects.
        has_subjects: whether it names the cells' subjects.
        read: number of a cell, from 0 → that cell and those after it, one after the other.
        report: for the user; "" where there is nothing to report.
        table: the file that it was read from; None for a folder.
    """

    count: int
    fingerprint: str
    has_subjects: bool
    read: Callable[[int], Iterator[SourceCell]]
    report: str = ""
    table: Path | None = None

    def subject_of(self, cell: SourceCell, labels: Sequence[str]) -> str:
        """Return a cell's subject; where none is named its top folder, or outside any folder "".

        A folder that is named like one of the release's `labels`, or a table without subjects, is an error.
        """
        if self.table is not None:
            require_subjects(self.table, self.has_subjects)
        path = PurePath(cell.cell_id)
        folders = () if path.is_absolute() or self.has_subjects else path.parts[:-1]
        name = cell.subject or (folders[0] if folders else "")
        if not self.has_subjects and name in labels:
            raise LeukoscopeError(
                f"{cell.file}: lies in the folder {name!r}, which is a class, not a subject; name the subjects with "
                "--subject_pattern, or give a folder with one folder per subject"
            )
        return name


def open_source(named: str, *, subject_pattern: str | None = None) -> CellSource:
    """Open the source that `--input` names.

    Args:
        named: a folder, or a .csv or .parquet file.
        subject_pattern: a regular expression over a cell's path, whose group `subject` (or first group) names its
            subject.

    Raises:
        LeukoscopeError: no such input, no cell in it, a column missing, a path that the pattern does not match, or a
            folder or table that cannot be read.
    """
    path = Path(named)
    if not path.exists():
        raise LeukoscopeError(f"--input {named}: no such folder or file; give a folder of images, or a table of them")
    if path.is_dir():
        source = _folder(path, subject_pattern)
    elif path.suffix.lower() in (".csv", ".json"):
        source = replace(_table_of_paths(path, read_table(path), subject_pattern), table=path)
    elif path.suffix.lower() == ".parquet":
        source = replace(_parquet(path, subject_pattern), table=path)
    else:
        raise LeukoscopeError(f"--input {named}: is a {path.suffix or 'bare'} file; give a folder, .csv or .parquet")
    if not source.count:
        raise LeukoscopeError(f"--input {named}: holds no cell; give a folder of images, or a table with rows")
    return source


def _folder(root: Path, subject_pattern: str | None) -> CellSource:
    kinds: Counter[str] = Counter()

    def rows() -> Iterator[tuple[str, str, str]]:
        """Paths as plain strings: `Path` objects of a million images would take a gigabyte."""
        for listing in walk(root):
            kinds.update(listing.kinds)
            for name in listing.images:
                path = Path(os.path.relpath(os.path.join(listing.folder, name), root)).as_posix()
                yield path, path, ""

    source = _files(root, rows(), subject_pattern, has_subjects=False)
    return replace(source, report=left_out(kinds))


def _parquet(path: Path, subject_pattern: str | None) -> CellSource:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "image" in names:
                kind = file.schema_arrow.field("image").type
                kind = kind.value_type if pa.types.is_dictionary(kind) else kind
                # Text, of whatever type, is a path; a number, say, is neither.
                if pa.types.is_struct(kind) or kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
                    return _table_of_pictures(path, file.metadata.num_rows, names, subject_pattern)
            wanted = [name for name in names if not pa.types.is_nested(file.schema_arrow.field(name).type)]
            batches = (batch.to_pydict() for batch in file.iter_batches(columns=wanted))
            rows = (row for batch in batches for row in zip(*(batch[name] for name in wanted), strict=True))
            return _table_of_paths(path, cell_table(str(path), wanted, enumerate(rows, start=1)), subject_pattern)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(f"--input {path}: is no whole Parquet file", path, error) from None


def _table_of_paths(path: Path, table: CellTable, subject_pattern: str | None) -> CellSource:
    """Cells in files whose paths, relative to the table, stand in one of its columns."""
    if table.has_subjects and subject_pattern:
        raise LeukoscopeError(
            f"--input {path} --subject_pattern {shlex.quote(subject_pattern)}: a column of it names the subjects as "
            "well; leave the pattern out, or the column"
        )
    rows = ((row.cell_id, file, row.subject) for row, file in located(table, path.parent))
    source = _files(path.parent, rows, subject_pattern, has_subjects=table.has_subjects)
    return replace(source, report="\n".join(table.notes))


def _files(
    root: Path, rows: Iterable[tuple[str, str, str]], subject_pattern: str | None, *, has_subjects: bool
) -> CellSource:
    """Cells in files of their own, given as (cell id, path below `root` or absolute, subject)."""
    from leukoscope.data.loading import subject_rule

    subject_of = subject_rule(subject_pattern) if subject_pattern else None
    digest = hashlib.sha256()
    cells: list[tuple[str, str, str]] = []
    for cell_id, path, subject in rows:
        subject = subject_of(path) if subject_of else subject
        # A file name need not be UTF-8.
        row = (os.fsencode(cell_id).decode(errors="replace"), os.fsencode(path), subject)
        digest.update(repr((row, _state(root / path))).encode())
        cells.append((row[0], path, subject))

    def read(first: int) -> Iterator[SourceCell]:
        return (SourceCell(cell_id, subject, str(root / path)) for cell_id, path, subject in islice(cells, first, None))

    return CellSource(len(cells), digest.hexdigest(), has_subjects or subject_of is not None, read)


def _state(path: Path) -> tuple[int, int] | None:
    """A file's size and time; None where there is none, which is reported when it is opened."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a path may hold a zero byte
        return None
    # A row without a path leads to the folder, which changes with every file in it.
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _table_of_pictures(path: Path, count: int, names: Sequence[str], subject_pattern: str | None) -> CellSource:
    """Pictures inside a Parquet file, as 🤗 data sets are stored: read row group by row group."""
    import pyarrow.parquet as pq

    from leukoscope.data.loading import ID_COLUMNS

    if subject_pattern:
        raise LeukoscopeError(
            f"--input {path} --subject_pattern {shlex.quote(subject_pattern)}: its pictures have no paths to match; "
            "give it a column 'subject' instead"
        )
    id_column = next((name for name in ID_COLUMNS if name in names), "")
    subject = next((name for name in names if name.strip().casefold() in SUBJECT_COLUMNS), "")
    columns = ["image", *filter(None, (id_column, subject))]
    owners = list(map(subject_name, pq.read_table(path, columns=[subject])[subject].to_pylist())) if subject else []
    if any(owners) and "" in owners:
        raise LeukoscopeError(
            f"--input {path}: row {owners.index('')} names no subject, other rows name theirs; fill it in, or remove it"
        )

    def read(first: int) -> Iterator[SourceCell]:
        for number, row in _rows_from(path, columns, first):
            cell_id = row.get(id_column)
            cell_id = f"row_{number:06d}" if cell_id is None else str(cell_id)
            owner = row.get(subject)
            # Its bytes alone; or bytes or path, as 🤗 data sets keep them; or nothing.
            stored = row["image"] if isinstance(row["image"], Mapping) else {"bytes": row["image"]}
            stored = {"bytes": stored.get("bytes"), "path": stored.get("path") and str(path.parent / stored["path"])}
            yield SourceCell(cell_id, subject_name(owner), _picture(stored, cell_id))

    fingerprint = hashlib.sha256(repr((path.name, count, _state(path))).encode()).hexdigest()
    return CellSource(count, fingerprint, any(owners), read)


def _picture(stored: Mapping[str, Any], cell_id: str) -> str | EncodedImage:
    """A picture as 🤗 data sets store it, undecoded; without bytes and path, opening it says that the file is empty."""
    if stored["bytes"] is None and stored["path"]:
        return str(stored["path"])
    return EncodedImage(stored["bytes"] or b"", f"cell {cell_id}")


def _rows_from(path: Path, columns: Sequence[str], first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file from one on, with their numbers; row groups before it are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Unbuffered, a row group would be read as a whole, and some writers make one of the whole file.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for group in range(file.num_row_groups):
                if number + (rows := file.metadata.row_group(group).num_rows) <= first:
                    number += rows
                    continue
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
                    skipped = max(0, first - number)
                    yield from enumerate(batch.slice(skipped).to_pylist(), number + skipped)
                    number += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(f"{path}: is damaged from row {number:,} on", path, error) from None


def _unreadable(damaged: str, path: Path, error: Exception) -> LeukoscopeError:
    """Error message for a table that cannot be read from disk, or is damaged."""
    if reason := getattr(error, "strerror", None):
        return LeukoscopeError(f"{path}: cannot be read ({reason}); check the path and who may read it")
    return LeukoscopeError(f"{damaged} ({next(iter(str(error).splitlines()), 'no reason given')}); copy it again")
