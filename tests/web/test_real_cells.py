"""The row of real cells: downloaded once, from the data set a model was trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import constants
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.registry import DATASETS
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.real_cells import real_cells, source_of

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def test_cells_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Five seconds after a stream; older versions do not wait.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (16, 16))] * 2, "label": ["ALL", "HEM"]})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "hub" / "train.parquet")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("leukoscope.web.real_cells.get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    info = replace(DATASETS["cnmc2019"], hub_id=str(tmp_path / "hub"))
    first = real_cells(info)
    assert [cell.label for cell in first] == ["ALL", "HEM"]
    shutil.rmtree(tmp_path / "hub")
    assert real_cells(info) is first


def test_the_source_is_what_the_model_was_trained_on() -> None:
    info = source_of(ModelCache({"released": RELEASE}), "released")
    assert info.hub_id == "dwb2023/cnmc-leukemia-2019"


def test_a_model_of_phantoms_has_no_real_cells(tiny_release: Path) -> None:
    with pytest.raises(LeukoscopeError, match="tiny: was trained on data of which no copy on the Hub is known; upload"):
        source_of(ModelCache({"tiny": tiny_release}), "tiny")


def test_a_hub_that_does_not_answer_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        LeukoscopeError, match="cannot be streamed from the Hub, which does not answer; try again later"
    ):
        real_cells(DATASETS["cnmc2019"])
