"""The benchmarks must run from end to end and fill every figure; at these sizes the figures themselves mean nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from leukoscope import RESEARCH_NOTICE
from leukoscope.models.release import load_release

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(script: str, results: Path, *flags: object) -> dict[str, Any]:
    words = [sys.executable, ROOT / "benchmarks" / script, "--results", results, "--threads", 1, *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(results.read_text())
    assert result["notice"] == RESEARCH_NOTICE
    return result


def test_every_system_is_timed_and_compared(tiny_release, tmp_path):
    flags = ("--pictures", 2, "--repeats", 2, "--turns", 1, "--batch_sizes", 1, 2)
    (release,) = run("inference.py", tmp_path / "inference.json", "--models", tiny_release, *flags)["releases"]
    systems = release["systems"]
    assert {"leukoscope auto", "leukoscope torch", "pipeline", "timm", "pytorch-grad-cam"} <= systems.keys()
    for name, figures in systems.items():
        assert figures["peak_bytes"] > 1e8
        assert ("explained_seconds" in figures) == (name.startswith("leukoscope") or name == "pytorch-grad-cam")
        for measure in ("one_seconds", "cold_seconds", "views_seconds", "many_cells_a_second"):
            assert (measure in figures) == (name != "pytorch-grad-cam")
        assert "cold_seconds" not in figures or figures["cold_seconds"]["median"] > 0
    ratios = {row["what"]: row for row in release["ratios"]}
    assert "cold: times faster than timm" in ratios
    assert "cold: times faster than pytorch-grad-cam" not in ratios, "its first answer has a Grad-CAM, ours none"
    one = ratios["one: times faster than pipeline"]
    expected = systems["pipeline"]["one_seconds"]["median"] / systems["leukoscope auto"]["one_seconds"]["median"]
    assert math.isclose(one["value"], expected, rel_tol=1e-4)
    assert (one["aim"], one["met"]) == ("≥ 6", one["value"] >= 6)
    batched = ratios["many: times faster than pipeline in its best batches"]
    ours, theirs = (systems[name]["many_cells_a_second"] for name in ("leukoscope auto", "pipeline"))
    assert math.isclose(batched["value"], ours["median"] / theirs["all"]["2"]["median"], rel_tol=1e-4)
    assert batched["aim"] == "≥ 4" and "aim" not in ratios["many: times faster than pipeline"]
    assert ratios["explained: times faster than pytorch-grad-cam"]["aim"] == "≥ 20"
    assert release["compute"]["flops_a_cell"] == pytest.approx(_flops(load_release(tiny_release).network), rel=0.01)
    assert (tmp_path / "inference.png").read_bytes().startswith(b"\x89PNG")


def _flops(network: nn.Module) -> int:
    """Multiplications and additions of its convolutions and linear layers, for one picture of 96 pixels."""
    found = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _, out: found.append(2 * out.numel() * layer.weight[0].numel()))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 96, 96))
    return sum(found)


def test_a_long_run_is_killed_and_resumed(tiny_release, tmp_path):
    flags = ("--cells", 1200, "--short_cells", 200, "--pictures", 5, "--batch_size", 4, "--cells_per_shard", 40)
    flags = (*flags, "--look_every", 0.02)
    result = run("scoring.py", tmp_path / "scoring.json", "--model", tiny_release, *flags)
    killed, resumed = result["until_killed"], result["resumed"]
    assert killed["cells"] >= 600 and killed["cells"] + resumed["cells"] == 1200
    assert result["largest_difference"] < 1e-5
    assert len(killed["trace"]) > 1 and killed["trace"][-1][1] > 1e8
    assert result["memory_growth"]["times_short_run"] > 0


def test_the_gpu_benchmark_refuses_a_machine_without_one(tmp_path):
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--hf_script", "script.py", "--models", "release"]
    done = subprocess.run(
        [*words, "--results", str(tmp_path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "torch finds no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())
