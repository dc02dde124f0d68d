"""Scored on Ray, a table must be the one that is scored here, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from leukoscope import LeukoscopeError, Predictor
from leukoscope.cli import app
from leukoscope.files import atomic_file
from leukoscope.inference import ray_scoring, scoring
from leukoscope.inference.scoring import CellSource, open_source

ray = pytest.importorskip("ray")
# Where too much else runs, Ray may end the very process that started it (seen once, with four jobs on two cores).
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "cells"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scoring, "CELLS_PER_SHARD", 3)
    yield


def on_ray(release: Path) -> Any:
    settings = {"backend": "", "device": "cpu", "precision": "float32"}
    return partial(ray_scoring.score_missing, address=ray_scoring.LOCAL, model=str(release), settings=settings)


def score(release: Path, source: CellSource, output: Path, **options: Any) -> pa.Table:
    scoring.score_cells(Predictor.from_pretrained(release, device="cpu"), source, output, **options)
    return pq.read_table(output)


def require_equal(table: pa.Table, local: pa.Table) -> None:
    assert table.schema.names == local.schema.names and table["cell_id"] == local["cell_id"]
    for name in local.schema.names:
        if name.startswith("p_"):
            assert np.abs(table[name].to_numpy() - local[name].to_numpy()).max() < 1e-6
        else:
            assert table[name] == local[name], name


def test_the_table_is_the_local_one(
    tiny_release: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", dict)  # one actor: each imports torch
    local = score(tiny_release, open_source(str(cells)), tmp_path / "local.parquet")
    assert len(local) == 19
    result = CliRunner().invoke(
        app, ["score", str(tiny_release), "--input", str(cells), "--output", str(tmp_path / "ray.parquet"),
              "--ray", "local", "--device", "cpu"],
    )  # fmt: skip
    assert result.exit_code == 1 and "1 file(s) could not be read" in result.stderr
    require_equal(pq.read_table(tmp_path / "ray.parquet"), local)
    names = ("local", "ray")
    listed = [scoring.unreadable_list(tmp_path / f"{name}.parquet").read_text(encoding="utf-8") for name in names]
    assert listed[0] == listed[1] and "07.png" in listed[0]


def test_a_killed_actor_and_an_interrupted_run_lose_and_double_nothing(
    tiny_release: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(cells))
    local = score(tiny_release, source, tmp_path / "local.parquet")
    written: list[str] = []

    def killing(path: Path) -> Any:
        written.append(path.name)
        if len(written) == 1:
            actors = [one for one in psutil.Process().children(recursive=True) if "Scorer" in " ".join(one.cmdline())]
            os.kill(actors[0].pid, signal.SIGKILL)
        if len(written) == 5:
            raise KeyboardInterrupt
        return atomic_file(path)

    monkeypatch.setattr(ray_scoring, "atomic_file", killing)
    with pytest.raises(KeyboardInterrupt):
        score(tiny_release, source, tmp_path / "ray.parquet", score_missing=on_ray(tiny_release))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    require_equal(score(tiny_release, source, tmp_path / "ray.parquet", score_missing=on_ray(tiny_release)), local)
    assert len(written) == 8 and len(set(written)) == 7, "the shard that was being written, and no other, came twice"


def test_a_cluster_that_does_not_answer_is_one_line(
    tiny_release: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:  # the real one tries for a minute
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6399")

    monkeypatch.setattr(ray, "init", init)
    elsewhere = partial(on_ray(tiny_release), address="192.0.2.2:6399")
    said = r"^--ray 192\.0\.2\.2:6399: no cluster answers \(Failed to .*\); start it, or give --ray local$"
    with pytest.raises(LeukoscopeError, match=said):
        score(tiny_release, open_source(str(cells)), tmp_path / "ray.parquet", score_missing=elsewhere)
