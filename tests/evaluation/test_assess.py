"""Assessing a release: everything is written whole, twice gives the same, and the scores are calibrated everywhere."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leukoscope import LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.assess import assess, with_intervals
from leukoscope.evaluation.baselines import size_only_out_of_fold
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import OUT_OF_DISTRIBUTION
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import PREDICTIONS, write_json
from leukoscope.models.weights import load_release
from untrained import untrained

SIZE = 64


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> FramedCells:
    """The phantoms as a small network sees them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return frame_cells(load_cells("phantoms", image_size=2 * SIZE), Preprocessing(SIZE, 350 / 450))


@pytest.fixture
def made_release(tmp_path: Path, cells: FramedCells) -> Path:
    """What a protocol leaves: untrained weights, and overconfident out-of-fold predictions, 8 in 10 of them right."""
    predictions = _predictions(cells)
    folds = [sorted(set(predictions.subjects))[first::2] for first in (0, 1)]
    folder = untrained(tmp_path / "made", _metrics(cells, predictions, folds), size=SIZE)
    (folder / PREDICTIONS).mkdir()
    predictions.save(folder / PREDICTIONS / "subject_cv.parquet")
    return folder


def _predictions(cells: FramedCells) -> CellPredictions:
    rng = np.random.default_rng(0)
    ids = tuple(cells.data.train["cell_id"])
    references = cells.labels[cells.rows(ids)]
    answered = np.where(rng.random(len(ids)) < 0.8, references, 1 - references)
    sure = rng.uniform(0.9, 0.999, len(ids))
    probabilities = np.where(np.eye(2, dtype=bool)[answered], sure[:, None], 1 - sure[:, None])
    subjects = tuple(cells.subjects[row] for row in cells.rows(ids))
    of_fold = {subject: number % 2 for number, subject in enumerate(sorted(set(subjects)))}
    folds, areas = np.array([of_fold[subject] for subject in subjects]), cells.areas_of(cells.rows(ids))
    labels = cells.data.info.labels
    return CellPredictions(ids, subjects, references, probabilities, labels, areas, folds=folds)


def _metrics(cells: FramedCells, predictions: CellPredictions, folds: list[list[str]]) -> dict[str, Any]:
    measured, data = measure(predictions), cells.data.info.about() | {"fingerprint": cells.data.fingerprint}
    of_folds = [{"fold": k, "cells": 240, "subjects": names, **headline(measured)} for k, names in enumerate(folds)]
    split = {"strategy": "subject-cv", "detail": "2-fold", "disjoint_by": "subject", "seed": 0}
    block = {"name": "subject_cv", "estimates": "recipe (cross-validated)", "split": split, "metrics": measured}
    training = {"subjects": sorted(set(predictions.subjects)), "class_frequencies": {"ALL": 0.5, "HEM": 0.5}}
    return {"positive_label": "ALL", "data": data, "training": training, "evaluations": [block | {"folds": of_folds}]}


@pytest.mark.slow
def test_an_assessed_release_carries_its_evidence_and_ends_in_the_same_place_again(
    made_release: Path, cells: FramedCells
) -> None:
    before = load_release(made_release)
    metrics = load_release(assess(made_release, cells)).metrics
    temperature = metrics["calibration"]["temperature"]
    assert temperature > 1.5, "predictions at .95 that are right at .8 are overconfident"
    # One temperature cannot make confidences between .9 and .999 equal, so some error is left.
    assert metrics["calibration"]["after"]["ece"] < 0.7 * metrics["calibration"]["before"]["ece"]
    rule = metrics["subject_rule"]
    alone = rule["measured"]["auroc"]["value"] - rule["size_only"]["auroc"]["value"]
    assert rule["size_only"]["difference"]["difference"] == pytest.approx(alone, abs=1e-5)
    wide = metrics["evaluations"][0]["intervals"]
    assert wide["by_subject"]["accuracy"]["low"] < metrics["evaluations"][0]["metrics"]["accuracy"]

    picture = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = before.network(picture) / temperature
        once = load_release(made_release).network(picture)
    assert torch.allclose(once, expected, atol=1e-6), "the temperature is folded into the weights"
    predictor = Predictor.from_pretrained(made_release)
    assert predictor(np.zeros((99, 99, 3), np.uint8)).outcome == OUT_OF_DISTRIBUTION
    assert predictor.ood is not None
    assert predictor.ood.limit == pytest.approx(metrics["ood"]["distance_limit"], rel=1e-5)
    assert predictor.thresholds.abstain_below == metrics["decisions"]["abstention"]["default"]["threshold"]
    held_out = metrics["ood"]["held_out"]
    assert 0.5 < held_out["kept_share"] < 1

    again = load_release(assess(made_release))
    assert again.metrics == metrics
    with torch.inference_mode():
        assert torch.allclose(again.network(picture), once, atol=1e-6), "assessing twice folds it in once"


def test_an_evaluation_of_subjects_with_cells_of_both_classes_has_intervals(cells: FramedCells) -> None:
    block = {"name": "subject_cv", "estimates": "x", "split": {"disjoint_by": "subject"}}
    predictions = _predictions(cells)
    # A few cells of every subject are of the other class, most cells of one subject.
    mixed = np.arange(len(predictions.cell_ids)) % 5 == 0
    mixed ^= np.asarray(predictions.subjects) == predictions.subjects[0]
    references = np.where(mixed, 1 - predictions.references, predictions.references)
    intervals = with_intervals(block, replace(predictions, references=references), {})["intervals"]
    assert intervals.keys() == {"level", "draws", "seed", "by_cell", "by_subject"}


def test_size_alone_presumes_the_class_frequencies_that_the_release_does(cells: FramedCells) -> None:
    block = {"name": "subject_cv", "estimates": "x", "split": {"disjoint_by": "subject"}}
    training = {"class_frequencies": {"ALL": 0.6, "HEM": 0.4}, "output_frequencies": {"ALL": 0.1, "HEM": 0.9}}
    predictions = _predictions(cells)
    found = with_intervals(block, predictions, training)
    shifted = size_only_out_of_fold(predictions, np.array([0.1, 0.9]))
    assert shifted is not None
    assert found["size_only_baseline"]["accuracy"] == measure(shifted)["accuracy"]
    assert found["metrics"]["accuracy"] == measure(predictions)["accuracy"]


def test_other_cells_are_refused(made_release: Path, cells: FramedCells) -> None:
    other = replace(cells, data=replace(cells.data, fingerprint="f" * 64))
    with pytest.raises(LeukoscopeError, match=r"made: was made from other cells \(fingerprint .* trained on$"):
        assess(made_release, other)


@pytest.mark.parametrize("lacking", ["evaluations", "predictions"])
def test_a_release_needs_out_of_fold_predictions(made_release: Path, cells: FramedCells, lacking: str) -> None:
    if lacking == "predictions":
        shutil.rmtree(made_release / PREDICTIONS)
    else:
        metrics = dict(load_release(made_release).metrics) | {"evaluations": []}
        write_json(made_release / "metrics.json", metrics)
    with pytest.raises(LeukoscopeError, match=r"made: holds no out-of-fold predictions .* `leukoscope protocol` made$"):
        assess(made_release, cells)
