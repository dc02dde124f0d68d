"""The models a visitor can pick: how many stay, what is refused, and that no folder of this machine is ever opened."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import pytest
from PIL import Image

from hub_server import Hub
from leukoscope import LeukoscopeError
from leukoscope.inference.hub_files import cached_repository
from leukoscope.web.shelf import ANSWERS_AT_ONCE, Shelf, find_releases, listed_models, weights_bytes


def test_embedded_releases_are_found_by_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / ".half.tmp").mkdir()
    (tmp_path / ".half.tmp" / "config.json").write_text("{}")
    (tmp_path / "template.md").write_text("no release")
    (tmp_path / "notes").mkdir()
    assert find_releases(tmp_path) == {"a": tmp_path / "a", "b": tmp_path / "b"}
    assert find_releases(tmp_path / "missing") == {}


def test_shelf_keeps_the_models_used_last(tiny_release: Path) -> None:
    one = weights_bytes(Shelf({"a": tiny_release}).predictor("a"))
    shelf = Shelf(dict.fromkeys("abc", tiny_release), capacity=2 * one)
    first = shelf.predictor("a")
    shelf.predictor("b")
    assert shelf.predictor("a") is first
    shelf.predictor("c")
    assert shelf.loaded == ["a", "c"]


def test_shelf_keeps_the_model_asked_for_however_large(tiny_release: Path) -> None:
    shelf = Shelf(dict.fromkeys("ab", tiny_release), capacity=1)
    shelf.predictor("a")
    shelf.predictor("b")
    assert shelf.loaded == ["b"]


def test_slow_downloads_keep_nobody_from_an_answer(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, arrived = Shelf({"tiny": tiny_release}), Event()
    shelf.predictor("tiny")
    load = shelf._loader
    monkeypatch.setattr(shelf, "_loader", lambda name: load(name) if name == "tiny" else arrived.wait)
    picture = Image.new("RGB", (64, 64))
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(shelf.predictor, f"slow/{number}") for number in range(ANSWERS_AT_ONCE)]
        slow += [pool.submit(shelf.ask, f"slow/{number}", [picture]) for number in range(ANSWERS_AT_ONCE)]
        try:
            (answer,) = pool.submit(shelf.ask, "tiny", [picture]).result(timeout=60)
        finally:
            monkeypatch.setattr(shelf, "_put", lambda name, loaded: loaded)
            arrived.set()
    assert answer.most_probable in ("ALL", "HEM")
    assert all(one.done() for one in slow)


def test_two_answers_are_computed_at_a_time() -> None:
    class Counted(Shelf):
        running = most = 0

        def predictor(self, choice: str | None) -> Any:
            return None

        def _ask(self, *args: Any, **options: Any) -> Any:
            self.running += 1
            self.most = max(self.most, self.running)
            sleep(0.05)
            self.running -= 1

    shelf = Counted({})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: shelf.ask("any", []), range(8)))
    assert shelf.most == ANSWERS_AT_ONCE == 2


def test_a_hub_model_too_large_for_a_visitor_is_not_fetched(
    hub: Hub, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage.create("owner/tiny", private=False)
    repository = hub.repository("owner/tiny")
    files = {path.name: hub.storage.keep(path.read_bytes(), large=False) for path in tiny_release.iterdir()}
    repository.branches["main"] = repository.add(files, "a release", repository.branches["main"]).oid
    monkeypatch.setattr("leukoscope.web.shelf.MAX_DOWNLOAD", 2**20)
    with pytest.raises(
        LeukoscopeError, match=r"^owner/tiny: holds 13 MB, more than the 1 MB fetched for a visitor; run"
    ):
        Shelf({}).predictor("owner/tiny")
    assert not (tmp_path / "hub-cache").exists()
    assert Shelf({}, ["owner/tiny"]).predictor("owner/tiny").labels == ("ALL", "HEM")


def publish(hub: Hub, name: str, release: Path) -> None:
    hub.storage.create(name, private=False)
    repository = hub.repository(name)
    files = {path.name: hub.storage.keep(path.read_bytes(), large=False) for path in release.iterdir()}
    repository.branches["main"] = repository.add(files, "a release", repository.branches["main"]).oid


def test_what_visitors_had_fetched_leaves_the_disk_but_not_what_lay_there_before(
    hub: Hub, tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["owner/mine", "owner/a", "owner/b", "owner/c"]
    for name in names:
        publish(hub, name, tiny_release)
    Shelf({}, ["owner/mine"]).predictor("owner/mine")
    shelf = Shelf({}, capacity=1)
    monkeypatch.setattr("leukoscope.web.shelf.MAX_DOWNLOADS", 30 * 2**20)
    for name in names:
        assert shelf.predictor(name).labels == ("ALL", "HEM")
    assert [cached_repository(name).exists() for name in names] == [True, False, True, True]
    assert shelf.predictor("owner/a").labels == ("ALL", "HEM"), "what was removed is fetched again"


@pytest.mark.parametrize(
    "name", ["../secrets", "/etc", "C:\\models", "name", "a/b/c", "owner/name@", "owner/..", "a--b/c"]
)
def test_shelf_refuses_what_is_no_model_name(name: str) -> None:
    with pytest.raises(LeukoscopeError, match="is no model name: pick one \\(x\\) or type a Hub id"):
        Shelf({"x": Path("x")}).predictor(name)


def test_listed_models_come_before_embedded_releases(tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text("owner/b@v1\n\n owner/a \n")
    listed = listed_models(tmp_path / "models.txt")
    assert Shelf({"x": Path("x")}, listed).names == ["owner/b@v1", "owner/a", "x"]
    assert listed_models(tmp_path / "missing.txt") == []


def test_shelf_says_how_to_get_a_model() -> None:
    with pytest.raises(LeukoscopeError, match="No model is embedded. Train one with `accelerate launch train.py`"):
        Shelf({}).predictor(None)
    with pytest.raises(LeukoscopeError, match="No model is chosen"):
        Shelf({"x": Path("x")}).predictor(" ")


def test_shelf_passes_a_broken_release_on_as_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LeukoscopeError, match=r"^broken[/\\]config\.json: damaged"):
        Shelf({"broken": tmp_path}).predictor("broken")


def test_an_embedded_release_is_called_by_its_name_alone(tiny_release: Path) -> None:
    assert Shelf({"tiny": tiny_release}).predictor("tiny").release.name == "tiny"


def test_a_space_s_token_opens_to_visitors_only_what_is_offered(
    hub: Hub, tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage.create("lab/tiny", private=True)
    repository = hub.repository("lab/tiny")
    files = {path.name: hub.storage.keep(path.read_bytes(), large=False) for path in tiny_release.iterdir()}
    repository.branches["main"] = repository.add(files, "a release", repository.branches["main"]).oid
    monkeypatch.setenv("SPACE_ID", "lab/demo")
    with pytest.raises(LeukoscopeError, match=r"^lab/tiny: no model on the Hub that is open to anybody; check"):
        Shelf({}).predictor("lab/tiny")
    assert Shelf({}, ["lab/tiny"]).predictor("lab/tiny").labels == ("ALL", "HEM")
    monkeypatch.delenv("SPACE_ID")
    assert Shelf({}).predictor("lab/tiny").labels == ("ALL", "HEM")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_folder_of_this_machine_is_never_opened_for_a_visitor(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "secret").symlink_to(tiny_release)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeukoscopeError, match="^runs/secret: the Hub cannot be reached"):
        Shelf({"tiny": tiny_release}).predictor("runs/secret")


def test_a_damaged_hub_model_is_told_without_this_machine_s_folders(tmp_path: Path, hub_cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub_cache / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{")
    with pytest.raises(LeukoscopeError, match=r"^owner/name/config\.json: damaged") as refused:
        Shelf({}).predictor(f"owner/name@{commit}")
    assert str(tmp_path) not in str(refused.value)
