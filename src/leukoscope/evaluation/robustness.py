"""How the answers of a network hold when the pictures change a little: the block `robustness` of metrics.json.

Networks that have not seen the cells predict them as they are and under each of `PICTURE_CHANGES`. The two outcomes are
compared. Every subject counts the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Image as ImageFeature
from datasets import concatenate_datasets
from PIL import Image

from leukoscope import DataError, LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.data.images import UnreadableImage, is_cut_out, open_encoded
from leukoscope.data.pixel_cache import FramedCells, PixelRows
from leukoscope.data.splits import Split
from leukoscope.evaluation.assess import VALIDATION_ESTIMATES, write_fit
from leukoscope.evaluation.bootstrap import (
    BOOTSTRAP_SAMPLES,
    CONFIDENCE_LEVEL,
    BootstrapSamples,
    bootstrap_metrics,
    bootstrap_subjects,
    class_of,
    point_metrics,
)
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.inference.ood import NUM_STATISTICS, OodDetector, fit_detector, picture_statistics
from leukoscope.inference.prediction import ABSTAIN, REFUSED
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import ROBUSTNESS_BLOCK, read_metrics, write_metrics
from leukoscope.progress import note, progress

ROBUSTNESS_CELLS = 300
"""Cells that are changed unless a user names another number: each is predicted once more for every change."""
DEFINITION = (
    "shares of the cells that are not refused as they are, each subject weighing the same; a cell counts once: refused "
    "where only the changed picture is out of distribution, else class_changed where its most probable class is "
    "another, else abstained where it got a class before and gets none now; changed is their sum"
)
_SHARES = ("changed", "class_changed", "refused", "abstained")


@dataclass(frozen=True)
class DecidedCells:
    """Predictions and what was decided on each: `outcomes` (N,), a class or one of `WITHOUT_CLASS`."""

    predictions: CellPredictions
    outcomes: tuple[str, ...]

    def take(self, rows: np.ndarray) -> DecidedCells:
        """Those of some rows, in the order given."""
        return DecidedCells(self.predictions.take(rows), tuple(self.outcomes[row] for row in rows))

    @property
    def refused(self) -> np.ndarray:
        """(N,) bool: out of distribution, or no cell."""
        return np.isin(np.asarray(self.outcomes), REFUSED)

    @property
    def abstained(self) -> np.ndarray:
        """(N,) bool: like the training cells, and without a class."""
        return np.asarray(self.outcomes) == ABSTAIN


def even_sample(subjects: Sequence[str], at_most: int, *, seed: int = 0) -> np.ndarray:
    """Rows of at most so many of N cells, subject by subject in turns, so that every prefix has all subjects alike."""
    subject_of = np.asarray(subjects)
    shuffled = np.random.default_rng(seed).permutation(len(subjects))
    turn = np.empty(len(subjects), dtype=int)
    for subject in np.unique(subject_of):
        rows = shuffled[subject_of[shuffled] == subject]
        turn[rows] = np.arange(len(rows))
    return shuffled[np.argsort(turn[shuffled], kind="stable")][:at_most]


def robustness_block(
    unchanged: DecidedCells, changed: Mapping[str, DecidedCells], *, estimates: str, unit: str = "subject"
) -> dict[str, Any]:
    """Compare predictions before and after each change: the block `robustness` of metrics.json.

    Args:
        unchanged: cells as they are.
        changed: name of a change (a key of `PICTURE_CHANGES`) → the same cells, in the same order, changed.
        estimates: what the metrics estimate.
        unit: what the predictions' subjects are: "subject" or "block".

    Returns:
        cells, subjects, `refused_unchanged` (cells left out), `unchanged` and for each of `changes`: family, strength,
        shows; the shares `class_changed`, `refused`, `abstained` and their sum `changed` (see `DEFINITION`);
        `directions` ({"from", "to", "share"} of the classes that changed); auroc_by_subject and recall_by_subject; and
        `intervals` of these. Where a subject is not known every cell weighs the same, and where intervals by subject
        cannot be computed there are none.

    Raises:
        LeukoscopeError: every cell is refused as it is.
    """
    rows = np.flatnonzero(~unchanged.refused)
    if not len(rows):
        raise DataError(
            f"robustness: all of the {len(unchanged.outcomes)} cells are refused as they are; give cells like those "
            "that the model was trained on"
        )
    before = unchanged.take(rows)
    try:
        boot = bootstrap_subjects(before.predictions)
    except LeukoscopeError:
        boot = None
    by_subject = before.predictions.subject_weights is not None
    return {
        "estimates": estimates,
        "definition": DEFINITION,
        "weighted_by": unit if by_subject else "cell",
        "cells": len(rows),
        "subjects": len(set(before.predictions.subjects)) if by_subject else None,
        "refused_unchanged": len(unchanged.outcomes) - len(rows),
        "intervals": {"level": CONFIDENCE_LEVEL, "draws": BOOTSTRAP_SAMPLES, "seed": 0} if boot else None,
        "unchanged": _ranking(before.predictions, boot),
        "changes": {name: _row(name, before, after.take(rows), boot) for name, after in changed.items()},
    }


def _row(name: str, before: DecidedCells, after: DecidedCells, boot: BootstrapSamples | None) -> dict[str, Any]:
    """One change's entry of the block."""
    labels = before.predictions.label_names
    then = before.predictions.predicted
    now = after.predictions.predicted
    refused = after.refused
    class_changed = ~refused & (now != then)
    abstained = ~refused & ~class_changed & after.abstained & ~before.abstained
    flags = dict(zip(_SHARES, (refused | class_changed | abstained, class_changed, refused, abstained), strict=True))
    weights = before.predictions.subject_weights
    if weights is None:
        weights = np.ones(len(then))
    directions = []
    for k, old in enumerate(labels):
        for j, new in enumerate(labels):
            turned = class_changed & (then == k) & (now == j)
            if turned.any():
                directions.append({"from": old, "to": new, "share": float(np.average(turned, weights=weights))})
    row = {key: float(np.average(flag, weights=weights)) for key, flag in flags.items()}
    ranking = _ranking(after.predictions, boot)
    if boot:
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
    keys = {f"recall_{label}{suffix}": label for label in predictions.label_names}
    points = point_metrics(predictions)
    measured: dict[str, Any] = {
        f"auroc{suffix}": points.get(f"auroc{suffix}"),
        f"recall{suffix}": {label: points[key] for key, label in keys.items() if key in points},
    }
    if boot:
        values = bootstrap_metrics(predictions, boot)
        wanted = [key for key in (f"auroc{suffix}", *keys) if key in values]
        own = {key: boot.interval(values[key], of_class=class_of(key, predictions.label_names)) for key in wanted}
        measured["intervals"] = own
    return measured


# Predicting


@dataclass(frozen=True)
class UnseenCells:
    """Cells that a predictor has not seen.

    Attributes:
        references: (N,) int, their classes in `labels`.
        labels: names of the classes.
        matched: for each of the predictor's classes, its number in `labels`.
        open_cell: opens the picture of a cell by its id.
    """

    predictor: Predictor
    cell_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    references: np.ndarray
    labels: tuple[str, ...]
    matched: tuple[int, ...]
    open_cell: Callable[[str], Image.Image]


def opener(data: LoadedCells) -> Callable[[str], Image.Image]:
    """Return what opens the picture of one of these cells by its id."""
    images = concatenate_datasets(list(data.cells.values())).select_columns(["image", "cell_id"])
    row_of = {cell: row for row, cell in enumerate(images["cell_id"][:])}
    encoded = images.cast_column("image", ImageFeature(decode=False))
    return lambda cell: open_encoded(encoded[row_of[cell]]["image"], cell)


def measure_robustness(
    parts: Sequence[UnseenCells], *, estimates: str, at_most: int = ROBUSTNESS_CELLS, unit: str = "subject"
) -> dict[str, Any]:
    """Predict a sample of cells as they are and under every change; `sample`, and the block of `robustness_block`.

    Args:
        parts: the cells of each fold with its predictor; or one part.
        at_most: so many cells of all parts together, drawn by `even_sample`.

    Raises:
        LeukoscopeError: a picture that cannot be used, or as `robustness_block`.
    """
    subjects = [subject for part in parts for subject in part.subjects]
    chosen = np.sort(even_sample(subjects, at_most))
    decided: list[list[DecidedCells]] = []
    first = 0
    with progress("predicting changed cells", len(chosen)) as advance:
        for part in parts:
            end = first + len(part.cell_ids)
            rows = chosen[(first <= chosen) & (chosen < end)] - first
            if len(rows):
                decided.append(_decide(part, rows, advance))
            first = end
    unchanged, *changed = (_together(versions) for versions in zip(*decided, strict=True))
    block = robustness_block(
        unchanged, dict(zip(PICTURE_CHANGES, changed, strict=True)), estimates=estimates, unit=unit
    )
    return {"sample": {"cells": len(chosen), "drawn_from": len(subjects), "seed": 0}, **block}


def robustness_of_release(
    directory: Path, cells: FramedCells, cell_ids: tuple[str, ...], *, estimates: str, at_most: int = ROBUSTNESS_CELLS
) -> dict[str, Any]:
    """Make the block of a release on cells that did not train it; arguments and errors as of `measure_robustness`."""
    predictor = Predictor.from_pretrained(directory)
    info = cells.data.info
    rows = cells.rows(cell_ids)
    part = UnseenCells(
        predictor,
        cell_ids,
        tuple(cells.subjects[row] for row in rows),
        cells.labels[rows],
        info.labels,
        tuple(info.labels.index(label) for label in predictor.labels),
        opener(cells.data),
    )
    return measure_robustness([part], estimates=estimates, at_most=at_most, unit=info.group)


def add_robustness(directory: Path, cells: FramedCells, split: Split, at_most: int) -> None:
    """Write the block of a single training's release, on its validation side, into its metrics.json.

    Synthetic cells have none: drawn to look alike, they say nothing about cameras.
    """
    if cells.data.info.synthetic or at_most == 0:
        return
    try:
        block = robustness_of_release(
            directory, cells, split.validation, estimates=VALIDATION_ESTIMATES, at_most=at_most
        )
    except LeukoscopeError as error:
        note(f"robustness was not measured: {error}")
        return
    write_metrics(directory, {**read_metrics(directory), ROBUSTNESS_BLOCK: block})


def robustness_of_folds(
    directory: Path, folds: Sequence[tuple[Path, CellPredictions]], cells: FramedCells, *, at_most: int
) -> dict[str, Any]:
    """Make the block of an assessed release from the networks of its folds, each on the cells that it was tested on.

    They decide with the release's temperature and threshold, and each refuses by a detector fitted on the other folds'
    cells.

    Args:
        directory: the release.
        folds: of each fold the release folder of its network, and the network's predictions for its test cells.
        cells: all cells of the data set, framed for the networks.
        at_most: so many cells over all folds.

    Raises:
        LeukoscopeError: as `measure_robustness`, or a folder that cannot be written.
    """
    metrics = read_metrics(directory)
    open_cell = opener(cells.data)
    decides: dict[str, Any] = {key: metrics[key] for key in ("calibration", "decisions") if key in metrics}
    detectors = _detectors_of_folds(cells, [fold for _, fold in folds])
    parts = []
    with TemporaryDirectory() as temporary:
        for number, (folder, fold) in enumerate(folds):
            copy = Path(temporary) / f"fold-{number}"
            shutil.copytree(folder, copy)
            write_fit(copy, read_metrics(copy), decides, detectors[number])
            predictor = Predictor.from_pretrained(copy)
            matched = tuple(fold.label_names.index(label) for label in predictor.labels)
            tested = (fold.cell_ids, fold.subjects, fold.references, fold.label_names)
            parts.append(UnseenCells(predictor, *tested, matched, open_cell))
        return measure_robustness(parts, estimates=OUT_OF_FOLD, at_most=at_most, unit=cells.data.info.group)


def _detectors_of_folds(cells: FramedCells, folds: Sequence[CellPredictions]) -> list[OodDetector | None]:
    """An OOD detector for the cells of each fold, fitted on all others; None for all where these are too few."""
    rows = cells.rows(tuple(cells.data.train["cell_id"]))
    detectors: list[OodDetector | None] = []
    subjects = np.asarray(cells.subjects)
    with progress("fitting the OOD detectors of the folds"):
        statistics = np.zeros((len(cells.pixels), NUM_STATISTICS), np.float32)
        statistics[rows] = [picture_statistics(cell) for cell in PixelRows(cells.pixels, rows)]
        try:
            for fold in folds:
                others = np.setdiff1d(rows, cells.rows(fold.cell_ids))
                detector, _ = fit_detector(statistics[others], subjects[others].tolist())
                detectors.append(detector)
        except LeukoscopeError as error:
            note(f"robustness: no OOD detector for the folds, so no changed picture is refused: {error}")
            return [None] * len(folds)
    return detectors


def _decide(part: UnseenCells, rows: np.ndarray, advance: Callable[[int], None]) -> list[DecidedCells]:
    """The cells of some rows as they are, then under each change: a list of 1 + changes."""
    versions = 1 + len(PICTURE_CHANGES)
    our_name = {name: part.labels[k] for name, k in zip(part.predictor.labels, part.matched, strict=True)}
    to_ours = np.eye(len(part.labels))[list(part.matched)]
    probabilities = np.empty((versions, len(rows), len(part.labels)))
    outcomes = np.empty((versions, len(rows)), dtype=object)
    cells = (part.open_cell(part.cell_ids[row]) for row in rows)
    for number, prediction in enumerate(part.predictor.iter_predictions(_each_version(cells))):
        cell, version = divmod(number, versions)
        if isinstance(prediction, UnreadableImage):
            raise DataError(f"cell {part.cell_ids[rows[cell]]}: {prediction}")
        probabilities[version, cell] = np.array(list(prediction.probabilities.values())) @ to_ours
        outcomes[version, cell] = our_name.get(prediction.outcome, prediction.outcome)
        if version == versions - 1:
            advance(1)
    ids = tuple(part.cell_ids[row] for row in rows)
    subjects = tuple(part.subjects[row] for row in rows)
    return [
        DecidedCells(CellPredictions(ids, subjects, part.references[rows], shares, part.labels), tuple(outcome))
        for shares, outcome in zip(probabilities, outcomes, strict=True)
    ]


def _each_version(pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """Each picture as it is, then under every change; made one by one, so that few are in memory."""
    for picture in pictures:
        black = is_cut_out(picture)
        yield picture
        for change in PICTURE_CHANGES.values():
            yield change(picture, black=black)


def _together(parts: Sequence[DecidedCells]) -> DecidedCells:
    """The cells of all parts, in their order."""
    outcomes = tuple(outcome for part in parts for outcome in part.outcomes)
    return DecidedCells(pooled([part.predictions for part in parts]), outcomes)
