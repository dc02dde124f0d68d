"""Grad-CAM from the feature map that gave the prediction.

Our own code because pytorch-grad-cam runs the whole network again, forward and backward; here the backbone runs once,
and `explain_features` takes its feature map through the head alone, for the logits and every class's map.
"""

from __future__ import annotations

import torch
from torch import nn

from leukoscope import LeukoscopeError


def explain_features(network: nn.Module, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and Grad-CAM of every class, from the last feature map alone.

    Grad-CAM (Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74) needs the class score's gradient at this map and
    nothing before it, so only the head is differentiated, whatever layers it has.

    Args:
        network: a model in eval mode with `forward_head`.
        features: (B, C, h, w), what `network.forward_features` gave; may come from `torch.inference_mode`.

    Returns:
        logits (B, K) and maps (B, K, h, w), both float32; maps ≥ 0, the gradient-weighted sum of the channels.

    Raises:
        LeukoscopeError: the network's last features are not a map of channels (transformers, for one).
    """
    channels = getattr(network, "num_features", None)
    if features.ndim != 4 or (channels is not None and features.shape[1] != channels):
        raise LeukoscopeError(
            f"{type(network).__name__}: its last features have shape {tuple(features.shape)}, Grad-CAM needs "
            "(batch, channels, height, width); explain with a convolutional network"
        )
    # Autograd refuses tensors made in inference mode; a copy made outside it is an ordinary one.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = features.detach().clone().float().requires_grad_()
        logits = network.forward_head(leaf)  # type: ignore[operator]
        maps = []
        for k in range(logits.shape[1]):
            # Pictures do not meet in the head, so the gradient of the sum is each picture's own.
            (gradient,) = torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
            maps.append(torch.einsum("bc,bchw->bhw", gradient.mean(dim=(2, 3)), leaf.detach()).relu())
    return logits.detach().float(), torch.stack(maps, dim=1)
