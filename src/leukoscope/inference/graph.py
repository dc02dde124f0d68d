"""Run a release's network as a graph of OpenVINO or ONNX Runtime, without torch.

A graph takes pixels as `Preprocessing.frame` gives them and returns logits and the last feature map, so that explaining
needs no second pass. `export` writes graphs. Our own code because no runtime gives logits and Grad-CAM from one pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope.inference.backends import (
    BF16,
    F32,
    INT8,
    ONNX,
    OPENVINO,
    NetworkOutput,
    NoGraph,
    blank_picture,
    usable_cores,
)
from leukoscope.inference.gradcam import explain_features, linear_head_maps
from leukoscope.inference.prediction import EVIDENCE
from leukoscope.models.release import read_arrays

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import nn

    from leukoscope.models.release import ReleaseInfo

GRAPHS = {OPENVINO: "model.xml", ONNX: "model.onnx"}
HEAD = "head.safetensors"
"""Weights (K, C) and biases (K,) of the classifier, where one linear layer after average pooling makes the logits."""
# Of a convolution's inputs, the share that int8 does not clip, and a margin above it for other cells.
_UNCLIPPED, _MARGIN = 0.9999, 1.2
_RANGE_BATCH = 8


class ExportedBackend:
    """Computes a release's graph.

    Args:
        folder: what `export.write_graph` wrote.
        release: whose graph it is; its network is loaded only to explain through a head of several layers.
        precision: "f32"; or, with OpenVINO and where this processor `computes` it, "bf16" for the backbone or "int8"
            for its convolutions but the first. The last linear layer is computed in float32.
        logit_shift: (K,), added to the logits of a lower precision, whose mean rounding moves; may be set anew.
        ranges: for "int8", the `convolution_ranges` of the release.

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
        logit_shift: ArrayLike = 0.0,
        ranges: Sequence[Mapping[str, Any]] = (),
    ):
        self.name = next(name for name, file in GRAPHS.items() if (folder / file).is_file())
        self.precision, self.ranges, self._release = precision, ranges, release
        self.logit_shift = np.asarray(logit_shift, np.float32)
        self._head = read_arrays(folder / HEAD) if (folder / HEAD).is_file() else None
        if precision != F32 and self._head is None:
            raise NoGraph(f"{release.name}: its head is not one linear layer of pooled features; use float32")
        # As many as torch would use.
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdecimal() and int(given) else usable_cores()
        graph = folder / GRAPHS[self.name]
        self._run: Callable[[np.ndarray], list[np.ndarray]]
        try:
            if self.name == ONNX:
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
                self._run = lambda pixels: session.run(None, {"pixels": pixels})
            else:
                self._run = _open_openvino(graph, threads, precision, ranges)
        except NoGraph:
            raise
        except Exception as error:  # each runtime has error types of its own
            reason = str(error).strip().splitlines()[0]
            raise NoGraph(f"{folder}: damaged ({reason}); remove this folder, and the graph is made anew") from None

    def __call__(self, pixels: np.ndarray, *, explain: bool = False, method: str = EVIDENCE) -> NetworkOutput:
        """Compute a batch in one pass; arguments as for `TorchBackend`."""
        logits, *others = self._run(np.ascontiguousarray(pixels))
        if not others:  # no map of channels
            return NetworkOutput(logits)
        (features,) = others
        if self._head is not None and self.precision != F32:
            # Not `@`, as in `linear_head_maps`.
            logits = np.einsum("bc,kc->bk", features.mean(axis=(2, 3)), self._head["weights"])
            logits = logits + self._head["biases"] + self.logit_shift
        if not explain:
            return NetworkOutput(logits)
        blank = self._blank if method == EVIDENCE else None
        if self._head is not None:
            return NetworkOutput(logits, linear_head_maps(features, self._head["weights"], blank))
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
        from leukoscope.models.weights import load_release

        return load_release(self._release).network


def _open_openvino(
    path: Path, threads: int, precision: str, ranges: Sequence[Mapping[str, Any]]
) -> Callable[[np.ndarray], list[np.ndarray]]:
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
    request, one_at_a_time = openvino_core().compile_model(model, "CPU", settings).create_infer_request(), Lock()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with one_at_a_time:
            outputs = request.infer({0: pixels}, share_inputs=True)
            return [outputs[number].copy() for number in range(len(outputs))]

    return run


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the one `openvino.Core` of this process, which is never freed.

    Each sets a signal stack for the thread and restores the one before when it is freed. Where two overlap, that one
    may be gone, and the next signal, such as a Ctrl-C, ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


# Lower precisions


@lru_cache
def computes(precision: str) -> bool:
    """Whether this processor has units for "bf16" or "int8"; without, OpenVINO is slow or, in int8, wrong.

    Older x86 processors add two products of int8 in 16 bits, where large ones overflow; OpenVINO does not say which do,
    so one convolution of the largest values is computed.
    """
    core = openvino_core()
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


def convolution_ranges(folder: Path, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Measure the inputs of the convolutions of an OpenVINO graph, from which int8 takes its steps.

    Args:
        folder: what `export.write_graph` wrote.
        pixels: (N, S, S, 3) uint8, training cells framed by the release; may be memory-mapped.

    Returns:
        of each convolution but the first, in the graph's order: `kernel`, its weights' shape as "128x64x1x1", and `low`
        and `high`: 1.2 times the mean over batches of the 0.01 % and 99.99 % quantiles of its input; `low` is 0 where
        nothing is negative.
    """
    from openvino import Model, opset13

    model, convolutions = _convolutions(folder / GRAPHS[OPENVINO])
    inputs = [opset13.result(one.input_value(0)) for one in convolutions]
    watched = Model(inputs, model.get_parameters())
    request = openvino_core().compile_model(watched, "CPU", {"INFERENCE_PRECISION_HINT": F32}).create_infer_request()
    found = []
    for first in range(0, len(pixels), _RANGE_BATCH):
        request.infer({0: np.asarray(pixels[first : first + _RANGE_BATCH])})
        outputs = (request.get_output_tensor(number).data for number in range(len(inputs)))
        # Every hundredth value or so tells the quantiles.
        found.append([np.quantile(values.ravel()[::101], (1 - _UNCLIPPED, _UNCLIPPED)) for values in outputs])
    limits = _MARGIN * np.mean(found, axis=0)
    return [
        {"kernel": _kernel(one), "low": float(min(low, 0)), "high": float(max(high, 1e-3))}
        for one, (low, high) in zip(convolutions, limits, strict=True)
    ]


def _quantised_convolutions(path: Path, ranges: Sequence[Mapping[str, Any]]) -> Any:
    """The graph whose convolutions are computed in int8: steps per tensor for inputs, per output channel for weights.

    OpenVINO computes in int8 what stands behind a FakeQuantize on both inputs. Everything else stays in float32:
    pooling and sums in int8, as tools for whole networks make them, change several times as many predictions. Other
    convolutions than those measured are a `NoGraph` error.
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


def _convolutions(path: Path) -> tuple[Any, list[Any]]:
    """An OpenVINO graph, and all its convolutions but the first, which reads the picture and loses most in int8."""
    model = openvino_core().read_model(path)
    return model, [one for one in model.get_ordered_ops() if one.get_type_name() == "Convolution"][1:]


def _kernel(convolution: Any) -> str:
    """The shape of a convolution's weights, such as "128x64x1x1"."""
    return "x".join(map(str, convolution.input_value(1).get_shape()))


def _in_eight_bits(weights: Any, limit: np.ndarray) -> Any:
    """A convolution's weights in 255 steps between plus and minus `limit` of each output channel."""
    from openvino import opset13

    return opset13.fake_quantize(weights, -limit, limit, -limit, limit, 255)
