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

import pytest
from gradio_client import Client, handle_file

import app
from drawn import save_cell
from leukoscope import LeukoscopeError
from served import APP, START_SECONDS, served


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
            save_cell(tmp_path / "cell.png", size=450, subject=5, cell=1)
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
    assert len(tools) == 6
    described = {tool.name.rpartition("_")[2]: tool.inputSchema["properties"] for tool in tools}
    for name, parameters in described.items():
        assert all(parameter.get("description") for parameter in parameters.values()), name
