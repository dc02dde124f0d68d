"""Recipes varied from text: what is replaced, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import RECIPES, Head, get_recipe, with_overrides

HOUSE = RECIPES["densenet121"]


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("weight_decay=0", "weight_decay", 0.0),
        ("image_size=224", "image_size", 224),
        ("class_weighted=false", "class_weighted", False),
        ("max_grad_norm=null", "max_grad_norm", None),
        ("frozen=[features.conv0]", "frozen", ("features.conv0",)),
        ("sampling=subjects", "sampling", "subjects"),
        ("mean=[0.5, 0.5, 0.5]", "mean", (0.5, 0.5, 0.5)),
        ("mean=[0, 1, 0]", "mean", (0.0, 1.0, 0.0)),
        ("cpu_precision=no", "cpu_precision", "no"),
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
        ("learning_rate", "--override learning_rate: write KEY=VALUE"),
        ("lr=1", "--override lr=1: lr is unknown; choose one of architecture, base_model, image_size"),
        ("name=mine", "name is unknown"),
        ("augmentation.scal=1", "scal is unknown; choose one of scale, brightness"),
        ("augmentation=1", "augmentation has parts; assign one, augmentation.KEY=VALUE, of scale, brightness"),
        ("learning_rate.x=1", "learning_rate is 0.0002 and has no parts"),
        ("learning_rate=fast", "'fast' does not fit; give a number"),
        ("image_size=1.5", "1.5 does not fit; give a whole number"),
        ("class_weighted=1", "1 does not fit; give true or false"),
        ("learning_rate=null", "None does not fit; give a number"),
        ("frozen=features", "'features' does not fit; give a list"),
        ("optimizer=lion", "choose one of adamw, adam, adamax, sgd"),
        ("mean=[0.5", "'[0.5' is no value"),
        ("mean=[0.5]", "[0.5] does not fit; give 3 values"),
        ("mean=[a, b, c]", "'a' does not fit; give a number"),
        ("frozen=[1]", "1 does not fit; give a word"),
        ("cpu_precision=fp32", "--override cpu_precision=fp32: choose one of bf16, no"),
        ("cpu_precision=", "choose one of bf16, no"),
    ],
)
def test_what_does_not_fit_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(LeukoscopeError) as error:
        with_overrides(HOUSE, [assignment])
    assert message in str(error.value)


def test_a_part_that_a_recipe_lacks_begins_as_its_defaults() -> None:
    recipe = with_overrides(get_recipe("densenet121"), ["head.pooling=max", "head.levels=[1, 2]"])
    assert recipe.head == Head(pooling="max", levels=(1, 2))
