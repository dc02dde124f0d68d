"""Where a release's network is computed: torch, OpenVINO or ONNX Runtime, all behind one call with one answer.

`open_backend` chooses. "auto" takes OpenVINO, else ONNX Runtime, on a CPU where it is installed and its graph of this
release passed the comparison with torch (`inference/export.py`, made once and kept); else torch.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np

from leukoscope import LeukoscopeError

if TYPE_CHECKING:
    from leukoscope.models.release_files import ReleaseInfo

AUTO, TORCH, OPENVINO, ONNX = "auto", "torch", "openvino", "onnx"
BACKENDS = (AUTO, TORCH, OPENVINO, ONNX)
# The module each needs, and what installs it.
_PACKAGES: dict[str, tuple[str, str]] = {
    OPENVINO: ("openvino", "openvino"),
    ONNX: ("onnxruntime", "onnxruntime onnxscript"),
}


_log = logging.getLogger("leukoscope")


@dataclass(frozen=True)
class Answers:
    """What a network says of B pictures.

    Attributes:
        logits: (B, K) float32.
        maps: (B, K, h, w) float32 Grad-CAM of every class, ≥ 0; None where none was asked for.
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

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> Answers:
        """Answer for a batch in one pass through the backbone.

        Args:
            pixels: (B, S, S, 3) uint8, framed by the release's preprocessing.
            explain: add every class's heat map.
        """


def open_backend(release: ReleaseInfo, wanted: str = AUTO, device: str = "cpu") -> Backend:
    """The backend that is to answer for a release.

    Args:
        wanted: of `BACKENDS`.
        device: a torch device; any but "cpu" is torch's.

    Raises:
        LeukoscopeError: no such backend, one whose package is not installed, that does not compute on that device or
            whose answers differ from torch's; a damaged release; or a device this machine lacks.
    """
    if wanted not in BACKENDS:
        raise LeukoscopeError(f"backend {wanted!r}: unknown; choose one of {', '.join(BACKENDS)}")
    if wanted == AUTO:
        candidates = [name for name in _PACKAGES if find_spec(_PACKAGES[name][0])] if device == "cpu" else []
        for name in candidates:
            try:
                return _open_exported(release, name)
            except NoGraph as reason:
                _log.warning("%s; another backend answers", reason)
    elif wanted != TORCH:
        if device != "cpu":
            raise LeukoscopeError(f"backend {wanted!r}: computes on the CPU only; leave out device {device!r}")
        require_package(wanted)
        return _open_exported(release, wanted)
    return _open_torch(release, device)


def require_package(backend: str) -> None:
    """Refuse a backend whose package is not installed.

    Raises:
        LeukoscopeError: with what installs it.
    """
    module, package = _PACKAGES[backend]
    if not find_spec(module):
        raise LeukoscopeError(f"backend {backend!r}: needs a package that is missing; pip install {package}")


class NoGraph(LeukoscopeError):
    """A release's graph for a backend cannot be made or kept, or does not answer as torch does."""


class NoFeatureMap(NoGraph):
    """A network's last features are no map of channels, as transformers' are not; its graph could never explain."""


def usable_cores() -> int:
    """How many cores this process may run on; where the system does not say, as macOS does not, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_torch(release: ReleaseInfo, device: str) -> Backend:
    from leukoscope.inference.torch_backend import TorchBackend
    from leukoscope.models.release import Release, load_release

    if not isinstance(release, Release):
        assert release.folder is not None
        release = load_release(release.folder, name=release.name, revision=release.revision)
    return TorchBackend(release.network, release.preprocessing, device)


def _open_exported(release: ReleaseInfo, name: str) -> Backend:
    from leukoscope.inference.exported import BF16, F32, ExportedBackend, computes_bf16, kept_graph

    # Half the precision only where it was measured to change nothing that this release says, and where the processor
    # computes it: elsewhere it is simulated, several times slower than float32.
    lower = name == OPENVINO and release.metrics.get("precision", {}).get("default") == BF16 and computes_bf16()
    return ExportedBackend(kept_graph(release, name), release, precision=BF16 if lower else F32)
