"""What a release reaches on labelled cells: metrics with intervals, and whether the tested subjects trained it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import without_damaged
from leukoscope.data.splits import Split, load_split, make_split
from leukoscope.evaluation import bootstrap
from leukoscope.evaluation.metrics import measure, versions
from leukoscope.evaluation.overlap import ForeignModel, Overlap, seen_in_training
from leukoscope.evaluation.predict import match_labels, public_name_of
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.subjects import measure_subject_rule
from leukoscope.inference.subject import SubjectRule
from leukoscope.models.release import ReleaseInfo

TEST_FOLD = "fold_1"
"""The published fold of C-NMC that the split `official` tests."""
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


def build_evaluation(
    release: ReleaseInfo,
    predictions: CellPredictions,
    cells: SelectedCells,
    *,
    label_map: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the content of evaluation.json from a release's predictions of these cells.

    `label_map` is the release's name of a class → the data set's.

    Raises:
        LeukoscopeError: no cell was predicted.
    """
    unreadable = cells.data.unreadable
    if not predictions.cell_ids:
        reason = next(iter((*predictions.left_out, *unreadable)), "no cell was given")
        raise DataError(f"{public_name_of(release)}: no cell was predicted ({reason}); check the cells and --split")
    try:
        by_subject = bootstrap.subject_intervals(predictions, seed=seed)
        missing = ""
    except LeukoscopeError as error:
        by_subject = None
        missing = str(error)
    return {
        "schema_version": EVALUATION_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "model": {"name": public_name_of(release), "revision": release.revision},
        "estimates": "these weights",
        "training_overlap": training_overlap(release, predictions, cells),
        "unit": cells.data.info.group,
        **cells.about(),
        "left_out": [*unreadable, *predictions.left_out],
        "figures": bootstrap.point_metrics(predictions),
        "intervals": {
            "level": bootstrap.CONFIDENCE_LEVEL,
            "draws": bootstrap.BOOTSTRAP_SAMPLES,
            "seed": seed,
            "method": "bootstrap within class, expanded percentile (Hesterberg 2015, "
            "doi:10.1080/00031305.2015.1089789)",
            "subjects": predictions.subjects_of_class,
            "by_subject": by_subject,
            "by_subject_missing": missing,
            "by_cell": bootstrap.cell_intervals(predictions, seed=seed),
        },
        "metrics": measure(predictions),
        "decisions": _decisions(predictions),
        "subject_rule": _subject_rule(release, predictions, label_map or {}),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
    }


def _decisions(predictions: CellPredictions) -> dict[str, Any]:
    """What `leukoscope predict` decides on these cells.

    `outcomes` counts the cells of each, `given` those that get a class, `right` the right ones of these.
    """
    labels = predictions.label_names
    outcomes = predictions.outcomes or ()
    pairs = zip(predictions.references, outcomes, strict=True)
    is_right = [labels[true] == outcome for true, outcome in pairs if outcome in labels]
    return {"outcomes": dict(sorted(Counter(outcomes).items())), "given": len(is_right), "right": sum(is_right)}


def _subject_rule(
    release: ReleaseInfo, predictions: CellPredictions, label_map: Mapping[str, str]
) -> dict[str, Any] | None:
    """Measure a release's rule for subjects, with the class names of these predictions."""
    rule = SubjectRule.from_metrics(release.metrics, predictions.label_names)
    if rule is None:
        return None
    our_name = match_labels(release.name, release.labels, predictions.label_names, label_map)
    return measure_subject_rule(predictions, replace(rule, positive_label=our_name[rule.positive_label]))


def training_overlap(
    release: ReleaseInfo | ForeignModel, predictions: CellPredictions, cells: SelectedCells
) -> dict[str, Any]:
    """Determine whether the tested cells come from subjects who trained the weights.

    Returns:
        verdict ("good", "warning" or "bad"), statement, and subjects: how many tested subjects trained the weights
        (None where that cannot be known).
    """
    seen = seen_in_training(
        release,
        cells.data,
        predictions.subjects,
        predictions.cell_ids,
        predictions.pixel_hashes,
        split_fingerprints=(cells.whole.fingerprint, cells.whole.test_fingerprint),
    )
    counted = seen.overlap in (Overlap.SUBJECTS, Overlap.OTHER_SUBJECTS)
    return {
        "verdict": seen.overlap.verdict,
        "statement": seen.statement,
        "subjects": len(seen.subjects) if counted else None,
    }
