"""tools/publish.py: one command publishes everything, the same command again changes nothing."""

from __future__ import annotations

import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import publish
import pytest
from huggingface_hub import ModelCard

from hub_server import Hub

NAMES = ("leukoscope-densenet169-cnmc", "leukoscope-other")
TAG = publish.TAG


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
    assert hub.repository(spaces[1]).hardware == "zero-a10g"
    assert hub.content(spaces[1], "models.txt").decode() == "".join(f"{model}@{TAG}\n" for model in models)
    assert [*before[1].values()] == [[*models, *(space.removeprefix("spaces/") for space in spaces)]]

    hub.requests.clear()
    run(monkeypatch, *words)
    assert state(hub) == before
    assert not [request for request in hub.requests if request.startswith("PUT") or "/commit/" in request]
    again = capsys.readouterr().out
    assert f"{hub.url}/{models[0]} (has the tag {TAG} already; to publish changes, raise the version)\n" in again
    assert again.count("; these files were there already, nothing was sent)") == len(spaces)


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
        "static Space lab/leukoscope-page",
        "Gradio Space lab/leukoscope, on ZeroGPU",
        "collection lab/Leukoscope",
    ]
    assert (hub.requests, hub.storage.repositories) == ([], {})
