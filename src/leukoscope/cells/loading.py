"""From a folder, a Hub data set or the phantom generator to one 🤗 `DatasetDict` that every later room reads.

Rows carry `image`, `label`, `subject`, `cell_id` and `fold`. The labelled cells are the `train` split; a publisher's
own test set stays a split of its own. What could not be used is counted and named, never silently dropped.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope import LeukoscopeError
from leukoscope.cells.images import UnreadableImage, check_header
from leukoscope.cells.phantoms import phantom_cells
from leukoscope.cells.registry import CellFile, DatasetInfo, dataset_info

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

PRELIMINARY_TEST = "preliminary_test"
_HUB_SUBJECT_COLUMNS = ("subject", "subject_id", "patient_id", "patient")
_HUB_ID_COLUMNS = ("cell_id", "file_name", "filename", "image_name", "original_image_name")


@dataclass(frozen=True)
class LoadedCells:
    """A data set ready to be split.

    Attributes:
        info: the registry entry, with the labels found when the entry leaves them open.
        cells: `train` and, where the publisher has one, `preliminary_test`.
        fingerprint: sha256 over (cell id, label, subject, size in bytes) of every row; the same data gives the
            same value whatever the folder.
        unreadable: one message a file that could not be used.
        count_differences: one line a partition whose counts differ from the publisher's.
    """

    info: DatasetInfo
    cells: DatasetDict
    fingerprint: str
    unreadable: tuple[str, ...] = ()
    count_differences: tuple[str, ...] = ()

    @property
    def train(self) -> Dataset:
        """The labelled cells that splits are drawn from."""
        return self.cells["train"]

    def without(self, problems: Mapping[str, str]) -> LoadedCells:
        """The same data less the cells found damaged, given as cell id → message."""
        if not problems:
            return self
        from datasets import DatasetDict

        parts = {
            name: rows.select([i for i, cell in enumerate(rows["cell_id"][:]) if cell not in problems])
            for name, rows in self.cells.items()
        }
        return replace(
            self,
            cells=DatasetDict(parts),
            fingerprint=_fingerprint([(self.fingerprint,), *((cell,) for cell in problems)]),
            unreadable=(*self.unreadable, *problems.values()),
        )

    def report(self) -> str:
        """What a person should know about the data before training, one line a fact."""
        counts = ", ".join(f"{name}: {len(rows):,} cells" for name, rows in self.cells.items())
        subjects = len({s for s in self.train["subject"] if s})
        lines = [f"{self.info.title} — {counts}" + (f", {subjects} subjects" if subjects else "")]
        if self.info.synthetic:
            lines.append("These cells are synthetic: figures on them say nothing about patients.")
        lines += [f"counts differ: {line}" for line in self.count_differences]
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} unreadable file(s) left out:")
            lines += [f"  {message}" for message in self.unreadable]
        return "\n".join(lines)


def load_cells(
    dataset_name: str,
    train_dir: str | Path | None = None,
    *,
    subject_pattern: str | None = None,
    subject_csv: str | Path | None = None,
    seed: int = 0,
    image_size: int = 450,
) -> LoadedCells:
    """Load a data set by registry name from a local folder, or from the Hub.

    Args:
        dataset_name: a key of `DATASETS`, or a Hub data-set id (`owner/name`).
        train_dir: the folder that holds the cells; without it the entry's Hub data set is asked for.
        subject_pattern: `imagefolder` only: a regular expression over the path below `train_dir`, whose group
            `subject` (or first group) names the subject.
        subject_csv: `imagefolder` only: a CSV with columns `file` (path below `train_dir`) and `subject`.
        seed: of the phantoms.
        image_size: side in pixels of the phantoms.

    Raises:
        LeukoscopeError: unknown data set, missing or empty folder, bad pattern, unreachable Hub data set.
    """
    if "/" in dataset_name and train_dir is None:
        return _load_from_hub(dataset_name, _entry_of_hub_id(dataset_name))
    info = dataset_info(dataset_name)
    if (subject_pattern or subject_csv) and info.name != "imagefolder":
        raise LeukoscopeError(
            f"--dataset_name {info.name}: names its subjects itself; --subject_pattern and --subject_csv are for "
            "--dataset_name imagefolder"
        )
    if info.synthetic:
        return _draw_phantoms(info, seed, image_size)
    if train_dir is not None:
        return _load_from_folder(info, Path(train_dir), subject_pattern, subject_csv)
    if info.hub_id is None:
        raise LeukoscopeError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    return _load_from_hub(info.hub_id, info)


def _features(labels: Sequence[str]) -> Features:
    from datasets import ClassLabel, Features, Image, Value

    text = Value("string")
    return Features(image=Image(), label=ClassLabel(names=list(labels)), subject=text, cell_id=text, fold=text)


def _load_from_folder(
    info: DatasetInfo, root: Path, subject_pattern: str | None, subject_csv: str | Path | None
) -> LoadedCells:
    if not root.is_dir():
        raise LeukoscopeError(f"--train_dir {root}: no such folder; unpack {info.title} there or correct the path")
    assert info.find_cells is not None
    found = list(info.find_cells(root))
    if not found:
        raise LeukoscopeError(f"--train_dir {root}: no cell of {info.title} found; expected {info.layout}")
    found = list(_with_subjects(found, root, subject_pattern, subject_csv))
    _refuse_repeated_ids(found)
    readable, unreadable = _check_headers(found)
    if not readable:
        raise LeukoscopeError(
            f"--train_dir {root}: none of its {len(found)} images can be read; first: {unreadable[0]}"
        )
    info = info if info.labels else replace(info, labels=tuple(sorted({cell.label for cell in readable})))
    if len(info.labels) < 2:
        raise LeukoscopeError(
            f"--train_dir {root}: only the class {info.labels[0]!r} found; a classifier needs two or more class folders"
        )
    return LoadedCells(
        info,
        _as_dataset_dict(info, readable),
        _fingerprint((c.cell_id, c.label, c.subject, c.path.stat().st_size) for c in readable),
        tuple(unreadable),
        tuple(_compare_counts(info, readable)),
    )


def _with_subjects(
    cells: list[CellFile], root: Path, pattern: str | None, csv_path: str | Path | None
) -> Iterator[CellFile]:
    """Fill in subjects from the user's rule, for folders whose layout does not say them."""
    if csv_path is not None:
        subjects = _subjects_from_csv(Path(csv_path))
        for cell in cells:
            file = cell.path.relative_to(root).as_posix()
            if not subjects.get(file):
                raise LeukoscopeError(f"{csv_path}: no row for file {file!r}; every image needs a subject")
            yield replace(cell, subject=subjects[file])
    elif pattern is not None:
        try:
            rule = re.compile(pattern)
        except re.error as error:
            raise LeukoscopeError(f"--subject_pattern {pattern!r}: not a regular expression ({error})") from None
        if not rule.groups:
            raise LeukoscopeError(
                f"--subject_pattern {pattern!r}: has no group; write the subject's part as (?P<subject>…)"
            )
        for cell in cells:
            file = cell.path.relative_to(root).as_posix()
            match = rule.search(file)
            subject = match and match["subject" if "subject" in rule.groupindex else 1]
            if not subject:
                raise LeukoscopeError(
                    f"--subject_pattern {pattern!r}: does not match {file!r}; it must match every image"
                )
            yield replace(cell, subject=subject)
    else:
        yield from cells


def _subjects_from_csv(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise LeukoscopeError(f"--subject_csv {path}: no such file; it needs the columns file,subject")
    # Spreadsheets start a UTF-8 file with a byte-order mark.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"file", "subject"} - set(reader.fieldnames or ())
        if missing:
            raise LeukoscopeError(f"{path}: lacks the column(s) {', '.join(sorted(missing))}; it needs file,subject")
        return {row["file"]: row["subject"] for row in reader}


def _refuse_repeated_ids(cells: Iterable[CellFile]) -> None:
    """A cell present twice (say as .bmp and .webp) would stand on two sides of a random split."""
    seen: dict[str, Path] = {}
    for cell in cells:
        if cell.cell_id in seen:
            raise LeukoscopeError(
                f"{cell.path}: cell {cell.cell_id} is already there as {seen[cell.cell_id]}; keep one of the two"
            )
        seen[cell.cell_id] = cell.path


def _check_headers(cells: list[CellFile]) -> tuple[list[CellFile], list[str]]:
    def problem(cell: CellFile) -> str | None:
        try:
            check_header(cell.path)
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, cells))
    return (
        [cell for cell, message in zip(cells, problems, strict=True) if message is None],
        [message for message in problems if message],
    )


def _as_dataset_dict(info: DatasetInfo, cells: list[CellFile]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    def rows(part: list[CellFile]) -> Dataset:
        columns = {
            "image": [str(c.path) for c in part],
            "label": [c.label for c in part],
            "subject": [info.canonical_subject(c.subject) for c in part],
            "cell_id": [c.cell_id for c in part],
            "fold": [c.fold for c in part],
        }
        return Dataset.from_dict(columns, features=_features(info.labels))

    held_out = [c for c in cells if c.fold == PRELIMINARY_TEST]
    parts = {"train": rows([c for c in cells if c.fold != PRELIMINARY_TEST])}
    if held_out:
        parts[PRELIMINARY_TEST] = rows(held_out)
    return DatasetDict(parts)


def _compare_counts(info: DatasetInfo, cells: Iterable[CellFile]) -> Iterator[str]:
    """One line a partition and label whose number of cells is not the publisher's."""
    found = Counter((cell.fold, cell.label) for cell in cells)
    for fold, labels in info.official_counts.items():
        for label, official in labels.items():
            count = found[fold, label]
            if count != official:
                yield f"{fold or 'all'} {label}: {count:,} cells here, {official:,} published"


def _fingerprint(rows: Iterable[tuple[object, ...]]) -> str:
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def _draw_phantoms(info: DatasetInfo, seed: int, image_size: int) -> LoadedCells:
    from datasets import Dataset, DatasetDict

    cells = list(phantom_cells(size=image_size, seed=seed))
    columns = {
        "image": [cell.image for cell in cells],
        "label": [cell.label for cell in cells],
        "subject": [cell.subject for cell in cells],
        "cell_id": [cell.cell_id for cell in cells],
        "fold": ["" for _ in cells],
    }
    rows = Dataset.from_dict(columns, features=_features(info.labels))
    # By their pixels: a new way of drawing them must not meet an old cache.
    keys = ((c.cell_id, c.label, c.subject, hashlib.sha256(c.image.tobytes()).hexdigest()) for c in cells)
    return LoadedCells(info, DatasetDict(train=rows), _fingerprint(keys))


def _entry_of_hub_id(hub_id: str) -> DatasetInfo:
    """The registry entry a Hub id belongs to; an unknown one is treated as class folders are."""
    from leukoscope.cells.registry import DATASETS

    known = next((info for info in DATASETS.values() if info.hub_id == hub_id), None)
    return known or replace(DATASETS["imagefolder"], name=hub_id, title=hub_id, hub_id=hub_id)


def _load_from_hub(hub_id: str, info: DatasetInfo) -> LoadedCells:
    """Load a Hub data set (or a local folder in the same layout) and give its columns our names."""
    from datasets import ClassLabel, load_dataset

    try:
        rows = load_dataset(hub_id, split="train")
    except Exception as error:  # the client raises a dozen unrelated types for "cannot be had"
        reason = str(error).splitlines()[0]
        raise LeukoscopeError(
            f"data set {hub_id}: cannot be loaded from the Hub ({type(error).__name__}: {reason}); "
            "check the id and the network, or give a local copy with --train_dir DIR"
        ) from None
    missing = {"image", "label"} - set(rows.column_names)
    if missing:
        raise LeukoscopeError(
            f"data set {hub_id}: lacks the column(s) {', '.join(sorted(missing))}; has {rows.column_names}"
        )
    feature = rows.features["label"]
    names = (
        [feature.int2str(i) for i in rows["label"]]
        if isinstance(feature, ClassLabel)
        else [str(x) for x in rows["label"]]
    )
    ids = _hub_cell_ids(rows)
    if len(set(ids)) < len(ids):
        twice = next(cell for cell, count in Counter(ids).items() if count > 1)
        raise LeukoscopeError(
            f"data set {hub_id}: cell {twice} is there more than once; give every row its own cell_id"
        )
    labels = info.labels or tuple(sorted(set(names)))
    columns = {
        "label": [_match_label(name, labels, hub_id) for name in names],
        "subject": [info.canonical_subject(s) for s in _hub_subjects(rows, ids)],
        "cell_id": ids,
        "fold": [str(f or "") for f in rows["fold"]] if "fold" in rows.column_names else [""] * len(rows),
    }
    rows = rows.select_columns(["image"])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    rows = rows.cast(_features(labels))
    from datasets import DatasetDict

    keys = zip(ids, columns["label"], columns["subject"], strict=True)
    return LoadedCells(replace(info, labels=labels), DatasetDict(train=rows), _fingerprint(keys))


def _hub_cell_ids(rows: Dataset) -> list[str]:
    column = next((name for name in _HUB_ID_COLUMNS if name in rows.column_names), None)
    return [Path(str(x)).stem for x in rows[column]] if column else [f"row_{i:06d}" for i in range(len(rows))]


def _hub_subjects(rows: Dataset, cell_ids: list[str]) -> list[str]:
    column = next((name for name in _HUB_SUBJECT_COLUMNS if name in rows.column_names), None)
    if column:
        return ["" if x is None else str(x) for x in rows[column]]
    from leukoscope.cells.registry import CNMC_NAME

    matches = [CNMC_NAME.match(cell_id) for cell_id in cell_ids]
    return [match["subject"] if match else "" for match in matches]


def _match_label(name: str, labels: Sequence[str], hub_id: str) -> str:
    for label in labels:
        if name.casefold() == label.casefold():
            return label
    raise LeukoscopeError(f"data set {hub_id}: unknown label {name!r}; expected one of {', '.join(labels)}")
