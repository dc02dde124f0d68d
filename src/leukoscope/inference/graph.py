"""Graphs of a release's network, each compared with torch on eight phantoms: OpenVINO's, which is kept, and ONNX.

A report lies beside each. `open_backend` chooses between OpenVINO's graph and torch.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.files import cache_root, file_sha256, remedy
from leukoscope.inference.gradcam import linear_head_maps
from leukoscope.inference.prediction import GRADCAM, softmax
from leukoscope.inference.runtime import (
    AUTO,
    GRAPH,
    HEAD,
    OPENVINO,
    TORCH,
    Backend,
    NetworkOutput,
    NoGraph,
    OpenVinoBackend,
    Runtime,
    TorchBackend,
    blank_picture,
    require_package,
    torch_backend,
)
from leukoscope.models.release import CARD, CONFIG, PROCESSOR, WEIGHTS, public_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.models.release import ReleaseInfo
    from leukoscope.models.weights import Release

REPORT = "export.json"
ONNX_GRAPH = "onnx/model.onnx"
"""Where transformers.js and optimum look for a graph."""
ALLOWED = 1e-4
"""How far a graph's probabilities, and its Grad-CAM maps relative to their peak, may lie from torch's."""
MOST_GRAPHS = 20  # kept in the cache, the last ones used: visitors of a demo may name any model
_GRAPH_VERSION = 3  # changes when the graph's inputs, outputs or files do
_GRAPH_PAYS_OFF = 200  # cells that torch computes in about the time that the graph is made in
_COMPARED = 8  # phantoms
_log = logging.getLogger("leukoscope")


def open_backend(release: ReleaseInfo, runtime: Runtime = Runtime()) -> Backend:
    """Open the backend that computes a release's network; its `name` and `precision` say how.

    Raises:
        LeukoscopeError: no such backend, one whose package is not installed, that does not compute on that device or
            whose output differs from torch's; a damaged release; a device that this machine lacks.
    """
    runtime = runtime.chosen()
    if runtime.backend == OPENVINO:
        if runtime.device != "cpu":
            raise LeukoscopeError(
                f"backend {OPENVINO!r}: computes on the CPU only; leave out device {runtime.device!r}"
            )
        require_package(OPENVINO)
        return OpenVinoBackend(kept_graph(release), release, runtime.precision)
    if runtime.backend == AUTO and runtime.device == "cpu" and find_spec(OPENVINO):
        try:
            return OpenVinoBackend(kept_graph(release), release, runtime.precision)
        except NoGraph as reason:
            _log.warning("%s; torch is used", reason)
    return torch_backend(release, runtime)


def float32_backend(release: Release, cells: int) -> Backend:
    """Open the fastest backend to compute that many cells in float32 on the CPU: OpenVINO, or torch for few.

    The release's folder, if it has one, holds the very weights of its network.
    """
    worthwhile = cells >= _GRAPH_PAYS_OFF and release.folder is not None
    return open_backend(release, Runtime(AUTO if worthwhile else TORCH, "cpu"))


def kept_graph(release: ReleaseInfo) -> Path:
    """Return the folder of a release's graph in the cache, made now unless one of these very weights is kept.

    Raises:
        NoGraph: it cannot be made or written, or its output is not torch's.
        LeukoscopeError: a damaged release.
    """
    assert release.folder is not None
    parts = [f"{_GRAPH_VERSION} {OPENVINO} {version(OPENVINO)}"]
    parts += [file_sha256(path) for path in (release.folder / CONFIG, release.folder / WEIGHTS) if path.is_file()]
    folder = cache_root() / "graphs" / sha256(" ".join(parts).encode()).hexdigest()[:32]
    try:
        report = _report_of(folder) or _make(release, folder)
    except OSError as error:
        raise NoGraph(
            f"{folder}: the {OPENVINO} graph cannot be kept there ({error.strerror or error}); "
            f"{remedy(error, 'name another folder with LEUKOSCOPE_CACHE')}"
        ) from None
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(folder / REPORT)  # when it was last used
    require_like_torch(release, report)
    return folder


def _report_of(folder: Path) -> dict[str, Any] | None:
    """The report of a kept graph; None where it or a file of the graph is missing or empty."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = (folder / GRAPH, folder / "model.bin")
    whole = all(file.is_file() and file.stat().st_size for file in files)
    return report if whole and isinstance(report, dict) else None


def _make(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a graph into the cache, remove those used least recently, and return the graph's report."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        made = Path(aside) / "graph"
        report = write_graph(release, made)
        if _report_of(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a loss of power left
        try:
            made.rename(folder)
        except OSError:
            # Another process has made the same graph meanwhile, and may be using it.
            if _report_of(folder) is None:
                raise
    used = []
    for kept in folder.parent.glob(f"*/{REPORT}"):
        with suppress(OSError):  # another process may be removing the same ones
            used.append((kept.stat().st_mtime, kept.parent))
    for _, old in sorted(used)[:-MOST_GRAPHS]:
        shutil.rmtree(old, ignore_errors=True)
    return report


def require_like_torch(release: ReleaseInfo, report: Mapping[str, Any]) -> None:
    """Raise `NoGraph` where a graph's report says that it differs from torch."""
    named = (("probability_difference", "in probability"), ("heat_map_difference", "of a Grad-CAM map's peak"))
    differences = [(report[key], what) for key, what in named if report[key] is not None]
    # `not <=` rather than `>`, so that nan is named as well.
    if told := [f"{by:.1e} {what}" for by, what in differences if not by <= report["allowed"]]:
        raise NoGraph(
            f"{release.name}: its {report['backend']} graph differs from torch by {' and '.join(told)}, more than "
            f"{report['allowed']:g}; use backend='torch'"
        )


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

    reference, pixels = torch_backend(release), phantom_pixels(release)
    theirs = reference(pixels, explain=True, method=GRADCAM)
    network, preprocessing = reference.network, release.preprocessing

    def compute(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(preprocessing.normalise(pixels.permute(0, 3, 1, 2)))  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        return (logits,) if theirs.maps is None else (logits, features)

    folder.mkdir(parents=True)
    example = torch.from_numpy(pixels[:2])
    with conversion_errors(release, OPENVINO):
        model = openvino.convert_model(as_module(network, compute), example_input=example)
        model.reshape([-1, *example.shape[1:]])
        try:
            # Half precision would round the BatchNorm statistics and a temperature folded into the classifier.
            openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
        except RuntimeError:
            # OpenVINO does not say why it could not write.
            if shutil.disk_usage(folder).free < sum(one.nbytes for one in network.state_dict().values()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
    if (head := linear_head(reference, pixels)) is not None:
        save_file({"weights": head}, folder / HEAD)
        (folder / HEAD).chmod(0o644)  # safetensors leaves the file readable by its owner alone

    # Grad-CAM, which needs the features alone; the evidence is made from the same features.
    ours = OpenVinoBackend(folder, release)(pixels, explain=True, method=GRADCAM)
    for compiled in folder.glob("*.blob"):  # for this processor alone, and never found again once the folder is renamed
        compiled.unlink()
    report = report_on(release, OPENVINO, ours, theirs)
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def phantom_pixels(release: ReleaseInfo) -> np.ndarray:
    """Draw the 8 phantoms that a graph is compared on, framed: (8, S, S, 3) uint8."""
    from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

    # On a background it was never trained with, a network's activations can grow until rounding is seen.
    backgrounds: tuple[Literal["black", "smear"], ...] = ("black",) if release.takes_cut_outs else ("black", "smear")
    kinds = product(PHANTOM_LABELS, range(_COMPARED // (2 * len(backgrounds))), backgrounds)
    phantoms = [draw_cell(label, subject=subject, cell=0, background=on).image for label, subject, on in kinds]
    return np.stack([release.preprocessing.frame(Image.fromarray(phantom)) for phantom in phantoms])


def linear_head(reference: TorchBackend, pixels: np.ndarray) -> np.ndarray | None:
    """Return the classifier's weights (K, C) where they alone give torch's maps of these pictures; else None."""
    from leukoscope.models.weights import classifier_parameters

    maps, features = reference(pixels, explain=True, method=GRADCAM).maps, reference.features(pixels)
    if maps is None:
        return None
    weights = next(iter(classifier_parameters(reference.network))).detach().cpu().float().numpy()
    weights = weights.reshape(len(weights), -1)  # some are 1 × 1 convolutions
    if weights.shape[1] != features.shape[1]:
        return None
    ours = linear_head_maps(features.numpy(), weights)
    return weights if np.allclose(ours, maps, rtol=ALLOWED, atol=ALLOWED * maps.max()) else None


def report_on(release: ReleaseInfo, kind: str, ours: NetworkOutput, theirs: NetworkOutput) -> dict[str, Any]:
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


def as_module(network: nn.Module, compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> nn.Module:
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
def conversion_errors(release: ReleaseInfo, kind: str) -> Iterator[None]:
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


# ONNX, for other programs


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
        kernels = torch.from_numpy(head)[:, :, None, None] / blank[0, 0].numel()

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
