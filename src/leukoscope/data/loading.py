"""Load a data set by its name: from a local folder, from the Hub (or a local folder laid out like one), or drawn."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image as Picture

from leukoscope import ConfigError, DataError
from leukoscope.data.cell_tables import SUBJECT_COLUMNS
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.folder import load_folder, own_sides
from leukoscope.data.images import UnreadableImage, encoded_content, open_bytes
from leukoscope.data.layouts import CNMC_NAME, cell_id_of, check_classes_on_paths
from leukoscope.data.registry import DATASETS, PRELIMINARY_TEST, DatasetInfo, dataset_info
from leukoscope.data.subject_ids import subject_name
from leukoscope.files import first_line
from leukoscope.progress import progress
from leukoscope.synthetic import phantom_cells

if TYPE_CHECKING:
    from datasets import Dataset

ID_COLUMNS = ("cell_id", "file_name", "filename", "image_name", "original_image_name")
# Sets are often sorted by class or subject; a shuffle of this many rows mixes neighbours.
_STREAM_BUFFER = 64
# Where a picture of a Hub repository lies on this machine, and its path in the repository.
_DOWNLOADED = re.compile(r".*/snapshots/[0-9a-f]{40}/(?P<path>.+)")
# After so many rows no further class is waited for.
_MOST_STREAMED_ROWS = 400


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

    Splits of its own are kept in the column `fold`: a Hub data set's, and those of folders `train/`, `validation/` and
    `test/`.

    Args:
        dataset_name: a key of `DATASETS`, or a Hub data-set id (`owner/name`).
        train_dir: the folder that holds the cells; without it the entry's Hub data set is downloaded.
        subject_pattern: `imagefolder` only: a regular expression over the path below `train_dir`, whose group
            `subject` (or first group) names the subject.
        labels: `imagefolder` only: a table, as `read_table` reads it, with the columns `file` (path below `train_dir`)
            and `label`, `subject` or both. With labels, it names the classes, and folders do not.
        image_size: side in pixels of the phantoms.
        image_column_name, label_column_name, subject_column: of a Hub data set; the second also of `imagefolder`'s
            table. None takes the first of `SUBJECT_COLUMNS` that it has.

    Raises:
        DataError: unknown data set, a flag without effect, missing or empty folder, bad pattern, unreachable Hub
            data set, or a column that it lacks.
    """
    info = _entry(dataset_name)
    flags = {
        "train_dir": train_dir,
        "subject_pattern": subject_pattern,
        "labels": labels,
        "image_column_name": None if image_column_name == "image" else image_column_name,
        "label_column_name": None if label_column_name == "label" else label_column_name,
        "subject_column": subject_column,
    }
    _check_flags(dataset_name, info, flags)
    if info.synthetic:
        return _drawn(info, image_size)
    if train_dir is not None:
        return load_folder(info, Path(train_dir), subject_pattern, labels, label_column_name)
    if info.hub_id is None:
        raise DataError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    columns = {"image": image_column_name, "label": label_column_name, "subject": subject_column or ""}
    with progress(f"loading data set {info.hub_id}"):
        return _load_hub(info.hub_id, info, columns)


load_dataset = load_cells  # its public name


def _entry(dataset_name: str) -> DatasetInfo:
    """The registry entry of a name; an unknown Hub data set is described like class folders."""
    if "/" not in dataset_name:
        return dataset_info(dataset_name)
    name = dataset_name
    if Path(dataset_name).is_dir():  # of Parquet files; hide its local path
        name = f"./{Path(dataset_name).name}"
    unknown = replace(DATASETS["imagefolder"], name=name, title=name, hub_id=dataset_name, licence="")
    return next((entry for entry in DATASETS.values() if entry.hub_id == dataset_name), unknown)


_HUB_FLAGS = ("image_column_name", "label_column_name", "subject_column")
_CLASS_FOLDER_FLAGS = ("train_dir", "subject_pattern", "labels", "label_column_name")


def _check_flags(dataset_name: str, info: DatasetInfo, flags: Mapping[str, Any]) -> None:
    """Refuse a flag without effect: it is a misunderstanding about which cells are used."""
    if "/" in dataset_name:
        allowed: tuple[str, ...] = _HUB_FLAGS
    elif dataset_name == "imagefolder":
        allowed = _CLASS_FOLDER_FLAGS
    elif info.synthetic:
        allowed = ()
    else:
        allowed = ("train_dir",)
    for flag, argument in flags.items():
        if argument is None or flag in allowed:
            continue
        data_set = f"--dataset_name {dataset_name}"
        if flags["train_dir"] is not None and flag != "train_dir":
            data_set += f" --train_dir {flags['train_dir']}"
        raise ConfigError(f"--{flag} {argument}: has no effect with {data_set}; leave it out{_instead_of(flag)}")


def _instead_of(flag: str) -> str:
    """What to do instead of giving a flag without effect."""
    if flag == "train_dir":
        folders = ", ".join(entry.name for entry in DATASETS.values() if entry.find_cells)
        return f", or say what it holds by --dataset_name ({folders})"
    if flag in ("subject_pattern", "labels"):
        return ", or read class folders with --dataset_name imagefolder"
    return ""


def _drawn(info: DatasetInfo, image_size: int) -> LoadedCells:
    """The phantoms, in squares of so many pixels."""
    cells = list(phantom_cells(size=image_size))
    # Hash pixels, so that changed drawing code invalidates the cache.
    rows = [
        CellRecord(cell.cell_id, cell.label, cell.subject, sha256(cell.image.tobytes()).hexdigest()) for cell in cells
    ]
    return assemble(info, image_column([cell.image for cell in cells]), rows, f"--dataset_name {info.name}")


# From the Hub


def _load_hub(hub_id: str, info: DatasetInfo, columns: Mapping[str, str]) -> LoadedCells:
    """Load a Hub data set and give its columns our names; `columns` are what it calls images, labels and subjects.

    Of a data set of the registry, the split `train` and the publisher's own test are loaded; of any other, all splits
    with the usual names.
    """
    from datasets import concatenate_datasets, disable_progress_bars, load_dataset

    disable_progress_bars()  # `progress` shows how long it takes
    is_known = info.name in DATASETS
    source = f"data set {hub_id}"
    try:
        if is_known:
            splits = {"train": load_dataset(hub_id, split="train")}
        else:
            splits = load_dataset(hub_id)
    except Exception as error:  # the client raises a dozen unrelated types
        name = "imagefolder" if "/" in info.name else info.name
        raise DataError(
            f"{source}: cannot be loaded from the Hub ({type(error).__name__}: {first_line(error)}); check the id and "
            f"the network, or give a local copy with --dataset_name {name} --train_dir DIR"
        ) from None
    side_of = {"train": "train"}
    if not is_known:
        info = _described(hub_id, info)
        side_of = own_sides(splits)
    if "train" not in side_of.values():
        raise DataError(f"{source}: has no split called train, only {', '.join(splits)}; publish a copy that has one")
    published = next(iter(splits.values())).info.splits or {}
    other_splits = {name: split.num_examples for name, split in published.items() if name not in side_of}
    own_test = other_splits.pop(PRELIMINARY_TEST, None)
    not_used = [f"Hub split {name!r} not used: {count:,} rows" for name, count in other_splits.items()]
    tables = {}
    for name, side in side_of.items():
        table = splits[name]
        _require_columns(table, columns, source)
        if side != "train" and all(label in (None, -1) for label in table[columns["label"]]):
            not_used.append(f"Hub split {name!r} not used: its {len(table):,} rows have no labels")
        else:
            tables[side] = table
    if own_test:
        tables["train"] = concatenate_datasets([tables["train"], load_dataset(hub_id, split=PRELIMINARY_TEST)])
    rows: list[CellRecord] = []
    for side, table in tables.items():
        rows += _hub_rows(info, table, columns, side if len(tables) > 1 else "", len(rows), source)
    images = concatenate_datasets([_pictures(table, columns["image"]) for table in tables.values()])
    return assemble(info, images, rows, source, passed_over=not_used)


def _described(hub_id: str, info: DatasetInfo) -> DatasetInfo:
    """The entry of a Hub data set with what its card says, and `leukoscope: {dataset_name: …}` in its front matter."""
    from huggingface_hub import DatasetCard

    folder = Path(hub_id)
    try:
        source = folder / "README.md" if folder.is_dir() else hub_id
        card = DatasetCard.load(source, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):  # no card, or none that can be read; the cells are there all the same
        return info
    facts = card.get("leukoscope")
    if not isinstance(facts, dict):
        facts = {}
    aliases = facts.get("subject_aliases")
    if not isinstance(aliases, dict):
        aliases = {}
    entry = DATASETS.get(str(facts.get("dataset_name")))
    return replace(
        entry or info,
        name=info.name,
        hub_id=info.hub_id,
        copy_of=entry.name if entry and entry.name != "imagefolder" else "",
        title=str(card.get("pretty_name") or info.title),
        licence=str(card.get("license") or ""),
        citation=str(facts.get("citation") or ""),
        subject_aliases={str(subject): str(alias) for subject, alias in aliases.items()},
    )


def _require_columns(table: Dataset, columns: Mapping[str, str], source: str) -> None:
    from datasets import Value

    missing = [name for name in columns.values() if name and name not in table.column_names]
    if missing:
        raise DataError(f"{source}: lacks the column(s) {', '.join(missing)}; has {table.column_names}")
    kind = table.features[columns["image"]]
    if isinstance(kind, Value) and "binary" not in kind.dtype:
        raise DataError(
            f"{source}: its column {columns['image']!r} holds {kind.dtype}, not images; name the column of images with "
            "--image_column_name"
        )


def _pictures(table: Dataset, column: str, *, decode: bool = True) -> Dataset:
    """The column of images alone, called `image`."""
    from datasets import Image

    return table.select_columns(column).rename_columns({column: "image"}).cast_column("image", Image(decode=decode))


def _hub_rows(
    info: DatasetInfo, table: Dataset, columns: Mapping[str, str], side: str, first: int, source: str
) -> list[CellRecord]:
    """The rows of one split, from number `first` on; the name of a side other than train goes before the cells' ids."""
    ids = _cell_ids(table, first, source)
    subjects = _subjects(table, columns["subject"], ids, source)
    names = _class_names(info, table, columns["label"], ids, source)
    # The names of no subject are those of no fold, too; 0 is a fold.
    folds = [subject_name(fold) for fold in _column(table, ["fold"]) or [""] * len(ids)]
    if side:
        folds = [side] * len(ids)
    prefix = f"{side}/" if side not in ("", "train") else ""
    pictures = _pictures(table, columns["image"], decode=False)
    _check_paths(info.hub_id or "", pictures, names)
    rows = []
    for cell, name, subject, fold, row in zip(ids, names, subjects, folds, pictures, strict=True):
        if row["image"] is None:
            raise DataError(f"{source}: cell {cell} has no image; remove its row")
        # Two data sets may agree in all but their pictures.
        content = sha256(encoded_content(row["image"])).hexdigest()
        rows.append(CellRecord(prefix + cell.removeprefix(prefix), name, subject, content, fold))
    return rows


def _cell_ids(table: Dataset, first: int, source: str) -> list[str]:
    """The id of each row: of a column of ids or of file names, else the row's number, from `first` on."""
    named = _column(table, ID_COLUMNS)
    if named is None:
        ids = [f"row_{first + number:06d}" for number in range(len(table))]
    else:
        ids = [cell_id_of(str(name)) for name in named]
        file_names = [Path(cell).name for cell in ids]
        # `ALL/0.png` and `HEM/0.png` are two cells.
        if "cell_id" not in table.column_names and len(set(file_names)) == len(ids):
            ids = file_names
    if len(set(ids)) < len(ids):
        twice = next(cell for cell, count in Counter(ids).items() if count > 1)
        raise DataError(f"{source}: cell {twice} appears more than once; give every row its own cell_id")
    return ids


def _subjects(table: Dataset, column: str, ids: Sequence[str], source: str) -> list[str]:
    """The subject of each row: of a column, else of a file name as C-NMC has; "" for all where neither names one."""
    entries = _column(table, [column] if column else SUBJECT_COLUMNS)
    if entries is None:
        matches = [CNMC_NAME.match(Path(cell).name) for cell in ids]
        entries = [match["subject"] if match else "" for match in matches]
    subjects = [subject_name(entry) for entry in entries]
    if any(subjects) and "" in subjects:
        raise DataError(
            f"{source}: cell {ids[subjects.index('')]} has no subject, other cells have one; name it, or remove its "
            f"row ({subjects.count('')} row(s) like this)"
        )
    return subjects


def _class_names(info: DatasetInfo, table: Dataset, column: str, ids: Sequence[str], source: str) -> list[str]:
    """The class of each row, as the data set's entry spells it."""
    labels = zip(ids, table[column][:], strict=True)
    names = [_class_name(label, table, column, f"{source}: cell {cell}") for cell, label in labels]
    if "" in names:
        raise DataError(
            f"{source}: {names.count('')} cell(s) have no label, the first is {ids[names.index('')]}; remove their rows"
        )
    spelt = {label.casefold(): label for label in info.labels}
    if not spelt:
        return names
    for name in names:
        if name.casefold() not in spelt:
            raise DataError(f"{source}: unknown label {name!r}; expected one of {', '.join(info.labels)}")
    return [spelt[name.casefold()] for name in names]


def _check_paths(hub_id: str, pictures: Dataset, names: Sequence[str]) -> None:
    """Refuse class folders within class folders, of which `datasets` reads the inner one."""
    files = []
    folder = Path(hub_id).absolute()
    for row, name in zip(pictures, names, strict=True):
        path = Path((row["image"] or {}).get("path") or "")
        downloaded = _DOWNLOADED.match(path.as_posix())
        if downloaded:
            files.append((downloaded["path"], name))
        elif hub_id and path.is_relative_to(folder):
            files.append((path.relative_to(folder).as_posix(), name))
    check_classes_on_paths(files, set(names))


def _column(table: Dataset, names: Iterable[str]) -> list[Any] | None:
    """The first of these columns that a table has."""
    return next((table[name][:] for name in names if name in table.column_names), None)


def _class_name(label: object, table: Any, column: str, cell: str) -> str:
    """The class of a Hub data set's label; "" for none. Refuses labels that name no single class, such as a list."""
    from datasets import ClassLabel

    if label in (None, -1, ""):
        return ""
    if not isinstance(label, str | int):
        raise DataError(
            f"{cell} has the label {reprlib.repr(label)} in column {column!r}, a {type(label).__name__}; give each "
            "cell one class, as a text or a whole number, or name another column with --label_column_name"
        )
    feature = (table.features or {}).get(column)
    return str(feature.int2str(label) if isinstance(feature, ClassLabel) else label)


class StreamedCell(NamedTuple):
    """One labelled cell; `image` is upright RGB, or RGBA where parts are transparent."""

    image: Picture.Image
    label: str


def stream_cells(hub_id: str, each: int = 3) -> list[StreamedCell]:
    """A few cells of each class of a Hub data set with columns `image` and `label`: at most `each`.

    Raises:
        DataError: no network, no such data set, one laid out otherwise, or one without a readable picture.
    """
    from datasets import Image, load_dataset

    cells: dict[str, list[StreamedCell]] = {}
    try:
        rows = load_dataset(hub_id, split="train", streaming=True).shuffle(seed=0, buffer_size=_STREAM_BUFFER)
        rows = rows.select_columns(["image", "label"]).cast_column("image", Image(decode=False))
        for row in rows.take(_MOST_STREAMED_ROWS):
            label = _class_name(row["label"], rows, "label", f"data set {hub_id}: a cell")
            if not label:
                continue
            of_class = cells.setdefault(label, [])
            if len(of_class) < each and row["image"] and row["image"]["bytes"]:
                with suppress(UnreadableImage):
                    of_class.append(StreamedCell(open_bytes(row["image"]["bytes"], label, ground=None), label))
            if len(cells) > 1 and all(len(of_class) == each for of_class in cells.values()):
                break
    except DataError:
        raise
    except Exception as error:  # the client raises a dozen unrelated types
        raise DataError(
            f"data set {hub_id}: cannot be streamed from the Hub ({type(error).__name__}: {first_line(error)}); check "
            "the network"
        ) from None
    streamed = [cell for label in sorted(cells) for cell in cells[label]]
    if not streamed:
        raise DataError(f"data set {hub_id}: no readable picture among its first {_MOST_STREAMED_ROWS} rows")
    return streamed
