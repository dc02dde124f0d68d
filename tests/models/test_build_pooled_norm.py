"""A DenseNet trained with BatchNorm after pooling is released as a timm DenseNet with the same probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import build_network, pooled_norm_densenet, rewrite_for_timm
from leukoscope.models.recipes import get_recipe, with_overrides

BLOCKS: dict[str, Any] = {"block_config": [6, 12]}


def network_of(classes: int = 3) -> Any:
    torch.manual_seed(0)
    network: Any = pooled_norm_densenet("densenet121", classes, **BLOCKS).eval().requires_grad_(False)
    norm = network.classifier.norm
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(), norm.bias.normal_()
    network.classifier.last.weight.normal_(std=0.1)
    network.classifier.last.bias.normal_()
    return network


def rewritten(network: nn.Module, pixels: torch.Tensor) -> Any:
    plain = timm.create_model("densenet121", num_classes=network.num_classes, **BLOCKS)
    return rewrite_for_timm(network, plain, pixels)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 64, 64)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_plain_network_has_the_same_probabilities(pixels: torch.Tensor, classes: int) -> None:
    network = network_of(classes)
    plain = rewritten(network, pixels)
    other = torch.randn(3, 3, 96, 96)
    for given in (pixels, other):
        assert torch.allclose(plain(given).softmax(1), network(given).softmax(1), atol=1e-6)


def test_nothing_is_clipped_and_the_average_place_activates_no_class(pixels: torch.Tensor) -> None:
    plain = rewritten(network_of(), pixels)
    features = plain.forward_features(pixels)
    assert float(features.min()) > 0
    maps = torch.einsum("kc,bchw->bkhw", plain.classifier.weight, features)
    assert maps.mean(dim=(0, 2, 3)).abs().max() < 1e-3 * maps.abs().max()


def test_a_network_that_is_not_the_same_is_reported(pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukoscope.models.build._TOLERANCE", -1.0)
    with pytest.raises(LeukoscopeError, match="has logits that differ by .*; report this$"):
        rewritten(network_of(), pixels)


def test_it_is_normalised_after_pooling_and_drops_features_in_training_only(pixels: torch.Tensor) -> None:
    network: Any = pooled_norm_densenet("densenet121", 2, drop_rate=0.5, **BLOCKS).eval()
    features = network.forward_features(pixels)
    assert features.min() < 0, "no ReLU before pooling"
    pooled = network.forward_head(features, pre_logits=True)
    assert torch.allclose(pooled, features.mean(dim=(2, 3)), atol=1e-6)
    assert torch.equal(network.get_classifier()(pooled), network(pixels))
    torch.manual_seed(0)
    first = network.train().forward_head(features)
    assert not torch.equal(first, network.forward_head(features))


@pytest.mark.parametrize("name", ["efficientnet_b3", "timm/vgg11_bn"])
def test_only_a_densenet_can_be_trained_so(name: str) -> None:
    recipe = with_overrides(get_recipe(name), ["pooled_norm=true", "image_size=32", "drop_path_rate=0"])
    with pytest.raises(LeukoscopeError, match=r"cannot be built .*leave out what --override changes"):
        build_network(recipe, 2)
