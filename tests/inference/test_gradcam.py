"""Heat maps must be the gradient times the features less a blank picture's, and lie where the network looked."""

from __future__ import annotations

import tracemalloc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import minimum_filter

from leukoscope.data.layouts import ImageFolder
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.inference.gradcam import explain_features, linear_head_maps, map_colours, overlay, share_on_cell
from leukoscope.inference.prediction import NUM_VIEWS, turned, turned_back
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import TorchBackend, blank_picture
from leukoscope.models.weights import load_release
from leukoscope.synthetic import Background, draw_cell

RELEASES = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/config.json"))
SIZE = 96


def random_network(architecture: str, seed: int = 0, **kwargs: Any) -> Any:
    """Of timm, whose layers `nn.Module` does not declare."""
    torch.manual_seed(seed)
    return timm.create_model(architecture, pretrained=False, num_classes=2, **kwargs).eval()


def random_pictures(number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# One linear layer, another pooling, and several layers.
HEADS: dict[str, dict[str, Any]] = {"densenet121": {}, "test_resnet": {"global_pool": "catavgmax"}, "convnext_atto": {}}


@pytest.mark.parametrize("head", HEADS)
def test_evidence_is_the_gradient_times_what_differs_from_the_blank_picture(head: str) -> None:
    network, pictures = random_network(head, **HEADS[head]), random_pictures(3)
    with torch.inference_mode():
        features, blank = (network.forward_features(one) for one in (pictures, torch.zeros(1, 3, SIZE, SIZE)))
        expected_logits = network(pictures)

    logits, maps = explain_features(network, features, blank)

    assert maps.shape[:2] == (3, 2) and maps.dtype == torch.float32
    assert torch.allclose(logits, expected_logits, rtol=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters()), "no gradient is left"
    leaf = features.clone().requires_grad_()
    for k in range(2):
        (gradient,) = torch.autograd.grad(network.forward_head(leaf)[:, k].sum(), leaf)
        assert torch.allclose(maps[:, k], (gradient * (features - blank)).sum(dim=1), atol=1e-7)
    assert maps.min() < 0, "what speaks against a class is kept until the end"
    assert torch.allclose(maps[1], explain_features(network, features[1:2], blank)[1][0], atol=1e-6), "in any company"
    assert not explain_features(network, blank, blank)[1].any(), "the blank picture has no evidence"
    if head == "densenet121":
        weights = network.classifier.weight.detach().numpy()
        assert np.allclose(linear_head_maps(features.numpy(), weights, blank.numpy()), maps.numpy(), atol=1e-6)


def exact_logits(backend: TorchBackend, pixels: np.ndarray) -> np.ndarray:
    """From the same features, in double precision: in float32 DenseNet169's own, a small difference of sums of
    thousands, are 6e-5 off."""
    with torch.inference_mode():
        network: Any = deepcopy(backend.network).double()
        return network.forward_head(backend.features(pixels).double()).numpy()


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_evidence_adds_up_to_the_logit_less_the_blank_pictures(release: Path) -> None:
    loaded = load_release(release)
    backend = TorchBackend(loaded.network, loaded.preprocessing, blank_rgb=loaded.blank_rgb)
    on: Background = "black" if loaded.takes_cut_outs else "smear"
    drawn = (draw_cell(label, subject=1, cell=0, background=on).image for label in ("ALL", "HEM"))
    cells = map(Image.fromarray, drawn)
    blank = blank_picture(loaded.preprocessing, loaded.blank_rgb)
    pixels = np.stack([*map(loaded.preprocessing.frame, cells), blank[0]])

    maps, logits = backend(pixels, explain=True).maps, exact_logits(backend, pixels)

    assert maps is not None
    assert maps.sum(axis=(2, 3)) == pytest.approx(logits - logits[-1], abs=1e-4)
    assert backend(pixels).logits == pytest.approx(logits, abs=1e-3)
    assert np.abs(maps[-1]).max() < 1e-6 < np.abs(maps[:-1]).max(), "the blank picture has no evidence"
    assert np.ptp(blank, axis=(0, 1, 2)).max() == 0 and blank.max() == (0 if loaded.takes_cut_outs else 254)


def test_an_explained_cells_map_turns_with_the_cell(tiny_release: Path) -> None:
    predictor = Predictor.from_pretrained(tiny_release)
    # Resizing and cropping round otherwise for a turned picture.
    predictor.release = replace(predictor.release, preprocessing=Preprocessing(SIZE, 1.0))
    cell = draw_cell("ALL", subject=1, cell=2, size=SIZE, background="black").image

    def explained(pixels: np.ndarray) -> np.ndarray:
        return np.stack([heat.evidence for heat in (predictor(pixels, explain=True).heatmaps or {}).values()])

    upright = explained(cell)
    assert np.ptp(upright[0]) > 0, "a flat map would compare nothing"
    for view in range(1, NUM_VIEWS):
        back = turned_back(explained(turned(cell[None], view)[0]), view)
        assert np.abs(back - upright).max() < 1e-5 * upright.max(), view


def heat() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3)).astype(np.float32)


def test_overlay_is_bilinear_over_the_view() -> None:
    drawn = np.asarray(overlay(Image.new("RGB", (90, 90)), heat(), (0, 0, 90, 90), opacity=1.0))

    evidence = torch.from_numpy(heat() / heat().max())[None, None]
    warmth = F.interpolate(evidence, size=(90, 90), mode="bilinear", align_corners=False)[0, 0].numpy()
    cover = np.clip(2 * warmth, 0, 1)[..., None]
    expected = map_colours(256)[np.rint(warmth * 255).astype(np.uint8)] * cover
    # One step of the colour table at most, where rounding falls the other way.
    assert np.abs(drawn - expected).max() < 5
    assert np.abs(drawn - expected).mean() < 0.5


@pytest.mark.parametrize("view", [(25.0, 10.0, 95.0, 80.0), (24.6, 9.6, 95.4, 80.4)], ids=["whole pixels", "fractions"])
def test_overlay_changes_only_the_view_and_frames_it(view: tuple[float, float, float, float]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))

    drawn = np.asarray(overlay(picture, heat(), view))

    outside = np.ones((90, 120), bool)
    outside[10:80, 25:95] = False
    assert drawn.shape == (90, 120, 3)
    assert np.array_equal(drawn[outside], np.asarray(picture.convert("L").convert("RGB"))[outside])
    border = np.concatenate([drawn[10, 25:95], drawn[79, 25:95], drawn[10:80, 25], drawn[10:80, 94]])
    assert (border == (118, 118, 118)).all()


def test_overlay_of_a_whole_picture_has_no_frame_keeps_cold_regions_and_colours_by_the_peak() -> None:
    grey, cold, corner = Image.new("RGB", (90, 90), (90, 90, 90)), np.zeros((3, 3), np.float32), np.eye(1, 9)

    def drawn(evidence: np.ndarray, **options: float) -> np.ndarray:
        return np.asarray(overlay(grey, evidence.astype(np.float32), (0, 0, 90, 90), **options)).astype(int)

    assert (drawn(cold) == 90).all()
    hot = drawn(2 * corner.reshape(3, 3), opacity=0.5)
    assert (hot[50:, 50:] == 90).all()
    assert np.abs(hot[5, 5] - (map_colours(256)[-1].astype(int) + 90) / 2).max() <= 1
    even = np.full((3, 3), 0.5)
    assert np.abs(drawn(even) - 90).max() > 60, "its own peak"
    assert np.abs(drawn(even, peak=5.0) - 90).max() < 15, "a common peak shows weaker evidence weaker"


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_the_map_is_seen_on_real_cells(release: Path, real_data: Path) -> None:
    paths = ImageFolder.read(real_data / ("ball4" if "ball4" in release.name else "cnmc2019")).images[::500][:3]
    for prediction in Predictor.from_pretrained(release, backend="torch")(paths, explain=True):
        assert prediction.picture is not None
        grey = np.asarray(prediction.picture.convert("L").convert("RGB")).astype(int)
        change = np.abs(np.asarray(prediction.overlay()) - grey)
        # A tenth of the picture, or of the cell, where it is hottest.
        assert np.quantile(change.max(axis=2)[change.any(axis=2)], 0.9) > 60, prediction.source


@pytest.mark.parametrize(("width", "height", "side"), [(90, 70, 3), (450, 310, 5)])
def test_the_outline_of_a_cut_out_is_the_cell_less_the_cell_eroded(width: int, height: int, side: int) -> None:
    cell = np.zeros((height, width), bool)
    cell[: height // 2, width // 4 : width // 2] = cell[20:40, width // 3 :] = True  # cut by the frame on two sides
    picture = Image.fromarray(np.where(cell[..., None], (120, 60, 120), 0).astype(np.uint8))
    cold = np.zeros((3, 3), np.float32)
    drawn = np.asarray(overlay(picture, cold, (0, 0, width, height)))
    assert ((drawn == (255, 255, 255)).all(axis=2) == (cell & ~minimum_filter(cell, side))).all()
    smear = Image.new("RGB", (width, height), (200, 180, 200))
    assert np.asarray(overlay(smear, cold, (0, 0, width, height))).std() == 0, "a smear has none"


def test_the_outline_of_a_photograph_takes_little_memory() -> None:
    picture = Image.new("RGB", (3000, 3000))
    picture.paste((120, 60, 120), (500, 500, 2500, 2500))
    tracemalloc.start()
    overlay(picture, np.zeros((3, 3), np.float32), (0, 0, 3000, 3000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 * 3000 * 3000, "bytes; a copy of the cell for every shift would take twice as many"


# How much of it lies on the cell


def cell_on_black(columns: int = 2, side: int = 4) -> np.ndarray:
    """A cell that takes the left columns of a picture."""
    picture = np.zeros((side, side, 3), np.uint8)
    picture[:, :columns] = (90, 9, 120)
    return picture


def test_the_share_on_the_cell_is_that_worked_out_by_hand() -> None:
    """Enlarged from 2 to 4 pixels, the hot corner falls off as 1, ¾, ¼, 0 both ways: the left half has 1.75 of 2."""
    hot_corner = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)

    assert share_on_cell(hot_corner, cell_on_black()) == pytest.approx(0.875)
    assert share_on_cell(hot_corner[:, ::-1], cell_on_black()) == pytest.approx(0.125)
    assert share_on_cell(7 * hot_corner, cell_on_black()) == pytest.approx(0.875), "however strong the evidence"
    assert share_on_cell(hot_corner, np.maximum(cell_on_black(), 8)) == pytest.approx(0.875), "black with some noise"
    for columns in (1, 5, 19):
        assert share_on_cell(np.ones((3, 3)), cell_on_black(columns, 20)) == pytest.approx(columns / 20)


def test_no_share_is_told_of_a_map_without_heat_or_a_picture_that_is_no_cell_on_black() -> None:
    heat, photograph = np.ones((3, 3), np.float32), np.full((20, 20, 3), 200, np.uint8)
    photograph[0, :19] = 0  # less than a twentieth

    assert share_on_cell(np.zeros((3, 3), np.float32), cell_on_black()) is None
    assert share_on_cell(heat, photograph) is None
    assert share_on_cell(heat, np.zeros((20, 20, 3), np.uint8)) is None
    photograph[0] = 0
    assert share_on_cell(heat, photograph) == pytest.approx(0.95)
