"""How the answers of a network hold when the pictures change a little: the block `robustness` of metrics.json.

Networks that have not seen the cells predict them as they are and under each of `PICTURE_CHANGES`. The two outcomes are
compared. Every subject counts the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope import DataError, LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import PICTURE_CHANGES, Change
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split, groups_of
from leukoscope.evaluation.assess import VALIDATION_ESTIMATES, fit_detector_on
from leukoscope.evaluation.bootstrap import (
    BOOTSTRAP_SAMPLES,
    CONFIDENCE_LEVEL,
    BootstrapSamples,
    bootstrap_subjects,
    intervals_of,
    point_metrics,
)
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.predict import predict_cells
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.inference.ood import OodDetector
from leukoscope.inference.prediction import ABSTAIN, REFUSED
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import TORCH, Runtime
from leukoscope.models.metrics import Robustness
from leukoscope.models.release import read_metrics, write_metrics
from leukoscope.models.weights import load_release, rescale_classifier
from leukoscope.progress import note, track

ROBUSTNESS_CELLS = 300
"""Cells that are changed unless a user names another number: each is predicted once more for every change."""
DEFINITION = (
    "shares of the cells that are not refused as they are, each subject weighing the same; a cell counts once: refused "
    "where only the changed picture is out of distribution, else class_changed where its most probable class is "
    "another, else abstained where it got a class before and gets none now; changed is their sum"
)


def even_sample(subjects: Sequence[str], at_most: int, *, seed: int = 0) -> np.ndarray:
    """Rows of at most so many of N cells, subject by subject in turns, so that every prefix has all subjects alike."""
    shuffled = np.random.default_rng(seed).permutation(len(subjects))
    subject_of = pd.Series(subjects, dtype=str).iloc[shuffled]
    turns = subject_of.groupby(subject_of).cumcount()
    return shuffled[np.argsort(turns.to_numpy(), kind="stable")][:at_most]


def robustness_block(
    unchanged: CellPredictions, changed: Mapping[str, CellPredictions], *, estimates: str, unit: str = "subject"
) -> Robustness:
    """Compare predictions before and after each change: the block `robustness` of metrics.json.

    Args:
        unchanged: cells as they are.
        changed: name of a change (a key of `PICTURE_CHANGES`) → the same cells, in the same order, changed.
        estimates: what the metrics estimate.
        unit: what the predictions' subjects are: "subject" or "block".

    Returns:
        the block; shares as of `DEFINITION`. `refused_unchanged` cells are left out. Where a subject is not known every
        cell weighs the same, and where intervals by subject cannot be computed there are none.

    Raises:
        LeukoscopeError: every cell is refused as it is.
    """
    rows = np.flatnonzero(~_is_refused(unchanged))
    if not len(rows):
        raise DataError(
            f"robustness: all of the {len(unchanged.cell_ids)} cells are refused as they are; give cells like those "
            "that the model was trained on"
        )
    before = unchanged.take(rows)
    try:
        boot = bootstrap_subjects(before)
    except LeukoscopeError:
        boot = None
    by_subject = before.subject_weights is not None
    block = {
        "estimates": estimates,
        "definition": DEFINITION,
        "weighted_by": unit if by_subject else "cell",
        "cells": len(rows),
        "subjects": len(set(before.subjects)) if by_subject else None,
        "refused_unchanged": len(unchanged.cell_ids) - len(rows),
        "intervals": {"level": CONFIDENCE_LEVEL, "draws": BOOTSTRAP_SAMPLES, "seed": 0} if boot else None,
        "unchanged": _ranking(before, boot),
        "changes": {name: _row(name, before, after.take(rows), boot) for name, after in changed.items()},
    }
    return Robustness.model_validate(block)


def _is_refused(predictions: CellPredictions) -> np.ndarray:
    """(N,) bool: out of distribution, or no cell."""
    return np.isin(np.asarray(predictions.outcomes), REFUSED)


def _row(name: str, before: CellPredictions, after: CellPredictions, boot: BootstrapSamples | None) -> dict[str, Any]:
    """One change's entry of the block."""
    labels = before.label_names
    then = before.predicted
    now = after.predicted
    refused = _is_refused(after)
    class_changed = ~refused & (now != then)
    abstains = (np.asarray(after.outcomes) == ABSTAIN) & (np.asarray(before.outcomes) != ABSTAIN)
    abstained = ~refused & ~class_changed & abstains
    flags = {
        "changed": refused | class_changed | abstained,
        "class_changed": class_changed,
        "refused": refused,
        "abstained": abstained,
    }
    weights = before.subject_weights

    def share(flag: np.ndarray) -> float:
        return float(np.average(flag, weights=weights))

    turns = sorted(set(zip(then[class_changed].tolist(), now[class_changed].tolist(), strict=True)))
    directions = [
        {"from": labels[old], "to": labels[new], "share": share(class_changed & (then == old) & (now == new))}
        for old, new in turns
    ]
    row = {key: share(flag) for key, flag in flags.items()}
    ranking = _ranking(after, boot)
    if boot and weights is not None:
        own = {key: boot.mean_interval(flag.astype(float), weights) for key, flag in flags.items()}
        ranking["intervals"] = own | ranking["intervals"]
    change = PICTURE_CHANGES[name]
    description = {"family": change.family, "strength": change.strength, "shows": change.shows}
    return {**description, **row, "directions": directions, **ranking}


def _ranking(predictions: CellPredictions, boot: BootstrapSamples | None) -> dict[str, Any]:
    """AUROC and recall of each class, by subject where subjects are known, with intervals."""
    # Without areas, no metric at equal size is computed for thousands of samples.
    predictions = replace(predictions, areas=None, folds=None)
    suffix = "" if predictions.subject_weights is None else "_by_subject"
    points = point_metrics(predictions)
    recalls = [(label, f"recall_{label}{suffix}") for label in predictions.label_names]
    measured: dict[str, Any] = {
        f"auroc{suffix}": points.get(f"auroc{suffix}"),
        f"recall{suffix}": {label: points[key] for label, key in recalls if key in points},
    }
    if boot:
        wanted = {f"auroc{suffix}", *(key for _, key in recalls)}
        measured["intervals"] = {key: of for key, of in intervals_of(predictions, boot).items() if key in wanted}
    return measured


# Predicting


def measure_robustness(
    parts: Sequence[tuple[Predictor, Sequence[str]]],
    data: LoadedCells,
    *,
    estimates: str,
    label_map: Mapping[str, str] | None = None,
    at_most: int = ROBUSTNESS_CELLS,
) -> Robustness:
    """Predict a sample of cells as they are and under every change; `sample`, and the block of `robustness_block`.

    Args:
        parts: predictors, and the ids of the cells that each has not seen.
        label_map: a predictor's name of a class → the data set's.
        at_most: so many cells of all parts together, drawn by `even_sample`.

    Raises:
        LeukoscopeError: a picture that cannot be used, or as `robustness_block`.
    """
    unit_of = groups_of(data, data.info.group)
    ids = [cell for _, cells in parts for cell in cells]
    units = [unit_of[cell] for cell in ids]
    chosen = {ids[row] for row in even_sample(units, at_most)}
    samples = [(predictor, chosen.intersection(cells)) for predictor, cells in parts]

    def predicted(change: Change | None) -> CellPredictions:
        cells = pooled(
            [predict_cells(predictor, data, some, label_map=label_map, change=change) for predictor, some in samples]
        )
        if cells.left_out:
            raise DataError(cells.left_out[0])
        return cells

    unchanged = predicted(None)
    changed = {
        change.name: predicted(change) for change in track(PICTURE_CHANGES.values(), "small changes", unit="changes")
    }
    block = robustness_block(unchanged, changed, estimates=estimates, unit=data.info.group)
    return block.model_copy(update={"sample": {"cells": len(chosen), "drawn_from": len(ids), "seed": 0}})


def add_robustness(directory: Path, cells: FramedCells, split: Split, at_most: int) -> None:
    """Write the block of a single training's release, on its validation side, into its metrics.json.

    Synthetic cells have none: drawn to look alike, they say nothing about cameras.
    """
    if cells.data.info.synthetic or at_most == 0:
        return
    parts = [(Predictor.from_pretrained(directory), split.validation)]
    try:
        block = measure_robustness(parts, cells.data, estimates=VALIDATION_ESTIMATES, at_most=at_most)
    except LeukoscopeError as error:
        note(f"robustness was not measured: {error}")
        return
    block.cells_of = "validation"
    write_metrics(directory, read_metrics(directory).changed(robustness=block))


def robustness_of_folds(
    directory: Path, folds: Sequence[tuple[Path, CellPredictions]], cells: FramedCells, *, at_most: int
) -> Robustness:
    """Make the block of an assessed release from the networks of its folds, each on the cells that it was tested on.

    They decide with the release's temperature and threshold, and each refuses by a detector fitted on the other folds'
    cells.

    Args:
        directory: the release.
        folds: of each fold the release folder of its network, and the network's predictions for its test cells.
        cells: all cells of the data set, framed for the networks.
        at_most: so many cells over all folds.

    Raises:
        LeukoscopeError: as `measure_robustness`, or a folder that cannot be read.
    """
    metrics = read_metrics(directory)
    parts = []
    for folder, fold in folds:
        release = load_release(folder)
        rescale_classifier(release.network, metrics.temperature / release.metrics.temperature)
        decides = release.metrics.changed(decisions=metrics.decisions)
        # By torch: the graph of the folder is without the temperature.
        predictor = Predictor(replace(release, metrics=decides), Runtime(TORCH))
        predictor.ood = _detector_of_others(cells, fold)
        parts.append((predictor, fold.cell_ids))
    return measure_robustness(parts, cells.data, estimates=OUT_OF_FOLD, at_most=at_most)


def _detector_of_others(cells: FramedCells, fold: CellPredictions) -> OodDetector | None:
    """An OOD detector for the cells of a fold, fitted on all others; None where these are too few."""
    tested = set(fold.cell_ids)
    others = tuple(cell for cell in cells.data.train["cell_id"][:] if cell not in tested)
    try:
        detector, _ = fit_detector_on(cells, others)
    except LeukoscopeError as error:
        note(f"robustness: no changed picture of a fold is refused, because it has no OOD detector: {error}")
        return None
    return detector
