"""A model named by Hub id comes as the Hub keeps it, or from the cache and said so, or not at all and said why."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
from pathlib import Path

import pytest

from hub_server import Fault, Hub
from leukoscope import LeukoscopeError, Predictor
from leukoscope.evaluation.predict import open_model
from leukoscope.files import embedded_releases
from leukoscope.models.hub_download import HUB_TIMEOUT, fetch_files, find_release
from leukoscope.models.release import local_release
from leukoscope.synthetic import draw_cell
from leukoscope.training.config import parse_config

ID = "lab/cells"


@pytest.fixture
def online(hub: Hub, tiny_release: Path) -> Hub:
    """A Hub that holds the tiny release."""
    put(hub, tiny_release)
    return hub


def put(hub: Hub, folder: Path, id: str = ID) -> str:
    """A folder's files as one more commit of a repository; its id."""
    if id not in hub.storage.repositories:
        hub.storage.create(id, private=False)
    repository = hub.repository(id)
    files = {
        path.name: hub.storage.keep(path.read_bytes(), large=path.suffix in (".safetensors", ".bin"))
        for path in folder.iterdir()
    }
    commit = repository.add(files, "new version", repository.branches["main"])
    repository.branches["main"] = commit.oid
    return commit.oid


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens on the discard port.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def same_files(folder: Path, release: Path) -> bool:
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in release.iterdir())


def test_a_release_that_comes_along_is_found_by_its_name_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "leukoscope-densenet169-cnmc"
    assert find_release(name) == (embedded_releases() / name, name, "")
    assert Predictor.from_pretrained(name).release.name == name
    assert parse_config(["--model_name_or_path", name]).model.model_name_or_path == name
    assert local_release("x" * 300) is None, "too long for a file"
    shutil.copytree(embedded_releases() / name, tmp_path / name)
    assert local_release(name) == Path(name)


def test_a_copy_without_the_embedded_releases_finds_hub_ids(
    online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leukoscope.files._HOMES", (tmp_path,))
    assert find_release(ID)[1] == ID
    with pytest.raises(LeukoscopeError, match="^name: is neither a folder nor a Hub id"):
        find_release("name")


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    online: Hub, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = online.repository(ID)
    old = repository.branches["main"]
    assert same_files(fetch_files(ID, None), tiny_release), "it arrives as it was published"
    repository.tags["v1"] = repository.branches["feature/x"] = old
    shutil.copytree(tiny_release, tmp_path / "new")
    (tmp_path / "new" / "metrics.json").write_text("{}")
    new = put(online, tmp_path / "new")
    for revision in ("v1", old, old[:8], "feature/x"):
        assert find_release(f"{ID}@{revision}")[0].name == old
    assert find_release(ID)[0].name == new
    assert json.loads((find_release(ID)[0] / "metrics.json").read_text()) == {}
    answer = Predictor.from_pretrained(ID)(draw_cell("ALL", subject=0, cell=0, size=64, background="black").image)
    assert (answer.model, answer.revision) == (ID, new)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert [find_release(name)[0].name for name in (f"{ID}@v1", f"{ID}@{old}", ID)] == [old, old, new], "offline, too"


def test_a_folder_wins_over_a_hub_id_of_the_same_name_but_not_from_the_hub(
    online: Hub, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_release, tmp_path / ID)
    assert Predictor.from_pretrained(ID).release.revision == ""
    assert Predictor.from_hub(ID).release.revision == online.repository(ID).branches["main"]


def test_no_message_names_the_folder_of_the_cache(
    online: Hub, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Path(shutil.copytree(tiny_release, tmp_path / "broken"))
    (broken / "config.json").write_text("{")
    put(online, broken)
    with pytest.raises(LeukoscopeError, match=rf"^{ID}/config.json: damaged \(.*\); restore it from the release$"):
        Predictor.from_pretrained(ID)

    def refuse(*_: object, **__: object) -> None:
        (tmp_path / "no such folder" / "file").touch()

    monkeypatch.setattr("leukoscope.models.hub_download.snapshot_download", refuse)
    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_hub(ID)
    assert str(error.value) == (
        f"{ID}: cannot be fetched from the Hub (No such file or directory); try again, or give a release folder"
    )


@pytest.mark.parametrize("broken", ["unplugged", "refusing", "switched off"])
def test_without_the_hub_the_cached_copy_is_used_and_said_so(
    online: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_release: Path, broken: str
) -> None:
    first = fetch_files(ID, None)
    if broken == "unplugged":
        unplug(monkeypatch)
    elif broken == "switched off":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        online.faults.append(Fault("GET /api/models", status=503, times=9))
    with caplog.at_level(logging.WARNING, "leukoscope"):
        again = fetch_files(ID, None)
    assert again == first
    assert same_files(again, tiny_release)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "leukoscope"]
    assert said.startswith(f"{ID}: the Hub cannot be reached (")
    assert said.endswith(f"); using the copy cached here, {first.name[:12]}")


@pytest.mark.parametrize("lacking", ["model.safetensors", "metrics.json"])
def test_a_release_of_which_only_some_files_are_cached_is_no_copy_of_it(
    online: Hub, monkeypatch: pytest.MonkeyPatch, tiny_release: Path, lacking: str
) -> None:
    """timm and transformers fetch two; without the others any picture would get a class."""
    from huggingface_hub import hf_hub_download

    for file in tiny_release.iterdir():
        if file.name != lacking:
            folder = Path(hf_hub_download(ID, file.name)).parent
    unplug(monkeypatch)
    with pytest.raises(LeukoscopeError, match=f"^{ID}: the Hub cannot be reached and no whole copy is cached"):
        fetch_files(ID, None)
    assert fetch_files(ID, None, ("config.json",)) == folder, "nothing else is asked for"


def test_a_network_that_swallows_everything_is_given_up_within_five_seconds(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HUB_TIMEOUT < 5
    # Twice the limit: a busy machine may be late by seconds, and two waits one after the other take as long.
    monkeypatch.setattr("leukoscope.models.hub_download.HUB_TIMEOUT", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(LeukoscopeError, match=f"^{ID}: the Hub cannot be reached and no whole copy is cached"):
            fetch_files(ID, None)
    assert time.monotonic() - start < 6


def test_weights_cut_half_way_are_gone_on_with_and_a_busy_hub_is_waited_for(
    online: Hub, tiny_release: Path, waits: list[float]
) -> None:
    online.faults.append(Fault("GET .*/model.safetensors", "cut", times=3))
    online.faults.append(Fault("GET .*/config.json", status=429, headers={"Retry-After": "7"}))
    assert same_files(fetch_files(ID, None), tiny_release)
    assert 8 in waits  # the client adds a second


@pytest.mark.usefixtures("waits")
def test_weights_that_never_come_whole_are_told_of_and_come_later(online: Hub, tiny_release: Path) -> None:
    online.faults.append(Fault("GET .*/config.json", status=500, times=99))
    with pytest.raises(LeukoscopeError, match=rf"^{ID}: cannot be fetched from the Hub \(.+\);"):
        fetch_files(ID, None)
    online.faults.clear()
    assert same_files(fetch_files(ID, None), tiny_release)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_content_that_is_not_what_the_hub_names_is_refused_once_and_fetched_anew(
    online: Hub, tiny_release: Path, name: str
) -> None:
    online.faults.append(Fault("(HEAD|GET) .*/model.safetensors", "wrong_etag", times=2))
    said = "is damaged (its checksum is not the one the Hub names); it was removed from the cache, try again"
    with pytest.raises(LeukoscopeError) as refused:
        fetch_files(ID, None)
    assert str(refused.value) == f"{ID}: model.safetensors {said}"
    file = fetch_files(ID, None) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.resolve().write_bytes(content)
    with pytest.raises(LeukoscopeError) as refused:
        fetch_files(ID, None)
    assert str(refused.value) == f"{ID}: {name} {said}"
    assert same_files(fetch_files(ID, None), tiny_release)


def test_a_repository_without_safetensors_is_refused_before_anything_is_downloaded(
    online: Hub, tiny_release: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_release, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "other" / "pytorch_model.bin")
    put(online, tmp_path / "other", "lab/other")
    for opened in (Predictor.from_pretrained, open_model):
        with pytest.raises(LeukoscopeError, match=r"^lab/other: holds no .safetensors file; .* never loaded$"):
            opened("lab/other")
    assert not [request for request in online.requests if "/resolve/" in request]


UNKNOWN = "no such folder, and no such model on the Hub; check the name, or `hf auth login` if it is private"
GATED = f"access is restricted; accept its terms on https://huggingface.co/{ID} and run `hf auth login`"
NO_REVISION = "the Hub has this model but not this revision; name one of its branches, tags or commits"


@pytest.mark.parametrize(
    ("status", "code", "problem"),
    [(404, "RepoNotFound", UNKNOWN), (403, "GatedRepo", GATED), (404, "RevisionNotFound", NO_REVISION)],
)
def test_what_the_hub_refuses_is_said_with_the_fix(online: Hub, status: int, code: str, problem: str) -> None:
    online.faults.append(Fault("GET /api/models", status=status, headers={"X-Error-Code": code}, times=9))
    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_pretrained(ID)
    assert str(error.value) == f"{ID}: {problem}"
