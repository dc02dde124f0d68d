"""Open tables of any kind and read their entries as text: CSV by pandas, lines of JSON, and Parquet by pyarrow.

Every entry stays as the file spells it. Nothing is taken for a number, for a missing value or for a comment, because
`012`, `NA` and `#1.png` may be a subject and two file names.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from leukoscope import DataError
from leukoscope.files import first_line
from leukoscope.progress import note

HEADER_HINT = "give a header with the columns file,subject (and label, where classes are known)"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Of the files that `open_table` reads."""
_SEPARATORS = ",;\t"
# Empty entries that a row may have behind the last column, as spreadsheets write them.
_EMPTY_ENTRIES = 16
# Entries that are held at a time, so that a row of many separators cannot fill the memory.
_ENTRIES_AT_ONCE = 4_000_000
_MOST_COLUMNS = 10_000
# Blank lines, comments, and Excel's line that names the separator.
_BEFORE_HEADER = re.compile(r"\s*(#|sep=.?\s*$|$)", re.IGNORECASE)


class TableFile(NamedTuple):
    """A table as its file holds it."""

    name: str  # for messages
    header: list[str]
    rows: Iterable[tuple[int, list[Any]]]  # the number of each row, as a spreadsheet counts, and its entries


def open_table(path: Path, fix: str = HEADER_HINT) -> TableFile:
    """Open a CSV, or lines of JSON (`.jsonl`) or Parquet by the suffix; rows are read as they are iterated.

    Raises:
        DataError: a file that cannot be opened or holds no table, also while rows are iterated; messages end with
            `fix`.
    """
    if path.suffix.lower() != ".parquet":
        return table_in(str(path), read_content(path), fix)
    # It may hold pictures, too: only the columns of texts and numbers are read.
    try:
        with path.open("rb") as file:
            return _parquet(str(path), file)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({error.strerror}); copy it again, or check who may read it"
        ) from None


def read_content(path: Path) -> bytes:
    """A file's content; raises `DataError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and who may read it") from None


def table_in(name: str, content: bytes, fix: str = HEADER_HINT) -> TableFile:
    """Read a table from memory; its kind is that of the suffix of `name`. Errors as of `open_table`."""
    suffix = PurePath(name).suffix.lower()
    if suffix == ".parquet":
        return _parquet(name, io.BytesIO(content))
    if suffix == ".jsonl":
        return _lines_of_json(name, content, fix)
    return _csv(name, content, fix)


def _csv(name: str, content: bytes, fix: str) -> TableFile:
    """A table separated by commas, semicolons or tabs, in UTF-8, UTF-16 or, with a note, Windows-1252."""
    text = _decoded(name, content)
    if re.match(r"\s*(\[\s*)?\{\s*\"", text):
        raise DataError(f"{name}: is JSON, not a table; export it as CSV (Label Studio: Export, CSV)")
    lines = re.split(r"\r\n|\r|\n", text)
    first = 0
    while first < len(lines) and _BEFORE_HEADER.match(lines[first]):
        first += 1
    if first == len(lines):
        raise DataError(f"{name}: is empty; {fix}")
    comments = [line.strip() for line in lines[:first] if line.strip()]
    if comments:
        note(f"{name}: {len(comments)} line(s) before the header left out as comments: {comments[0]!r}", err=True)
    separator = max(_SEPARATORS, key=lines[first].count)
    if lines[first].count(separator) >= _MOST_COLUMNS:
        raise DataError(f"{name}: has more than {_MOST_COLUMNS:,} columns; {fix}")
    text = "\n".join(lines[first:])
    header = _header(name, text, separator, fix)
    return TableFile(name, header, _rows(name, text, separator, header, first, fix))


def _read_csv(text: str, separator: str, **options: Any) -> Any:
    import pandas as pd

    return pd.read_csv(
        io.StringIO(text),
        sep=separator,
        header=None,
        index_col=False,
        dtype=str,
        na_filter=False,
        keep_default_na=False,
        comment=None,
        skipinitialspace=True,
        skip_blank_lines=False,
        **options,
    )


def _header(name: str, text: str, separator: str, fix: str) -> list[str]:
    from pandas.errors import ParserError

    try:
        return _read_csv(text, separator, nrows=1).iloc[0].tolist()
    except ParserError as error:
        raise DataError(f"{name}: its header is not CSV ({first_line(error)}); {fix}") from None


def _rows(
    name: str, text: str, separator: str, header: list[str], lines_before: int, fix: str
) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header with their numbers, a chunk at a time."""
    from pandas.errors import ParserError

    width = len(header) + _EMPTY_ENTRIES
    try:
        chunks = _read_csv(text, separator, names=range(width), chunksize=max(1, _ENTRIES_AT_ONCE // width))
        for chunk in chunks:
            columns = [chunk[place].tolist() for place in range(width)]
            for place, entries in zip(chunk.index, zip(*columns, strict=True), strict=True):
                if place > 0:
                    yield lines_before + 1 + place, list(entries)
    except ParserError as error:
        long_row = re.search(r"in line (\d+), saw (\d+)", str(error))
        if long_row:
            raise long_row_error(name, lines_before + int(long_row[1]), int(long_row[2]), len(header)) from None
        raise DataError(f"{name}: is not CSV ({first_line(error)}); {fix}") from None


def long_row_error(name: str, number: int, entries: int, columns: int) -> DataError:
    """The error about a row that has more entries than the header has columns."""
    return DataError(
        f"{name}: row {number} has {entries} entries, the header {columns}; put quotes around an entry that holds the "
        "separator"
    )


def _lines_of_json(name: str, content: bytes, fix: str) -> TableFile:
    """One object a line. Not by `pandas.read_json`, which rounds long ids where a row has none."""
    try:
        # Numbers stay as they are spelt.
        rows = [json.loads(line, parse_int=str, parse_float=str) for line in content.splitlines() if line.strip()]
        header = list(dict.fromkeys(column for row in rows for column in row))
        entries = [list(map(row.get, header)) for row in rows]
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: holds no lines of JSON ({error}); {fix}, as CSV") from None
    return TableFile(name, header, list(enumerate(entries, start=1)))


def _parquet(name: str, file: BinaryIO) -> TableFile:
    """The columns of numbers and texts. Not by `pandas.read_parquet`, which hides the columns of an index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        header = [field.name for field in schema if not _holds_objects(field.type)]
        table = pq.read_table(file, columns=header)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: cannot be read as Parquet ({first_line(error)}); copy it again, or check who may read it"
        ) from None
    return TableFile(name, header, enumerate(_rows_of_batches(table), start=1))


def _holds_objects(kind: Any) -> bool:
    """Whether a column's type is that of pictures or lists, which are no entries of a table of cells."""
    from pyarrow import types

    return types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _rows_of_batches(table: Any) -> Iterator[list[Any]]:
    for batch in table.to_batches():
        columns = [column.to_pylist() for column in batch.columns]
        for entries in zip(*columns, strict=True):
            yield list(entries)


def _decoded(name: str, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise DataError(f"{name}: is damaged UTF-16; export it again") from None
    if b"\0" in content or content.startswith(b"PK\x03\x04"):
        raise DataError(f"{name}: is not a text file; export the table as CSV (UTF-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        note(f"{name}: is not in UTF-8 and was read as Windows-1252; check names with umlauts or accents", err=True)
        return content.decode("cp1252", "replace")
