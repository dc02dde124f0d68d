"""Assessing a release: everything is written whole, twice gives the same, and the scores are calibrated everywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leukoscope import LeukoscopeError, progress
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.assess import assess, predictions_of, recalibrate, with_intervals
from leukoscope.evaluation.baselines import size_only_out_of_fold
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.ood import OodDetector
from leukoscope.inference.prediction import OUT_OF_DISTRIBUTION
from leukoscope.inference.predictor import Predictor
from leukoscope.models.metrics import Evaluation, Training
from leukoscope.models.release import OOD_FILE, PREDICTIONS_FOLDER, write_json, write_metrics
from leukoscope.models.weights import load_release
from leukoscope.synthetic import phantom_cells
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
    (folder / PREDICTIONS_FOLDER).mkdir()
    predictions.save(folder / PREDICTIONS_FOLDER / "subject_cv.parquet")
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
    metrics = load_release(assess(made_release, cells)).metrics.content()
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
    assert again.metrics.content() == metrics
    with torch.inference_mode():
        assert torch.allclose(again.network(picture), once, atol=1e-6), "assessing twice folds it in once"


def test_an_evaluation_of_subjects_with_cells_of_both_classes_has_intervals(cells: FramedCells) -> None:
    block = Evaluation.model_validate({"name": "subject_cv", "split": {"disjoint_by": "subject"}})
    predictions = _predictions(cells)
    # A few cells of every subject are of the other class, most cells of one subject.
    mixed = np.arange(len(predictions.cell_ids)) % 5 == 0
    mixed ^= np.asarray(predictions.subjects) == predictions.subjects[0]
    references = np.where(mixed, 1 - predictions.references, predictions.references)
    intervals = with_intervals(block, replace(predictions, references=references), Training()).intervals
    assert intervals.content().keys() == {"level", "draws", "seed", "by_cell", "by_subject"}


def test_size_alone_presumes_the_class_frequencies_that_the_release_does(cells: FramedCells) -> None:
    block = Evaluation.model_validate({"name": "subject_cv", "split": {"disjoint_by": "subject"}})
    training = {"class_frequencies": {"ALL": 0.6, "HEM": 0.4}, "output_frequencies": {"ALL": 0.1, "HEM": 0.9}}
    predictions = _predictions(cells)
    found = with_intervals(block, predictions, Training.model_validate(training))
    shifted = size_only_out_of_fold(predictions, np.array([0.1, 0.9]))
    assert shifted is not None
    assert found.size_only_baseline is not None
    assert found.size_only_baseline.accuracy == measure(shifted)["accuracy"]
    assert found.metrics.accuracy == measure(predictions)["accuracy"]


def test_other_cells_are_refused(made_release: Path, cells: FramedCells) -> None:
    other = replace(cells, data=replace(cells.data, fingerprint="f" * 64))
    with pytest.raises(LeukoscopeError, match=r"made: was trained on other cells \(fingerprint .* trained on$"):
        assess(made_release, other)


@pytest.mark.parametrize("lacking", ["evaluations", "predictions"])
def test_a_release_needs_out_of_fold_predictions(made_release: Path, cells: FramedCells, lacking: str) -> None:
    if lacking == "predictions":
        shutil.rmtree(made_release / PREDICTIONS_FOLDER)
    else:
        metrics = load_release(made_release).metrics.content() | {"evaluations": []}
        write_json(made_release / "metrics.json", metrics)
    with pytest.raises(LeukoscopeError, match=r"made: holds no out-of-fold predictions .* `leukoscope protocol` made$"):
        assess(made_release, cells)


# Recalibration: a new release from a laboratory's own cells, or a refusal that says how many it takes


def _laboratory(folder: Path, *, subjects: int, cells: int) -> FramedCells:
    """Phantom cells in class folders, named by subject as a user's may be."""
    for cell in phantom_cells(subjects_per_class=subjects, cells_per_subject=cells, size=SIZE, seed=7):
        (folder / cell.label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(cell.image).save(folder / cell.label / f"{cell.subject}_{cell.cell_id}.png")
    data = load_cells("imagefolder", folder, subject_pattern=r"/(?P<subject>[^_]+)_")
    return frame_cells(data, Preprocessing(SIZE, 350 / 450))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained release whose metrics say that it was trained elsewhere."""
    metrics: dict[str, Any] = {
        "data": {"name": "cnmc2019", "fingerprint": "0" * 64},
        "training": {"subjects": ["1", "H1"]},
        "positive_label": "ALL",
        "evaluations": [],
    }
    return untrained(tmp_path_factory.mktemp("released") / "released", metrics, size=SIZE)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> FramedCells:
    """Six cells of two subjects of each class."""
    return _laboratory(tmp_path_factory.mktemp("few"), subjects=2, cells=3)


@pytest.mark.slow
def test_a_laboratory_gets_a_release_of_its_own(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)
    cells = _laboratory(tmp_path / "cells", subjects=5, cells=12)
    source = load_release(released)
    drawn = shutil.copytree(released, tmp_path / "released")
    (drawn / "figures").mkdir()
    (drawn / "figures" / "roc.png").touch()
    earlier = {"calibration": {"temperature": 1.5}, "recalibration": {"previous_temperature": 2.0}}
    write_metrics(drawn, source.metrics.changed(**earlier))
    new = load_release(recalibrate(drawn, cells, tmp_path / "ours"))
    assert not (tmp_path / "ours" / "figures").exists(), "it showed the thresholds before"
    told = {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()}
    steps = {"predicting cells", "fitting temperature, thresholds and the rule for a subject"}
    assert told >= {*steps, "fitting the OOD detector", "intervals of evaluations"}, "no step is silent"
    about = new.metrics.content()["recalibration"]
    assert (about["from"], about["cells"], about["subjects"]) == ("released", 120, 10), "no path"
    assert about["data"] == "the author's own cells", "the reader of a card is not its author"
    assert about["previous_temperature"] == pytest.approx(3.0), "fine-tuning takes all of them out again"
    picture = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        scaled = source.network(picture) / new.metrics.content()["calibration"]["temperature"]
        assert torch.allclose(new.network(picture), scaled, atol=1e-6)
    assert new.metrics.content()["evaluations"][-1]["estimates"].startswith("these weights")
    measured = new.metrics.content()["evaluations"][-1]
    for kind in ("by_subject", "by_cell"):
        interval = measured["intervals"][kind]["balanced_accuracy"]
        assert interval["low"] <= measured["metrics"]["balanced_accuracy"] <= interval["high"]
    known = measured["metrics"]["subjects"]
    assert set(known) == {f"local {k:02d}" for k in range(1, 11)}, "no subject id of the laboratory travels"
    limit = float(OodDetector.load(tmp_path / "ours" / OOD_FILE).limit)
    assert limit == pytest.approx(new.metrics.content()["ood"]["distance_limit"], rel=1e-5)
    assert new.metrics.content()["ood"]["held_out"]["subjects"] == 10


def test_predictions_keep_the_releases_order_of_classes(released: Path, few: FramedCells) -> None:
    as_named = predictions_of(load_release(released), few)
    swapped = predictions_of(load_release(released), _named(few, few.subjects, labels=("HEM", "ALL")))
    assert as_named.label_names == swapped.label_names == ("ALL", "HEM")
    assert np.array_equal(as_named.references, 1 - swapped.references)
    assert np.allclose(as_named.probabilities, swapped.probabilities)


def _named(cells: FramedCells, subjects: list[str], **info: Any) -> FramedCells:
    """The cells under other names of subjects, data set or classes."""
    return replace(cells, subjects=subjects, data=replace(cells.data, info=replace(cells.data.info, **info)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cells: cells,
            r"^class ALL: 6 cells of 2 subject\(s\); recalibration needs 50 cells of 5 subjects of each class",
        ),
        (lambda cells: _named(cells, list(cells.row_of)), r"^class ALL: 6 cells of 6 subject\(s\); recalibration"),
        (lambda cells: _named(cells, [""] * 12), r"its subject is not known; .* or --subject_column$"),
        (
            lambda cells: _named(cells, cells.subjects, labels=("blast", "normal")),
            r": its classes are ALL, HEM, but the data set has blast, normal; name the class ",
        ),
        (
            lambda cells: _named(cells, ["H1"] * 12, name="cnmc2019"),
            r": its data hold 1 subject\(s\) of these, and it is overconfident .*; recalibrate it on others$",
        ),
    ],
    ids=["few subjects", "few cells", "nameless", "other classes", "trained on"],
)
def test_cells_that_cannot_recalibrate_are_refused(
    released: Path, few: FramedCells, tmp_path: Path, change: Callable[[FramedCells], FramedCells], message: str
) -> None:
    with pytest.raises(LeukoscopeError, match=message):
        recalibrate(released, change(few), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_training_cells_in_folders_of_another_name_are_refused(
    released: Path, few: FramedCells, tmp_path: Path
) -> None:
    known = shutil.copytree(released, tmp_path / "known")
    (known / "predictions").mkdir()
    names = tuple(f"UID_{n}_all" for n in range(12))
    predictions = replace(predictions_of(load_release(known), few), cell_ids=names)
    predictions.save(known / "predictions" / "subject_cv.parquet")
    with pytest.raises(LeukoscopeError, match=r"known: its data hold 12 cells of these, and"):
        recalibrate(known, few, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
