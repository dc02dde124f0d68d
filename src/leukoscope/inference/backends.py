"""Compute a release's network with torch, OpenVINO or ONNX Runtime, behind one call with the same output.

"auto" takes OpenVINO, else ONNX Runtime, on a CPU where it is installed and its graph of this release gave torch's
output when it was made; else torch, which every other backend is compared with.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.inference.export import kept_graph
from leukoscope.inference.gradcam import EVIDENCE, explain_features, is_map_of_channels
from leukoscope.inference.graph import ExportedBackend, NetworkOutput, NoGraph, blank_picture, computes
from leukoscope.inference.runtime import (
    AUTO,
    BF16,
    F32,
    FAST,
    INT8,
    OPENVINO,
    PACKAGES,
    PRECISION_NAMES,
    TORCH,
    Runtime,
    is_installed,
    require_package,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.data.preprocessing import Preprocessing
    from leukoscope.models.release import Release
    from leukoscope.models.release_files import ReleaseInfo

_log = logging.getLogger("leukoscope")
# Cells that torch computes in about the time that OpenVINO's graph is made in.
_GRAPH_PAYS_OFF = 200


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


Backend: TypeAlias = TorchBackend | ExportedBackend
"""Computes one release's network; `name` and `precision` ("f32", "bf16" or "int8") say how."""


def open_backend(release: ReleaseInfo, runtime: Runtime = Runtime()) -> Backend:
    """Open the backend that computes a release's network.

    Raises:
        LeukoscopeError: no such backend, one whose package is not installed, that does not compute on that device or
            whose output differs from torch's; a damaged release; a device this machine lacks; or "fast" where it was
            not measured for the release, or this machine cannot.
    """
    runtime = runtime.chosen()
    if runtime.precision == FAST:
        return _open_exported(release, OPENVINO, _fast_precision(release, runtime))
    if runtime.backend in PACKAGES:
        if runtime.device != "cpu":
            raise LeukoscopeError(
                f"backend {runtime.backend!r}: computes on the CPU only; leave out device {runtime.device!r}"
            )
        require_package(runtime.backend)
        return _open_exported(release, runtime.backend, _default_precision(release, runtime.backend, runtime.precision))
    if runtime.backend == AUTO and runtime.device == "cpu":
        for name in filter(is_installed, PACKAGES):
            try:
                return _open_exported(release, name, _default_precision(release, name, runtime.precision))
            except NoGraph as reason:
                _log.warning("%s; another backend is used", reason)
    from leukoscope.models.release import Release, load_release

    loaded = release if isinstance(release, Release) else load_release(release)
    return TorchBackend(loaded.network, loaded.preprocessing, runtime.device, blank_rgb=loaded.blank_rgb)


def float32_backend(release: Release, cells: int) -> Backend:
    """Open the fastest backend to compute that many cells in float32 on the CPU: OpenVINO, or torch for few.

    The release's folder, if it has one, holds the very weights of its network.
    """
    if cells >= _GRAPH_PAYS_OFF and release.folder and is_installed(OPENVINO):
        try:
            return ExportedBackend(kept_graph(release, OPENVINO), release)
        except NoGraph as reason:
            _log.warning("%s; torch is used", reason)
    return TorchBackend(release.network, release.preprocessing, blank_rgb=release.blank_rgb)


def measured_precisions(release: ReleaseInfo) -> list[str]:
    """List the lower precisions a release may be computed in, as its metrics.json says, the fastest first."""
    block = release.metrics.get("precision", {})
    return [name for name in block.get("fast", ()) if name in (BF16, INT8) and block.get(name)]


def _default_precision(release: ReleaseInfo, backend: str, wanted: str) -> str:
    default = release.metrics.get("precision", {}).get("default")
    lower = wanted == AUTO and backend == OPENVINO and default in measured_precisions(release) and computes(default)
    return default if lower else F32


def _fast_precision(release: ReleaseInfo, runtime: Runtime) -> str:
    """The fastest precision that was measured and that this processor computes; an error where there is none."""
    measured = measured_precisions(release)
    if not measured:
        raise LeukoscopeError(f"precision 'fast': {release.name} was not measured in it; use 'exact'")
    if runtime.backend not in (AUTO, OPENVINO):
        raise LeukoscopeError(f"precision 'fast': OpenVINO computes it; leave out backend {runtime.backend!r}")
    if runtime.device != "cpu":
        raise LeukoscopeError(f"precision 'fast': is computed on the CPU; leave out device {runtime.device!r}")
    require_package(OPENVINO)
    if computed := [name for name in measured if computes(name)]:
        return computed[0]
    missing = " or ".join(PRECISION_NAMES[name] for name in measured)
    raise LeukoscopeError(f"precision 'fast': this processor has no units for {missing}; use 'exact'")


def _open_exported(release: ReleaseInfo, backend: str, precision: str) -> Backend:
    if precision == F32:
        return ExportedBackend(kept_graph(release, backend), release)
    measured = release.metrics["precision"][precision]
    shift, ranges = measured["logit_shift"], measured.get("ranges", ())
    if len(shift) != len(release.labels):
        raise LeukoscopeError(
            f"{release.name}: precision.{precision}.logit_shift in metrics.json has {len(shift)} entries, and there "
            f"are {len(release.labels)} labels; restore the file from the release"
        )
    graph = kept_graph(release, backend)
    return ExportedBackend(graph, release, precision=precision, logit_shift=shift, ranges=ranges)
