"""Write a release for other programs: as ONNX, in the Hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.graph import (
    REPORT,
    as_module,
    conversion_errors,
    linear_head,
    phantom_pixels,
    report_on,
    require_like_torch,
)
from leukoscope.inference.runtime import NetworkOutput, blank_picture, torch_backend
from leukoscope.models.release import CARD, CONFIG, PROCESSOR

if TYPE_CHECKING:
    import torch

    from leukoscope.models.release import ReleaseInfo

ONNX_GRAPH = "onnx/model.onnx"
"""Where transformers.js and optimum look for a graph."""


def write_onnx(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a release in the layout that transformers.js and optimum load: an ONNX file and its settings.

    The graph takes `pixel_values` (B, 3, S, S) float32, as `Preprocessing.normalise` gives them, and gives `logits`
    (B, K) and, where one linear layer after average pooling makes these, `grad_cam` (B, K, h, w), every class's signed
    evidence relative to the blank picture; `HeatMap.evidence` is the positive part of its mean over eight views.

    Returns:
        the report in export.json: how far the graph lies from torch on 8 pictures.

    Raises:
        NoGraph: the network cannot be made into a graph, or the graph's output is not torch's.
        OSError: the disk refuses.
    """
    import onnxruntime
    import torch

    reference, pixels = torch_backend(release), phantom_pixels(release)
    network, head, theirs = reference.network, linear_head(reference, pixels), reference(pixels, explain=True)
    if head is not None and theirs.maps is not None:
        blank = reference.features(blank_picture(release.preprocessing, release.blank_rgb)).clone()
        kernels = torch.from_numpy(head[0])[:, :, None, None] / blank[0, 0].numel()

    def compute(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(pixel_values)  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        if head is None:
            return (logits,)
        # As `linear_head_maps`: a sum over channels at every place is a convolution by one pixel.
        return logits, torch.nn.functional.conv2d(features - blank, kernels)

    outputs, graph = ["logits", "grad_cam"][: 1 if head is None else 2], folder / ONNX_GRAPH
    graph.parent.mkdir(parents=True)
    inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
    with conversion_errors(release, "onnx"):
        torch.onnx.export(
            as_module(network, compute),
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
    report = report_on(release, "onnx", ours, theirs)
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
