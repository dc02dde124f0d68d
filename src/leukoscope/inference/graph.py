"""Graphs of a release's network, each compared with torch on eight phantoms: OpenVINO's, which is kept, and ONNX.

A report lies beside each. OpenVINO's takes pixels as `Preprocessing.frame` gives them and returns logits and the last
feature map, so that explaining needs no second pass.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from itertools import product
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from leukoscope import RESEARCH_NOTICE, ConfigError
from leukoscope.cache import GRAPH_REPORT, hold
from leukoscope.files import atomic_folder, cache_root, file_sha256, first_line, remedy
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
from leukoscope.models.release import CARD_FILE, CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE, public_name, read_arrays

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leukoscope.models.release import ReleaseInfo

GRAPH_FILE = "model.xml"
HEAD_FILE = "head.safetensors"
"""The weights (K, C) of the classifier, where it is one linear layer after average pooling."""
ONNX_GRAPH = "onnx/model.onnx"
"""Where transformers.js and optimum look for a graph."""
ALLOWED_DIFFERENCE = 1e-4
"""How far a graph's probabilities, and its maps relative to their peak, may lie from torch's."""
MOST_GRAPHS = 20  # kept in the cache, the last ones used: visitors of a demo may name any model
_GRAPH_VERSION = 3  # changes when the graph's inputs, outputs or files do
_COMPARED = 8  # phantoms
_TELEMETRY = "openvino_telemetry"


class OpenVinoBackend:
    """Computes the graph that `write_graph` wrote; loads the network only to explain through several layers.

    Raises:
        NoGraph: a damaged graph.
        ConfigError: "bf16", for which this processor has no units.
    """

    name = OPENVINO

    def __init__(self, folder: Path, release: ReleaseInfo, precision: str = F32):
        self.precision = precision
        self._release = release
        self._one_at_a_time = Lock()
        if precision == BF16 and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("precision 'bf16': this processor has no units for bfloat16; use 'float32'")
        self._head = None
        if (folder / HEAD_FILE).is_file():
            self._head = read_arrays(folder / HEAD_FILE)
        settings = {
            # Without a hint OpenVINO uses bf16 wherever the processor has it.
            "INFERENCE_PRECISION_HINT": BF16 if precision == BF16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": _number_of_threads(),
        }
        if os.access(folder, os.W_OK):
            # The compiled graph is kept there: the next process opens it in a third of the time.
            settings["CACHE_DIR"] = str(folder)
        try:
            self._request = openvino_core().compile_model(folder / GRAPH_FILE, "CPU", settings).create_infer_request()
        except Exception as error:  # OpenVINO has error types of its own
            raise NoGraph(
                f"{folder}: damaged ({first_line(error)}); remove this folder, and the graph is made anew"
            ) from None

    def __call__(self, pixels: np.ndarray, *, explain: bool = False) -> NetworkOutput:
        """Compute a batch in one pass; arguments as for `TorchBackend`."""
        logits, *features = self.outputs(pixels)
        if not explain or not features:  # no map of channels
            return NetworkOutput(logits)
        if self._head is not None:
            return NetworkOutput(logits, linear_head_maps(features[0], self._head["weights"], self.blank))
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


def _number_of_threads() -> int:
    """As many threads as torch would use."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdecimal() and int(setting):
        return int(setting)
    return usable_cores()


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


def kept_graph(release: ReleaseInfo) -> Path:
    """Return the folder of a release's graph in the cache; makes the graph unless the cache has it for these weights.

    Raises:
        NoGraph: it cannot be made or written, or its output is not torch's.
        LeukoscopeError: a damaged release.
    """
    assert release.folder is not None
    parts = [f"{_GRAPH_VERSION} {OPENVINO} {version(OPENVINO)}"]
    parts += [
        file_sha256(path) for path in (release.folder / CONFIG_FILE, release.folder / WEIGHTS_FILE) if path.is_file()
    ]
    folder = cache_root() / "graphs" / sha256(" ".join(parts).encode()).hexdigest()[:32]
    try:
        report = _report_of(folder)
        if report is None:
            report = _make_graph(release, folder)
    except (OSError, NotImplementedError) as error:  # the latter of a disk without locks
        raise NoGraph(
            f"{folder}: the {OPENVINO} graph cannot be kept there ({first_line(error)}); "
            f"{remedy(error, 'name another folder with LEUKOSCOPE_CACHE')}"
        ) from None
    hold(folder / GRAPH_REPORT)
    require_like_torch(release, report)
    return folder


def _make_graph(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Make a graph in the cache, unless another process makes it meanwhile; remove the oldest; return its report."""
    from filelock import FileLock  # here: it would slow every first prediction down

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".lock"):
        report = _report_of(folder)
        if report is None:
            with atomic_folder(folder) as temporary:
                report = write_graph(release, temporary)
            by_age = sorted(folder.parent.glob(f"*/{GRAPH_REPORT}"), key=lambda path: path.stat().st_mtime)
            for path in by_age[:-MOST_GRAPHS]:
                shutil.rmtree(path.parent, ignore_errors=True)
    return report


def _report_of(folder: Path) -> dict[str, Any] | None:
    """The report of a kept graph; None where it or a file of the graph is missing or empty."""
    try:
        report = json.loads((folder / GRAPH_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = (folder / GRAPH_FILE, folder / "model.bin")
    is_whole = all(file.is_file() and file.stat().st_size for file in files)
    if is_whole and isinstance(report, dict):
        return report
    return None


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


def write_graph(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a release's graph, its report and, where one linear layer makes the logits, that layer's weights.

    Returns:
        the report beside the graph: how far it lies from torch on 8 pictures.

    Raises:
        NoGraph: the network cannot be made into a graph.
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

    folder.mkdir(parents=True)
    example = torch.from_numpy(pixels[:2])
    with conversion_errors(release, OPENVINO):
        model = openvino.convert_model(as_module(network, compute), example_input=example)
        model.reshape([-1, *example.shape[1:]])
        try:
            # Half precision would round the BatchNorm statistics and a temperature folded into the classifier.
            openvino.save_model(model, folder / GRAPH_FILE, compress_to_fp16=False)
        except RuntimeError:
            # OpenVINO does not say why it could not write.
            bytes_needed = sum(tensor.nbytes for tensor in network.state_dict().values())
            if shutil.disk_usage(folder).free < bytes_needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
    head = linear_head(reference, pixels)
    if head is not None:
        save_file({"weights": head}, folder / HEAD_FILE)
        (folder / HEAD_FILE).chmod(0o644)  # safetensors leaves the file readable by its owner alone
    backend = OpenVinoBackend(folder, release)
    logits, *features = backend.outputs(pixels)
    graph_output = NetworkOutput(logits)
    if features:
        graph_output = NetworkOutput(logits, features[0] - backend.blank)
    for compiled in folder.glob("*.blob"):  # for this processor alone, and never found again once the folder is renamed
        compiled.unlink()
    report = report_on(release, OPENVINO, graph_output, torch_output)
    (folder / GRAPH_REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def phantom_pixels(release: ReleaseInfo) -> np.ndarray:
    """Draw the 8 phantoms that a graph is compared on, framed: (8, S, S, 3) uint8."""
    from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

    # On a background it was never trained with, a network's activations can grow until rounding is seen.
    backgrounds: list[Literal["black", "smear"]] = ["black"]
    if not release.takes_cut_outs:
        backgrounds.append("smear")
    subjects = range(_COMPARED // (2 * len(backgrounds)))
    framed = []
    for label, subject, background in product(PHANTOM_LABELS, subjects, backgrounds):
        phantom = draw_cell(label, subject=subject, cell=0, background=background)
        framed.append(release.preprocessing.frame(Image.fromarray(phantom.image)))
    return np.stack(framed)


def linear_head(reference: TorchBackend, pixels: np.ndarray) -> np.ndarray | None:
    """Return the classifier's weights (K, C) where they alone give torch's maps of these pictures; else None."""
    from leukoscope.models.weights import classifier_parameters

    maps = reference(pixels, explain=True).maps
    if maps is None:
        return None
    features = reference.features(pixels)
    weights = next(iter(classifier_parameters(reference.network))).detach().cpu().float().numpy()
    weights = weights.reshape(len(weights), -1)  # some are 1 × 1 convolutions
    if weights.shape[1] != features.shape[1]:
        return None
    maps_by_weights = linear_head_maps(features.numpy(), weights, reference.blank.numpy())
    if np.allclose(maps_by_weights, maps, rtol=ALLOWED_DIFFERENCE, atol=ALLOWED_DIFFERENCE * maps.max()):
        return weights
    return None


def report_on(release: ReleaseInfo, kind: str, graph: NetworkOutput, reference: NetworkOutput) -> dict[str, Any]:
    """Report how far a graph's output lies from torch's: in probability, and of maps relative to their peak."""
    map_difference = None
    if graph.maps is not None and reference.maps is not None:
        map_difference = float(np.abs(graph.maps - reference.maps).max() / max(reference.maps.max(), 1e-12))
    return {
        "backend": kind,
        "compared_on": f"{_COMPARED} phantoms",
        "probability_difference": float(np.abs(softmax(graph.logits) - softmax(reference.logits)).max()),
        "heat_map_difference": map_difference,
        "allowed": ALLOWED_DIFFERENCE,
        "labels": list(release.labels),
        "model": public_name(release.name, release.revision),
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }


def as_module(network: nn.Module, compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> nn.Module:
    """Make a module, which is what the exporters take, of a function that calls a network."""
    from torch import nn

    module: Any = nn.Module()
    module.network = network
    module.forward = compute
    return module.eval()


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

    reference = torch_backend(release)
    pixels = phantom_pixels(release)
    network = reference.network
    head = linear_head(reference, pixels)
    outputs = ["logits"]
    if head is not None:
        outputs.append("grad_cam")
        blank = reference.blank
        kernels = torch.from_numpy(head)[:, :, None, None] / blank[0, 0].numel()

    def compute(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = network.forward_features(pixel_values)  # type: ignore[operator]
        logits = network.forward_head(features)  # type: ignore[operator]
        if head is None:
            return (logits,)
        # As `linear_head_maps`: a sum over channels at every place is a convolution by one pixel.
        return logits, torch.nn.functional.conv2d(features - blank, kernels)

    graph = folder / ONNX_GRAPH
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
    graph_output = NetworkOutput(*session.run(None, {"pixel_values": inputs.numpy()}))
    report = report_on(release, "onnx", graph_output, reference(pixels, explain=True))
    report |= {"input": "pixel_values (B, 3, S, S) float32", "outputs": outputs}
    require_like_torch(release, report)
    _write_settings(release, folder, report)
    return report


def _write_settings(release: ReleaseInfo, folder: Path, report: dict[str, Any]) -> None:
    """Write the report, and the settings and card that transformers.js and the Hub read."""
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
    base = f"base_model: {release.name}\n" if release.revision else ""
    (folder / CARD_FILE).write_text(
        f"---\nlibrary_name: transformers.js\npipeline_tag: image-classification\n{base}---\n\n"
        f"# {report['model'].rpartition('/')[2]}, as ONNX\n\n**{RESEARCH_NOTICE}**\n\n"
        f"ONNX graph of a Leukoscope release; classes: {', '.join(release.labels)}. It takes `pixel_values` and gives "
        f"`{'` and `'.join(report['outputs'])}`. `{GRAPH_REPORT}` says how far it lies from the release. Image "
        "processors of other libraries resize and crop otherwise than the release does, and its probabilities then "
        "change.\n",
        encoding="utf-8",
    )
