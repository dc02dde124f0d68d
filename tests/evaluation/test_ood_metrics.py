"""The detector's metrics must be those of a constructed case, and its wrong pictures what their names say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukoscope import LeukoscopeError, Predictor
from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import open_image
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import NOT_A_CELL, OUT_OF_DISTRIBUTION, find_cnmc_cells
from leukoscope.evaluation.ood_metrics import (
    FROM_ELSEWHERE,
    KINDS,
    fit_and_measure_detector,
    frame_sample,
    healthy_outcomes,
    ood_block,
    unsuitable_images,
    white_cell_sources,
)
from leukoscope.inference.ood import STATISTICS, OodDetector, fit_detector, picture_statistics
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.models.release import OOD
from leukoscope.synthetic import Background, draw_cell, draw_field, phantom_cells

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
PREPROCESSING = Preprocessing(96, 350 / 450)

Phantoms = tuple[np.ndarray, list[str]]  # framed, and their subjects
Wrong = tuple[np.ndarray, dict[str, np.ndarray]]  # cells, and pictures made of them


@pytest.fixture
def detector() -> OodDetector:
    values = (np.zeros(STATISTICS), np.ones(STATISTICS), np.eye(STATISTICS), 2.5)
    return OodDetector(*(np.asarray(value, np.float32) for value in values))


def test_metrics_are_those_of_a_constructed_case(detector: OodDetector) -> None:
    held_out = np.array([0.5, 0.6, 0.7, 0.8, 0.5, 1.1, 0.9, 1.2])
    subjects = ["a"] * 4 + ["b"] * 2 + ["c"] * 2

    block = ood_block(detector, held_out, subjects, {"blank": np.array([3.0, 4, 5, 1.0]), "inverted": held_out})

    assert block["held_out"] == {
        "cells": 8,
        "subjects": 3,
        "folds": 3,
        "kept_share": 0.75,
        "kept_share_by_subject": pytest.approx((1 + 0.5 + 0.5) / 3),
        "worst_subject": {"subject": "b", "cells": 2, "kept_share": 0.5},
    }
    # Of 32 pairs of a true cell and a grey picture, the two refused cells lie above the picture at 1.0.
    assert block["kinds"]["blank"] == {
        "shows": KINDS["blank"],
        "to_be_refused": True,
        "pictures": 4,
        "auroc": 30 / 32,
        "refused_share": 0.75,
        "least_score": 1.0,
    }
    assert (block["kinds"]["inverted"]["auroc"], block["kinds"]["inverted"]["refused_share"]) == (0.5, 0.25)
    assert (block["distance_limit"], block["wanted_kept_share"]) == (2.5, 0.98)


def test_what_was_not_measured_is_said(detector: OodDetector) -> None:
    block = ood_block(detector, np.array([0.5, 0.4]), ["a", "b"], {"blank": np.array([2.0])})

    assert list(block["kinds"]) == ["blank"]
    assert block["not_measured"] == [what for kind, what in KINDS.items() if kind != "blank"]


def test_of_equally_bad_subjects_the_one_with_more_cells_is_the_worst(detector: OodDetector) -> None:
    held_out = np.array([2.0, 0.5, 0.5, 0.5, 2, 2])

    block = ood_block(detector, held_out, ["few", "few", "many", "many", "many", "many"], {})

    assert block["held_out"]["worst_subject"] == {"subject": "many", "cells": 4, "kept_share": 0.5}


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    drawn = list(phantom_cells(subjects_per_class=3, cells_per_subject=10, seed=5))
    framed = [PREPROCESSING.frame(Image.fromarray(phantom.image)) for phantom in drawn]
    return np.stack(framed), [phantom.subject for phantom in drawn]


def test_cells_give_a_detector_and_its_metrics(phantoms: Phantoms) -> None:
    pixels, subjects = phantoms

    detector, block = fit_and_measure_detector(
        PREPROCESSING, pixels, subjects, background="black", others={"fields": 255 - pixels[:5]}, sample=12
    )

    fitted, held_out = fit_detector(np.stack([picture_statistics(cell) for cell in pixels]), subjects)
    assert np.array_equal(detector.scores(pixels), fitted.scores(pixels))
    assert json.loads(json.dumps(block)) == block, "plain numbers only"
    assert block["distance_limit"] == float(fitted.limit)
    assert block["held_out"]["kept_share"] == (held_out <= 1).mean() < 0.98
    assert list(block["kinds"]) == [kind for kind in KINDS if kind != "other_data_set"]
    assert block["not_measured"] == [FROM_ELSEWHERE["other_data_set"]]
    assert (block["kinds"]["fields"]["pictures"], block["kinds"]["inverted"]["pictures"]) == (5, 12)
    for kind in ("fields", "blank", "noise", "inverted"):
        metrics = block["kinds"][kind]
        assert metrics["auroc"] == metrics["refused_share"] == 1.0 and metrics["least_score"] > 1
    assert [kind for kind, what in block["kinds"].items() if not what["to_be_refused"]] == ["phantoms"]
    assert "not fitted on" in block["estimates"]


def test_the_sample_of_unsuitable_images_is_drawn_by_the_seed(phantoms: Phantoms) -> None:
    one, again, other = (
        fit_and_measure_detector(PREPROCESSING, *phantoms, background="black", sample=3, seed=seed)[1]["kinds"]
        for seed in (1, 1, 2)
    )

    assert one == again
    assert one["inverted"]["least_score"] != other["inverted"]["least_score"]


def test_an_unknown_kind_of_picture_is_refused_before_any_work() -> None:
    with pytest.raises(LeukoscopeError) as error:
        fit_and_measure_detector(
            PREPROCESSING, np.zeros((0, 96, 96, 3), np.uint8), [], background="black",
            others={"cats": np.zeros((1, 96, 96, 3), np.uint8)},
        )  # fmt: skip
    assert str(error.value) == "OOD check 'cats': unknown kind; give fields or other_data_set"


@pytest.fixture(scope="module")
def wrong() -> Wrong:
    """Three round cells on black and what is made from them."""
    y, x = np.mgrid[:80, :80] - 39.5
    disc = (np.hypot(y, x) < 25)[None, :, :, None]
    texture = np.random.default_rng(1).integers(100, 200, (3, 80, 80, 3))
    cells = (disc * texture).astype(np.uint8)
    return cells, unsuitable_images(cells, np.random.default_rng(0))


def test_every_wrong_picture_is_of_the_networks_size(wrong: Wrong) -> None:
    cells, pictures = wrong

    assert all(p.shape[1:] == cells.shape[1:] and p.dtype == np.uint8 for p in pictures.values())
    assert set(pictures) == KINDS.keys() - FROM_ELSEWHERE.keys() - {"phantoms"}


def test_blank_pictures_run_from_black_to_white(wrong: Wrong) -> None:
    _, pictures = wrong

    levels = pictures["blank"].reshape(len(pictures["blank"]), -1)
    assert (levels.min(axis=1) == levels.max(axis=1)).all()
    assert (levels[0, 0], levels[-1, 0]) == (0, 255)


def test_noise_falls_off_as_in_natural_pictures() -> None:
    pictures = unsuitable_images(np.zeros((100, 80, 80, 3), np.uint8), np.random.default_rng(0))["noise"]

    amplitude = np.abs(np.fft.rfft2(pictures.astype(float), axes=(1, 2))).mean(axis=(0, 3))
    frequency = np.hypot(np.fft.fftfreq(80)[:, None], np.fft.rfftfreq(80))
    middle = (frequency > 0.03) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[middle]), np.log(amplitude[middle]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_a_cut_cell_shows_a_quarter_in_a_corner(wrong: Wrong) -> None:
    cells, pictures = wrong

    assert np.array_equal(pictures["cut"][:, :40, :40], cells[:, 40:, 40:])
    assert not pictures["cut"][:, 40:].any() and not pictures["cut"][:, :, 40:].any()


def test_a_zoomed_cell_fills_the_view_and_a_blurred_one_has_lost_its_texture(wrong: Wrong) -> None:
    cells, pictures = wrong

    assert (cells[:, 0, 0] == 0).all() and (pictures["zoomed"][:, 0, 0] > 60).all()
    inner = np.s_[:, 32:48, 32:48]
    assert pictures["blurred"][inner].std() < cells[inner].std() / 4


def test_a_sample_of_a_folder_reaches_from_its_first_to_its_last_picture(tmp_path: Path) -> None:
    for i in range(11):
        Image.new("RGB", (60, 60), (i * 10, 0, 0)).save(tmp_path / f"{i:02}.png")

    sample = frame_sample(tmp_path, PREPROCESSING, pictures=3)

    assert sample[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert len(frame_sample(tmp_path, PREPROCESSING)) == 11


def test_a_folder_without_pictures_is_refused(tmp_path: Path, tiny_release: Path) -> None:
    said = f"{tmp_path}: holds no picture to check the OOD detector with; name another folder"

    with pytest.raises(LeukoscopeError) as error:
        frame_sample(tmp_path, PREPROCESSING)
    assert str(error.value) == said
    with pytest.raises(LeukoscopeError) as error:
        healthy_outcomes(Predictor.from_pretrained(tiny_release), tmp_path)
    assert str(error.value) == said


# White cells of healthy donors


@pytest.fixture
def predictor(tiny_release: Path, phantoms: Phantoms, tmp_path: Path) -> Predictor:
    """The tiny release with a detector of phantoms."""
    folder = shutil.copytree(tiny_release, tmp_path / "release")
    pixels, subjects = phantoms
    fit_detector(np.stack([picture_statistics(cell) for cell in pixels]), subjects)[0].save(folder / OOD)
    return Predictor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("data", "sources"),
    [
        ("cnmc2019", ["white cells", "white cells of fields"]),
        ("ball4", ["white cells"]),
        ("imagefolder", ["white cells"]),
    ],
)
def test_fields_are_a_source_of_white_cells_for_a_release_of_cut_out_cells_alone(
    predictor: Predictor, tmp_path: Path, data: str, sources: list[str]
) -> None:
    release = replace(predictor.release, metrics={"data": {"name": data}})

    assert list(white_cell_sources(release, tmp_path, tmp_path)) == sources
    assert white_cell_sources(release, None, None) == {}


def test_outcomes_of_pictures_are_counted_by_the_folder_they_lie_in(predictor: Predictor, tmp_path: Path) -> None:
    drawn_on: dict[str, Background] = {"lymphocyte": "black", "monocyte": "smear"}
    for kind, background in drawn_on.items():
        (tmp_path / "healthy" / kind).mkdir(parents=True)
        for cell in range(5):
            drawn = draw_cell("HEM", subject=1, cell=cell, background=background).image
            Image.fromarray(drawn).save(tmp_path / "healthy" / kind / f"{cell}.png")

    found = healthy_outcomes(predictor, tmp_path / "healthy", pictures=4)

    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"lymphocyte", "monocyte"}
    for kind, metrics in found.items():
        chosen = [tmp_path / "healthy" / kind / f"{cell}.png" for cell in (0, 1, 3, 4)]
        said = predictor(chosen)
        assert (metrics["pictures"], metrics["cells"]) == (4, 4)
        assert list(metrics["outcomes"]) == ["ALL", "HEM", *WITHOUT_CLASS]
        for outcome, count in metrics["outcomes"].items():
            assert count == sum(one.outcome == outcome for one in said)
        assert metrics["most_probable"] == {
            label: sum(one.most_probable == label for one in said) for label in ("ALL", "HEM")
        }
    assert found["monocyte"]["outcomes"][OUT_OF_DISTRIBUTION] == 4
    assert found["lymphocyte"]["outcomes"][OUT_OF_DISTRIBUTION] < 4


def test_a_release_of_cut_out_cells_is_predicted_the_cells_that_are_found(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "healthy" / "Neutrophils"
    folder.mkdir(parents=True)
    field = Image.fromarray(draw_field(("HEM",) * 4, size=(300, 380), um_per_pixel=0.2).image)
    field.save(folder / "a.png")
    field.convert("L").save(folder / "grey.png")  # no smear can be read in it, and none is asked about
    Image.new("RGB", (200, 200), (236, 220, 217)).save(folder / "empty.png")
    predictor.release = replace(predictor.release, metrics={**predictor.release.metrics, "data": {"name": "cnmc2019"}})

    found = healthy_outcomes(predictor, tmp_path / "healthy")["Neutrophils"]

    assert (found["pictures"], found["cells"]) == (3, 4)
    assert sum(found["outcomes"].values()) == sum(found["most_probable"].values()) == 4
    assert found["outcomes"][NOT_A_CELL] == 0, "cut out, none of them is a smear"


@pytest.mark.slow
def test_real_cells_get_a_class_and_fields_of_view_none(real_data: Path) -> None:
    cells, fields = real_data / "cnmc2019", real_data / "bccd"
    if not (cells / "samples-bmp").is_dir() or not fields.is_dir():
        pytest.skip("needs cnmc2019/C-NMC_Leukemia, cnmc2019/samples-bmp and bccd")
    predictor = Predictor.from_pretrained(RELEASE)
    samples = sorted((cells / "samples-bmp").glob("*.bmp"))
    names = {path.stem for path in samples}
    found = [cell for cell in find_cnmc_cells(ImageFolder.read(cells / "C-NMC_Leukemia")) if cell.cell_id not in names]
    chosen = found[:: len(found) // 120]
    frame = predictor.release.preprocessing.frame
    pixels = np.stack([frame(open_image(cell.path)) for cell in chosen])

    predictor.ood, block = fit_and_measure_detector(
        predictor.release.preprocessing,
        pixels,
        [cell.subject for cell in chosen],
        background="black",
        others={"fields": frame_sample(fields, predictor.release.preprocessing, pictures=10)},
        sample=40,
    )

    refused = (OUT_OF_DISTRIBUTION, NOT_A_CELL)
    assert sum(answer.outcome not in refused for answer in predictor(samples)) >= len(samples) - 1
    assert {answer.outcome for answer in predictor(sorted(fields.rglob("*.jpg"))[:10])} == {NOT_A_CELL}
    assert all(kind["refused_share"] > 0.9 for kind in block["kinds"].values() if kind["to_be_refused"])
