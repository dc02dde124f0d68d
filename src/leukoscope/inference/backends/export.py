"""From a release to a graph for OpenVINO or ONNX Runtime, and how far its output lies from torch's.

The graph takes the pixels as `Preprocessing.frame` gives them, standardises them itself, and gives logits and the last
feature map.
"""

from __future__ import annotations

import json
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
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.synthetic import PHANTOM_LABELS, draw_cell
from leukoscope.files import atomic_folder
from leukoscope.inference.backends.base import ONNX, OPENVINO, NoFeatureMap, NoGraph
from leukoscope.inference.backends.graph import GRAPHS, HEAD, REPORT, ExportedBackend, linear_head_maps
from leukoscope.inference.gradcam import explain_features
from leukoscope.inference.prediction import softmax
from leukoscope.models.build import classifier_parameters
from leukoscope.models.release import load_release

if TYPE_CHECKING:
    from leukoscope.models.release_files import ReleaseInfo

# How far a graph's probabilities, and its Grad-CAM maps relative to their peak, may lie from torch's.
ALLOWED = 1e-4
_COMPARED = 8


def export_release(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a release's graph into a folder, which appears whole or not at all; an older one is replaced.

    Args, Returns, Raises: as `write_graph`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as aside:
        return write_graph(release, backend, aside)


def write_graph(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a release's graph, the report of its comparison with torch and, where that suffices, its class weights.

    Args:
        backend: "openvino" or "onnx".
        folder: a new one.

    Returns:
        the report that stands beside the graph: how far it lies from torch on 8 pictures, and whether that is allowed.

    Raises:
        NoGraph: the network cannot be made into a graph; `NoFeatureMap` where its features are no map of channels.
        LeukoscopeError: a damaged release.
        OSError: the disk refuses.
    """
    assert release.folder is not None
    network = load_release(release.folder, name=release.name, revision=release.revision).network
    phantoms = [
        draw_cell(label, subject=subject, cell=0, background=background).image
        for label in PHANTOM_LABELS
        for subject in range(_COMPARED // 4)
        for background in ("black", "smear")
    ]
    pixels = np.stack([release.preprocessing.frame(Image.fromarray(phantom)) for phantom in phantoms])
    with torch.inference_mode():
        inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        features = network.forward_features(inputs)  # type: ignore[operator]
    try:
        logits, maps = (found.numpy() for found in explain_features(network, features))
    except LeukoscopeError as error:
        raise NoFeatureMap(f"{release.name}: no {backend} graph is made of it ({error}); use backend='torch'") from None

    folder.mkdir(parents=True)
    try:
        # The exporters call what torch means to drop; users can do nothing about it.
        with warnings.catch_warnings(action="ignore"):
            graph = _Graph(network, release.preprocessing).eval()
            _WRITERS[backend](graph, torch.from_numpy(pixels[:2]), folder / GRAPHS[backend])
    except OSError:
        raise
    except Exception as error:  # the exporters raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoGraph(
            f"{release.name}: cannot be made into a {backend} graph ({reason}); use backend='torch'"
        ) from None
    weights = classifier_parameters(network)[0].detach().cpu().float().numpy()
    # Where the class weights alone give torch's maps, they are kept: then torch is not needed to explain.
    if weights.shape[1] == features.shape[1] and np.allclose(
        linear_head_maps(features.numpy(), weights), maps, rtol=ALLOWED, atol=ALLOWED * maps.max()
    ):
        from safetensors.numpy import save_file

        save_file({"weights": weights}, folder / HEAD)

    ours = ExportedBackend(folder, release)(pixels, explain=True)
    assert ours.maps is not None
    probability = float(np.abs(softmax(ours.logits) - softmax(logits)).max())
    of_peak = float(np.abs(ours.maps - maps).max() / max(maps.max(), 1e-12))
    report = {
        "backend": backend,
        "compared_on": f"{_COMPARED} phantoms",
        "probability_difference": probability,
        "heat_map_difference": of_peak,
        "allowed": ALLOWED,
        "like_torch": probability <= ALLOWED and of_peak <= ALLOWED,
        "input": "pixels (B, S, S, 3) uint8, RGB, as Preprocessing.frame of config.json gives them",
        "outputs": "logits (B, K) float32; features (B, C, h, w) float32",
        "labels": list(release.labels),
        "model": release.name,
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return report


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
