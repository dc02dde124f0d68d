"""From a folder, a Hub data set or the phantom generator to one 🤗 `DatasetDict` that all other packages read.

Rows carry `image`, `label`, `subject`, `cell_id` and `fold`. The labelled cells are the `train` split; a publisher's
own test set stays a split of its own. What could not be used is counted and named, never silently dropped.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.images import UnreadableImage, check_header, is_cut_out, open_bytes, open_encoded
from leukoscope.data.registry import (
    CNMC_NAME,
    DATASETS,
    CellFile,
    DatasetInfo,
    dataset_info,
    find_class_folders,
    passed_over,
    read_columns,
)
from leukoscope.data.splits import SUBJECT_FOLDS
from leukoscope.data.synthetic import phantom_cells
from leukoscope.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from PIL import Image as Picture

PRELIMINARY_TEST = "preliminary_test"
_BACKGROUND_SAMPLE = 24
# What others call our columns.
SUBJECT_COLUMNS = ("subject", "subject_id", "patient_id", "patient")
ID_COLUMNS = ("cell_id", "file_name", "filename", "image_name", "original_image_name")


@dataclass(frozen=True)
class LoadedCells:
    """A data set ready to be split.

    Attributes:
        info: the registry entry, with the labels found when the entry leaves them open.
        cells: `train` and, where the publisher has one, `preliminary_test`.
        fingerprint: sha256 over (cell id, label, subject, content) of every row; the same data gives the same value
            whatever the folder. The content is a file's size in bytes, or a hash where no file can be looked up.
        unreadable: one message a file that could not be used.
        count_differences: one line a partition whose counts differ from the publisher's.
        passed_over: one line a reason for which images given are not among the cells.
    """

    info: DatasetInfo
    cells: DatasetDict
    fingerprint: str
    unreadable: tuple[str, ...] = ()
    count_differences: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def train(self) -> Dataset:
        """The labelled cells that splits are made from."""
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
            lines.append("These cells are synthetic: metrics on them say nothing about patients.")
        lines += [f"counts differ: {line}" for line in self.count_differences]
        lines += self.passed_over
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
    image_size: int = 450,
) -> LoadedCells:
    """Load a data set by registry name from a local folder, or from the Hub.

    Args:
        dataset_name: a key of `DATASETS`, or a Hub data-set id (`owner/name`).
        train_dir: the folder that holds the cells; without it the entry's Hub data set is downloaded.
        subject_pattern: `imagefolder` only: a regular expression over the path below `train_dir`, whose group
            `subject` (or first group) names the subject.
        subject_csv: `imagefolder` only: a CSV with columns `file` (path below `train_dir`) and `subject`.
        image_size: side in pixels of the phantoms.

    Raises:
        LeukoscopeError: unknown data set, flags that exclude each other, missing or empty folder, bad pattern,
            unreachable Hub data set.
    """
    if "/" not in dataset_name:
        info = dataset_info(dataset_name)
    else:
        # An unknown Hub data set is treated as class folders are.
        named = replace(DATASETS["imagefolder"], name=dataset_name, title=dataset_name, hub_id=dataset_name)
        info = next((entry for entry in DATASETS.values() if entry.hub_id == dataset_name), named)
    # A flag that would have no effect is a misunderstanding about which cells are used.
    folder_names = ", ".join(entry.name for entry in DATASETS.values() if entry.find_cells)
    if train_dir is not None and "/" in dataset_name:
        raise LeukoscopeError(
            f"--dataset_name {dataset_name} --train_dir {train_dir}: a Hub id and a folder exclude each other; leave "
            f"--train_dir out, or say what the folder holds with --dataset_name (one of {folder_names})"
        )
    if train_dir is not None and info.synthetic:
        raise LeukoscopeError(
            f"--train_dir {train_dir}: --dataset_name {info.name} reads no folder; say what the folder holds with "
            f"--dataset_name (one of {folder_names}) --train_dir {train_dir}"
        )
    if (subject_pattern or subject_csv) and dataset_name != "imagefolder":
        raise LeukoscopeError(
            f"--dataset_name {dataset_name}: names its subjects itself; --subject_pattern and --subject_csv are for "
            "--dataset_name imagefolder"
        )
    if subject_pattern and subject_csv:
        raise LeukoscopeError(
            f"--subject_pattern {shlex.quote(subject_pattern)} --subject_csv {subject_csv}: both name the subjects; "
            "give one"
        )
    if info.synthetic:
        cells = list(phantom_cells(size=image_size))
        # By their pixels: a new way of drawing them must not meet an old cache.
        rows = [_Row(c.cell_id, c.label, c.subject, hashlib.sha256(c.image.tobytes()).hexdigest()) for c in cells]
        return _assemble(info, _images([c.image for c in cells]), rows, f"--dataset_name {info.name}")
    if train_dir is not None:
        return _load_from_folder(info, Path(train_dir), subject_pattern, subject_csv)
    if info.hub_id is None:
        raise LeukoscopeError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    with progress(f"loading data set {info.hub_id}"):
        return _load_from_hub(info.hub_id, info)


class _Row(NamedTuple):
    """One labelled cell, wherever its image lies; `content` is what the fingerprint knows the image by."""

    cell_id: str
    label: str
    subject: str
    content: object
    fold: str = ""


def _assemble(
    info: DatasetInfo,
    images: Dataset,
    rows: Sequence[_Row],
    source: str,
    *,
    unreadable: Iterable[str] = (),
    passed_over: Iterable[str] = (),
) -> LoadedCells:
    """The one way from (N,) images and what is known of each to a data set, whatever they came from.

    Raises:
        LeukoscopeError: fewer than two classes; the message opens with `source`.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets

    labels = info.labels or tuple(sorted({row.label for row in rows}))
    if len(labels) < 2:
        seen = f"only the class {labels[0]!r}" if labels else "no cell"
        raise LeukoscopeError(f"{source}: {seen} found; a classifier needs two or more classes")
    text = Value("string")
    columns = {
        "label": [row.label for row in rows],
        "subject": [info.canonical_subject(row.subject) for row in rows],
        "cell_id": [row.cell_id for row in rows],
        "fold": [row.fold for row in rows],
    }
    features = Features(label=ClassLabel(names=list(labels)), subject=text, cell_id=text, fold=text)
    table = concatenate_datasets([images, Dataset.from_dict(columns, features=features)], axis=1)
    held_out = [i for i, row in enumerate(rows) if row.fold == PRELIMINARY_TEST]
    parts = {"train": table.select([i for i, row in enumerate(rows) if row.fold != PRELIMINARY_TEST])}
    if held_out:
        parts[PRELIMINARY_TEST] = table.select(held_out)
    if info.name not in DATASETS or info.find_cells is find_class_folders:
        info = replace(info, background=_background(images))
    return LoadedCells(
        replace(info, labels=labels),
        DatasetDict(parts),
        _fingerprint(row[:4] for row in rows),
        tuple(unreadable),
        tuple(_compare_counts(info, rows)),
        tuple(passed_over),
    )


def _background(images: Dataset) -> Literal["black", "smear"]:
    """What surrounds the cells of a data set that no entry describes, by an even sample of them."""
    from datasets import Image

    sample = images.select(np.linspace(0, len(images) - 1, min(len(images), _BACKGROUND_SAMPLE)).astype(int))
    found = []
    for row in sample.cast_column("image", Image(decode=False)):
        try:
            found.append(is_cut_out(open_encoded(row["image"], "")))
        except UnreadableImage:  # named when all are decoded
            continue
    return "black" if found and np.mean(found) > 0.9 else "smear"


def _images(values: list[object]) -> Dataset:
    from datasets import Dataset, Features, Image

    return Dataset.from_dict({"image": values}, features=Features(image=Image()))


def _load_from_folder(
    info: DatasetInfo, root: Path, subject_pattern: str | None, subject_csv: str | Path | None
) -> LoadedCells:
    if not root.is_dir():
        fetch = f"unpack {info.title} there (get it from {info.url}) or " if info.url else ""
        raise LeukoscopeError(f"--train_dir {root}: no such folder; {fetch}correct the path")
    assert info.find_cells is not None
    found = list(info.find_cells(root))
    not_used = list(passed_over(info, root, found))
    if not found:
        reasons = "; ".join(not_used or [f"expected {info.layout}"])
        raise LeukoscopeError(f"--train_dir {root}: no cell of {info.title} found; {reasons}")
    found = list(_with_subjects(found, root, subject_pattern, subject_csv))
    paths: dict[str, Path] = {}
    for cell in found:
        # A cell present twice (say as .bmp and .webp) would stand on two sides of a random split.
        if (other := paths.setdefault(cell.cell_id, cell.path)) != cell.path:
            raise LeukoscopeError(f"{cell.path}: cell {cell.cell_id} is already there as {other}; keep one of the two")
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_header_problem, found))
    readable = [cell for cell, problem in zip(found, problems, strict=True) if not problem]
    unreadable = [problem for problem in problems if problem]
    if not readable:
        raise LeukoscopeError(
            f"--train_dir {root}: none of its {len(found)} images can be read; first: {unreadable[0]}"
        )
    rows = [_Row(c.cell_id, c.label, c.subject, c.path.stat().st_size, c.fold) for c in readable]
    images = _images([str(c.path) for c in readable])
    return _assemble(info, images, rows, f"--train_dir {root}", unreadable=unreadable, passed_over=not_used)


def _with_subjects(
    cells: list[CellFile], root: Path, pattern: str | None, csv_path: str | Path | None
) -> Iterator[CellFile]:
    """Fill in subjects from the user's rule, for folders whose layout does not say them."""
    if csv_path is not None:
        if not Path(csv_path).is_file():
            raise LeukoscopeError(f"--subject_csv {csv_path}: no such file; it needs the columns file,subject")
        subjects = {file: subject for file, subject in read_columns(Path(csv_path), "file", "subject")}
        for cell in cells:
            file = cell.path.relative_to(root).as_posix()
            if not subjects.get(file):
                raise LeukoscopeError(f"{csv_path}: no row for file {file!r}; every image needs a subject")
            yield replace(cell, subject=subjects[file])
    elif pattern is not None:
        subject_of = subject_rule(pattern)
        for cell in cells:
            yield replace(cell, subject=subject_of(cell.path.relative_to(root).as_posix()))
    else:
        yield from cells


def subject_rule(pattern: str) -> Callable[[str], str]:
    """The function from an image's path to its subject that `--subject_pattern` means.

    Args:
        pattern: a regular expression whose group `subject` (or first group) names the subject.

    Raises:
        LeukoscopeError: no regular expression, or no group; from the function: a path that it does not match.
    """
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise LeukoscopeError(f"--subject_pattern {shlex.quote(pattern)}: not a regular expression ({error})") from None
    if not rule.groups:
        raise LeukoscopeError(
            f"--subject_pattern {shlex.quote(pattern)}: has no group; write the subject's part as (?P<subject>…)"
        )

    def subject_of(file: str) -> str:
        match = rule.search(file)
        subject = match and match["subject" if "subject" in rule.groupindex else 1]
        if not subject:
            raise LeukoscopeError(
                f"--subject_pattern {shlex.quote(pattern)}: does not match {file!r}; it must match every image"
            )
        return subject

    return subject_of


def _header_problem(cell: CellFile) -> str:
    try:
        check_header(cell.path)
    except UnreadableImage as error:
        return str(error)
    return ""


def _compare_counts(info: DatasetInfo, rows: Sequence[_Row]) -> Iterator[str]:
    """One line a partition and label whose number of cells is not the publisher's."""
    found = Counter((row.fold, row.label) for row in rows)
    published = info.official_counts
    if published and not any(fold in published for fold, _ in found):
        # Without the publisher's folds only the sums over its training data can be compared.
        training = [Counter(labels) for fold, labels in published.items() if fold != PRELIMINARY_TEST]
        published = {"": sum(training, Counter())}
        found = Counter(("", row.label) for row in rows)
    for fold, labels in published.items():
        for label, official in labels.items():
            count = found[fold, label]
            if count != official:
                yield f"{fold or 'all'} {label}: {count:,} cells here, {official:,} published"


def _fingerprint(rows: Iterable[tuple[object, ...]]) -> str:
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def _load_from_hub(hub_id: str, info: DatasetInfo) -> LoadedCells:
    """Load a Hub data set (or a local folder in the same layout) and give its columns our names."""
    from datasets import Image, disable_progress_bars, load_dataset

    disable_progress_bars()  # ours says how long it takes
    try:
        table = load_dataset(hub_id, split="train")
    except Exception as error:  # the client raises a dozen unrelated types for "cannot be had"
        reason = str(error).splitlines()[0]
        name = "imagefolder" if "/" in info.name else info.name
        raise LeukoscopeError(
            f"data set {hub_id}: cannot be loaded from the Hub ({type(error).__name__}: {reason}); "
            f"check the id and the network, or give a local copy with --dataset_name {name} --train_dir DIR"
        ) from None
    missing = {"image", "label"} - set(table.column_names)
    if missing:
        raise LeukoscopeError(
            f"data set {hub_id}: lacks the column(s) {', '.join(sorted(missing))}; has {table.column_names}"
        )
    others = {name: split.num_examples for name, split in (table.info.splits or {}).items() if name != "train"}
    images = table.select_columns("image").cast_column("image", Image())
    return _assemble(
        info,
        images,
        _hub_rows(hub_id, info, table, images),
        f"data set {hub_id}",
        passed_over=[f"Hub split {name!r} not used: {count:,} rows" for name, count in others.items()],
    )


def _hub_rows(hub_id: str, info: DatasetInfo, table: Dataset, images: Dataset) -> list[_Row]:
    from datasets import ClassLabel

    def column(names: Sequence[str]) -> list[Any] | None:
        return next((table[name] for name in names if name in table.column_names), None)

    named = column(ID_COLUMNS)
    ids = [f"row_{i:06d}" for i in range(len(table))] if named is None else [Path(str(x)).stem for x in named]
    if len(set(ids)) < len(ids):
        twice = next(cell for cell, count in Counter(ids).items() if count > 1)
        raise LeukoscopeError(
            f"data set {hub_id}: cell {twice} is there more than once; give every row its own cell_id"
        )
    feature = table.features["label"]
    name_of = feature.int2str if isinstance(feature, ClassLabel) else str
    names = [name_of(label) for label in table["label"]]
    labels = info.labels or tuple(sorted(set(names)))
    spelled = {label.casefold(): label for label in labels}
    for name in names:
        if name.casefold() not in spelled:
            raise LeukoscopeError(f"data set {hub_id}: unknown label {name!r}; expected one of {', '.join(labels)}")
    subjects = column(SUBJECT_COLUMNS)
    if subjects is None:
        subjects = [match["subject"] if (match := CNMC_NAME.match(cell)) else "" for cell in ids]
    folds = column(["fold"]) or [""] * len(ids)
    columns = zip(ids, names, subjects, _hub_contents(hub_id, images, ids), folds, strict=True)
    return [
        _Row(cell, spelled[name.casefold()], *("" if x is None else str(x) for x in (subject, content, fold)))
        for cell, name, subject, content, fold in columns
    ]


def _hub_contents(hub_id: str, images: Dataset, ids: list[str]) -> Iterator[str]:
    """The sha256 of each image as encoded: two data sets may agree in all else."""
    from datasets import Image

    for cell, row in zip(ids, images.cast_column("image", Image(decode=False)), strict=True):
        if row["image"] is None:
            raise LeukoscopeError(f"data set {hub_id}: cell {cell} has no image; remove its row")
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        yield hashlib.sha256(content).hexdigest()


# Sets are often sorted by class or patient; a shuffle of this many rows mixes neighbours, and after so many rows no
# further class is waited for.
BUFFER, MOST_ROWS = 64, 400


class StreamedCell(NamedTuple):
    """One labelled cell; `image` is upright RGB."""

    image: Picture.Image
    label: str


def stream_cells(hub_id: str, each: int = 3) -> list[StreamedCell]:
    """A few cells of each class of a Hub data set with columns `image` and `label`.

    Args:
        hub_id: `owner/name`.
        each: how many cells of a class are wanted; of a class that is not among the first rows there are fewer.

    Raises:
        LeukoscopeError: no network, no such data set, one laid out otherwise, or one without a readable picture.
    """
    from datasets import ClassLabel, Image, load_dataset

    try:
        rows = load_dataset(hub_id, split="train", streaming=True).shuffle(seed=0, buffer_size=BUFFER)
        rows = rows.select_columns(["image", "label"]).cast_column("image", Image(decode=False))
        feature = (rows.features or {}).get("label")
        name_of = feature.int2str if isinstance(feature, ClassLabel) else str
        cells: dict[str, list[StreamedCell]] = {}
        for row in rows.take(MOST_ROWS):
            label = name_of(row["label"])
            found = cells.setdefault(label, [])
            if len(found) < each and row["image"] and row["image"]["bytes"]:
                try:
                    found.append(StreamedCell(open_bytes(row["image"]["bytes"], label), label))
                except UnreadableImage:
                    continue
            if len(cells) > 1 and all(len(found) == each for found in cells.values()):
                break
    except Exception as error:  # the client raises a dozen unrelated types for "cannot be had"
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise LeukoscopeError(
            f"data set {hub_id}: cannot be streamed from the Hub ({type(error).__name__}: {reason}); check the network"
        ) from None
    streamed = [cell for _, found in sorted(cells.items()) for cell in found]
    if not streamed:
        raise LeukoscopeError(f"data set {hub_id}: no readable picture among its first {MOST_ROWS} rows")
    return streamed


# What a folder is, before anything is trained on it: which data set, how many cells of whom, what is odd. Only names
# and file headers are read, so that it is quick; `leukoscope data audit` reads every pixel.

FEW_CELLS = 10
"""Of a class: 15 % of them, the validation and the test side of a split by image, are one cell or more."""
LEAST_CELLS = 2
"""Of a class: one to train on and one to test on."""
_SPLIT_WITHOUT_SUBJECTS = {"block": "block", "subject": "random"}


@dataclass(frozen=True)
class FolderReport:
    """A folder, as training would read it.

    Attributes:
        info: the data set found, with the labels found.
        partitions: publisher's partition ("" where there is none) → label → number of cells.
        subjects: label → subject → number of its cells, aliases joined; {} for a label whose subjects are not known.
        training_subjects: label → how many of them have cells outside the publisher's own test.
        problems: one line each, what is missing, odd or left out.
    """

    info: DatasetInfo
    partitions: Mapping[str, Mapping[str, int]]
    subjects: Mapping[str, Mapping[str, int]]
    training_subjects: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def split_flags(self) -> list[str]:
        """The flags of `train.py` for the most honest split that these cells allow; [] where it is the default."""
        fewest = min(self.training_subjects.values())
        if fewest >= SUBJECT_FOLDS:
            return []
        if fewest > 1:
            return ["--split", "subject-cv", "--num_folds", str(min(fewest, 5)), "--no_validation"]
        return ["--split", _SPLIT_WITHOUT_SUBJECTS[self.info.group]]


def inspect_folder(root: Path, *, subject_pattern: str | None = None, subject_csv: Path | None = None) -> FolderReport:
    """Recognise a folder's data set and count its cells.

    Args:
        root: the folder.
        subject_pattern, subject_csv: as for `load_cells`; with either, the folder is read as plain class folders.

    Raises:
        LeukoscopeError: no such folder, no cell of any known layout in it, or cells that could not be trained on.
    """
    own_subjects = subject_pattern is not None or subject_csv is not None
    info = DATASETS["imagefolder"] if own_subjects else recognise(root)
    data = load_cells(info.name, root, subject_pattern=subject_pattern, subject_csv=subject_csv)
    partitions: dict[str, Counter[str]] = {}
    subjects: dict[str, Counter[str]] = {label: Counter() for label in data.info.labels}
    for fold, label, subject in (row for cells in data.cells.values() for row in _rows(data.info, cells)):
        partitions.setdefault(fold, Counter())[label] += 1
        if subject:
            subjects[label][subject] += 1
    met = {(label, subject) for _, label, subject in _rows(data.info, data.train) if subject}
    training = {label: sum(one == label for one, _ in met) for label in data.info.labels}
    counts = Counter(label for _, label, _ in _rows(data.info, data.train))
    few = [
        f"{label}: {counts[label]} cell(s); fewer than {FEW_CELLS} leave a side of the split without any, gather more"
        for label in data.info.labels
        if counts[label] < FEW_CELLS
    ]
    problems = (*data.count_differences, *data.passed_over, *data.unreadable, *few)
    problems += tuple(_subject_problems(data.info, training))
    return FolderReport(data.info, partitions, subjects, training, problems)


def recognise(root: Path) -> DatasetInfo:
    """The entry of `DATASETS` whose layout most pictures of a folder follow; plain class folders when none is followed.

    Raises:
        LeukoscopeError: no such folder, or no picture laid out in any known way.
    """
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such folder; give the folder that a data set was unpacked to")
    counts = {
        info.name: sum(1 for _ in info.find_cells(root)) for info in DATASETS.values() if info.find_cells is not None
    }
    own = counts.pop("imagefolder")
    best = max(counts, key=counts.__getitem__)
    if counts[best]:
        return DATASETS[best]
    if own:
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise LeukoscopeError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


def _rows(info: DatasetInfo, cells: Dataset) -> Iterator[tuple[str, str, str]]:
    """(partition, label, subject) of every cell."""
    labels = (info.labels[index] for index in cells["label"][:])
    yield from zip(cells["fold"][:], labels, cells["subject"][:], strict=True)


def _subject_problems(info: DatasetInfo, subjects: Mapping[str, int]) -> Iterator[str]:
    if not any(subjects.values()):
        split = f"split by --split {_SPLIT_WITHOUT_SUBJECTS[info.group]}"
        fix = "give --subject_pattern or --subject_csv" if info.name == "imagefolder" else split
        yield f"whose cells these are is not known: no figure on them holds for a new person; {fix}"
        return
    for label, known in subjects.items():
        if known < SUBJECT_FOLDS:
            few = f"{label}: {known} subject(s) to train on, fewer than the {SUBJECT_FOLDS} of --split subject"
            if min(subjects.values()) < 2:
                yield f"{few}: no figure on so few holds for a new person; gather cells of more people"
            else:
                yield f"{few}; cross-validate as the last line shows, or gather cells of more people"
