"""Checks of heat maps, on small networks whose true evidence is known, and on maps that lie about it."""

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
from leukoscope.data.images import open_image
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation import explanation_metrics as checks
from leukoscope.evaluation.explanation_metrics import (
    cell_masks,
    enlarged,
    heat_share,
    is_flat,
    rank_correlation,
    scale_bar_corner,
)
from leukoscope.evaluation.predictions import even_sample
from leukoscope.inference.backends import TorchBackend
from leukoscope.inference.gradcam import share_on_cell
from leukoscope.inference.prediction import passes_map_checks
from leukoscope.models.weights import Release

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


class LyingNetwork(PatchNetwork):
    """Gives the same predictions for the same reason, but its map shows another place."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward_features(x).roll((2, 2), dims=(2, 3))


class BlindMapNetwork(PatchNetwork):
    """Its map is the picture's brightness whatever its weights, as an edge detector's would be."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, PATCH).mean(dim=1, keepdim=True) + 0 * self.get_parameter("body.weight").sum()

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        seen = features.mean(dim=(2, 3)) * self.classifier.weight.square().sum()
        return torch.cat([seen, -seen], dim=1)


class PositiveHeadNetwork(PatchNetwork):
    """Only its first layer, a random filter, shapes the map: any head counts it as evidence for class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 1, PATCH, stride=PATCH, bias=False)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x - 0.5).exp()

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3)) * self.classifier.weight.square().sum() * torch.tensor([1.0, 0.0])


class TextureNetwork(PatchNetwork):
    """Sixteen random filters and a random head: every layer shapes the map."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, PATCH, stride=PATCH, bias=False), nn.BatchNorm2d(16))
        self.classifier = nn.Linear(16, 2)


class OneSidedNetwork(PatchNetwork):
    """Sees the left half only."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        features = super().forward_features(x).clone()
        features[..., GRID // 2 :] = 0
        return features


def release(network: nn.Module) -> Release:
    preprocessing = Preprocessing(SIZE, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Release(("ALL", "HEM"), preprocessing, {}, "toy", network=network.eval().requires_grad_(False))


def backend(network: nn.Module) -> TorchBackend:
    return TorchBackend(network, release(network).preprocessing)


def patched_pictures(number: int = 12, seed: int = 0) -> np.ndarray:
    """Dim noise with one bright tile away from the centre."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(9, 60, (number, SIZE, SIZE, 3), dtype=np.uint8)
    for picture in pictures:
        row, column = rng.choice([0, 1, 3, 4], size=2) * PATCH
        picture[row : row + PATCH, column : column + PATCH] = 255
    return pictures


def noise_pictures(number: int = 24) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (number, SIZE, SIZE, 3), dtype=np.uint8)


def own_maps(network: nn.Module, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ModelPredictions class, its map, and all probabilities."""
    probabilities, maps = checks.predict_with_maps(backend(network), pictures)
    predicted = probabilities.argmax(axis=1)
    return predicted, maps[np.arange(len(maps)), predicted], probabilities


def perturbed(network: nn.Module) -> dict[str, dict[str, np.ndarray]]:
    pictures = patched_pictures()
    predicted, own, _ = own_maps(network, pictures)
    assert (predicted == 0).all(), "the planted patch must decide the answer"
    return checks.perturbation(backend(network), pictures, predicted, own, seed=0)


def test_along_a_true_map_deletion_drops_and_insertion_rises_before_all_rivals() -> None:
    found = perturbed(PatchNetwork())

    for name in ("deletion", "insertion"):
        assert found[name]["better_than_random"].mean() > 0.9
        assert found[name]["gain_over_random"].mean() > 0.2
        assert (found[name]["gain_over_centre"] > 0).all()
    assert found["deletion"]["map"].mean() < 0.25 < 0.75 < found["insertion"]["map"].mean()


def test_a_map_that_shows_another_place_does_no_better_than_random() -> None:
    found = perturbed(LyingNetwork())

    assert found["deletion"]["better_than_random"].mean() < 0.5
    assert found["insertion"]["better_than_random"].mean() < 0.5
    assert found["deletion"]["gain_over_random"].mean() < 0 > found["insertion"]["gain_over_random"].mean()


def test_a_flat_map_goes_through_no_deletion() -> None:
    pictures = patched_pictures(3)
    flat = np.ones((3, GRID, GRID), np.float32)

    found = checks.perturbation(backend(PatchNetwork()), pictures, np.zeros(3, int), flat, seed=0)

    assert np.isnan(found["deletion"]["map"]).all() and np.isnan(found["insertion"]["better_than_random"]).all()


def test_blurring_takes_the_patch_and_keeps_the_mean_colour() -> None:
    picture = patched_pictures(1)[0]

    # Insertion begins with the few pixels of most evidence, here those at the bottom.
    evidence = np.arange(SIZE**2, dtype=float).reshape(1, SIZE, SIZE)
    blurred = checks._perturbed(picture, evidence)[1, 0, 0, : SIZE - SIZE // 8].astype(float)

    assert np.ptp(blurred) < 0.25 * np.ptp(picture)
    assert blurred.mean() == pytest.approx(picture.mean(), rel=0.15)


def test_maps_that_ignore_the_weights_survive_randomisation() -> None:
    network, pictures = BlindMapNetwork(), noise_pictures(6)
    predicted, own, _ = own_maps(network, pictures)

    found = checks.randomisation(release(network), pictures, predicted, own, seed=0)

    for change in ("last_layer", "later_half", "all_layers"):
        assert found[change] == pytest.approx(np.ones(6)), "randomisation must show that this map is not the network's"
    assert found["another_cell"].mean() < 0.5


def test_the_other_cell_is_any_other_whatever_the_order_of_the_classes() -> None:
    network, pictures = BlindMapNetwork(), noise_pictures(40)
    predicted, own, _ = own_maps(network, pictures)
    # As an even sample deals them out: every cell is followed by one of the other class, whose map is the opposite.
    own = np.where(np.arange(40)[:, None, None] % 2, own[0].max() - own[0], own[0])

    found = checks.randomisation(release(network), pictures, predicted, own, seed=0)["another_cell"]

    assert 10 < np.count_nonzero(found > 0.99) < 30 and 10 < np.count_nonzero(found < -0.99) < 30


def test_maps_that_depend_on_every_layer_do_not_survive_randomisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "AT_ONCE", 2)  # twelve random networks, so that none decides alone
    torch.manual_seed(0)
    network, pictures = TextureNetwork(), noise_pictures()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predicted, own, _ = own_maps(network, pictures)

    found = checks.randomisation(release(network), pictures, predicted, own, seed=0)

    for change in ("last_layer", "later_half", "all_layers"):
        assert np.nanmean(found[change]) < 0.4
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())


def test_randomisation_starts_at_the_last_layer() -> None:
    torch.manual_seed(0)
    network, pictures = PositiveHeadNetwork(), noise_pictures(8)
    predicted, own, _ = own_maps(network, pictures)

    found = checks.randomisation(release(network), pictures, predicted, own, seed=0)

    assert found["last_layer"] == pytest.approx(np.ones(8)), "a new head does not change where this network looks"
    assert np.abs(found["all_layers"]).mean() < 0.6


def test_maps_of_a_network_without_up_and_down_turn_with_the_picture() -> None:
    found = rotated(PatchNetwork())

    assert found["correlation"] == pytest.approx(np.ones(12))
    assert found["another_cell"].mean() < 0.7
    assert found["gain_over_another_cell"] == pytest.approx(1 - found["another_cell"])
    assert found["probability_change"] == pytest.approx(np.zeros(12), abs=1e-5)
    assert not found["answer_changes"].any()


def test_a_network_that_sees_one_side_is_unstable_under_rotation() -> None:
    found = rotated(OneSidedNetwork())

    assert found["answer_changes"].mean() > 0.3
    assert found["probability_change"].mean() > 0.3


def rotated(network: nn.Module) -> dict[str, np.ndarray]:
    pictures = patched_pictures()
    predicted, own, probabilities = own_maps(network, pictures)
    of_views, signed = checks.predict_views(backend(network), pictures, predicted)
    assert np.array_equal(signed[0], own) and np.array_equal(of_views[0], probabilities), "the upright view is first"
    return checks.rotation(of_views, signed, predicted, checks.other_cells(len(pictures), seed=0))


def test_a_blob_in_the_middle_of_every_cell_turns_with_it_and_is_told_by_another_cells_map() -> None:
    blob = np.exp(-(np.linspace(-2, 2, GRID) ** 2))
    signed = np.broadcast_to(np.outer(blob, blob), (8, 6, GRID, GRID))
    even, classes = np.full((8, 6, 2), 0.5), np.zeros(6, int)

    found = checks.rotation(even, signed, classes, checks.other_cells(6, seed=0))

    assert found["correlation"] == pytest.approx(np.ones(6)) == found["another_cell"]
    assert found["gain_over_another_cell"] == pytest.approx(np.zeros(6))


def test_a_view_with_a_flat_map_shares_nothing_with_the_cells() -> None:
    signed = np.random.default_rng(0).random((8, 3, GRID, GRID))
    signed[1:] = signed[0]
    signed[4, 0], signed[:, 2] = -1, 0
    found = checks.rotation(np.full((8, 3, 2), 0.5), signed, np.zeros(3, int), np.array([1, 0, 0]))["correlation"]
    assert found[:2] == pytest.approx([6 / 7, 1]) and np.isnan(found[2])


def test_every_cell_is_another_ones_other_cell() -> None:
    others = checks.other_cells(9, seed=1)
    assert sorted(others) == list(range(9)) and (others != np.arange(9)).all()
    assert np.array_equal(others, checks.other_cells(9, seed=1)) and (others != checks.other_cells(9, seed=2)).any()


# Where the heat lies


def test_share_of_heat_is_that_worked_out_by_hand() -> None:
    """Enlarged from 2 to 4 pixels, the hot corner falls off as 1, ¾, ¼, 0 both ways: the left half has 1.75 of 2."""
    hot_corner = np.array([[[1.0, 0.0], [0.0, 0.0]]], np.float32)
    left = np.zeros((1, 4, 4), bool)
    left[..., :2] = True

    found = heat_share(hot_corner, left)

    shares = (found["heat"].item(), found["area"].item(), found["excess"].item())
    assert shares == (pytest.approx(0.875), 0.5, pytest.approx(0.375))


def test_a_uniform_map_holds_as_much_heat_as_area_and_only_zero_heat_is_none() -> None:
    corner = scale_bar_corner(SIZE)[None].repeat(2, axis=0)
    gradient = np.tile(np.linspace(0.9, 1.1, GRID, dtype=np.float32), (2, GRID, 1))
    gradient[1] = 0

    found = heat_share(gradient, corner)

    assert found["heat"][0] == pytest.approx(found["area"][0], rel=0.12)
    assert np.isnan(found["heat"][1])
    assert is_flat(gradient).tolist() == [False, True]


def test_enlarged_maps_are_bilinear_between_centres() -> None:
    assert enlarged(np.array([[[0.0, 1.0], [0.0, 1.0]]]), 4)[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_the_mask_is_the_cell_with_its_holes_and_without_compression_noise() -> None:
    picture = np.full((1, 20, 20, 3), 8, np.uint8)
    picture[0, 5:15, 5:15, 2] = 90
    picture[0, 8:10, 8:10] = 0

    mask = cell_masks(picture)[0]

    assert mask.sum() == 100 and mask[5:15, 5:15].all()


def test_real_cells_are_told_from_their_background(real_data: Path) -> None:
    paths = sorted((real_data / "cnmc2019" / "samples-bmp").rglob("*.bmp"))[:4]
    pixels = np.stack([np.asarray(open_image(path)) for path in paths])

    masks = cell_masks(pixels)

    assert not pixels[~masks].max() > 8, "outside the mask is black"
    assert all(0.05 < mask.mean() < 0.6 and mask[225, 225] for mask in masks)


@pytest.mark.parametrize(("size", "side"), [(224, 32), (160, 23)])
def test_the_scale_bar_corner_is_a_seventh_of_the_side(size: int, side: int) -> None:
    corner = scale_bar_corner(size)

    assert corner[-side:, -side:].all() and corner.sum() == side**2


def test_rank_correlation_sees_order_alone_and_nothing_in_flat_maps() -> None:
    ramp = np.arange(9.0).reshape(1, 3, 3)
    maps = np.concatenate([ramp, ramp, ramp])
    others = np.concatenate([np.exp(ramp), -ramp, np.ones_like(ramp)])

    found = rank_correlation(maps, others)

    assert found[:2] == pytest.approx([1, -1]) and np.isnan(found[2])


# The sample and the whole block


def test_the_sample_is_even_over_classes_and_subjects_from_its_first_cell_on() -> None:
    subjects = ["a"] * 80 + ["b"] * 5 + ["H1"] * 10 + ["H2"] * 5
    labels = np.array([0] * 85 + [1] * 15)

    rows = even_sample(labels, subjects, 20, seed=3)

    assert len(set(rows)) == 20
    for part in (rows[:8], rows):
        drawn = [subjects[row] for row in part]
        assert {name: drawn.count(name) for name in set(subjects)} == dict.fromkeys(
            "ab", len(part) // 4
        ) | dict.fromkeys(("H1", "H2"), len(part) // 4)
    assert (rows != even_sample(labels, subjects, 20, seed=4)).any()


def test_a_sample_larger_than_the_data_is_all_of_it() -> None:
    assert sorted(even_sample(np.array([0, 0, 1]), [""] * 3, 200, seed=0)) == [0, 1, 2]


def block(
    network: nn.Module, pictures: np.ndarray, subjects: list[str] | None = None, **options: Any
) -> dict[str, Any]:
    labels = np.arange(len(pictures)) % 2
    subjects = [f"{'H' * label}{i % 4}" for i, label in enumerate(labels)] if subjects is None else subjects
    options = {"background": "black"} | options
    return checks.explanation_blocks(release(network), pictures, labels, subjects, **options)["heat_maps"]


def scale_block(toy: Release, pictures: np.ndarray, background: str = "black", sample: int = 200) -> dict[str, Any]:
    labels, subjects = np.zeros(len(pictures), int), [""] * len(pictures)
    found = checks.explanation_blocks(
        toy, pictures, labels, subjects, background=background, sample=sample, perturbed=1
    )
    return found["evidence_scale"]


def test_the_block_holds_every_check_as_plain_json_and_is_the_same_again() -> None:
    found = block(PatchNetwork(), patched_pictures(), sample=10, perturbed=4)

    assert json.loads(json.dumps(found)) == found == block(PatchNetwork(), patched_pictures(), sample=10, perturbed=4)
    assert (found["cells"], found["perturbed_cells"], found["flat_maps"], found["map_size"]) == (10, 4, 0, [5, 5])
    assert found["rotation"]["correlation"] == {
        "mean": pytest.approx(1),
        "low": pytest.approx(1),
        "high": pytest.approx(1),
        "cells": 10,
    }
    assert found["deletion"]["map"]["cells"] == 4
    assert found["average_of_views"].keys() == {"another_cell", "outside_cell"}
    assert found["passed"] is passes_map_checks(found) is True
    assert found["outside_cell"]["area"]["mean"] == pytest.approx(0, abs=1e-6), "these pictures are all cell"
    assert "scale_bar_corner" not in found
    assert found["intervals"] == "95 %, subjects drawn anew within their class"


def test_the_evidence_scale_is_that_of_the_strongest_map_of_each_cell() -> None:
    pictures = patched_pictures()
    toy = release(PatchNetwork())
    found = scale_block(toy, pictures, sample=8)

    rows = even_sample(np.zeros(len(pictures), int), [""] * len(pictures), 8, 0)
    strongest = [float(checks.predict_with_maps(backend(toy.network), pictures[[row]])[1].max()) for row in rows]
    assert (found["cells"], found["median"]) == (8, pytest.approx(np.median(strongest), rel=1e-5))
    assert found["p05"] <= found["median"] <= found["p95"] <= max(strongest) * (1 + 1e-5)


def test_the_evidence_scale_says_how_much_of_the_predictions_map_lies_on_the_cell() -> None:
    """The bright tile lies on the right. Half of these pictures are black on the left, half all round the tile."""
    toy, pictures = release(PatchNetwork()), np.full((8, SIZE, SIZE, 3), 9, np.uint8)
    pictures[:, PATCH : 2 * PATCH, 4 * PATCH :] = 255
    pictures[:4, :, : SIZE // 2] = 0
    pictures[4:, :, SIZE // 2 :] = 0
    pictures[4:, PATCH : 2 * PATCH, 4 * PATCH :] = 255

    found = scale_block(toy, pictures)

    probabilities, maps = checks.predict_with_maps(backend(toy.network), pictures)
    on_cell = [share_on_cell(maps[i, probabilities[i].argmax()], pictures[i]) for i in range(8)]
    shares = np.array(on_cell, float)  # NaN for None
    assert shares.min() > 0.3 and shares.max() > 0.99
    quantiles = np.quantile(shares, (0.05, 0.5, 0.95)).tolist()
    assert [found[f"on_cell_{name}"] for name in ("p05", "median", "p95")] == pytest.approx(quantiles)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("pictures", "background"), [(patched_pictures(), "black"), (patched_pictures() // 20, "smear")]
)
def test_where_no_cell_lies_on_black_no_share_on_it_is_told(pictures: np.ndarray, background: str) -> None:
    toy = release(PatchNetwork())

    found = scale_block(toy, pictures, background)

    assert not [name for name in found if name.startswith("on_cell")]


def test_smears_are_held_against_the_scale_bar_and_unknown_subjects_drawn_by_cell() -> None:
    found = block(PatchNetwork(), patched_pictures(), subjects=[""] * 12, background="smear", perturbed=2)

    assert found["scale_bar_corner"]["area"]["mean"] == pytest.approx(36 / SIZE**2)
    assert "outside_cell" not in found
    assert (found["subjects"], found["intervals"]) == (0, "95 %, cells drawn anew within their class")


def test_flat_maps_are_counted_and_leave_nothing_to_report() -> None:
    dark = np.full((4, SIZE, SIZE, 3), 20, np.uint8)

    found = block(PatchNetwork(), dark, subjects=[""] * 4)

    assert found["flat_maps"] == 4
    assert found["deletion"]["map"] == {"mean": None, "low": None, "high": None, "cells": 0}
    assert found["rotation"]["answer_changes"]["cells"] == 4


def test_one_cell_is_refused() -> None:
    with pytest.raises(LeukoscopeError) as refused:
        block(PatchNetwork(), patched_pictures(1))

    assert str(refused.value) == "heat maps: 1 cell(s) to check of 1 given; give 2 or more"
