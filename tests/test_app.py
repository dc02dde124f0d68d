"""The demo as a visitor meets it: app.py in a process of its own, asked through its public API."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import app
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.synthetic_smears import draw_smear
from served import APP, START_SECONDS, served
from zips import cell_png, pack, png


def test_it_listens_on_this_machine_only_unless_it_is_a_space() -> None:
    assert app.server_address({}) == ("127.0.0.1", 7860)
    assert app.server_address({"GRADIO_SERVER_PORT": "8000"}) == ("127.0.0.1", 8000)
    assert app.server_address({"SPACE_ID": "owner/demo"})[0] == "0.0.0.0"


def test_what_was_named_and_is_not_there_or_holds_no_release_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no release")
    none = "holds no release; give a release folder, or a folder of them"
    with pytest.raises(
        LeukoscopeError, match="GRADIO_SERVER_PORT=eighty: is not a port number; give a number from 1 to 65535"
    ):
        app.server_address({"GRADIO_SERVER_PORT": "eighty"})
    for flag, path, problem in (
        ("--models", Path("modles.txt"), "not found; check the path"),
        ("--releases", Path("modles.txt"), "not found; check the path"),
        ("--releases", tmp_path, none),
        ("--releases", tmp_path / "notes.txt", none),
    ):
        monkeypatch.setattr(sys, "argv", ["app.py", flag, str(path)])
        assert app.main() == 1
        assert capsys.readouterr().err == f"error: {flag} {path}: {problem}\n"


@pytest.mark.slow
def test_a_terminated_server_deletes_what_visitors_sent(tiny_release: Path, tmp_path: Path) -> None:
    with served(tmp_path, *APP, "--releases", tiny_release) as (address, server):
        files = {"files": ("cell.png", b"1")}
        (path,) = httpx.post(f"{address}gradio_api/upload", files=files).json()
        assert Path(path).is_file()
        server.terminate()
        assert server.wait(timeout=60) == 143, (tmp_path / "app.log").read_text()
    assert not Path(path).exists()


@pytest.mark.slow
def test_on_a_zerogpu_space_it_is_started_and_answers_without_the_gpu(tiny_release: Path, tmp_path: Path) -> None:
    """The Hub is told of a function that may borrow a GPU; no thread of Gradio has one, whatever torch says there."""
    pytest.importorskip("spaces", reason="needs the extra zerogpu: pip install spaces")
    asked = []

    class Lender(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Lender) as lender:
        Thread(target=lender.serve_forever, daemon=True).start()
        there = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{lender.server_port}"}
        with served(tmp_path, *APP, "--releases", tiny_release, environment=os.environ | there) as (address, _):
            (tmp_path / "cell.png").write_bytes(cell_png("ALL", 5, 1))
            client = Client(address, verbose=False, httpx_kwargs={"timeout": START_SECONDS}, download_files=tmp_path)
            outcome, *_ = client.predict(handle_file(tmp_path / "cell.png"), api_name="/predict")
        lender.shutdown()
    assert outcome in ("ALL", "HEM") and asked == ["/startup-report"]


@pytest.mark.slow
def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
        answer = subprocess.run(APP, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1
    assert answer.stderr.strip() == f"error: port {port} is taken; set GRADIO_SERVER_PORT to a free one"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def address(tiny_release: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with the tiny release embedded."""
    releases = tmp_path_factory.mktemp("model_card")
    shutil.copytree(tiny_release, releases / "tiny")
    with served(cache, *APP, "--releases", releases) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    answers = str(tmp_path_factory.mktemp("answers"))
    return Client(address, verbose=False, httpx_kwargs={"timeout": START_SECONDS}, download_files=answers)


@pytest.mark.slow
def test_a_phantom_is_answered_and_its_file_deleted(client: Any, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "my cell.png").write_bytes(cell_png("ALL", 5, 1))
    given = handle_file(tmp_path / "my cell.png")
    outcome, probabilities, overlay, text, decision = client.predict(given, "tiny", api_name="/predict")
    assert set(probabilities) == {"ALL", "HEM"} and sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
    # A release without detector and thresholds gives every picture its most probable class.
    assert outcome == max(probabilities, key=probabilities.__getitem__)
    assert decision["map_check"]["passed"] is None, "its maps were never checked"
    assert {key: decision[key] for key in ("outcome", "reasons", "ood_score")} == {
        "outcome": outcome,
        "reasons": [],
        "ood_score": None,
    }
    with Image.open(overlay) as image:
        assert image.size == (450, 450)
    assert outcome in text and "Model tiny, local files" in text and text.endswith(RESEARCH_NOTICE)
    assert not [path for path in cache.rglob("*.png") if "cell" in path.name]


@pytest.mark.slow
def test_visitors_who_send_the_same_picture_are_all_answered(client: Any, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "same.png").write_bytes(cell_png("ALL", 5, 2))
    before = set(cache.rglob("image.png"))
    jobs = [client.submit(handle_file(tmp_path / "same.png"), "tiny", api_name="/predict") for _ in range(12)]
    answers = [job.result(timeout=START_SECONDS) for job in jobs]
    assert len({tuple(probabilities.items()) for _, probabilities, *_ in answers}) == 1
    # Each is sent a file of its own, which nobody else's answer writes anew meanwhile.
    assert len(set(cache.rglob("image.png")) - before) == len(answers)
    with Image.open(answers[0][2]) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
    assert not list(cache.rglob("same*"))


@pytest.mark.slow
def test_a_field_is_read(client: Any, cache: Path, tmp_path: Path) -> None:
    drawn = draw_smear(("ALL", "HEM"), size=(400, 500), um_per_pixel=0.12, red_cells=30, seed=3)
    Image.fromarray(drawn.image).save(tmp_path / "smear.png")
    reading, boxes = client.predict(handle_file(tmp_path / "smear.png"), "tiny", 0.12, api_name="/field")
    assert len(reading["cells"]) == 2 and reading["model"] == "tiny" and reading["notice"] == RESEARCH_NOTICE
    with Image.open(boxes) as image:
        assert image.width > 500
    assert not list(cache.rglob("smear*"))


@pytest.mark.slow
def test_a_batch_is_answered(client: Any, cache: Path, tmp_path: Path) -> None:
    known = [(f"{label}/P{number}/1.png", label, f"P{number}") for label in ("ALL", "HEM") for number in (1, 2)]
    path = pack(tmp_path / "cells.zip", {name: cell_png(label, int(subject[1:])) for name, label, subject in known})
    answers = client.predict([handle_file(path)], "tiny", api_name="/batch")
    assert [(cell["file"], cell["label"], cell["subject"]) for cell in answers["cells"]] == known
    assert all(cell["outcome"] in ("ALL", "HEM") and cell["reasons"] == "" for cell in answers["cells"])
    assert dict((name, value) for name, value, _ in answers["figures"]).keys() >= {"accuracy", "AUROC"}
    assert not list(cache.rglob("cells.zip"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc/passwd", str(APP[1]), f"{APP[1]}/../pyproject.toml"])
def test_no_path_of_this_machine_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:  # httpx would take out the dots
        urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=60)
    assert refused.value.code in (403, 404)


@pytest.mark.slow
def test_an_assistant_can_ask_through_mcp(address: str, tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp", reason="needs the extra mcp: pip install 'gradio[mcp]'")
    client = pytest.importorskip("mcp.client.streamable_http")

    async def offered() -> list[Any]:
        async with (
            client.streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            return (await session.list_tools()).tools

    # In a thread of its own: a browser test run before may have left this one with an event loop.
    with ThreadPoolExecutor(max_workers=1) as thread:
        tools = thread.submit(lambda: asyncio.run(offered())).result()
    assert len(tools) == 3
    described = {tool.name.rpartition("_")[2]: tool.inputSchema["properties"] for tool in tools}
    for name, parameters in described.items():
        assert all(parameter.get("description") for parameter in parameters.values()), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "model", "problem"),
    [
        (b"not a picture", "tiny", "cell.png: is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"),
        (None, "/etc", "'/etc' is no model name: give one of tiny"),
    ],
)
def test_what_is_wrong_is_one_clear_message(
    client: Any, tmp_path: Path, content: bytes | None, model: str, problem: str
) -> None:
    (tmp_path / "cell.png").write_bytes(content or png())
    with pytest.raises(AppError) as refused:
        client.predict(handle_file(tmp_path / "cell.png"), model, api_name="/predict")
    assert str(refused.value).startswith(problem)


@pytest.mark.slow
def test_only_the_named_endpoints_are_public_and_nothing_comes_from_another_site(client: Any, address: str) -> None:
    described = client.view_api(return_format="dict", print_info=False)
    assert sorted(described["named_endpoints"]) == ["/batch", "/field", "/predict"]
    assert described["unnamed_endpoints"] == {}
    page = httpx.get(address, timeout=60).text
    assert "fonts.googleapis.com" not in page and 'src="http' not in page
