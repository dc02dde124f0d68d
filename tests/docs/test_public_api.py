"""`import leukoscope as lk`: a flat list of names, each described, whose mistakes are told in one line."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"epochs": 3}, "epochs: no such flag; `leukoscope train --help`"),
        ({"mistyped": None}, "mistyped: no such flag; `leukoscope train --help` lists all flags"),
        ({"model_name_or_path": "no_such_net"}, "--model_name_or_path no_such_net: timm "),
        ({"fold": 1.0}, "--fold: invalid int value: '1.0'; `leukoscope train --help` lists all flags"),
        ({"seed": True}, "--seed: invalid int value: 'True'; `leukoscope train --help` lists all flags"),
        (
            {"recipe": None, "output_dir": Path("runs/x"), "override": ("drop_rate=0.1",), "image_size": 8},
            "--image_size 8: input should be greater than or equal to 32",
        ),
    ],
    ids=str,
)
def test_flags_of_train_are_read_as_those_of_the_command(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(lk.LeukoscopeError, match="^" + re.escape(said)):
        lk.train(**flags)


def test_evaluate_names_what_is_no_data_set() -> None:
    data: Any = "my_cells"
    with pytest.raises(
        lk.LeukoscopeError, match="^evaluate: 'my_cells': is not a data set; give what `load_dataset` ret"
    ):
        lk.evaluate("leukoscope-densenet169-cnmc", data)
