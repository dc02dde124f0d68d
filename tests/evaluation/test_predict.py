"""One loop predicts cells with whatever answers for a picture, in the data set's order and names of classes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from drawn import save_cell
from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.data.loading import load_cells
from leukoscope.evaluation.predict import match_labels, predict_cells
from predicted import classifier


def test_every_picture_is_changed_on_the_way_in(phantom_data: LoadedCells) -> None:
    some = phantom_data.train["cell_id"][3:6]
    plain = predict_cells(classifier(), phantom_data, some)
    brighter = predict_cells(classifier(), phantom_data, some, change=PICTURE_CHANGES["brightness_up_10"])
    assert (brighter.probabilities[:, 0] > plain.probabilities[:, 0]).all()
    assert brighter.pixel_hashes == plain.pixel_hashes, "of the pictures as they are"


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_damaged_pictures_are_left_out_by_name_whatever_the_batch(tmp_path: Path, batch_size: int) -> None:
    for label, number in itertools.product(("ALL", "HEM"), range(3)):
        save_cell(tmp_path / label / f"{label}{number}.png", label, subject=number, size=40)
    damaged = tmp_path / "ALL" / "ALL1.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    data = load_cells("imagefolder", tmp_path)
    cells = predict_cells(classifier(), data, data.train["cell_id"], batch_size=batch_size)
    assert len(cells.cell_ids) == len(cells.probabilities) == len(cells.outcomes or ()) == 5
    (line,) = cells.left_out
    assert str(damaged) in line


def test_classes_meet_by_name_and_several_of_a_model_may_be_one_of_ours() -> None:
    assert match_labels("m", ["HEM", "ALL"], ["ALL", "HEM"], {}) == {"HEM": "HEM", "ALL": "ALL"}
    names = {"Early": "ALL", "Pre": "ALL", "Pro": "ALL", "Benign": "HEM"}
    matched = match_labels("m", ["Benign", "Early", "Pre", "Pro"], ["ALL", "HEM"], names)
    assert list(matched.values()) == ["HEM", "ALL", "ALL", "ALL"]


@pytest.mark.parametrize(
    ("theirs", "names"),
    [
        (["LABEL_0", "LABEL_1"], {}),
        (["LABEL_0", "LABEL_1"], {"LABEL_0": "ALL"}),
        (["LABEL_0", "LABEL_1"], {"LABEL_0": "ALL", "LABEL_1": "all"}),
        (["LABEL_0", "LABEL_1"], {"LABEL_0": "none"}),
        (["ALL"], {}),
        (["all", "HEM"], {}),
    ],
)
def test_classes_without_a_counterpart_are_named_on_both_sides(theirs: list[str], names: dict[str, str]) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        match_labels("some/model", theirs, ["ALL", "HEM"], names)
    start = f"some/model: its classes are {', '.join(theirs)}, but the data set has ALL, HEM; rename the classes "
    assert str(refused.value).startswith(start)
