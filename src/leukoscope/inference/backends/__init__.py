"""Where a release's network is computed: torch, OpenVINO or ONNX Runtime, all behind one call with the same output.

`open_backend` chooses. "auto" takes OpenVINO, else ONNX Runtime, on a CPU where it is installed and its graph of this
release gave torch's output when it was made; else torch. Graphs are our own code because no runtime or library gives
logits and Grad-CAM from one pass, and because a graph is used only after it was compared with torch.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from leukoscope import LeukoscopeError
from leukoscope.files import cache_root, write_atomic
from leukoscope.inference.backends.base import (
    AUTO,
    BACKENDS,
    BF16,
    F32,
    ONNX,
    OPENVINO,
    TORCH,
    Backend,
    NoFeatureMap,
    NoGraph,
)
from leukoscope.inference.backends.graph import REPORT, ExportedBackend, computes_bf16
from leukoscope.models.release_files import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from leukoscope.models.release_files import ReleaseInfo

__all__ = [
    "AUTO",
    "BACKENDS",
    "ONNX",
    "OPENVINO",
    "TORCH",
    "Backend",
    "gpu_or_cpu",
    "kept_graph",
    "open_backend",
    "require_package",
]

# Changes when the graph's inputs, outputs or files do, so that older ones are made anew.
GRAPH_VERSION = 1
# Visitors of a demo may name any model: of the graphs made for them the last ones used are kept.
MOST_GRAPHS = 20
# The module each needs, and what installs it.
_PACKAGES: dict[str, tuple[str, str]] = {
    OPENVINO: ("openvino", "openvino"),
    ONNX: ("onnxruntime", "onnxruntime onnxscript"),
}
_log = logging.getLogger("leukoscope")


def open_backend(release: ReleaseInfo, wanted: str = AUTO, device: str = AUTO) -> Backend:
    """The backend that computes a release's network.

    Args:
        wanted: of `BACKENDS`.
        device: a torch device, any but "cpu" only for torch; "auto" takes this process's GPU where torch may compute
            and finds one, else the CPU.

    Raises:
        LeukoscopeError: no such backend, one whose package is not installed, that does not compute on that device or
            whose output differs from torch's; a damaged release; or a device this machine lacks.
    """
    if wanted not in BACKENDS:
        raise LeukoscopeError(f"backend {wanted!r}: unknown; choose one of {', '.join(BACKENDS)}")
    if device == AUTO:
        device = gpu_or_cpu() if wanted in (AUTO, TORCH) else "cpu"
    if wanted == AUTO and device == "cpu":
        for name in _PACKAGES:
            if find_spec(_PACKAGES[name][0]):
                try:
                    return _open_exported(release, name)
                except NoGraph as reason:
                    _log.warning("%s; another backend is used", reason)
    elif wanted not in (AUTO, TORCH):
        if device != "cpu":
            raise LeukoscopeError(f"backend {wanted!r}: computes on the CPU only; leave out device {device!r}")
        require_package(wanted)
        return _open_exported(release, wanted)
    from leukoscope.inference.backends.torch import TorchBackend
    from leukoscope.models.release import Release, load_release

    if not isinstance(release, Release):
        assert release.folder is not None
        release = load_release(release.folder, name=release.name, revision=release.revision)
    return TorchBackend(release.network, release.preprocessing, device)


def gpu_or_cpu() -> str:
    """This process's GPU where torch finds one, else "cpu"."""
    # torch is slow to import, so only where a driver is found; torchrun and accelerate number each process's GPU.
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or shutil.which("nvidia-smi") is None:
        return "cpu"
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def require_package(backend: str) -> None:
    """Refuse a backend whose package is not installed.

    Raises:
        LeukoscopeError: with what installs it.
    """
    module, package = _PACKAGES[backend]
    if not find_spec(module):
        raise LeukoscopeError(f"backend {backend!r}: needs a package that is missing; pip install {package}")


def _open_exported(release: ReleaseInfo, name: str) -> Backend:
    # bfloat16 only where it was measured to change no outcome of this release, and where the processor computes it:
    # elsewhere it is simulated, several times slower than float32.
    lower = name == OPENVINO and release.metrics.get("precision", {}).get("default") == BF16 and computes_bf16()
    return ExportedBackend(kept_graph(release, name), release, precision=BF16 if lower else F32)


def kept_graph(release: ReleaseInfo, backend: str) -> Path:
    """The folder of a release's graph in the cache, made now unless one of these very weights is kept.

    Raises:
        NoGraph: it cannot be made or written, or its output is not torch's.
        LeukoscopeError: a damaged release.
    """
    assert release.folder is not None
    parts = [f"{GRAPH_VERSION} {backend} {version(_PACKAGES[backend][0])}".encode()]
    parts += [path.read_bytes() for path in (release.folder / CONFIG, release.folder / WEIGHTS) if path.is_file()]
    folder = cache_root() / "graphs" / sha256(b"\0".join(parts)).hexdigest()[:32]
    if not (folder / REPORT).is_file():
        try:
            _make(release, backend, folder)
        except OSError as error:
            raise NoGraph(
                f"{folder}: the {backend} graph cannot be kept there ({error.strerror or error}); free some space, or "
                "name a folder with LEUKOSCOPE_CACHE"
            ) from None
        used = sorted(folder.parent.glob(f"*/{REPORT}"), key=lambda report: report.stat().st_mtime)
        for report in used[:-MOST_GRAPHS]:
            shutil.rmtree(report.parent, ignore_errors=True)
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(folder / REPORT)  # when it was last used
    compared = json.loads((folder / REPORT).read_text())
    if "impossible" in compared:
        raise NoGraph(f"{release.name}: {compared['impossible']}")
    if not compared["like_torch"]:
        differences = {
            "in probability": compared["probability_difference"],
            "of a Grad-CAM map's peak": compared["heat_map_difference"],
        }
        # `not <=` rather than `>`, so that nan is named as well.
        told = [f"{value:.1e} {what}" for what, value in differences.items() if not value <= compared["allowed"]]
        raise NoGraph(
            f"{release.name}: its {backend} graph differs from torch by {' and '.join(told)}, more than "
            f"{compared['allowed']:g}; use backend='torch'"
        )
    return folder


def _make(release: ReleaseInfo, backend: str, folder: Path) -> None:
    """Make a graph; of a network that can have none, keep why, so that not every start tries it anew."""
    from leukoscope.inference.backends.export import write_graph

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
            made = Path(aside) / "graph"
            write_graph(release, backend, made)
            try:
                made.rename(folder)
            except OSError:
                # Another process may have made the same graph meanwhile, and be using it; what has no report is no
                # whole graph.
                if not (folder / REPORT).is_file():
                    shutil.rmtree(folder)
                    made.rename(folder)
    except NoFeatureMap as reason:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / REPORT, json.dumps({"impossible": str(reason).removeprefix(f"{release.name}: ")}) + "\n")
