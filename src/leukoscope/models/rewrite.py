"""A DenseNet that is trained with BatchNorm after pooling, and rewritten as a plain timm DenseNet for its release.

timm's DenseNet ends in BatchNorm and ReLU before pooling. A linear head on an earlier block learns faster from its
pooled features, normalised. The plain network lifts every channel so far above zero that its ReLU changes nothing.
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


def pooled_norm_densenet(architecture: str, num_classes: int, drop_rate: float = 0.0, **timm_args: Any) -> nn.Module:
    """A DenseNet of timm with BatchNorm after pooling, not before; random weights. `ValueError` for another network."""
    import timm

    network: Any = timm.create_model(architecture, num_classes=num_classes, **timm_args)
    if "features.norm5" not in dict(network.named_modules()):
        raise ValueError("pooled_norm is for DenseNets")
    network.features.norm5 = nn.Identity()
    layers = OrderedDict(norm=nn.BatchNorm1d(network.num_features), drop=nn.Dropout(drop_rate), last=network.classifier)
    network.classifier = nn.Sequential(layers)
    network.pretrained_cfg = {**network.pretrained_cfg, "classifier": "classifier.last"}
    return network


def rewrite_for_timm(network: nn.Module, plain: nn.Module, pixels: torch.Tensor) -> nn.Module:
    """Rewrite a `pooled_norm_densenet` as the plain DenseNet with the same predictions; an error if its logits differ.

    Args:
        plain: timm's DenseNet of as many blocks and classes; filled in place and returned, in eval mode.
        pixels: (B, 3, S, S) standardised images of the kind the network is for; the range of every channel is measured
            on them.
    """
    # On the CPU, where both are computed in the same precision.
    ours: Any = deepcopy(network.eval()).cpu()
    theirs: Any = plain
    pixels = pixels.cpu()
    body = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("classifier.")}
    theirs.load_state_dict(body, strict=False)
    with torch.no_grad():
        maps = ours.forward_features(pixels).double().transpose(0, 1).flatten(1)  # (C, B·h·w)
        mean, deviation = maps.mean(dim=1), maps.std(dim=1).clamp(min=1e-3)
        extreme = ((maps - mean[:, None]).abs() / deviation[:, None]).amax(dim=1)
        # The head as one linear layer on the pooled features.
        norm, last = ours.classifier.norm, ours.classifier.last
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - scale * norm.running_mean.double()
        weight, bias = last.weight.double() * scale, last.bias.double() + last.weight.double() @ shift
        weight, bias = weight * deviation, bias + weight @ mean
        # Softmax does not see what all classes share.
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
        lift = _balanced_lift(weight, (extreme * _BEYOND_SEEN).clamp(min=_LEAST_LIFT))
        end = theirs.features.norm5
        end.running_mean.copy_(mean - lift * deviation)
        end.running_var.copy_(deviation.square() - end.eps)
        theirs.classifier.weight.copy_(weight)
        theirs.classifier.bias.copy_(bias - weight @ lift)
        theirs.eval().requires_grad_(False)
        logits = ours(pixels).double()
        difference = float((logits - logits.mean(dim=1, keepdim=True) - theirs(pixels).double()).abs().max())
    if difference > _TOLERANCE:
        raise LeukoscopeError(f"the network rewritten for timm has logits that differ by {difference:.2g}; report this")
    return plain


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
