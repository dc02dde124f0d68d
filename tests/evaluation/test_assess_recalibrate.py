"""Recalibration: a new release from a laboratory's own cells, or a refusal that says how many it takes."""

from __future__ import annotations

import shutil
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


def _laboratory(folder: Path, *, subjects: int, cells: int, labels: tuple[str, str] = ("ALL", "HEM")) -> FramedCells:
    """Phantom cells in class folders, named by subject as a user's may be."""
    for cell in phantom_cells(subjects_per_class=subjects, cells_per_subject=cells, size=SIZE, seed=7):
        label = labels[("ALL", "HEM").index(cell.label)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(cell.image).save(folder / label / f"{cell.subject}_{cell.cell_id}.png")
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


def test_predictions_keep_the_releases_order_of_classes(released: Path, tmp_path: Path) -> None:
    cells = _laboratory(tmp_path / "cells", subjects=2, cells=3)
    turned = replace(cells, data=replace(cells.data, info=replace(cells.data.info, labels=("HEM", "ALL"))))
    as_named = predict_framed(load_release(released), cells)
    swapped = predict_framed(load_release(released), turned)
    assert as_named.label_names == swapped.label_names == ("ALL", "HEM")
    assert np.array_equal(as_named.references, 1 - swapped.references)
    assert np.allclose(as_named.probabilities, swapped.probabilities)


@pytest.mark.parametrize(
    ("subjects", "cells", "message"),
    [
        (4, 20, r"^class ALL: 80 cells of 4 subject\(s\); recalibration needs 50 cells of 5 subjects of each class"),
        (5, 9, r"^class ALL: 45 cells of 5 subject\(s\); recalibration needs 50 cells"),
    ],
)
def test_too_few_subjects_or_cells_are_refused(
    released: Path, tmp_path: Path, subjects: int, cells: int, message: str
) -> None:
    with pytest.raises(LeukoscopeError, match=message):
        recalibrate(released, _laboratory(tmp_path / "c", subjects=subjects, cells=cells), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_cells_of_unknown_subject_are_refused(released: Path, tmp_path: Path) -> None:
    cells = _laboratory(tmp_path / "cells", subjects=2, cells=3)
    with pytest.raises(LeukoscopeError, match=r"its subject is not known; .* --labels$"):
        recalibrate(released, replace(cells, subjects=[""] * len(cells.subjects)), tmp_path / "ours")


def test_other_classes_are_refused(released: Path, tmp_path: Path) -> None:
    cells = _laboratory(tmp_path / "cells", subjects=2, cells=3, labels=("blast", "normal"))
    with pytest.raises(LeukoscopeError, match=r"^the cells are labelled blast, normal, but .* predicts ALL, HEM; "):
        recalibrate(released, cells, tmp_path / "ours")


def test_subjects_that_trained_the_release_are_refused(released: Path, tmp_path: Path) -> None:
    cells = _laboratory(tmp_path / "cells", subjects=2, cells=3)
    known = replace(cells.data, info=replace(cells.data.info, name="cnmc2019"))
    with pytest.raises(LeukoscopeError, match=r"^subject H1 trained .*; recalibrate on subjects that did not"):
        recalibrate(released, replace(cells, data=known, subjects=["H1"] * len(cells.subjects)), tmp_path / "ours")


def _with_predictions(release: Path, folder: Path, cells: FramedCells, *, by: str) -> Path:
    """The release with predictions kept of these cells, recognisable by their pixels or by their names."""
    shutil.copytree(release, folder)
    (folder / "predictions").mkdir()
    ids = tuple(cells.data.train["cell_id"])
    predictions = predict_framed(load_release(folder), cells)
    if by == "pixels":
        predictions = replace(predictions, cell_ids=tuple(f"UID_{n}_all" for n in range(len(ids))))
    else:
        predictions = replace(predictions, pixel_hashes=None)
    predictions.save(folder / "predictions" / "subject_cv.parquet")
    return folder


@pytest.mark.parametrize("by", ["pixels", "name"])
def test_training_cells_in_folders_of_another_name_are_refused(released: Path, tmp_path: Path, by: str) -> None:
    cells = _laboratory(tmp_path / "cells", subjects=2, cells=3)
    known = _with_predictions(released, tmp_path / "known", cells, by=by)
    with pytest.raises(LeukoscopeError, match=r"^12 of these 12 cells are among those that .*known was made from"):
        recalibrate(known, cells, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
