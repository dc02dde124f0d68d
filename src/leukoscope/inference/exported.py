"""A release as a graph for OpenVINO or ONNX Runtime: answers without torch.

The graph gives logits and the feature map, so that explaining costs no second pass. It is made once
(`inference/export.py`), compared with torch then, and kept under a name that changes with the weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope.cells.files import cache_root, write_whole
from leukoscope.inference.backends import ONNX, OPENVINO, Answers, NoFeatureMap, NoGraph, usable_cores
from leukoscope.models.release_files import CONFIG, WEIGHTS, read_arrays

if TYPE_CHECKING:
    from leukoscope.inference.torch_backend import TorchBackend
    from leukoscope.models.release_files import ReleaseInfo

# Changes when the graph's inputs, outputs or files do, so that older ones are made anew.
GRAPH_VERSION = 1
# Visitors of a demo may name any model: of the graphs made for them the last ones used are kept.
MOST_GRAPHS = 20
GRAPHS = {OPENVINO: "model.xml", ONNX: "model.onnx"}
F32, BF16 = "f32", "bf16"
REPORT, HEAD = "export.json", "head.safetensors"
_MAKERS = {OPENVINO: "openvino", ONNX: "onnxruntime"}


def kept_graph(release: ReleaseInfo, backend: str) -> Path:
    """The folder of a release's graph, made now unless one of these very weights is kept.

    Raises:
        NoGraph: it cannot be made or written, or its answers are not torch's.
        LeukoscopeError: a damaged release.
    """
    assert release.folder is not None
    folder = cache_root() / "graphs" / _key(release.folder, backend)
    if not (folder / REPORT).is_file():
        try:
            _make(release, backend, folder)
        except OSError as error:
            raise NoGraph(
                f"{folder}: the {backend} graph cannot be kept there ({error.strerror or error}); free some space, or "
                "name a folder with LEUKOSCOPE_CACHE"
            ) from None
        _remove_oldest(folder.parent)
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(folder / REPORT)  # when it was last used
    report = json.loads((folder / REPORT).read_text())
    if "impossible" in report:
        raise NoGraph(f"{release.name}: {report['impossible']}")
    if not report["like_torch"]:
        raise NoGraph(
            f"{release.name}: its {backend} graph differs from torch by {_excess(report)}, more than "
            f"{report['allowed']:g}; use backend='torch'"
        )
    return folder


def _remove_oldest(graphs: Path) -> None:
    """Keep the `MOST_GRAPHS` graphs used last."""
    used = sorted(graphs.glob(f"*/{REPORT}"), key=lambda report: report.stat().st_mtime)
    for report in used[:-MOST_GRAPHS]:
        shutil.rmtree(report.parent, ignore_errors=True)


def _excess(report: Mapping[str, Any]) -> str:
    """By what a graph differs from torch too much."""
    found = {"in probability": report["probability_difference"], "of a heat map's peak": report["heat_map_difference"]}
    # Turned round, so that nan is told as well.
    return " and ".join(f"{value:.1e} {what}" for what, value in found.items() if not value <= report["allowed"])


def _make(release: ReleaseInfo, backend: str, folder: Path) -> None:
    """Make a graph; of a network that can have none, keep why, so that not every start tries it anew."""
    from leukoscope.inference.export import export_release

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
            export_release(release, backend, Path(aside) / "graph")
            made = Path(aside) / "graph"
            try:
                made.rename(folder)
            except OSError:
                # Another process may have made the same graph meanwhile, and be answering with it; what has no report
                # is no whole graph.
                if not (folder / REPORT).is_file():
                    shutil.rmtree(folder)
                    made.rename(folder)
    except NoFeatureMap as reason:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / REPORT, json.dumps({"impossible": str(reason).removeprefix(f"{release.name}: ")}) + "\n")


class ExportedBackend:
    """Answers with a graph.

    Args:
        folder: what `export_release` wrote.
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
        threads = _threads()
        try:
            self._run = _OPENERS[self.name](folder / GRAPHS[self.name], precision, threads)
        except Exception as error:  # each runtime has error types of its own
            reason = str(error).strip().splitlines()[0]
            raise NoGraph(f"{folder}: damaged ({reason}); remove this folder, and the graph is made anew") from None

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> Answers:
        """One pass; see `Backend`."""
        logits, features = self._run(np.ascontiguousarray(pixels))
        return Answers(logits, self._maps(features) if explain else None)

    def _maps(self, features: np.ndarray) -> np.ndarray:
        if self._class_weights is None:
            return self._torch.maps_of(features)
        return linear_head_maps(features, self._class_weights)

    @cached_property
    def _torch(self) -> TorchBackend:
        from leukoscope.inference.torch_backend import TorchBackend
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


def _key(folder: Path, backend: str) -> str:
    made_by = f"{GRAPH_VERSION} {backend} {version(_MAKERS[backend])}"
    parts = [made_by.encode(), (folder / CONFIG).read_bytes()]
    if (folder / WEIGHTS).is_file():
        parts.append((folder / WEIGHTS).read_bytes())
    return sha256(b"\0".join(parts)).hexdigest()[:32]


def _threads() -> int:
    """As many as torch would use: OMP_NUM_THREADS, else every core this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else usable_cores()


@lru_cache(maxsize=1)
def _openvino_core() -> Any:
    """One for the process, never freed.

    Each brings the thread a signal stack and leaves it the one before when it goes. Where two overlap, that one may be
    gone: the next signal, a Ctrl-C say, would kill the process with a segmentation fault (OpenVINO 2026.4).
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
            answers = request.infer({0: pixels}, share_inputs=True)
            return answers[0].copy(), answers[1].copy()

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
