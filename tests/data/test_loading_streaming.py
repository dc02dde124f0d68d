"""A few cells streamed from a data set as the Hub lays it out, and one message where there is nothing to stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.loading import stream_cells


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds after each stream of Parquet, for threads that would disturb a process's end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


def _published(folder: Path, labels: Sequence[str | None], label: datasets.ClassLabel | datasets.Value) -> str:
    pictures = [Image.new("RGB", (16, 16), (number, 0, 0)) for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": labels, "subject": labels})
    rows = rows.cast_column("image", datasets.Image()).cast_column("label", label)
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.mark.parametrize("label", [datasets.ClassLabel(names=["HEM", "ALL"]), datasets.Value("string")])
def test_a_sorted_set_gives_cells_of_each_class(tmp_path: Path, label: datasets.ClassLabel | datasets.Value) -> None:
    hub_id = _published(tmp_path / "hub", ["ALL"] * 80 + ["HEM"] * 40, label)
    cells = stream_cells(hub_id, each=2)
    assert [cell.label for cell in cells] == ["ALL", "ALL", "HEM", "HEM"]
    reds = [np.asarray(cell.image)[0, 0, 0] for cell in cells]
    assert max(reds[:2]) < 80 <= min(reds[2:])


def test_a_rare_class_gives_what_there_is_and_cells_without_a_label_nothing(tmp_path: Path) -> None:
    hub_id = _published(tmp_path / "hub", [*["ALL"] * 9, None, "HEM", ""], datasets.Value("string"))
    assert [cell.label for cell in stream_cells(hub_id, each=3)] == ["ALL", "ALL", "ALL", "HEM"]




def test_no_such_data_set_and_one_without_pictures_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="data set lab/none: cannot be streamed from the Hub .*check the network"):
        stream_cells("lab/none")
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict({"text": ["a"], "label": ["ALL"]}).to_parquet(tmp_path / "hub" / "train.parquet")
    with pytest.raises(LeukoscopeError, match="cannot be streamed from the Hub"):
        stream_cells(str(tmp_path / "hub"))
