"""The five published systems: their committed rows follow from today's recipes, which build what they describe."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import with_overrides, with_values
from leukoscope.models.weights import is_timm_model
from leukoscope.training.identity import plain
from research.prior_networks import AlexNet, BaselineCNN, Classifier, build_prior, penalty
from research.prior_recipes import PRIOR_RECIPES, Head, Penalty, Plateau, PriorRecipe

PRIOR = Path(__file__).parents[2] / "results" / "prior"


def on_paper(name: str, num_classes: int = 2) -> nn.Module:
    with torch.device("meta"):
        return build_prior(PRIOR_RECIPES[name], num_classes)


def trained(recipe: PriorRecipe, network: nn.Module) -> list[str]:
    """Names of the parameters that learn."""
    return [name for name, _ in network.named_parameters() if not name.startswith(recipe.frozen or ("nothing",))]


def layers(module: nn.Module) -> list[str]:
    """Its layers in order, as torch prints them, up to what every batch normalisation has."""
    leaves = (m for m in module.modules() if not list(m.children()) and not isinstance(m, nn.Identity))
    return [re.sub(r", affine=True.*", ")", str(leaf)) for leaf in leaves]


@pytest.mark.parametrize("file", sorted(PRIOR.glob("*.json")), ids=lambda file: file.stem)
def test_a_committed_row_was_made_by_the_recipe_as_it_is(file: Path) -> None:
    made = json.loads(file.read_text(encoding="utf-8"))["recipe"]
    recipe = plain(asdict(PRIOR_RECIPES[made["name"]]))
    if made["head"]:
        made["head"].pop("levels", None)  # which no system had
    made["augmentation"] = {"small_changes": 0.0, "versions": 4, **made["augmentation"]}  # which came later
    # Rows made on a CPU are of smaller pictures and fewer epochs, as their flags say.
    common = made.keys() & recipe.keys() - {"about", "image_size", "num_train_epochs"}
    assert {key: made[key] for key in common} == {key: recipe[key] for key in common}


def test_a_head_of_its_own_is_built_layer_by_layer() -> None:
    network = on_paper("prior_b_densenet201", 4)
    assert isinstance(network, Classifier)
    assert [*layers(network.global_pool), *layers(network.head)] == [
        "AdaptiveAvgPool2d(output_size=1)",
        "BatchNorm1d(1920, eps=1e-05, momentum=0.1)",
        "Linear(in_features=1920, out_features=64, bias=True)",
        "BatchNorm1d(64, eps=1e-05, momentum=0.1)",
        "LeakyReLU(negative_slope=0.01)",
        "Dropout(p=0.2, inplace=False)",
        "Linear(in_features=64, out_features=64, bias=True)",
        "BatchNorm1d(64, eps=1e-05, momentum=0.1)",
        "ReLU()",
        "Linear(in_features=64, out_features=4, bias=True)",
    ]
    assert layers(on_paper("prior_a_efficientnet_b3").get_submodule("global_pool"))[0].startswith("AdaptiveMaxPool2d")


@pytest.mark.parametrize("name", PRIOR_RECIPES)
def test_every_layer_learns_but_in_system_e(name: str) -> None:
    recipe, network = PRIOR_RECIPES[name], on_paper(name)
    learns = trained(recipe, network)
    assert learns == [one for one, _ in network.named_parameters() if "frozen" not in name or one.startswith("head.")]


def test_c_alexnet_is_torchvisions_layer_by_layer() -> None:
    from torchvision.models import alexnet

    network = on_paper("prior_c_alexnet", 1000)
    assert isinstance(network, AlexNet)
    with torch.device("meta"):
        theirs = alexnet()
    assert layers(network) == layers(theirs)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_d_baseline_is_three_small_convolutions_and_two_dense_layers() -> None:
    recipe, network = PRIOR_RECIPES["prior_d_baseline_cnn"], on_paper("prior_d_baseline_cnn")
    assert isinstance(network, BaselineCNN)
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert shapes == [(8, 3, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (64, 16 * 7 * 7), (2, 64)]
    assert recipe.image_size == 224 and recipe.base_model == ""


# What the regularisers add to the loss


def test_every_strength_counts_its_own_sum() -> None:
    recipe = replace(PRIOR_RECIPES["prior_e_densenet121_frozen"], architecture="test_resnet")
    network = build_prior(recipe, 2)
    layer = network.get_submodule("head.hidden.0.0")
    assert isinstance(layer, nn.Linear)
    for strength, expected in {
        "weight_l2": layer.weight.square().sum(),
        "weight_l1": layer.weight.abs().sum(),
        "bias_l2": layer.bias.square().sum(),
        "bias_l1": layer.bias.abs().sum(),
    }.items():
        value = penalty(network, replace(recipe, penalty=Penalty(**{strength: 3.0})))
        assert torch.isclose(value, 3 * expected), strength


def test_the_penalty_teaches_the_hidden_layer_only() -> None:
    recipe = replace(PRIOR_RECIPES["prior_a_efficientnet_b3"], architecture="test_resnet", drop_path_rate=0.0)
    network = build_prior(recipe, 2)
    penalty(network, recipe).backward()
    moved = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert moved == ["head.hidden.0.0.weight", "head.hidden.0.0.bias"]
    headless = PRIOR_RECIPES["prior_d_baseline_cnn"]
    assert penalty(build_prior(headless, 2), headless).item() == 0


# Every recipe


@pytest.mark.parametrize("recipe", PRIOR_RECIPES.values(), ids=PRIOR_RECIPES)
def test_entries_are_consistent(recipe: PriorRecipe) -> None:
    assert with_values(recipe, {}, {}) == recipe, "within every range"
    if recipe.base_model:
        assert recipe.base_model.startswith(f"timm/{recipe.architecture}."), "weights of this very architecture"
    assert recipe.learning_rate <= recipe.head_learning_rate, "the head is new, the backbone is not"
    assert recipe.schedule == "constant", "a plateau cuts a constant rate"
    assert recipe.head is None or recipe.drop_rate == 0, "a head of its own brings its own dropout"


def test_parts_are_overridden_by_a_dot() -> None:
    recipe = with_overrides(PRIOR_RECIPES["prior_a_efficientnet_b3"], ["head.pooling=avg", "plateau.patience=2"])
    assert recipe.head == replace(PRIOR_RECIPES[recipe.name].head or Head(), pooling="avg")
    assert recipe.plateau == Plateau("val_accuracy", 0.5, 2, 3)
    with pytest.raises(LeukoscopeError, match=r"^--override plateau.factor=2: input should be less than or equal to 1"):
        with_overrides(recipe, ["plateau.factor=2"])
    assert not recipe.class_weighted and recipe.label_smoothing == 0 and recipe.max_grad_norm is None
    assert recipe.about.startswith(f"System {recipe.name[6].upper()} (") and " Left open: " in recipe.about
    held = not recipe.head and recipe.architecture not in ("alexnet", "baseline_cnn")
    assert is_timm_model(on_paper(recipe.name)) == held, "only a network of timm can be released"
