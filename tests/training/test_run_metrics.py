"""What metrics.json says of a run's making, and how its figures are printed."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import pytest
import torch

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split
from leukoscope.models.metrics import Evaluation
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_metrics import describe_run, hardware, result_lines


@pytest.fixture
def config() -> TrainingConfig:
    return parse_config(["--dataset_name", "imagefolder", "--train_dir", "/data/of/mine/cells", "--seed", "3"])


def test_a_run_is_described_by_its_cells_start_and_machine(
    config: TrainingConfig, cells: FramedCells, split: Split
) -> None:
    identity = RunIdentity.of(config, config.resolve(), start="")
    made = describe_run(config, identity, cells, split, "ImageNet", torch.device("cpu")).content()
    training = made["training"]
    assert (training["cells"], training["start_weights"], training["seed"]) == (len(split.train), "ImageNet", 3)
    assert training["subjects"] == sorted({cells.subjects[row] for row in cells.rows(split.train)})
    assert sum(training["class_frequencies"].values()) == pytest.approx(1)
    assert training["versions"] == {"leukoscope": __version__, "python": platform.python_version()} | {
        name: version(name)
        for name in ("torch", "timm", "transformers", "datasets", "accelerate", "evaluate", "scikit-learn")
    }
    assert training["hardware"] == f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"
    assert made["notice"] == RESEARCH_NOTICE
    assert "/data/of/mine" not in json.dumps(made)


def test_a_run_on_the_cpu_names_the_cpu_though_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"a GPU, {device}")
    assert hardware(torch.device("cpu")).startswith("CPU, ")
    assert hardware(torch.device("cuda:1")) == "a GPU, cuda:1"


def test_figures_for_the_terminal_stand_with_their_baseline_and_the_notice() -> None:
    figures = {"cells": 1234, "accuracy": 0.8, "balanced_accuracy": 0.75, "f1_weighted": 0.7, "auroc": None}
    baseline = {"balanced_accuracy": 0.7, "f1_weighted": 0.6}
    assert result_lines(
        Evaluation.model_validate({"metrics": figures, "size_only_baseline": baseline})
    ).splitlines() == [
        "test (1,234 cells): accuracy 0.800, balanced accuracy 0.750, weighted F1 0.700, AUROC –",
        "  cell size alone: balanced accuracy 0.700, weighted F1 0.600",
        f"  {RESEARCH_NOTICE}",
    ]
