"""What every backend is: one call from pixels to logits and, when asked for, Grad-CAM maps."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import numpy as np

from leukoscope import LeukoscopeError

AUTO, TORCH, OPENVINO, ONNX = "auto", "torch", "openvino", "onnx"
BACKENDS = (AUTO, TORCH, OPENVINO, ONNX)
F32, BF16 = "f32", "bf16"


class NetworkOutput(NamedTuple):
    """What a network computes for B pictures.

    Attributes:
        logits: (B, K) float32.
        maps: (B, K, h, w) float32 Grad-CAM of every class, ≥ 0; None where no explanation was asked for.
    """

    logits: np.ndarray
    maps: np.ndarray | None = None


class Backend(Protocol):
    """Computes one release's network."""

    @property
    def name(self) -> str:
        """ "torch", "openvino" or "onnx"."""

    @property
    def precision(self) -> str:
        """What it computes in: "f32" or "bf16"."""

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> NetworkOutput:
        """Compute a batch in one pass through the backbone.

        Args:
            pixels: (B, S, S, 3) uint8, framed by the release's preprocessing.
            explain: add every class's Grad-CAM map.
        """


class NoGraph(LeukoscopeError):
    """A release's graph for a backend cannot be made or kept, or its output differs from torch's."""


class NoFeatureMap(NoGraph):
    """A network's last features are no map of channels, as transformers' are not; its graph could never explain."""


def usable_cores() -> int:
    """How many cores this process may run on; where the system does not say, as macOS does not, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
