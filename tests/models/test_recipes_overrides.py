"""Recipes varied from text: what is replaced, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leukoscope import LeukoscopeError
from leukoscope.models.recipes import RECIPES, with_overrides, with_values

HOUSE = RECIPES["densenet121"]


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("image_size=224", "image_size", 224),
        ("class_weighted=false", "class_weighted", False),
        ("max_grad_norm=null", "max_grad_norm", None),
        ("frozen=[features.conv0]", "frozen", ("features.conv0",)),
        ("sampling=subjects", "sampling", "subjects"),
        ("mean=[0.5, 0.5, 0.5]", "mean", (0.5, 0.5, 0.5)),
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
        ("learning_rate", "write KEY=VALUE"),
        ("lr=1", "lr is unknown; choose one of architecture, base_model, image_size"),
        ("name=mine", "name is unknown"),
        ("augmentation.scal=1", "scal is unknown; choose one of scale, brightness"),
        ("augmentation=1", "input should be a dictionary or an instance of Augmentation"),
        ("learning_rate.x=1", "x is unknown; 0.0002 has no parts"),
        ("learning_rate=fast", "input should be a valid number"),
        ("image_size=1.5", "input should be a valid integer"),
        ("num_train_epochs=yes", "input should be a valid integer"),
        ("class_weighted=2", "input should be a valid boolean"),
        ("frozen=features", "input should be a valid tuple"),
        ("sampling=mine", "input should be 'cells' or 'subjects'"),
        ("mean=[0.5", "'[0.5' is no YAML"),
        ("mean=[0.5]", "give more values"),
        ("mean=[0.5, 0.5, 0.5, 0.5]", "tuple should have at most 3 items"),
        ("frozen=[1]", "input should be a valid string"),
        # Ranges.
        ("num_train_epochs=0", "input should be greater than or equal to 1"),
        ("learning_rate=0", "input should be greater than 0"),
        ("learning_rate=nan", "input should be a finite number"),
        ("drop_rate=1.1", "input should be less than or equal to 1"),
        ("ema_decay=.inf", "input should be less than or equal to 1"),
        ("std=[1, 0, 1]", "input should be greater than or equal to 0.001"),
        ("mean=[123.7, 116.3, 103.5]", "input should be less than or equal to 1"),
        ("block_config=[6, 0]", "input should be greater than or equal to 1"),
        ("augmentation.scale=-1", "input should be greater than or equal to 0"),
        ("augmentation.rotation=200", "input should be less than or equal to 180"),
        ("image_size=2000", "input should be less than or equal to 1024"),
    ],
)
def test_what_does_not_fit_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(LeukoscopeError) as error:
        with_overrides(HOUSE, [assignment])
    assert str(error.value).startswith(f"--override {assignment}: ") and message in str(error.value)


def test_a_value_that_nobody_gave_is_named_by_its_field() -> None:
    with pytest.raises(LeukoscopeError, match=r"^interpolation=hermite: input should be 'bicubic', "):
        with_values(replace(HOUSE, interpolation="hermite"), {}, {})  # type: ignore[arg-type]
