"""The benchmarks must run from end to end and fill every figure; at these sizes the figures themselves mean nothing.

Those that start processes are slow; of the others, single steps are tried.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from drawn import save_cell
from leukoscope import RESEARCH_NOTICE

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
    assert systems.keys() == {"leukoscope auto", "pipeline", "timm", "pytorch-grad-cam"}
    for name, figures in systems.items():
        assert ("explained_seconds" in figures) == (name.startswith("leukoscope") or name == "pytorch-grad-cam")
        for measure in ("one_seconds", "cold_seconds", "many_cells_a_second"):
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
    assert batched["aim"] == "≥ 1.5"
    assert ratios["explained: times faster than pytorch-grad-cam"]["aim"] == "≥ 1"


@pytest.mark.slow
def test_a_long_run_is_killed_and_resumed(tiny_release: Path, tmp_path: Path) -> None:
    flags: tuple[object, ...]
    flags = ("--cells", 1030, "--pictures", 5, "--batch_size", 4)
    # Without Ray's clusters, which take minutes; tests/inference/test_ray_scoring.py scores on Ray.
    result = run(sys.executable, "scoring.py", tmp_path / "scoring.json", "--model", tiny_release, *flags, "--ray")
    killed, resumed = result["until_killed"], result["resumed"]
    assert killed["cells"] >= 512 and killed["cells"] + resumed["cells"] == 1030


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


def test_the_cold_epoch_includes_the_features(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = import_module("training")
    words = ["--hf_script", __file__, "--cells", "8", "--batch_size", "4", "--image_size", "32", "--turns", "1"]
    monkeypatch.setattr(sys, "argv", ["training.py", *words, "--folder", str(drawn.parent)])
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(drawn.parent / "cache"))
    flags = training._flags()
    # In this process, and without the script, which is the caller's own.
    script = {"cold": 2.0, "warm": 4.0}
    turns: dict[str, Callable[..., Any]]
    turns = {"script": lambda turn: script, "leukoscope": lambda turn: training._ours(flags, turn)}
    monkeypatch.setattr(training, "_take_turn", lambda flags, side, **turn: turns[side](turn))
    network, head = training._compared(flags, "densenet169_block2")
    assert (network["setting"], head["setting"]) == ("all layers", "own recipe")
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
    asked = ("--clients", 1, "--requests", 1)
    flags = ("--releases", tiny_release.parent, "--model", "unknown", *asked)
    words = [warm, BENCHMARKS / "app_load.py", *flags, "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert "error: some questions were not answered; the first: " in done.stderr and done.returncode == 1
    assert not (tmp_path / "out").exists()
