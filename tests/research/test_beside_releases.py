"""Releases beside prior systems: what is committed follows from the predictions in the repository."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions
from research.beside_releases import KEYS, ROOT, compare
from research.tables import NOT_MEASURED, beside_table

PRIOR, RELEASE = ROOT / "results" / "prior", ROOT / "model_card" / "leukoscope-densenet169-cnmc"


@pytest.fixture
def few(tmp_path: Path) -> CellPredictions:
    """A release and one prior system that predict the same twelve subjects, the system worse."""
    cells = CellPredictions.load(RELEASE / "predictions" / "subject_cv.parquet")
    normal = [subject for subject in sorted(set(cells.subjects)) if subject.startswith("H")][:6]
    leukaemic = [subject for subject in sorted(set(cells.subjects)) if not subject.startswith("H")][:6]
    rows = np.flatnonzero([subject in {*normal, *leukaemic} for subject in cells.subjects])
    few = cells.take(rows)
    mixed = 0.1 * few.probabilities + 0.9 * np.random.default_rng(0).dirichlet((1, 1), len(rows))
    (tmp_path / "releases" / "ours" / "predictions").mkdir(parents=True)
    (tmp_path / "prior").mkdir()
    few.save(tmp_path / "releases" / "ours" / "predictions" / "subject_cv.parquet")
    replace(few, probabilities=mixed).save(tmp_path / "prior" / "prior_d_resnet-unseen.parquet")
    return few


def test_a_better_release_is_ahead_on_the_same_cells(few: CellPredictions, tmp_path: Path) -> None:
    found = compare(tmp_path / "releases", tmp_path / "prior")
    (release,) = found["releases"]
    assert (release["release"], release["cells"], release["subjects"]) == ("ours", len(few.cell_ids), 12)
    ahead = release["beside"]["prior_d_resnet"]["auroc_by_subject"]
    assert ahead["difference"] == pytest.approx(ahead["a"] - ahead["b"]) and 0 < ahead["low"] < ahead["high"]
    table = beside_table([found])
    assert "`ours` is ahead of 1 of 1 systems, 1 of them with an interval above zero, and behind 0." in table
    assert beside_table([]) == NOT_MEASURED


def test_releases_stand_beside_each_other(few: CellPredictions, tmp_path: Path) -> None:
    (tmp_path / "releases" / "worse" / "predictions").mkdir(parents=True)
    mixed = 0.5 * few.probabilities + 0.5 * np.random.default_rng(1).dirichlet((1, 1), len(few.cell_ids))
    replace(few, probabilities=mixed).save(tmp_path / "releases" / "worse" / "predictions" / "subject_cv.parquet")
    found = compare(tmp_path / "releases", tmp_path / "prior")
    (pair,) = found["pairs"]
    assert (pair["release"], pair["other"]) == ("ours", "worse")
    assert pair["auroc_by_subject"]["difference"] > 0
    assert "| `ours` | `worse` | +0." in beside_table([found])


def test_a_system_of_other_cells_is_refused(few: CellPredictions, tmp_path: Path) -> None:
    few.take(np.arange(50)).save(tmp_path / "prior" / "prior_d_resnet-unseen.parquet")
    with pytest.raises(LeukoscopeError, match="cells"):
        compare(tmp_path / "releases", tmp_path / "prior")


def test_the_committed_figures_are_those_of_the_predictions() -> None:
    committed = json.loads((ROOT / "results" / "beside_releases.json").read_text())["releases"]
    assert [one["release"] for one in committed] == sorted(
        file.parents[1].name for file in (ROOT / "model_card").glob("*/predictions/subject_cv.parquet")
    )
    for one in committed:
        own = headline(
            measure(CellPredictions.load(ROOT / "model_card" / one["release"] / "predictions/subject_cv.parquet"))
        )
        for name, beside in one["beside"].items():
            system = json.loads((PRIOR / f"{name}-unseen.json").read_text())["metrics"]
            for key in KEYS:
                assert beside[key]["a"] == pytest.approx(own[key])
                assert beside[key]["b"] == pytest.approx(system[key])
