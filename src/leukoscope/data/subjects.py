"""The subject of each picture: from a table that lies among the pictures, else guessed from their names.

`leukoscope patient` asks for a folder, the demo for what a visitor gives: pictures, zips, and tables among them.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

from leukoscope import DataError
from leukoscope.data.cell_tables import CellRow, CellTable, cell_table, names_files
from leukoscope.data.layouts import cell_id_of
from leukoscope.data.subject_ids import check_subject_ids
from leukoscope.data.table_files import TABLE_SUFFIXES, table_in

# Cells of C-NMC 2019 are called UID_<subject>_….
_CNMC_SUBJECT = re.compile(r"UID_([Hh]?\d+)_")
# Folders that name no subject: splits, groups of people, and what a folder of pictures is usually called.
_NO_SUBJECT = re.compile(
    r"fold[-_ ]?\d+|train\w*|test\w*|val\w*|images?|pictures?|cells?|data\w*|normal|healthy|benign|malignant|blasts?|"
    r"leuk\w+|controls?|cases?|patients?|subjects?|persons?|people|donors?",
    re.IGNORECASE,
)
# What one folder around all pictures must be called to be a subject: `P7`, `patient-12`. Any other may be a collection.
_ONE_SUBJECT = re.compile(r"(?:p|pt|pat|patient|s|subj|subject|person|donor)[-_ ]?\d+", re.IGNORECASE)
_MOST_NAMED = 5  # subjects in a sentence


@dataclass(frozen=True)
class PictureSubjects:
    """The subject of each picture.

    Attributes:
        subject_of: picture → its subject; without the pictures that lie beside the folders of people, if subjects were
            guessed; {} where neither a table nor the names tell them.
        label_of: picture → its class, for those whose class a table names.
        guessed_from: the part of the names that subjects were guessed from; "" where they were not guessed.
        notes: sentences for a person: where subjects come from, and which tables were not used.
    """

    subject_of: Mapping[str, str] = field(default_factory=dict)
    label_of: Mapping[str, str] = field(default_factory=dict)
    guessed_from: str = ""
    notes: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Whether a file of that name is read as a table, which `find_subjects` may need."""
    return PurePosixPath(name).suffix.lower() in TABLE_SUFFIXES


def find_subjects(
    pictures: Sequence[str],
    tables: Mapping[str, bytes],
    labels: Sequence[str],
    *,
    folders_lost: bool = False,
    by_folder: bool = True,
) -> PictureSubjects:
    """Find the subject of each picture: by the tables that lie among them, else by C-NMC's names or by folders.

    A table that names the pictures is read as `leukoscope patient` reads one that it is given: paths start from the
    table's folder, a suffix may be missing. Pictures that lie flat have no subject, whatever the archive or folder is
    called that holds them.

    Args:
        pictures: paths with "/", relative to the folder or archive that holds them all.
        tables: path → content of each file for which `is_table` is true; the caller limits their size.
        labels: the classes of the release, which name no subject.
        folders_lost: pictures and tables were sent one by one, without their folders: a row then names the picture that
            has the same file name.
        by_folder: whether subjects may be guessed from folders, and for most of the pictures only.

    Raises:
        DataError: a table that cannot be read or contradicts itself or another, one that names the subjects of
            some pictures only, or subject ids as of `check_subject_ids`.
    """
    rows, notes = _rows_of_tables(pictures, tables, folders_lost)
    label_of = {picture: row.label for picture, row in rows.items() if row.label}
    subject_of = {picture: row.subject for picture, row in rows.items() if row.subject}
    if subject_of:
        names = ", ".join(dict.fromkeys(row.table for row in rows.values() if row.subject))
        without = [picture for picture in pictures if picture not in subject_of]
        if without:
            raise DataError(
                f"{names}: names no subject for {without[0]!r} ({len(without):,} of {len(pictures):,} pictures); add a "
                "row for each picture, or remove the pictures without a row, or remove the table"
            )
        places = {row.subject: f"{row.table}, row {row.number}" for row in reversed(rows.values())}
        check_subject_ids(places, names)
        notes.insert(0, f"Subjects are named by {names}.")
        return PictureSubjects({picture: subject_of[picture] for picture in pictures}, label_of, notes=tuple(notes))
    subject_of, part = _guessed(pictures, labels, by_folder)
    if subject_of:
        check_subject_ids({subject: picture for picture, subject in subject_of.items()}, "subjects guessed from names")
        subjects = sorted(set(subject_of.values()))
        listed = ", ".join(subjects[:_MOST_NAMED])
        if len(subjects) > _MOST_NAMED:
            listed += " …"
        guess = f"Subjects were guessed from {part}: {listed}."
        unknown = len(pictures) - len(subject_of)
        if unknown:
            guess += f" The subject of {unknown:,} of {len(pictures):,} pictures is not known."
        notes.insert(0, f"{guess} A table of files and subjects names them surely.")
    return PictureSubjects(subject_of, label_of, guessed_from=part, notes=tuple(notes))


# Tables


class _NamedRow(NamedTuple):
    """What the tables say of one picture."""

    table: str
    number: int
    subject: str
    label: str


def _rows_of_tables(
    pictures: Sequence[str], tables: Mapping[str, bytes], folders_lost: bool
) -> tuple[dict[str, _NamedRow], list[str]]:
    """Picture → what the tables say of it, and a sentence for each table that names pictures, but was not used."""
    rows: dict[str, _NamedRow] = {}
    notes: list[str] = []
    if not tables:
        return rows, notes
    index = _PictureIndex(pictures, by_file_name=folders_lost)
    for name, content in tables.items():
        file = table_in(name, content)
        if not names_files(file.header):
            continue
        table = cell_table(file)
        if not (table.has_subjects or table.has_labels):
            notes.append(f"{name}: names neither subjects nor classes; it was not used.")
            continue
        row_of = index.rows_by_picture(table)
        if not row_of:
            notes.append(f"{name}: names none of these pictures; it was not used.")
        for picture, row in row_of.items():
            named = _NamedRow(name, row.number, row.subject, row.label)
            if picture in rows:
                named = _joined(picture, rows[picture], named)
            rows[picture] = named
    return rows, notes


def _joined(picture: str, row: _NamedRow, other: _NamedRow) -> _NamedRow:
    """One row of what two tables say of a picture; an error where they differ."""
    for kind in ("subject", "label"):
        first = getattr(row, kind)
        second = getattr(other, kind)
        if first and second and first != second:
            raise DataError(
                f"{picture}: has the {kind} {first!r} in {row.table} (row {row.number}) and {second!r} in "
                f"{other.table} (row {other.number}); correct one of them, or remove one table"
            )
    # Messages about a subject name the table that it stands in.
    source = row if row.subject else other
    return source._replace(subject=row.subject or other.subject, label=row.label or other.label)


class _PictureIndex:
    """Finds the pictures that the rows of tables name."""

    def __init__(self, pictures: Sequence[str], *, by_file_name: bool):
        self.by_file_name = by_file_name
        # Archives made on a Mac hold names in another Unicode form.
        self.exact: defaultdict[str, list[str]] = defaultdict(list)
        self.without_suffix: defaultdict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            key = self._key(picture)
            self.exact[key].append(picture)
            self.without_suffix[cell_id_of(key)].append(picture)

    def _key(self, path: str) -> str:
        if self.by_file_name:
            path = posixpath.basename(path)
        return normalize("NFC", path)

    def rows_by_picture(self, table: CellTable) -> dict[str, CellRow]:
        """Picture → its row; refuses a row that fits two pictures and a picture that has two rows."""
        rows: dict[str, CellRow] = {}
        home = posixpath.dirname(table.name)
        for row in table.rows:
            key = self._key(posixpath.normpath(posixpath.join(home, row.file)))
            pictures = self.exact.get(key) or self.without_suffix.get(key, [])
            if len(pictures) > 1:
                several = " or ".join(sorted(pictures))
                raise DataError(
                    f"{table.name}: row {row.number}: {row.file!r} may be {several}; write the whole path, with suffix"
                )
            for picture in pictures:
                other = rows.setdefault(picture, row)
                if other is not row:
                    raise DataError(
                        f"{table.name}: row {row.number}: {row.file!r} is the file of row {other.number}, too; keep "
                        "one of the two rows"
                    )
        return rows


# Names


def _guessed(pictures: Sequence[str], labels: Sequence[str], by_folder: bool) -> tuple[dict[str, str], str]:
    """Picture → the subject that its name suggests, and the part of the name that does; {} and "" where none does.

    On average a subject must have two pictures: a number of its own for each picture is the picture's. With
    `by_folder`, a few pictures may have no subject, as a file that lies beside the folders.
    """
    cnmc = {picture: _CNMC_SUBJECT.match(posixpath.basename(picture)) for picture in pictures}
    by_name = {picture: match[1] for picture, match in cnmc.items() if match}
    is_named = len(by_name) == len(pictures) or (by_folder and _are_most(by_name, pictures))
    if by_name and is_named and _have_two_each(by_name):
        return by_name, "the number after UID_ in each file name, as C-NMC 2019 names its cells"
    if by_folder:
        people = _folders_of_people(pictures, labels)
        if people and _have_two_each(people):
            return people, "the folder of each picture"
    return {}, ""


def names_no_subject(folder: str, labels: Sequence[str]) -> bool:
    """Whether a folder is called as a class, a split or a collection of pictures is, and not as a subject."""
    return folder.casefold() in {label.casefold() for label in labels} or bool(_NO_SUBJECT.fullmatch(folder))


def _have_two_each(subject_of: Mapping[str, str]) -> bool:
    return 2 * len(set(subject_of.values())) <= len(subject_of)


def _are_most(part: Sized, pictures: Sequence[str]) -> bool:
    return 2 * len(part) > len(pictures)


def _folders_of_people(pictures: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Picture → the one folder above it that may be a subject's; {} where a picture has none or several such folders.

    Of several folders, such as `2024/P1` or `P1/slide2`, nobody can tell which one is the subject. A few pictures that
    lie beside the folders have no subject; the others keep theirs.
    """
    folders = [PurePosixPath(picture).parts[:-1] for picture in pictures]
    common = posixpath.commonprefix([parts for parts in folders if parts])
    subject_of: dict[str, str] = {}
    beside = 0
    for picture, parts in zip(pictures, folders, strict=True):
        named = [part for part in parts[len(common) :] if not names_no_subject(part, labels)]
        if len(named) == 1:
            subject_of[picture] = named[0]
        elif len(parts) <= len(common):
            beside += 1
    if len(subject_of) + beside == len(pictures) and _are_most(subject_of, pictures):
        subjects = set(subject_of.values())
        if not beside or len(subjects) > 1 or _ONE_SUBJECT.fullmatch(subjects.pop()):
            return subject_of
        return {}
    around = [part for part in common if not names_no_subject(part, labels)]
    within = [picture for picture, parts in zip(pictures, folders, strict=True) if parts]
    if not subject_of and len(around) == 1 and _ONE_SUBJECT.fullmatch(around[0]) and _are_most(within, pictures):
        return dict.fromkeys(within, around[0])
    return {}
