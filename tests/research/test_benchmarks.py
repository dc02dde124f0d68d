"""The benchmarks must run from end to end and fill every figure; at these sizes the figures themselves mean nothing.

Those that start processes are slow; of the others, single steps are tried.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drawn import save_cell
from leukoscope import RESEARCH_NOTICE
from leukoscope.models.weights import load_release

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "research" / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other as neighbours."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def run(python: str, script: str, results: Path, *flags: object) -> dict[str, Any]:
    words = [python, BENCHMARKS / script, "--results", results, "--threads", 1, *flags]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(results.read_text())
    assert result["notice"] == RESEARCH_NOTICE
    return result


@pytest.mark.slow
def test_every_system_is_timed_and_compared(warm: str, tiny_release: Path, tmp_path: Path) -> None:
    flags = ("--pictures", 2, "--repeats", 2, "--turns", 1, "--batch_sizes", 1, 2)
    (release,) = run(warm, "inference.py", tmp_path / "inference.json", "--models", tiny_release, *flags)["releases"]
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
    assert (one["aim"], one["met"]) == ("≥ 2", one["value"] >= 2)
    batched = ratios["many: times faster than pipeline in its best batches"]
    ours, theirs = (systems[name]["many_cells_a_second"] for name in ("leukoscope auto", "pipeline"))
    assert math.isclose(batched["value"], ours["median"] / theirs["all"]["2"]["median"], rel_tol=1e-4)
    assert batched["aim"] == "≥ 1.5" and "aim" not in ratios["many: times faster than pipeline"]
    assert ratios["explained: times faster than pytorch-grad-cam"]["aim"] == "≥ 1"
    assert release["compute"]["flops_a_cell"] == pytest.approx(_flops(load_release(tiny_release).network), rel=0.01)


def _flops(network: nn.Module) -> int:
    """Multiplications and additions of its convolutions and linear layers, for one picture of 96 pixels."""
    found = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _, out: found.append(2 * out.numel() * layer.weight[0].numel()))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 96, 96))
    return sum(found)


@pytest.mark.slow
def test_a_long_run_is_killed_and_resumed(tiny_release: Path, tmp_path: Path) -> None:
    flags: tuple[object, ...]
    flags = ("--cells", 1030, "--short_cells", 300, "--pictures", 5, "--batch_size", 4, "--look_every", 0.05)
    # Without Ray's clusters, which take minutes; tests/inference/test_ray_scoring.py scores on Ray.
    result = run(sys.executable, "scoring.py", tmp_path / "scoring.json", "--model", tiny_release, *flags, "--ray")
    killed, resumed = result["until_killed"], result["resumed"]
    assert killed["cells"] >= 512 and killed["cells"] + resumed["cells"] == 1030
    assert result["largest_difference"] < 1e-5
    assert len(killed["trace"]) > 1 and killed["trace"][-1][1] > 1e8
    assert result["memory_growth"]["times_short_run"] > 0


def test_the_gpu_benchmark_refuses_a_machine_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--hf_script", "script.py", "--models", "release"])
    with pytest.raises(SystemExit):
        import_module("gpu").main()
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_keras_stands_beside_whole_networks_alone(tiny_release: Path) -> None:
    systems = import_module("inference")._systems
    flags = Namespace(device="cpu", threads=1, keras_python=Path(sys.executable))
    cut = json.loads((tiny_release / "config.json").read_text())
    assert cut["model_args"]["block_config"] == [2, 2, 2, 2]
    whole = {name: value for name, value in cut.items() if name != "model_args"}
    assert {"keras predict", "keras call"} <= systems(flags, tiny_release, whole).keys()
    assert not {"keras predict", "keras call"} & systems(flags, tiny_release, cut).keys()


def test_the_layer_of_the_map_is_known_for_every_embedded_release_and_else_refused() -> None:
    systems = import_module("inference_systems")
    configs = [json.loads(path.read_text()) for path in (ROOT / "model_card").glob("*/config.json")]
    assert {config["architecture"] for config in configs} <= systems._LAST_LAYERS.keys()
    with pytest.raises(SystemExit, match=r"^resnet18: the layer of its Grad-CAM is not known; name it in _LAST_LAYERS"):
        systems._grad_cam({"architecture": "resnet18"})


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Class folders of eight phantoms to train on and two to validate on, as training.py lays them out."""
    for number, side in enumerate(["train"] * 8 + ["validation"] * 2):
        path = tmp_path / "ours" / ("ALL", "HEM")[number % 2] / f"{side}-{number}.png"
        save_cell(path, path.parent.name, cell=number)
    return tmp_path / "ours"


def test_the_cold_epoch_includes_the_features_and_heads_are_not_compared_with_networks(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = import_module("training")
    words = ["--hf_script", __file__, "--cells", "8", "--batch_size", "4", "--image_size", "32", "--turns", "1"]
    monkeypatch.setattr(sys, "argv", ["training.py", *words, "--folder", str(drawn.parent)])
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(drawn.parent / "cache"))
    flags = training._flags()
    # In this process, and without the script, which is the caller's own.
    script = {"cold": 2.0, "warm": 4.0, "peak_memory": {"process_bytes": 1}}
    turns: dict[str, Callable[..., Any]]
    turns = {"script": lambda turn: script, "leukoscope": lambda turn: training._ours(flags, turn)}
    monkeypatch.setattr(training, "_take_turn", lambda flags, side, **turn: turns[side](turn))
    network, head = training._compared(flags, "densenet169_block2")
    assert (network["setting"], head["setting"]) == ("all layers", "own recipe")
    assert network["share_of_pure_compute"] > 0 and "share_of_pure_compute" not in head
    (turn,) = head["turns"]["leukoscope"]
    seconds = turn["decoding_seconds"] + turn["preparing_seconds"] + turn["epoch_seconds"][0]
    assert turn["cold"] == pytest.approx(8 / seconds)
    assert turn["preparing_seconds"] > 0
    assert head["times_faster"]["cold"] == pytest.approx(turn["cold"] / 2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to cores")
def test_a_training_turn_has_no_more_cores_than_threads(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = import_module("training")
    pinned = []
    # Noted rather than done: later tests need their cores.
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pinned.append(cores))
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(drawn.parent / "cache"))
    turn = {"side": "leukoscope", "recipe": "densenet169_block2", "precision": "no", "frozen": True}
    words = ["--hf_script", __file__, "--cells", "8", "--batch_size", "4", "--image_size", "32", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["training.py", *words, "--folder", str(drawn.parent), "--turn", json.dumps(turn)])
    training.main()
    assert pinned == [sorted(os.sched_getaffinity(0))[:1]]
    assert json.loads((drawn.parent / "turn.json").read_text())["warm"] > 0


@pytest.mark.slow
def test_a_demo_that_gives_no_answer_is_an_error_and_no_result(warm: str, tiny_release: Path, tmp_path: Path) -> None:
    asked = ("--clients", 1, "--requests", 1, "--visitors", 1, "--uploads", 1, "--predictions", 1)
    flags = ("--releases", tiny_release.parent, "--model", "unknown", *asked)
    words = [warm, BENCHMARKS / "app_load.py", *flags, "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert "error: some questions were not answered; the first: " in done.stderr and done.returncode == 1
    assert not (tmp_path / "out").exists()
