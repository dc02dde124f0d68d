"""Releases beside prior systems: what is committed follows from the predictions in the repository."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import point_metrics, subject_intervals
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions
from predicted import clustered
from research.beside_releases import KEYS, ROOT, compare
from research.paired import aligned, paired_difference
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


# Two models on the same cells: a difference is seen where both intervals hide it, and other cells are refused


def test_pairing_sees_a_small_difference_that_both_intervals_hide() -> None:
    weaker = clustered()
    logits = np.log(weaker.probabilities)
    logits[np.arange(len(logits)), weaker.references] += 0.3
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    better = replace(weaker, probabilities=shares)
    found = paired_difference(better, weaker, samples=500)["accuracy"]
    assert found["difference"] == pytest.approx(found["a"] - found["b"])
    assert found["low"] > 0
    assert subject_intervals(better, samples=500)["accuracy"]["low"] < found["b"]
    mirrored = paired_difference(weaker, better, samples=500)["accuracy"]
    assert mirrored["high"] < 0


def test_only_metrics_that_both_models_have_are_compared() -> None:
    """In a cross-validation with one subject a fold, no stratum of one size and fold holds two classes."""
    sizes = np.random.default_rng(0).uniform(size=240)
    alone = replace(clustered(subjects=4), areas=sizes)
    folded = replace(alone, folds=np.array([int(subject[1:]) for subject in alone.subjects]))
    assert "auroc_equal_size" in point_metrics(alone) and "auroc_equal_size" not in point_metrics(folded)
    forth, back = (paired_difference(*both, samples=20) for both in ((alone, folded), (folded, alone)))
    assert forth.keys() == back.keys() == point_metrics(folded).keys()


def test_order_of_cells_and_classes_does_not_matter_to_a_comparison() -> None:
    predictions = clustered(subjects=4)
    rows = np.random.default_rng(0).permutation(len(predictions.cell_ids))
    turned = CellPredictions(
        tuple(predictions.cell_ids[i] for i in rows),
        tuple(predictions.subjects[i] for i in rows),
        1 - predictions.references[rows],
        predictions.probabilities[rows][:, ::-1],
        ("B", "A"),
    )
    assert all(figure["difference"] == 0 for figure in paired_difference(predictions, turned, samples=50).values())


def test_a_comparison_on_other_cells_names_the_first_that_differs() -> None:
    predictions = clustered(subjects=4)
    short = predictions.take(range(len(predictions.cell_ids) - 1))
    last = predictions.cell_ids[-1]
    with pytest.raises(LeukoscopeError, match=f"cell {last} has no prediction of the second model; both must predict"):
        paired_difference(predictions, short)
    with pytest.raises(LeukoscopeError, match=f"cell {last} has no prediction of the first model; both must predict"):
        paired_difference(short, predictions)
    with pytest.raises(LeukoscopeError, match="one model predicts A, B, the other X, Y; compare models of the same"):
        paired_difference(predictions, replace(predictions, label_names=("X", "Y")))
    with pytest.raises(LeukoscopeError, match="cell cell-0 is labelled differently in the two sets of predictions"):
        paired_difference(predictions, replace(predictions, references=np.r_[1, predictions.references[1:]]))


def test_another_cross_validation_of_the_same_cells_keeps_its_own_folds() -> None:
    predictions = replace(clustered(subjects=4), folds=np.arange(240) % 2)
    rows = np.random.default_rng(1).permutation(240)
    other = aligned(replace(predictions, folds=1 - np.arange(240) % 2), predictions.take(rows))
    assert other.folds is not None
    assert other.folds.tolist() == (1 - rows % 2).tolist()
