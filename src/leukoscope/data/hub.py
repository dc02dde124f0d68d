"""Cells of a Hub data set, or of a local folder laid out like one."""

from __future__ import annotations

import hashlib
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import SUBJECT_COLUMNS, subject_name
from leukoscope.data.cells import CellRecord, LoadedCells, assemble
from leukoscope.data.folder import own_sides
from leukoscope.data.images import UnreadableImage, encoded_content, open_bytes
from leukoscope.data.layouts import CNMC_NAME, cell_id_of
from leukoscope.data.registry import DATASETS, PRELIMINARY_TEST, DatasetInfo

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image as Picture

ID_COLUMNS = ("cell_id", "file_name", "filename", "image_name", "original_image_name")
# Sets are often sorted by class or subject; a shuffle of this many rows mixes neighbours, and after so many rows no
# further class is waited for.
BUFFER, MOST_ROWS = 64, 400


def load_hub(hub_id: str, info: DatasetInfo, columns: Mapping[str, str]) -> LoadedCells:
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
    side_of = {"train": "train"} if is_known else own_sides(found)
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
    rows: list[CellRecord] = []
    for side, table in tables.items():
        rows += _hub_rows(info, table, columns, side if len(tables) > 1 else "", len(rows), source)
    images = concatenate_datasets([_pictures(table, columns["image"]) for table in tables.values()])
    return assemble(info, images, rows, source, passed_over=not_used)


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
) -> list[CellRecord]:
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
    labels = table[columns["label"]][:]
    named = zip(ids, labels, strict=True)
    names = [_class_name(label, table, columns["label"], f"{source}: cell {cell}") for cell, label in named]
    if "" in names:
        raise LeukoscopeError(
            f"{source}: {names.count('')} cell(s) have no label, the first is {ids[names.index('')]}; remove their rows"
        )
    rows = []
    for cell, name, subject, fold, row in zip(ids, names, subjects, folds, pictures, strict=True):
        if spelled and name.casefold() not in spelled:
            raise LeukoscopeError(f"{source}: unknown label {name!r}; expected one of {', '.join(info.labels)}")
        if row["image"] is None:
            raise LeukoscopeError(f"{source}: cell {cell} has no image; remove its row")
        # Two data sets may agree in all but their pictures.
        content = hashlib.sha256(encoded_content(row["image"])).hexdigest()
        name = spelled.get(name.casefold(), name)
        rows.append(CellRecord(prefix + cell.removeprefix(prefix), name, subject, content, str(fold or "")))
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
