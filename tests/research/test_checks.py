"""What a release's detector refuses, and what it decides about healthy donors' cells, on pictures of known kinds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn import save_cell
from leukoscope import LeukoscopeError, Predictor, progress
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.ood import fit_detector, picture_statistics
from leukoscope.inference.prediction import NOT_A_CELL, OUT_OF_DISTRIBUTION, WITHOUT_CLASS
from leukoscope.models.release import OOD_FILE
from leukoscope.models.weights import load_release
from leukoscope.synthetic import Background, draw_smear, phantom_cells
from research.checks import FROM_ELSEWHERE, KINDS, frame_sample, healthy_outcomes, refusals, tta_gain, unsuitable_images

PREPROCESSING = Preprocessing(96, 350 / 450)
Phantoms = tuple[np.ndarray, list[str]]  # framed, and their subjects


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    drawn = list(phantom_cells(subjects_per_class=3, cells_per_subject=10, seed=5))
    framed = [PREPROCESSING.frame(Image.fromarray(phantom.image)) for phantom in drawn]
    return np.stack(framed), [phantom.subject for phantom in drawn]


@pytest.fixture
def predictor(tiny_release: Path, phantoms: Phantoms, tmp_path: Path) -> Predictor:
    """The tiny release with a detector of phantoms."""
    folder = shutil.copytree(tiny_release, tmp_path / "release")
    pixels, subjects = phantoms
    fit_detector(np.stack([picture_statistics(cell) for cell in pixels]), subjects)[0].save(folder / OOD_FILE)
    return Predictor.from_pretrained(folder)


def test_each_kind_of_wrong_picture_is_measured_and_what_is_missing_is_said(phantoms: Phantoms) -> None:
    pixels, subjects = phantoms

    block = refusals(
        PREPROCESSING, pixels, subjects, background="black", others={"fields": 255 - pixels[:5]}, sample=12
    )

    assert json.loads(json.dumps(block)) == block, "plain numbers only"
    assert list(block["kinds"]) == [kind for kind in KINDS if kind != "other_data_set"]
    assert block["not_measured"] == [FROM_ELSEWHERE["other_data_set"]]
    assert (block["kinds"]["fields"]["pictures"], block["kinds"]["inverted"]["pictures"]) == (5, 12)
    for kind in ("fields", "blank", "noise", "inverted"):
        metrics = block["kinds"][kind]
        assert metrics["auroc"] == metrics["refused_share"] == 1.0 and metrics["least_score"] > 1
    assert [kind for kind, what in block["kinds"].items() if not what["to_be_refused"]] == ["phantoms"]


def test_an_unknown_kind_of_picture_is_refused_before_any_work() -> None:
    cats = {"cats": np.zeros((1, 96, 96, 3), np.uint8)}
    with pytest.raises(LeukoscopeError, match="OOD check 'cats': unknown kind; give fields or other_data_set"):
        refusals(PREPROCESSING, np.zeros((0, 96, 96, 3), np.uint8), [], background="black", others=cats)


def test_wrong_pictures_are_what_their_names_say() -> None:
    y, x = np.mgrid[:80, :80] - 39.5
    disc = (np.hypot(y, x) < 25)[None, :, :, None]
    cells = (disc * np.random.default_rng(1).integers(100, 200, (3, 80, 80, 3))).astype(np.uint8)
    pictures = unsuitable_images(cells, np.random.default_rng(0))

    assert all(p.shape[1:] == cells.shape[1:] and p.dtype == np.uint8 for p in pictures.values())
    assert set(pictures) == KINDS.keys() - FROM_ELSEWHERE.keys() - {"phantoms"}
    levels = pictures["blank"].reshape(len(pictures["blank"]), -1)
    assert (levels.min(axis=1) == levels.max(axis=1)).all() and (levels[0, 0], levels[-1, 0]) == (0, 255)
    assert np.array_equal(pictures["cut"][:, :40, :40], cells[:, 40:, 40:])
    assert not pictures["cut"][:, 40:].any() and not pictures["cut"][:, :, 40:].any()
    assert (cells[:, 0, 0] == 0).all() and (pictures["zoomed"][:, 0, 0] > 60).all()
    inner = np.s_[:, 32:48, 32:48]
    assert pictures["blurred"][inner].std() < cells[inner].std() / 4


def test_noise_falls_off_as_in_natural_pictures() -> None:
    pictures = unsuitable_images(np.zeros((100, 80, 80, 3), np.uint8), np.random.default_rng(0))["noise"]

    amplitude = np.abs(np.fft.rfft2(pictures.astype(float), axes=(1, 2))).mean(axis=(0, 3))
    frequency = np.hypot(np.fft.fftfreq(80)[:, None], np.fft.rfftfreq(80))
    middle = (frequency > 0.03) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[middle]), np.log(amplitude[middle]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_a_sample_of_a_folder_reaches_from_its_first_to_its_last_picture(tmp_path: Path) -> None:
    for i in range(11):
        Image.new("RGB", (60, 60), (i * 10, 0, 0)).save(tmp_path / f"{i:02}.png")

    assert frame_sample(tmp_path, PREPROCESSING, pictures=3)[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert len(frame_sample(tmp_path, PREPROCESSING)) == 11
    (tmp_path / "none").mkdir()
    with pytest.raises(LeukoscopeError, match="none: holds no picture to check the OOD detector with; name another"):
        frame_sample(tmp_path / "none", PREPROCESSING)


def test_outcomes_of_pictures_are_counted_by_the_folder_they_lie_in(predictor: Predictor, tmp_path: Path) -> None:
    drawn_on: dict[str, Background] = {"lymphocyte": "black", "monocyte": "smear"}
    for kind, background in drawn_on.items():
        for cell in range(5):
            file = tmp_path / "healthy" / kind / f"{cell}.png"
            save_cell(file, "HEM", subject=1, cell=cell, size=450, background=background)

    found = healthy_outcomes(predictor, tmp_path / "healthy", pictures=4)

    assert json.loads(json.dumps(found)) == found
    for kind, metrics in found.items():
        said = predictor([tmp_path / "healthy" / kind / f"{cell}.png" for cell in (0, 1, 3, 4)])
        assert (metrics["pictures"], metrics["cells"]) == (4, 4)
        assert list(metrics["outcomes"]) == ["ALL", "HEM", *WITHOUT_CLASS]
        for outcome, count in metrics["outcomes"].items():
            assert count == sum(one.outcome == outcome for one in said)
    assert found["monocyte"]["outcomes"][OUT_OF_DISTRIBUTION] == 4
    assert found["lymphocyte"]["outcomes"][OUT_OF_DISTRIBUTION] < 4


def test_a_release_of_cut_out_cells_is_predicted_the_cells_that_are_found(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "healthy" / "Neutrophils"
    folder.mkdir(parents=True)
    field = Image.fromarray(draw_smear(("HEM",) * 4, size=(300, 380), um_per_pixel=0.2).image)
    field.save(folder / "a.png")
    Image.new("RGB", (200, 200), (236, 220, 217)).save(folder / "empty.png")
    predictor.release = replace(predictor.release, metrics=predictor.release.metrics.changed(data={"name": "cnmc2019"}))

    found = healthy_outcomes(predictor, tmp_path / "healthy")["Neutrophils"]

    assert (found["pictures"], found["cells"]) == (2, 4)
    assert sum(found["outcomes"].values()) == sum(found["most_probable"].values()) == 4
    assert found["outcomes"][NOT_A_CELL] == 0, "cut out, none of them is a smear"


# What eight views gain, beside the same worked out with torch from the same weights


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
