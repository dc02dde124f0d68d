"""A data set of one's own is registered without a fork, and what would mislead is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import leukoscope as lk
from drawn import save_cell
from leukoscope.data.layouts import cells_named

OURS = lk.DatasetInfo(
    name="our_laboratory",
    title="Cells of our laboratory",
    labels=("blast", "normal"),
    positive_label="blast",
    licence="ours",
    find_cells=cells_named(r"(?P<label>blast|normal)/(?P<subject>[a-z]\d+)_\d+", "png"),
)


@pytest.fixture(autouse=True)
def registry_as_it_was() -> Iterator[None]:
    before = dict(lk.DATASETS)
    yield
    lk.DATASETS.clear()
    lk.DATASETS.update(before)


def test_a_registered_data_set_is_loaded_by_its_name(tmp_path: Path) -> None:
    for label in OURS.labels:
        for cell in range(2):
            drawn_as = "ALL" if label == "blast" else "HEM"
            save_cell(tmp_path / label / f"{label[0]}7_{cell}.png", drawn_as, subject=7, cell=cell, size=64)
    lk.register_dataset(OURS)
    data = lk.load_dataset(OURS.name, tmp_path)
    assert (data.info.name, data.info.labels) == (OURS.name, OURS.labels)
    (rows,) = data.cells.values()
    assert sorted(set(rows["subject"][:])) == ["b7", "n7"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "lab/cells"}, "register_dataset: data set 'lab/cells': give a name without a slash"),
        ({"name": "cnmc2019"}, "register_dataset: data set 'cnmc2019': the name is taken by 'C-NMC 2019"),
        ({"find_cells": None}, "register_dataset: data set 'our_laboratory': has no find_cells; make it with"),
        ({"positive_label": "Blast"}, "positive_label 'Blast' is not one of labels blast, normal; correct it"),
        ({"labels": ("blast", "abstain")}, "'abstain' is an outcome without a class; rename this label"),
    ],
)
def test_an_entry_that_would_mislead_is_refused(changes: dict[str, object], problem: str) -> None:
    before = dict(lk.DATASETS)
    with pytest.raises(lk.DataError, match=re.escape(problem)):
        lk.register_dataset(replace(OURS, **changes))  # type: ignore[arg-type]
    assert before == lk.DATASETS
