"""The demo as a server: what it refuses, and that nothing of a visit stays behind."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from leukoscope.web.app import build_demo, routes
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
