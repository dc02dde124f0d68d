"""Backends, devices and precisions that compute a network: their names, and which of them this machine has."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec

from leukoscope import LeukoscopeError

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
