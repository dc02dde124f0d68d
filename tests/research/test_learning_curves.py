"""The learning curves: what is measured of them, and that the committed ones are rendered from their predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leukoscope.evaluation.predictions import CellPredictions
from research import learning_curves

RESULTS = Path(__file__).parents[2] / "results" / "learning_curves"


def test_class_frequencies_shift_the_probabilities_as_a_release_does() -> None:
    even = CellPredictions(("a", "b"), ("p", "q"), np.array([0, 1]), np.array([[0.5, 0.5], [0.2, 0.8]]), ("ALL", "HEM"))
    shifted = learning_curves.with_class_frequencies(even, np.array([300.0, 100.0])).probabilities
    assert shifted[0] == pytest.approx([0.75, 0.25])
    assert np.log(shifted[:, 0] / shifted[:, 1]) == pytest.approx(np.log([1.0, 0.25]) + np.log(3))


def test_the_committed_curves_are_those_of_their_predictions() -> None:
    committed = json.loads((RESULTS / "curves.json").read_text(encoding="utf-8"))["curves"]
    computed = learning_curves.summarise(RESULTS)
    assert len(committed) == len(computed) > 0
    for one, other in zip(committed, computed, strict=True):
        assert one.pop("metrics") == pytest.approx(other.pop("metrics"), abs=1e-5)
        assert one == other


@pytest.mark.slow
def test_a_curve_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curves, "EPOCH_CELLS", 64)
    monkeypatch.setattr(learning_curves, "MEASURED_AT", (1, 2))
    common = ("--dataset_name", "phantoms", "--split", "subject-cv", "--num_folds", "3", "--no_validation")
    rest = ("--num_train_epochs", "2", "--override", "epoch_cells=64", "ema_decay=0.9")
    monkeypatch.setattr(learning_curves, "COMMON", (*common, *rest))
    flags = ["--from_scratch", "--recipe", "densenet121", "--image_size", "64"]
    learning_curves.run(tmp_path / "run", flags, 64)
    assert sorted(path.name for path in (tmp_path / "run").glob("*.parquet")) == ["000064.parquet"]
    learning_curves.run(tmp_path / "run", flags, 128)
    assert sorted(path.name for path in (tmp_path / "run").glob("*.parquet")) == ["000064.parquet", "000128.parquet"]
    (one, two) = learning_curves.summarise(tmp_path)
    assert (one["draws"], two["draws"], one["folds"]) == (64, 128, [0])
