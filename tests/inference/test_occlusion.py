"""Maps by covering: a value says how far a class's margin falls when its place is blurred."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope import LeukoscopeError, Predictor
from leukoscope.data.images import UnreadableImage
from leukoscope.inference.occlusion import GRID, covered_copies, covering_maps, margins, touched_places
from leukoscope.inference.runtime import NetworkOutput
from leukoscope.models.map_check import EVIDENCE_METHOD, OCCLUSION_METHOD
from leukoscope.models.release import METRICS_FILE, read_release
from leukoscope.synthetic import draw_cell

SIDE = 96
CELL = draw_cell("ALL", subject=3).image
PASSED = {"method": OCCLUSION_METHOD, "passed": True, "deletion": {"gain_over_random": {"mean": 0.16}}}
SCALE = {"method": OCCLUSION_METHOD, "p05": 0.1, "median": 0.5, "p95": 2.5}


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
    steps: list[tuple[int, int]] = []

    covering_maps(network, pixels, np.zeros(3, np.float32), progress=lambda *step: steps.append(step))  # type: ignore[arg-type]
    assert touched_places(pixels).tolist() == [place] and network.batches == [1] and steps == [(1, 1)]

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


@pytest.fixture
def passed(tiny_release: Path, tmp_path: Path) -> Path:
    """A release whose maps by covering passed their checks, and whose Grad-CAM maps failed them."""
    release = shutil.copytree(tiny_release, tmp_path / "passed")
    blocks = {
        "heat_maps": {"method": EVIDENCE_METHOD, "passed": False},
        "occlusion_maps": PASSED,
        "occlusion_scale": SCALE,
    }
    metrics = json.loads((release / METRICS_FILE).read_text())
    (release / METRICS_FILE).write_text(json.dumps(metrics | blocks))
    return release


def test_a_release_whose_maps_by_covering_alone_passed_shows_these_and_grad_cam_on_request(passed: Path) -> None:
    predictor = Predictor.from_pretrained(passed)

    own = predictor(CELL, explain=True)
    grad_cam = predictor(CELL, explain=True, method=EVIDENCE_METHOD)

    assert predictor.release.map_method == own.map_check.method == OCCLUSION_METHOD
    assert own.maps_passed is True and own.peak == own.map_check.strong == 2.5
    assert own.map_check.text == (
        "This model's maps by covering passed our checks. Removing what they mark leaves the class's probability 0.16 "
        "lower than removing random pixels."
    )
    assert own.heatmaps is not None and grad_cam.heatmaps is not None
    assert {heat.evidence.shape for heat in own.heatmaps.values()} == {(GRID, GRID)}
    assert grad_cam.maps_passed is False and grad_cam.map_check.method == EVIDENCE_METHOD
    assert own.decision == grad_cam.decision and own.views == grad_cam.views, "a map changes nothing else"
    assert own.overlay().size == grad_cam.overlay().size and own.overlay() != grad_cam.overlay()


def test_a_prediction_gets_maps_by_covering_later_with_progress(passed: Path) -> None:
    predictor = Predictor.from_pretrained(passed)
    plain, first = predictor(CELL), predictor(CELL, explain=True, method=EVIDENCE_METHOD)
    steps: list[tuple[int, int]] = []

    later = predictor.map_by_covering(first, progress=lambda *step: steps.append(step))

    assert not isinstance(later, UnreadableImage)
    own = predictor(CELL, explain=True)
    assert later.heatmaps is not None and own.heatmaps is not None
    for label, heat in own.heatmaps.items():
        np.testing.assert_allclose(later.heatmaps[label].evidence, heat.evidence, atol=1e-5)
    places = len(touched_places(predictor.release.preprocessing.frame(first.picture)))
    assert steps[-1] == (places, places) and len(steps) == places
    with pytest.raises(LeukoscopeError, match="has no picture to cover; predict it with explain=True"):
        predictor.map_by_covering(plain)


def test_a_network_without_grad_cam_maps_has_maps_by_covering(vit_release: Path) -> None:
    predictor = Predictor.from_pretrained(vit_release)
    assert predictor(CELL, explain=True).heatmaps is None
    assert predictor(CELL, explain=True, method=OCCLUSION_METHOD).heatmaps is not None
    with pytest.raises(LeukoscopeError, match="method 'gradcam': unknown; choose one of evidence, occlusion"):
        predictor(CELL, explain=True, method="gradcam")


@pytest.mark.parametrize(
    ("one_pass", "by_covering", "method"),
    [
        (True, True, EVIDENCE_METHOD),
        (False, True, OCCLUSION_METHOD),
        (None, True, OCCLUSION_METHOD),
        (False, False, EVIDENCE_METHOD),
    ],
)
def test_the_maps_of_a_release_are_those_that_passed(
    passed: Path, one_pass: bool | None, by_covering: bool, method: str
) -> None:
    metrics: dict[str, Any] = json.loads((passed / METRICS_FILE).read_text())
    metrics["heat_maps"]["passed"] = one_pass
    metrics["occlusion_maps"]["passed"] = by_covering
    (passed / METRICS_FILE).write_text(json.dumps(metrics))
    about = read_release(passed)
    assert about.map_method == method
    assert about.maps_passed is (one_pass if method == EVIDENCE_METHOD else by_covering)
