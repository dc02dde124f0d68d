"""Half the precision is the default only where nothing changes, and what changed is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from leukoscope import progress
from leukoscope.data.images import open_image
from leukoscope.evaluation import assess
from leukoscope.evaluation.assess import precision_block
from leukoscope.inference.backends import open_backend
from leukoscope.inference.graph import NoGraph, computes_bf16
from leukoscope.models.release_files import METRICS, ReleaseInfo, read_release

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def pixels_of(real_data: Path, every: int) -> np.ndarray:
    files = sorted((real_data / "cnmc2019" / "C-NMC_Leukemia").rglob("*_*.*"))[::every]
    frame = read_release(RELEASE).preprocessing.frame
    return np.stack([frame(open_image(file)) for file in files])


def test_what_bf16_changes_on_real_cells_is_counted(real_data, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    if not computes_bf16():
        pytest.skip("needs a processor with bfloat16")
    block = precision_block(RELEASE, pixels_of(real_data, 97))

    assert set(block["changed"]) == {"label", "outcome", "sensitivity_95", "specificity_95", "youden"}
    assert "comparing bfloat16 with float32: " in capsys.readouterr().err
    assert block["largest_move"] > 0, "equal to the last digit: it was not computed in bfloat16"
    assert block["default"] == ("f32" if any(block["changed"].values()) or block["largest_move"] >= 0.02 else "bf16")


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
def test_a_release_is_computed_as_it_was_measured(tiny_release, tmp_path, default):
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


def test_a_processor_without_it_computes_in_float32(tiny_release, tmp_path, monkeypatch):
    release = tmp_path / "release"
    shutil.copytree(tiny_release, release)
    (release / METRICS).write_text(json.dumps({"precision": {"default": "bf16"}}))
    monkeypatch.setattr("leukoscope.inference.backends.computes_bf16", lambda: False)
    assert open_backend(read_release(release), "openvino").precision == "f32"
    monkeypatch.setattr("leukoscope.inference.backends.computes_bf16", lambda: True)
    assert open_backend(read_release(release), "openvino").precision == "bf16"
