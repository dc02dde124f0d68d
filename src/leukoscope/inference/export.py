"""From a release to a graph for OpenVINO or ONNX Runtime, compared with torch before it is kept.

The graph takes the pixels as `Preprocessing.frame` gives them, standardises them itself, and gives logits and the last
feature map.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.phantoms import PHANTOM_LABELS, draw_cell
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.inference.backends import ONNX, OPENVINO, Answers, NoFeatureMap, NoGraph
from leukoscope.inference.exported import GRAPHS, HEAD, REPORT, ExportedBackend, linear_head_maps
from leukoscope.inference.probabilities import softmax
from leukoscope.inference.torch_backend import TorchBackend
from leukoscope.models.build import classifier_parameters
from leukoscope.models.release import Release, load_release

if TYPE_CHECKING:
    from leukoscope.models.release_files import ReleaseInfo

# How far a graph's probabilities, and its heat maps relative to their peak, may lie from torch's.
ALLOWED = 1e-4
_COMPARED = 8


class _Graph(nn.Module):
    """Pixels (B, S, S, 3) uint8 → logits (B, K) and features (B, C, h, w)."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std  # type: ignore[operator]
        features = self.network.forward_features(inputs)  # type: ignore[operator]
        return self.network.forward_head(features), features  # type: ignore[operator]


def export_release(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a release's graph into a folder, which appears whole or not at all.

    Args:
        backend: "openvino" or "onnx".
        folder: an older one is replaced.

    Returns:
        the report that stands beside the graph: how far it lies from torch on 8 pictures, and whether that is allowed.

    Raises:
        NoGraph: the network cannot be made into a graph; `NoFeatureMap` where its features are no map of channels.
        LeukoscopeError: a damaged release.
        OSError: the disk refuses.
    """
    assert release.folder is not None
    loaded = load_release(release.folder, name=release.name, revision=release.revision)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own for every process: two may make the same graph at once.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        report = _export(loaded, backend, aside)
        aside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _export(release: Release, backend: str, folder: Path) -> dict[str, Any]:
    pixels = _pictures(release.preprocessing)
    theirs = _answers_of_torch(release, backend, pixels)
    graph = _Graph(release.network, release.preprocessing).eval()
    try:
        # The exporters call what torch means to drop; nobody who asks for an answer can do anything about it.
        with warnings.catch_warnings(action="ignore"):
            _WRITERS[backend](graph, torch.from_numpy(pixels[:2]), folder / GRAPHS[backend])
    except OSError:
        raise
    except Exception as error:  # the exporters raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoGraph(
            f"{release.name}: cannot be made into a {backend} graph ({reason}); use backend='torch'"
        ) from None
    _save_head(release, pixels, theirs, folder)
    report = {"backend": backend, **_comparison(ExportedBackend(folder, release)(pixels, explain=True), theirs)}
    report |= {
        "input": "pixels (B, S, S, 3) uint8, RGB, as Preprocessing.frame of config.json gives them",
        "outputs": "logits (B, K) float32; features (B, C, h, w) float32",
        "labels": list(release.labels),
        "model": release.name,
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return report


def _answers_of_torch(release: Release, backend: str, pixels: np.ndarray) -> Answers:
    """What a graph is compared with, heat maps and all."""
    try:
        return TorchBackend(release.network, release.preprocessing)(pixels, explain=True)
    except LeukoscopeError as error:
        raise NoFeatureMap(f"{release.name}: no {backend} graph is made of it ({error}); use backend='torch'") from None


def _comparison(ours: Answers, theirs: Answers) -> dict[str, Any]:
    """How far a graph's answers lie from torch's, at most, over the pictures compared."""
    assert ours.maps is not None and theirs.maps is not None
    probability = float(np.abs(softmax(ours.logits) - softmax(theirs.logits)).max())
    heat = float(np.abs(ours.maps - theirs.maps).max() / max(theirs.maps.max(), 1e-12))
    return {
        "compared_on": f"{_COMPARED} phantoms",
        "probability_difference": probability,
        "heat_map_difference": heat,
        "allowed": ALLOWED,
        "like_torch": probability <= ALLOWED and heat <= ALLOWED,
    }


def _save_head(release: Release, pixels: np.ndarray, theirs: Answers, folder: Path) -> None:
    """Keep the class weights where they alone give torch's heat maps: then nobody needs torch to explain."""
    from safetensors.numpy import save_file

    weights = classifier_parameters(release.network)[0].detach().cpu().float().numpy()
    features = _features(release, pixels)
    if features.ndim != 4 or weights.shape[1] != features.shape[1]:
        return
    assert theirs.maps is not None
    if np.allclose(linear_head_maps(features, weights), theirs.maps, rtol=ALLOWED, atol=ALLOWED * theirs.maps.max()):
        save_file({"weights": weights}, folder / HEAD)


def _features(release: Release, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return release.network.forward_features(inputs).numpy()  # type: ignore[operator]


def _pictures(preprocessing: Preprocessing) -> np.ndarray:
    """(8, S, S, 3) phantoms of both classes, cut out and on a smear."""
    cells = [
        draw_cell(label, subject=subject, cell=0, background=background).image
        for label in PHANTOM_LABELS
        for subject in range(_COMPARED // 4)
        for background in ("black", "smear")
    ]
    return np.stack([preprocessing.frame(Image.fromarray(cell)) for cell in cells])


def _write_openvino(graph: nn.Module, example: torch.Tensor, path: Path) -> None:
    import openvino

    model = openvino.convert_model(graph, example_input=example)
    model.reshape([-1, *example.shape[1:]])
    # Kept in float32: half precision would round the BatchNorm statistics and a temperature folded into the classifier.
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_onnx(graph: nn.Module, example: torch.Tensor, path: Path) -> None:
    with redirect_stdout(StringIO()):
        torch.onnx.export(
            graph,
            (example,),
            path,
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits", "features"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
            external_data=False,
        )


_WRITERS = {OPENVINO: _write_openvino, ONNX: _write_onnx}
