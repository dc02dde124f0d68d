"""The guard's figures must be those of a constructed case, and its wrong pictures what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukoscope import LeukoscopeError, Predictor
from leukoscope.cells.phantoms import phantom_cells
from leukoscope.evaluation.guard_checks import (
    FROM_ELSEWHERE,
    KINDS,
    fit_and_check,
    frame_sample,
    guard_block,
    wrong_pictures,
)
from leukoscope.inference.guard import Guard, fit_guard
from leukoscope.inference.torch_backend import pooled_features
from leukoscope.models.release import load_release

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet121-cnmc"


@pytest.fixture
def guard() -> Guard:
    return Guard(*(np.asarray(v, np.float32) for v in (np.zeros(8), np.eye(8)[:3], np.ones(3), 1.0, 2.5)))


def test_figures_are_those_of_a_constructed_case(guard):
    held_out = np.array([0.5, 0.6, 0.7, 0.8, 0.5, -0.1, 0.9, -0.2])
    subjects = ["a"] * 4 + ["b"] * 2 + ["c"] * 2

    block = guard_block(guard, held_out, subjects, {"blank": np.array([-2.0, -3, -4, 0.3]), "inverted": held_out})

    assert block["held_out"] == {
        "cells": 8,
        "subjects": 3,
        "folds": 3,
        "kept_share": 0.75,
        "worst_subject": {"subject": "b", "cells": 2, "kept_share": 0.5},
    }
    # Of 32 pairs of a true cell and a grey picture, the two refused cells lie below the picture at 0.3.
    assert block["kinds"]["blank"] | {"shows": ""} == {
        "shows": "", "to_be_caught": True, "pictures": 4, "auroc": 30 / 32, "caught_share": 0.75,
    }  # fmt: skip
    assert block["kinds"]["inverted"]["auroc"] == 0.5
    assert (block["dimension"], block["features"], block["distance_limit"]) == (3, 8, 2.5)


def test_what_was_not_measured_is_said(guard):
    block = guard_block(guard, np.array([0.5, 0.4]), ["a", "b"], {"blank": np.array([-1.0])})

    assert list(block["kinds"]) == ["blank"]
    assert block["not_measured"] == [what for kind, what in KINDS.items() if kind != "blank"]


def test_of_equally_bad_subjects_the_one_with_more_cells_is_the_worst(guard):
    held_out = np.array([-1.0, 1, 1, 1, -1, -1])

    block = guard_block(guard, held_out, ["few", "few", "many", "many", "many", "many"], {})

    assert block["held_out"]["worst_subject"] == {"subject": "many", "cells": 4, "kept_share": 0.5}


def test_a_release_gets_a_guard_and_its_figures(tiny_release):
    release = load_release(tiny_release)
    frame = release.preprocessing.frame
    phantoms = list(phantom_cells(subjects_per_class=3, cells_per_subject=10, seed=5))
    pixels = np.stack([frame(Image.fromarray(phantom.image)) for phantom in phantoms])
    subjects = [phantom.subject for phantom in phantoms]
    seen = []

    guard, block = fit_and_check(
        release,
        pixels,
        subjects,
        background="black",
        others={"fields": 255 - pixels[:5]},
        sample=12,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert json.loads(json.dumps(block)) == block, "plain numbers only"
    assert (guard.scores(pooled_features(release, pixels)) >= 0).mean() > 0.9
    assert block["held_out"]["kept_share"] == pytest.approx(0.98, abs=0.02)
    assert seen == [(32, 60), (60, 60)]
    assert list(block["kinds"]) == [kind for kind in KINDS if kind != "other_data_set"]
    assert block["not_measured"] == [FROM_ELSEWHERE["other_data_set"]]
    assert (block["kinds"]["fields"]["pictures"], block["kinds"]["inverted"]["pictures"]) == (5, 12)
    assert block["kinds"]["noise"]["auroc"] == block["kinds"]["noise"]["caught_share"] == 1.0
    assert block["kinds"]["phantoms"]["to_be_caught"] is False
    assert "network was trained on" in block["estimates"]


def test_an_unknown_kind_of_picture_is_refused_before_any_work(tiny_release):
    with pytest.raises(LeukoscopeError) as error:
        fit_and_check(
            load_release(tiny_release), np.zeros((0, 96, 96, 3), np.uint8), [], background="black",
            others={"cats": np.zeros((1, 96, 96, 3), np.uint8)},
        )  # fmt: skip
    assert str(error.value) == "guard check 'cats': unknown kind; give fields or other_data_set"


@pytest.fixture(scope="module")
def wrong() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Three round cells on black and what is made from them."""
    y, x = np.mgrid[:80, :80] - 39.5
    disc = (np.hypot(y, x) < 25)[None, :, :, None]
    texture = np.random.default_rng(1).integers(100, 200, (3, 80, 80, 3))
    cells = (disc * texture).astype(np.uint8)
    return cells, wrong_pictures(cells, np.random.default_rng(0))


def test_every_wrong_picture_is_of_the_networks_size(wrong):
    cells, pictures = wrong

    assert all(p.shape[1:] == cells.shape[1:] and p.dtype == np.uint8 for p in pictures.values())
    assert set(pictures) == KINDS.keys() - FROM_ELSEWHERE.keys() - {"phantoms"}


def test_blank_pictures_run_from_black_to_white(wrong):
    _, pictures = wrong

    levels = pictures["blank"].reshape(len(pictures["blank"]), -1)
    assert (levels.min(axis=1) == levels.max(axis=1)).all()
    assert (levels[0, 0], levels[-1, 0]) == (0, 255)


def test_noise_falls_off_as_in_natural_pictures():
    pictures = wrong_pictures(np.zeros((100, 80, 80, 3), np.uint8), np.random.default_rng(0))["noise"]

    amplitude = np.abs(np.fft.rfft2(pictures.astype(float), axes=(1, 2))).mean(axis=(0, 3))
    frequency = np.hypot(np.fft.fftfreq(80)[:, None], np.fft.rfftfreq(80))
    middle = (frequency > 0.03) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[middle]), np.log(amplitude[middle]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_a_cut_cell_shows_a_quarter_in_a_corner(wrong):
    cells, pictures = wrong

    assert np.array_equal(pictures["cut"][:, :40, :40], cells[:, 40:, 40:])
    assert not pictures["cut"][:, 40:].any() and not pictures["cut"][:, :, 40:].any()


def test_a_zoomed_cell_fills_the_view_and_a_blurred_one_has_lost_its_texture(wrong):
    cells, pictures = wrong

    assert (cells[:, 0, 0] == 0).all() and (pictures["zoomed"][:, 0, 0] > 60).all()
    inner = np.s_[:, 32:48, 32:48]
    assert pictures["blurred"][inner].std() < cells[inner].std() / 4


def test_a_sample_of_a_folder_reaches_from_its_first_to_its_last_picture(tmp_path, tiny_release):
    preprocessing = load_release(tiny_release).preprocessing
    for i in range(11):
        Image.new("RGB", (60, 60), (i * 10, 0, 0)).save(tmp_path / f"{i:02}.png")

    sample = frame_sample(tmp_path, preprocessing, pictures=3)

    assert sample[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert len(frame_sample(tmp_path, preprocessing)) == 11


def test_a_folder_without_pictures_is_refused(tmp_path, tiny_release):
    with pytest.raises(LeukoscopeError) as error:
        frame_sample(tmp_path, load_release(tiny_release).preprocessing)
    assert str(error.value) == (f"{tmp_path}: holds no picture to check the input guard with; name another folder")


def test_real_cells_are_recognised_and_fields_of_view_are_not(real_data):
    cells, fields = real_data / "cnmc2019", real_data / "bccd"
    if not (cells / "samples-bmp").is_dir() or not fields.is_dir():
        pytest.skip("needs cnmc2019/C-NMC_Leukemia, cnmc2019/samples-bmp and bccd")
    from leukoscope.cells.images import open_image
    from leukoscope.cells.registry import find_cnmc_cells

    predictor = Predictor.from_pretrained(RELEASE)
    samples = sorted((cells / "samples-bmp").glob("*.bmp"))
    names = {path.stem for path in samples}
    found = [cell for cell in find_cnmc_cells(cells / "C-NMC_Leukemia") if cell.cell_id not in names]
    chosen = found[:: len(found) // 120]
    frame = predictor.release.preprocessing.frame
    pixels = np.stack([frame(open_image(cell.path)) for cell in chosen])

    guard, _ = fit_guard(pooled_features(load_release(RELEASE), pixels), [cell.subject for cell in chosen])

    predictor.guard = guard
    assert sum(bool(answer.recognised) for answer in predictor(samples)) >= len(samples) - 1
    assert not any(answer.recognised for answer in predictor(sorted(fields.rglob("*.jpg"))[:10]))
