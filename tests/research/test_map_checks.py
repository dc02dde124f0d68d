"""Checks of maps, on small networks whose true evidence is known, and on maps that lie about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.inference.runtime import TorchBackend
from leukoscope.models.metrics import Metrics
from leukoscope.models.weights import Release
from research import map_checks as checks

SIZE, GRID = 40, 5
PATCH = SIZE // GRID


class PatchNetwork(nn.Module):
    """Answers class 0 if and only if one 8×8 tile of the picture is bright; its map is that tile."""

    num_features = 1

    def __init__(self) -> None:
        super().__init__()
        self.body: nn.Module = nn.Conv2d(3, 1, PATCH, stride=PATCH)
        self.classifier = nn.Linear(1, 2)
        with torch.no_grad():
            self.get_parameter("body.weight").fill_(1 / (3 * PATCH**2))
            self.get_parameter("body.bias").fill_(-0.3)
            self.classifier.weight.copy_(torch.tensor([[250.0], [0.0]]))
            self.classifier.bias.copy_(torch.tensor([0.0, 3.0]))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).relu()

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(features.mean(dim=(2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class BlindMapNetwork(PatchNetwork):
    """Its map is the picture's brightness whatever its weights, as an edge detector's would be."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, PATCH).mean(dim=1, keepdim=True) + 0 * self.get_parameter("body.weight").sum()

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        seen = features.mean(dim=(2, 3)) * self.classifier.weight.square().sum()
        return torch.cat([seen, -seen], dim=1)


class TextureNetwork(PatchNetwork):
    """Sixteen random filters and a random head: every layer shapes the map."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, PATCH, stride=PATCH, bias=False), nn.BatchNorm2d(16))
        self.classifier = nn.Linear(16, 2)


def release(network: nn.Module) -> Release:
    preprocessing = Preprocessing(SIZE, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Release(("ALL", "HEM"), preprocessing, Metrics(), "toy", network=network.eval().requires_grad_(False))


def backend(network: nn.Module) -> TorchBackend:
    return TorchBackend(network, release(network).preprocessing)


def patched_pictures(number: int = 12, seed: int = 0) -> np.ndarray:
    """Dim noise with one bright tile away from the centre."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(9, 60, (number, SIZE, SIZE, 3), dtype=np.uint8)
    for picture in pictures:
        row, column = rng.choice([1, 3], size=2) * PATCH
        picture[row : row + PATCH, column : column + PATCH] = 255
    return pictures


def own_maps(network: nn.Module, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted class and its map."""
    probabilities, maps = checks.predict_with_maps(backend(network), pictures)
    predicted = probabilities.argmax(axis=1)
    return predicted, maps[np.arange(len(maps)), predicted]


def test_deletion_along_a_true_map_beats_random_and_central_maps_and_a_lie_does_not() -> None:
    network, pictures = PatchNetwork(), patched_pictures()
    predicted, own = own_maps(network, pictures)
    assert (predicted == 0).all(), "the planted tile decides"

    true = checks.deletion(backend(network), pictures, predicted, own, seed=0)
    lie = checks.deletion(backend(network), pictures, predicted, np.roll(own, (2, 2), axis=(1, 2)), seed=0)
    flat = checks.deletion(backend(network), pictures, predicted, np.ones_like(own), seed=0)

    assert true["gain_over_random"].mean() > 0.2 and true["map"].mean() < 0.25
    assert lie["gain_over_random"].mean() < 0
    assert np.isnan(flat["map"]).all(), "a flat map has no order to delete in"


def test_a_map_that_ignores_the_weights_survives_random_ones_and_a_learnt_one_does_not() -> None:
    pictures = np.random.default_rng(5).integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)

    def survives(network: nn.Module, layers: int) -> float:
        before = {name: value.clone() for name, value in network.state_dict().items()}
        predicted, own = own_maps(network, pictures)
        generator = torch.Generator().manual_seed(0)
        (random,) = checks._maps_of_random(
            release(network), checks.predict_with_maps, [pictures], predicted, layers, generator
        )
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        return float(np.nanmean(checks.rank_correlation(own, random)))

    assert survives(BlindMapNetwork(), 2) == pytest.approx(1)
    torch.manual_seed(0)
    assert survives(TextureNetwork(), 3) < 0.5


def test_a_map_that_follows_the_cell_is_consistent_at_30_degrees_and_one_that_stays_is_not() -> None:
    network, pictures = PatchNetwork(), patched_pictures()
    predicted, own = own_maps(network, pictures)
    every = np.arange(len(pictures))
    oblique = checks.predict_with_maps(backend(network), checks.rotated(pictures, checks.ANGLE))[1][every, predicted]

    follows = checks.consistency(own, oblique, SIZE)
    stays = checks.consistency(own, own, SIZE)

    assert np.nanmean(follows) > np.nanmean(stays) + 0.1
    assert checks.consistency(own, own, SIZE, angle=0) == pytest.approx(np.ones(len(own)))
    assert np.isnan(checks.consistency(np.zeros_like(own), own, SIZE)).all()


def test_every_cell_is_another_ones_other_cell() -> None:
    others = checks.other_cells(9, seed=1)
    assert sorted(others) == list(range(9)) and (others != np.arange(9)).all()


def test_enlarged_maps_are_bilinear_between_centres() -> None:
    assert checks.enlarged(np.array([[[0.0, 1.0], [0.0, 1.0]]]), 4)[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_the_blocks_hold_every_check_with_its_interval_and_plain_numbers() -> None:
    pictures, labels = patched_pictures(), np.array([0, 1] * 6)
    subjects = [f"s{i % 6}" for i in range(12)]

    blocks = checks.explanation_blocks(release(PatchNetwork()), pictures, labels, subjects, background="black")

    found, scale = blocks["heat_maps"], blocks["evidence_scale"]
    assert json.loads(json.dumps(blocks)) == blocks
    assert found["cells"] == 12 and found["subjects"] == 6
    assert found["rotation"].keys() == {"correlation", "untrained", "another_cell", "silhouette"}
    gain = found["deletion"]["gain_over_random"]
    assert gain["low"] < gain["mean"] < gain["high"]
    assert scale["p05"] <= scale["median"] <= scale["p95"]
    with pytest.raises(LeukoscopeError, match=r"1 cell\(s\) to check of 1 given; give 2 or more"):
        checks.explanation_blocks(release(PatchNetwork()), pictures[:1], labels[:1], ["a"], background="black")


@pytest.mark.parametrize(
    ("own", "untrained", "gain", "passed"),
    [(0.8, 0.5, 0.1, True), (0.5, 0.1, 0.1, False), (0.8, 0.78, 0.1, False), (0.8, 0.5, -0.1, False)],
)
def test_maps_pass_where_they_turn_with_the_cell_beyond_chance_and_mark_what_counts(
    own: float, untrained: float, gain: float, passed: bool
) -> None:
    def around(mean: float) -> dict[str, Any]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}

    rotation = {"correlation": around(own), "untrained": around(untrained)}
    block = {"rotation": rotation, "deletion": {"gain_over_random": around(gain)}}
    assert checks.passes_map_checks(block) is passed


def test_a_release_says_whether_its_maps_passed() -> None:
    for metrics in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"):
        block = json.loads(metrics.read_text())["heat_maps"]
        assert block["passed"] == checks.passes_map_checks(block), metrics
