"""What computes a network: names of backends, devices and precisions, the network's output, and torch.

Every other backend is compared with torch. `graph` computes exported graphs, which `export` makes; `predictor` opens
the backend that suits a release and this machine.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.inference.gradcam import explain_features, is_map_of_channels
from leukoscope.inference.prediction import EVIDENCE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.data.preprocessing import Preprocessing

AUTO, TORCH, OPENVINO, ONNX = "auto", "torch", "openvino", "onnx"
BACKENDS = (AUTO, TORCH, OPENVINO, ONNX)
EXACT, FAST = "exact", "fast"
PRECISIONS = (AUTO, EXACT, FAST)
F32, BF16, INT8 = "f32", "bf16", "int8"
PRECISION_NAMES = {F32: "float32", BF16: "bfloat16", INT8: "int8"}
PACKAGES = {OPENVINO: ("openvino", "openvino"), ONNX: ("onnxruntime", "onnxruntime onnxscript")}
"""The module that each exported backend needs, and what pip installs for it."""


@dataclass(frozen=True)
class Runtime:
    """What computes a network.

    Attributes:
        backend: of `BACKENDS`; "auto" is the first that suits this machine and release. "" is the environment variable
            LEUKOSCOPE_BACKEND, and "auto" where it is not set.
        device: a torch device such as "cpu" or "cuda", any but "cpu" only for torch; "auto" is the GPU where torch may
            compute and finds one, else the CPU.
        precision: of `PRECISIONS`: "exact" is float32; "fast" is int8 or bfloat16, whichever was measured to be faster
            for the release and is computed by this processor; "auto" is "fast" only where the release was measured to
            lose nothing by it.
    """

    backend: str = ""
    device: str = AUTO
    precision: str = AUTO

    def chosen(self) -> Runtime:
        """Choose the environment's backend and this machine's device; raise `LeukoscopeError` for unknown names."""
        backend = self.backend or os.environ.get("LEUKOSCOPE_BACKEND") or AUTO
        for what, name, known in (("backend", backend, BACKENDS), ("precision", self.precision, PRECISIONS)):
            if name not in known:
                raise LeukoscopeError(f"{what} {name!r}: unknown; choose one of {', '.join(known)}")
        device = self.device
        if device == AUTO:
            device = gpu_or_cpu() if backend in (AUTO, TORCH) and self.precision != FAST else "cpu"
        return replace(self, backend=backend, device=device)


def usable_cores() -> int:
    """Return how many cores this process may run on; all of them where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_or_cpu() -> str:
    """Return "cuda" where torch finds a GPU, else "cpu"."""
    # torch is slow to import, so only where a driver is found.
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or shutil.which("nvidia-smi") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def is_installed(backend: str) -> bool:
    """Return whether the module of an exported backend is installed."""
    return find_spec(PACKAGES[backend][0]) is not None


def require_package(backend: str) -> None:
    """Raise `LeukoscopeError` where the package of an exported backend is not installed."""
    if not is_installed(backend):
        raise LeukoscopeError(
            f"backend {backend!r}: needs a package that is missing; pip install {PACKAGES[backend][1]}"
        )


class NetworkOutput(NamedTuple):
    """What a network computes for B pictures.

    Attributes:
        logits: (B, K) float32.
        maps: (B, K, h, w) float32, each class's map: signed evidence relative to the blank picture, or Grad-CAM, ≥ 0;
            None without `explain`, and where the last features are no map of channels.
    """

    logits: np.ndarray
    maps: np.ndarray | None = None


class NoGraph(LeukoscopeError):
    """A release's graph for a backend cannot be made or kept, or its output differs from torch's."""


def blank_picture(preprocessing: Preprocessing, rgb: tuple[int, int, int]) -> np.ndarray:
    """Return the picture of one colour that evidence is relative to: (1, S, S, 3) uint8."""
    side = preprocessing.image_size
    return np.broadcast_to(np.array(rgb, np.uint8), (1, side, side, 3))


class TorchBackend:
    """Computes a network in float32, channels-last; on a GPU no convolution of this process then rounds to TF32.

    Args:
        network: in eval mode; it is moved to `device`, a torch device such as "cuda", which this machine must have.
        blank_rgb: the colour of the blank picture that evidence is relative to.
    """

    name, precision = TORCH, F32

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: str = "cpu",
        blank_rgb: tuple[int, int, int] = (0, 0, 0),
    ):
        import torch

        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError):
            found = "cpu or cuda" if torch.cuda.is_available() else "cpu"
            raise LeukoscopeError(
                f"device {device!r}: torch cannot compute there on this machine; use {found}"
            ) from None
        if self.device.type != "cpu":
            torch.backends.cudnn.allow_tf32 = False  # by default a GPU's convolutions round float32 to 10 bits
        self.network = network.to(self.device)
        self._preprocessing, self._blank_rgb = preprocessing, blank_rgb

    def __call__(self, pixels: np.ndarray, *, explain: bool = False, method: str = EVIDENCE) -> NetworkOutput:
        """Compute a batch in one pass through the backbone, and the blank picture once in a backend's life.

        Args:
            pixels: (B, S, S, 3) uint8, framed by the release's preprocessing.
            explain: add every class's map, where the network's last features are a map of channels.
            method: of `gradcam.METHODS`.
        """
        import torch

        with torch.inference_mode():
            features = self._features(pixels)
            if not explain or not is_map_of_channels(self.network, features):
                logits = self.network.forward_head(features)  # type: ignore[operator]
                return NetworkOutput(logits.float().cpu().numpy())
        logits, maps = explain_features(self.network, features, self._blank if method == EVIDENCE else None)
        return NetworkOutput(logits.cpu().numpy(), maps.cpu().numpy())

    def _features(self, pixels: np.ndarray) -> torch.Tensor:
        import torch

        # Copied: torch must not be given the read-only memory of a file.
        inputs = torch.from_numpy(np.array(pixels)).to(self.device).permute(0, 3, 1, 2)
        return self.network.forward_features(self._preprocessing.normalise(inputs))  # type: ignore[operator]

    @cached_property
    def _blank(self) -> torch.Tensor:
        """(1, C, h, w), the blank picture's features, which no picture changes."""
        import torch

        with torch.inference_mode():
            features = self._features(blank_picture(self._preprocessing, self._blank_rgb)).float()
        # Autograd refuses what was made in inference mode; a copy made outside it is an ordinary tensor.
        return features.clone()
