"""The demo as a server: what it refuses, and that nothing of a visit stays behind."""

from __future__ import annotations

import signal
import socket
from html import escape
from pathlib import Path

import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from leukoscope.web import app as web_app
from leukoscope.web.address import Address
from leukoscope.web.app import build_demo, routes, serve
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.text import t


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return App.create_app(build_demo(ModelCache({})), app_kwargs={"routes": routes()})


def test_a_session_is_never_written_to_disk(app: App, tmp_path: Path) -> None:
    assert app.state_holder["a-visit"] is not None
    answer = TestClient(app).get("/gradio_api/deep_link", params={"session_hash": "a-visit"})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "This server keeps nothing of a visit; save the result from the page."}
    assert not list(tmp_path.rglob("state.json"))


def test_a_server_terminated_as_it_starts_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM may come after the page is served and before the server waits for it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(web_app, "Thread", lambda **_: signal.raise_signal(signal.SIGTERM))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = signal.getsignal(signal.SIGTERM)
    try:
        serve(tmp_path, tmp_path / "models.txt", Address("127.0.0.1", port))
    finally:
        signal.signal(signal.SIGTERM, before)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_a_video_is_never_written_to_disk(app: App, tmp_path: Path) -> None:
    answer = TestClient(app).post("/gradio_api/process_recording", files={"video": b"video"})
    assert answer.status_code == 404
    assert not list(tmp_path.rglob("*.mp4"))


def test_it_lives(app: App) -> None:
    assert TestClient(app).get("/healthz").json()["status"] == "ok"


def test_the_privacy_text_is_folded() -> None:
    (about,) = (block for block in build_demo(ModelCache({})).blocks.values() if block.elem_id == "about")
    before, folded = about.value.split("<summary>Privacy</summary>")
    assert before.endswith("<details>") and t("privacy_text") not in before
    assert escape(t("privacy_text")) in folded.split("</details>")[0]
    assert "Apache Licence" in folded.split("</details>")[1]
