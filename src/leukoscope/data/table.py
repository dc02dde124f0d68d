"""Tables of cells: the picture, class, subject and side of each row, read by one function wherever a table is given.

A `metadata.csv` among pictures, `--labels FILE`, a published split and the table of a visitor are read alike. Every
entry stays as the file spells it, because `012`, `NA` and `#1.png` may be a subject and two file names. What could
give a cell to a wrong subject is refused with its row.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from leukoscope import DataError
from leukoscope.data.images import IMAGE_SUFFIXES
from leukoscope.data.names import check_class, check_subject_ids, column_key, folded, side_named, subject_name
from leukoscope.data.reading import NO_COLUMN, NO_FLAGS, Reading
from leukoscope.files import first_line
from leukoscope.progress import note

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
HEADER_HINT = "give a header with the columns file,subject (and label, where classes are known)"

# Role → the names of its column, in lower case with all but letters and digits dropped. `choice` is what Label Studio
# calls the class. They are the same for tables, columns of a Hub data set, splits and visitors.
COLUMNS = {
    "file": ("file", "filename", "filepath", "path", "image", "imagename", "imagepath", "originalimagename"),
    "label": ("label", "class", "choice"),
    "subject": ("subject", "subjectid", "patient", "patientid", "patientname", "person", "personid", "donor", "donorid",
                "case", "caseid"),
    "split": ("split", "subset", "partition"),
    "fold": ("fold", "kfold"),
    "cell_id": ("cellid",),
}  # fmt: skip
_FLAGS = {
    "file": "--file_column",
    "label": "--label_column_name",
    "subject": "--subject_column",
    "split": "--split_column",
}
VISITOR = Reading(split_column=NO_COLUMN)
"""How the table of somebody who gives no flags is read."""
# Blank lines, comments, and Excel's line that names the separator.
_BEFORE_HEADER = re.compile(r"\s*(#|sep=.?\s*$|$)", re.IGNORECASE)
# Of a visitor's table; a quoted entry of several lines is as long as all bytes at most.
_MOST_BYTES = 4 * 2**20
_MOST_ROWS = 20_000
_MOST_COLUMNS = 100
_LONGEST_ROW = 10_000


class CellRow(NamedTuple):
    """One row of a table; what it does not say is ""."""

    number: int  # as a spreadsheet counts
    file: str  # with "/" between folders, without "./"
    label: str
    subject: str
    side: str  # of `SIDES`
    fold: str
    cell_id: str  # the table's own, else `file`


@dataclass(frozen=True)
class CellTable:
    """The rows of a table.

    Attributes:
        name: of its file, for messages.
        columns: role → its column, as the table spells it.
        others: the columns that have no role.
    """

    name: str
    rows: list[CellRow]
    columns: Mapping[str, str]
    others: tuple[str, ...]

    def names(self, field: str) -> bool:
        """Whether some row has an entry in a field, such as "subject"."""
        return any(getattr(row, field) for row in self.rows)

    def with_checked_ids(self) -> CellTable:
        """The same table; refuses ids as `check_subject_ids` does, where no alias may join them."""
        check_subject_ids(((row.subject, f"row {row.number}") for row in self.rows), self.name)
        return self


# Columns


def find_columns(header: Sequence[str], reading: Reading, source: str) -> dict[str, int]:
    """Role → the place of its column; without the roles that no column has.

    Raises:
        DataError: a column that a flag names is missing, or two columns have one role and no flag names one.
    """
    place_of: dict[str, int] = {}
    for role, usual_names in COLUMNS.items():
        named = reading.column(role)
        if named == NO_COLUMN:
            continue
        wanted = usual_names
        if named:
            wanted = (column_key(named),)
        places = [place for place, title in enumerate(header) if column_key(title) in wanted]
        places = [place for place in places if header[place] == named] or places
        if named and not places:
            raise DataError(f"{source}: has no column {named!r} ({_FLAGS[role]}), only {', '.join(header)}")
        if len(places) > 1:
            both = " and ".join(repr(header[place]) for place in places)
            fix = "delete one"
            if role in _FLAGS and reading is not VISITOR:
                fix = f"name one with {_FLAGS[role]}"
            raise DataError(f"{source}: its columns {both} both name the {role}; {fix}")
        if places:
            place_of[role] = places[0]
    return place_of


# Rows


def read_table(path: Path, reading: Reading = NO_FLAGS) -> CellTable:
    """Read a CSV, such as an export of Label Studio, lines of JSON (`.jsonl`) or Parquet.

    Raises:
        DataError: as of `read_frame`, `cell_table` and `check_subject_ids`.
    """
    return cell_table(str(path), read_frame(path), reading).with_checked_ids()


def read_visitor_table(name: str, content: bytes) -> CellTable:
    """Read the table of a stranger: a CSV within limits, which are checked before it is parsed.

    Args:
        name: its path among the pictures, for messages; its rows start from that folder.
        content: not larger than the caller wants to hold in memory.

    Raises:
        DataError: another kind of file, a table beyond the limits, or as of `cell_table`.
    """
    if not is_csv(name):
        raise DataError(f"{name}: tables are read as CSV only; save it as CSV (UTF-8)")
    _require_at_most(_MOST_BYTES, len(content), name, "bytes")
    _require_at_most(_MOST_ROWS, max(content.count(b"\n"), content.count(b"\r")), name, "rows")
    lines = content.splitlines()
    _require_at_most(_LONGEST_ROW, max(map(len, lines), default=0), name, "bytes in a row")
    separators = max((line.count(sign) for line in lines for sign in (b",", b";", b"\t")), default=0)
    _require_at_most(_MOST_COLUMNS, separators + 1, name, "columns")
    return cell_table(name, _csv(name, content), VISITOR).with_checked_ids()


def _require_at_most(most: int, count: int, name: str, things: str) -> None:
    if count > most:
        raise DataError(f"{name}: has {count:,} {things}, more than {most:,}; give a table of these pictures alone")


def is_csv(name: str) -> bool:
    """Whether a file of that name may be a visitor's table."""
    return PurePath(name).suffix.lower() == ".csv"


def cell_table(name: str, frame: pd.DataFrame, reading: Reading, row_named_by: Sequence[str] = ("file",)) -> CellTable:
    """Check the columns and rows of a table of cells; columns may be in any order.

    Args:
        frame: of `read_frame`.
        row_named_by: the roles that may name a row, the first that the table has.

    Raises:
        DataError: columns as of `find_columns`, no column or an empty entry that names a row, a subject or side named
            in some rows only, a side that is none, several classes in a row, or a class in two spellings.
    """
    header = list(frame.columns)
    place_of = find_columns(header, reading, name)
    key_role = next((role for role in row_named_by if role in place_of), "")
    if not key_role:
        raise _no_file_column(name, header, reading)
    named = (
        frame.iloc[:, list(place_of.values())]
        .set_axis(list(place_of), axis=1)
        .reindex(columns=[*COLUMNS], fill_value="")
    )
    rows = []
    row: Any
    for row in named.itertuples():
        key = getattr(row, key_role)
        file = key and posixpath.normpath(_without_server(key).replace("\\", "/"))
        # The names of no subject are those of no class, too.
        rows.append(
            CellRow(
                row.Index,
                file,
                subject_name(row.label),
                subject_name(row.subject),
                row.split,
                row.fold,
                row.cell_id or file,
            )
        )
    columns = {role: header[place] for role, place in place_of.items()}
    others = [title for place, title in enumerate(header) if title and place not in place_of.values()]
    if not rows:
        raise DataError(f"{name}: has a header and no row; add one row for each picture")
    _check_rows(name, rows, columns)
    if "split" in columns:
        rows = [row._replace(side=side_named(row.side)) for row in rows]
    return CellTable(name, rows, columns, tuple(others))


def _no_file_column(name: str, header: Sequence[str], reading: Reading) -> DataError:
    listed = ", ".join(header)
    if any(title.lower().endswith(IMAGE_SUFFIXES) for title in header):
        return DataError(f"{name}: has no header, its first row is {listed}; {HEADER_HINT}")
    fix = "name it with --file_column"
    if reading is VISITOR:
        fix = "call it file"
    return DataError(
        f"{name}: has no column of image paths, such as file, only {listed}; {fix} if there is one, or move the table "
        "away"
    )


def _check_rows(name: str, rows: Sequence[CellRow], columns: Mapping[str, str]) -> None:
    nameless = next((row for row in rows if not row.file), None)
    if nameless:
        raise DataError(f"{name}: row {nameless.number} names no file; fill it in, or delete the row")
    for field in ("subject", "side"):
        unnamed = [row for row in rows if not getattr(row, field)]
        if unnamed and len(unnamed) < len(rows):
            raise DataError(
                f"{name}: row {unnamed[0].number} names no {field} for {unnamed[0].file!r}, other rows name theirs; "
                "fill it in, or delete the row"
            )
    spelt: dict[str, CellRow] = {}
    for row in rows:
        check_class(row.label, f"{name}: row {row.number}")
        other = spelt.setdefault(folded(row.label), row)
        if other.label != row.label:
            raise DataError(
                f"{name}: row {other.number} names the class {other.label!r}, row {row.number} {row.label!r}; spell "
                "one class in one way"
            )
        if row.side and not side_named(row.side):
            raise DataError(
                f"{name}: row {row.number}: its column {columns['split']!r} holds {row.side!r}, which is no side of a "
                "split; write train, validation or test, or leave the column out with --split_column none"
            )


def _without_server(file: str) -> str:
    """The file that Label Studio serves under a path of its own; any other as it is."""
    local = re.match(r"(?:https?://[^/]+)?/data/local-files/\?d=", file)
    if local is not None:
        return unquote(file[local.end() :])
    return re.sub(r"^(?:https?://[^/]+)?/data/upload/\d+/[0-9a-f]{8}-", "", file)


# The pictures that rows name

Finder = Callable[[str], Sequence[str]]
"""Path of a row → the pictures that it may name."""


def rows_by_picture(table: CellTable, find: Finder, home: str | Path = "") -> dict[str, CellRow]:
    """Picture → its row.

    Args:
        home: the folder below which each row must name a picture; "" skips the rows that name none.

    Raises:
        DataError: a row that names no picture, or may name two, or two rows that say different things of one picture.
    """
    row_of: dict[str, CellRow] = {}
    for row in table.rows:
        place = f"{table.name}: row {row.number}"
        pictures = find(row.file)
        if len(pictures) > 1:
            raise DataError(f"{place}: {row.file!r} may be {' or '.join(sorted(pictures))}; write the path with suffix")
        if home and not pictures:
            raise DataError(
                f"{place}: no such file {row.file!r} below {home}; correct the row, or put the table beside the files"
            )
        for picture in pictures:
            other = row_of.setdefault(picture, row)
            for field in ("subject", "label", "side"):
                if getattr(other, field) != getattr(row, field):
                    raise DataError(
                        f"{table.name}: file {row.file!r} is there with {field} {getattr(other, field)!r} (row "
                        f"{other.number}) and with {getattr(row, field)!r} (row {row.number}); keep one of the two rows"
                    )
    return row_of


def files_below(folder: str | Path) -> Finder:
    """A finder of the files on disk that paths below a folder name, with or without suffix, in any Unicode form."""
    images_in = cache(_images_by_stem)

    def find(file: str) -> Sequence[str]:
        # Archives made on a Mac hold names in another Unicode form.
        forms = list(dict.fromkeys([file, normalize("NFC", file), normalize("NFD", file)]))
        for form in forms:
            if os.path.isfile(os.path.join(folder, form)):
                return [form]
        for form in forms:
            inside, stem = posixpath.split(form)
            images = images_in(os.path.join(folder, inside))[stem]
            # In one form: a Mac finds a folder by both, and its pictures twice.
            if images:
                return [posixpath.join(inside, image) for image in images]
        return []

    return find


def _images_by_stem(folder: str) -> defaultdict[str, list[str]]:
    """Name without suffix → the pictures of that name in a folder."""
    images = defaultdict[str, list[str]](list)
    with suppress(OSError, ValueError):  # no folder, or none that can be read; a path may hold a zero byte
        for stem, suffix in map(os.path.splitext, os.listdir(folder)):
            if suffix.lower() in IMAGE_SUFFIXES:
                images[stem].append(stem + suffix)
    return images


# Files


def read_frame(path: Path, fix: str = HEADER_HINT) -> pd.DataFrame:
    """Read any table as text: a row for each row, numbered as a spreadsheet does, without blank ones.

    Raises:
        DataError: a file that cannot be opened or holds no table; messages end with `fix`.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet(path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and who may read it") from None
    if path.suffix.lower() == ".jsonl":
        return _lines_of_json(str(path), content, fix)
    return _csv(str(path), content, fix)


def _csv(name: str, content: bytes, fix: str = HEADER_HINT) -> pd.DataFrame:
    """A table separated by commas, semicolons or tabs, in UTF-8, UTF-16 or, with a note, Windows-1252."""
    import pandas as pd

    text = _decoded(name, content)
    if re.match(r"\s*(\[\s*)?\{\s*\"", text):
        raise DataError(f"{name}: is JSON, not a table; export it as CSV (Label Studio: Export, CSV)")
    lines = re.split(r"\r\n|\r|\n", text)
    first = next((place for place, line in enumerate(lines) if not _BEFORE_HEADER.match(line)), len(lines))
    if first == len(lines):
        raise DataError(f"{name}: is empty; {fix}")
    comments = [line.strip() for line in lines[:first] if line.strip()]
    if comments:
        note(f"{name}: {len(comments)} line(s) before the header left out as comments: {comments[0]!r}", err=True)
    try:
        frame = pd.read_csv(
            io.StringIO("\n".join(lines[first:])),
            sep=max(",;\t", key=lines[first].count),
            header=None,
            index_col=False,
            dtype=str,
            na_filter=False,
            skipinitialspace=True,
            skip_blank_lines=False,
        )
    except pd.errors.ParserError as error:
        longer = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if longer is None:
            raise DataError(f"{name}: is not CSV ({first_line(error)}); {fix}") from None
        raise DataError(
            f"{name}: row {first + int(longer[2])} has {longer[3]} entries, the header {longer[1]}; put quotes around "
            "an entry that holds the separator"
        ) from None
    frame.index += first + 1
    return _without_blanks(frame.iloc[1:].set_axis(frame.iloc[0].tolist(), axis=1))


def _without_blanks(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table without blanks around names and entries, and without blank rows."""
    titles = [str(title).strip() for title in frame.columns]
    frame = frame.set_axis(range(len(titles)), axis=1).apply(lambda column: column.str.strip())
    return frame[(frame != "").any(axis=1)].set_axis(titles, axis=1)


def _lines_of_json(name: str, content: bytes, fix: str) -> pd.DataFrame:
    """One object a line. Not by `pandas.read_json`, which rounds long ids where a row has none."""
    import pandas as pd

    try:
        # Numbers stay as they are spelt.
        rows = [json.loads(line, parse_int=str, parse_float=str) for line in content.splitlines() if line.strip()]
        texts = [{column: str(entry) for column, entry in row.items() if entry is not None} for row in rows]
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: holds no lines of JSON ({error}); {fix}, as CSV") from None
    return _without_blanks(pd.DataFrame(texts, index=range(1, len(texts) + 1), dtype=str).fillna(""))


def _parquet(path: Path) -> pd.DataFrame:
    """The columns of numbers and texts; it may hold pictures, too."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        plain = [field.name for field in pq.read_schema(path) if not _holds_objects(field.type)]
        table = pq.read_table(path, columns=plain)
        texts = {name: table[name].cast(pa.string()).fill_null("").to_pylist() for name in plain}
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)}); write it again") from None
    return _without_blanks(pd.DataFrame(texts, index=range(1, len(table) + 1), dtype=str))


def _holds_objects(kind: object) -> bool:
    """Whether a column's type is that of pictures or lists, which are no entries of a table of cells."""
    from pyarrow import types

    return types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind)


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
