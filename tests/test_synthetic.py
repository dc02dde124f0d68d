"""The phantoms must be reproducible, native in look, and neither trivial nor impossible to tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from leukoscope.data.registry import DATASETS
from leukoscope.data.smear import looks_like_smear
from leukoscope.synthetic import (
    PHANTOM_LABELS,
    SMEAR_LABELS,
    Background,
    PhantomCell,
    draw_cell,
    draw_smear,
    phantom_cells,
    smear_picture,
)


def cell_mask(image: np.ndarray) -> np.ndarray:
    return image.max(axis=-1) > 8


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    wins = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    return float(wins.mean())


@pytest.fixture(scope="module")
def cohort() -> list[PhantomCell]:
    return list(phantom_cells(subjects_per_class=24, cells_per_subject=5, size=64))


def by_label(cells: list[PhantomCell], measure: Callable[[PhantomCell], Any]) -> dict[str, np.ndarray]:
    return {label: np.array([measure(c) for c in cells if c.label == label]) for label in PHANTOM_LABELS}


@pytest.mark.parametrize("background", ["black", "smear"])
def test_same_arguments_give_the_same_pixels_in_any_order(background: Background) -> None:
    wanted = [("ALL", 0, 0), ("HEM", 3, 1), ("ALL", 2, 5)]
    forwards, backwards = (
        [draw_cell(label, subject=s, cell=c, size=96, background=background, seed=4).image for label, s, c in keys]
        for keys in (wanted, wanted[::-1])
    )
    assert np.array_equal(forwards, backwards[::-1])


def test_a_set_is_balanced_its_names_are_unique_and_its_cells_those_of_draw_cell() -> None:
    frame: dict[str, Any] = {"size": 32, "background": "smear", "seed": 3}
    cells = list(phantom_cells(subjects_per_class=3, cells_per_subject=4, **frame))
    assert Counter((cell.label, cell.subject) for cell in cells) == {
        (label, f"phantom-{label.lower()}-0{number}"): 4 for label in PHANTOM_LABELS for number in range(3)
    }
    assert len({cell.cell_id for cell in cells}) == len(cells) == 24
    assert (cells[0].subject, cells[1].cell_id) == ("phantom-all-00", "phantom-all-00_001")
    last = draw_cell("HEM", subject=2, cell=3, **frame)
    assert np.array_equal(cells[-1].image, last.image)
    assert (cells[-1].label, cells[-1].subject, cells[-1].cell_id) == (last.label, last.subject, last.cell_id)


@pytest.mark.parametrize("label", PHANTOM_LABELS)
@pytest.mark.parametrize("background", ["black", "smear"])
def test_another_size_is_the_same_picture_scaled(label: str, background: Background) -> None:
    native = draw_cell(label, subject=2, cell=3, background=background).image
    small = draw_cell(label, subject=2, cell=3, size=128, background=background).image
    assert small.shape == (128, 128, 3) and small.dtype == np.uint8
    shrunk = np.asarray(Image.fromarray(native).resize((128, 128), Image.Resampling.BOX))
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.995
    inside = cell_mask(draw_cell(label, subject=2, cell=3, size=128).image)
    inside &= np.roll(inside, 6, 0) & np.roll(inside, -6, 0) & np.roll(inside, 6, 1) & np.roll(inside, -6, 1)
    assert np.corrcoef(shrunk[inside][:, 0], small[inside][:, 0])[0, 1] > 0.97  # the chromatin, too


def test_black_background_is_exactly_zero_round_the_cell(cohort: list[PhantomCell]) -> None:
    for cell in cohort:
        frame = cell.image.copy()
        frame[1:-1, 1:-1] = 0
        assert not frame.any(), f"{cell.cell_id} touches the edge of its frame"
        assert 0.03 < cell_mask(cell.image).mean() < 0.45


def test_smear_has_no_black_and_no_cut_out_edge() -> None:
    for label in PHANTOM_LABELS:
        image = draw_cell(label, background="smear").image.astype(int)
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() > 100
        assert image.max(axis=-1).min() > 40
        cut_out = draw_cell(label).image.astype(int)
        assert np.abs(np.diff(image, axis=1)).max() < 30 < np.abs(np.diff(cut_out, axis=1)).max()


def test_blasts_are_larger_but_the_sizes_overlap_and_the_colours_are_alike(cohort: list[PhantomCell]) -> None:
    area = by_label(cohort, lambda cell: cell_mask(cell.image).sum())
    assert np.median(area["ALL"]) > 1.15 * np.median(area["HEM"])
    assert 0.65 < auc(area["ALL"], area["HEM"]) < 0.95
    colour = by_label(cohort, lambda cell: cell.image[cell_mask(cell.image)].mean(axis=0))
    assert all(0.3 < auc(colour["ALL"][:, channel], colour["HEM"][:, channel]) < 0.7 for channel in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "all"}, "not in tuple"),
        ({"size": 31}, "size 31, background 'black': draw 32 px or more on one of black, smear"),
        ({"subject": -1}, "non-negative"),
        ({"cell": -2}, "non-negative"),
        ({"seed": -5}, "non-negative"),
        ({"background": "white"}, "background 'white': draw 32 px or more on one of black, smear"),
    ],
)
def test_a_wrong_argument_is_named_with_its_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_cell(**{"label": "ALL", **arguments})


# Smears


def test_synthetic_pictures_have_the_classes_of_their_data_sets_and_read_as_smears_where_they_are() -> None:
    assert DATASETS["phantoms"].labels == PHANTOM_LABELS
    assert DATASETS["ball4"].labels == SMEAR_LABELS
    drawn = [smear_picture(label, row) for label in SMEAR_LABELS for row in range(5)]
    drawn.append(draw_cell("ALL", background="smear").image)
    assert all(looks_like_smear(Image.fromarray(image)) for image in drawn)
    assert not looks_like_smear(Image.fromarray(draw_cell("ALL").image))


def test_what_shows_no_nuclear_stain_is_no_smear() -> None:
    page = np.full((300, 400, 3), 250, np.uint8)
    text = page.copy()
    text[20:280:20, 30:370] = 40
    rng = np.random.default_rng(0)
    meadow = np.zeros((300, 400, 3), np.float32)  # below a sky: pale, coloured, and nothing of the stain of a nucleus
    meadow[:150] = np.linspace((150, 190, 235), (220, 230, 240), 150)[:, None]
    meadow[150:] = np.linspace((150, 190, 120), (90, 140, 60), 150)[:, None]
    meadow = (meadow + rng.normal(0, 6, meadow.shape)).clip(0, 255).astype(np.uint8)
    noise, plasma = rng.integers(0, 90, (64, 64, 3), np.uint8), np.full((300, 400, 3), (236, 220, 217), np.uint8)
    assert not any(looks_like_smear(Image.fromarray(one)) for one in (page, text, meadow, noise, plasma))


def test_equal_arguments_give_equal_fields_whose_truth_names_each_cell_once_and_lies_on_dark_pixels() -> None:
    field, again, other = (
        draw_smear(("ALL", "HEM", "ALL"), size=(360, 480), um_per_pixel=0.2, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(field.image, again.image) and np.array_equal(field.labels, again.labels)
    assert not np.array_equal(field.image, other.image)
    assert sorted(set(np.unique(field.labels)) - {0}) == [1, 2, 3]
    assert ndimage.label(field.labels)[1] == len(field.classes) == 3
    brightness = field.image.mean(axis=-1)
    assert brightness[field.labels > 0].mean() < brightness[field.labels == 0].mean() - 60


def test_refuses_more_cells_than_fit_and_scales_too_coarse_for_one() -> None:
    with pytest.raises(ValueError, match="30 cells do not fit into 200×200 pixels"):
        draw_smear(("ALL",) * 30, size=(200, 200), um_per_pixel=0.3)
    with pytest.raises(ValueError, match="size 18, background 'black': draw 32 px or more"):
        draw_smear(um_per_pixel=1.5)
