"""A DenseNet that is trained with BatchNorm after pooling, and rewritten as a plain timm DenseNet for its release.

timm's DenseNet ends in BatchNorm and ReLU before pooling, which suit the features of its last block. A linear head on
an earlier block learns faster from its pooled features, normalised. Without the ReLU both are the same network: the
rewritten one lifts every channel so far above zero that its ReLU changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from leukoscope import LeukoscopeError

# In standard deviations of a channel over places: the smallest lift, and how far the lift exceeds the extremes seen.
_LEAST_LIFT = 6.0
_BEYOND_SEEN = 1.5
# Largest difference between the logits of both networks.
_TOLERANCE = 1e-3


class PooledNormDenseNet(nn.Module):
    """A DenseNet of timm with BatchNorm after pooling instead of BatchNorm and ReLU before; has timm's methods.

    Attributes:
        backbone: the DenseNet without its last BatchNorm and its classifier.
        head: BatchNorm, dropout and the last linear layer.
    """

    backbone: Any

    def __init__(self, architecture: str, num_classes: int, drop_rate: float = 0.0, **timm_args: Any):
        """Build it with random weights.

        Args:
            architecture: a DenseNet of timm.
            timm_args: for `timm.create_model`.
        """
        import timm

        super().__init__()
        self.architecture, self.timm_args, self.num_classes = architecture, timm_args, num_classes
        self.backbone = timm.create_model(architecture, pretrained=False, num_classes=0, **timm_args)
        if "features.norm5" not in dict(self.backbone.named_modules()):
            raise ValueError("pooled_norm is for DenseNets")
        self.backbone.features.norm5 = nn.Identity()
        self.num_features = self.backbone.num_features
        self.head = nn.Sequential(
            OrderedDict(
                norm=nn.BatchNorm1d(self.num_features),
                drop=nn.Dropout(drop_rate),
                classifier=nn.Linear(self.num_features, num_classes),
            )
        )
        first = self.backbone.pretrained_cfg["first_conv"]
        self.pretrained_cfg = {"first_conv": f"backbone.{first}", "classifier": "head.classifier"}

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, C, h, w), the last block's feature map."""
        return self.backbone.forward_features(pixels)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, C, h, w) → (B, K) logits; with `pre_logits` (B, C), the pooled features."""
        pooled = self.backbone.forward_head(features)
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        """What follows the pooled features."""
        return self.head

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) standardised pixels → (B, K) logits."""
        return self.forward_head(self.forward_features(pixels))


def rewrite_for_timm(network: PooledNormDenseNet, pixels: torch.Tensor) -> nn.Module:
    """Rewrite a network as the plain timm DenseNet with the same predictions.

    Args:
        pixels: (B, 3, S, S) standardised images of the kind the network is for; the range of every channel is measured
            on them.

    Returns:
        The timm model, in eval mode, on the CPU, without gradients.

    Raises:
        LeukoscopeError: the two networks' logits differ.
    """
    import timm

    plain: Any = timm.create_model(network.architecture, num_classes=network.num_classes, **network.timm_args)
    plain.load_state_dict(network.backbone.state_dict(), strict=False)

    # On the CPU, where both are computed in the same precision.
    network, pixels = deepcopy(network.eval()).cpu(), pixels.cpu()
    with torch.no_grad():
        maps = network.forward_features(pixels).double().transpose(0, 1).flatten(1)  # (C, B·h·w)
        mean, deviation = maps.mean(dim=1), maps.std(dim=1).clamp(min=1e-3)
        extreme = ((maps - mean[:, None]).abs() / deviation[:, None]).amax(dim=1)
        weight, bias = _linear(network)
        weight, bias = weight * deviation, bias + weight @ mean
        # Softmax does not see what all classes share.
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
        lift = _balanced_lift(weight, (extreme * _BEYOND_SEEN).clamp(min=_LEAST_LIFT))
        last = plain.features.norm5
        last.running_mean.copy_(mean - lift * deviation)
        last.running_var.copy_(deviation.square() - last.eps)
        plain.classifier.weight.copy_(weight)
        plain.classifier.bias.copy_(bias - weight @ lift)
        ours = network(pixels).double()
        plain = plain.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        theirs = plain(pixels).double()
    difference = float((ours - ours.mean(dim=1, keepdim=True) - theirs).abs().max())
    if difference > _TOLERANCE:
        raise LeukoscopeError(
            f"{network.architecture}: rewritten for timm its logits differ by {difference:.2g}; report this"
        )
    return plain


def _linear(network: PooledNormDenseNet) -> tuple[torch.Tensor, torch.Tensor]:
    """The head as one linear layer on the pooled features: (K, C) and (K,) float64."""
    norm, linear = network.head.get_submodule("norm"), network.head.get_submodule("classifier")
    assert isinstance(norm, nn.BatchNorm1d) and isinstance(linear, nn.Linear)
    assert norm.running_mean is not None and norm.running_var is not None
    weight, scale = linear.weight.double(), norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    return weight * scale, linear.bias.double() + weight @ shift


def _balanced_lift(weight: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """(C,) lifts, each at least `least`, that every row of the (K, C) weights takes to zero where this is possible.

    A class activation map is the weighted sum of the channels: so balanced it is zero where a place looks like the
    average place, as if nothing had been lifted.
    """
    from scipy.optimize import linprog

    low = least.numpy()
    bounds = np.stack([low, 4 * low], axis=1)
    rows = weight[:-1].numpy()  # the last row follows: together they are zero
    found = linprog(np.ones(len(low)), A_eq=rows, b_eq=np.zeros(len(rows)), bounds=bounds)
    return torch.from_numpy(found.x) if found.status == 0 else least
