"""The outside check: our releases on cells of 34 further subjects of C-NMC 2019, whose pictures trained no weights.

    python -m research.external FOLDER_OF_CNMC

predicts the cells that results/further_subjects.json names, in one view and in eight, and replaces the figures there,
of all people and by batch. The cells lie in fold 2 and in the preliminary test, which come with the whole data set
alone. Without a folder, the figures that are there are written into the releases' metrics.json, from which cards and
tables are rendered.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.images import cell_area, open_image
from leukoscope.data.layouts import ImageFolder
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation.baselines import size_only_predictions
from leukoscope.evaluation.bootstrap import point_metrics, subject_intervals
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import NUM_VIEWS, softmax, turned
from leukoscope.inference.runtime import torch_backend
from leukoscope.models.release import PREDICTIONS_FOLDER, WEIGHTS_FILE, read_metrics, write_json, write_metrics
from leukoscope.models.weights import load_release
from leukoscope.progress import track
from research.commands import make_parser, run

FILE = ROOT / "results" / "further_subjects.json"
RELEASES = ROOT / "model_card"
LABELS = ("ALL", "HEM")
STATEMENT = (
    "{subjects} further subjects: no weights were trained on them; earlier rounds looked at them, and the default "
    "network and the class frequencies were chosen with them in view."
)
KEYS = (
    *("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted"),
    *(f"recall_{label}{suffix}" for suffix in ("", "_by_subject") for label in LABELS),
)
BATCH, AREA_SIDE = 8, 224


def numbered_pictures(folder: Path) -> dict[str, str]:
    """Number of a picture of the preliminary test → the cell's name, from the tables of labels there."""
    names: dict[str, str] = {}
    for table in folder.rglob("*labels*.csv"):
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if {"Patient_ID", "new_names"} <= row.keys():
                    names[Path(row["new_names"]).stem] = Path(row["Patient_ID"]).stem
    return names


def find_cells(folder: Path, names: Sequence[str], numbered: Mapping[str, str]) -> dict[str, Path]:
    """Cell → file; `numbered_pictures` of the folder gives the names of those that are numbered.

    Raises:
        LeukoscopeError: a cell without a picture.
    """
    files: dict[str, Path] = {}
    for path in ImageFolder.read(folder).images:
        files.setdefault(numbered.get(path.stem, path.stem), path)
    missing = [name for name in names if name not in files]
    if missing:
        raise LeukoscopeError(
            f"{folder}: holds no picture of {missing[0]} ({len(missing)} of {len(names)} cells are missing); give the "
            "folder of the whole C-NMC 2019, with the preliminary test and its table of labels"
        )
    return {name: files[name] for name in names}


def subject_of(cell: str) -> str:
    """The subject in a name such as UID_H9_10_1_hem, whatever its alias."""
    return DATASETS["cnmc2019"].canonical_subject(cell.split("_")[1])


def further_cells(pictures: Sequence[Image.Image], names: Sequence[str]) -> CellPredictions:
    """The named cells with their classes, subjects and areas; their predictions are still to be made."""
    small = (picture.resize((AREA_SIDE, AREA_SIDE), Image.Resampling.NEAREST) for picture in pictures)
    return CellPredictions(
        tuple(names),
        tuple(map(subject_of, names)),
        np.array([LABELS.index(name.rsplit("_", 1)[1].upper()) for name in names]),
        np.full((len(names), len(LABELS)), 0.5),
        LABELS,
        np.array([cell_area(np.asarray(picture)) for picture in small]),
    )


def figures(predictions: CellPredictions, keys: Sequence[str] = KEYS) -> dict[str, dict[str, float]]:
    """Metric → value, low and high (95 % by subject)."""
    points = point_metrics(predictions)
    intervals = subject_intervals(predictions)
    return {key: {"value": points[key], **intervals[key]} for key in keys if key in points}


def figures_by_batch(predictions: CellPredictions, batches: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Batch → cells, subjects and `figures` of its cells; `batches` has one name a cell."""
    by_batch: dict[str, dict[str, Any]] = {}
    for batch in sorted(set(batches)):
        cells = predictions.take([row for row, name in enumerate(batches) if name == batch])
        counts = {"cells": len(cells.cell_ids), "subjects": len(set(cells.subjects))}
        by_batch[batch] = {**counts, **figures(cells)}
    return by_batch


def subjects_with_few_cells(cells: Iterable[str], most: int = 3) -> int:
    """How many subjects of these cells, given by name, have at most `most` of them."""
    counts = Counter(subject_of(cell) for cell in cells)
    return sum(count <= most for count in counts.values())


def measure_release(
    release: Path, pictures: Sequence[Image.Image], cells: CellPredictions, batches: Sequence[str]
) -> dict[str, Any]:
    """A release's figures on these cells, in one view and as the mean over eight, and by batch in one view."""
    loaded = load_release(release)
    backend = torch_backend(loaded)
    pixels = np.stack([loaded.preprocessing.frame(picture) for picture in pictures])
    order = [loaded.labels.index(label) for label in LABELS]
    by_view = []
    for view in track(range(NUM_VIEWS), f"views of {release.name}"):
        logits = [backend(turned(pixels[first : first + BATCH], view)).logits for first in range(0, len(pixels), BATCH)]
        by_view.append(softmax(np.concatenate(logits))[:, order])
    one_view = _with(cells, by_view[0])
    eight_views = _with(cells, np.mean(by_view, axis=0))
    return {
        "release": release.name,
        "sha256": sha256_of(release),
        "one_view": figures(one_view),
        "eight_views": figures(eight_views),
        "by_batch": figures_by_batch(one_view, batches),
    }


def _with(cells: CellPredictions, probabilities: np.ndarray) -> CellPredictions:
    return CellPredictions(
        cells.cell_ids, cells.subjects, cells.references, probabilities, cells.label_names, cells.areas
    )


def sha256_of(release: Path) -> str:
    """The sha256 of a release's weights."""
    return hashlib.sha256((release / WEIGHTS_FILE).read_bytes()).hexdigest()


def size_alone(train: CellPredictions, cells: CellPredictions) -> dict[str, dict[str, float]]:
    """What the areas alone say of these cells, fitted on the cells that releases were made from."""
    assert train.areas is not None and cells.areas is not None
    predicted = size_only_predictions(train.areas, train.references, cells.areas, cells)
    return figures(predicted, ("auroc_by_subject", "auroc"))


def check(folder: Path, named: Mapping[str, Any], releases: Sequence[Path]) -> dict[str, Any]:
    """Measure releases on the cells that `named`, the content of the file, names: its new content."""
    files = find_cells(folder, named["cell_names"], numbered_pictures(folder))
    batches = [named["batch_of_cell"][name] for name in files]
    pictures = [open_image(path) for path in track(files.values(), "reading cells")]
    cells = further_cells(pictures, list(files))
    train = CellPredictions.load(releases[0] / PREDICTIONS_FOLDER / "subject_cv.parquet")
    measured = {release.name: measure_release(release, pictures, cells, batches) for release in releases}
    # What was withdrawn keeps its row.
    withdrawn = [row for row in named.get("releases", ()) if row["release"] not in measured]
    return {
        **named,
        "measured": date.today().isoformat(),
        "cells": len(cells.cell_ids),
        "subjects": len(set(cells.subjects)),
        "cells_by_class": {label: int((cells.references == k).sum()) for k, label in enumerate(LABELS)},
        "size_alone": size_alone(train, cells),
        "releases": [*measured.values(), *withdrawn],
    }


def record(content: Mapping[str, Any], releases: Sequence[Path]) -> list[Path]:
    """Write each release's row into its metrics.json as `further_subjects`; the releases that have a row."""
    rows = {row["release"]: row for row in content["releases"]}
    cells_by_batch = defaultdict(list)
    for cell, batch in content["batch_of_cell"].items():
        cells_by_batch[batch].append(cell)
    few_cells = {
        batch: {"subjects_with_at_most_3_cells": subjects_with_few_cells(cells)}
        for batch, cells in cells_by_batch.items()
    }
    written = []
    for release in releases:
        if release.name not in rows:
            continue
        row = rows[release.name]
        block = {
            "data": content["data"],
            "estimates": STATEMENT.format(subjects=content["subjects"]),
            "chosen_in_view": True,
            "measured": content["measured"],
            "cells": content["cells"],
            "subjects": content["subjects"],
            "sha256": row["sha256"],
            "earlier_weights": row["sha256"] != sha256_of(release),
            "subjects_with_at_most_3_cells": subjects_with_few_cells(content["cell_names"]),
            **row["one_view"],
            "by_batch": {name: {**batch, **few_cells[name]} for name, batch in row.get("by_batch", {}).items()},
        }
        metrics = read_metrics(release)
        recorded = metrics.changed(further_subjects=block)
        if recorded.content() != metrics.content():
            write_metrics(release, recorded)
        written.append(release)
    return written


def cnmc_releases() -> list[Path]:
    """The releases in model_card/ that were made from C-NMC."""
    return sorted(path.parent for path in RELEASES.glob("*-cnmc/metrics.json"))


def parser() -> ArgumentParser:
    """The program's flags."""
    flags = make_parser("external", __doc__)
    flags.add_argument("folder", type=Path, nargs="?", help="Of the whole C-NMC 2019; without it nothing is measured.")
    flags.add_argument("--file", type=Path, default=FILE, help="The figures, and the names of the cells.")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the releases where a folder is given, and write their rows into their metrics.json."""
    arguments = parser().parse_args(argv)
    content = json.loads(arguments.file.read_text(encoding="utf-8"))
    releases = cnmc_releases()
    if arguments.folder:
        content = check(arguments.folder, content, releases)
        write_json(arguments.file, content)
    for release in record(content, releases):
        print(release.name)


if __name__ == "__main__":
    run(main)
