"""The outside check: our releases on cells of 34 further subjects of C-NMC 2019, whose pictures trained no weights.

    python -m research.external FOLDER_OF_CNMC

predicts the cells that results/further_subjects.json names, in one view and in eight, and replaces the figures there.
They lie in fold 2 and in the preliminary test, which come with the whole data set alone. Without a folder, the figures
that are there are written into the releases' metrics.json, from which cards and tables are rendered.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
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
from leukoscope.inference.prediction import VIEWS, softmax, turned
from leukoscope.inference.predictor import float32_backend
from leukoscope.models.release import PREDICTIONS, WEIGHTS, read_metrics, write_json, write_metrics
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


def find_cells(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Cell → file; the preliminary test's pictures are numbered, and a table there gives their names.

    Raises:
        LeukoscopeError: a cell without a picture.
    """
    numbered: dict[str, str] = {}
    for table in folder.rglob("*labels*.csv"):
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if {"Patient_ID", "new_names"} <= row.keys()]
        numbered |= {Path(row["new_names"]).stem: Path(row["Patient_ID"]).stem for row in rows}
    files: dict[str, Path] = {}
    for path in ImageFolder.read(folder).images:
        files.setdefault(numbered.get(path.stem, path.stem), path)
    if missing := [name for name in names if name not in files]:
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
    small = (one.resize((AREA_SIDE, AREA_SIDE), Image.Resampling.NEAREST) for one in pictures)
    return CellPredictions(
        tuple(names),
        tuple(map(subject_of, names)),
        np.array([LABELS.index(name.rsplit("_", 1)[1].upper()) for name in names]),
        np.full((len(names), len(LABELS)), 0.5),
        LABELS,
        np.array([cell_area(np.asarray(one)) for one in small]),
    )


def figures(predictions: CellPredictions, keys: Sequence[str] = KEYS) -> dict[str, dict[str, float]]:
    """Metric → value, low and high (95 % by subject)."""
    points, intervals = point_metrics(predictions), subject_intervals(predictions)
    return {key: {"value": points[key], **intervals[key]} for key in keys if key in points}


def measure_release(release: Path, pictures: Sequence[Image.Image], cells: CellPredictions) -> dict[str, Any]:
    """A release's figures on these cells, in one view and as the mean over eight."""
    loaded = load_release(release)
    backend = float32_backend(loaded, len(pictures) * VIEWS)
    pixels = np.stack([loaded.preprocessing.frame(one) for one in pictures])
    order, views = [loaded.labels.index(label) for label in LABELS], []
    for view in track(range(VIEWS), f"views of {release.name}"):
        batches = [turned(pixels[first : first + BATCH], view) for first in range(0, len(pixels), BATCH)]
        views.append(softmax(np.concatenate([backend(batch).logits for batch in batches]))[:, order])
    one, eight = (_with(cells, p) for p in (views[0], np.mean(views, axis=0)))
    return {
        "release": release.name,
        "sha256": sha256_of(release),
        "one_view": figures(one),
        "eight_views": figures(eight),
    }


def _with(cells: CellPredictions, probabilities: np.ndarray) -> CellPredictions:
    return CellPredictions(
        cells.cell_ids, cells.subjects, cells.references, probabilities, cells.label_names, cells.areas
    )


def sha256_of(release: Path) -> str:
    """The sha256 of a release's weights."""
    return hashlib.sha256((release / WEIGHTS).read_bytes()).hexdigest()


def size_alone(train: CellPredictions, cells: CellPredictions) -> dict[str, dict[str, float]]:
    """What the areas alone say of these cells, fitted on the cells that releases were made from."""
    assert train.areas is not None and cells.areas is not None
    predicted = size_only_predictions(train.areas, train.references, cells.areas, cells)
    return figures(predicted, ("auroc_by_subject", "auroc"))


def check(folder: Path, named: Mapping[str, Any], releases: Sequence[Path]) -> dict[str, Any]:
    """Measure releases on the cells that `named`, the content of the file, names: its new content."""
    files = find_cells(folder, named["cell_names"])
    pictures = [open_image(path) for path in track(files.values(), "reading cells")]
    cells = further_cells(pictures, list(files))
    train = CellPredictions.load(releases[0] / PREDICTIONS / "subject_cv.parquet")
    measured = {one.name: measure_release(one, pictures, cells) for one in releases}
    # What was withdrawn keeps its row.
    kept = [row for row in named.get("releases", ()) if row["release"] not in measured]
    return {
        **named,
        "measured": date.today().isoformat(),
        "cells": len(cells.cell_ids),
        "subjects": len(set(cells.subjects)),
        "cells_by_class": {label: int((cells.references == k).sum()) for k, label in enumerate(LABELS)},
        "size_alone": size_alone(train, cells),
        "releases": [*measured.values(), *kept],
    }


def record(content: Mapping[str, Any], releases: Sequence[Path]) -> list[Path]:
    """Write each release's row into its metrics.json as `further_subjects`; the releases that have a row."""
    rows = {row["release"]: row for row in content["releases"]}
    written = []
    for release in releases:
        if row := rows.get(release.name):
            block = {
                "data": content["data"],
                "estimates": STATEMENT.format(subjects=content["subjects"]),
                "measured": content["measured"],
                "cells": content["cells"],
                "subjects": content["subjects"],
                "sha256": row["sha256"],
                "earlier_weights": row["sha256"] != sha256_of(release),
                **row["one_view"],
            }
            metrics = read_metrics(release)
            if metrics.get("further_subjects") != block:
                write_metrics(release, {**metrics, "further_subjects": block})
            written.append(release)
    return written


def cnmc_releases() -> list[Path]:
    """The releases in model_card/ that were made from C-NMC."""
    return sorted(path.parent for path in RELEASES.glob("*-cnmc/metrics.json"))


def parser() -> ArgumentParser:
    """The program's flags."""
    made = make_parser("external", __doc__)
    made.add_argument("folder", type=Path, nargs="?", help="Of the whole C-NMC 2019; without it nothing is measured.")
    made.add_argument("--file", type=Path, default=FILE, help="The figures, and the names of the cells.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the releases where a folder is given, and write their rows into their metrics.json."""
    given = parser().parse_args(argv)
    content, releases = json.loads(given.file.read_text(encoding="utf-8")), cnmc_releases()
    if given.folder:
        content = check(given.folder, content, releases)
        write_json(given.file, content)
    for release in record(content, releases):
        print(release.name)


if __name__ == "__main__":
    run(main)
