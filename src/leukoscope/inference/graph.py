"""A release's network as a graph that OpenVINO or ONNX Runtime computes without torch: run, made and kept.

A graph takes the pixels as `Preprocessing.frame` gives them, standardises them itself, and gives logits and the last
feature map, so that explaining costs no second pass. Our own code because no runtime or library gives logits and
Grad-CAM from one pass, and because a graph is used only after its output was compared with torch's.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.metadata import version
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.files import atomic_folder, cache_root, remedy, write_atomic
from leukoscope.inference.gradcam import EVIDENCE, GRADCAM, explain_features, linear_head_maps
from leukoscope.inference.prediction import softmax
from leukoscope.models.release_files import CARD, CONFIG, PROCESSOR, WEIGHTS, folder_name, read_arrays

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike
    from torch import nn

    from leukoscope.data.preprocessing import Preprocessing
    from leukoscope.models.release_files import ReleaseInfo

OPENVINO, ONNX, TRANSFORMERS_JS = "openvino", "onnx", "transformers.js"
F32, BF16, INT8 = "f32", "bf16", "int8"
PRECISION_NAMES = {F32: "float32", BF16: "bfloat16", INT8: "int8"}
PACKAGES = {OPENVINO: ("openvino", "openvino"), ONNX: ("onnxruntime", "onnxruntime onnxscript")}
"""The module each needs, and what installs it."""
GRAPHS = {OPENVINO: "model.xml", ONNX: "model.onnx"}
# Where transformers.js and optimum look for a model, and for the smaller copy of it.
WEB_GRAPH, WEB_QUANTISED = "onnx/model.onnx", "onnx/model_quantized.onnx"
# How far the probabilities of the quantised copy may lie from torch's; with eight bits, or else with sixteen.
QUANTISED_ALLOWED = 0.02
REPORT, HEAD = "export.json", "head.safetensors"
# How far a graph's probabilities, and its Grad-CAM maps relative to their peak, may lie from torch's.
ALLOWED = 1e-4
_COMPARED = 8
# Changes when the graph's inputs, outputs or files do, so that older ones are made anew.
GRAPH_VERSION = 2
# Of a convolution's inputs, the share that int8 does not clip, and the room above it that other cells may take.
_UNCLIPPED, _ROOM = 0.9999, 1.2
# Visitors of a demo may name any model: of the graphs made for them the last ones used are kept.
MOST_GRAPHS = 20


class NetworkOutput(NamedTuple):
    """What a network computes for B pictures.

    Attributes:
        logits: (B, K) float32.
        maps: (B, K, h, w) float32, every class's map: signed evidence relative to the blank picture, or Grad-CAM, ≥ 0;
            None where `explain` was not set.
    """

    logits: np.ndarray
    maps: np.ndarray | None = None


class NoGraph(LeukoscopeError):
    """A release's graph for a backend cannot be made or kept, or its output differs from torch's."""


class NoFeatureMap(NoGraph):
    """A network's last features are no map of channels, as transformers' are not; its graph could never explain."""


def usable_cores() -> int:
    """How many cores this process may run on; where the system does not say, as macOS does not, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blank_picture(preprocessing: Preprocessing, rgb: tuple[int, int, int]) -> np.ndarray:
    """The picture without a cell that evidence is relative to: (1, S, S, 3) uint8, of one colour."""
    side = preprocessing.image_size
    return np.broadcast_to(np.array(rgb, np.uint8), (1, side, side, 3))


class ExportedBackend:
    """Computes a release's graph.

    Args:
        folder: what `write_graph` wrote.
        release: whose graph it is; its network is loaded only to explain through a head of several layers.
        precision: "f32"; or, with OpenVINO alone and where this processor `computes` it, "bf16" for the backbone or
            "int8" for its convolutions but the first. The last linear layer is computed in float32.
        logit_shift: (K,), added to the logits of a lower precision: by how much it lowers them on average.
        ranges: for "int8", what `convolution_ranges` measured of the release.

    Attributes:
        logit_shift: (K,) as given, zeros without; may be set anew.
        ranges: as given.

    Raises:
        NoGraph: a damaged graph, `ranges` of another one, or a lower precision of a network whose logits are not one
            linear layer of pooled features.
    """

    def __init__(
        self,
        folder: Path,
        release: ReleaseInfo,
        *,
        precision: str = F32,
        logit_shift: ArrayLike | None = None,
        ranges: Sequence[Mapping[str, Any]] = (),
    ):
        self.name = next(name for name, file in GRAPHS.items() if (folder / file).is_file())
        self.precision, self.ranges = precision, ranges
        self._release = release
        # (K, C) and (K,), there where one linear layer after average pooling makes the logits.
        head = read_arrays(folder / HEAD) if (folder / HEAD).is_file() else {}
        self._class_weights, self._class_biases = head.get("weights"), head.get("biases")
        if precision != F32 and (self._class_weights is None or self._class_biases is None):
            raise NoGraph(f"{release.name}: its head is not one linear layer of pooled features; use float32")
        self.logit_shift = np.asarray(0.0 if logit_shift is None else logit_shift, np.float32)
        # As many as torch would use.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        wanted = int(threads) if threads.isdecimal() and int(threads) else usable_cores()
        try:
            graph = folder / GRAPHS[self.name]
            self._run = (
                _open_onnx(graph, wanted) if self.name == ONNX else _open_openvino(graph, wanted, precision, ranges)
            )
        except NoGraph:
            raise
        except Exception as error:  # each runtime has error types of its own
            reason = str(error).strip().splitlines()[0]
            raise NoGraph(f"{folder}: damaged ({reason}); remove this folder, and the graph is made anew") from None

    def __call__(self, pixels: np.ndarray, *, explain: bool = False, method: str = EVIDENCE) -> NetworkOutput:
        """One pass; see `TorchBackend`."""
        logits, features = self._run(np.ascontiguousarray(pixels))
        if self.precision != F32:
            # Not `@`, as in `linear_head_maps`.
            assert self._class_weights is not None
            logits = np.einsum("bc,kc->bk", features.mean(axis=(2, 3)), self._class_weights)
            logits = logits + self._class_biases + self.logit_shift
        if not explain:
            return NetworkOutput(logits)
        blank = self._blank if method == EVIDENCE else None
        if self._class_weights is not None:
            return NetworkOutput(logits, linear_head_maps(features, self._class_weights, blank))
        import torch

        blank_features = None if blank is None else torch.from_numpy(blank)
        _, maps = explain_features(self._network, torch.from_numpy(features), blank_features)
        return NetworkOutput(logits, maps.numpy())

    @cached_property
    def _blank(self) -> np.ndarray:
        """(1, C, h, w), the blank picture's features, which no picture changes."""
        blank = blank_picture(self._release.preprocessing, self._release.blank_rgb)
        return self._run(np.ascontiguousarray(blank))[1]

    @cached_property
    def _network(self) -> nn.Module:
        from leukoscope.models.release import load_release

        assert self._release.folder is not None
        return load_release(self._release.folder).network


def convolution_ranges(folder: Path, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Measure what the convolutions of an OpenVINO graph read, from which int8 takes its steps.

    Args:
        folder: what `write_graph` wrote.
        pixels: (N, S, S, 3) uint8, training cells framed by the release; may be memory-mapped.

    Returns:
        of each convolution but the first, in the graph's order: `kernel`, its weights' shape as "128x64x1x1", and `low`
        and `high`: 1.2 times the mean over batches of the 0.01 % and 99.99 % quantiles of its input; `low` is 0 where
        nothing is negative.
    """
    from openvino import Model, opset13

    model, convolutions = _convolutions(folder / GRAPHS[OPENVINO])
    inputs = [opset13.result(one.input_value(0)) for one in convolutions]
    request = _openvino_core().compile_model(Model(inputs, model.get_parameters()), "CPU", {
        "INFERENCE_PRECISION_HINT": F32,
    }).create_infer_request()  # fmt: skip
    found = []
    for first in range(0, len(pixels), _COMPARED):
        request.infer({0: np.asarray(pixels[first : first + _COMPARED])})
        outputs = (request.get_output_tensor(number).data for number in range(len(inputs)))
        # Every hundredth value or so tells the quantiles.
        found.append([np.quantile(values.ravel()[::101], (1 - _UNCLIPPED, _UNCLIPPED)) for values in outputs])
    limits = _ROOM * np.mean(found, axis=0)
    return [
        {"kernel": _kernel(one), "low": float(min(low, 0)), "high": float(max(high, 1e-3))}
        for one, (low, high) in zip(convolutions, limits, strict=True)
    ]


def _convolutions(path: Path) -> tuple[Any, list[Any]]:
    """An OpenVINO graph, and all its convolutions but the first, which reads the picture and loses most in int8."""
    model = _openvino_core().read_model(path)
    return model, [one for one in model.get_ordered_ops() if one.get_type_name() == "Convolution"][1:]


def _kernel(convolution: Any) -> str:
    """The shape of a convolution's weights, such as "128x64x1x1"."""
    return "x".join(map(str, convolution.input_value(1).get_shape()))


def _quantised_convolutions(path: Path, ranges: Sequence[Mapping[str, Any]]) -> Any:
    """The graph whose convolutions are computed in int8: steps per tensor for inputs, per output channel for weights.

    OpenVINO computes in int8 what stands behind a FakeQuantize on both inputs. Everything else stays in float32:
    pooling and sums in int8, as tools for whole networks make them, change several times as many predictions.

    Raises:
        NoGraph: the graph has other convolutions than those measured.
    """
    from openvino import opset13

    model, convolutions = _convolutions(path)
    if [_kernel(one) for one in convolutions] != [one["kernel"] for one in ranges]:
        raise NoGraph(f"{path}: its convolutions are not those measured for int8; use 'exact'")
    for convolution, measured in zip(convolutions, ranges, strict=True):
        low, high = np.float32(measured["low"]), np.float32(measured["high"])
        inputs, weights = convolution.input_value(0), convolution.input_value(1)
        limit = np.abs(weights.get_node().data).max(axis=(1, 2, 3), keepdims=True)
        limit = np.maximum(limit, np.float32(1e-8))
        convolution.input(0).replace_source_output(opset13.fake_quantize(inputs, low, high, low, high, 256).output(0))
        convolution.input(1).replace_source_output(_in_eight_bits(weights, limit).output(0))
    model.validate_nodes_and_infer_types()
    return model


def _in_eight_bits(weights: Any, limit: np.ndarray) -> Any:
    """A convolution's weights in 255 steps between plus and minus `limit` of each output channel."""
    from openvino import opset13

    return opset13.fake_quantize(weights, -limit, limit, -limit, limit, 255)


@lru_cache(maxsize=1)
def _openvino_core() -> Any:
    """One for the process, never freed.

    Each sets a signal stack for the thread and restores the one before when it is freed. Where two overlap, that one
    may be gone: the next signal, a Ctrl-C for example, would end the process with a segmentation fault (OpenVINO
    2026.4).
    """
    import openvino

    return openvino.Core()


@lru_cache
def computes(precision: str) -> bool:
    """Whether this processor has units for "bf16" or "int8"; without, OpenVINO is slow or, in int8, wrong.

    Older x86 processors add two products of int8 in 16 bits, where large ones overflow; OpenVINO does not say which do,
    so one convolution of the largest values is computed.
    """
    core = _openvino_core()
    if precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    if precision == BF16:
        return True
    from openvino import Model, opset13

    low, high = np.float32(0), np.float32(255)
    pixels = opset13.parameter([1, 64, 4, 4], np.float32)
    weights = opset13.constant(np.full((32, 64, 1, 1), 127, np.float32))
    largest = opset13.convolution(
        opset13.fake_quantize(pixels, low, high, low, high, 256),
        _in_eight_bits(weights, np.full((32, 1, 1, 1), 127, np.float32)),
        [1, 1], [0, 0], [0, 0], [1, 1],
    )  # fmt: skip
    compiled = core.compile_model(Model([largest], [pixels]), "CPU", {"INFERENCE_PRECISION_HINT": F32})
    return bool((compiled({0: np.full((1, 64, 4, 4), 255, np.float32)})[0] == 64 * 255 * 127).all())


def _open_openvino(
    path: Path, threads: int, precision: str, ranges: Sequence[Mapping[str, Any]]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    settings = {
        # Left to itself it takes bf16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": BF16 if precision == BF16 else F32,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    if os.access(path.parent, os.W_OK):
        # The compiled graph is kept there: the next process opens it in a third of the time.
        settings["CACHE_DIR"] = str(path.parent)
    model = _quantised_convolutions(path, ranges) if precision == INT8 else path
    compiled = _openvino_core().compile_model(model, "CPU", settings)
    request, one_at_a_time = compiled.create_infer_request(), Lock()

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with one_at_a_time:
            outputs = request.infer({0: pixels}, share_inputs=True)
            return outputs[0].copy(), outputs[1].copy()

    return run


def _open_onnx(path: Path, threads: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(None, {entry.name: pixels})
        return logits, features

    return run


def kept_graph(release: ReleaseInfo, backend: str) -> Path:
    """The folder of a release's graph in the cache, made now unless one of these very weights is kept.

    Raises:
        NoGraph: it cannot be made or written, or its output is not torch's.
        LeukoscopeError: a damaged release.
    """
    assert release.folder is not None
    parts = [f"{GRAPH_VERSION} {backend} {version(PACKAGES[backend][0])}".encode()]
    parts += [path.read_bytes() for path in (release.folder / CONFIG, release.folder / WEIGHTS) if path.is_file()]
    folder = cache_root() / "graphs" / sha256(b"\0".join(parts)).hexdigest()[:32]
    compared = _report_of(folder, backend)
    if compared is None:
        try:
            if folder.exists() and _report_of(folder, backend) is None:  # what a loss of power left
                shutil.rmtree(folder)
            _make(release, backend, folder)
        except OSError as error:
            raise NoGraph(
                f"{folder}: the {backend} graph cannot be kept there ({error.strerror or error}); "
                f"{remedy(error, 'name another folder with LEUKOSCOPE_CACHE')}"
            ) from None
        used = []
        for report in folder.parent.glob(f"*/{REPORT}"):
            with suppress(OSError):  # another process may be removing the same ones
                used.append((report.stat().st_mtime, report.parent))
        for _, old in sorted(used)[:-MOST_GRAPHS]:
            shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(folder / REPORT)  # when it was last used
    compared = compared or json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if "impossible" in compared:
        raise NoFeatureMap(f"{release.name}: {compared['impossible']}")
    differences = compared["probability_difference"], compared["heat_map_difference"]
    _require_like_torch(release, backend, *differences, compared["allowed"])
    return folder


def _report_of(folder: Path, backend: str) -> dict[str, Any] | None:
    """What a kept graph's report says; None where it or a file of the graph is missing or empty."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = [folder / GRAPHS[backend], *([folder / "model.bin"] if backend == OPENVINO else [])]
    there = all(file.is_file() and file.stat().st_size for file in files)
    return report if isinstance(report, dict) and ("impossible" in report or there) else None


def _require_like_torch(
    release: ReleaseInfo, backend: str, probability: float, of_peak: float | None, allowed: float
) -> None:
    differences = {"in probability": probability, "of a Grad-CAM map's peak": of_peak}
    # `not <=` rather than `>`, so that nan is named as well.
    told = [f"{by:.1e} {what}" for what, by in differences.items() if by is not None and not by <= allowed]
    if told:
        raise NoGraph(
            f"{release.name}: its {backend} graph differs from torch by {' and '.join(told)}, more than {allowed:g}; "
            "use backend='torch'"
        )


def _make(release: ReleaseInfo, backend: str, folder: Path) -> None:
    """Make a graph; of a network that can have none, keep why, so that not every start tries it anew."""
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


def export_release(release: ReleaseInfo, backend: str, folder: Path) -> dict[str, Any]:
    """Write a release's graph into a folder, which appears whole or not at all; an older one is replaced.

    Args, Returns, Raises: as `write_graph`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as aside:
        return (
            write_transformers_js(release, aside)
            if backend == TRANSFORMERS_JS
            else write_graph(release, backend, aside)
        )


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
    import torch

    pixels, _, network, features = _features_of_phantoms(release)
    try:
        logits, maps = (found.numpy() for found in explain_features(network, features))
    except LeukoscopeError:
        raise NoFeatureMap(
            f"{release.name}: has no graph, because its last features are no map of channels; use backend='torch'"
        ) from None

    folder.mkdir(parents=True)
    with _export_errors_named(release, backend):
        graph = _graph_module(network, release.preprocessing)
        _WRITERS[backend](graph, torch.from_numpy(pixels[:2]), folder / GRAPHS[backend])
    if (weights := _class_weights(network, features, maps)) is not None:
        from safetensors.numpy import save_file

        from leukoscope.models.build import classifier_parameters

        biases = classifier_parameters(network)[1].detach().cpu().float().numpy()
        save_file({"weights": weights, "biases": biases}, folder / HEAD)
        (folder / HEAD).chmod(0o644)  # safetensors leaves the file readable by its owner alone

    # Grad-CAM, which needs the features alone; the evidence is made from the same features.
    ours = ExportedBackend(folder, release)(pixels, explain=True, method=GRADCAM)
    for compiled in folder.glob("*.blob"):  # for this processor alone, and never found again once the folder is renamed
        compiled.unlink()
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
        "model": _shown_name(release),
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _shown_name(release: ReleaseInfo) -> str:
    """A release's Hub id, or the name of its folder: what is exported may be published."""
    assert release.folder is not None
    return release.name if release.revision else folder_name(release.folder)


def _features_of_phantoms(release: ReleaseInfo) -> tuple[np.ndarray, torch.Tensor, nn.Module, torch.Tensor]:
    """What a graph is compared on: pixels (8, S, S, 3), network input (8, 3, S, S), the network, its last features."""
    import torch

    from leukoscope.data.registry import trained_on
    from leukoscope.data.synthetic import PHANTOM_LABELS, draw_cell
    from leukoscope.models.release import load_release

    assert release.folder is not None
    network = load_release(release.folder, name=release.name, revision=release.revision).network
    info = trained_on(release.metrics)
    # On a background it was never trained with, a network's activations can grow until rounding is seen.
    known_black = info is not None and info.background == "black"
    backgrounds: tuple[Literal["black", "smear"], ...] = ("black",) if known_black else ("black", "smear")
    kinds = product(PHANTOM_LABELS, range(_COMPARED // (2 * len(backgrounds))), backgrounds)
    phantoms = [draw_cell(label, subject=subject, cell=0, background=on).image for label, subject, on in kinds]
    pixels = np.stack([release.preprocessing.frame(Image.fromarray(phantom)) for phantom in phantoms])
    with torch.inference_mode():
        inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return pixels, inputs, network, network.forward_features(inputs)  # type: ignore[operator]


def _class_weights(network: nn.Module, features: torch.Tensor, maps: np.ndarray) -> np.ndarray | None:
    """The classifier's (K, C) weights where they alone give torch's maps of these features; else None."""
    from leukoscope.models.build import classifier_parameters

    weights = classifier_parameters(network)[0].detach().cpu().float().flatten(1).numpy()  # some are 1 × 1 convolutions
    if weights.shape[1] != features.shape[1]:
        return None
    ours = linear_head_maps(features.numpy(), weights)
    return weights if np.allclose(ours, maps, rtol=ALLOWED, atol=ALLOWED * maps.max()) else None


@contextmanager
def _export_errors_named(release: ReleaseInfo, what: str) -> Iterator[None]:
    try:
        # The exporters call what torch means to drop; users can do nothing about it.
        with warnings.catch_warnings(action="ignore"):
            yield
    except OSError:
        raise
    except Exception as error:  # the exporters raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoGraph(f"{release.name}: cannot be made into a {what} graph ({reason}); use backend='torch'") from None


def write_transformers_js(release: ReleaseInfo, folder: Path) -> dict[str, Any]:
    """Write a release in the layout that transformers.js and optimum load: two ONNX files and their settings.

    The graphs take `pixel_values` (B, 3, S, S) float32, as `Preprocessing.normalise` gives them, and give `logits`
    (B, K) and, where one linear layer after average pooling makes these, `grad_cam` (B, K, h, w), every class's map as
    `HeatMap.evidence` holds it: the positive part of the evidence relative to the blank picture. The quantised copy
    keeps the convolutions' weights as whole numbers, and computes in float32.

    Args:
        folder: a new one.

    Returns:
        the report that stands in export.json: how far each file lies from torch on 8 pictures.

    Raises:
        NoGraph: the network cannot be made into a graph, or the graph's output is not torch's.
        LeukoscopeError: a damaged release.
        OSError: the disk refuses.
    """
    import torch
    from torch import nn

    _, inputs, network, features = _features_of_phantoms(release)
    try:
        logits, maps = (found.numpy() for found in explain_features(network, features))
        weights = _class_weights(network, features, maps)
    except LeukoscopeError:  # no map of channels
        with torch.inference_mode():
            logits, weights = network.forward_head(features).numpy(), None  # type: ignore[operator]
    outputs = ["logits"] if weights is None else ["logits", "grad_cam"]
    if weights is not None:
        pixels = np.array(blank_picture(release.preprocessing, release.blank_rgb))
        with torch.inference_mode():
            blank_inputs = release.preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            blank = network.forward_features(blank_inputs).clone()  # type: ignore[operator]
        maps = explain_features(network, features, blank)[1].relu().numpy()

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            if weights is not None:
                self.register_buffer("weights", torch.from_numpy(weights)[:, :, None, None])
                self.register_buffer("blank", self.signed_maps(blank))

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = self.network.forward_features(pixel_values)  # type: ignore[operator]
            logits = self.network.forward_head(features)  # type: ignore[operator]
            if weights is None:
                return (logits,)
            return logits, (self.signed_maps(features) - self.blank).relu()  # type: ignore[operator]

        def signed_maps(self, features: torch.Tensor) -> torch.Tensor:
            # As `linear_head_maps`: a sum over channels at every place is a convolution by one pixel.
            places = features.shape[2] * features.shape[3]
            return nn.functional.conv2d(features, self.weights / places)  # type: ignore[operator,arg-type]

    whole, quantised = folder / WEB_GRAPH, folder / WEB_QUANTISED
    whole.parent.mkdir(parents=True)
    with _export_errors_named(release, TRANSFORMERS_JS):
        _write_onnx(Graph().eval(), inputs[:2].contiguous(), whole, "pixel_values", outputs)

    def computed(path: Path) -> tuple[float, np.ndarray | None]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(outputs, {"pixel_values": inputs.contiguous().numpy()})
        return float(np.abs(softmax(found[0]) - softmax(logits)).max()), found[1] if len(found) > 1 else None

    probability, drawn = computed(whole)
    of_peak = None if drawn is None else float(np.abs(drawn - maps).max() / max(maps.max(), 1e-12))
    _require_like_torch(release, TRANSFORMERS_JS, probability, of_peak, ALLOWED)
    for bits in (8, 16):
        _quantise(whole, quantised, bits)
        moved, _ = computed(quantised)
        if moved <= QUANTISED_ALLOWED:
            break
    else:
        quantised.unlink()
    pre, labels = release.preprocessing, dict(enumerate(release.labels))
    config = {
        # transformers.js and optimum look up by this name how a model is called; a ResNet is called as this one is.
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_labels": len(labels),
        "id2label": labels,
        "label2id": {label: k for k, label in labels.items()},
        # In a browser transformers.js would take the quantised file unless it is told otherwise.
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
    report = {
        "backend": TRANSFORMERS_JS,
        "compared_on": f"{_COMPARED} phantoms",
        "probability_difference": probability,
        "heat_map_difference": of_peak,
        "quantised": {"bits": bits, "probability_difference": moved} if quantised.is_file() else None,
        "input": "pixel_values (B, 3, S, S) float32",
        "outputs": outputs,
        "labels": list(release.labels),
        "model": _shown_name(release),
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
    }
    for name, content in {CONFIG: config, REPORT: report, PROCESSOR: processor}.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    base = f"base_model: {release.name}\n" if release.revision else ""
    (folder / CARD).write_text(
        f"---\nlibrary_name: transformers.js\npipeline_tag: image-classification\n{base}---\n\n"
        f"# {_shown_name(release).rpartition('/')[2]}, for transformers.js\n\n**{RESEARCH_NOTICE}**\n\n"
        f"ONNX graphs of a Leukoscope release; classes: {', '.join(release.labels)}. They take `pixel_values` and give "
        f"`{'` and `'.join(outputs)}`. `{REPORT}` says how far each file lies from the release. Image processors of "
        "other libraries resize and crop otherwise than the release does, and its probabilities then change.\n",
        encoding="utf-8",
    )
    return report


def _quantise(source: Path, target: Path, bits: int) -> None:
    """Write a copy of an ONNX graph whose convolutions keep their weights as whole numbers, one scale a channel.

    ONNX Runtime's own `quantize_dynamic` rounds the activations as well, which moved probabilities of a release by up
    to 1. The classifier stays as it is: small, and of all layers the one where rounding shows most.
    """
    import onnx
    from onnx import helper, numpy_helper

    model, added = onnx.load(source), []
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in weights]:
        values = numpy_helper.to_array(tensor)
        if values.size < 1000:
            continue
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
        scale = np.maximum(largest, 1e-12).astype(np.float32) / (2 ** (bits - 1) - 1)
        whole = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(f"int{bits}")
        names = [f"{tensor.name}_quantised", f"{tensor.name}_scale"]
        added.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
        model.graph.initializer.remove(tensor)
        stored = zip((whole, scale), names, strict=True)
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for array, name in stored)
    nodes = [*added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def _graph_module(network: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """Pixels (B, S, S, 3) uint8 → logits (B, K) and features (B, C, h, w)."""
    import torch
    from torch import nn

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1) * 255)

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            inputs = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std  # type: ignore[operator]
            features = self.network.forward_features(inputs)  # type: ignore[operator]
            return self.network.forward_head(features), features  # type: ignore[operator]

    return Graph().eval()


def _write_openvino(graph: nn.Module, example: torch.Tensor, path: Path) -> None:
    import openvino

    model = openvino.convert_model(graph, example_input=example)
    model.reshape([-1, *example.shape[1:]])
    # Kept in float32: half precision would round the BatchNorm statistics and a temperature folded into the classifier.
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_onnx(
    graph: nn.Module,
    example: torch.Tensor,
    path: Path,
    entry: str = "pixels",
    outputs: Sequence[str] = ("logits", "features"),
) -> None:
    import torch

    with redirect_stdout(StringIO()):
        torch.onnx.export(
            graph,
            (example,),
            path,
            dynamo=True,
            input_names=[entry],
            output_names=outputs,
            dynamic_shapes={entry: {0: torch.export.Dim("batch", min=1)}},
            opset_version=21,  # the first whose DequantizeLinear takes 16 bits
            external_data=False,
        )


_WRITERS = {OPENVINO: _write_openvino, ONNX: _write_onnx}
