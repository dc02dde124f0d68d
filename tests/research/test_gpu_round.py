"""A round on a GPU asks for what today's programs know, and keeps what it reached when its time is over."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from leukoscope.training.config import parse_config
from research import gpu_round, prior_systems
from research.prior_recipes import PRIOR_RECIPES

GIVEN = ["--dataset_name", "phantoms", "--weights", "weights"]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a round would run, by the names of its steps."""
    asked: dict[str, list[str]] = {}
    for file, *_ in gpu_round.NETWORKS.values():
        (tmp_path / file).touch()
    monkeypatch.setattr(gpu_round, "_run", lambda words, log, _: asked.update({log.stem: words}) or {"outcome": "done"})
    gpu_round.main([*GIVEN, "--weights", str(tmp_path), "--output", str(tmp_path)])
    return asked


def test_the_steps_and_their_order(commands: dict[str, list[str]]) -> None:
    prior = ["prior_a_efficientnet_b3", "prior_c_efficientnet_b3"]
    assert list(commands) == ["tests", "efficientnet_b3", "densenet169", *prior]


@pytest.mark.parametrize("network", gpu_round.NETWORKS)
def test_a_network_is_trained_for_40000_draws(commands: dict[str, list[str]], network: str) -> None:
    flags = commands[network]
    assert flags[:4] == ["-m", "leukoscope", "protocol", "--output"]
    config = parse_config(flags[5:])
    recipe = config.resolve()
    assert (recipe.image_size, recipe.num_train_epochs * recipe.epoch_cells) == (300, 40_000)
    assert network in recipe.architecture and not recipe.frozen and recipe.sampling == "subjects"


def test_the_prior_systems_are_those_that_are_rebuilt(commands: dict[str, list[str]], prior_recipes: None) -> None:
    words = [words for name, words in commands.items() if name.startswith("prior")]
    rows = [prior_systems.parser().parse_known_args(one[2:])[0].recipe for one in words]
    assert {name for row in rows for name in row} <= PRIOR_RECIPES.keys()


def test_a_step_that_is_stopped_may_write_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(
        "import signal, sys, time\n"
        "def stop(*_):\n    print('checkpoint written')\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('training', flush=True)\ntime.sleep(60)\n"
    )
    started = time.monotonic()
    step = gpu_round._run([str(tmp_path / "step.py")], tmp_path / "step.log", 3)
    assert (step["outcome"], step["last_line"]) == ("stopped", "checkpoint written")
    assert time.monotonic() - started < 3 + gpu_round.SECONDS_TO_STOP


def test_a_step_that_fails_says_how_and_the_round_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [("one", ["-c", "raise SystemExit('no')"]), ("two", ["-c", ""])]
    monkeypatch.setattr(gpu_round, "_steps", lambda flags: steps)
    gpu_round.main([*GIVEN, "--output", str(tmp_path)])
    one, two = json.loads((tmp_path / "round.json").read_text())["steps"].values()
    assert (one["outcome"], one["last_line"], two["outcome"]) == ("failed (exit code 1)", "no", "done")


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    gpu_round.main([*GIVEN, "--output", str(tmp_path), "--seconds", "1"])
    steps = json.loads((tmp_path / "round.json").read_text())["steps"]
    assert {step["outcome"] for step in steps.values()} == {"no time left"}
