"""A release made fit for another laboratory: temperature, thresholds and OOD detector fitted anew on its own cells.

The weights stay what they are but for the temperature. Ranking often survives a change of stain or microscope where
probabilities and thresholds do not, and a few labelled subjects are enough to set those right.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells
from leukoscope.evaluation.assessment import fit_trust
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.evaluation.overlap import KnownCells, same_person
from leukoscope.models.release import Release, load_release, rewritten
from leukoscope.models.release_files import SCHEMA_VERSION

SUBJECTS_NEEDED = 5
"""Of each class. A threshold for one left-out subject then rests on four others; with fewer it rests on an accident."""
CELLS_NEEDED = 50
"""Of each class. A quantile at 95 % or 98 % needs more cells than it leaves out."""
ESTIMATES = "these weights, on subjects of the recalibration data, none of whom trained them"
NOT_KNOWN = "these weights, on subjects of the recalibration data; whether some of them trained them cannot be told"


def recalibrate(source: Path, cells: FramedCells, target: Path, *, name: str = "") -> Path:
    """Write a new release with temperature, thresholds and OOD detector fitted on the user's cells.

    Args:
        source: folder of the release to start from; it is left alone.
        cells: labelled cells with subjects, framed for it.
        target: folder of the new release; replaced as a whole.
        name: what the source is called, a Hub id for example.

    Returns:
        `target`. Its metrics.json speaks of the user's subjects by running numbers only.

    Raises:
        LeukoscopeError: too few subjects or cells of a class, subjects that trained the release, other classes than
            the release's, or a folder that cannot be written.
    """
    release = load_release(source)
    if not release.metrics.get("training"):
        raise LeukoscopeError(f"{source}: says nothing about its training; recalibrate a release made by Leukoscope")
    estimates = ESTIMATES if _refuse_cells_it_knows(release, cells) else NOT_KNOWN
    answers = _anonymous(framed_answers(release, cells))
    _require_enough(answers, cells.data.info.group)
    metrics = dict(release.metrics) | {"schema_version": SCHEMA_VERSION}
    metrics["evaluations"] = [*metrics["evaluations"], _block(answers, cells, estimates)]
    metrics["recalibration"] = _about(release, cells, answers, name or source.name)
    with rewritten(source, target) as aside:
        fit_trust(aside, metrics, answers, _numbered(cells), estimates=estimates)
    return target


def framed_answers(release: Release, cells: FramedCells, *, batch_size: int = 64) -> CellPredictions:
    """The release's own answers for framed cells, in float32.

    Raises:
        LeukoscopeError: the cells' classes are not the release's.
    """
    theirs = cells.data.info.labels
    if set(theirs) != set(release.labels):
        raise LeukoscopeError(
            f"the cells are labelled {', '.join(theirs)}, but {release.name} answers {', '.join(release.labels)}; "
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


def _refuse_cells_it_knows(release: Release, cells: FramedCells) -> bool:
    """Refuse cells that trained the release; True where it is sure that these are others."""
    metrics = release.metrics
    source, sure = metrics["data"]["name"], True
    if source != cells.data.info.name or source == "imagefolder":
        same = metrics["data"]["fingerprint"] == cells.data.fingerprint
        known = set(cells.subjects) if same else set()
        ids, kept = tuple(cells.data.train["cell_id"]), KnownCells.of_release(release.folder)
        sure = kept.by_pixels and cells.hashes is not None
        if seen := kept.among(ids, cells.hashes_of(cells.rows(ids))):
            raise LeukoscopeError(
                f"{seen:,} of these {len(ids):,} cells are among those that {release.name} was made from: on cells it "
                "has seen it is surer than on yours to come; recalibrate on other cells"
            )
    else:
        trained = {same_person(source, one) for one in metrics["training"]["subjects"]}
        known = {same_person(source, one) for one in cells.subjects} & trained
    if known:
        raise LeukoscopeError(
            f"subject {min(known)} trained {release.name}: on cells it has seen it is surer than on yours to come; "
            "recalibrate on subjects that did not train it"
        )
    return sure


def _require_enough(answers: CellPredictions, unit: str) -> None:
    if "" in answers.subjects:
        raise LeukoscopeError(
            f"cell {answers.cell_ids[answers.subjects.index('')]}: its subject is not known; recalibration is judged "
            "subject by subject, so give --subject_pattern or --subject_csv"
        )
    subjects = np.asarray(answers.subjects)
    for k, label in enumerate(answers.label_names):
        mine = answers.references == k
        found = len(set(subjects[mine]))
        if found < SUBJECTS_NEEDED or mine.sum() < CELLS_NEEDED:
            raise LeukoscopeError(
                f"class {label}: {mine.sum()} cells of {found} {unit}(s); recalibration needs {CELLS_NEEDED} cells of "
                f"{SUBJECTS_NEEDED} {unit}s of each class, or its thresholds would rest on an accident"
            )


def _anonymous(answers: CellPredictions) -> CellPredictions:
    """The same answers with subjects by running number: a release may be published, patients' ids must not be."""
    numbers = _numbers(answers.subjects)
    return replace(answers, subjects=tuple(numbers[subject] for subject in answers.subjects))


def _numbered(cells: FramedCells) -> FramedCells:
    numbers = _numbers(cells.subjects)
    return replace(cells, subjects=[numbers[subject] for subject in cells.subjects])


def _numbers(subjects: Any) -> dict[str, str]:
    known = sorted(set(subjects) - {""})
    return {"": "", **{subject: f"local {number:02d}" for number, subject in enumerate(known, start=1)}}


def _block(answers: CellPredictions, cells: FramedCells, estimates: str) -> dict[str, Any]:
    return {
        "name": "recalibration",
        "estimates": estimates,
        "split": {
            "strategy": "all",
            "detail": f"every recalibration cell ({cells.data.info.title})",
            "disjoint_by": cells.data.info.group,
            "seed": 0,
        },
        "thresholds_fitted_on": None,
        "metrics": measure(answers),
    }


def _about(release: Release, cells: FramedCells, answers: CellPredictions, name: str) -> dict[str, Any]:
    return {
        "from": name,
        "data": cells.data.info.title,
        "fingerprint": cells.data.fingerprint,
        "cells": len(answers.cell_ids),
        "subjects": len(set(answers.subjects)),
        # All that is folded into the weights already, by recalibrations before this one, too.
        "previous_temperature": release.metrics.get("calibration", {}).get("temperature", 1.0)
        * release.metrics.get("recalibration", {}).get("previous_temperature", 1.0),
    }
