"""Write the graph of a release's network: for OpenVINO, kept by `runtime`, or as ONNX in the Hub's layout.

A graph is compared with torch on eight phantoms; the report lies beside it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.registry import trained_on
from leukoscope.files import atomic_folder
from leukoscope.inference.gradcam import linear_head_maps
from leukoscope.inference.prediction import GRADCAM, softmax
from leukoscope.inference.runtime import (
    ALLOWED,
    GRAPH,
    HEAD,
    OPENVINO,
    REPORT,
    NetworkOutput,
    NoGraph,
    OpenVinoBackend,
    TorchBackend,
    blank_picture,
    require_like_torch,
    torch_backend,
)
from leukoscope.models.release import CARD, CONFIG, PROCESSOR, public_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.models.release import ReleaseInfo

ONNX = "onnx"
FORMATS = {ONNX: "onnx/model.onnx", OPENVINO: GRAPH}
"""What a release is exported to, and the file of its graph; transformers.js and optimum look for the first."""
_COMPARED = 8  # phantoms


def export_release(release: ReleaseInfo, kind: str, folder: Path) -> dict[str, Any]:
    """Write a release in one of `FORMATS` into a folder, whole or not at all, and return its report.

    Raises:
        NoGraph: the network cannot be made into a graph, or the graph's output is not torch's.
        OSError: the disk refuses.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as aside:
        report = (write_onnx if kind == ONNX else write_graph)(release, aside)
        require_like_torch(release, report)
        return report


def write_graph(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a release's graph, its report and, where one linear layer makes the logits, that layer's weights.

    Returns:
        the report beside the graph: how far it lies from torch on 8 pictures.

    Raises:
        NoGraph: the network cannot be made into a graph.
        OSError: the disk refuses.
    """
    import openvino
    import torch

    reference, pixels = torch_backend(release), _phantom_pixels(release)
    theirs = reference(pixels, explain=True, method=GRADCAM)
    network, preprocessing = reference.network, release.preprocessing

    def compute(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(preprocessing.normalise(pixels.permute(0, 3, 1, 2)))  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        return (logits,) if theirs.maps is None else (logits, features)

    folder.mkdir(parents=True)
    example = torch.from_numpy(pixels[:2])
    with _conversion_errors(release, OPENVINO):
        model = openvino.convert_model(_as_module(network, compute), example_input=example)
        model.reshape([-1, *example.shape[1:]])
        try:
            # Half precision would round the BatchNorm statistics and a temperature folded into the classifier.
            openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
        except RuntimeError:
            # OpenVINO does not say why it could not write.
            if shutil.disk_usage(folder).free < sum(one.nbytes for one in network.state_dict().values()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
    if head := _linear_head(reference, pixels):
        from safetensors.numpy import save_file

        save_file(dict(zip(("weights", "biases"), head, strict=True)), folder / HEAD)
        (folder / HEAD).chmod(0o644)  # safetensors leaves the file readable by its owner alone

    # Grad-CAM, which needs the features alone; the evidence is made from the same features.
    ours = OpenVinoBackend(folder, release)(pixels, explain=True, method=GRADCAM)
    for compiled in folder.glob("*.blob"):  # for this processor alone, and never found again once the folder is renamed
        compiled.unlink()
    report = _report_on(release, OPENVINO, ours, theirs) | {
        "input": "pixels (B, S, S, 3) uint8, RGB, as Preprocessing.frame of config.json gives them",
        "outputs": "logits (B, K) float32" + ("; features (B, C, h, w) float32" if theirs.maps is not None else ""),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _phantom_pixels(release: ReleaseInfo) -> np.ndarray:
    """Draw the 8 phantoms that a graph is compared on, framed: (8, S, S, 3) uint8."""
    from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

    info = trained_on(release.metrics)
    # On a background it was never trained with, a network's activations can grow until rounding is seen.
    known_black = info is not None and info.background == "black"
    backgrounds: tuple[Literal["black", "smear"], ...] = ("black",) if known_black else ("black", "smear")
    kinds = product(PHANTOM_LABELS, range(_COMPARED // (2 * len(backgrounds))), backgrounds)
    phantoms = [draw_cell(label, subject=subject, cell=0, background=on).image for label, subject, on in kinds]
    return np.stack([release.preprocessing.frame(Image.fromarray(phantom)) for phantom in phantoms])


def _linear_head(reference: TorchBackend, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the classifier's weights (K, C) and biases where they alone give torch's maps of these; else None."""
    from leukoscope.models.layers import classifier_parameters

    maps, features = reference(pixels, explain=True, method=GRADCAM).maps, reference.features(pixels)
    if maps is None:
        return None
    weights, biases = (one.detach().cpu().float().numpy() for one in classifier_parameters(reference.network))
    weights = weights.reshape(len(weights), -1)  # some are 1 × 1 convolutions
    if weights.shape[1] != features.shape[1]:
        return None
    ours = linear_head_maps(features.numpy(), weights)
    return (weights, biases) if np.allclose(ours, maps, rtol=ALLOWED, atol=ALLOWED * maps.max()) else None


def _report_on(release: ReleaseInfo, kind: str, ours: NetworkOutput, theirs: NetworkOutput) -> dict[str, Any]:
    """Report how far a graph's output lies from torch's: in probability, and of maps relative to their peak."""
    apart = None
    if ours.maps is not None and theirs.maps is not None:
        apart = float(np.abs(ours.maps - theirs.maps).max() / max(theirs.maps.max(), 1e-12))
    return {
        "backend": kind,
        "compared_on": f"{_COMPARED} phantoms",
        "probability_difference": float(np.abs(softmax(ours.logits) - softmax(theirs.logits)).max()),
        "heat_map_difference": apart,
        "allowed": ALLOWED,
        "labels": list(release.labels),
        "model": public_name(release.name, release.revision),
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }


def _as_module(network: nn.Module, compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> nn.Module:
    """Make a module, which is what the exporters take, of a function that calls a network."""
    from torch import nn

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return compute(pixels)

    return Graph().eval()


@contextmanager
def _conversion_errors(release: ReleaseInfo, kind: str) -> Iterator[None]:
    """Turn an exporter's errors, but those of the disk, into `NoGraph`, and keep it from printing."""
    try:
        # The exporters warn of what torch will drop; users can do nothing about it.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    except OSError:
        raise
    except Exception as error:  # the exporters raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoGraph(f"{release.name}: cannot be made into a {kind} graph ({reason}); use backend='torch'") from None


# ONNX


def write_onnx(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a release in the layout that transformers.js and optimum load: an ONNX file and its settings.

    The graph takes `pixel_values` (B, 3, S, S) float32, as `Preprocessing.normalise` gives them, and gives `logits`
    (B, K) and, where one linear layer after average pooling makes these, `grad_cam` (B, K, h, w), every class's map as
    `HeatMap.evidence` holds it: the positive part of the evidence relative to the blank picture.

    Returns:
        the report in export.json: how far the graph lies from torch on 8 pictures.

    Raises:
        NoGraph: the network cannot be made into a graph, or the graph's output is not torch's.
        OSError: the disk refuses.
    """
    import onnxruntime
    import torch

    reference, pixels = torch_backend(release), _phantom_pixels(release)
    network, head, theirs = reference.network, _linear_head(reference, pixels), reference(pixels, explain=True)
    if head is not None and theirs.maps is not None:
        theirs = NetworkOutput(theirs.logits, np.maximum(theirs.maps, 0))
        blank = reference.features(blank_picture(release.preprocessing, release.blank_rgb)).clone()
        kernels = torch.from_numpy(head[0])[:, :, None, None] / blank[0, 0].numel()

    def compute(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(pixel_values)  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        if head is None:
            return (logits,)
        # As `linear_head_maps`: a sum over channels at every place is a convolution by one pixel.
        return logits, torch.nn.functional.conv2d(features - blank, kernels).relu()

    outputs, graph = ["logits", "grad_cam"][: 1 if head is None else 2], folder / FORMATS[ONNX]
    graph.parent.mkdir(parents=True)
    inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
    with _conversion_errors(release, ONNX):
        torch.onnx.export(
            _as_module(network, compute),
            (inputs[:2],),
            graph,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
        )
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    ours = NetworkOutput(*session.run(None, {"pixel_values": inputs.numpy()}))
    report = _report_on(release, ONNX, ours, theirs)
    report |= {"input": "pixel_values (B, 3, S, S) float32", "outputs": outputs}
    require_like_torch(release, report)
    _write_settings(release, folder, report)
    return report


def _write_settings(release: ReleaseInfo, folder: Path, report: dict[str, Any]) -> None:
    """Write the report, and the settings and card that transformers.js and the Hub read."""
    pre, labels = release.preprocessing, dict(enumerate(release.labels))
    config = {
        # transformers.js and optimum look up by this name how a model is called; a ResNet is called as this one is.
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_labels": len(labels),
        "id2label": labels,
        "label2id": {label: k for k, label in labels.items()},
        # In a browser transformers.js would look for a quantised file unless it is told otherwise.
        "transformers.js_config": {"dtype": "fp32"},
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": pre.resized_side},
        "resample": Image.Resampling[pre.interpolation.upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": pre.image_size, "width": pre.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pre.mean,
        "image_std": pre.std,
    }
    for name, content in {CONFIG: config, PROCESSOR: processor, REPORT: report}.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    base = f"base_model: {release.name}\n" if release.revision else ""
    (folder / CARD).write_text(
        f"---\nlibrary_name: transformers.js\npipeline_tag: image-classification\n{base}---\n\n"
        f"# {report['model'].rpartition('/')[2]}, as ONNX\n\n**{RESEARCH_NOTICE}**\n\n"
        f"ONNX graph of a Leukoscope release; classes: {', '.join(release.labels)}. It takes `pixel_values` and gives "
        f"`{'` and `'.join(report['outputs'])}`. `{REPORT}` says how far it lies from the release. Image "
        "processors of other libraries resize and crop otherwise than the release does, and its probabilities then "
        "change.\n",
        encoding="utf-8",
    )
