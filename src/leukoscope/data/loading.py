"""Load a data set by its name: from a local folder, from the Hub (or a local folder laid out like one), or drawn."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image as Picture

from leukoscope import LeukoscopeError
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
# Sets are often sorted by class or subject; a shuffle of this many rows mixes neighbours, and after so many rows no
# further class is waited for.
BUFFER, MOST_ROWS = 64, 400


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
        LeukoscopeError: unknown data set, a flag without effect, missing or empty folder, bad pattern, unreachable Hub
            data set, or a column that it lacks.
    """
    info, on_hub, class_folders = _entry(dataset_name), "/" in dataset_name, dataset_name == "imagefolder"
    folders = ", ".join(entry.name for entry in DATASETS.values() if entry.find_cells)
    own = "read class folders with --dataset_name imagefolder"
    for flag, value, has_effect, otherwise in (
        ("train_dir", train_dir, not on_hub and not info.synthetic, f"say what it holds by --dataset_name ({folders})"),
        ("subject_pattern", subject_pattern, class_folders, own),
        ("labels", labels, class_folders, own),
        ("image_column_name", image_column_name if image_column_name != "image" else None, on_hub, ""),
        ("label_column_name", label_column_name if label_column_name != "label" else None, on_hub or class_folders, ""),
        ("subject_column", subject_column, on_hub, ""),
    ):
        # A flag without effect is a misunderstanding about which cells are used.
        if value is not None and not has_effect:
            data_set = f"--dataset_name {dataset_name}"
            data_set += f" --train_dir {train_dir}" if train_dir is not None and flag != "train_dir" else ""
            fix = f"leave it out, or {otherwise}" if otherwise else "leave it out"
            raise LeukoscopeError(f"--{flag} {value}: has no effect with {data_set}; {fix}")
    if info.synthetic:
        drawn = list(phantom_cells(size=image_size))
        # Hash pixels, so that changed drawing code invalidates the cache.
        rows = [CellRecord(c.cell_id, c.label, c.subject, sha256(c.image.tobytes()).hexdigest()) for c in drawn]
        return assemble(info, image_column([cell.image for cell in drawn]), rows, f"--dataset_name {info.name}")
    if train_dir is not None:
        return load_folder(info, Path(train_dir), subject_pattern, labels, label_column_name)
    if info.hub_id is None:
        raise LeukoscopeError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    columns = {"image": image_column_name, "label": label_column_name, "subject": subject_column or ""}
    with progress(f"loading data set {info.hub_id}"):
        return _load_hub(info.hub_id, info, columns)


load_dataset = load_cells  # its public name


def _entry(dataset_name: str) -> DatasetInfo:
    """The registry entry of a name; an unknown Hub data set is described like class folders."""
    if "/" not in dataset_name:
        return dataset_info(dataset_name)
    # Hide the local path of a folder of Parquet files.
    name = f"./{Path(dataset_name).name}" if Path(dataset_name).is_dir() else dataset_name
    unknown = replace(DATASETS["imagefolder"], name=name, title=name, hub_id=dataset_name, licence="")
    return next((entry for entry in DATASETS.values() if entry.hub_id == dataset_name), unknown)


# From the Hub


def _load_hub(hub_id: str, info: DatasetInfo, columns: Mapping[str, str]) -> LoadedCells:
    """Load a Hub data set and give its columns our names; `columns` are what it calls images, labels and subjects.

    Of a data set of the registry, the split `train` and the publisher's own test are loaded; of any other, all splits
    with the usual names.
    """
    from datasets import concatenate_datasets, disable_progress_bars, load_dataset

    disable_progress_bars()  # `progress` shows how long it takes
    is_known, source = info.name in DATASETS, f"data set {hub_id}"
    try:
        found = {"train": load_dataset(hub_id, split="train")} if is_known else load_dataset(hub_id)
    except Exception as error:  # the client raises a dozen unrelated types
        name = "imagefolder" if "/" in info.name else info.name
        raise LeukoscopeError(
            f"{source}: cannot be loaded from the Hub ({type(error).__name__}: {first_line(error)}); check the id and "
            f"the network, or give a local copy with --dataset_name {name} --train_dir DIR"
        ) from None
    side_of = {"train": "train"}
    if not is_known:
        info, side_of = _described(hub_id, info), own_sides(found)
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
    """The rows of one split, from number `first` on.

    Cell ids come from a column of ids or of file names, else from the row's number; the name of a side other than train
    goes before them.
    """
    if (named := _column(table, ID_COLUMNS)) is None:
        ids = [f"row_{first + number:06d}" for number in range(len(table))]
    else:
        ids = [cell_id_of(str(one)) for one in named]
        # `ALL/0.png` and `HEM/0.png` are two cells.
        if "cell_id" not in table.column_names and len({Path(one).name for one in ids}) == len(ids):
            ids = [Path(one).name for one in ids]
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
    # The names of no subject are those of no fold, too; 0 is a fold.
    folds = [subject_name(fold) for fold in _column(table, ["fold"]) or [""] * len(ids)]
    if side:
        folds = [side] * len(ids)
    prefix = "" if side in ("", "train") else f"{side}/"
    spelled = {label.casefold(): label for label in info.labels}
    labels = zip(ids, table[columns["label"]][:], strict=True)
    names = [_class_name(label, table, columns["label"], f"{source}: cell {cell}") for cell, label in labels]
    if "" in names:
        raise LeukoscopeError(
            f"{source}: {names.count('')} cell(s) have no label, the first is {ids[names.index('')]}; remove their rows"
        )
    rows = []
    pictures = _pictures(table, columns["image"], decode=False)
    if Path(info.hub_id or "").is_dir():
        _check_local_paths(Path(info.hub_id or ""), pictures, names)
    for cell, name, subject, fold, row in zip(ids, names, subjects, folds, pictures, strict=True):
        if spelled and name.casefold() not in spelled:
            raise LeukoscopeError(f"{source}: unknown label {name!r}; expected one of {', '.join(info.labels)}")
        if row["image"] is None:
            raise LeukoscopeError(f"{source}: cell {cell} has no image; remove its row")
        # Two data sets may agree in all but their pictures.
        content = sha256(encoded_content(row["image"])).hexdigest()
        name = spelled.get(name.casefold(), name)
        rows.append(CellRecord(prefix + cell.removeprefix(prefix), name, subject, content, fold))
    return rows


def _check_local_paths(folder: Path, pictures: Dataset, names: Sequence[str]) -> None:
    """Refuse class folders within class folders, of which `datasets` reads the inner one."""
    files = []
    for row, name in zip(pictures, names, strict=True):
        path = Path((row["image"] or {}).get("path") or "")
        if path.is_relative_to(folder.absolute()):
            files.append((path.relative_to(folder.absolute()).as_posix(), name))
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
            f"data set {hub_id}: cannot be streamed from the Hub ({type(error).__name__}: {first_line(error)}); check "
            "the network"
        ) from None
    streamed = [cell for _, found in sorted(cells.items()) for cell in found]
    if not streamed:
        raise LeukoscopeError(f"data set {hub_id}: no readable picture among its first {MOST_ROWS} rows")
    return streamed
