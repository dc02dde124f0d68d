"""Networks that timm does not have: its backbones under a head of their own, AlexNet, and a small baseline.

This file is used by Leukoscope and copied as it is into every release of such a network, where `modeling_leukoscope.py`
builds on it; so it needs torch, torchvision and timm only. Every network here offers what timm's models offer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn


class OwnNetwork(nn.Module):
    """What every network here has in common with timm's convolutional models.

    Attributes:
        num_classes: outputs.
        num_features: channels C of the last feature map.
        pretrained_cfg: the names of the first convolution and of the last linear layer, as timm keeps them.
        head_settings: what `HeadLayers` was built from; None for a network with a head of its own design.
    """

    num_classes: int
    num_features: int
    pretrained_cfg: dict[str, Any]
    head_settings: dict[str, Any] | None = None

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, C, h, w), the last feature map."""
        raise NotImplementedError

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) feature map → (B, K) logits."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, K) logits."""
        return self.forward_head(self.forward_features(pixels))


class HeadLayers(nn.Module):
    """Global pooling, batch normalisation if wanted, hidden layers, and the last linear layer.

    Args:
        channels, num_classes: what comes in, and what goes out.
        pooling: over all places of the map: mean, maximum, or mean and standard deviation of each channel.
        batch_norm, eps, momentum: of the pooled features; momentum is the share of the new batch.
        hidden: width, activation ("relu" or "leaky_relu"), batch_norm and dropout of each layer, in order.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        pooling: Literal["avg", "max", "avg_std"] = "avg",
        batch_norm: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        hidden: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__()
        pools: dict[str, nn.Module] = {
            "avg": nn.AdaptiveAvgPool2d(1),
            "max": nn.AdaptiveMaxPool2d(1),
            "avg_std": MeanAndDeviation(),
        }
        self.pool = pools[pooling]
        channels *= 2 if pooling == "avg_std" else 1
        self.norm = nn.BatchNorm1d(channels, eps=eps, momentum=momentum) if batch_norm else nn.Identity()
        widths = [channels, *(layer["width"] for layer in hidden)]
        self.hidden = nn.Sequential(*(_hidden(width, **layer) for width, layer in zip(widths, hidden, strict=False)))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) feature map → (B, K) logits."""
        return self.from_pooled(self.pool(features).flatten(1))

    def from_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, F) pooled features → (B, K) logits."""
        return self.classifier(self.hidden(self.norm(pooled)))


class MeanAndDeviation(nn.Module):
    """(B, C, h, w) → (B, 2C, 1, 1): each channel's mean and standard deviation over all places."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mean = features.mean(dim=(2, 3), keepdim=True)
        # The root has no gradient at 0: a channel that is the same everywhere would make the loss no number.
        deviation = ((features - mean).square().mean(dim=(2, 3), keepdim=True) + 1e-6).sqrt()
        return torch.cat([mean, deviation], dim=1)


def _hidden(inputs: int, *, width: int, activation: str, batch_norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, width)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(width))
    layers.append({"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}[activation]())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class Classifier(OwnNetwork):
    """A backbone of timm under a head of its own.

    Args:
        head: settings of `HeadLayers`, and `levels`: numbers of the feature maps (timm's `feature_info`, 0 is the
            first) that are read instead of the last one. Each is averaged down to the size of the smallest, and what
            lies above it is not computed.
    """

    backbone: Any  # a timm model

    def __init__(self, architecture: str, num_classes: int, head: Mapping[str, Any], **timm_args: Any):
        import timm

        super().__init__()
        self.backbone = timm.create_model(architecture, pretrained=False, num_classes=0, **timm_args)
        layers = dict(head)
        self.levels = list(layers.pop("levels", ()))
        channels = [self.backbone.feature_info[level]["num_chs"] for level in self.levels]
        if self.levels:
            self.backbone.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)
        self.num_classes, self.num_features = num_classes, sum(channels) or self.backbone.num_features
        self.head = HeadLayers(self.num_features, num_classes, **layers)
        self.head_settings = dict(head)
        first = self.backbone.pretrained_cfg["first_conv"]
        self.pretrained_cfg = {"first_conv": f"backbone.{first}", "classifier": "head.classifier"}

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self.levels:
            return self.backbone.forward_features(pixels)
        maps = self.backbone.forward_intermediates(
            pixels, indices=self.levels, stop_early=True, intermediates_only=True
        )
        size = maps[-1].shape[-2:]
        return torch.cat([F.adaptive_avg_pool2d(one, size) for one in maps], dim=1)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features)


class AlexNet(OwnNetwork):
    """torchvision's AlexNet (Krizhevsky 2014, arXiv:1404.5997), layers and names unchanged."""

    def __init__(self, num_classes: int, drop_rate: float = 0.5):
        from torchvision.models import alexnet  # type: ignore[import-untyped]

        super().__init__()
        whole = alexnet(num_classes=num_classes, dropout=drop_rate)
        self.features, self.avgpool, self.classifier = whole.features, whole.avgpool, whole.classifier
        self.num_classes, self.num_features = num_classes, 256
        self.pretrained_cfg = {"first_conv": "features.0", "classifier": "classifier.6"}

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(pixels)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(features).flatten(1))


class BaselineCNN(OwnNetwork):
    """Three convolutions of 8, 16 and 16 filters (3×3), each halved by max pooling, and two dense layers."""

    def __init__(self, num_classes: int, drop_rate: float = 0.0):
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

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(pixels)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.hidden(self.pool(features).flatten(1)))


OWN_ARCHITECTURES: dict[str, type[AlexNet] | type[BaselineCNN]] = {"alexnet": AlexNet, "baseline_cnn": BaselineCNN}


def build_own(architecture: str, num_classes: int, head: Mapping[str, Any] | None) -> OwnNetwork:
    """The network that a release's config.json names, with random weights.

    Args:
        architecture: one of `OWN_ARCHITECTURES`, or a timm model under `head`.
        head: settings of `HeadLayers`; None for the architecture's own.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: settings that build no network.
    """
    if head is None:
        return OWN_ARCHITECTURES[architecture](num_classes)
    return Classifier(architecture, num_classes, head)
