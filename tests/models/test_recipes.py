"""Every recipe is a network that can really be built, frozen and trained as its entry says."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import pytest
import timm  # noqa: F401 - on the meta device, torch 2.6 could not import what timm needs
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import build_network
from leukoscope.models.recipes import RECIPES, Recipe, get_recipe, timm_recipe, with_overrides, with_values
from leukoscope.models.weights import classifier_parameters, freeze, head_parameters


def on_paper(recipe: Recipe, num_classes: int = 3) -> nn.Module:
    """The network without its numbers: shapes and settings are all there, and VGG16 costs nothing."""
    with torch.device("meta"):
        return build_network(recipe, num_classes)


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest) -> tuple[Recipe, nn.Module]:
    recipe = get_recipe(request.param)
    return recipe, on_paper(recipe)


def test_it_answers_from_its_least_size_up(built: tuple[Recipe, Any]) -> None:
    _, network = built
    with torch.no_grad():
        features = network.eval().forward_features(torch.zeros(2, 3, 32, 32, device="meta"))
        assert features.shape[:2] == (2, network.num_features)
        assert network.forward_head(features).shape == (2, 3)
    weight, bias = classifier_parameters(network)
    assert weight.ndim == 2 and weight.shape[0] == 3 and bias.shape == (3,)
    first = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_what_it_freezes_is_an_early_part_of_it_and_its_head_the_last(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built[0], deepcopy(built[1])
    freeze(network, recipe.frozen)
    parameters, head = list(network.parameters()), [id(p) for p in head_parameters(network)]
    trained = [p.requires_grad for p in parameters]
    assert trained == sorted(trained) and all(p.requires_grad for p in head_parameters(network))
    assert trained.count(False) > 0 or not recipe.frozen
    assert head == [id(p) for p in parameters][-len(head) :]
    assert head[-2:] == [id(p) for p in classifier_parameters(network)]
    assert (len(head) > 2) == recipe.pooled_norm


def test_it_drops_features_and_whole_branches_as_it_says(built: tuple[Recipe, nn.Module]) -> None:
    recipe, network = built
    paths = {cast(float, m.drop_prob) for m in network.modules() if type(m).__name__ == "DropPath"}
    assert max(paths, default=0) == pytest.approx(recipe.drop_path_rate, rel=0.1)
    rates = {m.p for m in network.modules() if isinstance(m, nn.Dropout)} | {getattr(network, "drop_rate", 0.0)}
    assert recipe.drop_rate in rates


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_entries_are_consistent(recipe: Recipe) -> None:
    assert RECIPES[recipe.name] is recipe
    assert recipe.base_model.startswith(f"timm/{recipe.architecture}."), "weights of this very architecture"
    assert recipe.learning_rate <= recipe.head_learning_rate, "the head is new, the backbone is not"
    assert with_values(recipe, {}, {}) == recipe, "within every range"


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
    assert recipe.architecture == "vit_tiny_patch16_224"
    assert recipe.name == recipe.base_model == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert get_recipe(recipe.name) == recipe, "what args.yaml and metrics.json record leads back to it"
    assert (recipe.image_size, recipe.mean, recipe.std, recipe.frozen) == (224, (0.5,) * 3, (0.5,) * 3, ())
    # Other weights of an architecture bring their own settings.
    assert timm_recipe("resnet50.a1_in1k", "--recipe").interpolation == "bicubic"
    assert timm_recipe("timm/resnet50.tv_in1k", "--recipe").interpolation == "bilinear"
    # A network that was trained without classes is frozen under a linear head.
    linear = timm_recipe("vit_small_patch14_dinov2", "--recipe")
    assert (linear.frozen, linear.augmentation.only_views, linear.drop_rate) == (("backbone",), True, 0.0)


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


# Varied from text

HOUSE = RECIPES["densenet121"]


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("class_weighted=false", "class_weighted", False),
        ("max_grad_norm=null", "max_grad_norm", None),
        ("frozen=[features.conv0]", "frozen", ("features.conv0",)),
        ("mean=[0.5, 0.5, 0.5]", "mean", (0.5, 0.5, 0.5)),
        ("cpu_precision=no", "cpu_precision", "no"),
        ("image_size=0400", "image_size", 400),
    ],
)
def test_a_value_is_replaced_and_takes_its_type(assignment: str, name: str, value: Any) -> None:
    made = with_overrides(HOUSE, [assignment])
    assert made == replace(HOUSE, **{name: value})
    assert type(getattr(made, name)) is type(value)


def test_a_part_is_reached_by_a_dot_and_later_assignments_win() -> None:
    made = with_overrides(HOUSE, ["augmentation.scale=0.4", "augmentation.stain=0", "augmentation.scale=0.5"])
    assert made.augmentation == replace(HOUSE.augmentation, scale=0.5, stain=0.0)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rate", "write KEY=VALUE"),
        ("lr=1", "lr is unknown; choose one of architecture, base_model, image_size"),
        ("augmentation.scal=1", "scal is unknown; choose one of scale, brightness"),
        ("learning_rate.x=1", "x is unknown; 0.0002 has no parts"),
        ("learning_rate=fast", "input should be a valid number"),
        ("num_train_epochs=yes", "input should be a valid integer"),
        ("sampling=mine", "input should be 'cells' or 'subjects'"),
        ("mean=[0.5", "'[0.5' is not YAML"),
        ("mean=[0.5]", "give more values"),
        # Ranges.
        ("num_train_epochs=0", "input should be greater than or equal to 1"),
        ("learning_rate=nan", "input should be a finite number"),
        ("drop_rate=1.1", "input should be less than or equal to 1"),
        ("augmentation.scale=-1", "input should be greater than or equal to 0"),
        ("image_size=2000", "input should be less than or equal to 1024"),
        ("augmentation.scale=1:30", "input should be a valid number, unable to parse"),
    ],
)
def test_what_does_not_fit_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(LeukoscopeError) as error:
        with_overrides(HOUSE, [assignment])
    assert str(error.value).startswith(f"--override {assignment}: ") and message in str(error.value)


def test_a_value_that_nobody_gave_is_named_by_its_field() -> None:
    with pytest.raises(LeukoscopeError, match=r"^interpolation=hermite: input should be 'bicubic', "):
        with_values(replace(HOUSE, interpolation="hermite"), {}, {})  # type: ignore[arg-type]
