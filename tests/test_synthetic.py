"""The phantoms must be reproducible, native in look, and neither trivial nor impossible to tell apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope.data.registry import DATASETS
from leukoscope.synthetic import PHANTOM_LABELS, Background, PhantomCell, draw_cell, phantom_cells


def cell_mask(image: np.ndarray) -> np.ndarray:
    return image.max(axis=-1) > 8


def mean_colour(cell: PhantomCell) -> np.ndarray:
    return cell.image[cell_mask(cell.image)].mean(axis=0)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    wins = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    return float(wins.mean())


@pytest.fixture(scope="module")
def cohort() -> list[PhantomCell]:
    return list(phantom_cells(subjects_per_class=24, cells_per_subject=5, size=64))


@pytest.fixture(scope="module")
def native_cells() -> list[PhantomCell]:
    return list(phantom_cells(subjects_per_class=12, cells_per_subject=2))


def by_label(cells: list[PhantomCell], measure: Callable[[PhantomCell], Any]) -> dict[str, np.ndarray]:
    return {label: np.array([measure(c) for c in cells if c.label == label]) for label in PHANTOM_LABELS}


@pytest.mark.parametrize("background", ["black", "smear"])
def test_same_arguments_give_the_same_pixels_in_any_order(background: Background) -> None:
    wanted = [("ALL", 0, 0), ("HEM", 3, 1), ("ALL", 2, 5)]

    def draw(key: tuple[str, int, int]) -> np.ndarray:
        return draw_cell(key[0], subject=key[1], cell=key[2], size=96, background=background, seed=4).image

    forwards = {key: draw(key) for key in wanted}
    for key in reversed(wanted):
        assert np.array_equal(draw(key), forwards[key])


def test_iterating_gives_the_cells_that_draw_cell_gives() -> None:
    frame: dict[str, Any] = {"size": 64, "background": "smear", "seed": 3}
    cells = list(phantom_cells(subjects_per_class=2, cells_per_subject=2, **frame))
    last = draw_cell("HEM", subject=1, cell=1, **frame)
    assert np.array_equal(cells[-1].image, last.image)
    assert (cells[-1].label, cells[-1].subject, cells[-1].cell_id) == (last.label, last.subject, last.cell_id)


def test_every_argument_that_names_a_cell_changes_the_picture() -> None:
    base = draw_cell("ALL", size=64).image
    others = [
        draw_cell("HEM", size=64),
        draw_cell("ALL", subject=1, size=64),
        draw_cell("ALL", cell=1, size=64),
        draw_cell("ALL", seed=1, size=64),
    ]
    assert all(not np.array_equal(base, other.image) for other in others)


def test_a_set_is_balanced_and_its_names_are_unique() -> None:
    cells = list(phantom_cells(subjects_per_class=3, cells_per_subject=4, size=32))
    subjects = defaultdict(list)
    for cell in cells:
        subjects[cell.subject].append(cell)
    assert len({cell.cell_id for cell in cells}) == len(cells) == 24
    assert [len(group) for group in subjects.values()] == [4] * 6
    assert all(len({cell.label for cell in group}) == 1 for group in subjects.values())
    assert (cells[0].subject, cells[1].cell_id) == ("phantom-all-00", "phantom-all-00_001")
    assert [cell.label for cell in cells] == ["ALL"] * 12 + ["HEM"] * 12


@pytest.mark.parametrize("size", [32, 128, 301])
def test_image_is_square_rgb_uint8(size: int) -> None:
    image = draw_cell("HEM", size=size).image
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("label", PHANTOM_LABELS)
@pytest.mark.parametrize("background", ["black", "smear"])
def test_another_size_is_the_same_picture_scaled(label: str, background: Background) -> None:
    native = draw_cell(label, subject=2, cell=3, background=background).image
    small = draw_cell(label, subject=2, cell=3, size=128, background=background).image
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


def test_blasts_are_larger_but_the_sizes_overlap(cohort: list[PhantomCell]) -> None:
    area = by_label(cohort, lambda cell: cell_mask(cell.image).sum())
    assert np.median(area["ALL"]) > 1.15 * np.median(area["HEM"])
    assert 0.65 < auc(area["ALL"], area["HEM"]) < 0.95


def test_native_cells_have_the_size_of_real_ones(native_cells: list[PhantomCell]) -> None:
    """Median bounding boxes of C-NMC 2019 training folds: ALL 46,000-49,500, HEM 31,000-36,000 px²."""

    def box(cell: PhantomCell) -> int:
        rows, columns = np.nonzero(cell_mask(cell.image))
        return int(np.ptp(rows) * np.ptp(columns))

    boxes = by_label(native_cells, box)
    assert 42_000 < np.median(boxes["ALL"]) < 54_000
    assert 28_000 < np.median(boxes["HEM"]) < 40_000


def test_colour_alone_does_not_give_the_class_away(cohort: list[PhantomCell]) -> None:
    colour = by_label(cohort, mean_colour)
    for channel in range(3):
        assert 0.3 < auc(colour["ALL"][:, channel], colour["HEM"][:, channel]) < 0.7


def test_normal_chromatin_is_coarser_than_that_of_blasts(native_cells: list[PhantomCell]) -> None:
    """Neighbouring pixels differ less, relative to the whole contrast, the coarser the texture is."""

    def fineness(cell: PhantomCell) -> float:
        centre = cell.image[185:265, 185:265, 1].astype(float)
        return np.diff(centre, axis=1).std() / centre.std()

    fine = by_label(native_cells, fineness)
    assert 0.6 < auc(fine["ALL"], fine["HEM"]) < 0.99


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


def test_phantoms_have_the_classes_that_their_data_set_names() -> None:
    assert DATASETS["phantoms"].labels == PHANTOM_LABELS
