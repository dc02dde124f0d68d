"""From a folder, a Hub data set or the phantom generator to one 🤗 `DatasetDict` that all other packages read.

Rows carry `image`, `label`, `subject`, `cell_id` and `fold`. The labelled cells are the `train` split; a publisher's
own test set stays a split of its own. What could not be used is counted and named.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from unicodedata import normalize

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import SUBJECT_COLUMNS, CellTable, located, read_table, require_subjects, subject_name
from leukoscope.data.content import content_hashes, hashes_of_folder
from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import (
    UnreachableImage,
    UnreadableImage,
    check_header,
    encoded_content,
    is_cut_out,
    open_bytes,
    open_encoded,
)
from leukoscope.data.registry import (
    CNMC_NAME,
    DATASETS,
    OTHER,
    RESERVED_LABELS,
    CellFile,
    DatasetInfo,
    cell_id_of,
    cells_of_table,
    dataset_info,
    files_left_out,
    find_class_folders,
    passed_over,
)
from leukoscope.data.splits import SIDES
from leukoscope.progress import note, progress
from leukoscope.synthetic import phantom_cells

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from PIL import Image as Picture

PRELIMINARY_TEST = "preliminary_test"
_BACKGROUND_SAMPLE = 24
# What splits and their folders are called, as `datasets` reads them, in any case; `train_data` and `test-set` as well.
_SIDE_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SIDE_SUFFIX = re.compile(r"[-_ ]*(data|set|dataset|split|images|imgs|cells|folder)$")
ID_COLUMNS = ("cell_id", "file_name", "filename", "image_name", "original_image_name")


@dataclass(frozen=True)
class LoadedCells:
    """A data set ready to be split.

    Attributes:
        info: the registry entry, with the labels found when the entry leaves them open.
        cells: `train` and, where the publisher has one, `preliminary_test`.
        fingerprint: sha256 over (cell id, label, subject, sha256 of its file) of every row; where and
            when the files were written does not count.
        unreadable: one message per file that could not be used.
        count_differences: one line per partition whose counts differ from the publisher's.
        passed_over: one line per reason for which images given are not among the cells.
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

    @cached_property
    def rows(self) -> Dataset:
        """Every cell, the publisher's test set after the others; `image` is not decoded."""
        from datasets import Image, concatenate_datasets

        return concatenate_datasets(list(self.cells.values())).cast_column("image", Image(decode=False))

    @property
    def own_splits(self) -> dict[str, int]:
        """Cells on each side of the data set's own splits, in the order of `SIDES`; {} where it has none."""
        counts = Counter(self.train["fold"][:])
        several = len(counts) > 1 and counts.keys() <= set(SIDES)
        return {side: counts[side] for side in SIDES if counts[side]} if several else {}

    def with_positive(self, label: str) -> LoadedCells:
        """The same data, with one of its two classes as the positive one; raises `LeukoscopeError` for any other."""
        labels = self.info.labels
        if len(labels) != 2 or label not in labels:
            raise LeukoscopeError(
                f"--positive_label {label}: must be one of two classes; these cells have {', '.join(labels)}"
            )
        return replace(self, info=replace(self.info, positive_label=label))

    def without(self, problems: Mapping[str, str]) -> LoadedCells:
        """The same data, and fingerprint, less the cells found damaged, given as cell id → message."""
        if not problems:
            return self
        from datasets import DatasetDict

        parts = {
            name: rows.select([i for i, cell in enumerate(rows["cell_id"][:]) if cell not in problems])
            for name, rows in self.cells.items()
        }
        return replace(self, cells=DatasetDict(parts), unreadable=(*self.unreadable, *problems.values()))

    def report(self) -> str:
        """What a person should know about the data before training, one line per fact."""
        counts = ", ".join(f"{name}: {len(rows):,} cells" for name, rows in self.cells.items())
        subjects = len({s for s in self.train["subject"] if s})
        lines = [f"{self.info.title} — {counts}" + (f", {subjects} subjects" if subjects else "")]
        if self.info.synthetic:
            lines.append("These cells are synthetic: metrics on them say nothing about patients.")
        if self.own_splits:
            sides = ", ".join(f"{side} {count:,}" for side, count in self.own_splits.items())
            lines.append(f"splits of its own: {sides} (taken by --split given, the default of `leukoscope train`)")
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
    labels: str | Path | None = None,
    image_size: int = 450,
    image_column_name: str = "image",
    label_column_name: str = "label",
    subject_column: str | None = None,
) -> LoadedCells:
    """Load a data set by registry name from a local folder, or from the Hub.

    Splits of its own are kept in the column `fold`: a Hub data set's, and those of class folders below `train/`,
    `validation/` and `test/`.

    Args:
        dataset_name: a key of `DATASETS`, or a Hub data-set id (`owner/name`).
        train_dir: the folder that holds the cells; without it the entry's Hub data set is downloaded.
        subject_pattern: `imagefolder` only: a regular expression over the path below `train_dir`, whose group
            `subject` (or first group) names the subject.
        labels: `imagefolder` only: a table, as `read_table` reads it, with the columns `file` (path below `train_dir`)
            and `label`, `subject` or both. With labels, it names the classes, and folders do not.
        image_size: side in pixels of the phantoms.
        image_column_name, label_column_name: columns of a Hub data set.
        subject_column: its column of subjects; None takes the first of `SUBJECT_COLUMNS` that it has.

    Raises:
        LeukoscopeError: unknown data set, a flag without effect, missing or empty folder, bad pattern, unreachable Hub
            data set, or a column that it lacks.
    """
    info, on_hub, class_folders = _entry(dataset_name), "/" in dataset_name, dataset_name == "imagefolder"
    folders = ", ".join(entry.name for entry in DATASETS.values() if entry.find_cells)
    for flag, value, has_effect, otherwise in (
        ("train_dir", train_dir, not on_hub and not info.synthetic, f"say what it holds by --dataset_name ({folders})"),
        ("subject_pattern", subject_pattern, class_folders, "read class folders with --dataset_name imagefolder"),
        ("labels", labels, class_folders, "read class folders with --dataset_name imagefolder"),
        ("image_column_name", image_column_name if image_column_name != "image" else None, on_hub, ""),
        ("label_column_name", label_column_name if label_column_name != "label" else None, on_hub, ""),
        ("subject_column", subject_column, on_hub, ""),
    ):
        # A flag without effect is a misunderstanding about which cells are used.
        if value is not None and not has_effect:
            data_set = f"--dataset_name {dataset_name}"
            data_set += f" --train_dir {train_dir}" if train_dir is not None and flag != "train_dir" else ""
            fix = f"leave it out, or {otherwise}" if otherwise else "leave it out"
            raise LeukoscopeError(f"--{flag} {value}: has no effect with {data_set}; {fix}")
    if info.synthetic:
        cells = list(phantom_cells(size=image_size))
        # Hash pixels, so that changed drawing code invalidates the cache.
        rows = [_Row(c.cell_id, c.label, c.subject, hashlib.sha256(c.image.tobytes()).hexdigest()) for c in cells]
        return _assemble(info, _images([c.image for c in cells]), rows, f"--dataset_name {info.name}")
    if train_dir is not None:
        return _from_folder(info, Path(train_dir), subject_pattern, labels)
    if info.hub_id is None:
        raise LeukoscopeError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    columns = {"image": image_column_name, "label": label_column_name, "subject": subject_column or ""}
    with progress(f"loading data set {info.hub_id}"):
        return _from_hub(info.hub_id, info, columns)


def recognise(root: Path) -> DatasetInfo:
    """The entry of `DATASETS` whose layout most pictures of a folder follow, else that of plain class folders.

    Raises:
        LeukoscopeError: no such folder, or no picture laid out in any known way.
    """
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such folder; give the folder that a data set was unpacked to")
    folder = ImageFolder.read(root)
    found = {info.name: list(info.find_cells(folder)) for info in DATASETS.values() if info.find_cells is not None}
    own = found.pop("imagefolder")
    best = DATASETS[max(found, key=lambda name: len(found[name]))]
    if len(found[best.name]) > len(files_left_out(best, folder, found[best.name])[OTHER]):
        return best
    if own:
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise LeukoscopeError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


def _entry(dataset_name: str) -> DatasetInfo:
    """The registry entry of a name; an unknown Hub data set is described like class folders."""
    if "/" not in dataset_name:
        return dataset_info(dataset_name)
    # Hide the local path of a folder of Parquet files.
    name = f"./{Path(dataset_name).name}" if Path(dataset_name).is_dir() else dataset_name
    unknown = replace(DATASETS["imagefolder"], name=name, title=name, hub_id=dataset_name, licence="")
    return next((entry for entry in DATASETS.values() if entry.hub_id == dataset_name), unknown)


def _own_sides(names: Iterable[str]) -> dict[str, str]:
    """The splits among these names of splits or folders: name → side; where two are of one side, the usual one."""
    plain = {_SIDE_SUFFIX.sub("", name.strip().casefold()): name for name in names}
    found = ((next((plain[name] for name in usual if name in plain), ""), side) for side, usual in _SIDE_NAMES.items())
    return {name: side for name, side in found if name}


class _Row(NamedTuple):
    """One labelled cell, its image in a file or in memory; the fingerprint covers `content`, not the image."""

    cell_id: str
    label: str
    subject: str
    content: str
    fold: str = ""


def _images(values: list[object]) -> Dataset:
    from datasets import Dataset, Features, Image

    return Dataset.from_dict({"image": values}, features=Features(image=Image()))


def _assemble(
    info: DatasetInfo,
    images: Dataset,
    rows: Sequence[_Row],
    source: str,
    *,
    unreadable: Iterable[str] = (),
    passed_over: Iterable[str] = (),
) -> LoadedCells:
    """Make a data set of (N,) images and what is known of each; messages open with `source`."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets

    labels = info.labels or tuple(sorted({row.label for row in rows}))
    _check_labels(labels, source, on_hub=bool(info.hub_id))
    if info.name not in DATASETS or info.find_cells is find_class_folders:
        info = replace(info, background=_background(images))
    text = Value("string")
    columns = {
        "label": [row.label for row in rows],
        "subject": [info.canonical_subject(row.subject) for row in rows],
        "cell_id": [row.cell_id for row in rows],
        "fold": [row.fold for row in rows],
    }
    features = Features(label=ClassLabel(names=list(labels)), subject=text, cell_id=text, fold=text)
    table = concatenate_datasets([images, Dataset.from_dict(columns, features=features)], axis=1)
    held_out = np.array([row.fold == PRELIMINARY_TEST for row in rows])
    parts = {"train": table.select(np.flatnonzero(~held_out))}
    if held_out.any():
        parts[PRELIMINARY_TEST] = table.select(np.flatnonzero(held_out))
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(("\t".join(row[:4]) + "\n").encode())
    different = tuple(_compare_counts(info, rows))
    info = replace(info, labels=labels)
    return LoadedCells(info, DatasetDict(parts), digest.hexdigest(), tuple(unreadable), different, tuple(passed_over))


def _check_labels(labels: Sequence[str], source: str, *, on_hub: bool) -> None:
    """Refuse fewer than two classes, and a class whose name would be taken for another or for none."""
    if len(labels) < 2:
        seen = f"only the class {labels[0]!r}" if labels else "no cell"
        how = "" if on_hub else ", each in a folder of its name"
        raise LeukoscopeError(f"{source}: {seen} found; a classifier needs two or more classes{how}")
    rename = "rename it" if on_hub else "rename its folder"
    alike: dict[str, str] = {}
    for label in sorted(labels):
        # Readers take names for the same that differ in case, Unicode form or number of blanks.
        folded = " ".join(normalize("NFKC", label).casefold().split())
        if label != label.strip() or not label.isprintable():
            raise LeukoscopeError(
                f"{source}: class {label!r} has blanks around its name, or characters that are not seen; {rename}"
            )
        if folded in RESERVED_LABELS:
            raise LeukoscopeError(f"{source}: class {label!r} is called as predictions without a class are; {rename}")
        if (other := alike.setdefault(folded, label)) != label:
            how = "differ only in case" if other.casefold() == label.casefold() else "look alike"
            raise LeukoscopeError(f"{source}: classes {other!r} and {label!r} {how}; give one class one name")


def _background(images: Dataset) -> Literal["black", "smear"]:
    """Background of the cells of a data set without an entry, judged on an even sample of them."""
    from datasets import Image

    sample = images.select(np.linspace(0, len(images) - 1, min(len(images), _BACKGROUND_SAMPLE)).astype(int))
    found = []
    for row in sample.cast_column("image", Image(decode=False)):
        with suppress(UnreadableImage):  # named when all are decoded
            found.append(is_cut_out(open_encoded(row["image"], "")))
    return "black" if found and np.mean(found) > 0.9 else "smear"


def _compare_counts(info: DatasetInfo, rows: Sequence[_Row]) -> Iterator[str]:
    """One line per partition and label whose number of cells is not the publisher's."""
    found = Counter((row.fold, row.label) for row in rows)
    published = info.official_counts
    if published and not any(fold in published for fold, _ in found):
        # Without the publisher's folds only the sums over its training data can be compared.
        training = [Counter(labels) for fold, labels in published.items() if fold != PRELIMINARY_TEST]
        published = {"": sum(training, Counter())}
        found = Counter(("", row.label) for row in rows)
    for fold, labels in published.items():
        for label, official in labels.items():
            if (count := found[fold, label]) != official:
                yield f"{fold or 'all'} {label}: {count:,} cells here, {official:,} published"


# From folders


def _from_folder(info: DatasetInfo, root: Path, pattern: str | None, labels: str | Path | None) -> LoadedCells:
    table = None if labels is None else _read_labels(Path(labels), pattern)
    cells, not_used = _found_in_folder(info, root, table)
    if info.name == "imagefolder" and not (table and table.has_labels):
        cells, left_out = _with_own_splits(cells, root)
        not_used += left_out
    cells = _with_subjects(cells, root, pattern, table)
    paths: dict[str, Path] = {}
    for cell in cells:
        # A cell present twice (say as .bmp and .webp) would stand on two sides of a random split.
        if (other := paths.setdefault(cell.cell_id, cell.path)) != cell.path:
            raise LeukoscopeError(f"{cell.path}: cell {cell.cell_id} is already there as {other}; keep one of the two")
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_header_problem, cells))
    readable = [cell for cell, problem in zip(cells, problems, strict=True) if not problem]
    unreadable = [problem for problem in problems if problem]
    source = f"--train_dir {root}"
    if not readable:
        raise LeukoscopeError(f"{source}: none of its {len(cells)} images can be read; first: {unreadable[0]}")
    content = content_hashes((cell.path for cell in readable), hashes_of_folder(root))
    if vanished := [path for path, hashed in content.items() if not hashed]:
        raise UnreachableImage(f"{vanished[0]}: cannot be read; check the path and who may read it")
    rows = [_Row(c.cell_id, c.label, c.subject, content[str(c.path)], c.fold) for c in readable]
    images = _images([str(c.path) for c in readable])
    return _assemble(info, images, rows, source, unreadable=unreadable, passed_over=not_used)


def _read_labels(path: Path, subject_pattern: str | None) -> CellTable:
    """Read the table of `--labels`; it must have a column of labels or of subjects."""
    if not path.is_file():
        raise LeukoscopeError(f"--labels {path}: no such file; it needs the columns file,label,subject")
    table = read_table(path)
    if not table.has_labels:
        require_subjects(table.name, table.has_subjects)
    if subject_pattern and table.has_subjects:
        raise LeukoscopeError(
            f"--subject_pattern {shlex.quote(subject_pattern)} --labels {path}: both name the subjects; give one"
        )
    for line in table.notes:
        note(line, err=True)
    return table


def _found_in_folder(info: DatasetInfo, root: Path, table: CellTable | None) -> tuple[list[CellFile], list[str]]:
    """The cells of a folder, and one line for each reason why images were left out."""
    if not root.is_dir():
        fetch = f"unpack {info.title} there (get it from {info.url}) or " if info.url else ""
        raise LeukoscopeError(f"--train_dir {root}: no such folder; {fetch}correct the path")
    assert info.find_cells is not None
    folder = ImageFolder.read(root)
    if table is not None and table.has_labels:
        found, not_used = list(cells_of_table(table, root)), []
        if count := len(table.rows) - len(found):
            not_used.append(f"{count} row(s) of {table.name} name no class: left out")
        named = {root / file for _, file in located(table, root)}
        if others := [path for path in folder.images if path not in named]:
            not_used.append(
                f"{len(others):,} image file(s) have no row in {table.name}, for example {others[0]}: left out"
            )
        return found, not_used
    found = list(info.find_cells(folder))
    not_used = list(passed_over(info, folder, found))
    if not found:
        reasons = "; ".join(not_used or [f"expected {info.layout}"])
        raise LeukoscopeError(f"--train_dir {root}: no cell of {info.title} found; {reasons}")
    return found, not_used


def _header_problem(cell: CellFile) -> str:
    try:
        check_header(cell.path)
    except UnreadableImage as error:
        return str(error)
    return ""


def _with_own_splits(cells: list[CellFile], root: Path) -> tuple[list[CellFile], list[str]]:
    """Class folders with their own splits as folds, and one line a folder that belongs to none.

    They have some where `train` and another side lie directly below the folder.
    """
    parts = [cell.path.relative_to(root).parts for cell in cells]
    depth = 0  # the folder that was unpacked may hold nothing but the data set's own
    while len({one[depth] for one in parts}) == 1 and all(len(one) > depth + 3 for one in parts):
        depth += 1
    # Splits lie above the folders of classes.
    side_of = _own_sides(dict.fromkeys(one[depth] for one in parts if len(one) > depth + 2))
    if "train" not in side_of.values() or len(side_of) < 2:
        return cells, []
    kept, left = [], Counter[str]()
    for cell, one in zip(cells, parts, strict=True):
        if len(one) > depth + 2 and one[depth] in side_of:
            kept.append(replace(cell, fold=side_of[one[depth]]))
        else:
            left[one[depth]] += 1
    return kept, [f"folder {top!r} not used: {count:,} image file(s), of no split" for top, count in left.items()]


def _with_subjects(cells: list[CellFile], root: Path, pattern: str | None, table: CellTable | None) -> list[CellFile]:
    """Fill in subjects from the user's rule, for folders whose layout does not name them."""
    if pattern:
        subject_of = subject_rule(pattern)
    elif table is None or table.has_labels:
        return cells
    else:
        subjects = {file: row.subject for row, file in located(table, root)}

        def subject_of(file: str) -> str:
            if file not in subjects:
                raise LeukoscopeError(f"{table.name}: no row for file {file!r}; every image needs a subject")
            return subjects[file]

    return [replace(cell, subject=subject_of(cell.path.relative_to(root).as_posix())) for cell in cells]


def subject_rule(pattern: str) -> Callable[[str], str]:
    """Make the function from an image's path to its subject: what the group `subject`, or the first group, matches.

    Raises `LeukoscopeError` for no regular expression, or one without a group; the function, for a path that it does
    not match.
    """
    flag = f"--subject_pattern {shlex.quote(pattern)}"
    try:
        rule = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise LeukoscopeError(f"{flag}: not a regular expression ({error})") from None
    if not rule.groups:
        raise LeukoscopeError(f"{flag}: has no group; write the subject's part as (?P<subject>…)")

    def subject_of(file: str) -> str:
        match = rule.search(file)
        if not (match and (subject := match["subject" if "subject" in rule.groupindex else 1])):
            raise LeukoscopeError(f"{flag}: does not match {file!r}; it must match every image")
        return str(subject)

    return subject_of


# From the Hub


def _from_hub(hub_id: str, info: DatasetInfo, columns: Mapping[str, str]) -> LoadedCells:
    """Load a Hub data set (or a local folder in the same layout) and give its columns our names.

    Of a data set of the registry, the split `train` and the publisher's own test are loaded; of any other, all splits
    with the usual names. `columns` are what its columns of images, labels and subjects are called.
    """
    from datasets import concatenate_datasets, disable_progress_bars, load_dataset

    disable_progress_bars()  # `progress` shows how long it takes
    is_known = info.name in DATASETS
    try:
        found = {"train": load_dataset(hub_id, split="train")} if is_known else load_dataset(hub_id)
    except Exception as error:  # the client raises a dozen unrelated types
        name = "imagefolder" if "/" in info.name else info.name
        raise LeukoscopeError(
            f"data set {hub_id}: cannot be loaded from the Hub ({_reason(error)}); check the id and the network, or "
            f"give a local copy with --dataset_name {name} --train_dir DIR"
        ) from None
    source = f"data set {hub_id}"
    if not is_known:
        info = _described(hub_id, info)
    side_of = {"train": "train"} if is_known else _own_sides(found)
    if "train" not in side_of.values():
        raise LeukoscopeError(
            f"{source}: has no split called train, only {', '.join(found)}; publish a copy that has one"
        )
    splits = next(iter(found.values())).info.splits or {}
    others = {name: split.num_examples for name, split in splits.items() if name not in side_of}
    own_test = others.pop(PRELIMINARY_TEST, None)
    not_used = [f"Hub split {name!r} not used: {count:,} rows" for name, count in others.items()]
    tables = {}
    for name, side in side_of.items():
        table = found[name]
        _require_columns(table, columns, source)
        if side != "train" and all(label in (None, -1) for label in table[columns["label"]]):
            not_used.append(f"Hub split {name!r} not used: its {len(table):,} rows have no labels")
        else:
            tables[side] = table
    if own_test:
        tables["train"] = concatenate_datasets([tables["train"], load_dataset(hub_id, split=PRELIMINARY_TEST)])
    rows: list[_Row] = []
    for side, table in tables.items():
        rows += _hub_rows(info, table, columns, side if len(tables) > 1 else "", len(rows), source)
    images = concatenate_datasets([_pictures(table, columns["image"]) for table in tables.values()])
    return _assemble(info, images, rows, source, passed_over=not_used)


def _reason(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


def _described(hub_id: str, info: DatasetInfo) -> DatasetInfo:
    """The entry of a Hub data set with what its card says, and `leukoscope: {dataset_name: …}` in its front matter."""
    from huggingface_hub import DatasetCard

    folder = Path(hub_id)
    try:
        source = folder / "README.md" if folder.is_dir() else hub_id
        card = DatasetCard.load(source, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):  # no card, or none that can be read; the cells are there all the same
        return info
    pushed = card.get("leukoscope")
    pushed = pushed if isinstance(pushed, dict) else {}
    aliases = pushed.get("subject_aliases")
    known = DATASETS.get(str(pushed.get("dataset_name")))
    return replace(
        known or info,
        name=info.name,
        hub_id=info.hub_id,
        copy_of=known.name if known and known.name != "imagefolder" else "",
        title=str(card.get("pretty_name") or info.title),
        licence=str(card.get("license") or ""),
        citation=str(pushed.get("citation") or ""),
        subject_aliases={str(k): str(v) for k, v in aliases.items()} if isinstance(aliases, dict) else {},
    )


def _require_columns(table: Dataset, columns: Mapping[str, str], source: str) -> None:
    from datasets import Value

    if missing := [name for name in columns.values() if name and name not in table.column_names]:
        raise LeukoscopeError(f"{source}: lacks the column(s) {', '.join(missing)}; has {table.column_names}")
    kind = table.features[columns["image"]]
    if isinstance(kind, Value) and "binary" not in kind.dtype:
        raise LeukoscopeError(
            f"{source}: its column {columns['image']!r} holds {kind.dtype}, no images; name theirs with "
            "--image_column_name"
        )


def _pictures(table: Dataset, column: str, *, decode: bool = True) -> Dataset:
    """The column of images alone, called `image`."""
    from datasets import Image

    return table.select_columns(column).rename_columns({column: "image"}).cast_column("image", Image(decode=decode))


def _hub_rows(
    info: DatasetInfo, table: Dataset, columns: Mapping[str, str], side: str, first: int, source: str
) -> list[_Row]:
    """The rows of one split, from number `first` on; the name of a side other than train goes before its cell ids."""
    ids = _hub_ids(table, first)
    if len(set(ids)) < len(ids):
        twice = next(cell for cell, count in Counter(ids).items() if count > 1)
        raise LeukoscopeError(f"{source}: cell {twice} is there more than once; give every row its own cell_id")
    subjects = _column(table, [columns["subject"]] if columns["subject"] else SUBJECT_COLUMNS)
    if subjects is None:
        subjects = [match["subject"] if (match := CNMC_NAME.match(Path(cell).name)) else "" for cell in ids]
    subjects = [subject_name(subject) for subject in subjects]
    if any(subjects) and "" in subjects:
        raise LeukoscopeError(
            f"{source}: cell {ids[subjects.index('')]} has no subject, other cells have one; name it, or remove its "
            f"row ({subjects.count('')} row(s) like this)"
        )
    folds = [side] * len(ids) if side else _column(table, ["fold"]) or [""] * len(ids)
    prefix = "" if side in ("", "train") else f"{side}/"
    spelled = {label.casefold(): label for label in info.labels}
    pictures = _pictures(table, columns["image"], decode=False)
    rows = []
    for cell, label, subject, fold, row in zip(ids, table[columns["label"]], subjects, folds, pictures, strict=True):
        if not (name := _class_name(label, table, columns["label"], f"{source}: cell {cell}")):
            raise LeukoscopeError(f"{source}: cell {cell} has no label; remove its row")
        if spelled and name.casefold() not in spelled:
            raise LeukoscopeError(f"{source}: unknown label {name!r}; expected one of {', '.join(info.labels)}")
        if row["image"] is None:
            raise LeukoscopeError(f"{source}: cell {cell} has no image; remove its row")
        # Two data sets may agree in all but their pictures.
        content = hashlib.sha256(encoded_content(row["image"])).hexdigest()
        name = spelled.get(name.casefold(), name)
        rows.append(_Row(prefix + cell.removeprefix(prefix), name, subject, content, str(fold or "")))
    return rows


def _column(table: Dataset, names: Iterable[str]) -> list[Any] | None:
    """The first of these columns that a table has."""
    return next((table[name][:] for name in names if name in table.column_names), None)


def _hub_ids(table: Dataset, first: int) -> list[str]:
    """Cell ids by a column of ids or of file names, else by row number."""
    if (named := _column(table, ID_COLUMNS)) is None:
        return [f"row_{first + number:06d}" for number in range(len(table))]
    ids = [cell_id_of(str(one)) for one in named]
    if "cell_id" in table.column_names:
        return ids
    # `ALL/0.png` and `HEM/0.png` are two cells.
    names = [Path(one).name for one in ids]
    return names if len(set(names)) == len(names) else [Path(one).as_posix() for one in ids]


def _class_name(label: object, table: Any, column: str, cell: str) -> str:
    """The class of a Hub data set's label; "" for none. Refuses labels that name no single class, such as a list."""
    from datasets import ClassLabel

    if label in (None, -1, ""):
        return ""
    if not isinstance(label, str | int):
        raise LeukoscopeError(
            f"{cell} has the label {reprlib.repr(label)} in column {column!r}, a {type(label).__name__}; give each "
            "cell one class, as a text or a whole number, or name another column with --label_column_name"
        )
    feature = (table.features or {}).get(column)
    return str(feature.int2str(label) if isinstance(feature, ClassLabel) else label)


# Sets are often sorted by class or subject; a shuffle of this many rows mixes neighbours, and after so many rows no
# further class is waited for.
BUFFER, MOST_ROWS = 64, 400


class StreamedCell(NamedTuple):
    """One labelled cell; `image` is upright RGB."""

    image: Picture.Image
    label: str


def stream_cells(hub_id: str, each: int = 3) -> list[StreamedCell]:
    """A few cells of each class of a Hub data set with columns `image` and `label`: at most `each`.

    Raises:
        LeukoscopeError: no network, no such data set, one laid out otherwise, or one without a readable picture.
    """
    from datasets import Image, load_dataset

    cells: dict[str, list[StreamedCell]] = {}
    try:
        rows = load_dataset(hub_id, split="train", streaming=True).shuffle(seed=0, buffer_size=BUFFER)
        rows = rows.select_columns(["image", "label"]).cast_column("image", Image(decode=False))
        for row in rows.take(MOST_ROWS):
            if not (label := _class_name(row["label"], rows, "label", f"data set {hub_id}: a cell")):
                continue
            found = cells.setdefault(label, [])
            if len(found) < each and row["image"] and row["image"]["bytes"]:
                with suppress(UnreadableImage):
                    found.append(StreamedCell(open_bytes(row["image"]["bytes"], label), label))
            if len(cells) > 1 and all(len(found) == each for found in cells.values()):
                break
    except LeukoscopeError:
        raise
    except Exception as error:  # the client raises a dozen unrelated types
        raise LeukoscopeError(
            f"data set {hub_id}: cannot be streamed from the Hub ({_reason(error)}); check the network"
        ) from None
    streamed = [cell for _, found in sorted(cells.items()) for cell in found]
    if not streamed:
        raise LeukoscopeError(f"data set {hub_id}: no readable picture among its first {MOST_ROWS} rows")
    return streamed
