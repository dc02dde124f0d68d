"""Every recipe is a network that can really be built, frozen and trained as its entry says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import timm  # noqa: F401 - on the meta device, torch 2.6 could not import what timm needs
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from leukoscope import LeukoscopeError
from leukoscope.models.build import build_network
from leukoscope.models.recipes import RECIPES, Recipe, get_recipe, timm_recipe, with_values
from leukoscope.models.weights import classifier_parameters, frozen_modules, head_parameters


def on_paper(recipe: Recipe, num_classes: int = 3) -> nn.Module:
    """The network without its numbers: shapes and settings are all there, and VGG16 costs nothing."""
    with torch.device("meta"):
        return build_network(recipe, num_classes)


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest) -> tuple[Recipe, nn.Module]:
    recipe = get_recipe(request.param)
    return recipe, on_paper(recipe)


def pixels(side: int) -> torch.Tensor:
    return torch.zeros(2, 3, side, side, device="meta")


class Dropouts(TorchFunctionMode):
    """Notes the rate of every dropout that really drops something."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.dropout:
            given = {**dict(zip(("input", "p", "training"), args, strict=False)), **(kwargs or {})}
            self.rates += [given["p"]] if given["training"] and given["p"] else []
        return func(*args, **(kwargs or {}))


def test_it_answers_from_its_least_size_up_and_drops_in_training_only(built: tuple[Recipe, Any]) -> None:
    recipe, network = built
    with torch.no_grad(), Dropouts() as dropouts:
        features = network.eval().forward_features(pixels(32))
        assert features.shape[:2] == (2, network.num_features)
        assert network.forward_head(features).shape == (2, 3)
        assert dropouts.rates == [] and not any(m.training for m in network.modules())
        network.train().forward_head(features)
        assert dropouts.rates == [recipe.drop_rate] * bool(recipe.drop_rate)
    weight, bias = classifier_parameters(network)
    assert weight.ndim == 2 and weight.shape[0] == 3 and bias.shape == (3,)


def test_the_modules_it_freezes_exist_and_are_an_early_part_of_it(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built
    frozen = {id(p) for module in frozen_modules(network, recipe.frozen).values() for p in module.parameters()}
    parameters = list(network.parameters())
    assert [id(p) in frozen for p in parameters] == [True] * len(frozen) + [False] * (len(parameters) - len(frozen))
    assert not frozen & {id(p) for p in head_parameters(network)}


def test_its_head_is_its_last_part_and_ends_in_the_last_layer(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built
    head = [id(p) for p in head_parameters(network)]
    assert head == [id(p) for p in network.parameters()][-len(head) :]
    assert head[-2:] == [id(p) for p in classifier_parameters(network)]
    assert (len(head) > 2) == recipe.pooled_norm


def test_its_memory_is_channels_last(built: tuple[Recipe, nn.Module]) -> None:
    _, network = built
    first = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_it_skips_whole_branches_as_it_says(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built
    paths = {cast(float, m.drop_prob) for m in network.modules() if type(m).__name__ == "DropPath"}
    assert max(paths, default=0) <= recipe.drop_path_rate
    assert (max(paths, default=0) > 0) == (recipe.drop_path_rate > 0)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_entries_are_consistent(recipe: Recipe) -> None:
    assert RECIPES[recipe.name] is recipe
    if recipe.base_model:
        assert recipe.base_model.startswith(f"timm/{recipe.architecture}."), "weights of this very architecture"
    assert recipe.cpu_precision in ("no", "bf16")
    assert recipe.learning_rate <= recipe.head_learning_rate, "the head is new, the backbone is not"
    assert with_values(recipe, {}, {}) == recipe, "within every range"


def test_efficientnet_is_the_tensorflow_twin() -> None:
    """The plain one takes the same tensors without a word and gives other answers."""
    network: Any = on_paper(get_recipe("efficientnet_b3"))
    assert network.bn1.eps == pytest.approx(1e-3)
    assert type(network.conv_stem).__name__ == "Conv2dSame"


def test_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LeukoscopeError) as refused:
        get_recipe("resnet50")
    assert str(refused.value) == (
        f"--recipe resnet50: unknown; choose one of {', '.join(RECIPES)}, or any model of timm with "
        "--model_name_or_path"
    )
    assert RECIPES.keys() >= {"efficientnet_b3", "densenet121", "densenet169_block2"}


# Any model of timm


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_tiny_patch16_224"])
def test_a_model_of_timm_has_the_recipe_of_its_pretrained_cfg(name: str) -> None:
    recipe = timm_recipe(name, "--recipe")
    assert (recipe.architecture, recipe.base_model) == (
        "vit_tiny_patch16_224",
        "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    )
    assert recipe.name == recipe.base_model
    assert get_recipe(recipe.name) == recipe, "what args.yaml and metrics.json record leads back to it"
    assert (recipe.image_size, recipe.mean, recipe.std) == (224, (0.5,) * 3, (0.5,) * 3)
    assert recipe.frozen == ()


def test_other_weights_of_the_same_architecture_bring_their_own_settings() -> None:
    assert timm_recipe("resnet50.a1_in1k", "--recipe").interpolation == "bicubic"
    assert timm_recipe("timm/resnet50.tv_in1k", "--recipe").interpolation == "bilinear"


def test_a_network_trained_without_classes_is_frozen_under_a_linear_head() -> None:
    recipe = timm_recipe("vit_small_patch14_dinov2", "--recipe")
    assert (recipe.frozen, recipe.augmentation.only_views, recipe.drop_rate) == (("backbone",), True, 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", " has no such model; give one that it has, like vit_tiny_patch16_224 or "),
        ("timm/densenet169.none", "timm has no such weights; of densenet169 it has densenet169.tv_in1k"),
    ],
)
def test_what_timm_does_not_have_is_named(name: str, message: str) -> None:
    with pytest.raises(LeukoscopeError, match=re.escape(message)) as refused:
        timm_recipe(name, "--model_name_or_path")
    assert str(refused.value).startswith(f"--model_name_or_path {name}: ")
