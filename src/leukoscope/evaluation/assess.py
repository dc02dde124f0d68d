"""Assess a release: compute from its out-of-fold predictions everything in metrics.json beyond training.

That is intervals, shortcut baselines, calibration, thresholds, the OOD detector and metrics of the Grad-CAM maps. The
temperature is put into the weights. Assessing again starts from the same predictions and gives the same release.

`recalibrate` does the same for another laboratory, on its own cells. The ranking of cells often survives a change of
stain or microscope where probabilities and thresholds do not, and a few labelled subjects are enough to correct those.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells, PixelRows
from leukoscope.evaluation import bootstrap
from leukoscope.evaluation.baselines import log_areas, shortcut_metrics, size_only_out_of_fold, trivial_features
from leukoscope.evaluation.calibration import OUT_OF_FOLD, calibration_block, leave_one_subject_out
from leukoscope.evaluation.explanation_metrics import explanation_blocks
from leukoscope.evaluation.metrics import NOT_KNOWN, headline, measure
from leukoscope.evaluation.ood_metrics import fit_and_measure_detector, healthy_outcomes
from leukoscope.evaluation.overlap import KnownCells, seen_in_training
from leukoscope.evaluation.precision import precision_block
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.evaluation.subjects import subject_rule_block, subject_scores_block
from leukoscope.evaluation.thresholds import decision_block
from leukoscope.inference.backends import BF16, INT8, Runtime
from leukoscope.inference.prediction import softmax
from leukoscope.inference.predictor import Predictor, float32_backend, open_backend
from leukoscope.inference.tta import VIEWS, disagreement, tta_views
from leukoscope.models.release import (
    FIGURES,
    METRICS,
    OOD,
    PREDICTIONS,
    edit_release,
    folder_name,
    read_metrics,
    read_release,
    write_json,
)
from leukoscope.models.weights import Release, load_release, rescale_classifier, save_weights
from leukoscope.progress import progress, track

BATCH = 8
"""Of cells; the network gets eight images for each."""
SUBJECTS_NEEDED = 5
"""Of each class: a threshold for one left-out subject then depends on four others; with fewer it is chance."""
CELLS_NEEDED = 50
"""Of each class: a quantile at 95 % or 98 % needs more cells than it leaves out."""
ESTIMATES = "these weights, on subjects of the recalibration data, none of whom trained them"


def assess(
    directory: Path,
    cells: FramedCells,
    *,
    others: Mapping[str, np.ndarray] | None = None,
    healthy: Mapping[str, Path] | None = None,
) -> Path:
    """Compute everything in a release's metrics.json beyond its training and its predictions.

    Args:
        directory: a release made by a protocol; replaced as a whole, and returned.
        cells: the data set it was made from, framed for it.
        others: images to be refused; see `ood_metrics.fit_and_measure_detector`.
        healthy: name → folder with images of healthy donors' white cells; see `ood_metrics.healthy_outcomes`.

    Raises:
        LeukoscopeError: no release of a protocol, other cells than it was made from, too few subjects of a class, or a
            folder that cannot be written.
    """
    metrics = read_metrics(directory)
    first = (metrics.get("evaluations") or [{}])[0]
    kept = directory / PREDICTIONS / f"{first.get('name')}.parquet"
    if "folds" not in first or not kept.is_file() or "recalibration" in metrics:
        raise LeukoscopeError(
            f"{directory}: holds no out-of-fold predictions to assess it by; give a release that "
            "`leukoscope protocol` made"
        )
    made_from, given = metrics["data"]["fingerprint"], cells.data.fingerprint
    if made_from != given:
        raise LeukoscopeError(
            f"{directory}: was made from other cells (fingerprint {made_from[:12]}, these are {given[:12]}); assess it "
            "with the data it was trained on"
        )
    predictions = CellPredictions.load(kept)
    blocks = track(metrics["evaluations"], "intervals of evaluations")
    metrics["evaluations"] = [
        _with_intervals(block, CellPredictions.load(directory / PREDICTIONS / f"{block['name']}.parquet"))
        for block in blocks
    ]
    with progress("measuring shortcut baselines"):
        rows, subjects = cells.rows(predictions.cell_ids), np.asarray(predictions.subjects)
        features = trivial_features((cells.pixels[row] for row in rows), cells.data.info.background)
        if (areas := cells.areas_of(rows)) is not None:
            # Of the whole image: one in which every cell is framed at the same size does not show it.
            features["size"] = log_areas(areas)[:, None]
        tested = [np.isin(subjects, fold["subjects"]) for fold in first["folds"]]
        sides = [(np.flatnonzero(~mine), np.flatnonzero(mine)) for mine in tested]
        metrics["evaluations"][0]["shortcut_baselines"] = shortcut_metrics(features, sides, predictions)
    with edit_release(directory) as aside:
        earlier = metrics.get("calibration", {}).get("temperature", 1.0)
        fit_and_measure(aside, metrics, predictions, cells, earlier_temperature=earlier, others=others, healthy=healthy)
    return directory


def _with_intervals(block: Mapping[str, Any], predictions: CellPredictions) -> dict[str, Any]:
    """An evaluation with its metrics and their intervals: by subject, and the naive ones by cell."""
    found: dict[str, Any] = {"metrics": measure(predictions)}
    intervals: dict[str, Any] = {"level": bootstrap.LEVEL, "draws": bootstrap.BOOTSTRAP_SAMPLES, "seed": 0}
    intervals["by_cell"] = bootstrap.cell_intervals(predictions)
    if "" not in predictions.subjects:
        intervals["by_subject"] = bootstrap.subject_intervals(predictions)
        if block["split"]["disjoint_by"] == "subject" and len(predictions.label_names) == 2:
            interval = intervals["by_subject"].get("subject_auroc")
            found["subject_scores"] = subject_scores_block(predictions, interval, block["estimates"])
    return {**block, **found, "intervals": intervals}


def fit_and_measure(
    directory: Path,
    metrics: dict[str, Any],
    predictions: CellPredictions,
    cells: FramedCells,
    *,
    earlier_temperature: float = 1.0,
    estimates: str = OUT_OF_FOLD,
    others: Mapping[str, np.ndarray] | None = None,
    healthy: Mapping[str, Path] | None = None,
    **checks: int,
) -> None:
    """Fit temperature, thresholds and OOD detector, and write weights, detector and metrics.json to a release's folder.

    Args:
        metrics: the rest of its metrics.json.
        predictions: on subjects unseen by the networks that made them; `estimates` is what their metrics estimate.
        cells: those the detector is fitted on and the Grad-CAM maps are measured on.
        earlier_temperature: that the weights are already scaled with, unlike the networks behind `predictions`.
        others, healthy: as for `assess`.
        checks: `sample` and `perturbed` of `explanation_blocks`.
    """
    unit = cells.data.info.group
    with progress("fitting temperature, thresholds and the rule for a subject"):
        positive, about = metrics["positive_label"], {"estimates": estimates, "unit": unit}
        left_out = leave_one_subject_out(predictions)
        metrics["calibration"] = calibration_block(predictions, left_out=left_out, **about)
        metrics["decisions"] = decision_block(predictions, positive, left_out=left_out, **about)
        temperature = metrics["calibration"]["temperature"]
        size_only = size_only_out_of_fold(predictions)
        if rule := subject_rule_block(
            predictions, positive, temperature=temperature, estimates=estimates, size_only=size_only
        ):
            metrics["subject_rule"] = rule
        else:
            metrics.pop("subject_rule", None)
    release = load_release(directory)
    rescale_classifier(release.network, temperature / earlier_temperature)
    save_weights(release.network, directory)
    rows, background = cells.rows(tuple(cells.data.train["cell_id"])), cells.data.info.background
    pixels, units = PixelRows(cells.pixels, rows), [cells.subjects[row] for row in rows]
    with progress("fitting and measuring the OOD detector"):
        detector, metrics["ood"] = fit_and_measure_detector(
            release.preprocessing, pixels, units, background=background, others=others
        )
    detector.save(directory / OOD)
    metrics |= explanation_blocks(release, pixels, cells.labels[rows], units, background=background, **checks)
    # Thresholds and detector must be in the folder before the decisions made with them are measured.
    write_json(directory / METRICS, metrics)
    if healthy:
        predictor = Predictor.from_pretrained(directory, backend="torch", device="cpu")
        groups = track(healthy.items(), "predicting healthy donors' cells")
        metrics["ood"]["healthy"] = {name: healthy_outcomes(predictor, folder) for name, folder in groups}
    measured = metrics.get("precision", {})
    unseen = {name: measured[name]["unseen"] for name in (BF16, INT8) if "unseen" in measured.get(name, {})}
    metrics["precision"] = precision_block(directory, pixels, unseen)
    write_json(directory / METRICS, metrics)


def tta_gain(
    folds: Sequence[tuple[Path, CellPredictions]], cells: FramedCells, *, sample: int = 2000, device: str = "cpu"
) -> dict[str, Any]:
    """Make the "views" block of metrics.json, what test-time augmentation gains; an error for few subjects of a class.

    Args:
        folds: of each fold the release folder of its network, and the network's predictions for its test cells.
        cells: those cells, framed for the networks.
        sample: number of cells over all folds, chosen at random; all where there are fewer.

    Returns:
        metrics of one view and of the average of eight, their `difference` (eight less one) on the same bootstrap
        samples, and the accuracy on cells whose views agree, and on the others.
    """
    ends = np.cumsum([0, *(len(fold.cell_ids) for _, fold in folds)])
    chosen = np.sort(np.random.default_rng(0).permutation(ends[-1])[:sample])
    parts, view_probabilities = [], []
    for number, ((folder, fold), first, last) in enumerate(zip(folds, ends, ends[1:], strict=False), 1):
        some = fold.take(chosen[(first <= chosen) & (chosen < last)] - first)
        backend, rows = open_backend(read_release(folder), Runtime(device=device)), cells.rows(some.cell_ids)
        parts.append(some)
        label = f"test-time augmentation, fold {number} of {len(folds)}"
        for start in track(range(0, len(rows), BATCH), label):
            pixels = np.asarray(cells.pixels[rows[start : start + BATCH]])
            view_probabilities.append(softmax(backend(tta_views(pixels)).logits).reshape(len(pixels), VIEWS, -1))
    tested, each = pooled(parts), np.concatenate(view_probabilities)
    one, eight = (replace(tested, probabilities=p) for p in (each[:, 0], each.mean(axis=1)))  # upright comes first
    share_apart = disagreement(each)
    correct, agreed = eight.predicted == eight.references, share_apart == 0

    def accuracy(correct: np.ndarray) -> dict[str, Any]:
        return {"cells": len(correct), "accuracy": float(correct.mean()) if len(correct) else None}

    return {
        "estimates": OUT_OF_FOLD,
        "definition": "four quarter turns of a cell, each also mirrored",
        "views": VIEWS,
        "network_passes_per_cell": VIEWS,
        "cells": len(correct),
        "one_view": headline(measure(one)),
        "all_views": headline(measure(eight)),
        "difference": bootstrap.paired_difference(eight, one),
        "mean_disagreement": float(share_apart.mean()),
        "agreeing_cells": accuracy(correct[agreed]),
        "disagreeing_cells": accuracy(correct[~agreed]),
    }


# Another laboratory


def recalibrate(source: Path, cells: FramedCells, target: Path, *, name: str = "") -> Path:
    """Write a new release with temperature, thresholds and OOD detector fitted on the user's cells.

    Args:
        source: folder of the release to start from; it is not changed.
        cells: labelled cells with subjects, framed for it.
        target: folder of the new release, with running numbers for the user's subjects; replaced as a whole, returned.
        name: of the source, such as a Hub id; "" for the folder's name.

    Raises:
        LeukoscopeError: too few subjects or cells of a class, subjects that trained the release, other classes than
            the release's, or a folder that cannot be written.
    """
    release, info = load_release(source), cells.data.info
    if not release.metrics.get("training"):
        raise LeukoscopeError(f"{source}: says nothing about its training; recalibrate a release made by Leukoscope")
    estimates = ESTIMATES if _refuse_training_cells(release, cells) else NOT_KNOWN
    # A release may be published, the ids of subjects must not be.
    known = sorted(set(cells.subjects) - {""})
    number_of = {"": ""} | {subject: f"local {number:02d}" for number, subject in enumerate(known, start=1)}
    if info.name == "imagefolder":  # its title speaks to the author, not to the release's readers
        info = replace(info, title="the author's own cells")
    subjects = [number_of[subject] for subject in cells.subjects]
    cells = replace(cells, data=replace(cells.data, info=info), subjects=subjects)
    predictions = predict_framed(release, cells)
    _require_enough(predictions, info.group)
    evaluation = {
        "name": "recalibration",
        "estimates": estimates,
        "split": {
            "strategy": "all",
            "detail": f"every recalibration cell ({info.title})",
            "disjoint_by": info.group,
            "seed": 0,
        },
        "thresholds_fitted_on": None,
    }
    metrics = {key: block for key, block in release.metrics.items() if key != "precision"}  # of other subjects
    with progress("intervals of evaluations"):
        metrics["evaluations"] = [*metrics["evaluations"], _with_intervals(evaluation, predictions)]
    # All temperatures in the weights already, including those of earlier recalibrations.
    temperatures = [
        release.metrics.get("calibration", {}).get("temperature", 1.0),
        release.metrics.get("recalibration", {}).get("previous_temperature", 1.0),
    ]
    metrics["recalibration"] = {
        "from": name or folder_name(source),
        "data": info.title,
        "fingerprint": cells.data.fingerprint,
        "cells": len(predictions.cell_ids),
        "subjects": len(set(predictions.subjects)),
        "previous_temperature": math.prod(temperatures),
    }
    with edit_release(source, target) as aside:
        # They show the old thresholds.
        shutil.rmtree(aside / FIGURES, ignore_errors=True)
        # Fewer cells than in an assessment: the weights, and with them the maps, are those that were assessed.
        fit_and_measure(aside, metrics, predictions, cells, estimates=estimates, sample=40, perturbed=8)
    return target


def predict_framed(release: Release, cells: FramedCells) -> CellPredictions:
    """Predict framed cells with the release's own network, in float32; an error where the classes differ."""
    theirs = cells.data.info.labels
    if set(theirs) != set(release.labels):
        raise LeukoscopeError(
            f"the cells are labelled {', '.join(theirs)}, but {release.name} predicts {', '.join(release.labels)}; "
            "rename the class folders to the release's labels"
        )
    ids = tuple(cells.data.train["cell_id"])
    rows, backend = cells.rows(ids), float32_backend(release, len(ids))
    batches = []
    with progress("predicting cells", len(rows)) as advance:
        for first in range(0, len(rows), BATCH):
            pixels = cells.pixels[rows[first : first + BATCH]]
            batches.append(softmax(backend(pixels).logits))
            advance(len(pixels))
    own_order = np.asarray([release.labels.index(label) for label in theirs])
    return CellPredictions(
        ids,
        tuple(cells.subjects[row] for row in rows),
        own_order[cells.labels[rows]],
        np.concatenate(batches),
        release.labels,
        cells.areas_of(rows),
        cells.hashes_of(rows),
    )


def _refuse_training_cells(release: Release, cells: FramedCells) -> bool:
    """Refuse cells that trained the release; return whether it is certain that these did not."""
    ids, known = tuple(cells.data.train["cell_id"]), KnownCells.of_release(release.folder)
    hashes = cells.hashes_of(cells.rows(ids))
    seen = seen_in_training(release.metrics, known, cells.data, cells.subjects, ids, hashes)
    if seen.subjects:
        raise LeukoscopeError(
            f"subject {seen.subjects[0]} trained {release.name}: it is overconfident on training cells; recalibrate on "
            "subjects that did not train it"
        )
    if seen.cells:
        raise LeukoscopeError(
            f"{seen.cells:,} of these {len(ids):,} cells are among those that {release.name} was made from: it is "
            "overconfident on training cells; recalibrate on other cells"
        )
    return seen.certain


def _require_enough(predictions: CellPredictions, unit: str) -> None:
    predictions.require_subjects("recalibration is measured subject by subject")
    subjects = np.asarray(predictions.subjects)
    for k, label in enumerate(predictions.label_names):
        mine = predictions.references == k
        found = len(set(subjects[mine]))
        if found < SUBJECTS_NEEDED or mine.sum() < CELLS_NEEDED:
            raise LeukoscopeError(
                f"class {label}: {mine.sum()} cells of {found} {unit}(s); recalibration needs {CELLS_NEEDED} cells of "
                f"{SUBJECTS_NEEDED} {unit}s of each class, or its thresholds would be chance"
            )
