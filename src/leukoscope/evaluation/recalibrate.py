"""Recalibrate a release for another laboratory: fit temperature, thresholds and OOD detector on its own cells.

The weights change only by the temperature. The ranking of cells often survives a change of stain or microscope where
probabilities and thresholds do not, and a few labelled subjects are enough to correct those.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.evaluation.assess import fit_and_measure
from leukoscope.evaluation.evaluate import KnownCells, same_person
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.models.release import Release, edit_release, load_release
from leukoscope.models.release_files import SCHEMA_VERSION

SUBJECTS_NEEDED = 5
"""Of each class: a threshold for one left-out subject then depends on four others; with fewer it is chance."""
CELLS_NEEDED = 50
"""Of each class: a quantile at 95 % or 98 % needs more cells than it leaves out."""
ESTIMATES = "these weights, on subjects of the recalibration data, none of whom trained them"
NOT_KNOWN = "these weights, on subjects of the recalibration data; whether some of them trained them cannot be told"


def recalibrate(source: Path, cells: FramedCells, target: Path, *, name: str = "") -> Path:
    """Write a new release with temperature, thresholds and OOD detector fitted on the user's cells.

    Args:
        source: folder of the release to start from; it is not changed.
        cells: labelled cells with subjects, framed for it.
        target: folder of the new release; replaced as a whole.
        name: what the source is called, a Hub id for example.

    Returns:
        `target`. Its metrics.json has only running numbers for the user's subjects.

    Raises:
        LeukoscopeError: too few subjects or cells of a class, subjects that trained the release, other classes than
            the release's, or a folder that cannot be written.
    """
    release, info = load_release(source), cells.data.info
    if not release.metrics.get("training"):
        raise LeukoscopeError(f"{source}: says nothing about its training; recalibrate a release made by Leukoscope")
    estimates = ESTIMATES if _refuse_training_cells(release, cells) else NOT_KNOWN
    # A release may be published, the ids of patients must not be.
    known = sorted(set(cells.subjects) - {""})
    number_of = {"": ""} | {subject: f"local {number:02d}" for number, subject in enumerate(known, start=1)}
    cells = replace(cells, subjects=[number_of[subject] for subject in cells.subjects])
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
        "metrics": measure(predictions),
    }
    metrics = dict(release.metrics) | {"schema_version": SCHEMA_VERSION}
    metrics["evaluations"] = [*metrics["evaluations"], evaluation]
    metrics["recalibration"] = _about(release, cells, predictions, name or source.name)
    with edit_release(source, target) as aside:
        fit_and_measure(aside, metrics, predictions, cells, estimates=estimates)
    return target


def _about(release: Release, cells: FramedCells, predictions: CellPredictions, name: str) -> dict[str, Any]:
    return {
        "from": name,
        "data": cells.data.info.title,
        "fingerprint": cells.data.fingerprint,
        "cells": len(predictions.cell_ids),
        "subjects": len(set(predictions.subjects)),
        # All temperatures in the weights already, including those of earlier recalibrations.
        "previous_temperature": release.metrics.get("calibration", {}).get("temperature", 1.0)
        * release.metrics.get("recalibration", {}).get("previous_temperature", 1.0),
    }


def predict_framed(release: Release, cells: FramedCells, *, batch_size: int = 64) -> CellPredictions:
    """Predict framed cells with the release's own network, in float32.

    Raises:
        LeukoscopeError: the cells' classes are not the release's.
    """
    theirs = cells.data.info.labels
    if set(theirs) != set(release.labels):
        raise LeukoscopeError(
            f"the cells are labelled {', '.join(theirs)}, but {release.name} predicts {', '.join(release.labels)}; "
            "rename the class folders to the release's labels"
        )
    ids = tuple(cells.data.train["cell_id"])
    rows, logits = cells.rows(ids), []
    with torch.inference_mode():
        for first in range(0, len(rows), batch_size):
            batch = torch.from_numpy(cells.pixels[rows[first : first + batch_size]]).permute(0, 3, 1, 2)
            logits.append(release.network(release.preprocessing.normalise(batch)))
    own_order = np.asarray([release.labels.index(label) for label in theirs])
    return CellPredictions(
        ids,
        tuple(cells.subjects[row] for row in rows),
        own_order[cells.labels[rows]],
        torch.cat(logits).double().softmax(dim=1).numpy(),
        release.labels,
        cells.areas_of(rows),
        cells.hashes_of(rows),
    )


def _refuse_training_cells(release: Release, cells: FramedCells) -> bool:
    """Refuse cells that trained the release; return whether it is certain that these did not."""
    metrics = release.metrics
    source, sure = metrics["data"]["name"], True
    if source != cells.data.info.name or source == "imagefolder":
        same = metrics["data"]["fingerprint"] == cells.data.fingerprint
        known = set(cells.subjects) if same else set()
        ids, kept = tuple(cells.data.train["cell_id"]), KnownCells.of_release(release.folder)
        sure = kept.by_pixels and cells.hashes is not None
        if seen := kept.among(ids, cells.hashes_of(cells.rows(ids))):
            raise LeukoscopeError(
                f"{seen:,} of these {len(ids):,} cells are among those that {release.name} was made from: it is "
                "overconfident on training cells; recalibrate on other cells"
            )
    else:
        trained = {same_person(source, one) for one in metrics["training"]["subjects"]}
        known = {same_person(source, one) for one in cells.subjects} & trained
    if known:
        raise LeukoscopeError(
            f"subject {min(known)} trained {release.name}: it is overconfident on training cells; recalibrate on "
            "subjects that did not train it"
        )
    return sure


def _require_enough(predictions: CellPredictions, unit: str) -> None:
    if "" in predictions.subjects:
        raise LeukoscopeError(
            f"cell {predictions.cell_ids[predictions.subjects.index('')]}: its subject is not known; recalibration is "
            "measured subject by subject, so give --subject_pattern or --subject_csv"
        )
    subjects = np.asarray(predictions.subjects)
    for k, label in enumerate(predictions.label_names):
        mine = predictions.references == k
        found = len(set(subjects[mine]))
        if found < SUBJECTS_NEEDED or mine.sum() < CELLS_NEEDED:
            raise LeukoscopeError(
                f"class {label}: {mine.sum()} cells of {found} {unit}(s); recalibration needs {CELLS_NEEDED} cells of "
                f"{SUBJECTS_NEEDED} {unit}s of each class, or its thresholds would be chance"
            )
