"""The backend that every other is compared with: the release's network in torch, on a CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.inference.backends.base import NetworkOutput
from leukoscope.inference.gradcam import explain_features


class TorchBackend:
    """Computes a network in float32, channels-last.

    Args:
        network: in eval mode; it is moved to `device`.
        device: a torch device such as "cpu" or "cuda".

    Raises:
        LeukoscopeError: this machine lacks that device.
    """

    name = "torch"
    precision = "f32"

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, device: str = "cpu"):
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError):
            found = "cpu or cuda" if torch.cuda.is_available() else "cpu"
            raise LeukoscopeError(
                f"device {device!r}: torch cannot compute there on this machine; use {found}"
            ) from None
        self.network = network.to(self.device)
        self._normalise = preprocessing.normalise

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> NetworkOutput:
        """One pass; see `Backend`."""
        with torch.inference_mode():
            # Copied: torch must not be given the read-only memory of a file.
            inputs = torch.from_numpy(np.array(pixels)).to(self.device).permute(0, 3, 1, 2)
            features = self.network.forward_features(self._normalise(inputs))  # type: ignore[operator]
            if not explain:
                logits = self.network.forward_head(features)  # type: ignore[operator]
                return NetworkOutput(logits.float().cpu().numpy())
        logits, maps = explain_features(self.network, features)
        return NetworkOutput(logits.cpu().numpy(), maps.cpu().numpy())

    def maps_of(self, features: np.ndarray) -> np.ndarray:
        """Grad-CAM of every class, (B, K, h, w), from a feature map (B, C, h, w) that any backend computed."""
        _, maps = explain_features(self.network, torch.from_numpy(features).to(self.device))
        return maps.cpu().numpy()
