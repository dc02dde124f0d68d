"""Read anybody's split of a data set: which image names are on which side.

Papers and repositories publish splits as tables, as one list a side, as folders, or as row numbers. Nothing here opens
an image. `leukoscope.split_check` says what such a split is worth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from leukoscope import DataError
from leukoscope.data.cell_tables import FILE_COLUMNS, LABEL_COLUMNS, SUBJECT_COLUMNS
from leukoscope.data.cells import SPLIT_SIDES
from leukoscope.data.layouts import cell_id_of, is_image, is_junk, walk
from leukoscope.data.table_files import long_row_error, read_content, table_in

_SIDE_ALIASES = {
    "train": ("train", "training", "trn", "train_set", "training_set", "x_train", "train_files", "train_idx"),
    "validation": ("validation", "val", "valid", "dev", "val_set", "x_val", "val_files", "val_idx"),
    "test": ("test", "testing", "tst", "holdout", "hold-out", "test_set", "x_test", "test_files", "test_idx"),
}
_SIDE_OF = {alias: side for side, aliases in _SIDE_ALIASES.items() for alias in aliases}
_NAME_COLUMNS = (*FILE_COLUMNS, "image_name", "img_name", "name", "cell_id", "image_id", "id", "img", "new_names")
_SUBJECT_COLUMNS = (*SUBJECT_COLUMNS, "patient_name", "case_id")
_SIDE_COLUMNS = ("split", "side", "set", "subset", "partition", "phase", "usage", "fold", "kfold", "cv_fold")
_FOLD = re.compile(r"(?:fold[ _-]?)?(\d+)(?:\.0)?", re.IGNORECASE)
_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_LIST_SUFFIXES = (*_TABLE_SUFFIXES, ".txt", ".lst")
_FORMS = (
    "a CSV with a column of file names and a column split, a folder with train.txt and test.txt or with images in "
    'train/ and test/, or JSON such as {"train": [...], "test": [...]}'
)


@dataclass(frozen=True)
class NamedSplit:
    """The image names on each side of one split, as its author wrote them; `name` tells repetitions apart."""

    sides: Mapping[str, tuple[str, ...]]  # of `SPLIT_SIDES`
    name: str = ""


@dataclass(frozen=True)
class SplitLists:
    """A published split: one division, or several of a cross-validation or a repeated draw.

    Attributes:
        source: the file or folder, for messages.
        subjects, labels: of the names for which the table says them.
    """

    source: str
    splits: tuple[NamedSplit, ...]
    subjects: Mapping[str, str]
    labels: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Every image name, once, sorted."""
        return sorted({name for split in self.splits for names in split.sides.values() for name in names})


def read_split_lists(path: str | Path, files: Sequence[str] = ()) -> SplitLists:
    """Read a split from a table, lists, a folder or row numbers.

    Args:
        path: `_FORMS`. A column of whole numbers, or of `fold_0` …, is a cross-validation: each fold is tested once.
            JSON may also be a list of [train, test] pairs, as scikit-learn's splitters yield them. Files of NumPy
            (`.npz`) hold one array a side.
        files: the sorted file names that row numbers count from; JSON and NumPy may hold them as `files` instead.

    Raises:
        DataError: no such file, none of these forms, or a name that is not on any side.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise DataError(f"--split_file {path}: no such file or folder; give {_FORMS}")
    if path.suffix.lower() == ".json":
        return _read_json(path, files)
    if path.suffix.lower() == ".npz":
        return _read_numpy(path, files)
    if path.suffix.lower() in (*_TABLE_SUFFIXES, ".txt"):
        return _read_table(path)
    raise DataError(f"--split_file {path}: unknown form; give {_FORMS}")


def is_own_split(path: Path) -> bool:
    """Whether a file is a `split.json` that Leukoscope wrote."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return True  # `load_split` says what is wrong with it
    return isinstance(content, dict) and ("data_fingerprint" in content or not content)


def sides_of_cells(split: NamedSplit, cell_ids: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Find the cells of a data set that a split names.

    A name is that of a cell where both agree with folders and without suffix, or else without folders, if one cell
    alone is called so.

    Returns:
        The cell ids on each side of `SPLIT_SIDES`, and the names that are no cell's.
    """
    ids = dict.fromkeys(cell_ids)
    by_stem: dict[str, list[str]] = {}
    for cell in ids:
        by_stem.setdefault(PurePosixPath(cell).name, []).append(cell)
    sides: dict[str, tuple[str, ...]] = {}
    unmatched = []
    for side in SPLIT_SIDES:
        cells = []
        for name in split.sides.get(side, ()):
            path = cell_id_of(name.replace("\\", "/").removeprefix("./"))
            candidates = by_stem.get(PurePosixPath(path).name, [])
            if path in ids:
                candidates = [path]
            if len(candidates) == 1:
                cells.append(candidates[0])
            else:
                unmatched.append(name)
        sides[side] = tuple(dict.fromkeys(cells))
    return sides, unmatched


def side_named(text: str) -> str:
    """The side that a word names ("train", "validation" or "test"); "" for none."""
    return _SIDE_OF.get(text.strip().casefold().replace(" ", "_"), "")


def _read_folder(folder: Path) -> SplitLists:
    lists = _lists_of_folder(folder)
    if any(lists.splits[0].sides.values()):
        return lists
    # A folder for each fold, each with its train and test.
    folds = [_lists_of_folder(path, path.name) for path in sorted(folder.iterdir()) if path.is_dir()]
    folds = [fold for fold in folds if any(fold.splits[0].sides.values())]
    if not folds:
        raise DataError(f"--split_file {folder}: holds no list or folder called train, validation or test")
    subjects: dict[str, str] = {}
    labels: dict[str, str] = {}
    for fold in folds:
        subjects |= fold.subjects
        labels |= fold.labels
    return SplitLists(str(folder), tuple(fold.splits[0] for fold in folds), subjects, labels)


def _lists_of_folder(folder: Path, name: str = "") -> SplitLists:
    """The split whose sides are the lists and folders in a folder called train, validation and test; maybe none."""
    sides: dict[str, list[str]] = {}
    subjects: dict[str, str] = {}
    labels: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        side = side_named(path.stem if path.is_file() else path.name)
        if not side or is_junk(path.name):
            continue
        if path.is_dir():
            names = _images_below(path)
        elif path.suffix.lower() in _TABLE_SUFFIXES:
            rows = _read_side_table(path)
            names = rows.names
            subjects |= rows.subjects
            labels |= rows.labels
        elif path.suffix.lower() in _LIST_SUFFIXES:
            names = _read_lines(path)
        else:
            continue
        sides.setdefault(side, []).extend(names)
    return SplitLists(str(folder), (_named_split(sides, name),), subjects, labels)


def _images_below(folder: Path) -> list[str]:
    names = []
    for inside, files in walk(folder):
        for file in files:
            if is_image(file):
                names.append((Path(inside) / file).relative_to(folder).as_posix())
    return names


def _read_lines(path: Path) -> list[str]:
    """The names of one side, one a line."""
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip()]


class _NamedRows(NamedTuple):
    """Names of a table, and the subjects and classes that it says of them."""

    names: list[str]
    subjects: dict[str, str]
    labels: dict[str, str]


def _read_side_table(path: Path) -> _NamedRows:
    """The names of one side in a table, with a header or without.

    Raises:
        DataError: a table of several columns, none of which is known to name files or subjects.
    """
    table = _table(path)
    if _find_column(table, (*_NAME_COLUMNS, *_SUBJECT_COLUMNS)):
        return _named_rows(path, table)
    image_columns = [title for title in table if is_image(title)]
    if image_columns:  # the first row is no header
        return _NamedRows([image_columns[0], *table[image_columns[0]]], {}, {})
    if len(table) > 1:
        raise DataError(
            f"--split_file {path}: no column of {', '.join(table)} is known to name files or subjects; call it file or "
            "subject"
        )
    return _NamedRows(_read_lines(path), {}, {})


def _named_rows(path: Path, table: Mapping[str, list[str]]) -> _NamedRows:
    """The rows of a table by their files, or by their subjects where it names no file."""
    subject_column = _find_column(table, _SUBJECT_COLUMNS)
    label_column = _find_column(table, LABEL_COLUMNS)
    name_column = _find_column(table, _NAME_COLUMNS) or subject_column
    names = table[name_column]
    if not names or "" in names:
        problem = f"its column {name_column!r} has an empty entry, or one that is not the name of a file"
        raise DataError(f"--split_file {path}: {problem}; name a file in each row")
    subject_of: dict[str, str] = {}
    if subject_column:
        subject_of = dict(zip(names, table[subject_column], strict=True))
    label_of: dict[str, str] = {}
    if label_column:
        label_of = dict(zip(names, table[label_column], strict=True))
    return _NamedRows(names, subject_of, label_of)


def _table(path: Path) -> dict[str, list[str]]:
    """Column → its entries, row by row, as text, nothing taken for missing; blank rows are left out.

    Raises:
        DataError: as `open_table`, a column that comes twice, or a row with more entries than the header.
    """
    name = f"--split_file {path}"
    file = table_in(name, read_content(path), f"give {_FORMS}")
    header = [title.strip() for title in file.header]
    columns: dict[str, list[str]] = {title: [] for title in header if title}
    for title in columns:
        if header.count(title) > 1:
            raise DataError(f"{name}: has two columns {title!r}; rename or delete one")
    for number, entries in file.rows:
        texts = ["" if entry is None else str(entry).strip() for entry in entries]
        if any(texts[len(header) :]):
            last = max(place for place, text in enumerate(texts, start=1) if text)
            raise long_row_error(name, number, last, len(header))
        if not any(texts):
            continue
        for title, text in zip(header, texts, strict=False):
            if title:
                columns[title].append(text)
    return columns


def _find_column(columns: Iterable[str], names: Sequence[str]) -> str:
    """The first of these columns that the table has, in any case; "" for none."""
    by_title = {column.casefold().replace(" ", "_"): column for column in columns}
    return next((by_title[name] for name in names if name in by_title), "")


def _read_table(path: Path) -> SplitLists:
    table = _table(path)
    side_column = _find_column(table, _SIDE_COLUMNS)
    if not _find_column(table, (*_NAME_COLUMNS, *_SUBJECT_COLUMNS)):
        raise DataError(f"--split_file {path}: has no column of file names ({', '.join(_NAME_COLUMNS[:5])} …)")
    if not side_column:
        raise DataError(
            f"--split_file {path}: has no column that says the side ({', '.join(_SIDE_COLUMNS[:5])} …); for one list "
            "per side, give the folder that holds train.txt and test.txt"
        )
    rows = _named_rows(path, table)
    splits = _splits_of_column(path, side_column, rows.names, table[side_column])
    return SplitLists(str(path), splits, rows.subjects, rows.labels)


def _splits_of_column(path: Path, column: str, names: Sequence[str], words: Sequence[str]) -> tuple[NamedSplit, ...]:
    """The splits that a column of sides, or of folds, describes; `words` has one for each name."""
    if all(side_named(word) for word in words):
        sides: dict[str, list[str]] = {}
        for name, word in zip(names, words, strict=True):
            sides.setdefault(side_named(word), []).append(name)
        return (_named_split(sides),)
    matches = [_FOLD.fullmatch(word) for word in words]
    folds: dict[str, list[str]] = {}
    for name, word, match in zip(names, words, matches, strict=True):
        if match is None:
            raise DataError(
                f"--split_file {path}: column {column} holds {word!r} for {name}, which is neither train, validation "
                "or test nor the number of a fold"
            )
        folds.setdefault(match[1], []).append(name)
    return _cross_validation(folds)


def _cross_validation(folds: Mapping[str, Sequence[str]]) -> tuple[NamedSplit, ...]:
    """One split for each fold, which is tested while the others train."""
    splits = []
    for fold in sorted(folds, key=int):
        others = [name for other in folds if other != fold for name in folds[other]]
        splits.append(_named_split({"train": others, "test": folds[fold]}, f"fold {fold}"))
    return tuple(splits)


def _named_split(sides: Mapping[str, Sequence[str]], name: str = "") -> NamedSplit:
    return NamedSplit({side: tuple(sides[side]) for side in SPLIT_SIDES if sides.get(side)}, name)


def _single(source: Path, sides: Mapping[str, Sequence[str]]) -> SplitLists:
    return SplitLists(str(source), (_named_split(sides),), {}, {})


def _read_json(path: Path, files: Sequence[str]) -> SplitLists:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"--split_file {path}: is not JSON ({error}); give {_FORMS}") from None
    if isinstance(content, dict):
        return _from_mapping(path, content, files)
    if isinstance(content, list) and content and all(isinstance(part, list) for part in content):
        if all(_is_pair_of_lists(part) for part in content):
            splits = []
            for number, (train, test) in enumerate(content):
                sides = {"train": _resolved(path, train, files), "test": _resolved(path, test, files)}
                splits.append(_named_split(sides, f"split {number}"))
            return SplitLists(str(path), tuple(splits), {}, {})
        folds = {str(k): _resolved(path, part, files) for k, part in enumerate(content)}
        return SplitLists(str(path), _cross_validation(folds), {}, {})
    raise DataError(f"--split_file {path}: holds no split; give {_FORMS}")


def _is_pair_of_lists(part: list[Any]) -> bool:
    return len(part) == 2 and isinstance(part[0], list) and isinstance(part[1], list)


def _read_numpy(path: Path, files: Sequence[str]) -> SplitLists:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name].tolist() for name in arrays.files}
    except (OSError, ValueError) as error:
        raise DataError(f"--split_file {path}: cannot be read ({error}); give {_FORMS}") from None
    return _from_mapping(path, content, files)


def _from_mapping(path: Path, content: Mapping[str, Any], files: Sequence[str]) -> SplitLists:
    """A split given as side → names or row numbers, or as fold → these."""
    own_files = content.get("files")
    if isinstance(own_files, list):
        files = [str(name) for name in own_files]
    sides: dict[str, list[str]] = {}
    folds: dict[str, list[str]] = {}
    for key, members in content.items():
        if not isinstance(members, list):
            continue
        fold = _FOLD.fullmatch(key)
        side = side_named(key)
        if side:
            sides.setdefault(side, []).extend(_resolved(path, members, files))
        elif fold:
            folds[fold[1]] = _resolved(path, members, files)
    if sides:
        return _single(path, sides)
    if folds:
        return SplitLists(str(path), _cross_validation(folds), {}, {})
    raise DataError(f"--split_file {path}: names no side called train, validation or test; give {_FORMS}")


def _resolved(path: Path, members: Sequence[Any], files: Sequence[str]) -> list[str]:
    """Names of one side; row numbers are looked up in `files`."""
    names = []
    for member in members:
        if isinstance(member, str):
            names.append(member)
        elif isinstance(member, int) and not isinstance(member, bool):
            if not files:
                raise DataError(
                    f"--split_file {path}: holds row numbers such as {member}; give the folder of the images whose "
                    'sorted names they count from, or add these names as "files"'
                )
            if not 0 <= member < len(files):
                raise DataError(f"--split_file {path}: row {member} is none of the {len(files):,} files")
            names.append(files[member])
        else:
            raise DataError(f"--split_file {path}: {member!r} is neither a file name nor a row number")
    return names
