"""Sources of cells for bulk scoring: a folder, or a table of paths.

A source knows its cells before a picture is opened.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import NamedTuple

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import CellTable, cell_table, located, read_table, require_subjects
from leukoscope.data.layouts import left_out, walk


class SourceCell(NamedTuple):
    """One cell to be scored: its id, its subject ("" where not known) and its image file."""

    cell_id: str
    subject: str
    file: str


@dataclass(frozen=True)
class CellSource:
    """Cells to be scored, none of them opened yet.

    Attributes:
        has_subjects: whether it names the cells' subjects.
        report: for the user; "" where there is nothing to report.
        table: the file that it was read from; None for a folder.
        states: file → what changes with its content, where no file of this machine can be hashed.
    """

    cells: Sequence[SourceCell]
    has_subjects: bool
    report: str = ""
    table: Path | None = None
    states: Mapping[str, str] | None = None

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
    if not source.cells:
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
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            schema = file.schema_arrow
            wanted = [name for name in schema.names if not pa.types.is_nested(schema.field(name).type)]
            batches = (batch.to_pydict() for batch in file.iter_batches(columns=wanted))
            rows = (row for batch in batches for row in zip(*(batch[name] for name in wanted), strict=True))
            return _table_of_paths(path, cell_table(str(path), wanted, enumerate(rows, start=1)), subject_pattern)
    except (pa.ArrowException, OSError) as error:
        if reason := getattr(error, "strerror", None):
            raise LeukoscopeError(f"{path}: cannot be read ({reason}); check the path and who may read it") from None
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise LeukoscopeError(f"--input {path}: is no whole Parquet file ({reason}); copy it again") from None


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
    from leukoscope.data.folder import subject_rule

    subject_of = subject_rule(subject_pattern) if subject_pattern else None
    cells = []
    for cell_id, path, subject in rows:
        subject = subject_of(path) if subject_of else subject
        # A file's name need not be UTF-8.
        cell_id, subject = (os.fsencode(text).decode(errors="replace") for text in (cell_id, subject))
        cells.append(SourceCell(cell_id, subject, os.path.join(root, path)))
    return CellSource(cells, has_subjects or subject_of is not None)
