"""Maps by covering: a value says how far a class's margin falls when its place is blurred."""

from __future__ import annotations

import numpy as np
import pytest

from leukoscope.inference.runtime import NetworkOutput
from research.covering import GRID, covered_copies, covering_maps, margins, touched_places

SIDE = 96


class BrightnessOfAPlace:
    """A network whose first class is as probable as one place is bright; it counts its batches."""

    def __init__(self, place: int) -> None:
        row, column = divmod(place, GRID)
        side = SIDE // GRID
        self.rows = slice(row * side, (row + 1) * side)
        self.columns = slice(column * side, (column + 1) * side)
        self.batches: list[int] = []

    def __call__(self, pixels: np.ndarray) -> NetworkOutput:
        self.batches.append(len(pixels))
        bright = pixels[:, self.rows, self.columns].mean(axis=(1, 2, 3)) / 255
        return NetworkOutput(np.stack([bright, -bright, -2 * bright - 1], axis=1).astype(np.float32))


def spot(place: int, *, background: int = 0) -> np.ndarray:
    """A picture that is white at one place."""
    pixels = np.full((SIDE, SIDE, 3), background, np.uint8)
    network = BrightnessOfAPlace(place)
    pixels[network.rows, network.columns] = 255
    return pixels


@pytest.mark.parametrize("place", [0, 27, 63])
def test_the_map_peaks_at_the_place_that_the_class_depends_on(place: int) -> None:
    network, pixels = BrightnessOfAPlace(place), spot(place, background=30)
    logits = network(pixels[None]).logits[0]

    maps = covering_maps(network, pixels, logits)  # type: ignore[arg-type]

    assert maps.shape == (3, GRID, GRID) and maps.dtype == np.float32 and maps.min() >= 0
    assert maps[0].argmax() == place
    (copy,) = covered_copies(pixels, np.array([place]))
    after = network(copy[None]).logits
    assert maps[0].max() == pytest.approx(float(margins(logits[None])[0, 0] - margins(after)[0, 0]), abs=1e-5)
    assert not maps[1].ravel()[place], "covering it speaks for the second class"


def test_only_places_that_touch_a_cell_on_black_cost_a_pass_and_all_places_of_a_smear_do() -> None:
    place = 27
    network, pixels = BrightnessOfAPlace(place), spot(place)

    covering_maps(network, pixels, np.zeros(3, np.float32))  # type: ignore[arg-type]
    assert touched_places(pixels).tolist() == [place] and network.batches == [1]

    smear = BrightnessOfAPlace(place)
    covering_maps(smear, spot(place, background=200), np.zeros(3, np.float32))  # type: ignore[arg-type]
    assert smear.batches == [1] * (GRID * GRID)
    assert len(touched_places(np.zeros((SIDE, SIDE, 3), np.uint8))) == GRID * GRID, "an empty picture has no cell"


def test_a_margin_is_what_a_logit_exceeds_the_largest_other_one_by() -> None:
    logits = np.array([[3.0, 1.0, 2.0], [0.0, 0.0, -1.0]], np.float32)
    assert margins(logits).tolist() == [[1.0, -2.0, -1.0], [0.0, 0.0, -1.0]]
    assert np.allclose(margins(logits / 2), margins(logits) / 2), "a new temperature scales maps and their scale alike"


def test_a_window_is_round_soft_and_leaves_distant_places_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    (copy,) = covered_copies(pixels, np.array([9]))
    change = np.abs(copy.astype(int) - pixels).sum(axis=2)
    assert not change[SIDE // 2 :, SIDE // 2 :].any()
    side = SIDE // GRID
    assert change[side : 2 * side, side : 2 * side].mean() > 3 * change[: side // 2, 3 * side : 4 * side].mean()
