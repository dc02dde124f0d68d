"""`import leukoscope as lk`: a flat list of names, each described, whose mistakes are told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import leukoscope as lk


@pytest.mark.parametrize("name", lk.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    thing = getattr(lk, name)
    assert name in dir(lk)
    if callable(thing):
        assert (thing.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'leukoscope' has no attribute 'no_such_name'"):
        lk.no_such_name  # noqa: B018


def test_an_unknown_flag_of_train_is_named() -> None:
    with pytest.raises(lk.LeukoscopeError, match=r"^train\(epochs=3\): no such flag; `leukoscope train --help`"):
        lk.train(epochs=3)
    with pytest.raises(lk.LeukoscopeError, match="--model_name_or_path no_such_net: timm .* has no such model"):
        lk.train(model_name_or_path="no_such_net")


def test_evaluate_names_what_is_no_data_set() -> None:
    data: Any = "my_cells"
    with pytest.raises(lk.LeukoscopeError, match="^evaluate: 'my_cells': is no data set; give what `load_dataset` ret"):
        lk.evaluate("leukoscope-densenet169-cnmc", data)


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ({"override": "image_size=64"}, "input should be a valid list"),
        ({"fold": 1.0}, "input should be a valid integer"),
        ({"seed": True}, "input should be a valid integer"),
        ({"from_scratch": 1}, "input should be a valid boolean"),
        ({"report_to": 1}, "input should be 'trackio', 'tensorboard' or 'wandb'"),
        ({"source": 1}, "no such flag; `leukoscope train --help` lists them all"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused(flag: dict[str, object], wanted: str) -> None:
    ((name, value),) = flag.items()
    with pytest.raises(lk.LeukoscopeError) as refused:
        lk.train(**flag)
    assert str(refused.value) == f"train({name}={value!r}): {wanted}"


def test_a_path_a_tuple_and_a_whole_number_are_taken() -> None:
    taken: dict[str, Any] = {"output_dir": Path("runs/x"), "override": ("drop_rate=0.1",), "learning_rate": 1}
    with pytest.raises(lk.LeukoscopeError, match="^--image_size 8: input should be greater than or equal to 32"):
        lk.train(recipe=None, image_size=8, **taken)
