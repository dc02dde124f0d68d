"""Networks of the prior systems that timm does not have: heads of several layers, AlexNet, and a small baseline.

They offer what training needs of a timm model; a release cannot hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import timm
import torch
from torch import nn

from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from research.prior_recipes import PriorRecipe


def build_prior(recipe: Recipe, num_classes: int) -> nn.Module:
    """A recipe's network with random weights, as `build_network`; own heads and networks for a `PriorRecipe`."""
    create: Callable[..., nn.Module] | None = _OWN_NETWORKS.get(recipe.architecture)
    if isinstance(recipe, PriorRecipe) and recipe.head is not None:
        create = partial(Classifier, head=asdict(recipe.head))
    return build_network(recipe, num_classes, create)


def penalty(network: nn.Module, recipe: Recipe) -> torch.Tensor:
    """The regularisation that a recipe adds to the loss, for the hidden linear layers of its head.

    Keras's L1 and L2 regularisers: strength times the sum of absolute or squared values, without a factor of one half.

    Args:
        network: as `build_prior` made it, not wrapped for training.

    Returns:
        () float32; 0 for a network without a head of its own.
    """
    total = next(network.parameters()).new_zeros(())
    if not (isinstance(network, Classifier) and isinstance(recipe, PriorRecipe)):
        return total
    for layer in network.head.hidden.modules():
        if isinstance(layer, nn.Linear):
            for name, values in (("weight", layer.weight), ("bias", layer.bias)):
                total = total + getattr(recipe.penalty, f"{name}_l2") * values.square().sum()
                total = total + getattr(recipe.penalty, f"{name}_l1") * values.abs().sum()
    return total


class HeadLayers(nn.Module):
    """What follows pooling: batch normalisation if wanted, hidden layers, and the last linear layer.

    Args:
        inputs, num_classes: what comes in, and what goes out.
        batch_norm, eps, momentum: of the pooled features; momentum is the share of the new batch.
        hidden: width, activation ("relu" or "leaky_relu"), batch_norm and dropout of each layer, in order.
    """

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        *,
        batch_norm: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        hidden: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs, eps=eps, momentum=momentum) if batch_norm else nn.Identity()
        widths = [inputs, *(layer["width"] for layer in hidden)]
        self.hidden = nn.Sequential(*(_hidden(width, **layer) for width, layer in zip(widths, hidden, strict=False)))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, F) pooled features → (B, K) logits."""
        return self.classifier(self.hidden(self.norm(pooled)))


def _hidden(inputs: int, *, width: int, activation: str, batch_norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, width)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(width))
    layers.append({"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}[activation]())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class Network(nn.Module):
    """What training asks of a network: a map of features, and a head above it."""

    features: nn.Module
    """(B, 3, S, S) standardised pixels → (B, C, h, w), the last feature map."""

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, C, h, w)."""
        return self.features(pixels)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) → (B, K) logits."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, K) logits."""
        return self.forward_head(self.forward_features(pixels))


class Classifier(Network):
    """A backbone of timm under a head of its own.

    Args:
        drop_rate: not used; the head brings its own dropout.
        head: the fields of a recipe's `Head`.
    """

    backbone: Any  # a timm model

    def __init__(
        self, architecture: str, num_classes: int, drop_rate: float, *, head: Mapping[str, Any], **timm_args: Any
    ):
        super().__init__()
        self.backbone = timm.create_model(architecture, pretrained=False, num_classes=0, **timm_args)
        layers = dict(head)
        pools: dict[Literal["avg", "max"], nn.Module] = {"avg": nn.AdaptiveAvgPool2d(1), "max": nn.AdaptiveMaxPool2d(1)}
        self.global_pool = pools[layers.pop("pooling")]
        self.num_classes, self.num_features = num_classes, self.backbone.num_features
        self.head = HeadLayers(self.num_features, num_classes, **layers)
        first = self.backbone.pretrained_cfg["first_conv"]
        self.pretrained_cfg = {"first_conv": f"backbone.{first}", "classifier": "head.classifier"}

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, C, h, w)."""
        return self.backbone.forward_features(pixels)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, C, h, w) → (B, K) logits; with `pre_logits` (B, C), the pooled features."""
        pooled = self.global_pool(features).flatten(1)
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        """What follows the pooled features."""
        return self.head


class AlexNet(Network):
    """torchvision's AlexNet (Krizhevsky 2014, arXiv:1404.5997), layers and names unchanged."""

    def __init__(self, architecture: str, num_classes: int, drop_rate: float = 0.5):
        from torchvision.models import alexnet

        super().__init__()
        whole = alexnet(num_classes=num_classes, dropout=drop_rate)
        self.features, self.avgpool, self.classifier = whole.features, whole.avgpool, whole.classifier
        self.num_classes, self.num_features = num_classes, 256
        self.pretrained_cfg = {"first_conv": "features.0", "classifier": "classifier.6"}

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.classifier[-1]

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 256, h, w) → (B, K) logits."""
        return self.classifier(self.avgpool(features).flatten(1))


class BaselineCNN(Network):
    """Three convolutions of 8, 16 and 16 filters (3×3), each halved by max pooling, and two dense layers."""

    def __init__(self, architecture: str, num_classes: int, drop_rate: float = 0.0):
        super().__init__()
        filters = (8, 16, 16)
        stages = [
            layer
            for inputs, outputs in zip((3, *filters), filters, strict=False)
            for layer in (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.features = nn.Sequential(*stages)
        # The dense layers keep their size whatever the picture's.
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.hidden = nn.Sequential(nn.Linear(filters[-1] * 7 * 7, 64), nn.ReLU(), nn.Dropout(drop_rate))
        self.classifier = nn.Linear(64, num_classes)
        self.num_classes, self.num_features = num_classes, filters[-1]
        self.pretrained_cfg = {"first_conv": "features.0", "classifier": "classifier"}

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.classifier

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 16, h, w) → (B, K) logits."""
        return self.classifier(self.hidden(self.pool(features).flatten(1)))


_OWN_NETWORKS: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "baseline_cnn": BaselineCNN}
