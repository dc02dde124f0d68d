"""Load a data set by its name: from a local folder, from the Hub (or a local folder laid out like one), or drawn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from leukoscope import ConfigError, DataError
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.folder import load_folder
from leukoscope.data.images import encoded_content
from leukoscope.data.layouts import cell_id_of, check_classes_on_paths, subject_in_name
from leukoscope.data.names import side_named, subject_name
from leukoscope.data.reading import Reading
from leukoscope.data.registry import DATASETS, PRELIMINARY_TEST, DatasetInfo, dataset_info
from leukoscope.data.table import CellTable, cell_table, find_columns
from leukoscope.files import first_line
from leukoscope.progress import progress
from leukoscope.synthetic import phantom_cells

if TYPE_CHECKING:
    from datasets import Dataset

# Where a picture of a Hub repository lies on this machine, and its path in the repository.
_DOWNLOADED = re.compile(r".*/snapshots/[0-9a-f]{40}/(?P<path>.+)")
# By which `datasets` sorts loose pictures into splits.
_SIDE_IN_NAME = re.compile(
    r"(?:^|[-._ 0-9])(?:train|training|validation|valid|val|dev|test|testing|eval|evaluation)[-._ 0-9]", re.IGNORECASE
)


def load_cells(
    dataset_name: str, train_dir: str | Path | None = None, *, image_size: int = 450, **flags: Any
) -> LoadedCells:
    """Load a data set by registry name from a local folder, or from the Hub.

    Splits of its own are kept in the column `fold`: a Hub data set's, those of a column `split`, and those of folders
    `train/`, `validation/` and `test/`.

    Args:
        dataset_name: a key of `DATASETS`, or a Hub data-set id (`owner/name`).
        train_dir: the folder that holds the cells; without it the entry's Hub data set is downloaded.
        image_size: side in pixels of the phantoms.
        flags: of `Reading`, such as `subject_pattern`: of `imagefolder`, and the columns of a Hub data set.

    Raises:
        DataError: unknown data set, a flag without effect, missing or empty folder, bad pattern, unreachable Hub
            data set, or a column that it lacks.
    """
    reading = Reading(**flags)
    info = _entry(dataset_name)
    _check_flags(dataset_name, info, train_dir, reading)
    if info.synthetic:
        return _drawn(info, image_size)
    if train_dir is not None:
        return load_folder(info, Path(train_dir), reading)
    if info.hub_id is None:
        raise DataError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    with progress(f"loading data set {info.hub_id}"):
        return _load_hub(info.hub_id, info, reading)


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


_COLUMN_FLAGS = ("file_column", "label_column_name", "subject_column", "split_column")


def _check_flags(dataset_name: str, info: DatasetInfo, train_dir: str | Path | None, reading: Reading) -> None:
    """Refuse a flag without effect: it is a misunderstanding about which cells are used."""
    allowed: tuple[str, ...] = ()
    if dataset_name == "imagefolder":
        allowed = (*_COLUMN_FLAGS, "subject_pattern", "subject_folders", "labels")
    elif info.hub_id and train_dir is None:
        allowed = (*_COLUMN_FLAGS, "image_column_name")
    refused = {flag: argument for flag, argument in reading.given().items() if flag not in allowed}
    if train_dir is not None and ("/" in dataset_name or info.synthetic):
        refused["train_dir"] = train_dir
    for flag, argument in refused.items():
        raise ConfigError(
            f"--{flag} {argument}: has no effect with --dataset_name {dataset_name}; leave it out, or read your own "
            "cells with --dataset_name imagefolder --train_dir DIR"
        )


def _drawn(info: DatasetInfo, image_size: int) -> LoadedCells:
    """The phantoms, in squares of so many pixels."""
    cells = list(phantom_cells(size=image_size))
    # Hash pixels, so that changed drawing code invalidates the cache.
    rows = [
        CellRecord(cell.cell_id, cell.label, cell.subject, sha256(cell.image.tobytes()).hexdigest()) for cell in cells
    ]
    return assemble(info, image_column([cell.image for cell in cells]), rows, f"--dataset_name {info.name}")


# From the Hub


def _load_hub(hub_id: str, info: DatasetInfo, reading: Reading) -> LoadedCells:
    """Load a Hub data set and give its columns our names.

    Of a data set of the registry, the split `train` and the publisher's own test are used; of any other, all splits
    with the usual names.
    """
    from datasets import Image, concatenate_datasets, disable_progress_bars, load_dataset

    disable_progress_bars()  # `progress` shows how long it takes
    is_known = info.name in DATASETS
    source = f"data set {hub_id}"
    try:
        splits = load_dataset(hub_id)
    except Exception as error:  # the client raises a dozen unrelated types
        name = "imagefolder" if "/" in info.name else info.name
        raise DataError(
            f"{source}: cannot be loaded from the Hub ({type(error).__name__}: {first_line(error)}); check the id and "
            f"the network, or give a local copy with --dataset_name {name} --train_dir DIR"
        ) from None
    names = splits.keys() & {"train"}
    if not is_known:
        info = _described(hub_id, info)
        names = splits.keys()
    side_of = _sides_of_splits(names)
    if "train" not in side_of.values():
        raise DataError(f"{source}: has no split called train, only {', '.join(splits)}; publish a copy that has one")
    own_test = splits.pop(PRELIMINARY_TEST, None)
    not_used = [
        f"Hub split {name!r} not used: {len(rows):,} rows" for name, rows in splits.items() if name not in side_of
    ]
    if own_test:
        splits["train"] = concatenate_datasets([splits["train"], own_test])
    parts: dict[str, _HubSplit] = {}
    for name, side in side_of.items():
        first = sum(len(part.table.rows) for part in parts.values())
        rows = splits[name]
        table = _table_of(rows, reading, source, first)
        images = rows.select_columns(reading.image_column_name).rename_columns({reading.image_column_name: "image"})
        part = _HubSplit(rows, table, images.cast_column("image", Image(decode=False)))
        if side != "train" and not part.table.names("label"):
            not_used.append(f"Hub split {name!r} not used: its {len(part.rows):,} rows have no labels")
        else:
            parts[side] = part
    records: list[CellRecord] = []
    for side, part in parts.items():
        records += _records(part, info, side if len(parts) > 1 else "", source)
    split_column = ""
    if len(parts) == 1:
        split_column = parts["train"].table.columns.get("split", "")
    pictures = concatenate_datasets([part.images for part in parts.values()]).cast_column("image", Image())
    return assemble(info, pictures, records, source, passed_over=not_used, split_column=split_column)


def _sides_of_splits(names: Iterable[str]) -> dict[str, str]:
    """Split of a Hub data set → side; of two that name one side, the first."""
    sides: dict[str, str] = {}
    for name in names:
        side = side_named(name)
        if side and side not in sides.values():
            sides[name] = side
    return sides


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


class _HubSplit(NamedTuple):
    """One split of a Hub data set: its rows, what their columns say, and its images alone, undecoded."""

    rows: Dataset
    table: CellTable
    images: Dataset


def _table_of(rows: Dataset, reading: Reading, source: str, first: int) -> CellTable:
    """The columns beside the images, read as those of any table; rows without a name are numbered from `first` on."""
    import pandas as pd

    _require_images(rows, reading.image_column_name, source)
    # Other columns may hold masks, which are never read.
    header = [name for name, feature in rows.features.items() if _is_plain(feature)]
    places = find_columns(header, reading, source)
    if "label" not in places:
        raise DataError(
            f"{source}: has no column called label with one class in each row, only {', '.join(header)}; name that of "
            "the classes with --label_column_name"
        )
    texts = {header[place]: _texts(rows, header[place]) for place in places.values()}
    if places.keys().isdisjoint(("cell_id", "file")):
        texts["cell_id"] = [f"row_{first + number:06d}" for number in range(len(rows))]
    frame = pd.DataFrame(texts, index=range(first, first + len(rows)), dtype=str)
    return cell_table(source, frame, reading, ("cell_id", "file"))


def _is_plain(feature: object) -> bool:
    """Whether a column holds texts, numbers or classes."""
    from datasets import ClassLabel, Value

    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "binary" not in feature.dtype)


def _texts(rows: Dataset, name: str) -> list[str]:
    """The entries of a column as text: of classes their names, "" where there is none."""
    from datasets import ClassLabel

    entries = rows[name][:]
    feature = rows.features[name]
    if isinstance(feature, ClassLabel):
        entries = [feature.int2str(entry) if entry not in (None, -1) else None for entry in entries]
    return ["" if entry is None else str(entry) for entry in entries]


def _require_images(rows: Dataset, column: str, source: str) -> None:
    """Refuse a column that is missing, or of which each entry is a path or a list."""
    from datasets import Image, Value

    if column not in rows.column_names:
        raise DataError(
            f"{source}: has no column {column!r}, only {', '.join(rows.column_names)}; name that of the images with "
            "--image_column_name"
        )
    kind = rows.features[column]
    is_binary = isinstance(kind, Value) and "binary" in kind.dtype
    is_file = isinstance(kind, dict) and kind.keys() == {"bytes", "path"}
    if not (isinstance(kind, Image) or is_binary or is_file):
        raise DataError(
            f"{source}: its column {column!r} holds {getattr(kind, 'dtype', 'lists')}, not images; publish one picture "
            "a row, or name the column of images with --image_column_name"
        )


def _records(part: _HubSplit, info: DatasetInfo, side: str, source: str) -> list[CellRecord]:
    """The cells of a split; the name of a side other than train goes before their ids."""
    rows = part.table.rows
    ids = [cell_id_of(row.file) for row in rows]
    file_names = [PurePosixPath(cell).name for cell in ids]
    # `ALL/0.png` and `HEM/0.png` are two cells.
    if "cell_id" not in part.table.columns and len(set(file_names)) == len(ids):
        ids = file_names
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{source}: cell {twice} appears more than once; give every row its own cell_id")
    nameless = [cell for cell, row in zip(ids, rows, strict=True) if not row.label]
    if nameless:
        raise DataError(
            f"{source}: {len(nameless)} cell(s) have no label, the first is {nameless[0]}; remove their rows"
        )
    spelt = {label.casefold(): label for label in info.labels}
    prefix = f"{side}/" if side not in ("", "train") else ""
    records = []
    files = []
    for cell, row, picture in zip(ids, rows, part.images, strict=True):
        label = spelt.get(row.label.casefold(), row.label)
        if spelt and label not in info.labels:
            raise DataError(
                f"{source}: its column {part.table.columns['label']!r} names the class {row.label!r}, not one of "
                f"{', '.join(info.labels)}; name that of the classes (of {', '.join(part.rows.column_names)}) with "
                "--label_column_name"
            )
        if side and row.side not in ("", side):
            raise DataError(
                f"{source}: cell {cell} is on the side {row.side!r} by a column, and in the split {side!r}; leave the "
                "column out with --split_column none"
            )
        subject = row.subject
        if "subject" not in part.table.columns:
            subject = subject_in_name(cell)
        # Two data sets may agree in all but their pictures.
        content = sha256(_content(picture["image"], cell, source)).hexdigest()
        fold = side or row.side or subject_name(row.fold)
        records.append(CellRecord(prefix + cell.removeprefix(prefix), label, subject, content, fold))
        files.append((_path_in_set(picture["image"]["path"] or "", info.hub_id or ""), label))
    check_classes_on_paths(files, {label for _, label in files})
    loose = [PurePosixPath(file) for file, _ in files if file]
    in_folders = any(side_named(folder) for path in loose for folder in path.parts[:-1])
    if loose and not in_folders and all(_SIDE_IN_NAME.search(path.name) for path in loose):
        raise DataError(
            f"{source}: its splits are made of files with a side in their name, such as {loose[0]}, and other files "
            "are missing; download it and give --dataset_name imagefolder --train_dir DIR"
        )
    return records


def _content(image: Mapping[str, Any] | None, cell: str, source: str) -> bytes:
    """The bytes of a picture; refuses a row that has none."""
    if image is None:
        raise DataError(f"{source}: cell {cell} has no image; remove its row")
    try:
        return encoded_content(image)
    except (OSError, TypeError):
        raise DataError(
            f"{source}: cell {cell} has the path {image['path']!r} and no picture; publish the pictures themselves, as "
            "`push_to_hub` does"
        ) from None


def _path_in_set(path: str, hub_id: str) -> str:
    """The path of a loose picture below its data set; "" for one within a table."""
    downloaded = _DOWNLOADED.match(Path(path).as_posix())
    if downloaded:
        return downloaded["path"]
    folder = Path(hub_id).absolute()
    if hub_id and Path(path).is_relative_to(folder):
        return Path(path).relative_to(folder).as_posix()
    return ""
