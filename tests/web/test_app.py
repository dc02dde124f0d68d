"""The demo as a server: what it refuses, and that nothing of a visit stays behind."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

import anyio
import anyio.to_thread
import gradio
import httpx
import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from leukoscope import LeukoscopeError, __version__
from leukoscope.web import app as web_app
from leukoscope.web.app import (
    AT_ONCE,
    OPEN_FILES,
    allow_open_files,
    app_options,
    build_demo,
    require_upload_folder,
    serve,
)
from leukoscope.web.content_policy import POLICY
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import Visit


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return App.create_app(build_demo(ModelCache({})), app_kwargs=app_options())


def test_neither_a_session_nor_a_video_is_written_to_disk(app: App, tmp_path: Path) -> None:
    assert app.state_holder["a-visit"] is not None
    answer = TestClient(app).get("/gradio_api/deep_link", params={"session_hash": "a-visit"})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "This server keeps nothing of a visit; save the result from the page."}
    assert TestClient(app).post("/gradio_api/process_recording", files={"video": b"video"}).status_code == 404
    assert not [*tmp_path.rglob("state.json"), *tmp_path.rglob("*.mp4")]


def test_a_server_terminated_as_it_starts_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM may come after the page is served and before the server waits for it."""
    demo = build_demo(ModelCache({}))
    monkeypatch.setattr(web_app, "build_demo", lambda models: demo)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(web_app, "Thread", lambda **_: signal.raise_signal(signal.SIGTERM))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            serve(tmp_path, tmp_path / "models.txt", "127.0.0.1", port)
        assert ended.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))
    assert not getattr(demo, "run_history", False), "newer versions of Gradio would keep a visitor's runs"
    assert demo.max_threads == AT_ONCE * len(demo.fns), "events that wait for a model take no thread from others"


def test_each_of_several_quick_clicks_is_answered() -> None:
    """By default, Gradio drops an event that comes while the same one is under way: the page showed an older choice."""
    asked = [fn for fn in build_demo(ModelCache({})).fns.values() if fn.fn and not fn.api_name]
    assert [fn for fn in asked if fn.trigger_mode != "multiple"] == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file" / "gradio"))
    with pytest.raises(
        LeukoscopeError, match=r"gradio: uploads cannot be written there .*; set GRADIO_TEMP_DIR to a f"
    ):
        require_upload_folder()


def test_every_response_names_the_policy_also_a_refused_one(app: App) -> None:
    for path in ("/healthz", "/config", "/gradio_api/info", "/gradio_api/deep_link", "/nothing"):
        assert TestClient(app).get(path).headers["content-security-policy"] == POLICY, path


def test_the_evidence_is_the_card_of_the_release(tiny_release: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_release, tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\na: b\n---\n# Tiny\n![plot](figures/a.png)<img src=x>\nmeasured")
    models = ModelCache({"tiny": tmp_path / "tiny"})
    assert web_app._card(models, Visit()).split() == ["#", "Tiny", "measured"]
    (tmp_path / "tiny" / "README.md").unlink()
    for known in (models, ModelCache({})):
        assert web_app._card(known, Visit()) == "This release comes without a card."


def test_it_lives_while_every_thread_waits(app: App) -> None:
    async def ask() -> httpx.Response:
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        threads.acquire_on_behalf_of_nowait("a download")
        with anyio.fail_after(10):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as visitor:
                return await visitor.get("/healthz")

    assert anyio.run(ask).json() == {"status": "ok", "version": __version__}


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES if before[1] == resource.RLIM_INFINITY else min(OPEN_FILES, before[1])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_privacy_text_is_folded() -> None:
    (about,) = (block for block in build_demo(ModelCache({})).blocks.values() if block.elem_id == "about")
    assert isinstance(about, gradio.HTML)
    before, folded = about.value.split("<summary>Privacy</summary>")
    assert before.endswith("<details>") and "No visit is logged" not in before and "Apache Licence" in before
    assert "No visit is logged" in folded.split("</details>")[0]
