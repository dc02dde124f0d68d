"""How far to trust a release, put into it: intervals, shortcuts, calibration, decisions, OOD detection, heat maps.

A protocol leaves weights and out-of-fold answers. From these and the cells they were made with, `assess` computes the
rest, folds the temperature into the weights and writes the release anew. Assessing it again, with a newer Leukoscope,
starts from the same answers and ends in the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells
from leukoscope.evaluation.calibration import OUT_OF_FOLD, calibration_block
from leukoscope.evaluation.decisions import decision_block
from leukoscope.evaluation.draws import DRAWS, LEVEL, Interval
from leukoscope.evaluation.heatmap_checks import evidence_scale, heatmap_checks
from leukoscope.evaluation.intervals import (
    cell_intervals,
    point_figures,
    simulated_coverage,
    subject_intervals,
    subject_logits,
)
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.evaluation.ood_metrics import fit_and_check, healthy_outcomes
from leukoscope.evaluation.patients import patients_block
from leukoscope.evaluation.shortcuts import log_areas, shortcut_figures, trivial_features
from leukoscope.inference.precision import precision_block
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import load_release, rescale_classifier, rewritten, save_weights
from leukoscope.models.release_files import METRICS, OOD, PREDICTIONS, SCHEMA_VERSION, read_metrics, write_json


def assess(
    directory: Path,
    cells: FramedCells,
    *,
    others: Mapping[str, np.ndarray] | None = None,
    healthy: Mapping[str, Path] | None = None,
) -> Path:
    """Compute everything that a release says about itself beyond its training and its answers.

    Args:
        directory: a release made by a protocol; replaced as a whole.
        cells: the data set it was made from, framed for it.
        others: pictures that are no such cells, to measure the OOD detector with; see `ood_metrics.fit_and_check`.
        healthy: name → folder with pictures of healthy people's white cells; see `ood_metrics.healthy_outcomes`.

    Returns:
        `directory`.

    Raises:
        LeukoscopeError: no release of a protocol, other cells than it was made from, too few subjects of a class, or a
            folder that cannot be written.
    """
    metrics = read_metrics(directory)
    answers = _out_of_fold(directory, metrics)
    _require_same_cells(directory, metrics, cells)
    # What an older Leukoscope did not write.
    metrics["schema_version"] = SCHEMA_VERSION
    metrics["data"]["unit"] = cells.data.info.group
    metrics["evaluations"] = [_with_intervals(block, directory) for block in metrics["evaluations"]]
    cross_validation = metrics["evaluations"][0]
    cross_validation["shortcut_baselines"] = _shortcuts(cells, answers, cross_validation["folds"])
    with rewritten(directory) as aside:
        earlier = metrics.get("calibration", {}).get("temperature", 1.0)
        fit_trust(aside, metrics, answers, cells, earlier_temperature=earlier, others=others, healthy=healthy)
    return directory


def fit_trust(
    directory: Path,
    metrics: dict[str, Any],
    answers: CellPredictions,
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
        answers: on subjects unseen by the networks that gave them.
        cells: those the detector is fitted on and the heat maps are checked with.
        earlier_temperature: how far the weights are already scaled beyond the networks that gave `answers`.
        estimates: what figures from `answers` stand for.
        others, healthy: as for `assess`.
    """
    unit = cells.data.info.group
    metrics["calibration"] = calibration_block(answers, estimates=estimates, unit=unit)
    metrics["decisions"] = decision_block(answers, metrics["positive_label"], estimates=estimates, unit=unit)
    temperature = metrics["calibration"]["temperature"]
    metrics.pop("patients", None)
    if patients := patients_block(answers, metrics["positive_label"], temperature=temperature, estimates=estimates):
        metrics["patients"] = patients
    release = load_release(directory)
    rescale_classifier(release.network, temperature / earlier_temperature)
    save_weights(release.network, directory)
    rows, background = cells.rows(tuple(cells.data.train["cell_id"])), cells.data.info.background
    pixels, units = cells.pixels[rows], [cells.subjects[row] for row in rows]
    metrics.pop("guard", None)  # of releases made before
    (directory / "guard.safetensors").unlink(missing_ok=True)
    detector, metrics["ood"] = fit_and_check(release.preprocessing, pixels, units, background=background, others=others)
    detector.save(directory / OOD)
    metrics["heat_maps"] = heatmap_checks(release, pixels, cells.labels[rows], units, background=background)
    metrics["evidence_scale"] = evidence_scale(release, pixels, cells.labels[rows], units, background=background)
    # Thresholds and detector must stand in the folder before what they decide is measured.
    write_json(directory / METRICS, metrics)
    if healthy:
        predictor = Predictor.from_pretrained(directory, backend="torch")
        metrics["ood"]["healthy"] = {name: healthy_outcomes(predictor, folder) for name, folder in healthy.items()}
    metrics["precision"] = precision_block(directory, pixels)
    write_json(directory / METRICS, metrics)


def _out_of_fold(directory: Path, metrics: Mapping[str, Any]) -> CellPredictions:
    blocks = metrics.get("evaluations") or [{}]
    path = directory / PREDICTIONS / f"{blocks[0].get('name')}.parquet"
    if "folds" not in blocks[0] or not path.is_file() or "recalibration" in metrics:
        raise LeukoscopeError(
            f"{directory}: holds no out-of-fold answers to assess it by; give a release that `leukoscope protocol` made"
        )
    return CellPredictions.load(path)


def _require_same_cells(directory: Path, metrics: Mapping[str, Any], cells: FramedCells) -> None:
    made_from, given = metrics["data"]["fingerprint"], cells.data.fingerprint
    if made_from != given:
        raise LeukoscopeError(
            f"{directory}: was made from other cells (fingerprint {made_from[:12]}, these are {given[:12]}); assess it "
            "with the very data it was trained on"
        )


def _with_intervals(block: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """An evaluation with its intervals: by subject, and the naive ones by cell."""
    answers = CellPredictions.load(directory / PREDICTIONS / f"{block['name']}.parquet")
    found: dict[str, Any] = {"metrics": measure(answers)}
    intervals: dict[str, Any] = {"level": LEVEL, "draws": DRAWS, "seed": 0, "by_cell": cell_intervals(answers)}
    if "" not in answers.subjects:
        intervals |= {"by_subject": subject_intervals(answers), "coverage": simulated_coverage(answers)}
        if block["split"]["disjoint_by"] == "subject" and len(answers.label_names) == 2:
            found["persons"] = persons(answers, intervals["by_subject"].get("subject_auroc"), block["estimates"])
    return {**block, **found, "intervals": intervals}


def persons(answers: CellPredictions, interval: Interval | None, estimates: str) -> dict[str, Any]:
    """The "persons" block of an evaluation: one score a subject, the mean logit of its cells.

    Args:
        answers: of two classes, on subjects that the networks never saw.
        interval: of the AUROC over subjects.
        estimates: what the answers stand for.

    Returns:
        definition, auroc (None where a subject has cells of two classes) and its interval, and `subjects`: id → label,
        cells and mean_logit of the first class.
    """
    names, logits = subject_logits(answers)
    subjects = np.asarray(answers.subjects)
    return {
        "estimates": estimates,
        "definition": f"mean logit of {answers.label_names[0]} over a subject's cells, log p - log (1 - p)",
        "auroc": point_figures(answers).get("subject_auroc"),
        "interval": interval,
        "subjects": {
            str(name): {
                "label": answers.label_names[answers.references[subjects == name][0]],
                "cells": int((subjects == name).sum()),
                "mean_logit": float(logit),
            }
            for name, logit in zip(names, logits[:, 0], strict=True)
        },
    }


def _shortcuts(cells: FramedCells, answers: CellPredictions, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """What trivial features alone answer on the very folds that the networks were tested on."""
    rows, subjects = cells.rows(answers.cell_ids), np.asarray(answers.subjects)
    features = trivial_features((cells.pixels[row] for row in rows), cells.data.info.background)
    areas = cells.areas_of(rows)
    if areas is not None:
        # Of the whole picture: a network that sees every cell at one size sees nothing of it.
        features["size"] = log_areas(areas)[:, None]
    tested = [np.isin(subjects, fold["subjects"]) for fold in folds]
    sides = [(np.flatnonzero(~mine), np.flatnonzero(mine)) for mine in tested]
    return shortcut_figures(features, sides, answers)
