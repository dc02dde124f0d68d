"""The models a visitor can pick: how many stay, what is refused, and that no folder of this machine is ever opened."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from time import sleep
from typing import Any

import pytest
from PIL import Image

from hub_server import Hub
from leukoscope import LeukoscopeError
from leukoscope.models.hub_download import cached_repository
from leukoscope.models.release import DEFAULT_RELEASE, WEIGHTS_FILE, read_release
from leukoscope.synthetic_smears import draw_smear
from leukoscope.web.answer import Picture, ask
from leukoscope.web.model_cache import PREDICTIONS_AT_ONCE, ModelCache, find_releases, listed_models


def test_releases_are_found_by_folder_and_one_by_its_name_or_its_run_s(tmp_path: Path) -> None:
    for name in ("z", "a", DEFAULT_RELEASE):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / ".half.tmp").mkdir()
    (tmp_path / ".half.tmp" / "config.json").write_text("{}")
    (tmp_path / "template.md").write_text("no release")
    (tmp_path / "notes").mkdir()
    assert list(find_releases(tmp_path).items()) == [(name, tmp_path / name) for name in (DEFAULT_RELEASE, "a", "z")]
    assert find_releases(tmp_path / "missing") == {}
    for folder in (tmp_path / "mine", tmp_path / "run" / "release"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert find_releases(tmp_path / "mine") == {"mine": tmp_path / "mine"}
    assert find_releases(tmp_path / "run" / "release") == {"run": tmp_path / "run" / "release"}


def test_it_keeps_the_models_used_last_and_the_one_asked_for_however_large(tiny_release: Path) -> None:
    one = 2 * (tiny_release / WEIGHTS_FILE).stat().st_size
    for capacity, kept in ((2 * one, ["a", "c"]), (1, ["c"])):
        models = ModelCache(dict.fromkeys("abc", tiny_release), capacity=capacity)
        first = models.predictor("a")
        models.predictor("b")
        assert (models.predictor("a") is first) == (capacity > 1)
        models.predictor("c")
        assert list(models._loaded) == kept


def test_a_field_goes_through_the_network_in_small_parts(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell waits until those before it are through: of sixteen, for seconds on a busy machine."""
    models, sizes = ModelCache({"tiny": tiny_release}), []
    backend = models.predictor("tiny").backend

    def counted(self: Any, pixels: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(pixels))
        return call(self, pixels, *args, **options)

    call = type(backend).__call__
    monkeypatch.setattr(type(backend), "__call__", counted)
    field = Image.fromarray(draw_smear(("ALL", "HEM") * 4, size=(400, 520), um_per_pixel=0.2).image)
    assert len(models.read_smear(models.predictor("tiny"), field, "a.png", um_per_pixel=0.2).cells) == 8
    assert sum(sizes) >= 7 and max(sizes) <= 2


def test_slow_downloads_keep_nobody_from_a_prediction(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, arrived = ModelCache({"tiny": tiny_release}), Event()
    models.predictor("tiny")
    load = models._load

    def slow_load(name: str) -> Any:
        arrived.wait(300)
        return load("tiny")

    monkeypatch.setattr(models, "_load", slow_load)
    picture = Image.new("RGB", (64, 64))
    with ThreadPoolExecutor(8) as pool:
        slow: list[Future[Any]] = [
            pool.submit(models.predictor, f"slow/{number}") for number in range(PREDICTIONS_AT_ONCE)
        ]
        slow += [pool.submit(ask, Picture(picture, ""), models, f"slow/{number}") for number in range(2)]
        try:
            (prediction,) = pool.submit(models.predict, models.predictor("tiny"), [picture]).result(timeout=300)
        finally:
            arrived.set()
    assert prediction.most_probable in ("ALL", "HEM")
    assert all(one.done() for one in slow)


def test_two_predictions_are_computed_at_a_time_and_who_asks_again_waits_behind_those_who_wait() -> None:
    answered: list[int] = []
    running = most = 0

    def predictor(images: list[int], **options: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        sleep(0.01)
        running -= 1
        answered.extend(images)

    models: Any = ModelCache({})  # of a stand-in for a predictor
    visitors, questions = 6, 20
    together = Barrier(visitors)

    def ask(visitor: int) -> None:
        together.wait(300)
        for _ in range(questions):
            models.predict(predictor, [visitor])

    with ThreadPoolExecutor(visitors) as pool:
        list(pool.map(ask, range(visitors)))
    assert set(answered[: 2 * visitors]) == set(range(visitors))
    assert most == PREDICTIONS_AT_ONCE == 2


def test_a_decision_waits_for_no_map_of_another_visitor() -> None:
    models: Any = ModelCache({})  # of stand-ins for a predictor
    drawn = Event()
    with ThreadPoolExecutor(PREDICTIONS_AT_ONCE) as visitors:
        maps = [
            visitors.submit(models.predict, lambda *_, **__: [drawn.wait(60)], []) for _ in range(PREDICTIONS_AT_ONCE)
        ]
        assert models.decide(lambda *_, **__: ["ALL"], []) == ["ALL"] and not any(one.done() for one in maps)
        drawn.set()


def publish(hub: Hub, name: str, release: Path, *, private: bool = False) -> None:
    hub.storage.create(name, private=private)
    repository = hub.repository(name)
    files = {path.name: hub.storage.keep(path.read_bytes(), large=False) for path in release.iterdir()}
    repository.branches["main"] = repository.add(files, "a release", repository.branches["main"]).oid


def test_a_hub_model_too_large_for_a_visitor_is_not_downloaded(
    hub: Hub, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = shutil.copytree(tiny_release, tmp_path / "heavy")
    (heavy / "metrics.json").write_text(json.dumps({"schema_version": 3, "notes": "x" * 3 * 2**20}))
    publish(hub, "owner/tiny", heavy)
    monkeypatch.setattr("leukoscope.web.model_cache.MAX_DOWNLOAD", 2**20)
    with pytest.raises(LeukoscopeError, match=r"^owner/tiny: holds 3 MB, more than the 1 MB downloaded for a visitor;"):
        ModelCache({}).predictor("owner/tiny")
    assert not (tmp_path / "hub-cache").exists()
    assert ModelCache({}, ["owner/tiny"]).predictor("owner/tiny").labels == ("ALL", "HEM")


def test_the_longest_unused_download_leaves_disk_and_memory_but_not_what_lay_there_before(
    hub: Hub, tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("owner/mine", "owner/a", "owner/b", "owner/c"):
        publish(hub, name, tiny_release)
    ModelCache({}, ["owner/mine"]).predictor("owner/mine")
    one = sum(path.stat().st_size for path in tiny_release.iterdir())
    monkeypatch.setattr("leukoscope.web.model_cache.MAX_DOWNLOADS", int(2.5 * one))
    models = ModelCache({"tiny": tiny_release})
    for name in ("owner/mine", "owner/a@main", "owner/b", "owner/a@main", "owner/c"):
        models.predictor(name)
    there = [cached_repository(f"owner/{name}").exists() for name in ("mine", "a", "b", "c")]
    assert there == [True, True, False, True]
    assert list(models._loaded) == ["owner/mine", "owner/a@main", "owner/c"]
    models.predictor("tiny")
    assert list(models._loaded)[-1] == "tiny", "the memory of the others is counted without their files"
    assert models.predictor("owner/b").labels == ("ALL", "HEM"), "what was removed is downloaded again"


def test_files_that_one_visitor_is_loading_are_not_deleted_for_another(
    hub: Hub, tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        publish(hub, f"owner/{name}", tiny_release)
    models = ModelCache({}, capacity=1)
    for name in ("owner/a", "owner/b"):
        models.predictor(name)
    monkeypatch.setattr("leukoscope.web.model_cache.MAX_DOWNLOADS", 1)
    reading, go_on = Event(), Event()

    def slow_read(folder: Path, **options: Any) -> Any:
        if options["name"] == "owner/a":
            reading.set()
            assert go_on.wait(300)
        return read_release(folder, **options)

    monkeypatch.setattr("leukoscope.inference.predictor.read_release", slow_read)
    with ThreadPoolExecutor(1) as visitor:
        loading = visitor.submit(models.predictor, "owner/a")
        assert reading.wait(300)
        models.predictor("owner/c")
        there = [cached_repository(f"owner/{name}").exists() for name in "abc"]
        go_on.set()
        assert loading.result(timeout=300).labels == ("ALL", "HEM")
    assert there == [True, False, True]
    assert not cached_repository("owner/c").exists(), "once nobody loads it, the limit holds again"


def test_what_the_host_offers_is_not_deleted_for_a_visitor_who_typed_a_revision_of_it(
    hub: Hub, tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("owner/offered", "owner/a"):
        publish(hub, name, tiny_release)
    monkeypatch.setattr("leukoscope.web.model_cache.MAX_DOWNLOADS", 1)
    models = ModelCache({}, ["owner/offered"])
    for name in ("owner/offered@main", "owner/a"):
        models.predictor(name)
    assert cached_repository("owner/offered").exists()


def test_four_slow_downloads_keep_no_release_of_this_machine_from_being_loaded(
    tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = Event()
    monkeypatch.setattr("leukoscope.web.model_cache.hub_model_info", lambda *_, **__: arrived.wait(300))
    models = ModelCache({"tiny": tiny_release})
    with ThreadPoolExecutor(5) as pool:
        slow = [pool.submit(models.predictor, f"slow/{number}") for number in range(4)]
        try:
            assert pool.submit(models.predictor, "tiny").result(timeout=300).labels == ("ALL", "HEM")
            assert not any(download.done() for download in slow)
        finally:
            arrived.set()


def test_a_model_in_memory_answers_first_then_those_of_this_machine(tiny_release: Path) -> None:
    models = ModelCache({"a": tiny_release, "b": tiny_release}, ["owner/name"])
    assert models.soonest_first(["owner/name", "a", "b"]) == ["a", "b", "owner/name"]
    models.predictor("b")
    assert models.soonest_first(["owner/name", "a", "b"]) == ["b", "a", "owner/name"]


@pytest.mark.parametrize(
    "name",
    ["../secrets", "/etc", "C:\\models", "name", "a/b/c", "owner/name@", "owner/..", "a--b/c", 'x"); import os #'],
)
def test_it_refuses_what_is_no_model_name(name: str) -> None:
    models = ModelCache({"x": Path("x")})
    assert [models.is_name(one) for one in ("x", "owner/name", "owner/name@v1", name)] == [True] * 3 + [False]
    with pytest.raises(LeukoscopeError, match="is no model name: give one of x, or a Hub id"):
        models.predictor(name)


def test_listed_models_come_before_embedded_releases(tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text("owner/b@v1\n\n owner/a \n")
    listed = listed_models(tmp_path / "models.txt")
    assert ModelCache({"x": Path("x")}, listed).names == ["owner/b@v1", "owner/a", "x"]
    assert listed_models(tmp_path / "missing.txt") == []


def test_it_says_how_to_get_a_model() -> None:
    with pytest.raises(LeukoscopeError, match="This demo comes with no model. Name one of the Hub, such as owner/name"):
        ModelCache({}).predictor(None)
    with pytest.raises(LeukoscopeError, match="No model is chosen"):
        ModelCache({"x": Path("x")}).predictor(" ")


def test_an_embedded_release_is_called_by_its_name_alone_also_where_it_is_broken(
    tiny_release: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{")
    models = ModelCache({"tiny": tiny_release, "broken": tmp_path})
    assert models.predictor("tiny").release.name == "tiny"
    with pytest.raises(LeukoscopeError, match=r"^broken[/\\]config\.json: damaged"):
        models.predictor("broken")


@pytest.mark.parametrize("space", ["", "lab/demo"], ids=["own machine", "Space"])
def test_a_visitor_opens_nothing_with_the_host_s_token(
    hub: Hub, tiny_release: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    """Neither by the token nor by what it downloaded before; what the host lists may be private."""
    publish(hub, "lab/private", tiny_release, private=True)
    publish(hub, "lab/gated", tiny_release)
    publish(hub, "lab/open", tiny_release)
    monkeypatch.setenv("SPACE_ID", space)
    for name in ("lab/private", "lab/gated"):
        assert ModelCache({}, [name]).predictor(name).labels == ("ALL", "HEM")
    hub.repository("lab/gated").gated = True
    for name in ("lab/private", "lab/private@main", "lab/gated"):
        with pytest.raises(LeukoscopeError, match=f"^{name}: not a public model on the Hub; check"):
            ModelCache({}, ["lab/other"]).predictor(name)
    assert ModelCache({}).predictor("lab/open").labels == ("ALL", "HEM")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ModelCache({}, ["lab/private"]).predictor("lab/private").labels == ("ALL", "HEM")
    with pytest.raises(LeukoscopeError, match="^lab/private: the Hub cannot be reached .* is public; try again"):
        ModelCache({}).predictor("lab/private")


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
        ModelCache({"tiny": tiny_release}).predictor("runs/secret")


def test_a_damaged_hub_model_is_told_without_this_machine_s_folders(tmp_path: Path, hub_cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub_cache / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{")
    with pytest.raises(LeukoscopeError, match=r"^owner/name/config\.json: damaged") as refused:
        ModelCache({}, [f"owner/name@{commit}"]).predictor(f"owner/name@{commit}")
    assert str(tmp_path) not in str(refused.value)


def test_a_model_whose_graph_is_kept_is_loaded_without_torch(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", "openvino")
    ModelCache({"tiny": tiny_release}).predictor("tiny")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert ModelCache({"tiny": tiny_release}).predictor("tiny").backend.name == "openvino"
