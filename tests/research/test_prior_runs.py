"""Rebuilt systems from flag to result: trained on phantoms, and released where timm holds their network."""

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
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from leukoscope import Predictor
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import backbone_state, is_timm_model, load_release
from leukoscope.synthetic import Background, draw_cell
from leukoscope.training.config import parse_config
from leukoscope.training.train import train
from research.prior_networks import build_prior
from research.prior_recipes import PRIOR_RECIPES, PriorRecipe
from research.prior_training import PriorTrainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prior_recipes")]

# One of each kind: with a head, a penalty and a plateau of its own; of timm, with other means; a network of its own; a
# frozen one. `test_prior_recipes.py` builds them all.
TRAINED = ("prior_a_efficientnet_b3", "prior_d_inception", "prior_d_baseline_cnn", "prior_e_densenet121_frozen")
SMALL = (
    *("--num_train_epochs", "1", "--per_device_train_batch_size", "8"),
    *("--max_train_samples", "16", "--max_eval_samples", "8", "--learning_rate", "1e-4"),
)


@dataclass(frozen=True)
class Trained:
    """A recipe's run folder, its network, and the weights it started from."""

    recipe: PriorRecipe
    out: Path
    network: nn.Module
    start: Path

    @property
    def release(self) -> Path:
        return self.out / "release"


@pytest.fixture(scope="module", params=TRAINED)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, prior_recipes: None
) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("prior")
    recipe = PRIOR_RECIPES[request.param]
    recipe = replace(recipe, image_size=75 if recipe.architecture == "inception_v3" else 64)
    start = _start_weights(recipe, folder / "start.safetensors")
    flags = ["--recipe", recipe.name, "--image_size", str(recipe.image_size), "--pretrained_weights", str(start)]
    # Without batch normalisation the signal fades: two steps tell pictures apart only with a faster head.
    if not any(name.endswith("running_mean") for name in load_file(start)):
        flags += ["--override", "head_learning_rate=1e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(shared_cache))
        config, networks = parse_config([*flags, *SMALL, "--output_dir", str(folder / "run")]), []

        def build(recipe: Recipe, num_classes: int) -> nn.Module:
            networks.append(build_prior(recipe, num_classes))
            return networks[-1]

        out = train(config, build=build, trainer_class=PriorTrainer)
        yield Trained(recipe, out, networks[0], start)
    shutil.rmtree(folder)


def _start_weights(recipe: Recipe, path: Path) -> Path:
    """Random weights whose batch statistics fit phantoms; others would give every picture the same answer."""
    torch.manual_seed(0)
    network = build_prior(recipe, 2)
    backbone = getattr(network, "backbone", network)
    for norm in (module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches seen, here one
    preprocessing = Preprocessing(recipe.image_size, 350 / 450, mean=recipe.mean, std=recipe.std)
    backgrounds: tuple[Background, ...] = ("black", "smear")
    looks = product(("ALL", "HEM"), range(4), backgrounds)
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


def test_the_run_says_what_it_did_learns_what_is_not_frozen_and_releases_only_a_network_of_timm(
    trained: Trained,
) -> None:
    metrics = json.loads((trained.out / "metrics.json").read_text())
    assert metrics["recipe"]["name"] == trained.recipe.name and metrics["recipe"]["about"] == trained.recipe.about
    assert metrics["evaluations"][0]["metrics"]["cells"] == 8
    start, now = load_file(trained.start), backbone_state(getattr(trained.network, "backbone", trained.network))
    stayed = [torch.equal(tensor.half(), start[name].half()) for name, tensor in now.items()]
    assert all(stayed) == (trained.recipe.frozen == ("backbone",))
    held = trained.recipe.head is None and trained.recipe.architecture not in ("alexnet", "baseline_cnn")
    assert (is_timm_model(trained.network), trained.release.exists()) == (held, held)


def test_the_pipeline_agrees_with_the_predictor(trained: Trained, pictures: list[str]) -> None:
    from transformers import pipeline

    if not trained.release.exists():
        pytest.skip("it has no release")
    assert not [path for path in trained.release.rglob("*") if path.suffix == ".py"]
    assert load_release(trained.release).labels == ("ALL", "HEM")
    classify = pipeline("image-classification", model=str(trained.release), device=-1)
    theirs = [{answer["label"]: answer["score"] for answer in answers} for answers in classify(pictures)]
    ours = [prediction.probabilities for prediction in Predictor.from_pretrained(trained.release)(pictures)]

    assert all(abs(a[label] - b[label]) < 1e-4 for a, b in zip(ours, theirs, strict=True) for label in ("ALL", "HEM"))
    assert abs(ours[0]["ALL"] - ours[1]["ALL"]) > 1.2e-4, "one answer for all pictures would hide a wrong preprocessing"
