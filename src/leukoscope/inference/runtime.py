"""What computes a release's network: the machine's devices, and torch; `graph` has the other backend, OpenVINO.

Our own code because no runtime gives logits and Grad-CAM from one pass.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from leukoscope import ConfigError, ReleaseError
from leukoscope.files import first_line
from leukoscope.inference.gradcam import explain_features, is_map_of_channels

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.data.preprocessing import Preprocessing
    from leukoscope.models.release import ReleaseInfo

AUTO_RUNTIME = "auto"
TORCH = "torch"
OPENVINO = "openvino"
BACKENDS = (AUTO_RUNTIME, TORCH, OPENVINO)
F32 = "float32"
BF16 = "bf16"
INFERENCE_PRECISIONS = (F32, BF16)
PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime onnxscript"}  # module → what pip installs for it


@dataclass(frozen=True)
class Runtime:
    """What computes a network.

    Attributes:
        backend: of `BACKENDS`; "auto" is OpenVINO on a CPU where it is installed, else torch. "" is the environment
            variable LEUKOSCOPE_BACKEND, and "auto" where it is not set.
        device: a torch device such as "cpu" or "cuda", any but "cpu" only for torch; "auto" is the GPU where torch may
            compute and finds one, else the CPU.
        precision: of `INFERENCE_PRECISIONS`: "bf16" is OpenVINO's inference precision or torch's autocast.
    """

    backend: str = ""
    device: str = AUTO_RUNTIME
    precision: str = F32

    def resolved(self) -> Runtime:
        """The same with the backend and the device named: those of the environment and of this machine for "auto".

        Raises:
            ConfigError: an unknown backend or precision.
        """
        backend = self.backend or os.environ.get("LEUKOSCOPE_BACKEND") or AUTO_RUNTIME
        _require_choice("backend", backend, BACKENDS)
        _require_choice("precision", self.precision, INFERENCE_PRECISIONS)
        device = self.device
        if device == AUTO_RUNTIME:
            device = "cpu" if backend == OPENVINO else gpu_or_cpu()
        return replace(self, backend=backend, device=device)


def _require_choice(option: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise ConfigError(f"{option} {name!r}: unknown; choose one of {', '.join(choices)}")


class NetworkOutput(NamedTuple):
    """What a network computes for B pictures.

    Attributes:
        logits: (B, K) float32.
        maps: (B, K, h, w) float32, each class's signed evidence relative to the blank picture; None without `explain`,
            and where the last features are no map of channels.
    """

    logits: np.ndarray
    maps: np.ndarray | None = None


class NoGraph(ReleaseError):
    """A release's graph cannot be made or kept, or its output differs from torch's."""


# This machine


def usable_cores() -> int:
    """Return how many cores this process may run on; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_or_cpu() -> str:
    """Return "cuda" where torch finds a GPU, unless Accelerate's ACCELERATE_USE_CPU is set; else "cpu"."""
    try:
        # Before torch, which is slow to import. Not `nvidia-smi`, which a container may lack beside a working driver.
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() and not must_use_cpu() else "cpu"


def must_use_cpu() -> bool:
    """Read ACCELERATE_USE_CPU as Accelerate does; `ConfigError` for a value that it does not know."""
    setting = os.environ.get("ACCELERATE_USE_CPU") or "no"
    try:
        # pydantic knows the words of accelerate's `str_to_bool`, which would import torch; a Space has no accelerate.
        return TypeAdapter(bool).validate_python(setting)
    except ValidationError:
        raise ConfigError(f"ACCELERATE_USE_CPU={setting}: is neither true nor false; set one of these") from None


def forbid_tf32() -> None:
    """Compute float32 on a GPU in float32: by default its convolutions round to 10 bits of 23 (TF32)."""
    import torch

    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    # After `torch.backends.fp32_precision = "tf32"` these change nothing. All four, or reading `allow_tf32` raises.
    if hasattr(cudnn, "conv"):  # torch 2.9 and newer
        for part in (cudnn, cudnn.conv, cudnn.rnn, matmul):
            part.fp32_precision = "ieee"


_MEMORY_IS_FULL = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")


@contextmanager
def memory_errors(device: object, number: int, fix: str) -> Iterator[None]:
    """Turn used-up memory within the block into a `ConfigError`: `number` pictures were computed, `fix` helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not any(sign in str(error) for sign in _MEMORY_IS_FULL):
            raise
        raise ConfigError(f"{device}: out of memory with {number} picture(s) at once; {fix}") from None


def require_package(name: str) -> None:
    """Raise `ConfigError` where a module of `PACKAGES` is not installed."""
    if find_spec(name) is None:
        raise ConfigError(f"{name}: is not installed; pip install {PACKAGES[name]}")


# Backends


def blank_picture(preprocessing: Preprocessing, rgb: tuple[int, int, int]) -> np.ndarray:
    """Return the picture of one colour that evidence is relative to: (1, S, S, 3) uint8."""
    side = preprocessing.image_size
    return np.broadcast_to(np.array(rgb, np.uint8), (1, side, side, 3))


class TorchBackend:
    """Computes a network in eval mode, which it moves to `device`; in "bf16" the head still computes in float32.

    Evidence is relative to a blank picture of `blank_rgb`. On a GPU no convolution of this process then rounds to TF32.
    """

    name = TORCH

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: str = "cpu",
        blank_rgb: tuple[int, int, int] = (0, 0, 0),
        precision: str = F32,
    ):
        import torch

        try:
            self.device = torch.device(device)
            torch.zeros(1, device=self.device).add_(1)  # a wheel of torch may hold no kernel for an old card
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = f"torch cannot compute there on this machine ({first_line(error)})"
            raise ConfigError(f"device {device!r}: {reason}; use another, or install a torch built for it") from None
        if self.device.type != "cpu":
            forbid_tf32()
        self.network = network.to(self.device)
        self.precision = precision
        self._preprocessing = preprocessing
        self._blank_rgb = blank_rgb

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> NetworkOutput:
        """Compute (B, S, S, 3) uint8, framed by the release's preprocessing, in one pass through the backbone.

        `explain` adds every class's map, where the last features are a map of channels.

        Raises:
            ConfigError: the memory does not suffice for B pictures.
        """
        import torch

        fix = "use --device cpu"
        if len(pixels) > 1:
            fix = f"give a smaller batch size, such as {len(pixels) // 2}"
        with memory_errors(self.device, len(pixels), fix):
            features = self.features(pixels)
            if not explain or not is_map_of_channels(self.network, features):
                with torch.inference_mode():
                    return NetworkOutput(self.network.forward_head(features).cpu().numpy())  # type: ignore[operator]
            logits, maps = explain_features(self.network, features, self.blank)
            return NetworkOutput(logits.cpu().numpy(), maps.cpu().numpy())

    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """(B, S, S, 3) uint8 → the network's last features, float32."""
        import torch

        # Copied: torch must not be given the read-only memory of a file.
        inputs = torch.from_numpy(np.array(pixels)).to(self.device).permute(0, 3, 1, 2)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == BF16):
            features = self.network.forward_features(self._preprocessing.normalise(inputs))  # type: ignore[operator]
        if self.precision == BF16:
            features = features.float()
        return features

    @cached_property
    def blank(self) -> torch.Tensor:
        """(1, C, h, w), the blank picture's features, which no picture changes."""
        # Autograd refuses what was made in inference mode; a copy made outside it is an ordinary tensor.
        return self.features(blank_picture(self._preprocessing, self._blank_rgb)).clone()


def torch_backend(release: ReleaseInfo, runtime: Runtime = Runtime(device="cpu")) -> TorchBackend:
    """Open a release's network in torch, by default on the CPU in float32."""
    from leukoscope.models.weights import Release, load_release

    if not isinstance(release, Release):
        release = load_release(release)
    return TorchBackend(release.network, release.preprocessing, runtime.device, release.blank_rgb, runtime.precision)
