"""A release's network for OpenVINO, compiled and kept, and for ONNX; each is compared with torch on eight phantoms.

OpenVINO's takes pixels as `Preprocessing.frame` gives them and returns logits and the last feature map, so that
explaining needs no second pass.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from itertools import product
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from safetensors.numpy import save

from leukoscope import RESEARCH_NOTICE, ConfigError
from leukoscope.cache import entry_folder, intact, replacing
from leukoscope.files import file_sha256, first_line, remedy
from leukoscope.inference.gradcam import explain_features, linear_head_maps
from leukoscope.inference.prediction import softmax
from leukoscope.inference.runtime import (
    BF16,
    F32,
    OPENVINO,
    NetworkOutput,
    NoGraph,
    TorchBackend,
    blank_picture,
    torch_backend,
    usable_cores,
)
from leukoscope.models.release import CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE, public_name, read_arrays

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.models.release import ReleaseInfo

GRAPH_REPORT = "export.json"
"""How far a network lies from torch's."""
NETWORK_FILE = "network.blob"
HEAD_FILE = "head.safetensors"
ONNX_GRAPH = "onnx/model.onnx"
"""Where transformers.js and optimum look for a graph."""
ALLOWED_DIFFERENCE = 1e-4
"""How far a graph's probabilities, and its maps relative to their peak, may lie from torch's."""
_GRAPH_VERSION = 4  # changes when the network's inputs, outputs or files do
_TELEMETRY = "openvino_telemetry"


class OpenVinoBackend:
    """Computes a compiled network; loads it in torch only to explain through several layers.

    Args:
        compiled: an `openvino.CompiledModel`, which takes (B, S, S, 3) uint8 and gives logits and, where they are a map
            of channels, the last features.
        head: (K, C), the weights of a classifier that is one linear layer after average pooling; empty for any other.
    """

    name = OPENVINO

    def __init__(self, release: ReleaseInfo, precision: str, compiled: Any, head: np.ndarray):
        self.precision = precision
        self._release = release
        self._request = compiled.create_infer_request()
        self._head = head
        self._one_at_a_time = Lock()

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> NetworkOutput:
        """Compute a batch in one pass; arguments as for `TorchBackend`."""
        logits, *features = self.outputs(pixels)
        if not explain or not features:  # no map of channels
            return NetworkOutput(logits)
        if self._head.size:
            return NetworkOutput(logits, linear_head_maps(features[0], self._head, self.blank))
        import torch

        _, maps = explain_features(self._network, torch.from_numpy(features[0]), torch.from_numpy(self.blank))
        return NetworkOutput(logits, maps.numpy())

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """(B, S, S, 3) uint8 → logits and, where they are a map of channels, the last features."""
        with self._one_at_a_time:
            outputs = self._request.infer({0: np.ascontiguousarray(pixels)}, share_inputs=True)
            return [outputs[number].copy() for number in range(len(outputs))]

    @cached_property
    def blank(self) -> np.ndarray:
        """(1, C, h, w), the blank picture's features, which no picture changes."""
        return self.outputs(blank_picture(self._release.preprocessing, self._release.blank_rgb))[1]

    @cached_property
    def _network(self) -> nn.Module:
        from leukoscope.models.weights import load_release

        return load_release(self._release).network


def openvino_backend(release: ReleaseInfo, precision: str = F32) -> OpenVinoBackend:
    """Open a release's network in OpenVINO; compiles it first unless the cache has it for these weights, intact.

    Raises:
        NoGraph: the network cannot be converted or kept, or its output is not torch's.
        ConfigError: "bf16", for which this processor has no units.
        LeukoscopeError: a damaged release.
    """
    core = openvino_core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == BF16 and "BF16" not in capabilities:
        raise ConfigError("precision 'bf16': this processor has no units for bfloat16; use 'float32'")
    assert release.folder is not None
    files = (release.folder / CONFIG_FILE, release.folder / WEIGHTS_FILE)
    digests = [file_sha256(path) for path in files if path.is_file()]
    processor = (core.get_property("CPU", "FULL_DEVICE_NAME"), *capabilities)
    folder = entry_folder("graphs", _GRAPH_VERSION, version(OPENVINO), processor, precision, *digests)
    try:
        if not all(intact(folder / name) for name in (NETWORK_FILE, HEAD_FILE, GRAPH_REPORT)):
            _compile_into(folder, release, precision)
        report = json.loads((folder / GRAPH_REPORT).read_text(encoding="utf-8"))
        require_like_torch(release, report)
        compiled = core.import_model((folder / NETWORK_FILE).read_bytes(), "CPU", _settings(precision))
    except (OSError, RuntimeError) as error:
        raise NoGraph(
            f"{folder}: the {OPENVINO} network cannot be kept or opened there ({first_line(error)}); "
            f"{remedy(error, 'name another folder with LEUKOSCOPE_CACHE')}"
        ) from None
    return OpenVinoBackend(release, precision, compiled, read_arrays(folder / HEAD_FILE)["weights"])


def _settings(precision: str) -> dict[str, Any]:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if not threads.isdecimal() or not int(threads):
        threads = str(usable_cores())
    return {
        # Without a hint OpenVINO uses bf16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": BF16 if precision == BF16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # As many as torch would use.
        "INFERENCE_NUM_THREADS": int(threads),
    }


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the one `openvino.Core` of this process, which is never freed.

    Each sets a signal stack for the thread and restores the one before when it is freed. Where two overlap, that one
    may be gone, and the next signal, such as a Ctrl-C, ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    return import_openvino().Core()


def import_openvino() -> Any:
    """Import OpenVINO so that it reports nothing to Google Analytics, as it does with each import and conversion.

    OpenVINO documents one way to stop this, the command `opt_in_out --opt_out`, which writes the decision of a person
    for all programs into the home folder. For this import alone, its package for reports is hidden: OpenVINO then takes
    a stand-in of its own that reports nothing. Where the program that uses Leukoscope has imported OpenVINO or that
    package before, its choice stays.
    """
    hidden = not {OPENVINO, _TELEMETRY} & sys.modules.keys()
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        openvino = import_module(OPENVINO)
        import_module("openvino.tools.ovc")  # what converts takes the package, or the stand-in, when it is imported
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    return openvino


def require_like_torch(release: ReleaseInfo, report: Mapping[str, Any]) -> None:
    """Raise `NoGraph` where a graph's report says that it differs from torch."""
    units = {"probability_difference": "in probability", "heat_map_difference": "of a Grad-CAM map's peak"}
    differences = []
    for key, unit in units.items():
        # `not <=` rather than `>`, so that nan is named as well.
        if report[key] is not None and not report[key] <= report["allowed"]:
            differences.append(f"{report[key]:.1e} {unit}")
    if differences:
        raise NoGraph(
            f"{release.name}: its {report['backend']} graph differs from torch by {' and '.join(differences)}, more "
            f"than {report['allowed']:g}; use backend='torch'"
        )


def _compile_into(folder: Path, release: ReleaseInfo, precision: str) -> None:
    """Compile a release's network for this processor into the cache, with its head and how far it lies from torch.

    Raises:
        NoGraph: the network cannot be converted.
        OSError: the disk refuses.
    """
    import torch

    openvino = import_openvino()
    reference = torch_backend(release)
    pixels = phantom_pixels(release)
    network = reference.network
    torch_output = reference(pixels, explain=True)
    has_maps = torch_output.maps is not None
    if has_maps:
        # Compared are the features: the same code makes maps of them.
        torch_output = NetworkOutput(torch_output.logits, (reference.features(pixels) - reference.blank).numpy())

    def compute(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = release.preprocessing.normalise(pixels.permute(0, 3, 1, 2))
        features = network.forward_features(inputs)  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        if has_maps:
            return logits, features
        return (logits,)

    module: Any = torch.nn.Module()
    module.network = network
    module.forward = compute
    example = torch.from_numpy(pixels[:2])
    with conversion_errors(release, OPENVINO):
        model = openvino.convert_model(module.eval(), example_input=example)
        model.reshape([-1, *example.shape[1:]])
    compiled = openvino_core().compile_model(model, "CPU", _settings(F32))
    head = linear_head(reference, pixels)
    backend = OpenVinoBackend(release, F32, compiled, head)
    logits, *features = backend.outputs(pixels)
    graph_output = NetworkOutput(logits)
    if features:
        graph_output = NetworkOutput(logits, features[0] - backend.blank)
    report = report_on(release, OPENVINO, graph_output, torch_output)
    if precision != F32:
        compiled = openvino_core().compile_model(model, "CPU", _settings(precision))
    contents = {
        NETWORK_FILE: compiled.export_model().getvalue(),
        HEAD_FILE: save({"weights": head}),
        GRAPH_REPORT: json.dumps(report, indent=1).encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def phantom_pixels(release: ReleaseInfo) -> np.ndarray:
    """Draw the 8 phantoms that a graph is compared on, framed: (8, S, S, 3) uint8."""
    from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

    # On a background it was never trained with, a network's activations can grow until rounding is seen.
    backgrounds: list[Literal["black", "smear"]] = ["black", "black" if release.takes_cut_outs else "smear"]
    framed = []
    for label, subject, cell in product(PHANTOM_LABELS, range(2), range(2)):
        phantom = draw_cell(label, subject=subject, cell=cell, background=backgrounds[cell])
        framed.append(release.preprocessing.frame(Image.fromarray(phantom.image)))
    return np.stack(framed)


def linear_head(reference: TorchBackend, pixels: np.ndarray) -> np.ndarray:
    """Return the classifier's weights (K, C) where they alone give torch's maps of these pictures; else (0, 0)."""
    from leukoscope.models.weights import classifier_parameters

    no_head = np.zeros((0, 0), np.float32)
    maps = reference(pixels, explain=True).maps
    if maps is None:
        return no_head
    features = reference.features(pixels)
    weights = next(iter(classifier_parameters(reference.network))).detach().cpu().float().numpy()
    weights = weights.reshape(len(weights), -1)  # some are 1 × 1 convolutions
    if weights.shape[1] != features.shape[1]:
        return no_head
    maps_by_weights = linear_head_maps(features.numpy(), weights, reference.blank.numpy())
    if np.allclose(maps_by_weights, maps, rtol=ALLOWED_DIFFERENCE, atol=ALLOWED_DIFFERENCE * maps.max()):
        return weights
    return no_head


def report_on(release: ReleaseInfo, kind: str, graph: NetworkOutput, reference: NetworkOutput) -> dict[str, Any]:
    """Report how far a graph's output lies from torch's: in probability, and of maps relative to their peak."""
    map_difference = None
    if graph.maps is not None and reference.maps is not None:
        map_difference = float(np.abs(graph.maps - reference.maps).max() / max(reference.maps.max(), 1e-12))
    return {
        "backend": kind,
        "compared_on": "8 phantoms",
        "probability_difference": float(np.abs(softmax(graph.logits) - softmax(reference.logits)).max()),
        "heat_map_difference": map_difference,
        "allowed": ALLOWED_DIFFERENCE,
        "labels": list(release.labels),
        "model": public_name(release.name, release.revision),
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }


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
        raise NoGraph(
            f"{release.name}: cannot be made into a {kind} graph ({first_line(error)}); use backend='torch'"
        ) from None


# ONNX, for other programs


def write_onnx(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a release in the layout that transformers.js and optimum load: an ONNX file and its settings.

    The graph takes `pixel_values` (B, 3, S, S) float32, as `Preprocessing.normalise` gives them, and gives `logits`
    (B, K).

    Returns:
        the report in export.json: how far the graph lies from torch on 8 pictures.

    Raises:
        NoGraph: the network cannot be made into a graph, or the graph's output is not torch's.
        OSError: the disk refuses.
    """
    import onnxruntime
    import torch

    reference = torch_backend(release)
    pixels = phantom_pixels(release)
    graph = folder / ONNX_GRAPH
    graph.parent.mkdir(parents=True)
    inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
    with conversion_errors(release, "onnx"):
        torch.onnx.export(
            reference.network,
            (inputs[:2],),
            graph,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
        )
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    graph_output = NetworkOutput(*session.run(None, {"pixel_values": inputs.numpy()}))
    report = report_on(release, "onnx", graph_output, reference(pixels))
    report |= {"input": "pixel_values (B, 3, S, S) float32", "outputs": ["logits"]}
    require_like_torch(release, report)
    _write_settings(release, folder, report)
    return report


def _write_settings(release: ReleaseInfo, folder: Path, report: dict[str, Any]) -> None:
    """Write the report, and the settings that transformers.js reads."""
    preprocessing = release.preprocessing
    labels = dict(enumerate(release.labels))
    config = {
        # transformers.js and optimum choose by this name how to call a model. This one is called as a ResNet is.
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
        "size": {"shortest_edge": preprocessing.resized_side},
        "resample": Image.Resampling[preprocessing.interpolation.upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.image_size, "width": preprocessing.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }
    for name, content in {CONFIG_FILE: config, PROCESSOR_FILE: processor, GRAPH_REPORT: report}.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
