"""Recalibration: a new release from a laboratory's own cells, or a refusal that says how many it takes."""

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
from leukoscope.evaluation.assess import predict_framed, recalibrate
from leukoscope.inference.ood import OodDetector
from leukoscope.models.release import OOD, write_metrics
from leukoscope.models.weights import load_release
from leukoscope.synthetic import phantom_cells
from untrained import untrained

SIZE = 64


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
    write_metrics(drawn, {**source.metrics, **earlier})
    new = load_release(recalibrate(drawn, cells, tmp_path / "ours"))
    assert not (tmp_path / "ours" / "figures").exists(), "it showed the thresholds before"
    told = {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()}
    steps = {"predicting cells", "fitting temperature, thresholds and the rule for a subject"}
    assert told >= {*steps, "fitting the OOD detector", "intervals of evaluations"}, "no step is silent"
    about = new.metrics["recalibration"]
    assert (about["from"], about["cells"], about["subjects"]) == ("released", 120, 10), "no path"
    assert about["data"] == "the author's own cells", "the reader of a card is not its author"
    assert about["previous_temperature"] == pytest.approx(3.0), "fine-tuning takes all of them out again"
    picture = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        scaled = source.network(picture) / new.metrics["calibration"]["temperature"]
        assert torch.allclose(new.network(picture), scaled, atol=1e-6)
    assert new.metrics["evaluations"][-1]["estimates"].startswith("these weights")
    measured = new.metrics["evaluations"][-1]
    for kind in ("by_subject", "by_cell"):
        interval = measured["intervals"][kind]["balanced_accuracy"]
        assert interval["low"] <= measured["metrics"]["balanced_accuracy"] <= interval["high"]
    known = measured["metrics"]["subjects"]
    assert set(known) == {f"local {k:02d}" for k in range(1, 11)}, "no subject id of the laboratory travels"
    limit = float(OodDetector.load(tmp_path / "ours" / OOD).limit)
    assert limit == pytest.approx(new.metrics["ood"]["distance_limit"], rel=1e-5)
    assert new.metrics["ood"]["held_out"]["subjects"] == 10


def test_predictions_keep_the_releases_order_of_classes(released: Path, few: FramedCells) -> None:
    as_named = predict_framed(load_release(released), few)
    swapped = predict_framed(load_release(released), _named(few, few.subjects, labels=("HEM", "ALL")))
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
        (lambda cells: _named(cells, [""] * 12), r"its subject is not known; .* --labels$"),
        (
            lambda cells: _named(cells, cells.subjects, labels=("blast", "normal")),
            r"^the cells are labelled blast, normal, but .* predicts ALL, HEM; ",
        ),
        (
            lambda cells: _named(cells, ["H1"] * 12, name="cnmc2019"),
            r"^subject H1 trained .*; recalibrate on subjects that did not",
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
    predictions = replace(predict_framed(load_release(known), few), cell_ids=names)
    predictions.save(known / "predictions" / "subject_cv.parquet")
    with pytest.raises(LeukoscopeError, match=r"^12 of these 12 cells are among those that .*known was made from"):
        recalibrate(known, few, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
