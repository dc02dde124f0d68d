"""Half the precision is the default only where nothing changes, and what changed is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from leukoscope import LeukoscopeError, progress
from leukoscope.data.images import open_image
from leukoscope.evaluation import assess
from leukoscope.evaluation.assess import bf16_loses_nothing, bf16_on_unseen, precision_block
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.inference.backends import open_backend
from leukoscope.inference.graph import ExportedBackend, NoGraph, mean_logit_shift, computes_bf16, kept_graph
from leukoscope.inference.prediction import softmax
from leukoscope.models.release_files import METRICS, ReleaseInfo, read_release

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def pixels_of(real_data: Path, every: int) -> np.ndarray:
    files = sorted((real_data / "cnmc2019" / "C-NMC_Leukemia").rglob("*_*.*"))[::every]
    frame = read_release(RELEASE).preprocessing.frame
    return np.stack([frame(open_image(file)) for file in files])


def test_what_bf16_changes_on_real_cells_is_counted(real_data, kept_graphs, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    if not computes_bf16():
        pytest.skip("needs a processor with bfloat16")
    block = precision_block(RELEASE, pixels_of(real_data, 291))

    assert set(block["changed"]) == {"label", "outcome", "sensitivity_95", "specificity_95", "youden"}
    assert "comparing bfloat16 with float32: " in capsys.readouterr().err
    assert block["largest_move"] > 0, "equal to the last digit: it was not computed in bfloat16"
    assert len(block["logit_shift"]) == 2
    assert block["default"] == ("f32" if any(block["changed"].values()) or block["largest_move"] >= 0.02 else "bf16")


def test_the_logit_shift_takes_back_most_of_what_bf16_moves(real_data, kept_graphs):
    if not computes_bf16():
        pytest.skip("needs a processor with bfloat16")
    release, pixels = read_release(RELEASE), pixels_of(real_data, 213)
    graph = kept_graph(release, "openvino")
    fitting, tested = pixels[::2], pixels[1::2]
    exact = ExportedBackend(graph, release)
    shift = mean_logit_shift(exact, ExportedBackend(graph, release, precision="bf16"), fitting)
    expected = softmax(exact(tested).logits)

    def moved(shift: np.ndarray | None) -> float:
        backend = ExportedBackend(graph, release, precision="bf16", logit_shift=shift)
        return float(np.abs(softmax(backend(tested).logits) - expected).mean())

    assert moved(shift) < moved(None) / 2


def test_on_unseen_subjects_both_ways_are_measured_and_compared(real_data, kept_graphs):
    if not computes_bf16():
        pytest.skip("needs a processor with bfloat16")
    release, pixels = read_release(RELEASE), pixels_of(real_data, 291)
    count = len(pixels)
    exact = softmax(ExportedBackend(kept_graph(release, "openvino"), release)(pixels).logits)
    ids = tuple(f"cell-{n}" for n in range(count))
    cells = SimpleNamespace(pixels=pixels, rows=lambda names: np.asarray([ids.index(name) for name in names]))
    # Classes that the network itself predicts, but for some cells; eight subjects of one class each.
    references = np.where(np.arange(count) % 5 == 0, 1 - exact.argmax(axis=1), exact.argmax(axis=1))
    subjects = tuple(f"s{4 * label + n % 4}" for n, label in enumerate(references))
    every = CellPredictions(ids, subjects, references, exact, release.labels)
    folds = [(RELEASE, every.take(list(range(first, count, 2)))) for first in (0, 1)]

    found = bf16_on_unseen(folds, cells, release.metrics)  # type: ignore[arg-type]

    assert found["cells"] == count and found["changed"].keys() >= {"label", "outcome"}
    assert 0 < found["largest_move"] < 0.3 and found["map_correlation"] > 0.98
    assert found["difference"]["auroc_by_subject"]["low"] <= found["difference"]["auroc_by_subject"]["high"]


@pytest.mark.parametrize(
    ("low", "high", "changed", "expected"),
    [(-0.002, 0.001, 4, True), (-0.004, 0.001, 0, False), (-0.001, 0.0031, 0, False), (-0.001, 0.001, 6, False)],
)
def test_bf16_is_the_default_only_where_it_loses_nothing(low, high, changed, expected):
    difference = {"auroc_by_subject": {"low": low, "high": high}}
    measured = {"cells": 1000, "changed": {"outcome": changed}, "difference": difference}
    assert bf16_loses_nothing(measured) is expected


def test_fast_is_what_the_user_asks_for_and_refused_where_it_was_not_measured(
    tiny_release, kept_graphs, tmp_path, monkeypatch
):
    release = tmp_path / "release"
    shutil.copytree(tiny_release, release)
    (release / METRICS).write_text(json.dumps({"precision": {"default": "f32", "logit_shift": [0.5, -0.5]}}))
    with pytest.raises(LeukoscopeError, match="^precision 'fast': .*tiny was not measured in it; use 'exact'$"):
        open_backend(read_release(tiny_release), precision="fast")
    with pytest.raises(LeukoscopeError, match="^precision 'fast': OpenVINO .*; leave out backend 'torch' and device"):
        open_backend(read_release(release), "torch", precision="fast")
    with pytest.raises(LeukoscopeError, match="^precision 'half': unknown; choose one of auto, exact, fast$"):
        open_backend(read_release(release), precision="half")
    monkeypatch.setattr("leukoscope.inference.backends.computes_bf16", lambda: False)
    with pytest.raises(LeukoscopeError, match="^precision 'fast': this processor has no bfloat16; use 'exact'$"):
        open_backend(read_release(release), precision="fast")
    monkeypatch.undo()
    if not computes_bf16():
        pytest.skip("needs a processor with bfloat16")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    fast, exact = (open_backend(read_release(release), precision=name) for name in ("fast", "exact"))
    assert (fast.precision, exact.precision) == ("bf16", "f32")
    np.testing.assert_allclose(fast(pixels).logits - exact(pixels).logits, [[0.5, -0.5]] * 4, atol=0.1)


def test_a_processor_without_it_measures_nothing(tiny_release, monkeypatch):
    monkeypatch.setattr(assess, "computes_bf16", lambda: False)

    block = precision_block(tiny_release, np.zeros((1, 96, 96, 3), np.uint8))

    assert block == {"default": "f32", "not_measured": "the processor that assessed this release has no bfloat16"}


def test_a_release_without_a_graph_measures_nothing(tiny_release, monkeypatch):
    def none(release: ReleaseInfo, backend: str) -> Path:
        raise NoGraph(f"{release.name}: no {backend} graph is made of it")

    monkeypatch.setattr(assess, "computes_bf16", lambda: True)
    monkeypatch.setattr(assess, "kept_graph", none)

    block = precision_block(tiny_release, np.zeros((1, 96, 96, 3), np.uint8))

    assert block == {"default": "f32", "not_measured": "tiny: no openvino graph is made of it"}


@pytest.mark.parametrize("default", ["f32", "bf16"])
def test_a_release_is_computed_as_it_was_measured(tiny_release, kept_graphs, tmp_path, default):
    if not computes_bf16():
        pytest.skip("needs a processor with bfloat16")
    release = tmp_path / "release"
    shutil.copytree(tiny_release, release)
    (release / METRICS).write_text(json.dumps({"precision": {"default": default}}))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)

    apart = np.abs(
        open_backend(read_release(release), "openvino")(pixels).logits
        - open_backend(read_release(release), "torch")(pixels).logits
    ).max()

    assert (apart > 1e-4) == (default == "bf16")


def test_a_processor_without_it_computes_in_float32(tiny_release, kept_graphs, tmp_path, monkeypatch):
    release = tmp_path / "release"
    shutil.copytree(tiny_release, release)
    (release / METRICS).write_text(json.dumps({"precision": {"default": "bf16"}}))
    monkeypatch.setattr("leukoscope.inference.backends.computes_bf16", lambda: False)
    assert open_backend(read_release(release), "openvino").precision == "f32"
    monkeypatch.setattr("leukoscope.inference.backends.computes_bf16", lambda: True)
    assert open_backend(read_release(release), "openvino").precision == "bf16"
