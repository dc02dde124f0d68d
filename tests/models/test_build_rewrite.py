"""A network read at one dense block is released as a timm DenseNet with the same probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.synthetic import draw_cell
from leukoscope.models.build import is_rewritable, rewrite_for_timm
from leukoscope.models.release import load_release, save_release
from leukoscope.models.remote.networks import Classifier

HEAD = {"batch_norm": True, "levels": [2]}


def network_of(classes: int = 3, **head: object) -> Classifier:
    torch.manual_seed(0)
    network = Classifier("densenet121", classes, {**HEAD, **head}).eval().requires_grad_(False)
    norm = network.head.norm
    if isinstance(norm, nn.BatchNorm1d):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(), norm.bias.normal_()
    network.head.classifier.weight.normal_(std=0.1)
    network.head.classifier.bias.normal_()
    return network


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 64, 64)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_plain_network_has_the_same_probabilities(pixels: torch.Tensor, classes: int) -> None:
    network = network_of(classes)
    plain, model_args = rewrite_for_timm(network, "densenet121", pixels)
    other = torch.randn(3, 3, 96, 96)
    assert model_args == {"block_config": [6, 12]}
    for given in (pixels, other):
        assert torch.allclose(plain(given).softmax(1), network(given).softmax(1), atol=1e-6)


def test_without_batch_norm_too(pixels: torch.Tensor) -> None:
    network = network_of(batch_norm=False)
    plain, _ = rewrite_for_timm(network, "densenet121", pixels)
    assert torch.allclose(plain(pixels).softmax(1), network(pixels).softmax(1), atol=1e-6)


def test_nothing_is_clipped_and_the_average_place_activates_no_class(pixels: torch.Tensor) -> None:
    plain, _ = rewrite_for_timm(network_of(), "densenet121", pixels)
    features = plain.forward_features(pixels)
    assert float(features.min()) > 0
    maps = torch.einsum("kc,bchw->bkhw", plain.classifier.weight, features)
    assert maps.mean(dim=(0, 2, 3)).abs().max() < 1e-3 * maps.abs().max()


def test_only_one_dense_block_under_a_linear_head_folds() -> None:
    assert is_rewritable(network_of())
    others = [{"levels": [1, 2]}, {"levels": []}, {"pooling": "avg_std"}, {"pooling": "max"}, {"levels": [0]}]
    assert not any(is_rewritable(network_of(**other)) for other in others)
    assert not is_rewritable(network_of(hidden=[{"width": 8, "activation": "relu", "batch_norm": False, "dropout": 0}]))
    assert not is_rewritable(Classifier("test_resnet", 2, HEAD)), "no DenseNet"


def test_its_release_opens_in_the_plain_pipeline_with_the_same_probabilities(
    pixels: torch.Tensor, tmp_path: Path
) -> None:
    from transformers import pipeline

    network, preprocessing = network_of(2), Preprocessing(64, 1.0)
    plain, model_args = rewrite_for_timm(network, "densenet121", pixels)
    release = save_release(
        tmp_path / "release",
        plain,
        architecture="densenet121",
        model_args=model_args,
        labels=("ALL", "HEM"),
        preprocessing=preprocessing,
        metrics={},
    )
    picture = Image.fromarray(draw_cell("ALL").image)
    shown = preprocessing.normalise(torch.from_numpy(preprocessing.frame(picture).transpose(2, 0, 1)[None].copy()))
    ours = load_release(release).network(shown).softmax(1)[0]
    theirs = {p["label"]: p["score"] for p in pipeline("image-classification", model=str(release))(picture)}
    assert [theirs["ALL"], theirs["HEM"]] == pytest.approx(ours.tolist(), abs=1e-5)
