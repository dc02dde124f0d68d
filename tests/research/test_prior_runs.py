"""Each rebuilt system once from flag to answer: trained on phantoms, released, opened by transformers, explained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from leukoscope.models.remote.networks import Classifier
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from leukoscope import Predictor
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.synthetic import draw_cell
from leukoscope.models.build import build_network, classifier_parameters
from leukoscope.models.recipes import PRIOR_SYSTEMS, Recipe, get_recipe
from leukoscope.models.release import load_release
from leukoscope.models.release_files import needs_code
from leukoscope.training.config import parse_config
from leukoscope.training.train import train

pytestmark = pytest.mark.slow

SMALL = (
    *("--num_train_epochs", "1", "--per_device_train_batch_size", "8"),
    *("--max_train_samples", "16", "--max_eval_samples", "8", "--learning_rate", "1e-4"),
)
# What every prior system shows of itself; one_vs_rest.png joins them with more than two classes.
FIGURES = ["class_report.json", "class_report.txt", "confusion.png", "curves.png", "network.png", "samples.png"]


@dataclass(frozen=True)
class Trained:
    """A recipe's run folder, and the weights it started from."""

    recipe: Recipe
    out: Path
    start: Path

    @property
    def release(self) -> Path:
        return self.out / "release"


@pytest.fixture(scope="module", params=[recipe.name for recipe in PRIOR_SYSTEMS])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("prior")
    recipe = get_recipe(request.param)
    recipe = replace(recipe, image_size=max(64, recipe.least_image_size))
    start = _start_weights(recipe, folder / "start.safetensors")
    flags = ["--recipe", recipe.name, "--image_size", str(recipe.image_size), "--pretrained_weights", str(start)]
    # Without batch normalisation the signal fades: two steps tell pictures apart only with a faster head.
    if not any(name.endswith("running_mean") for name in load_file(start)):
        flags += ["--head_learning_rate", "1e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(folder / "cache"))
        yield Trained(recipe, train(parse_config([*flags, *SMALL, "--output_dir", str(folder / "run")])), start)
    shutil.rmtree(folder)  # VGG16 alone leaves more than half a gigabyte


def _start_weights(recipe: Recipe, path: Path) -> Path:
    """Random weights whose batch statistics fit phantoms; others would give every picture the same answer."""
    torch.manual_seed(0)
    network = build_network(recipe, 2)
    backbone = network.backbone if isinstance(network, Classifier) else network
    for norm in (module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches seen, here one
    preprocessing = Preprocessing(recipe.image_size, 350 / 450, mean=recipe.mean, std=recipe.std)
    looks = product(("ALL", "HEM"), range(4), ("black", "smear"))
    cells = [draw_cell(label, subject=i, size=2 * recipe.image_size, background=on).image for label, i, on in looks]
    pixels = np.stack([preprocessing.frame(Image.fromarray(cell)) for cell in cells])
    with torch.no_grad():
        backbone.train()(preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A cell cut out on black, and one in a smear that is wider than high."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(draw_cell("ALL", subject=3, size=300).image).save(folder / "black.png")
    smear = Image.fromarray(draw_cell("HEM", subject=4, size=300, background="smear").image)
    smear.crop((0, 50, 300, 250)).save(folder / "smear.png")
    return [str(folder / "black.png"), str(folder / "smear.png")]


def test_the_run_shows_what_it_did(trained: Trained) -> None:
    assert sorted(path.name for path in (trained.out / "figures").iterdir()) == FIGURES
    metrics = json.loads((trained.release / "metrics.json").read_text())
    assert metrics["recipe"]["name"] == trained.recipe.name and metrics["recipe"]["about"] == trained.recipe.about
    assert metrics["evaluations"][0]["metrics"]["cells"] == 8


def test_it_learns_what_is_not_frozen(trained: Trained) -> None:
    start = load_file(trained.start)
    network = load_release(trained.release).network
    backbone = network.backbone if isinstance(network, Classifier) else network
    stayed = [torch.equal(tensor.half(), start[name].half()) for name, tensor in backbone.state_dict().items()]
    assert all(stayed) == (trained.recipe.frozen == ("backbone",))


@pytest.mark.usefixtures("code_cache")
def test_the_pipeline_agrees_with_the_predictor(trained: Trained, pictures: list[str]) -> None:
    from transformers import pipeline

    code = needs_code(json.loads((trained.release / "config.json").read_text()))
    trust = {"trust_remote_code": True} if code else {}
    classify = pipeline("image-classification", model=str(trained.release), device=-1, **trust)
    theirs = [{answer["label"]: answer["score"] for answer in answers} for answers in classify(pictures)]
    ours = [prediction.probabilities for prediction in Predictor.from_pretrained(trained.release)(pictures)]

    assert all(abs(a[label] - b[label]) < 1e-4 for a, b in zip(ours, theirs, strict=True) for label in ("ALL", "HEM"))
    assert abs(ours[0]["ALL"] - ours[1]["ALL"]) > 1.2e-4, "one answer for all pictures would hide a wrong preprocessing"


def test_every_class_has_its_heat_map(trained: Trained, pictures: list[str]) -> None:
    predictor = Predictor.from_pretrained(trained.release)
    side = trained.recipe.image_size
    with torch.inference_mode():
        places = predictor.backend.network.forward_features(torch.zeros(1, 3, side, side)).shape[2:]
    maps = _maps_of(predictor, pictures)
    assert all(map_.shape == tuple(places) and np.isfinite(map_).all() and map_.min() >= 0 for map_ in maps)
    # A network that learnt for two steps may find nothing that speaks for either class: then all of it speaks against.
    with torch.no_grad():
        for parameter in classifier_parameters(predictor.backend.network):
            parameter.neg_()
    assert max(map_.max() for map_ in [*maps, *_maps_of(predictor, pictures)]) > 0


def _maps_of(predictor: Predictor, pictures: list[str]) -> list[np.ndarray]:
    return [
        prediction.heatmaps[label].evidence
        for prediction in predictor(pictures, explain=True)
        for label in ("ALL", "HEM")
    ]


def test_four_classes_are_also_shown_each_against_the_rest(tmp_path: Path) -> None:
    looks = [("Benign", "ALL", "black"), ("Early", "HEM", "black"), ("Pre", "ALL", "smear"), ("Pro", "HEM", "smear")]
    for name, label, background in looks:
        (tmp_path / "cells" / name).mkdir(parents=True)
        for number in range(12):
            cell = draw_cell(label, subject=number, size=64, background=background)
            Image.fromarray(cell.image).save(tmp_path / "cells" / name / f"{number}.png")
    data = ["--dataset_name", "imagefolder", "--train_dir", str(tmp_path / "cells"), "--split", "random"]
    flags = ["--recipe", "prior_d_baseline_cnn", "--image_size", "64", *SMALL]
    run = train(parse_config([*data, *flags, "--output_dir", str(tmp_path / "run")]))
    assert sorted(path.name for path in (run / "figures").iterdir()) == sorted([*FIGURES, "one_vs_rest.png"])
    report = json.loads((run / "figures" / "class_report.json").read_text())
    assert list(report["classes"]) == [name for name, *_ in looks]
    assert all(0 <= row["one_vs_rest_accuracy"] <= 1 for row in report["classes"].values())
