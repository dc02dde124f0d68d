"""The cells of a data set, ready to be split: one 🤗 `DatasetDict` that all other packages read.

Rows carry `image`, `label`, `subject`, `cell_id` and `fold`. The labelled cells are the `train` split; a publisher's
own test set stays a split of its own. What could not be used is counted and named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from leukoscope import DataError
from leukoscope.data.images import UnreadableImage, is_cut_out, open_encoded
from leukoscope.data.layouts import find_class_folders
from leukoscope.data.names import SPLIT_SIDES, check_class, check_subject_ids, folded
from leukoscope.data.registry import DATASETS, RESERVED_LABELS, DatasetInfo

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

MOST_TOLD = 20
"""Unreadable files that are named to a person."""
_BACKGROUND_SAMPLE = 24


@dataclass(frozen=True)
class LoadedCells:
    """A data set ready to be split.

    Attributes:
        info: the registry entry, with the labels found when the entry leaves them open.
        cells: `train` and, where the publisher has one, `preliminary_test`.
        fingerprint: sha256 over (cell id, label, subject, sha256 of its file) of every row; where and when the files
            were written does not count.
    """

    info: DatasetInfo
    cells: DatasetDict
    fingerprint: str
    unreadable: tuple[str, ...] = ()  # one message per file that could not be used
    count_differences: tuple[str, ...] = ()  # one line per partition whose counts differ from the publisher's
    passed_over: tuple[str, ...] = ()  # one line per reason for which images given are not among the cells
    published_subjects: Mapping[str, str] = field(default_factory=dict)  # of cells whose subject has another id here
    split_column: str = ""  # the column that the data set's own splits come from

    @property
    def train(self) -> Dataset:
        """The labelled cells that splits are made from."""
        return self.cells["train"]

    @cached_property
    def rows(self) -> Dataset:
        """Every cell, the publisher's test set after the others; `image` is not decoded."""
        from datasets import Image, concatenate_datasets

        return concatenate_datasets(list(self.cells.values())).cast_column("image", Image(decode=False))

    @property
    def own_splits(self) -> dict[str, int]:
        """Cells on each side of the data set's own splits, in the order of `SPLIT_SIDES`; {} where it has none.

        A row's `fold` then names its side.
        """
        counts = Counter(self.train["fold"][:])
        if len(counts) < 2 or not counts.keys() <= set(SPLIT_SIDES):
            return {}
        return {side: counts[side] for side in SPLIT_SIDES if counts[side]}

    def with_positive(self, label: str) -> LoadedCells:
        """The same data, with one of its two classes as the positive one."""
        labels = self.info.labels
        if len(labels) != 2 or label not in labels:
            raise DataError(
                f"--positive_label {label}: must be one of two classes; these cells have {', '.join(labels)}"
            )
        return replace(self, info=replace(self.info, positive_label=label))

    def without(self, problems: Mapping[str, str]) -> LoadedCells:
        """The same data and fingerprint without the damaged cells; `problems` is cell id → message."""
        if not problems:
            return self
        from datasets import DatasetDict

        parts = {}
        for name, rows in self.cells.items():
            undamaged = [i for i, cell in enumerate(rows["cell_id"][:]) if cell not in problems]
            parts[name] = rows.select(undamaged)
        return replace(self, cells=DatasetDict(parts), unreadable=(*self.unreadable, *problems.values()))

    def report(self) -> str:
        """What a person should know about the data before training, one line per fact."""
        counts = [f"{name}: {len(rows):,} cells" for name, rows in self.cells.items()]
        subjects = {subject for subject in self.train["subject"] if subject}
        if subjects:
            counts.append(f"{len(subjects)} subjects")
        lines = [f"{self.info.title} — {', '.join(counts)}"]
        if self.info.synthetic:
            lines.append("These cells are synthetic: metrics on them say nothing about patients.")
        if self.own_splits:
            sides = ", ".join(f"{side} {count:,}" for side, count in self.own_splits.items())
            lines.append(f"own splits: {sides} (--split given uses them; it is the default of `leukoscope train`)")
        lines += [f"known: {trap}" for trap in self.info.traps]
        if self.count_differences:
            lines.append(f"counts differ: {'; '.join(self.count_differences)}")
        lines += self.passed_over
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} unreadable file(s) left out:")
            lines += [f"  {message}" for message in self.some_unreadable()]
        return "\n".join(lines)

    def some_unreadable(self) -> list[str]:
        """The messages of the first `MOST_TOLD` files that could not be used, and how many more there are."""
        messages = list(self.unreadable[:MOST_TOLD])
        more = len(self.unreadable) - MOST_TOLD
        if more > 0:
            messages.append(f"and {more:,} more; `leukoscope audit` writes all of them into audit.json")
        return messages


class CellRecord(NamedTuple):
    """One labelled cell, its image in a file or in memory; the fingerprint covers `content`, not the image."""

    cell_id: str
    label: str
    subject: str
    content: str
    fold: str = ""


def image_column(values: list[object]) -> Dataset:
    from datasets import Dataset, Features, Image

    return Dataset.from_dict({"image": values}, features=Features(image=Image()))


def assemble(
    info: DatasetInfo,
    images: Dataset,
    rows: Sequence[CellRecord],
    source: str,
    *,
    unreadable: Iterable[str] = (),
    passed_over: Iterable[str] = (),
    split_column: str = "",
) -> LoadedCells:
    """Make a data set of (N,) images and what is known of each; messages open with `source`.

    Raises:
        DataError: fewer than two classes, classes that look alike, or subject ids as of `check_subject_ids`.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets

    seen = {row.label for row in rows}
    # A part of a set of many classes is a set of fewer; of two, a missing one is a fault.
    labels = tuple(label for label in info.labels if label in seen or len(info.labels) == 2)
    if not labels:
        labels = tuple(sorted(seen))
    not_used = tuple(passed_over)
    _check_labels(labels, info.labels, source, not_used)
    if info.name not in DATASETS or info.find_cells is find_class_folders:
        info = replace(info, background=_background(images))
    subjects = [info.canonical_subject(row.subject) for row in rows]
    check_subject_ids(zip(subjects, (f"cell {row.cell_id}" for row in rows), strict=True), source)
    columns = {
        "label": [row.label for row in rows],
        "subject": subjects,
        "cell_id": [row.cell_id for row in rows],
        "fold": [row.fold for row in rows],
    }
    text = Value("string")
    features = Features(label=ClassLabel(names=list(labels)), subject=text, cell_id=text, fold=text)
    table = concatenate_datasets([images, Dataset.from_dict(columns, features=features)], axis=1)
    return LoadedCells(
        info=replace(info, labels=labels),
        cells=DatasetDict(_partitions(table, rows, info.held_out)),
        fingerprint=_fingerprint(rows),
        unreadable=tuple(unreadable),
        count_differences=tuple(_compare_counts(info, rows)),
        passed_over=not_used,
        published_subjects={
            row.cell_id: row.subject for row, subject in zip(rows, subjects, strict=True) if row.subject != subject
        },
        split_column=split_column,
    )


def _partitions(table: Dataset, rows: Sequence[CellRecord], held_out: Collection[str]) -> dict[str, Dataset]:
    """`train`, and each of these partitions of the publisher that has a row."""
    names = np.asarray([row.fold if row.fold in held_out else "train" for row in rows])
    return {
        name: table.select(np.flatnonzero(names == name))
        for name in ("train", *held_out)
        if name in names or name == "train"
    }


def _fingerprint(rows: Sequence[CellRecord]) -> str:
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(("\t".join(row[:4]) + "\n").encode())
    return digest.hexdigest()


def _check_labels(labels: Sequence[str], of_entry: Sequence[str], source: str, not_used: Sequence[str]) -> None:
    """Refuse fewer than two classes, and names outside the entry that look like another class or like no class."""
    if len(labels) < 2:
        classes = f"only the class {labels[0]!r}" if labels else "no cell"
        sentences = [f"{source}: {classes} found", *not_used, "a classifier needs two or more classes"]
        raise DataError("; ".join(sentences))
    alike: dict[str, str] = {}
    for label in sorted(set(labels) - set(of_entry)):
        check_class(label, f"{source}: a cell")
        if label != label.strip() or not label.isprintable():
            raise DataError(f"{source}: class {label!r} has blanks around its name, or invisible characters; rename it")
        if folded(label) in RESERVED_LABELS:
            raise DataError(f"{source}: class {label!r} is the name of an outcome without a class; rename it")
        other = alike.setdefault(folded(label), label)
        if other != label:
            raise DataError(f"{source}: classes {other!r} and {label!r} look alike; give one class one name")


def _background(images: Dataset) -> Literal["black", "smear"]:
    """Background of the cells of a data set without an entry, judged on an even sample of them."""
    from datasets import Image

    count = min(len(images), _BACKGROUND_SAMPLE)
    sample = images.select(np.linspace(0, len(images) - 1, count).astype(int))
    cut_out = []
    for row in sample.cast_column("image", Image(decode=False)):
        with suppress(UnreadableImage):  # named when all are decoded
            cut_out.append(is_cut_out(open_encoded(row["image"], "")))
    return "black" if cut_out and np.mean(cut_out) > 0.9 else "smear"


def _compare_counts(info: DatasetInfo, rows: Sequence[CellRecord]) -> Iterator[str]:
    """One line per partition and label whose number of cells is not the publisher's."""
    counts = Counter((row.fold, row.label) for row in rows)
    published = info.official_counts
    if published and not any(fold in published for fold, _ in counts):
        # Without the publisher's folds only the sums over its training data can be compared.
        training = [Counter(labels) for fold, labels in published.items() if fold not in info.held_out]
        published = {"": sum(training, Counter())}
        counts = Counter(("", row.label) for row in rows)
    for fold, labels in published.items():
        for label, official in labels.items():
            count = sum(n for key, n in counts.items() if fold in ("", key[0]) and label in ("", key[1]))
            if count != official:
                place = f"{fold or 'all'} {label}".rstrip()
                yield f"{place}: {count:,} cells here, {official:,} published"
