"""A run's pictures: drawn from what it wrote down, honest about each class, with phantoms where nothing is tested."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.metrics import CellPredictions, class_report
from leukoscope.inference.predictor import Predictor
from leukoscope.synthetic import draw_cell
from leukoscope.training.plots import draw_run, network_stages, phantom_samples

# Four classes of ten cells; two Early taken for Pre, one Pre for Pro.
MATRIX = [[10, 0, 0, 0], [0, 8, 2, 0], [0, 0, 9, 1], [0, 0, 0, 10]]
NAMES = ("Benign", "Early", "Pre", "Pro")
FIGURES = {
    "cells": 40,
    "accuracy": 37 / 40,
    "balanced_accuracy": 37 / 40,
    "per_class": {
        name: {
            "precision": MATRIX[k][k] / sum(row[k] for row in MATRIX),
            "recall": MATRIX[k][k] / 10,
            "f1": 0.9,
            "support": 10,
        }
        for k, name in enumerate(NAMES)
    },
    "confusion_matrix": MATRIX,
}


def small_network(classes: int = 4) -> nn.Module:
    """A backbone that holds most of the numbers, and a head of several layers."""
    backbone = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 64, 3, stride=2), norm=nn.BatchNorm2d(64)))
    head = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            hidden=nn.Linear(64, 4),
            act=nn.ReLU(),
            fc=nn.Linear(4, classes),
        )
    )
    network = nn.Sequential(OrderedDict(backbone=backbone, head=head))
    network.get_classifier = lambda: head
    return network


@pytest.fixture
def cells(tmp_path: Path) -> FramedCells:
    """Four class folders of three phantoms each, framed at 32 px."""
    for k, name in enumerate(NAMES):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for number in range(3):
            image = draw_cell("ALL", subject=k, cell=number, size=32).image
            Image.fromarray(image).save(tmp_path / "cells" / name / f"{number}.png")
    return frame_cells(load_cells("imagefolder", tmp_path / "cells"), Preprocessing(32, 1.0))


@pytest.fixture
def run(tmp_path: Path, cells: FramedCells) -> Path:
    """A run folder as training leaves it, with every cell tested."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "summary.csv").write_text("epoch,train_loss,val_accuracy,val_auroc\n1,0.9,0.5,\n2,0.4,0.7,nan\n")
    ids = tuple(sorted(cells.row_of))
    references = cells.labels[cells.rows(ids)]
    CellPredictions(ids, ("",) * len(ids), references, np.eye(4)[references], NAMES).save(out / "predictions.parquet")
    metrics = {
        "labels": list(NAMES),
        "recipe": {"image_size": 32, "frozen": ["backbone"]},
        "training": {"kept_epoch": 2},
        "evaluations": [{"metrics": FIGURES}],
    }
    (out / "metrics.json").write_text(json.dumps(metrics))
    return out


def test_one_vs_rest_halves_the_error_of_four_classes() -> None:
    report = class_report(FIGURES)
    assert report["classes"]["Early"]["one_vs_rest_accuracy"] == pytest.approx(38 / 40)
    assert report["classes"]["Pre"]["specificity"] == pytest.approx(28 / 30)
    assert report["mean"]["one_vs_rest_accuracy"] == pytest.approx(1 - (1 - report["accuracy"]) / 2)
    assert report["notice"] == RESEARCH_NOTICE


def test_two_classes_need_no_one_vs_rest_accuracy_of_their_own() -> None:
    per_class = {name: {"precision": 0.8, "recall": 0.8, "f1": 0.8, "support": 10} for name in ("ALL", "HEM")}
    figures = FIGURES | {"cells": 20, "accuracy": 0.8, "per_class": per_class, "confusion_matrix": [[8, 2], [2, 8]]}
    report = class_report(figures)
    assert report["mean"]["one_vs_rest_accuracy"] == pytest.approx(report["accuracy"])
    assert report["classes"]["ALL"]["specificity"] == pytest.approx(0.8)


def test_a_class_that_was_not_tested_is_no_part_of_the_mean() -> None:
    absent = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    per_class = {"ALL": {"precision": 1.0, "recall": 0.75, "f1": 0.86, "support": 4}, "HEM": absent}
    figures = FIGURES | {"cells": 4, "per_class": per_class, "confusion_matrix": [[3, 1], [0, 0]]}
    report = class_report(figures)
    assert report["mean"]["recall"] == 0.75
    assert report["classes"]["ALL"]["specificity"] is None and report["mean"]["specificity"] is None


def test_a_run_draws_what_it_wrote_down(run: Path, cells: FramedCells) -> None:
    (run / "figures").mkdir()
    (run / "figures" / "stale.png").write_text("of an earlier run")
    files = draw_run(run, small_network(), cells)
    pictures = ["confusion.png", "curves.png", "network.png", "one_vs_rest.png", "samples.png"]
    assert sorted(path.name for path in files) == ["class_report.json", "class_report.txt", *pictures]
    assert sorted(path.name for path in (run / "figures").iterdir()) == sorted(path.name for path in files)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.suffix == ".png")
    text = (run / "figures" / "class_report.txt").read_text().splitlines()
    assert text[2].split() == ["Early", "1.000", "0.800", "1.000", "0.900", "0.950", "10"]
    assert text[-1] == RESEARCH_NOTICE
    assert json.loads((run / "figures" / "class_report.json").read_text())["mean"]["one_vs_rest_accuracy"] == 0.9625


def test_figures_that_cannot_be_written_end_in_one_line(run: Path, cells: FramedCells) -> None:
    (run / "figures").write_text("a file where the folder should be")
    with pytest.raises(LeukoscopeError, match=r"plots cannot be written there \(.*\); check who may write there$"):
        draw_run(run, small_network(), cells)


def test_a_run_that_tested_nothing_shows_phantoms(run: Path, cells: FramedCells, tiny_release: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"evaluations": []}))
    (run / "release").symlink_to(tiny_release)
    files = draw_run(run, small_network(), cells)
    assert sorted(path.name for path in files) == ["curves.png", "network.png", "samples.png"]


def test_phantoms_say_that_they_are_no_patients(tiny_release: Path) -> None:
    figure = phantom_samples(Predictor.from_pretrained(tiny_release))
    assert figure.get_suptitle() == "phantoms: synthetic cells, none of a patient; their predictions measure nothing"
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 18 and all(title[0] in "✓✗" for title in titles)


def test_no_answer_is_right_or_wrong_where_phantoms_are_of_no_class(tiny_release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_release, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"label_names": ["Benign", "Early"]}))
    titles = [axes.get_title() for axes in phantom_samples(Predictor.from_pretrained(copy)).axes]
    assert len(titles) == 18 and all(re.fullmatch(r"(Benign|Early) [01]\.\d\d", title) for title in titles)


def test_stages_open_what_holds_most_and_what_follows_the_pooling() -> None:
    stages = network_stages(small_network(), 32, frozen=["backbone.conv", "head.fc1"])
    assert [(s.name, s.output, s.parameters, s.trains) for s in stages] == [
        ("backbone.conv", (64, 15, 15), 1792, False),
        ("backbone.norm", (64, 15, 15), 128, True),
        ("head.pool", (64, 1, 1), 0, False),
        ("head.flat", (64,), 0, False),
        ("head.hidden", (4,), 260, True),
        ("head.act", (4,), 0, False),
        ("head.fc", (4,), 20, True),
    ]
    assert [s.kind for s in stages][:2] == ["Conv2d", "BatchNorm2d"]


def test_looking_at_a_network_changes_nothing_in_it() -> None:
    network = small_network().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network_stages(network, 32)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
