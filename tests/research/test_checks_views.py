"""What eight views gain, beside the same worked out with torch from the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from leukoscope import progress
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.weights import load_release
from research.checks import tta_gain


@pytest.fixture(scope="module")
def cells(tiny_release: Path, phantom_data: LoadedCells) -> FramedCells:
    return frame_cells(phantom_data, load_release(tiny_release).preprocessing)


@pytest.fixture(scope="module")
def folds(cells: FramedCells) -> list[CellPredictions]:
    """Twelve cells of either class in two folds, each a subject of its own; their predictions are not looked at."""
    ids = np.asarray(cells.data.train["cell_id"][:])
    labels = cells.labels[cells.rows(tuple(ids))]
    chosen = [np.flatnonzero(labels == label)[:12] for label in (0, 1)]
    parts = [np.concatenate([rows[half::2] for rows in chosen]) for half in (0, 1)]
    return [
        CellPredictions(
            tuple(ids[rows]), tuple(ids[rows]), labels[rows], np.full((len(rows), 2), 0.5), cells.data.info.labels
        )
        for rows in parts
    ]


def _by_torch(release: Path, pixels: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) → (N, 8, K) probabilities of the quarter turns and of their mirror images."""
    loaded = load_release(release)
    upright = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    views = [picture.rot90(turns, (2, 3)) for picture in (upright, upright.flip(3)) for turns in range(4)]
    with torch.inference_mode():
        said = [loaded.network(loaded.preprocessing.normalise(view)).softmax(dim=1) for view in views]
    return torch.stack(said, dim=1).numpy()


def test_it_compares_one_view_with_the_average_of_all_on_the_test_cells_of_each_fold(
    tiny_release: Path,
    cells: FramedCells,
    folds: list[CellPredictions],
    kept_graphs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)
    found = tta_gain([(tiny_release, fold) for fold in folds], cells)
    assert "test-time augmentation, fold 2 of 2: " in capsys.readouterr().err

    references = np.concatenate([fold.references for fold in folds])
    pixels = np.concatenate([cells.pixels[cells.rows(fold.cell_ids)] for fold in folds])
    each = _by_torch(tiny_release, pixels)
    together = each.mean(axis=1).argmax(axis=1)
    assert found["cells"] == len(references) == 24
    assert found["one_view"]["accuracy"] == pytest.approx((each[:, 0].argmax(axis=1) == references).mean())
    assert found["all_views"]["accuracy"] == pytest.approx((together == references).mean())
    gained = found["difference"]["accuracy"]
    assert gained["difference"] == pytest.approx(found["all_views"]["accuracy"] - found["one_view"]["accuracy"])
    apart = (each.argmax(axis=2) != together[:, None]).any(axis=1)
    assert (found["agreeing_cells"]["cells"], found["disagreeing_cells"]["cells"]) == ((~apart).sum(), apart.sum())
    assert json.loads(json.dumps(found)) == found


def test_of_many_cells_a_sample_is_predicted(
    tiny_release: Path, cells: FramedCells, folds: list[CellPredictions], kept_graphs: Path
) -> None:
    found = tta_gain([(tiny_release, fold) for fold in folds], cells, sample=18)
    assert found["cells"] == found["agreeing_cells"]["cells"] + found["disagreeing_cells"]["cells"] == 18
