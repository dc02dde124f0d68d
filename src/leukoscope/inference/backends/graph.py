"""A release's graph, run by OpenVINO or ONNX Runtime without torch.

The graph gives logits and the last feature map, so that explaining costs no second pass. It is made once, by
`inference/backends/export.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope.inference.backends.base import F32, ONNX, OPENVINO, NetworkOutput, NoGraph, usable_cores
from leukoscope.models.release_files import read_arrays

if TYPE_CHECKING:
    from leukoscope.inference.backends.torch import TorchBackend
    from leukoscope.models.release_files import ReleaseInfo

GRAPHS = {OPENVINO: "model.xml", ONNX: "model.onnx"}
REPORT, HEAD = "export.json", "head.safetensors"


class ExportedBackend:
    """Computes a release's graph.

    Args:
        folder: what `write_graph` wrote.
        release: whose graph it is; its network is loaded only to explain through a head of several layers.
        precision: "f32"; or "bf16", which OpenVINO alone knows, and only some processors compute.

    Raises:
        NoGraph: a damaged graph.
    """

    def __init__(self, folder: Path, release: ReleaseInfo, *, precision: str = F32):
        self.name = next(name for name, file in GRAPHS.items() if (folder / file).is_file())
        self.precision = precision
        self._release = release
        # (K, C), there where one linear layer after average pooling makes the logits.
        self._class_weights = read_arrays(folder / HEAD)["weights"] if (folder / HEAD).is_file() else None
        # As many as torch would use.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        wanted = int(threads) if threads.isdecimal() and int(threads) else usable_cores()
        try:
            self._run = _OPENERS[self.name](folder / GRAPHS[self.name], precision, wanted)
        except Exception as error:  # each runtime has error types of its own
            reason = str(error).strip().splitlines()[0]
            raise NoGraph(f"{folder}: damaged ({reason}); remove this folder, and the graph is made anew") from None

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> NetworkOutput:
        """One pass; see `Backend`."""
        logits, features = self._run(np.ascontiguousarray(pixels))
        if not explain:
            return NetworkOutput(logits)
        if self._class_weights is None:
            return NetworkOutput(logits, self._torch.maps_of(features))
        return NetworkOutput(logits, linear_head_maps(features, self._class_weights))

    @cached_property
    def _torch(self) -> TorchBackend:
        from leukoscope.inference.backends.torch import TorchBackend
        from leukoscope.models.release import load_release

        assert self._release.folder is not None
        return TorchBackend(load_release(self._release.folder).network, self._release.preprocessing)


def linear_head_maps(features: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """Grad-CAM where one linear layer follows average pooling: a class's gradient is then its row of weights.

    Args:
        features: (B, C, h, w).
        class_weights: (K, C).

    Returns:
        (B, K, h, w) float32, ≥ 0, as `explain_features` gives.
    """
    batch, channels, height, width = features.shape
    places = height * width
    maps = (class_weights / places) @ features.reshape(batch, channels, places)
    return np.maximum(maps, 0).reshape(batch, -1, height, width).astype(np.float32)


@lru_cache(maxsize=1)
def _openvino_core() -> Any:
    """One for the process, never freed.

    Each sets a signal stack for the thread and restores the one before when it is freed. Where two overlap, that one
    may be gone: the next signal, a Ctrl-C for example, would end the process with a segmentation fault (OpenVINO
    2026.4).
    """
    import openvino

    return openvino.Core()


def computes_bf16() -> bool:
    """Whether OpenVINO finds bfloat16 units in this processor."""
    return "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _open_openvino(path: Path, precision: str, threads: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    compiled = _openvino_core().compile_model(
        path,
        "CPU",
        {
            # Left to itself it takes bf16 wherever the processor has it.
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    request, one_at_a_time = compiled.create_infer_request(), Lock()

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with one_at_a_time:
            outputs = request.infer({0: pixels}, share_inputs=True)
            return outputs[0].copy(), outputs[1].copy()

    return run


def _open_onnx(path: Path, precision: str, threads: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(None, {entry.name: pixels})
        return logits, features

    return run


_OPENERS: dict[str, Any] = {OPENVINO: _open_openvino, ONNX: _open_onnx}
