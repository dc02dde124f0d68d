"""The tables that belong to a folder of cells: what `--labels` or `metadata.csv` says of each picture."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from leukoscope import DataError
from leukoscope.data.cell_tables import (
    CellRow,
    CellTable,
    located,
    read_metadata,
    read_table,
    require_labels,
    require_subjects,
)
from leukoscope.data.layouts import CellFile, ImageFolder, cell_id_of
from leukoscope.data.subject_ids import check_subject_ids
from leukoscope.progress import note

METADATA_FILES = ("metadata.csv", "metadata.jsonl")


class LabelRow(NamedTuple):
    """The row of one picture, and the table that it stands in."""

    row: CellRow
    table: str


@dataclass(frozen=True)
class Labels:
    """What the tables of a folder say.

    Attributes:
        root: the folder of the cells.
        names: of the tables, for messages; () where there is none.
        rows: picture → its row.
    """

    root: Path
    names: tuple[str, ...]
    rows: dict[Path, LabelRow]

    @classmethod
    def read(
        cls, folder: ImageFolder, labels: str | Path | None, subject_pattern: str | None, label_column: str
    ) -> Labels:
        """Read the table of `--labels`, else the folder's own as 🤗 datasets reads them: at the root, or one per split.

        Raises:
            DataError: a table that cannot be used, tables that name different things, a picture with two rows, a
                flag that says what a table says or that has no effect, or subject ids as of `check_subject_ids`.
        """
        if labels is not None:
            tables = [(_given_table(Path(labels), subject_pattern, label_column), folder.root)]
        else:
            files = [path for path in folder.others if path.name in METADATA_FILES]
            metadata = [(read_metadata(path, label_column), path.parent) for path in files]
            tables = [(table, home) for table, home in metadata if table is not None]
        if not tables and label_column not in ("", "label"):
            raise DataError(
                f"--label_column_name {label_column}: there is no table in {folder.root}; give it with --labels FILE"
            )
        if subject_pattern:
            _require_no_subjects([table for table, _ in tables], subject_pattern, labels)
        _require_alike([table for table, _ in tables])
        used = [(table, home) for table, home in tables if table.has_labels or table.has_subjects]
        rows = _rows_by_picture(used)
        places: dict[str, str] = {}
        for row, table_name in rows.values():
            if row.subject:
                places.setdefault(row.subject, f"row {row.number} of {table_name}")
        check_subject_ids(places, f"--train_dir {folder.root}")
        return cls(folder.root, tuple(table.name for table, _ in used), rows)

    @classmethod
    def none(cls, folder: ImageFolder) -> Labels:
        """No tables, for a folder whose data set names everything in its paths."""
        return cls(folder.root, (), {})

    @property
    def has_classes(self) -> bool:
        """Whether the tables name the classes; folders then do not."""
        return any(row.label for row, _ in self.rows.values())

    def cells(self, folder: ImageFolder) -> tuple[list[CellFile], list[str]]:
        """The cells that have a class, and one line for each reason why images were left out."""
        cells = [
            CellFile(path, row.label, row.subject, cell_id_of(folder.below(path)))
            for path, (row, _) in self.rows.items()
            if row.label
        ]
        without_class = Counter(table for row, table in self.rows.values() if not row.label)
        not_used = [f"{count} row(s) of {table} name no class: left out" for table, count in without_class.items()]
        others = [path for path in folder.images if path not in self.rows]
        if others:
            names = ", ".join(dict.fromkeys(table for _, table in self.rows.values()))
            not_used.append(f"{len(others):,} image file(s) have no row in {names}, for example {others[0]}: left out")
        return cells, not_used

    def with_subjects(self, cells: Sequence[CellFile], folder: ImageFolder) -> list[CellFile]:
        """The same cells with the subjects that the tables name; as they are where there is no table."""
        if not self.rows:
            return list(cells)
        for cell in cells:
            if cell.path not in self.rows:
                file = folder.below(cell.path)
                raise DataError(f"{self.names[0]}: no row for file {file!r}; every image needs a subject")
        return [replace(cell, subject=self.rows[cell.path].row.subject) for cell in cells]


def _given_table(path: Path, subject_pattern: str | None, label_column: str) -> CellTable:
    """The table of `--labels`, which must name classes, subjects or both."""
    if not path.is_file():
        raise DataError(f"--labels {path}: no such file; it needs the columns file,label,subject")
    table = read_table(path, label_column)
    if table.has_labels:
        return table
    if subject_pattern and not table.has_subjects:
        require_labels(table)
    require_subjects(table.name, table.has_subjects)
    note(f"{table.name}: names subjects; the folders name the classes", err=True)
    if table.flags:
        note(
            f"{table.name}: its columns {', '.join(table.flags)} hold 0 and 1 and are not used; if they are classes, "
            "replace them by one column called label",
            err=True,
        )
    return table


def _require_no_subjects(tables: Sequence[CellTable], subject_pattern: str, labels: str | Path | None) -> None:
    for table in tables:
        if table.has_subjects:
            flag = f"--labels {labels}" if labels is not None else table.name
            raise DataError(
                f"--subject_pattern {shlex.quote(subject_pattern)} {flag}: both name the subjects; give one"
            )


def _require_alike(tables: Sequence[CellTable]) -> None:
    """Refuse a table without subjects, or without classes, beside one with them."""
    for kind, attribute in (("subject", "has_subjects"), ("class", "has_labels")):
        with_it = [table.name for table in tables if getattr(table, attribute)]
        without_it = [table.name for table in tables if not getattr(table, attribute)]
        if with_it and without_it:
            raise DataError(f"{without_it[0]}: names no {kind}, {with_it[0]} does; fill it in")


def _rows_by_picture(tables: Sequence[tuple[CellTable, Path]]) -> dict[Path, LabelRow]:
    """Picture → its row, of tables and the folders that their paths start from."""
    rows: dict[Path, LabelRow] = {}
    for table, home in tables:
        for row, file in located(table, home):
            earlier = rows.setdefault(home / file, LabelRow(row, table.name))
            if earlier.table != table.name:
                raise DataError(
                    f"{table.name}: row {row.number}: {row.file!r} has a row in {earlier.table}, too; keep one of the "
                    "two"
                )
    return rows
