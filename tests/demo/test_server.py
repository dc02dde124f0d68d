"""The demo over HTTP and MCP: its endpoints, what is refused in one line, and what the disk holds afterwards."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file

from asked import ROOT, packed, png
from leukoscope import RESEARCH_NOTICE, ConfigError
from leukoscope.demo import require_gradio
from leukoscope.demo.app import build
from leukoscope.demo.guard import MAX_BODY
from leukoscope.demo.models import Models
from leukoscope.demo.server import launch, require_free_address
from leukoscope.demo.uploads import LOST
from served import free_port, served

SERVE = "import sys; from pathlib import Path; from leukoscope.demo.server import serve; import os; "
SERVE += "serve(Path(sys.argv[1]), Path('no'), '127.0.0.1', int(os.environ['GRADIO_SERVER_PORT']))"
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module", autouse=True)
def own_uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all tests: the server that runs through them knows no other."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def address(tiny_release: Path, own_uploads: Path) -> Iterator[str]:
    """The demo, served by threads of this process."""
    demo = build(Models({"tiny": tiny_release}))
    port = free_port()
    launch(demo, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}/"
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    answers = tmp_path_factory.mktemp("answers")
    return Client(address, verbose=False, httpx_kwargs={"timeout": 300}, download_files=str(answers))


@pytest.fixture(autouse=True)
def no_traceback(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever is asked, the server's log stays readable."""
    yield
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log, log


def uploads_left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", "image.png")]


def test_every_endpoint_is_typed_and_named(client: Any) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    named = {
        name: (
            [argument["parameter_name"] for argument in endpoint["parameters"]],
            [output["label"] for output in endpoint["returns"]],
        )
        for name, endpoint in endpoints.items()
    }
    assert named == {
        "/predict": (["image", "model"], ["outcome", "probabilities", "grad_cam", "text", "decision"]),
        "/field": (["image", "model", "um_per_pixel"], ["reading", "boxes"]),
        "/smear": (["image", "model", "um_per_pixel"], ["reading"]),
        "/batch": (["files", "model", "folders_are_people"], ["answers"]),
        "/models": ([], ["models"]),
        "/model_card": (["model"], ["card"]),
    }


def test_visitors_who_send_the_same_cell_are_all_answered_and_nothing_is_left(
    client: Any, tmp_path: Path, own_uploads: Path
) -> None:
    cell = tmp_path / "my cell.png"
    cell.write_bytes(png(side=450))
    jobs = [client.submit(handle_file(cell), "tiny", api_name="/predict") for _ in range(6)]
    for job in jobs:
        outcome, probabilities, grad_cam, text, decision = job.result()
        assert outcome in probabilities and sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert Path(grad_cam).is_file() and text.endswith(RESEARCH_NOTICE) and decision["outcome"] == outcome
    assert uploads_left(own_uploads) == []


def test_a_batch_and_a_smear_are_answered(client: Any, tmp_path: Path, own_uploads: Path) -> None:
    cell = tmp_path / "my cell.png"
    cell.write_bytes(png())
    given = Path(packed({"p1/a.png": png(), "p2/b.png": png(cell=1)}).path).rename(tmp_path / "cells.zip")
    answers = client.predict([handle_file(given)], "", True, api_name="/batch")
    assert [line["subject"] for line in answers["cells"]] == ["p1", "p2"] and answers["notice"] == RESEARCH_NOTICE
    assert [row["model"] for row in client.predict(api_name="/models")] == ["tiny"]
    assert isinstance(client.predict("tiny", api_name="/model_card"), str)
    with pytest.raises(Exception, match="nothing/../x' is no model name"):
        client.predict(handle_file(cell), "nothing/../x", api_name="/predict")
    assert uploads_left(own_uploads) == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("null", 422, "body: expected an object of JSON, got null"),
        ("[]", 422, "body: expected an object of JSON, got []"),
        ("", 400, "body: expected JSON"),
        ("{", 400, "body: expected JSON"),
        ("[" * 5000, 400, "body: expected JSON"),
        ('{"data": NaN}', 400, "body: holds NaN, which is no number of JSON"),
        ('{"data": [null, "tiny", Infinity]}', 400, "body: holds Infinity"),
        ("{}", 422, "data: expected a list of "),
        ('{"data": [null]}', 422, "data: expected a list of "),
        ('{"data": "x"}', 422, "data: expected a list"),
        ('{"data": [1, 2, 3, 4, 5, 6]}', 422, "data: expected a list"),
        (json.dumps({"data": [FILE, "tiny"]}), 422, LOST),
        (json.dumps({"data": [[{"x": {**FILE, "path": 5}}], "tiny"]}), 422, LOST),
        (json.dumps({"data": [{**FILE, "path": "https://example.org/a.png"}]}), 422, LOST),
        (json.dumps({"data": ["x" * MAX_BODY]}), 413, "body: is over 4 MB"),
    ],
)
def test_a_malformed_request_is_one_line(address: str, body: str, status: int, words: str) -> None:
    for endpoint in ("call/predict", "call/field", "call/batch", "run/smear"):
        answer = httpx.post(f"{address}gradio_api/{endpoint}", content=body, timeout=60)
        assert (answer.status_code, answer.json()["detail"][: len(words)]) == (status, words), (endpoint, body[:60])
        assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize("value", [None, 5, True, "a.png", [], {}, {"path": None}, {"meta": FILE["meta"]}])
def test_a_value_that_is_no_file_is_one_line(address: str, value: Any) -> None:
    inputs: dict[str, list[Any]] = {"predict": ["tiny"], "field": ["tiny", 0], "smear": ["tiny", 0]}
    for endpoint, rest in inputs.items():
        asked = httpx.post(f"{address}gradio_api/call/{endpoint}", json={"data": [value, *rest]}, timeout=60)
        assert asked.status_code == 200, asked.text
        events = httpx.get(f"{address}gradio_api/call/{endpoint}/{asked.json()['event_id']}", timeout=300).text
        assert "event: error" in events and "expected a file as" in events, events


def test_an_event_that_is_none_or_lacks_values_is_one_line(address: str) -> None:
    for body, words in (
        ({"fn_index": 9999, "data": []}, "fn_index: expected the number of an event, got 9999"),
        ({"data": []}, "fn_index: expected the number of an event, got null"),
        ({"fn_index": 0, "data": [1] * 9}, "data: expected a list of 3 values, got"),
    ):
        answer = httpx.post(f"{address}gradio_api/queue/join", json=body, timeout=60)
        assert answer.status_code == 422 and answer.json()["detail"].startswith(words)
    answer = httpx.post(f"{address}gradio_api/call/nothing", json={"data": []}, timeout=60)
    assert answer.status_code == 404 and answer.json()["detail"].startswith("nothing: no such endpoint; give one of")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"data": [None]}, "body: missing a required argument: 'image'"),
        ({"image": None, "data": []}, "body: got an unexpected keyword argument 'data'"),
        ({}, "body: missing a required argument: 'image'"),
    ],
)
def test_named_values_that_an_endpoint_does_not_have_are_one_line(
    address: str, body: dict[str, Any], words: str
) -> None:
    answer = httpx.post(f"{address}gradio_api/call/v2/predict", json=body, timeout=60)
    assert (answer.status_code, answer.json()["detail"]) == (422, words)


def test_what_the_page_loads_and_what_is_closed(address: str) -> None:
    page = httpx.get(address, timeout=60)
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "https:" not in policy and "object-src 'none'" in policy
    assert page.text.count('property="og:title"') == 1 and 'content="Leukoscope"' in page.text
    assert f'content="{address}preview.jpg"' in page.text
    assert httpx.get(f"{address}preview.jpg").headers["content-type"] == "image/jpeg"
    assert httpx.get(f"{address}healthz").json()["status"] == "ok"
    for closed in ("deep_link?session_hash=x", "proxy=https://example.org"):
        assert httpx.get(f"{address}gradio_api/{closed}").status_code == 404
    assert httpx.post(f"{address}gradio_api/process_recording").status_code == 404


def test_a_terminated_server_leaves_no_upload_read_or_unread(tiny_release: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with served(tmp_path, sys.executable, "-c", SERVE, tiny_release, environment=environment) as (address, server):
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("cell.png", png())}, timeout=60).json()
        assert Path(path).is_file()
        server.terminate()
        assert server.wait(timeout=60) == 143
    # Gradio makes this folder when it is imported.
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == ["vibe_edit_history"]


def test_a_taken_port_and_another_gradio_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is taken; set GRADIO_SERVER_PORT to a free one"):
            require_free_address("127.0.0.1", port)
    for version in ("6.30.9", "7.0"):
        monkeypatch.setattr("leukoscope.demo.version", lambda name, version=version: version)
        with pytest.raises(ConfigError, match=f"gradio {version} is installed, which this demo does not support"):
            require_gradio()
