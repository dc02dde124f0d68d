"""Shortcut baselines: logistic regression on trivial features such as cell size or background colour.

Where such features already separate the classes, a network's score tells little about cells. Every baseline is trained
and tested on the same sides of the split as a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from skimage.measure import perimeter, regionprops
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leukoscope.data.images import cell_area, foreground
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled

ALL_TOGETHER = "all together"
# Description of each feature, for readers of a report.
TRIVIAL_FEATURES = {
    "size": "area of the box around the cell, its logarithm",
    "outline": "roundness of the cell, 4πA/P² of its area and perimeter",
    "mean colour": "mean red, green and blue of the cell (of the whole picture where the cell is not cut out)",
    "background": "mean and spread of red, green and blue over the brightest quarter of the picture",
    "corner": "contrast in the lower right corner, where a scale bar lies: spread, darkest, brightest, edges",
    "picture size": "width and height of the file's picture, their logarithms",
    ALL_TOGETHER: "all of these at once",
}
# ball4 has scale bars of two sizes, 27 × 11 and 31 × 28 pixels of 224, in all pictures of all classes; a square of this
# share of the side in the lower right corner covers both.
SCALE_BAR_SIDE = 1 / 7
_MIN_AREA = 1e-4
LEAST_SOLIDITY = 0.85
"""The area of a cell over that of its convex hull; 97 of 100 official cells of C-NMC exceed it."""


def trivial_features(cell: np.ndarray, background: Literal["black", "smear"]) -> dict[str, np.ndarray]:
    """Compute features that do not depend on the appearance of a cell: key of `TRIVIAL_FEATURES` → (D,) float.

    The cell is (S, S, 3) uint8. Cells cut out on black have no background and no scale bar; the size of a cell in a
    smear needs a segmentation. These features are left out there.
    """
    if background == "black":
        return _black_features(cell)
    return _smear_features(cell)


def log_areas(areas: np.ndarray) -> np.ndarray:
    """Return the (N,) logarithms of areas, as in the feature "size"; an empty image counts as a very small cell."""
    return np.log(np.maximum(areas, _MIN_AREA))


def _black_features(cell: np.ndarray) -> dict[str, np.ndarray]:
    mask = foreground(cell)
    inside = cell[mask]
    colour = inside.mean(axis=0) if len(inside) else np.zeros(3)
    roundness = 4 * np.pi * len(inside) / max(1, perimeter(mask)) ** 2
    size = log_areas(np.asarray([cell_area(cell)]))
    return {"size": size, "outline": np.asarray([roundness]), "mean colour": colour}


def is_torn(cell: np.ndarray) -> bool:
    """Whether (S, S, 3) uint8 shows on black a part of a cell, several pieces or two in one, by its solidity."""
    regions = regionprops(foreground(cell).astype(np.uint8))
    return bool(regions and regions[0].solidity < LEAST_SOLIDITY)


def _smear_features(cell: np.ndarray) -> dict[str, np.ndarray]:
    pixels = cell.reshape(-1, 3).astype(np.float32)
    brightness = pixels.mean(axis=1)
    bright = pixels[brightness >= np.quantile(brightness, 0.75)]
    background = np.concatenate([bright.mean(axis=0), bright.std(axis=0)])
    # Contrasts of the scale-bar corner; none of them changes with the colour of the background.
    side = round(len(cell) * SCALE_BAR_SIDE)
    grey = cell[-side:, -side:].astype(np.float32).mean(axis=2)
    darkest, middle, brightest = np.quantile(grey, (0.02, 0.5, 0.98))
    edges = np.abs(np.diff(grey, axis=1)).mean()
    corner = np.asarray([grey.std(), middle - darkest, brightest - middle, edges])
    return {"mean colour": pixels.mean(axis=0), "background": background, "corner": corner}


def _logistic_regression(
    train: np.ndarray, references: np.ndarray, test: np.ndarray, like: CellPredictions
) -> CellPredictions:
    """Fitted on (M, D) features and (M,) classes, the predictions for the (N, D) features of the cells in `like`."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, references)
    # A class that is missing from the training side keeps a probability of 0.
    probabilities = np.zeros((len(test), len(like.label_names)))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return replace(like, probabilities=probabilities)


def size_only_predictions(
    train_areas: np.ndarray, train_references: np.ndarray, test_areas: np.ndarray, like: CellPredictions
) -> CellPredictions:
    """Predict the (N,) cells in `like` from their areas alone, fitted on (M,) areas and classes of training cells.

    It is the baseline that every network must beat. Of `like`, the probabilities are replaced.
    """
    train, test = (log_areas(areas).reshape(-1, 1) for areas in (train_areas, test_areas))
    return _logistic_regression(train, train_references, test, like)


def size_only_out_of_fold(
    predictions: CellPredictions, frequencies: np.ndarray | None = None
) -> CellPredictions | None:
    """Predict the cells of each fold from their areas alone, fitted on the other folds; None without areas or folds.

    Probabilities assume the class frequencies of those folds, or the (K,) `frequencies` (Saerens et al. 2002,
    doi:10.1162/089976602753284446).
    """
    if predictions.areas is None or predictions.folds is None:
        return None
    of_fold = [predictions.folds == fold for fold in np.unique(predictions.folds)]
    folds = [(np.flatnonzero(~tested), np.flatnonzero(tested)) for tested in of_fold]
    alone = shortcut_predictions(log_areas(predictions.areas)[:, None], folds, predictions)
    if frequencies is None:
        return alone
    trained = np.stack([np.bincount(predictions.references[train], minlength=len(frequencies)) for train, _ in folds])
    shifted = alone.probabilities * frequencies / trained[alone.folds]
    return replace(alone, probabilities=shifted / shifted.sum(axis=1, keepdims=True))


def shortcut_predictions(
    features: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], truth: CellPredictions
) -> CellPredictions:
    """Predict the test cells of each fold by logistic regression on (N, D) features, and pool them.

    `folds` holds (training rows, test rows) of each, no row tested twice; of `truth` the probabilities are not read.
    """
    fits = ((features[train], truth.references[train], features[test], truth.take(test)) for train, test in folds)
    return pooled([_logistic_regression(*fit) for fit in fits])


def shortcut_metrics(
    features: Mapping[str, np.ndarray], folds: Sequence[tuple[np.ndarray, np.ndarray]], truth: CellPredictions
) -> dict[str, dict[str, Any]]:
    """Compute the `headline` metrics of each feature alone, then of all together; see `shortcut_predictions`."""
    tried = dict(features)
    if len(features) > 1:
        tried[ALL_TOGETHER] = np.concatenate(list(features.values()), axis=1)
    return {name: headline(measure(shortcut_predictions(values, folds, truth))) for name, values in tried.items()}
