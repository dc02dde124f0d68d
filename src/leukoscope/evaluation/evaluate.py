"""Predictions to be measured, from a release run on labelled cells.

They come with what a reader must know: which model made them, what they estimate, and whether the tested subjects may
have trained it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.images import BLACK_RGB, RgbColour, UnreadableImage, cell_area, open_encoded, pixel_hash
from leukoscope.data.pixel_cache import without_damaged
from leukoscope.data.splits import Split, groups_of, load_split, make_split
from leukoscope.evaluation import bootstrap
from leukoscope.evaluation.metrics import measure, versions
from leukoscope.evaluation.overlap import KnownCells, Overlap, seen_in_training
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.robustness import ROBUSTNESS_CELLS, UnseenCells, measure_robustness, opener
from leukoscope.evaluation.subjects import measure_subject_rule
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import Runtime
from leukoscope.models.hub_download import KNOWN_CELLS, find_release
from leukoscope.models.release import ReleaseInfo, folder_name, read_release
from leukoscope.progress import progress

TEST_FOLD = "fold_1"
"""The published fold of C-NMC that the split `official` tests."""
_AREA_SIDE = 224
EVALUATION_SCHEMA_VERSION = 3


@dataclass(frozen=True)
class SelectedCells:
    """The cells to predict: the test side of `split`; `whole` is the split before a smaller sample was taken."""

    data: LoadedCells
    split: Split
    whole: Split

    def about(self) -> dict[str, Any]:
        """Return the blocks `data` and `split` of evaluation.json."""
        counts = {"cells": len(self.split.test), "drawn_from": len(self.whole.test)}
        fingerprints = {key: getattr(self.whole, key) for key in ("fingerprint", "test_fingerprint")}
        return {
            "data": {**self.data.info.about(), "fingerprint": self.data.fingerprint},
            "split": {**self.split.about(), **fingerprints, **counts},
        }


@dataclass(frozen=True)
class ModelPredictions:
    """Predictions of a release.

    Attributes:
        outcomes: of `leukoscope predict` for each cell of the predictions.
        left_out: one line per cell that could not be predicted.
        our_name: the release's name of a class → the data set's.
    """

    predictions: CellPredictions
    release: ReleaseInfo
    outcomes: tuple[str, ...]
    left_out: tuple[str, ...]
    our_name: Mapping[str, str]

    @property
    def name(self) -> str:
        """The release's name; for a folder only its last part, because the rest of the path is private."""
        local = Path(self.release.name)
        if local.exists():
            return folder_name(local)
        return self.release.name

    def decisions(self) -> dict[str, Any]:
        """What `leukoscope predict` decides on these cells.

        `outcomes` counts the cells of each, `given` those that get a class, `right` the right ones of these.
        """
        labels = self.predictions.label_names
        true_classes = [labels[k] for k in self.predictions.references]
        pairs = zip(true_classes, self.outcomes, strict=True)
        is_right = [true == outcome for true, outcome in pairs if outcome in labels]
        counts = dict(sorted(Counter(self.outcomes).items()))
        return {"outcomes": counts, "given": len(is_right), "right": sum(is_right)}

    def subject_rule(self) -> dict[str, Any] | None:
        """Measure the release's rule for subjects, with the class names of these predictions."""
        metrics = dict(self.release.metrics)
        rule = metrics.get("subject_rule")
        if rule:
            positive = rule["positive_label"]
            metrics["subject_rule"] = {**rule, "positive_label": self.our_name.get(positive, positive)}
        return measure_subject_rule(self.predictions, metrics)


def select_cells(
    data: LoadedCells,
    split: str | None = None,
    split_file: str | Path | None = None,
    *,
    seed: int = 0,
    at_most: int | None = None,
) -> SelectedCells:
    """Select the cells to predict: the test side of a split (of several folds, the first), or without one every cell.

    Raises:
        LeukoscopeError: both a split and a file, or a split without a test side.
    """
    if split and split_file:
        raise ConfigError(f"--split {split} --split_file {split_file}: both say which cells are tested; give one")
    if split_file:
        whole = load_split(split_file, data)
    elif split:
        data = without_damaged(data)
        # Only the test side matters: which cells and folds trained the model is not known here.
        whole = make_split(data, split, seed=seed, validation=False, train_folds=(), test_folds=(TEST_FOLD,))
        if split == "official":
            whole = replace(whole, detail=TEST_FOLD)
    else:
        every = tuple(cell for rows in data.cells.values() for cell in rows["cell_id"][:])
        whole = Split("none", data.info.group, seed, data.fingerprint, (), (), every, detail="every cell")
    if not whole.test:
        raise ConfigError(f"--split {whole.strategy}: tests no cell; leave it out to predict every cell")
    return SelectedCells(data, whole.at_most(None, at_most), whole)


def open_model(model: str | Path, device: str = "auto") -> Predictor:
    """Open a release with the list of the cells that it knows; names and errors as of `Predictor.from_pretrained`."""
    folder, name, revision = find_release(str(model), KNOWN_CELLS)
    return Predictor(read_release(folder, name=name, revision=revision), Runtime(device=device))


def match_labels(
    name: str, theirs: Sequence[str], ours: Sequence[str], label_map: Mapping[str, str]
) -> tuple[int, ...]:
    """Match a model's T classes to those of a data set: T indices into `ours`; several may be one of ours.

    `label_map` is theirs → ours, for those whose names differ in more than case.

    Raises:
        LeukoscopeError: a class without a counterpart, or a renamed one that the model does not have.
    """
    for their in label_map:
        if their.casefold() not in {label.casefold() for label in theirs}:
            raise ConfigError(
                f"--label_map {their}={label_map[their]}: {their!r} is not a class of the model, which has "
                f"{', '.join(theirs)}; correct or leave it out"
            )
    index = {label.casefold(): k for k, label in enumerate(ours)}
    renamed = {their.casefold(): our.casefold() for their, our in label_map.items()}
    indices = [index.get(renamed.get(label.casefold(), label.casefold())) for label in theirs]
    matched = tuple(k for k in indices if k is not None)
    if len(matched) < len(theirs) or len(set(matched)) < len(ours):
        if len(theirs) < len(ours):
            how = "leave out the cells of the classes that it lacks, or give another model"
        else:
            how = "name the class of the data set for each class of the model: --label_map THEIRS=OURS, once per class"
        of_data = ", ".join(ours)
        raise DataError(f"{name}: its classes are {', '.join(theirs)}, but the data set has {of_data}; {how}")
    return matched


def predictions_of_model(
    predictor: Predictor, cells: SelectedCells, *, label_map: Mapping[str, str] | None = None, batch_size: int = 16
) -> ModelPredictions:
    """Predict the selected cells with a release; `label_map` gives the data set's class for the model's.

    Raises:
        LeukoscopeError: no batch size, or before any cell is opened what `match_labels` raises.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch_size {batch_size}: give 1 or more")
    labels = cells.data.info.labels
    wanted = set(cells.split.test)
    release = predictor.release
    matched = match_labels(release.name, predictor.labels, labels, label_map or {})
    to_ours = np.eye(len(labels))[list(matched)]
    our_name = {their: labels[our] for their, our in zip(predictor.labels, matched, strict=True)}
    rows = concatenate_datasets(list(cells.data.cells.values()))
    rows = rows.select([i for i, cell in enumerate(rows["cell_id"][:]) if cell in wanted])
    readable = list[int]()
    damaged = list[str]()
    outcomes = list[str]()
    hashes = list[str]()
    probabilities = [np.zeros((0, len(labels)))]
    areas = list[float]()
    for opened, pictures in opened_batches(rows, batch_size, damaged, ground=release.blank_rgb):
        readable += opened
        predicted = predictor(pictures, batch_size=len(pictures))
        probabilities.append(np.array([list(prediction.probabilities.values()) for prediction in predicted]) @ to_ours)
        outcomes += [our_name.get(prediction.outcome, prediction.outcome) for prediction in predicted]
        hashes += map(pixel_hash, pictures)
        # The cell's share of its picture needs no fine detail.
        small = (picture.resize((_AREA_SIDE, _AREA_SIDE), Image.Resampling.NEAREST) for picture in pictures)
        areas += (cell_area(np.asarray(picture)) for picture in small)
    rows = rows.select(readable)
    units = groups_of(cells.data, cells.data.info.group)
    predictions = CellPredictions(
        tuple(rows["cell_id"][:]),
        tuple(units[cell] for cell in rows["cell_id"][:]),
        np.asarray(rows["label"][:], dtype=int),
        np.concatenate(probabilities),
        labels,
        np.asarray(areas) if cells.data.info.background == "black" else None,
        tuple(hashes),
    )
    return ModelPredictions(predictions, release, tuple(outcomes), tuple(damaged), our_name)


def opened_batches(
    rows: Dataset, batch_size: int, left_out: list[str], *, ground: RgbColour = BLACK_RGB
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Open the pictures of cells batch by batch, with progress: numbers of the rows, and their pictures.

    Why a picture cannot be used is added to `left_out`. A batch without a usable picture is skipped.
    """
    encoded = rows.select_columns(["image", "cell_id"]).cast_column("image", ImageFeature(decode=False))
    with progress("predicting cells", len(rows)) as advance:
        for first in range(0, len(rows), batch_size):
            batch = encoded[first : first + batch_size]
            opened = []
            pictures = []
            for row, (image, cell) in enumerate(zip(batch["image"], batch["cell_id"], strict=True), first):
                try:
                    pictures.append(open_encoded(image, cell, ground=ground))
                    opened.append(row)
                except UnreadableImage as error:
                    left_out.append(str(error))
            if pictures:
                yield opened, pictures
            advance(len(batch["cell_id"]))


def build_evaluation(predicted: ModelPredictions, cells: SelectedCells, *, seed: int = 0) -> dict[str, Any]:
    """Compute the content of evaluation.json from the predictions of these cells.

    Raises:
        LeukoscopeError: no cell was predicted.
    """
    predictions = predicted.predictions
    unreadable = cells.data.unreadable
    release = predicted.release
    if not predictions.cell_ids:
        reason = next(iter((*predicted.left_out, *unreadable)), "no cell was given")
        raise DataError(f"{predicted.name}: no cell was predicted ({reason}); check the cells and --split")
    try:
        by_subject = bootstrap.subject_intervals(predictions, seed=seed)
        missing = ""
    except LeukoscopeError as error:
        by_subject = None
        missing = str(error)
    subjects = np.asarray(predictions.subjects)
    of_class = {label: subjects[predictions.references == k] for k, label in enumerate(predictions.label_names)}
    return {
        "schema_version": EVALUATION_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "model": {"name": predicted.name, "revision": release.revision},
        "estimates": "these weights",
        "training_overlap": training_overlap(
            release.metrics, predictions, cells, KnownCells.of_release(release.folder)
        ),
        "unit": cells.data.info.group,
        **cells.about(),
        "left_out": [*unreadable, *predicted.left_out],
        "figures": bootstrap.point_metrics(predictions),
        "intervals": {
            "level": bootstrap.CONFIDENCE_LEVEL,
            "draws": bootstrap.BOOTSTRAP_SAMPLES,
            "seed": seed,
            "method": "bootstrap within class, expanded percentile (Hesterberg 2015, "
            "doi:10.1080/00031305.2015.1089789)",
            "subjects": {label: len(set(names.tolist()) - {""}) for label, names in of_class.items()},
            "by_subject": by_subject,
            "by_subject_missing": missing,
            "by_cell": bootstrap.cell_intervals(predictions, seed=seed),
        },
        "metrics": measure(predictions),
        "decisions": predicted.decisions(),
        "subject_rule": predicted.subject_rule(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
    }


def robustness_of_model(
    predictor: Predictor,
    predictions: CellPredictions,
    cells: SelectedCells,
    label_map: Mapping[str, str],
    at_most: int = ROBUSTNESS_CELLS,
) -> dict[str, Any]:
    """Measure how often a release's answers change under small changes of its cells; see `measure_robustness`."""
    labels = cells.data.info.labels
    part = UnseenCells(
        predictor,
        predictions.cell_ids,
        predictions.subjects,
        predictions.references,
        labels,
        match_labels(predictor.release.name, predictor.labels, labels, label_map),
        opener(cells.data),
    )
    return measure_robustness([part], estimates="these weights", at_most=at_most, unit=cells.data.info.group)


def training_overlap(
    metrics: Mapping[str, Any], predictions: CellPredictions, cells: SelectedCells, known_cells: KnownCells
) -> dict[str, Any]:
    """Determine whether the tested cells come from subjects who trained the weights.

    Returns:
        verdict ("good", "warning" or "bad"), statement, and subjects: how many tested subjects trained the weights
        (None where that cannot be known).
    """
    seen = seen_in_training(
        metrics,
        known_cells,
        cells.data,
        predictions.subjects,
        predictions.cell_ids,
        predictions.pixel_hashes,
        split_fingerprints=(cells.whole.fingerprint, cells.whole.test_fingerprint),
    )
    statement = seen.statement
    if seen.overlap is Overlap.SAME_DATA and cells.data.own_splits and cells.whole.strategy == "none":
        statement += " --split given tests the cells of the test split alone."
    counted = seen.overlap in (Overlap.SUBJECTS, Overlap.OTHER_SUBJECTS)
    return {
        "verdict": seen.overlap.verdict,
        "statement": statement,
        "subjects": len(seen.subjects) if counted else None,
    }
