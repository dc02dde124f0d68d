"""What a classifier could know without looking at the cell: baselines on trivial features alone.

Where a few numbers such as the colour of the background already tell the classes, a network's score says little about
cells. Every baseline is logistic regression, fitted and tested on the very sides that a network gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.cells.images import BACKGROUND_LEVEL, cell_areas
from leukoscope.cells.loading import LoadedCells
from leukoscope.cells.splits import Split, groups_of, make_split
from leukoscope.evaluation.heat import SCALE_BAR_SIDE
from leukoscope.evaluation.metrics import CellPredictions, headline, measure, pooled

NUM_FOLDS = 5
ALL_TOGETHER = "all together"
# What each feature is, for who reads a report.
FEATURES = {
    "size": "area of the box around the cell, its logarithm",
    "mean colour": "mean red, green and blue of the cell (of the whole picture where the cell is not cut out)",
    "background": "mean and spread of red, green and blue over the brightest quarter of the picture",
    "corner": "contrast in the lower right corner, where a scale bar lies: spread, darkest, brightest, edges",
    "picture size": "width and height of the file's picture, their logarithms",
    ALL_TOGETHER: "all of these at once",
}
_MIN_AREA = 1e-4


def trivial_features(cells: Iterable[np.ndarray], background: Literal["black", "smear"]) -> dict[str, np.ndarray]:
    """The features that have nothing to do with what a cell looks like.

    Cells cut out on black have no background and no scale bar of their own, so these are left out for them; the size
    of a cell in a smear cannot be measured without segmenting it, so that is left out there.

    Args:
        cells: N pictures, (S, S, 3) uint8 each; read one at a time.

    Returns:
        feature (a key of `FEATURES`) → (N, D) float.
    """
    of = _on_black if background == "black" else _on_smear
    rows = [of(cell) for cell in cells]
    return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _on_black(cell: np.ndarray) -> dict[str, np.ndarray]:
    inside = cell[cell.max(axis=2) > BACKGROUND_LEVEL]
    colour = inside.mean(axis=0) if len(inside) else np.zeros(3)
    return {"size": log_areas(cell_areas([cell])), "mean colour": colour}


def log_areas(areas: np.ndarray) -> np.ndarray:
    """(N,) logarithms of areas, as the feature "size" holds them; of an empty picture that of a very small cell."""
    return np.log(np.maximum(areas, _MIN_AREA))


def _on_smear(cell: np.ndarray) -> dict[str, np.ndarray]:
    pixels = cell.reshape(-1, 3).astype(np.float32)
    brightness = pixels.mean(axis=1)
    bright = pixels[brightness >= np.quantile(brightness, 0.75)]
    background = np.concatenate([bright.mean(axis=0), bright.std(axis=0)])
    return {"mean colour": pixels.mean(axis=0), "background": background, "corner": _corner(cell)}


def _corner(cell: np.ndarray) -> np.ndarray:
    """(4,) contrasts, none of which changes with the colour of the background."""
    side = round(len(cell) * SCALE_BAR_SIDE)
    grey = cell[-side:, -side:].astype(np.float32).mean(axis=2)
    darkest, middle, brightest = np.quantile(grey, (0.02, 0.5, 0.98))
    return np.asarray([grey.std(), middle - darkest, brightest - middle, np.abs(np.diff(grey, axis=1)).mean()])


def shortcut_answers(
    features: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], truth: CellPredictions
) -> CellPredictions:
    """What logistic regression on some features answers for the cells of each fold's test side.

    Args:
        features: (N, D) float.
        folds: (training rows, test rows) each; no row is tested twice.
        truth: ids, subjects and classes of the N cells; its probabilities are not read.

    Returns:
        the answers of all folds, pooled.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = []
    for train, test in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(features[train], truth.references[train])
        probabilities = np.zeros((len(test), len(truth.label_names)))
        # A class that is missing from the training side keeps a probability of 0.
        probabilities[:, model.classes_] = model.predict_proba(features[test])
        parts.append(replace(truth.take(test), probabilities=probabilities))
    return pooled(parts)


def shortcut_figures(
    features: Mapping[str, np.ndarray], folds: Sequence[tuple[np.ndarray, np.ndarray]], truth: CellPredictions
) -> dict[str, dict[str, Any]]:
    """Each feature alone, then all together: the `headline` figures of what they answer.

    Args:
        features: name → (N, D) float, as from `trivial_features`.
        folds, truth: see `shortcut_answers`.
    """
    tried = dict(features)
    if len(features) > 1:
        tried[ALL_TOGETHER] = np.concatenate(list(features.values()), axis=1)
    return {name: headline(measure(shortcut_answers(values, folds, truth))) for name, values in tried.items()}


def split_unit(data: LoadedCells) -> Literal["subject", "block", "cell"]:
    """What an honest split of a data set keeps on one side; "cell" where nothing larger is known."""
    if any(data.train["subject"][:]):
        return "subject"
    return "block" if data.info.group == "block" else "cell"


def cross_validation(data: LoadedCells) -> list[Split]:
    """The very folds that a network is cross-validated on, without a validation side.

    Up to five, fewer where a class has fewer units; one random split by image where only images are known.

    Raises:
        LeukoscopeError: a class has fewer than two units.
    """
    unit = split_unit(data)
    if unit == "cell":
        return [make_split(data, "random")]
    unit_of = groups_of(data, unit)
    units_of: defaultdict[int, set[str]] = defaultdict(set)
    for cell, label in zip(data.train["cell_id"][:], data.train["label"][:], strict=True):
        units_of[label].add(unit_of[cell])
    counts = [len(units_of[label]) for label in range(len(data.info.labels))]
    if min(counts) < 2:
        scarce = data.info.labels[counts.index(min(counts))]
        raise LeukoscopeError(f"class {scarce} has {min(counts)} {unit}(s); two or more are needed to test on others")
    num_folds = min(NUM_FOLDS, *counts)
    return [make_split(data, f"{unit}-cv", fold=k, num_folds=num_folds, validation=False) for k in range(num_folds)]
