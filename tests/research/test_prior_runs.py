"""Rebuilt systems from flag to result: trained on phantoms, and released where timm holds their network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leukoscope.models.recipes import Recipe
from leukoscope.models.weights import backbone_state, is_timm_model
from leukoscope.training.config import parse_config
from leukoscope.training.train import train
from research.prior_networks import build_prior
from research.prior_recipes import PRIOR_RECIPES
from research.prior_training import PriorTrainer

SMALL = (
    *("--num_train_epochs", "1", "--per_device_train_batch_size", "8"),
    *("--max_train_samples", "16", "--max_eval_samples", "8", "--learning_rate", "1e-4"),
)


# One of each kind: with a head, a penalty and a plateau of its own; of timm, with other means; a network of its own; a
# frozen one. `test_prior_recipes.py` builds them all.
@pytest.mark.slow
@pytest.mark.usefixtures("prior_recipes", "kept_graphs")
@pytest.mark.parametrize(
    "name", ["prior_a_efficientnet_b3", "prior_d_inception", "prior_d_baseline_cnn", "prior_e_densenet121_frozen"]
)
def test_the_run_says_what_it_did_learns_what_is_not_frozen_and_releases_only_a_network_of_timm(
    name: str, tmp_path: Path
) -> None:
    recipe = PRIOR_RECIPES[name]
    recipe = replace(recipe, image_size=75 if recipe.architecture == "inception_v3" else 64)
    networks = [build_prior(recipe, 2)]

    def backbone(network: nn.Module) -> dict[str, torch.Tensor]:
        return {k: v.contiguous() for k, v in backbone_state(getattr(network, "backbone", network)).items()}

    def build(recipe: Recipe, num_classes: int) -> nn.Module:
        networks.append(build_prior(recipe, num_classes))
        return networks[-1]

    save_file(start := backbone(networks[0]), tmp_path / "start.safetensors")
    flags = ["--recipe", name, "--image_size", str(recipe.image_size), "--output_dir", str(tmp_path / "run")]
    config = parse_config([*flags, "--pretrained_weights", str(tmp_path / "start.safetensors"), *SMALL])
    out = train(config, build=build, trainer_class=PriorTrainer)

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["recipe"]["name"] == name and metrics["recipe"]["about"] == recipe.about
    assert metrics["evaluations"][0]["metrics"]["cells"] == 8
    stayed = [torch.equal(tensor.half(), start[name].half()) for name, tensor in backbone(networks[1]).items()]
    assert all(stayed) == (recipe.frozen == ("backbone",))
    held = recipe.head is None and recipe.architecture not in ("alexnet", "baseline_cnn")
    assert (is_timm_model(networks[1]), (out / "release").exists()) == (held, held)
