"""The prior systems' own networks: start weights, heads, and VGG's dense layers as matrix products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import FROM_SCRATCH, StartWeights, build_network, load_start_weights
from leukoscope.models.recipes import get_recipe
from leukoscope.models.weights import head_parameters
from research.prior_networks import build_prior
from research.prior_recipes import PRIOR_RECIPES, PriorRecipe

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def frozen() -> PriorRecipe:
    return PRIOR_RECIPES["prior_e_densenet121_frozen"]


@pytest.fixture(scope="module")
def donor() -> Tensors:
    """A whole densenet121 with the thousand classes of ImageNet."""
    torch.manual_seed(1)
    return {k: v.contiguous() for k, v in build_network(get_recipe("densenet121"), 1000).state_dict().items()}


def _saved(tensors: Tensors, path: Path) -> StartWeights:
    save_file(tensors, path)
    return StartWeights(file=path)


def _refusal(network: nn.Module, recipe: PriorRecipe, start: StartWeights) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        load_start_weights(network, recipe, start)
    return str(refused.value)


def test_a_timm_file_fills_the_backbone_under_a_head_of_its_own(
    frozen: PriorRecipe, donor: Tensors, tmp_path: Path
) -> None:
    network = build_prior(frozen, 2)
    head = [p.clone() for p in head_parameters(network)]
    assert load_start_weights(network, frozen, _saved(donor, tmp_path / "densenet121.safetensors")) == "densenet121"
    loaded = network.get_submodule("backbone").state_dict()
    assert all(torch.equal(tensor, donor[name]) for name, tensor in loaded.items())
    assert len(loaded) == len(donor) - 2, "all of the file but its classifier"
    assert all(torch.equal(a, b) for a, b in zip(head, head_parameters(network), strict=True))


def test_a_backbone_under_a_head_of_its_own_refuses_what_timms_would(
    frozen: PriorRecipe, donor: Tensors, tmp_path: Path
) -> None:
    network = build_prior(frozen, 2)
    other = _saved(donor | {"features.extra": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "these weights are not for densenet121 (1 tensors differ, e.g. unknown tensor f" in _refusal(
        network, frozen, other
    )
    holey = _saved({k: v for k, v in donor.items() if k != "features.conv0.weight"}, tmp_path / "holey.safetensors")
    assert "lacks 1 tensors of densenet121, e.g. features.conv0.weight" in _refusal(network, frozen, holey)
    load_start_weights(network, frozen, replace(holey, may_miss=("features.conv0.*",)))


@pytest.mark.parametrize("name", ["prior_c_alexnet", "prior_d_baseline_cnn"])
def test_without_published_weights_a_recipe_starts_from_scratch_and_says_so(name: str) -> None:
    recipe = PRIOR_RECIPES[name]
    with torch.device("meta"):
        network = build_prior(recipe, 2)
    assert load_start_weights(network, recipe, StartWeights()) == FROM_SCRATCH


@pytest.mark.parametrize(("name", "least"), [("prior_c_alexnet", 63), ("prior_d_inception", 75)])
def test_below_its_least_size_nothing_is_left_of_a_picture(name: str, least: int) -> None:
    with torch.device("meta"):
        build_prior(replace(PRIOR_RECIPES[name], image_size=least), 2)
        with pytest.raises(LeukoscopeError, match=f"{name}: cannot be built for pictures of {least - 1} px"):
            build_prior(replace(PRIOR_RECIPES[name], image_size=least - 1), 2)
