"""Load a data set by its name: from a local folder, from the Hub, or drawn."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from leukoscope import LeukoscopeError
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.folder import load_folder
from leukoscope.data.hub import load_hub
from leukoscope.data.registry import DATASETS, DatasetInfo, dataset_info
from leukoscope.progress import progress
from leukoscope.synthetic import phantom_cells


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
        image_column_name: the column of images of a Hub data set.
        label_column_name: the column of classes of a Hub data set or of `imagefolder`'s table, or the control of Label
            Studio.
        subject_column: the column of subjects of a Hub data set; None takes the first of `SUBJECT_COLUMNS` that it has.

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
        cells = list(phantom_cells(size=image_size))
        # Hash pixels, so that changed drawing code invalidates the cache.
        rows = [CellRecord(c.cell_id, c.label, c.subject, hashlib.sha256(c.image.tobytes()).hexdigest()) for c in cells]
        return assemble(info, image_column([c.image for c in cells]), rows, f"--dataset_name {info.name}")
    if train_dir is not None:
        return load_folder(
            info, Path(train_dir), subject_pattern=subject_pattern, labels=labels, label_column=label_column_name
        )
    if info.hub_id is None:
        raise LeukoscopeError(f"--dataset_name {info.name}: it has no Hub copy; give its folder with --train_dir DIR")
    columns = {"image": image_column_name, "label": label_column_name, "subject": subject_column or ""}
    with progress(f"loading data set {info.hub_id}"):
        return load_hub(info.hub_id, info, columns)


def _entry(dataset_name: str) -> DatasetInfo:
    """The registry entry of a name; an unknown Hub data set is described like class folders."""
    if "/" not in dataset_name:
        return dataset_info(dataset_name)
    # Hide the local path of a folder of Parquet files.
    name = f"./{Path(dataset_name).name}" if Path(dataset_name).is_dir() else dataset_name
    unknown = replace(DATASETS["imagefolder"], name=name, title=name, hub_id=dataset_name, licence="")
    return next((entry for entry in DATASETS.values() if entry.hub_id == dataset_name), unknown)
