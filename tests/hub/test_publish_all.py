"""tools/publish.py: one command publishes everything, the same command again changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import publish
import pytest
import yaml
from huggingface_hub import ModelCard
from repository_address import write_address

from hub_server import Hub
from leukoscope import LeukoscopeError
from leukoscope.hub.publish import Destination, publish_dataset

NAMES = ("leukoscope-densenet169-cnmc", "leukoscope-other")
TAG = publish.TAG
ROOT = Path(__file__).parents[2]


@pytest.fixture
def releases(whole_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two releases to publish, and a stand-in for onnxruntime-web."""
    copies = [Path(shutil.copytree(whole_release, tmp_path / "releases" / name)) for name in NAMES]
    monkeypatch.setattr(publish, "RELEASES", copies)
    (tmp_path / "ort" / "dist").mkdir(parents=True)
    (tmp_path / "ort" / "dist" / "ort.mjs").write_bytes(b"a runtime")
    monkeypatch.setattr("leukoscope.hub.space.RUNTIME_FILES", {"ort.mjs": sha256(b"a runtime").hexdigest()})
    return copies


def state(hub: Hub) -> Any:
    """Every branch and tag of every repository, and the collections."""
    return {id: (dict(one.branches), dict(one.tags)) for id, one in hub.storage.repositories.items()}, {
        slug: [item["id"] for item in one["items"]] for slug, one in hub.storage.collections.items()
    }


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["publish.py", *words])
    publish.main()


@pytest.mark.slow
def test_one_command_publishes_everything_and_again_changes_nothing(
    hub: Hub, releases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("lab", "--space", "--onnxruntime_web", str(tmp_path / "ort"))
    run(monkeypatch, *words)
    printed, before = capsys.readouterr().out, state(hub)
    spaces = ["spaces/lab/leukoscope-page", "spaces/lab/leukoscope"]
    models = [f"lab/{name}" for name in NAMES]
    for id in (*models, *spaces):
        assert f"{hub.url}/{id} (commit {hub.repository(id).branches['main'][:12]})\n" in printed
    for model in models:
        assert hub.repository(model).tags == {TAG: hub.repository(model).branches["main"]}
        card = hub.content(model, "README.md").decode()
        assert f'model="{model}"' in card
        assert "path/to" not in card
        ModelCard(card).validate()
    assert models[0] in hub.content(spaces[0], "index.html").decode()
    assert hub.repository(spaces[1]).hardware == "zero-a10g"
    assert hub.content(spaces[1], "models.txt").decode() == "".join(f"{model}@{TAG}\n" for model in models)
    benchmark = "lab/cnmc2019-subjects"
    assert [*before[1].values()] == [[*models, benchmark, *(space.removeprefix("spaces/") for space in spaces)]]
    assert f"{hub.url}/datasets/{benchmark} (commit" in printed

    hub.requests.clear()
    run(monkeypatch, *words)
    assert state(hub) == before
    assert not [request for request in hub.requests if request.startswith("PUT") or "/commit/" in request]
    again = capsys.readouterr().out
    assert f"{hub.url}/{models[0]} (has the tag {TAG} already; to publish changes, raise the version)\n" in again


def test_an_interrupted_command_is_gone_on_with(
    hub: Hub, releases: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named releases come without page and collection, as in the release workflow."""
    run(monkeypatch, "lab", str(releases[1]))
    assert hub.repository(f"lab/{NAMES[1]}").tags.pop(TAG)
    commits = len(hub.repository(f"lab/{NAMES[1]}").commits)
    run(monkeypatch, "lab", str(releases[1]))
    assert TAG in hub.repository(f"lab/{NAMES[1]}").tags
    assert len(hub.repository(f"lab/{NAMES[1]}").commits) == commits
    assert set(hub.storage.repositories) == {f"lab/{NAMES[1]}"}
    assert not hub.storage.collections


def test_a_dry_run_asks_nothing(
    hub: Hub, releases: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "lab", "--space", "--dry-run")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *(f"model lab/{name}, tag {TAG}" for name in NAMES),
        "data set lab/cnmc2019-subjects",
        "static Space lab/leukoscope-page",
        "Gradio Space lab/leukoscope, on ZeroGPU",
        "collection lab/Leukoscope",
    ]
    assert (hub.requests, hub.storage.repositories) == ([], {})


def test_the_benchmark_is_a_data_set_without_pictures(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    id = publish.publish_benchmark("lab")
    commit = hub.repository(f"datasets/{id}").branches["main"]
    assert f"{hub.url}/datasets/{id} (commit {commit[:12]})\n" in capsys.readouterr().out
    files = hub.repository(f"datasets/{id}").at("main").files
    assert set(files) == {
        *(".gitattributes", "README.md", "baselines.json", "cells.csv", "croissant.json", "eval.yaml")
    }
    assert f"leukoscope evaluate --benchmark {id} MODEL" in hub.content(f"datasets/{id}", "README.md").decode()
    metadata = json.loads(hub.content(f"datasets/{id}", "croissant.json"))
    assert metadata["url"] == f"{hub.url}/datasets/{id}"
    publish.publish_benchmark("lab")
    assert hub.repository(f"datasets/{id}").branches["main"] == commit


def test_no_picture_gets_into_a_data_set(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("file\n")
    (tmp_path / "cell.bmp").write_bytes(b"BM")
    to = Destination("lab/folds", kind="dataset")
    with pytest.raises(
        LeukoscopeError, match=r"cell.bmp: is not a table or text .* pictures are not published, remove it"
    ):
        publish_dataset(tmp_path, to)
    assert hub.requests == []


ADDRESS = "https://github.com/lab/leukoscope"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that name the address of the repository."""
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    for path in (ROOT / "pyproject.toml", ROOT / "CITATION.cff", ROOT / "README.md"):
        shutil.copyfile(path, root / path.name)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copyfile(path, root / "notebooks" / path.name)
    return root


def test_the_repository_s_address_is_written_where_it_is_named(checkout: Path) -> None:
    before = {path: path.read_text() for path in checkout.rglob("*") if path.is_file()}
    assert len(write_address(checkout, ADDRESS + "/")) == len(before)
    after = {path: path.read_text() for path in before}
    assert all(after[path].count(ADDRESS) == 1 for path in before if path.name != "README.md")
    project = tomllib.loads(after[checkout / "pyproject.toml"])["project"]
    assert project["urls"] == {"Repository": ADDRESS}
    assert yaml.safe_load(after[checkout / "CITATION.cff"])["repository-code"] == ADDRESS
    for path in (checkout / "notebooks").iterdir():
        source = "".join(line for cell in json.loads(after[path])["cells"] for line in cell["source"])
        assert f'SOURCE = "git+{ADDRESS}"' in source
    assert "/github/lab/leukoscope/blob/main/notebooks/leakage.ipynb)" in after[checkout / "README.md"]
    write_address(checkout, "https://example.org/new/place")
    for path, text in after.items():
        assert ADDRESS not in path.read_text()
        assert len(path.read_text().splitlines()) == len(text.splitlines())
    assert (checkout / "README.md").read_text().startswith("# Leukoscope\n\n")


@pytest.mark.parametrize(
    "address", ["leukoscope", "http://github.com/lab/x", "https://github.com/lab", 'https://a/b/c"']
)
def test_what_is_no_address_is_not_written(checkout: Path, address: str) -> None:
    before = {path: path.read_text() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(LeukoscopeError, match="give the repository's address as https://host/owner/name"):
        write_address(checkout, address)
    assert all(path.read_text() == text for path, text in before.items())
