"""Make the graphs of a release's network, each compared with torch: kept for our backends, or for transformers.js.

A graph is used only after its output on eight phantoms was compared with torch's; the report lies beside it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.files import atomic_folder, cache_root, file_sha256, remedy
from leukoscope.inference.backends import OPENVINO, PACKAGES, NoGraph, blank_picture
from leukoscope.inference.gradcam import explain_features, is_map_of_channels, linear_head_maps
from leukoscope.inference.graph import GRAPHS, HEAD, ExportedBackend
from leukoscope.inference.prediction import GRADCAM, softmax
from leukoscope.models.release import CARD, CONFIG, PROCESSOR, WEIGHTS, public_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.models.release import ReleaseInfo

TRANSFORMERS_JS = "transformers.js"
WEB_GRAPH = "onnx/model.onnx"
"""Where transformers.js and optimum look for a model."""
REPORT = "export.json"
ALLOWED = 1e-4
"""How far a graph's probabilities, and its Grad-CAM maps relative to their peak, may lie from torch's."""
MOST_GRAPHS = 20
"""Kept in the cache, the last ones used: visitors of a demo may name any model."""
_COMPARED = 8
# Changes when the graph's inputs, outputs or files do, so that older ones are made anew.
_GRAPH_VERSION = 3


def kept_graph(release: ReleaseInfo, backend: str) -> Path:
    """Return the folder of a release's graph in the cache, made now unless one of these very weights is kept.

    Raises:
        NoGraph: it cannot be made or written, or its output is not torch's.
        LeukoscopeError: a damaged release.
    """
    assert release.folder is not None
    parts = [f"{_GRAPH_VERSION} {backend} {version(PACKAGES[backend][0])}"]
    parts += [file_sha256(path) for path in (release.folder / CONFIG, release.folder / WEIGHTS) if path.is_file()]
    folder = cache_root() / "graphs" / sha256(" ".join(parts).encode()).hexdigest()[:32]
    try:
        report = _report_of(folder, backend) or _make(release, backend, folder)
    except OSError as error:
        raise NoGraph(
            f"{folder}: the {backend} graph cannot be kept there ({error.strerror or error}); "
            f"{remedy(error, 'name another folder with LEUKOSCOPE_CACHE')}"
        ) from None
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(folder / REPORT)  # when it was last used
    _require_like_torch(
        release, backend, report["probability_difference"], report["heat_map_difference"], report["allowed"]
    )
    return folder


def _report_of(folder: Path, backend: str) -> dict[str, Any] | None:
    """The report of a kept graph; None where it or a file of the graph is missing or empty."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = [folder / GRAPHS[backend], *([folder / "model.bin"] if backend == OPENVINO else [])]
    whole = all(file.is_file() and file.stat().st_size for file in files)
    return report if whole and isinstance(report, dict) else None


def _make(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a graph into the cache, remove those used least recently, and return the graph's report."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        made = Path(aside) / "graph"
        report = write_graph(release, backend, made)
        if _report_of(folder, backend) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a loss of power left
        try:
            made.rename(folder)
        except OSError:
            # Another process has made the same graph meanwhile, and may be using it.
            if _report_of(folder, backend) is None:
                raise
    used = []
    for kept in folder.parent.glob(f"*/{REPORT}"):
        with suppress(OSError):  # another process may be removing the same ones
            used.append((kept.stat().st_mtime, kept.parent))
    for _, old in sorted(used)[:-MOST_GRAPHS]:
        shutil.rmtree(old, ignore_errors=True)
    return report


def _require_like_torch(
    release: ReleaseInfo, backend: str, probability: float, of_peak: float | None, allowed: float = ALLOWED
) -> None:
    differences = {"in probability": probability, "of a Grad-CAM map's peak": of_peak}
    # `not <=` rather than `>`, so that nan is named as well.
    told = [f"{by:.1e} {what}" for what, by in differences.items() if by is not None and not by <= allowed]
    if told:
        raise NoGraph(
            f"{release.name}: its {backend} graph differs from torch by {' and '.join(told)}, more than {allowed:g}; "
            "use backend='torch'"
        )


def export_release(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a release's graph into a folder, whole or not at all, as `write_graph` or `write_transformers_js` does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as aside:
        if backend == TRANSFORMERS_JS:
            return write_transformers_js(release, aside)
        return write_graph(release, backend, aside)


def write_graph(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a release's graph, its report and, where one linear layer makes the logits, that layer's weights.

    Returns:
        the report beside the graph: how far it lies from torch on 8 pictures, and whether that is allowed.

    Raises:
        NoGraph: the network cannot be made into a graph.
        OSError: the disk refuses.
    """
    import torch

    reference = _Reference.of(release)
    network, preprocessing = reference.network, release.preprocessing
    outputs = ["logits"] if reference.maps is None else ["logits", "features"]

    def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(preprocessing.normalise(pixels.permute(0, 3, 1, 2)))  # type: ignore[operator]
        return (network.forward_head(features), features)[: len(outputs)]  # type: ignore[operator]

    folder.mkdir(parents=True)
    example = torch.from_numpy(reference.pixels[:2])
    _export(release, backend, forward, network, example, folder / GRAPHS[backend], ["pixels", *outputs])
    if (weights := reference.class_weights()) is not None:
        from safetensors.numpy import save_file

        from leukoscope.models.layers import classifier_parameters

        biases = classifier_parameters(reference.network)[1].detach().cpu().float().numpy()
        save_file({"weights": weights, "biases": biases}, folder / HEAD)
        (folder / HEAD).chmod(0o644)  # safetensors leaves the file readable by its owner alone

    # Grad-CAM, which needs the features alone; the evidence is made from the same features.
    ours = ExportedBackend(folder, release)(reference.pixels, explain=True, method=GRADCAM)
    for compiled in folder.glob("*.blob"):  # for this processor alone, and never found again once the folder is renamed
        compiled.unlink()
    probability, of_peak = reference.differences(ours.logits, ours.maps)
    report = {
        **_report(release, backend, probability, of_peak),
        "allowed": ALLOWED,
        "like_torch": probability <= ALLOWED and (of_peak or 0.0) <= ALLOWED,
        "input": "pixels (B, S, S, 3) uint8, RGB, as Preprocessing.frame of config.json gives them",
        "outputs": "logits (B, K) float32" + ("; features (B, C, h, w) float32" if reference.maps is not None else ""),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


@dataclass(frozen=True)
class _Reference:
    """What torch computes of the phantoms that a graph is compared on.

    Attributes:
        pixels, inputs: (8, S, S, 3) uint8 and (8, 3, S, S) float32.
        features: the network's last ones.
        logits, maps: (8, K) and Grad-CAM (8, K, h, w); no maps where the features are no map of channels.
    """

    network: nn.Module
    pixels: np.ndarray
    inputs: torch.Tensor
    features: torch.Tensor
    logits: np.ndarray
    maps: np.ndarray | None

    @classmethod
    def of(cls, release: ReleaseInfo) -> _Reference:
        import torch

        from leukoscope.data.registry import trained_on
        from leukoscope.models.weights import load_release
        from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

        network = load_release(release).network
        info = trained_on(release.metrics)
        # On a background it was never trained with, a network's activations can grow until rounding is seen.
        known_black = info is not None and info.background == "black"
        backgrounds: tuple[Literal["black", "smear"], ...] = ("black",) if known_black else ("black", "smear")
        kinds = product(PHANTOM_LABELS, range(_COMPARED // (2 * len(backgrounds))), backgrounds)
        phantoms = [draw_cell(label, subject=subject, cell=0, background=on).image for label, subject, on in kinds]
        pixels = np.stack([release.preprocessing.frame(Image.fromarray(phantom)) for phantom in phantoms])
        with torch.inference_mode():
            inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            features = network.forward_features(inputs)  # type: ignore[operator]
            logits = network.forward_head(features).numpy()  # type: ignore[operator]
        if not is_map_of_channels(network, features):
            return cls(network, pixels, inputs, features, logits, None)
        logits, maps = (found.numpy() for found in explain_features(network, features))
        return cls(network, pixels, inputs, features, logits, maps)

    def class_weights(self) -> np.ndarray | None:
        """The classifier's (K, C) weights where they alone give torch's maps of these features; else None."""
        from leukoscope.models.layers import classifier_parameters

        if self.maps is None:
            return None
        parameters = classifier_parameters(self.network)[0].detach().cpu().float()
        weights = parameters.flatten(1).numpy()  # some are 1 × 1 convolutions
        if weights.shape[1] != self.features.shape[1]:
            return None
        ours = linear_head_maps(self.features.numpy(), weights)
        return weights if np.allclose(ours, self.maps, rtol=ALLOWED, atol=ALLOWED * self.maps.max()) else None

    def differences(self, logits: np.ndarray, maps: np.ndarray | None) -> tuple[float, float | None]:
        """How far probabilities lie from torch's, and maps relative to their peak; None without maps."""
        probability = float(np.abs(softmax(logits) - softmax(self.logits)).max())
        if maps is None or self.maps is None:
            return probability, None
        return probability, float(np.abs(maps - self.maps).max() / max(self.maps.max(), 1e-12))


def _report(release: ReleaseInfo, backend: str, probability: float, of_peak: float | None) -> dict[str, Any]:
    return {
        "backend": backend,
        "compared_on": f"{_COMPARED} phantoms",
        "probability_difference": probability,
        "heat_map_difference": of_peak,
        "labels": list(release.labels),
        "model": public_name(release.name, release.revision),
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }


def _export(
    release: ReleaseInfo,
    backend: str,
    compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    network: nn.Module,
    example: torch.Tensor,
    path: Path,
    names: list[str],
) -> None:
    """Write a function that calls a network as a graph for any batch size; `names` are those of input and outputs."""
    from torch import nn

    class Graph(nn.Module):  # what the exporters take
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return compute(pixels)

    module = Graph().eval()
    try:
        # The exporters warn of what torch will drop; users can do nothing about it.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            if backend == OPENVINO:
                import openvino

                model = openvino.convert_model(module, example_input=example)
                model.reshape([-1, *example.shape[1:]])
                # Half precision would round the BatchNorm statistics and a temperature folded into the classifier.
                try:
                    openvino.save_model(model, path, compress_to_fp16=False)
                except RuntimeError:
                    # OpenVINO does not say why it could not write.
                    if shutil.disk_usage(path.parent).free < sum(one.nbytes for one in module.state_dict().values()):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
                    raise
            else:
                import torch

                torch.onnx.export(
                    module,
                    (example,),
                    path,
                    dynamo=True,
                    input_names=names[:1],
                    output_names=names[1:],
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                    external_data=False,
                )
    except OSError:
        raise
    except Exception as error:  # the exporters raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoGraph(
            f"{release.name}: cannot be made into a {backend} graph ({reason}); use backend='torch'"
        ) from None


# For transformers.js


def write_transformers_js(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
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

    reference = _Reference.of(release)
    network, weights = reference.network, reference.class_weights()
    outputs = ["logits"] if weights is None else ["logits", "grad_cam"]
    if weights is not None:
        pixels = np.array(blank_picture(release.preprocessing, release.blank_rgb))
        with torch.inference_mode():
            inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            blank = network.forward_features(inputs).clone()  # type: ignore[operator]
        maps = explain_features(network, reference.features, blank)[1].relu().numpy()
        reference = replace(reference, maps=maps)
        kernels, places = torch.from_numpy(weights)[:, :, None, None], blank[0, 0].numel()

    def forward(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(pixel_values)  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        if weights is None:
            return (logits,)
        # As `linear_head_maps`: a sum over channels at every place is a convolution by one pixel.
        return logits, torch.nn.functional.conv2d(features - blank, kernels / places).relu()

    graph = folder / WEB_GRAPH
    graph.parent.mkdir(parents=True)
    example = reference.inputs[:2].contiguous()
    _export(release, TRANSFORMERS_JS, forward, network, example, graph, ["pixel_values", *outputs])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits, *found = session.run(None, {"pixel_values": reference.inputs.contiguous().numpy()})
    probability, of_peak = reference.differences(logits, found[0] if found else None)
    _require_like_torch(release, TRANSFORMERS_JS, probability, of_peak)
    report = {
        **_report(release, TRANSFORMERS_JS, probability, of_peak),
        "input": "pixel_values (B, 3, S, S) float32",
        "outputs": outputs,
    }
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
        f"# {report['model'].rpartition('/')[2]}, for transformers.js\n\n**{RESEARCH_NOTICE}**\n\n"
        f"ONNX graph of a Leukoscope release; classes: {', '.join(release.labels)}. It takes `pixel_values` and gives "
        f"`{'` and `'.join(report['outputs'])}`. `{REPORT}` says how far it lies from the release. Image "
        "processors of other libraries resize and crop otherwise than the release does, and its probabilities then "
        "change.\n",
        encoding="utf-8",
    )
