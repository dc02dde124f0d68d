"""Which data set a folder holds, judged by the names of its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.loading import recognise


def _cells(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), "purple").save(root / name)
    return root


def test_a_single_picture_named_as_in_cnmc_does_not_make_a_folder_that_data_set(tmp_path: Path) -> None:
    own = [f"{label}/{number}.png" for label in ("blast", "normal") for number in range(3)]
    assert recognise(_cells(tmp_path, *own, "blast/UID_1_1_1_all.bmp")).name == "imagefolder"


def test_a_folder_of_nothing_known_names_the_known_layouts(tmp_path: Path) -> None:
    with pytest.raises(
        LeukoscopeError, match=r"holds no picture laid out as .*cnmc2019: …/fold_.*imagefolder: <class>"
    ):
        recognise(_cells(tmp_path, "loose.png"))
    with pytest.raises(LeukoscopeError, match="nowhere: no such folder; give the folder that a data set was unpacked"):
        recognise(tmp_path / "nowhere")


def test_real_cells_are_recognised(real_data: Path) -> None:
    assert recognise(real_data / "cnmc2019").name == "cnmc2019"
    assert recognise(real_data / "ball4").name == "ball4"
