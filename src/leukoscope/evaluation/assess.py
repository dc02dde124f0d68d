"""Fit what decides in a release, and measure it, from predictions of subjects that its networks never saw.

`assess` does so for a release that `leukoscope protocol` made: intervals, calibration, thresholds, the rule for
subjects and the OOD detector. Assessing again gives the same release. `recalibrate` does the same
for another laboratory, on its own cells: the ranking of cells often survives a change of stain or microscope where
probabilities and thresholds do not, and a few labelled subjects are enough to correct those.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leukoscope import DataError, LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells, PixelRows
from leukoscope.data.splits import BY_IMAGE, Split
from leukoscope.evaluation import bootstrap, calibration
from leukoscope.evaluation.baselines import size_only_out_of_fold
from leukoscope.evaluation.calibration import OUT_OF_FOLD, calibration_block, leave_one_subject_out
from leukoscope.evaluation.metrics import NOT_KNOWN, headline, measure
from leukoscope.evaluation.overlap import seen_of
from leukoscope.evaluation.predict import predict_cells
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.subjects import subject_rule_block, why_no_rule
from leukoscope.evaluation.thresholds import decision_block
from leukoscope.inference.ood import KEPT_SHARE, OOD_FOLDS, OOD_METHOD, OodDetector, fit_detector, picture_statistics
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import Runtime
from leukoscope.models.metrics import Evaluation, EvidenceScale, Metrics, Ood, Recalibration, Training
from leukoscope.models.release import (
    FIGURES_FOLDER,
    OOD_FILE,
    PREDICTIONS_FOLDER,
    edit_release,
    folder_name,
    read_metrics,
    write_metrics,
)
from leukoscope.models.weights import Release, load_release, rescale_classifier, save_weights
from leukoscope.progress import note, progress, track

MIN_SUBJECTS_TO_RECALIBRATE = 5
"""Of each class: a threshold for one left-out subject then depends on four others; with fewer it is chance."""
MIN_CELLS_TO_RECALIBRATE = 50
"""Of each class: a quantile at 95 % or 98 % needs more cells than it leaves out."""
SUBJECTS_OF_VALIDATION = 2
"""Of each class, in a validation side: a fifth of few subjects is fewer than a cross-validation has."""
VALIDATION_ESTIMATES = "these weights, on the subjects that chose their epoch"
ESTIMATES = "these weights, on subjects of the recalibration data, none of whom trained them"
OF_DETECTOR = "cells of subjects that the detector was not fitted on; no network has a part in it"
_FITTED = ("calibration", "decisions", "subject_rule", "subject_rule_missing")


def assess(directory: Path, cells: FramedCells | None = None) -> Path:
    """Fit and measure a release anew from the out-of-fold predictions that it keeps.

    Args:
        directory: a release made by a protocol; replaced as a whole, and returned.
        cells: the data set it was made from, framed for it. Without them, the OOD detector stays as it is.

    Raises:
        LeukoscopeError: no release of a protocol, other cells than it was made from, too few subjects of a class, or a
            folder that cannot be written.
    """
    metrics = read_metrics(directory)
    first = metrics.first_evaluation or Evaluation()
    path = directory / PREDICTIONS_FOLDER / f"{first.name}.parquet"
    if not first.folds or not path.is_file() or metrics.recalibration:
        raise DataError(
            f"{directory}: holds no out-of-fold predictions to assess it by; give a release that "
            "`leukoscope protocol` made"
        )
    trained_on = metrics.data.fingerprint or "not known"
    if cells is not None and trained_on != cells.data.fingerprint:
        made_from = trained_on[:12]
        tested = cells.data.fingerprint[:12]
        raise DataError(
            f"{directory}: was trained on other cells (fingerprint {made_from}, these are {tested}); assess it "
            "with the data it was trained on"
        )
    evaluations = [
        with_intervals(block, CellPredictions.load(path.with_name(f"{block.name}.parquet")), metrics.training)
        for block in track(metrics.evaluations, "intervals", unit="evaluations")
    ]
    blocks = {"evaluations": evaluations, **fitted_blocks(CellPredictions.load(path), metrics)}
    return _write_release(directory, directory, metrics, blocks, cells)


def with_intervals(block: Evaluation, predictions: CellPredictions, training: Training) -> Evaluation:
    """Measure an evaluation anew, with intervals by subject and, beside them, the naive ones by cell.

    Where areas and folds are known, `size_only_baseline` predicts from the areas alone, at the class frequencies that
    the release's probabilities assume.
    """
    measured: dict[str, Any] = {"metrics": measure(predictions)}
    intervals: dict[str, Any] = {"level": bootstrap.CONFIDENCE_LEVEL, "draws": bootstrap.BOOTSTRAP_SAMPLES, "seed": 0}
    intervals["by_cell"] = bootstrap.cell_intervals(predictions)
    if "" not in predictions.subjects:
        intervals["by_subject"] = bootstrap.subject_intervals(predictions)
    shifted = None
    if training.output_frequencies != training.class_frequencies:
        shifted = np.array([training.output_frequencies[name] for name in predictions.label_names])
    size_only = size_only_out_of_fold(predictions, shifted)
    if size_only is not None:
        alone = measure(size_only)
        measured["size_only_baseline"] = headline(alone) | {"recall_by_subject": alone.get("recall_by_subject", {})}
    return Evaluation.model_validate({**block.content(), **measured, "intervals": intervals})


def fitted_blocks(
    predictions: CellPredictions,
    metrics: Metrics,
    *,
    estimates: str = OUT_OF_FOLD,
    unit: str = "",
    subjects_needed: int = calibration.MIN_SUBJECTS_FOR_CALIBRATION,
    cells_of: Literal["test", "validation"] = "test",
) -> dict[str, Any]:
    """Fit temperature, thresholds and the rule for subjects: the blocks of metrics.json that decide.

    Args:
        predictions: on subjects unseen by the networks that made them; `estimates` is what their metrics estimate.
        unit: what the predictions' subjects are: "subject" or "block"; "" for those of the training.
        cells_of: whose cells these are, an evaluation's or those that chose the epoch.

    Returns:
        calibration and decisions; subject_rule, or in subject_rule_missing why none can be fitted.

    Raises:
        LeukoscopeError: a cell of an unknown subject, or too few subjects of a class.
    """
    positive = metrics.positive_label
    origin = {"estimates": estimates, "unit": unit or metrics.data.unit}
    with progress("fitting temperature, thresholds and the rule for a subject"):
        held_out = leave_one_subject_out(predictions, subjects_needed)
        block = calibration_block(predictions, held_out, **origin)
        rule = subject_rule_block(
            predictions,
            positive,
            temperature=block.temperature,
            estimates=estimates,
            size_only=size_only_out_of_fold(predictions),
        )
        decisions = decision_block(predictions, held_out, **origin)
    blocks: dict[str, Any] = {"calibration": block, "decisions": decisions}
    decisions.cells_of = cells_of
    if rule:
        rule.cells_of = cells_of
        blocks["subject_rule"] = rule
    else:
        reason = why_no_rule(predictions.subjects, predictions.references, predictions.label_names, positive)
        blocks["subject_rule_missing"] = reason
    return blocks


def fit_detector_on(cells: FramedCells, cell_ids: tuple[str, ...] | None = None) -> tuple[OodDetector, Ood]:
    """Fit the OOD detector on framed cells, all or the named ones: it, and the "ood" block of metrics.json.

    Raises:
        LeukoscopeError: too few cells or subjects.
    """
    if cell_ids is None:
        cell_ids = tuple(cells.data.train["cell_id"])
    rows = cells.rows(cell_ids)
    subjects = [cells.subjects[row] for row in rows]
    with progress("fitting the OOD detector"):
        statistics = np.asarray([picture_statistics(cell) for cell in PixelRows(cells.pixels, rows)], np.float32)
        detector, held_out = fit_detector(statistics, subjects)
    passes = held_out <= 1
    names, of, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    shares = np.bincount(of, passes) / counts
    block = {
        "estimates": OF_DETECTOR,
        "method": OOD_METHOD,
        "distance_limit": float(detector.limit),
        "wanted_kept_share": KEPT_SHARE,
        "held_out": {
            "cells": len(held_out),
            "subjects": len(names),
            "folds": min(OOD_FOLDS, len(names)),
            "kept_share": float(passes.mean()),
            "kept_share_by_subject": float(shares.mean()),
        },
        "kinds": {},
        "not_measured": [],
    }
    return detector, Ood.model_validate(block)


def write_fit(directory: Path, metrics: Metrics, blocks: Mapping[str, Any], detector: OodDetector | None) -> None:
    """Write what was fitted into a release's folder: the temperature into its weights, detector and metrics.json.

    `blocks` has the name of each new block; those of an earlier fit in `metrics` are dropped. The new temperature
    replaces the one in the weights; that of a recalibration, which measured these, multiplies it.
    """
    release = load_release(directory)
    earlier = 1.0
    if "recalibration" not in blocks:
        earlier = metrics.temperature
    factor = 1.0
    if "calibration" in blocks:
        factor = blocks["calibration"].temperature / earlier
    rescale_classifier(release.network, factor)
    save_weights(release.network, directory)
    if detector is not None:
        detector.save(directory / OOD_FILE)
    # How it holds under small changes was measured with the thresholds before.
    old = (*_FITTED, "robustness") if "recalibration" in blocks else _FITTED
    written = metrics.changed(**{**dict.fromkeys(old), **blocks})
    for name in ("evidence_scale", "occlusion_scale"):
        scale: EvidenceScale | None = getattr(written, name)
        if scale:
            setattr(written, name, scale.divided(factor))
    if written.further_subjects and factor != 1:
        written.further_subjects.earlier_weights = True
    write_metrics(directory, written)


def _write_release(
    source: Path, target: Path, metrics: Metrics, blocks: dict[str, Any], cells: FramedCells | None
) -> Path:
    """Write the release `source` as `target` with these blocks and an OOD detector fitted on these cells."""
    detector = None
    if cells is not None:
        detector, blocks["ood"] = fit_detector_on(cells)
    with edit_release(source, target) as aside:
        if "recalibration" in blocks:
            shutil.rmtree(aside / FIGURES_FOLDER, ignore_errors=True)  # they show the old thresholds
        write_fit(aside, metrics, blocks, detector)
    return target


def fit_on_validation(directory: Path, predictions: CellPredictions, cells: FramedCells, split: Split) -> None:
    """Fit temperature, thresholds and OOD detector of a single training's release; note what cannot be fitted.

    Args:
        directory: the release, without calibration, decisions and OOD detector; changed in place.
        predictions: of its network, on the validation side.
        cells: framed for it; the detector is fitted on those of them that `split` does not test.
    """
    metrics = read_metrics(directory)
    blocks = dict[str, Any]()
    detector = None
    try:
        blocks |= fitted_blocks(
            predictions,
            metrics,
            estimates=VALIDATION_ESTIMATES,
            subjects_needed=SUBJECTS_OF_VALIDATION,
            cells_of="validation",
        )
    except LeukoscopeError as error:
        note(f"this release never abstains: no threshold could be fitted on the validation side ({error})")
        blocks["subject_rule_missing"] = metrics.subject_rule_missing or str(error)
    if split.group == "cell" and blocks.pop("subject_rule", None):
        blocks["subject_rule_missing"] = BY_IMAGE
    try:
        detector, blocks["ood"] = fit_detector_on(cells, (*split.train, *split.validation))
    except LeukoscopeError as error:
        note(f"this release refuses no picture: {error}")
    write_fit(directory, metrics, blocks, detector)


# Another laboratory


def recalibrate(source: Path, cells: FramedCells, target: Path, *, name: str = "") -> Path:
    """Write a new release with temperature, thresholds and OOD detector fitted on the user's cells.

    Args:
        source: folder of the release to start from; `name` is its Hub id, "" for the folder's name.
        cells: labelled cells with subjects, framed for it.
        target: folder of the new release, with running numbers for the user's subjects; replaced as a whole, returned.

    Raises:
        LeukoscopeError: too few subjects or cells of a class, subjects that trained the release, other classes than
            the release's, or a folder that cannot be written.
    """
    release = load_release(source)
    info = cells.data.info
    if not release.metrics.trainings:
        raise DataError(f"{source}: does not say how it was trained; recalibrate a release that Leukoscope made")
    estimates = NOT_KNOWN
    if _refuse_training_cells(release, cells):
        estimates = ESTIMATES
    # A release may be published, the ids of subjects must not be.
    named_subjects = sorted(set(cells.subjects) - {""})
    number_of = {"": ""} | {subject: f"local {number:02d}" for number, subject in enumerate(named_subjects, start=1)}
    if info.name == "imagefolder":  # its title speaks to the author, not to the release's readers
        info = replace(info, title="the author's own cells")
    subjects = [number_of[subject] for subject in cells.subjects]
    cells = replace(cells, data=replace(cells.data, info=info), subjects=subjects)
    predictions = predictions_of(release, cells)
    _require_enough(predictions, info.group)
    split = {"strategy": "all", "detail": f"every recalibration cell ({info.title})", "disjoint_by": info.group}
    block = {"name": "recalibration", "estimates": estimates, "thresholds_fitted_on": None}
    evaluation = Evaluation.model_validate({**block, "split": {**split, "seed": 0}})
    metrics = release.metrics
    with progress("intervals of evaluations"):
        measured = with_intervals(evaluation, predictions, metrics.training)
    fitted_on = {
        "from": name or folder_name(source),
        "data": info.title,
        "fingerprint": cells.data.fingerprint,
        "cells": len(predictions.cell_ids),
        "subjects": len(set(predictions.subjects)),
        # All temperatures in the weights already, including those of earlier recalibrations.
        "previous_temperature": metrics.temperature * metrics.earlier_temperature,
    }
    blocks = {
        **fitted_blocks(predictions, metrics, estimates=estimates, unit=info.group),
        "evaluations": [*metrics.evaluations, measured],
        "recalibration": Recalibration.model_validate(fitted_on),
    }
    return _write_release(source, target, metrics, blocks, cells)


def predictions_of(release: Release, cells: FramedCells) -> CellPredictions:
    """Predict the cells with the release's own network, in float32; an error where the classes differ."""
    ids = tuple(cells.data.train["cell_id"])
    predictor = Predictor(release, Runtime(device="cpu"))
    predictions = predict_cells(predictor, cells.data, ids, batch_size=8).with_labels(release.labels)
    rows = cells.rows(ids)
    return replace(predictions, subjects=tuple(cells.subjects[row] for row in rows), areas=cells.areas_of(rows))


def _refuse_training_cells(release: Release, cells: FramedCells) -> bool:
    """Refuse cells that trained the release; return whether it is certain that these did not."""
    seen = seen_of(release, cells, tuple(cells.data.train["cell_id"]))
    held = seen.held(cells.data.info.group)
    if held:
        raise DataError(
            f"{release.name}: its data hold {held} of these, and it is overconfident on training cells; recalibrate it "
            "on others"
        )
    return seen.overlap.certain


def _require_enough(predictions: CellPredictions, unit: str) -> None:
    predictions.require_subjects("recalibration is measured subject by subject")
    for k, (label, subjects) in enumerate(predictions.subjects_of_class.items()):
        cells = np.count_nonzero(predictions.references == k)
        if subjects < MIN_SUBJECTS_TO_RECALIBRATE or cells < MIN_CELLS_TO_RECALIBRATE:
            needed = f"{MIN_CELLS_TO_RECALIBRATE} cells of {MIN_SUBJECTS_TO_RECALIBRATE} {unit}s of each class"
            raise DataError(
                f"class {label}: {cells} cells of {subjects} {unit}(s); recalibration needs {needed}; with fewer, its "
                "thresholds are chance"
            )
