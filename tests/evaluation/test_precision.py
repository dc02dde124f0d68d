"""A lower precision is offered where it is faster, the default only where nothing changes, and changes are counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leukoscope import LeukoscopeError, progress
from leukoscope.data.images import open_image
from leukoscope.evaluation import precision
from leukoscope.evaluation.precision import loses_nothing, offered_precisions, precision_block, precisions_on_unseen
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.backends import NoGraph, Runtime
from leukoscope.inference.export import kept_graph
from leukoscope.inference.graph import ExportedBackend, computes, convolution_ranges
from leukoscope.inference.prediction import softmax
from leukoscope.inference.predictor import open_backend
from leukoscope.models.release import METRICS, ReleaseInfo, read_release

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
LOWER = [
    pytest.param(name, marks=pytest.mark.skipif(not computes(name), reason=f"needs a processor with {name}"))
    for name in ("bf16", "int8")
]
needs_both = pytest.mark.skipif(not (computes("bf16") and computes("int8")), reason="needs bf16 and int8")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)

Measured = Callable[..., ReleaseInfo]


def pixels_of(real_data: Path, every: int) -> np.ndarray:
    files = sorted((real_data / "cnmc2019" / "C-NMC_Leukemia").rglob("*_*.*"))[::every]
    frame = read_release(RELEASE).preprocessing.frame
    return np.stack([frame(open_image(file)) for file in files])


@pytest.fixture
def measured(tiny_release: Path, kept_graphs: object, tmp_path: Path) -> Measured:
    """A release whose metrics.json says what is given."""

    def write(**block: Any) -> ReleaseInfo:
        release = tmp_path / "release"
        shutil.copytree(tiny_release, release)
        (release / METRICS).write_text(json.dumps({"precision": block}))
        return read_release(release)

    return write


@pytest.mark.slow
@needs_both
def test_what_changes_on_real_cells_is_counted(
    real_data: Path, kept_graphs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)
    block = precision_block(RELEASE, pixels_of(real_data, 1746))

    assert "computing in f32, bf16, int8: " in capsys.readouterr().err
    for name in ("bf16", "int8"):
        found = block[name]
        assert set(found["changed"]) == {"label", "outcome", "sensitivity_95", "specificity_95", "youden"}
        assert 0 < found["largest_move"] < 0.3, "equal to the last digit: it was not computed in it"
        assert len(found["logit_shift"]) == 2 and found["speed"] > 0
    if "int8" in block["fast"]:
        assert [one["kernel"] for one in block["int8"]["ranges"][:2]] == ["128x64x1x1", "32x128x3x3"]
    assert block["default"] in ("f32", *block["fast"])


@pytest.mark.slow
@pytest.mark.parametrize("lower", LOWER)
def test_the_logit_shift_takes_back_most_of_what_rounding_moves(real_data: Path, kept_graphs: Path, lower: str) -> None:
    release, pixels = read_release(RELEASE), pixels_of(real_data, 213)
    graph = kept_graph(release, "openvino")
    fitting, tested = pixels[::2], pixels[1::2]
    ranges = convolution_ranges(graph, fitting) if lower == "int8" else ()
    exact = ExportedBackend(graph, release)
    backend = ExportedBackend(graph, release, precision=lower, ranges=ranges)
    shift = (exact(fitting).logits - backend(fitting).logits).mean(axis=0)
    expected = softmax(exact(tested).logits)

    def moved(shift: np.ndarray | float) -> float:
        backend.logit_shift = np.asarray(shift)
        return float(np.abs(softmax(backend(tested).logits) - expected).mean())

    assert moved(shift) < moved(0.0) / 2


@pytest.mark.slow
@needs_both
def test_on_unseen_subjects_all_precisions_are_measured_and_compared(real_data: Path, kept_graphs: Path) -> None:
    release, pixels = read_release(RELEASE), pixels_of(real_data, 582)
    count = len(pixels)
    exact = softmax(ExportedBackend(kept_graph(release, "openvino"), release)(pixels).logits)
    ids = tuple(f"cell-{n}" for n in range(count))
    data = SimpleNamespace(info=SimpleNamespace(group="subject"))
    cells = SimpleNamespace(
        data=data, pixels=pixels, rows=lambda names: np.asarray([ids.index(name) for name in names])
    )
    # Classes that the network itself predicts, but for some cells; eight subjects of one class each.
    references = np.where(np.arange(count) % 5 == 0, 1 - exact.argmax(axis=1), exact.argmax(axis=1))
    subjects = tuple(f"s{4 * label + n % 4}" for n, label in enumerate(references))
    every = CellPredictions(ids, subjects, references, exact, release.labels)
    folds = [(RELEASE, every.take(list(range(first, count, 2)))) for first in (0, 1)]

    found = precisions_on_unseen(folds, cells, release.metrics)  # type: ignore[arg-type]

    assert list(found) == ["bf16", "int8"]
    for lowered in found.values():
        assert lowered["cells"] == count and lowered["changed"].keys() >= {"label", "outcome"}
        assert 0 < lowered["largest_move"] < 0.3 and lowered["map_correlation"] > 0.98
        assert lowered["difference"]["auroc_by_subject"]["low"] <= lowered["difference"]["auroc_by_subject"]["high"]


@pytest.mark.parametrize(
    ("low", "high", "changed", "expected"),
    [(-0.002, 0.001, 4, True), (-0.004, 0.001, 0, False), (-0.001, 0.0031, 0, False), (-0.001, 0.001, 6, False)],
)
def test_a_lower_precision_is_the_default_only_where_unseen_subjects_lose_nothing(
    low: float, high: float, changed: int, expected: bool
) -> None:
    difference = {"auroc_by_subject": {"low": low, "high": high}}
    unseen = {"disjoint_by": "subject", "cells": 1000, "changed": {"outcome": changed}, "difference": difference}
    assert loses_nothing(unseen) is expected
    assert not loses_nothing(unseen | {"disjoint_by": "block"}), "subjects are not known"
    block = {"speed": 2.0, "cells": 1000, "changed": {"label": 0, "outcome": 0}, "largest_move": 0.001}
    assert offered_precisions({"bf16": block})["default"] == "f32", "not measured on unseen subjects"
    assert offered_precisions({"bf16": block | {"unseen": unseen}})["default"] == ("bf16" if expected else "f32")


def test_the_faster_precision_comes_first_and_slow_or_wrong_ones_are_not_offered() -> None:
    def of(speed: float, labels: int) -> dict[str, Any]:
        return {"speed": speed, "cells": 1000, "changed": {"label": labels}, "largest_move": 0.001}

    assert offered_precisions({"bf16": of(2, 9), "int8": of(3, 9)}) == {"default": "f32", "fast": ["int8", "bf16"]}
    assert offered_precisions({"bf16": of(2, 9), "int8": of(1.2, 0)}) == {"default": "f32", "fast": ["bf16"]}
    assert offered_precisions({"bf16": of(2, 51), "int8": of(3, 50)}) == {"default": "f32", "fast": ["int8"]}


@needs_both
def test_fast_is_the_first_precision_measured_that_the_processor_computes(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.stack([*PIXELS] * 2)
    lower = {"logit_shift": [0.5, -0.5]}
    plain = measured()
    ranges = convolution_ranges(kept_graph(plain, "openvino"), pixels)
    assert plain.folder is not None
    shutil.rmtree(plain.folder)
    release = measured(default="f32", fast=["int8", "bf16"], bf16=lower, int8=lower | {"ranges": ranges})
    exact = open_backend(release, Runtime("auto", precision="exact"))

    for missing, expected in (("", "int8"), ("int8", "bf16")):
        monkeypatch.setattr("leukoscope.inference.graph.computes", lambda name, missing=missing: name != missing)
        fast = open_backend(release, Runtime("auto", precision="fast"))
        assert (fast.precision, exact.precision) == (expected, "f32")
        apart = fast(pixels).logits - exact(pixels).logits
        np.testing.assert_allclose(apart, [[0.5, -0.5]] * 8, atol=0.1)
        assert np.abs(apart - [[0.5, -0.5]]).max() > 1e-5, "equal to the last digit: it was not computed in it"


def test_fast_is_refused_where_it_was_not_measured_or_cannot_be_computed(
    measured: Measured, tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = {"logit_shift": [0.5, -0.5]}
    release = measured(default="f32", fast=["bf16"], bf16=lower)
    with pytest.raises(LeukoscopeError, match="^precision 'fast': .*tiny was not measured in it; use 'exact'$"):
        open_backend(read_release(tiny_release), Runtime("auto", precision="fast"))
    with pytest.raises(LeukoscopeError, match="^precision 'fast': OpenVINO computes it; leave out backend 'torch'$"):
        open_backend(release, Runtime("torch", precision="fast"))
    with pytest.raises(LeukoscopeError, match="^precision 'fast': is computed on the CPU; leave out device 'cuda'$"):
        open_backend(release, Runtime("auto", "cuda", "fast"))
    with pytest.raises(LeukoscopeError, match="^precision 'half': unknown; choose one of auto, exact, fast$"):
        open_backend(release, Runtime(precision="half"))
    monkeypatch.setattr("leukoscope.inference.graph.computes", lambda name: False)
    with pytest.raises(LeukoscopeError, match="^precision 'fast': .* has no units for bfloat16; use 'exact'$"):
        open_backend(release, Runtime("auto", precision="fast"))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"bf16": {"logit_shift": [0.5]}},
            r"logit_shift in metrics.json has 1 entries, and there are 2 labels; restore",
        ),
        ({"bf16": {"cells": 9}}, r"precision.bf16.logit_shift is missing; it must be a list: restore the file"),
        ({"int8": {"logit_shift": [0, 0], "ranges": 3}}, r"precision.int8.ranges is 3; it must be a list: restore"),
        (
            {"int8": {"logit_shift": [0, 0], "ranges": [{"kernel": "1x1", "low": 0, "high": 1}]}},
            "its convolutions are not those measured for int8; use 'exact'$",
        ),
    ],
)
def test_a_damaged_block_is_refused_in_one_sentence(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, block: dict[str, dict[str, Any]], message: str
) -> None:
    monkeypatch.setattr("leukoscope.inference.graph.computes", lambda name: True)
    with pytest.raises(LeukoscopeError, match=message):
        open_backend(measured(fast=list(block), **block), Runtime("auto", precision="fast"))


def test_a_processor_without_lower_precisions_measures_nothing(
    tiny_release: Path, kept_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes", lambda name: False)

    block = precision_block(tiny_release, PIXELS)

    assert block == {
        "default": "f32",
        "not_measured": "the processor that assessed this release has no bfloat16 and no int8",
    }


def test_a_release_without_a_graph_measures_nothing(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(release: ReleaseInfo, backend: str) -> Path:
        raise NoGraph(f"{release.name}: no {backend} graph is made of it")

    monkeypatch.setattr(precision, "kept_graph", none)

    block = precision_block(tiny_release, PIXELS)

    assert block == {"default": "f32", "not_measured": "tiny: no openvino graph is made of it"}


@pytest.mark.parametrize("default", ["f32", pytest.param("bf16", marks=LOWER[0].marks)])
def test_a_release_is_computed_as_it_was_measured(measured: Measured, default: str) -> None:
    release = measured(default=default, fast=["bf16"], bf16={"logit_shift": [0, 0]})

    apart = np.abs(
        open_backend(release, Runtime("openvino"))(PIXELS).logits
        - open_backend(release, Runtime("torch"))(PIXELS).logits
    )

    assert (apart.max() > 1e-4) == (default == "bf16")


def test_a_processor_without_the_default_computes_in_float32(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = measured(default="bf16", fast=["bf16"], bf16={"logit_shift": [0, 0]})
    monkeypatch.setattr("leukoscope.inference.graph.computes", lambda name: False)
    assert open_backend(release, Runtime("openvino")).precision == "f32"
    monkeypatch.setattr("leukoscope.inference.graph.computes", lambda name: True)
    assert open_backend(release, Runtime("openvino")).precision == "bf16"


@pytest.mark.skipif(not computes("int8"), reason="needs a processor with int8")
def test_int8_is_not_computed_by_processors_whose_sums_overflow() -> None:
    code = "from leukoscope.inference.graph import computes; print(computes('int8'))"

    def answer(instructions: str) -> str:
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
        return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=300).strip()

    assert (answer("AVX2"), answer("")) == ("False", "True")
