"""Assess a release: compute from its out-of-fold predictions everything that metrics.json says beyond training.

That is intervals, shortcut baselines, calibration, thresholds, the OOD detector and metrics of the Grad-CAM maps. The
temperature is put into the weights, and the release is written anew. Assessing it again, with a newer Leukoscope,
starts from the same predictions and gives the same release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.evaluation.baselines import log_areas, shortcut_metrics, trivial_features
from leukoscope.evaluation.bootstrap import (
    BOOTSTRAP_SAMPLES,
    LEVEL,
    cell_intervals,
    paired_difference,
    simulated_coverage,
    subject_intervals,
)
from leukoscope.evaluation.calibration import OUT_OF_FOLD, calibration_block
from leukoscope.evaluation.explanation_metrics import evidence_scale, heatmap_metrics
from leukoscope.evaluation.metrics import CellPredictions, headline, measure, pooled
from leukoscope.evaluation.ood_metrics import fit_and_measure_detector, healthy_outcomes
from leukoscope.evaluation.patients import patients_block, persons_block
from leukoscope.evaluation.thresholds import decision_block
from leukoscope.inference.backends import open_backend
from leukoscope.inference.backends.precision import precision_block
from leukoscope.inference.prediction import softmax
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.tta import VIEWS, disagreement, tta_views
from leukoscope.models.release import edit_release, load_release, rescale_classifier, save_weights
from leukoscope.models.release_files import (
    METRICS,
    OOD,
    PREDICTIONS,
    SCHEMA_VERSION,
    read_metrics,
    read_release,
    write_json,
)

BATCH = 8
"""Of cells; the network gets eight images for each."""


def assess(
    directory: Path,
    cells: FramedCells,
    *,
    others: Mapping[str, np.ndarray] | None = None,
    healthy: Mapping[str, Path] | None = None,
) -> Path:
    """Compute everything that a release says about itself beyond its training and its predictions.

    Args:
        directory: a release made by a protocol; replaced as a whole.
        cells: the data set it was made from, framed for it.
        others: images that are no such cells, to measure the OOD detector with; see
            `ood_metrics.fit_and_measure_detector`.
        healthy: name → folder with images of healthy people's white cells; see `ood_metrics.healthy_outcomes`.

    Returns:
        `directory`.

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
            "`leukoscope experiment protocol` made"
        )
    made_from, given = metrics["data"]["fingerprint"], cells.data.fingerprint
    if made_from != given:
        raise LeukoscopeError(
            f"{directory}: was made from other cells (fingerprint {made_from[:12]}, these are {given[:12]}); assess it "
            "with the data it was trained on"
        )
    predictions = CellPredictions.load(kept)
    # What an older Leukoscope did not write.
    metrics["schema_version"] = SCHEMA_VERSION
    metrics["data"]["unit"] = cells.data.info.group
    metrics["evaluations"] = [_with_intervals(block, directory) for block in metrics["evaluations"]]
    metrics["evaluations"][0]["shortcut_baselines"] = _shortcut_baselines(cells, predictions, first["folds"])
    with edit_release(directory) as aside:
        earlier = metrics.get("calibration", {}).get("temperature", 1.0)
        fit_and_measure(aside, metrics, predictions, cells, earlier_temperature=earlier, others=others, healthy=healthy)
    return directory


def _with_intervals(block: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """An evaluation with its intervals: by subject, and the naive ones by cell."""
    predictions = CellPredictions.load(directory / PREDICTIONS / f"{block['name']}.parquet")
    found: dict[str, Any] = {"metrics": measure(predictions)}
    intervals: dict[str, Any] = {"level": LEVEL, "draws": BOOTSTRAP_SAMPLES, "seed": 0}
    intervals["by_cell"] = cell_intervals(predictions)
    if "" not in predictions.subjects:
        intervals["by_subject"] = subject_intervals(predictions)
        intervals["coverage"] = simulated_coverage(predictions)
        if block["split"]["disjoint_by"] == "subject" and len(predictions.label_names) == 2:
            interval = intervals["by_subject"].get("subject_auroc")
            found["persons"] = persons_block(predictions, interval, block["estimates"])
    return {**block, **found, "intervals": intervals}


def _shortcut_baselines(
    cells: FramedCells, predictions: CellPredictions, folds: list[dict[str, Any]]
) -> dict[str, Any]:
    """Metrics of trivial features on the folds that the networks were tested on."""
    rows, subjects = cells.rows(predictions.cell_ids), np.asarray(predictions.subjects)
    features = trivial_features((cells.pixels[row] for row in rows), cells.data.info.background)
    areas = cells.areas_of(rows)
    if areas is not None:
        # Of the whole image: one in which every cell is framed at the same size does not show it.
        features["size"] = log_areas(areas)[:, None]
    tested = [np.isin(subjects, fold["subjects"]) for fold in folds]
    sides = [(np.flatnonzero(~mine), np.flatnonzero(mine)) for mine in tested]
    return shortcut_metrics(features, sides, predictions)


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
) -> None:
    """Fit temperature, thresholds and OOD detector, and write weights, detector and metrics.json.

    Args:
        directory: a release, changed in place.
        metrics: what its metrics.json is to hold besides.
        predictions: on subjects unseen by the networks that made them.
        cells: those the detector is fitted on and the Grad-CAM maps are measured on.
        earlier_temperature: by how much the weights are already scaled compared with the networks behind `predictions`.
        estimates: what metrics of `predictions` estimate.
        others, healthy: as for `assess`.
    """
    unit = cells.data.info.group
    metrics["calibration"] = calibration_block(predictions, estimates=estimates, unit=unit)
    metrics["decisions"] = decision_block(predictions, metrics["positive_label"], estimates=estimates, unit=unit)
    temperature = metrics["calibration"]["temperature"]
    metrics.pop("patients", None)
    if patients := patients_block(predictions, metrics["positive_label"], temperature=temperature, estimates=estimates):
        metrics["patients"] = patients
    release = load_release(directory)
    rescale_classifier(release.network, temperature / earlier_temperature)
    save_weights(release.network, directory)
    rows, background = cells.rows(tuple(cells.data.train["cell_id"])), cells.data.info.background
    pixels, units = cells.pixels[rows], [cells.subjects[row] for row in rows]
    metrics.pop("guard", None)  # of releases made before
    (directory / "guard.safetensors").unlink(missing_ok=True)
    detector, metrics["ood"] = fit_and_measure_detector(
        release.preprocessing, pixels, units, background=background, others=others
    )
    detector.save(directory / OOD)
    metrics["heat_maps"] = heatmap_metrics(release, pixels, cells.labels[rows], units, background=background)
    metrics["evidence_scale"] = evidence_scale(release, pixels, cells.labels[rows], units, background=background)
    # Thresholds and detector must be in the folder before the decisions made with them are measured.
    write_json(directory / METRICS, metrics)
    if healthy:
        predictor = Predictor.from_pretrained(directory, backend="torch", device="cpu")
        metrics["ood"]["healthy"] = {name: healthy_outcomes(predictor, folder) for name, folder in healthy.items()}
    metrics["precision"] = precision_block(directory, pixels)
    write_json(directory / METRICS, metrics)


def tta_gain(
    folds: Sequence[tuple[Path, CellPredictions]],
    cells: FramedCells,
    *,
    sample: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Make the "views" block of metrics.json: what test-time augmentation gains.

    Args:
        folds: of each fold the release folder of its network, and the network's predictions for its test cells.
        cells: those cells, framed for the networks.
        sample: number of cells over all folds, chosen at random; all where there are fewer.
        device: a torch device such as "cpu" or "cuda".

    Returns:
        metrics of one view and of the average of eight, their `difference` (eight less one) on the same bootstrap
        samples, and the accuracy on cells for whose views the network predicts one class, and on the others.

    Raises:
        LeukoscopeError: a damaged release, or too few subjects of a class for intervals.
    """
    ends = np.cumsum([0, *(len(fold.cell_ids) for _, fold in folds)])
    chosen = np.sort(np.random.default_rng(seed).permutation(ends[-1])[:sample])
    one_view, all_views, apart = [], [], []
    for (folder, fold), first, last in zip(folds, ends, ends[1:], strict=False):
        some = fold.take(chosen[(first <= chosen) & (chosen < last)] - first)
        backend, rows = open_backend(read_release(folder), device=device), cells.rows(some.cell_ids)
        parts = []
        for start in range(0, len(rows), BATCH):
            pixels = np.asarray(cells.pixels[rows[start : start + BATCH]])
            parts.append(softmax(backend(tta_views(pixels)).logits).reshape(len(pixels), VIEWS, -1))
        each = np.concatenate(parts)
        one_view.append(replace(some, probabilities=each[:, 0]))  # the upright view comes first
        all_views.append(replace(some, probabilities=each.mean(axis=1)))
        apart.append(disagreement(each))
    one, eight, share_apart = pooled(one_view), pooled(all_views), np.concatenate(apart)
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
        "difference": paired_difference(eight, one),
        "mean_disagreement": float(share_apart.mean()),
        "agreeing_cells": accuracy(correct[agreed]),
        "disagreeing_cells": accuracy(correct[~agreed]),
    }
