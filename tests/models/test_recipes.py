"""Every recipe is a network that can really be built, frozen and trained as its entry says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import build_network, classifier_parameters
from leukoscope.models.recipes import RECIPES, Recipe, get_recipe


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest) -> tuple[Recipe, nn.Module]:
    recipe = get_recipe(request.param)
    return recipe, build_network(recipe, 3)


def test_it_has_one_output_a_class_and_a_linear_head(built: tuple[Recipe, nn.Module]) -> None:
    _, network = built
    with torch.inference_mode():
        logits = network.eval()(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 3)
    assert [p.shape for p in classifier_parameters(network)] == [(3, network.num_features), (3,)]


def test_the_modules_it_freezes_exist_and_are_an_early_part_of_it(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built
    assert recipe.frozen
    frozen = {id(p) for name in recipe.frozen for p in network.get_submodule(name).parameters()}
    parameters = list(network.parameters())
    assert [id(p) in frozen for p in parameters] == [True] * len(frozen) + [False] * (len(parameters) - len(frozen))
    assert not frozen & {id(p) for p in classifier_parameters(network)}


def test_its_memory_is_channels_last(built: tuple[Recipe, nn.Module]) -> None:
    _, network = built
    first = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_its_rates_of_dropping_reach_the_network(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built
    head = network.head_drop.p if hasattr(network, "head_drop") else network.drop_rate
    assert head == recipe.drop_rate > 0
    paths = {m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"}
    assert (max(paths, default=0) > 0) == (recipe.drop_path_rate > 0)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_entries_are_consistent(recipe: Recipe) -> None:
    assert RECIPES[recipe.name] is recipe
    assert recipe.base_model.startswith(f"timm/{recipe.architecture}."), "the weights are of this very architecture"
    assert recipe.cpu_precision in ("no", "bf16")
    assert recipe.learning_rate <= recipe.head_learning_rate, "the head is new, the backbone is not"


def test_efficientnet_is_the_tensorflow_twin() -> None:
    """The plain one takes the same tensors without a word and gives other answers."""
    network = build_network(get_recipe("efficientnet_b3"), 2)
    assert network.bn1.eps == pytest.approx(1e-3)
    assert type(network.conv_stem).__name__ == "Conv2dSame"


def test_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LeukoscopeError) as refused:
        get_recipe("resnet50")
    assert str(refused.value) == "--recipe resnet50: unknown; choose one of efficientnet_b3, densenet121, densenet169"
