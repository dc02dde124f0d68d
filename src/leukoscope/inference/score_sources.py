"""What bulk scoring reads: a folder, a table of paths, a Parquet file that holds its pictures, or a data set.

A source says how many cells it has, and what tells it from another, before a picture is opened. It hands out ascending
ranges of its cells in one pass, so that memory stays flat and a run that was interrupted goes on anywhere.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope import LeukoscopeError
from leukoscope.cells.images import IMAGE_SUFFIXES, EncodedImage

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
# Pictures are held encoded until their turn comes; a BMP of a cell takes half a megabyte.
_ROWS_AT_ONCE = 16
_LISTED_AT_ONCE = 10_000


@dataclass(frozen=True)
class SourceCell:
    """One cell to be scored.

    Attributes:
        cell_id: its id, or its path as the source gives it.
        subject: "" where it is not known.
        encoded: its undecoded picture, as `open_encoded` takes it: under "bytes" or, where that is None, under "path".
    """

    cell_id: str
    subject: str
    encoded: Mapping[str, Any]

    @property
    def file(self) -> str:
        """What errors about its picture call it."""
        return f"cell {self.cell_id}" if isinstance(self.encoded["bytes"], bytes) else str(self.encoded["path"])

    @property
    def picture(self) -> str | EncodedImage:
        """What the predictor opens when its turn comes: a file's path, or the bytes."""
        data = self.encoded["bytes"]
        return EncodedImage(data, self.file) if isinstance(data, bytes) else self.file


@dataclass(frozen=True)
class CellSource:
    """Cells to be scored, none of them opened yet.

    Attributes:
        count: number of cells.
        fingerprint: sha256 that changes with the cells, their order, their files or their subjects.
        has_subjects: whether it says which subject a cell is of.
        read: ascending ranges of cells → those cells, one after the other.
        unreadable: (file, reason) of what was found unusable already, and is not among the cells.
        report: what a person should know of the source; "" where there is nothing.
    """

    count: int
    fingerprint: str
    has_subjects: bool
    read: Callable[[Sequence[range]], Iterator[SourceCell]]
    unreadable: tuple[tuple[str, str], ...] = ()
    report: str = ""


def open_source(named: str, *, train_dir: str | Path | None = None, subject_pattern: str | None = None) -> CellSource:
    """The cells meant by `--input`; a path that exists wins over a data set of that name.

    Args:
        named: a folder, a .csv or .parquet file, a key of `DATASETS`, or a Hub data-set id.
        train_dir: the folder of the data set that `named` is.
        subject_pattern: a regular expression over a cell's path, whose group `subject` (or first group) names its
            subject.

    Raises:
        LeukoscopeError: no such input, no cell in it, a column missing, or a path that the pattern does not match.
    """
    path = Path(named)
    if train_dir is not None or not path.exists():
        source = _data_set(named, train_dir, subject_pattern)
    elif path.is_dir():
        source = _folder(path, subject_pattern)
    elif path.suffix.lower() == ".csv":
        source = _csv(path, subject_pattern)
    elif path.suffix.lower() == ".parquet":
        source = _parquet(path, subject_pattern)
    else:
        raise LeukoscopeError(f"--input {named}: is a {path.suffix or 'bare'} file; give a folder, .csv or .parquet")
    if not source.count:
        raise LeukoscopeError(f"--input {named}: holds no cell; give a folder of images, or a table with rows")
    return source


def _folder(folder: Path, subject_pattern: str | None) -> CellSource:
    return _files(folder, ((path, path, "") for path in _image_paths(folder)), subject_pattern, has_subjects=False)


def _image_paths(folder: Path) -> Iterator[str]:
    """Paths below a folder as plain strings: `Path` objects of a million images would take a gigabyte."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(root, name), folder)).as_posix()


def _csv(path: Path, subject_pattern: str | None) -> CellSource:
    import pyarrow as pa
    from pyarrow import csv

    try:
        names = csv.open_csv(path).schema.names
        columns = _Columns.among(path, names, subject_pattern)
        as_text = csv.ConvertOptions(
            include_columns=columns.wanted, column_types=dict.fromkeys(columns.wanted, pa.string())
        )
        whole_cells = csv.ParseOptions(newlines_in_values=True)
        batches = csv.open_csv(path, parse_options=whole_cells, convert_options=as_text)
        return _files(path.parent, columns.rows(batches), subject_pattern, has_subjects=bool(columns.subject))
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise LeukoscopeError(f"--input {path}: cannot be read as CSV in UTF-8 ({reason}); export it again") from None


def _parquet(path: Path, subject_pattern: str | None) -> CellSource:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if "image" in schema.names and _holds_pictures(schema.field("image").type):
                return _embedded(path, file.metadata.num_rows, schema, subject_pattern)
            columns = _Columns.among(path, schema.names, subject_pattern)
            batches = file.iter_batches(columns=columns.wanted)
            return _files(path.parent, columns.rows(batches), subject_pattern, has_subjects=bool(columns.subject))
    except pa.ArrowInvalid as error:
        raise LeukoscopeError(f"--input {path}: is no whole Parquet file ({error}); copy it again") from None


def _holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column holds files rather than their paths, whatever type of text a writer chose for these."""
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return value not in (pa.string(), pa.large_string(), pa.string_view())


@dataclass(frozen=True)
class _Columns:
    """Where a table keeps what is needed of it; "" for what it has not."""

    cell_id: str
    path: str
    subject: str

    @classmethod
    def among(cls, table: Path, names: Sequence[str], subject_pattern: str | None) -> _Columns:
        path = next((name for name in _PATH_COLUMNS if name in names), None)
        if path is None:
            raise LeukoscopeError(
                f"--input {table}: has no column of image paths (one of {', '.join(_PATH_COLUMNS)}), only "
                f"{', '.join(names)}; rename the one that holds them"
            )
        return cls("cell_id" if "cell_id" in names else path, path, _subject_column(table, names, subject_pattern))

    @property
    def wanted(self) -> list[str]:
        return [name for name in dict.fromkeys((self.cell_id, self.path, self.subject)) if name]

    def rows(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, str, str]]:
        """(cell id, path, subject) of every row."""
        for batch in batches:
            ids, paths = batch.column(self.cell_id).to_pylist(), batch.column(self.path).to_pylist()
            subjects = batch.column(self.subject).to_pylist() if self.subject else [""] * len(ids)
            for row in zip(ids, paths, subjects, strict=True):
                cell_id, path, subject = ("" if value is None else str(value) for value in row)
                yield cell_id, path, subject


def _subject_column(table: Path, names: Sequence[str], subject_pattern: str | None) -> str:
    from leukoscope.cells.loading import SUBJECT_COLUMNS

    column = next((name for name in SUBJECT_COLUMNS if name in names), "")
    if column and subject_pattern:
        raise LeukoscopeError(
            f"--input {table} --subject_pattern {subject_pattern!r}: its column {column!r} names the subjects as well; "
            "leave the pattern out, or the column"
        )
    return column


def _files(
    root: Path, rows: Iterable[tuple[str, str, str]], subject_pattern: str | None, *, has_subjects: bool
) -> CellSource:
    """Cells in files of their own, given as (cell id, path below `root` or absolute, subject)."""
    import pyarrow as pa

    from leukoscope.cells.loading import subject_rule

    subject_of = subject_rule(subject_pattern) if subject_pattern else None
    digest = hashlib.sha256()
    # Arrow's columns hold a path in as many bytes as it has; as bytes, because a file name need not be UTF-8.
    schema = pa.schema(
        [("cell_id", pa.string()), ("path", pa.binary()), ("subject", pa.dictionary(pa.int32(), pa.string()))]
    )
    listed: dict[str, list[Any]] = {name: [] for name in schema.names}
    tables = [schema.empty_table()]
    for cell_id, path, subject in rows:
        if subject_of:
            subject = subject_of(path)
        row = (os.fsencode(cell_id).decode(errors="replace"), os.fsencode(path), subject)
        digest.update(repr((row, _state(root / path))).encode())
        for column, value in zip(listed.values(), row, strict=True):
            column.append(value)
        if len(listed["path"]) == _LISTED_AT_ONCE:
            tables.append(pa.table(listed, schema))
            listed = {name: [] for name in schema.names}
    table = pa.concat_tables([*tables, pa.table(listed, schema)])

    def read(ranges: Sequence[range]) -> Iterator[SourceCell]:
        for wanted in ranges:
            for row in table.slice(wanted.start, len(wanted)).to_pylist():
                encoded = {"bytes": None, "path": str(root / os.fsdecode(row["path"]))}
                yield SourceCell(row["cell_id"], row["subject"], encoded)

    return CellSource(len(table), digest.hexdigest(), has_subjects or subject_of is not None, read)


def _state(path: Path) -> tuple[int, int] | None:
    """What changes when a file does; None where there is none, which is said when its turn comes."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _embedded(path: Path, count: int, schema: pa.Schema, subject_pattern: str | None) -> CellSource:
    """Pictures inside a Parquet file, as 🤗 data sets are stored: read row group by row group."""
    from leukoscope.cells.loading import ID_COLUMNS

    if subject_pattern:
        raise LeukoscopeError(
            f"--input {path} --subject_pattern {subject_pattern!r}: its pictures have no paths to match; give it a "
            "column 'subject' instead"
        )
    names = schema.names
    cell_id = next((name for name in ID_COLUMNS if name in names), "")
    subject = _subject_column(path, names, None)
    columns = ["image", *(name for name in (cell_id, subject) if name)]

    def read(ranges: Sequence[range]) -> Iterator[SourceCell]:
        for number, row in _embedded_rows(path, columns, ranges):
            name = row[cell_id] if cell_id else None
            owner = row[subject] if subject else None
            yield SourceCell(
                f"row_{number:06d}" if name is None else str(name),
                "" if owner is None else str(owner),
                _encoded(row["image"], path.parent),
            )

    fingerprint = hashlib.sha256(repr((path.name, count, _state(path))).encode()).hexdigest()
    return CellSource(count, fingerprint, bool(subject), read)


def _encoded(image: Any, root: Path) -> Mapping[str, Any]:
    """What an image column holds of a picture: its bytes alone, bytes or path as 🤗 data sets keep them, or nothing."""
    stored = image if isinstance(image, Mapping) else {"bytes": image}
    if stored.get("bytes") is None and stored.get("path"):
        return {"bytes": None, "path": str(root / stored["path"])}
    # Without bytes, opening it says that the file is empty.
    return {"bytes": stored.get("bytes") or b"", "path": None}


def _embedded_rows(path: Path, columns: Sequence[str], ranges: Sequence[range]) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq

    # Unbuffered, a row group would be read as a whole, and some writers make one of the whole file.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        sizes = (file.metadata.row_group(k).num_rows for k in range(file.num_row_groups))
        for group, (first, end) in enumerate(pairwise(accumulate(sizes, initial=0))):
            wanted = [rows for rows in ranges if rows.start < end and rows.stop > first]
            if not wanted:
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
                for rows in wanted:
                    start, stop = max(rows.start, first), min(rows.stop, first + len(batch))
                    if start < stop:
                        yield from enumerate(batch.slice(start - first, stop - start).to_pylist(), start)
                first += len(batch)


def _data_set(name: str, train_dir: str | Path | None, subject_pattern: str | None) -> CellSource:
    from leukoscope.cells.loading import load_cells
    from leukoscope.cells.registry import DATASETS

    if name.startswith(("/", ".", "~")) or ("/" not in name and name not in DATASETS):
        raise LeukoscopeError(
            f"--input {name}: no such folder or file, and no data set either ({', '.join(DATASETS)}, or owner/name on "
            "the Hub)"
        )
    from datasets import Image, concatenate_datasets

    data = load_cells(name, train_dir, subject_pattern=subject_pattern)
    rows = concatenate_datasets(list(data.cells.values())).select_columns(["image", "cell_id", "subject"])
    encoded = rows.cast_column("image", Image(decode=False))

    def read(ranges: Sequence[range]) -> Iterator[SourceCell]:
        for wanted in ranges:
            for row in encoded.select(wanted):
                yield SourceCell(row["cell_id"], row["subject"] or "", row["image"])

    problems = (message.partition(": ") for message in data.unreadable)
    return CellSource(
        len(encoded),
        _data_set_fingerprint(data.fingerprint, encoded),
        any(data.train["subject"]),
        read,
        tuple((file, reason) for file, _, reason in problems),
        data.report(),
    )


def _data_set_fingerprint(of_data: str, encoded: Dataset) -> str:
    """That of the data, which knows a local file by its size alone and no order, with what it leaves out.

    Args:
        encoded: columns `image`, not decoded, and `cell_id`.
    """
    digest = hashlib.sha256(of_data.encode())
    # The pictures' bytes, which a data set may hold beside their paths, are not read. Its format names columns that
    # flattening renames.
    for row in encoded.with_format(None).flatten().select_columns(["cell_id", "image.path"]):
        path = row["image.path"]
        digest.update(repr((row["cell_id"], _state(Path(path)) if path else None)).encode())
    return digest.hexdigest()
