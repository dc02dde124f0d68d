"""The demo as a visitor meets it: app.py in a process of its own, asked through its public API."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import app
from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.synthetic import draw_cell, draw_smear

APP = Path(__file__).parents[1] / "app.py"
START_SECONDS = 300  # a busy machine with two cores; an idle one needs about five


def run_app(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(APP), *flags]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=START_SECONDS)


def test_it_listens_on_this_machine_only_unless_it_is_a_space() -> None:
    assert app.server_address({}) == ("127.0.0.1", 7860)
    assert app.server_address({"GRADIO_SERVER_PORT": "8000"}) == ("127.0.0.1", 8000)
    assert app.server_address({"SPACE_ID": "owner/demo"})[0] == "0.0.0.0"


def test_a_port_that_is_none_is_one_line() -> None:
    answer = run_app(GRADIO_SERVER_PORT="eighty")
    assert answer.returncode == 1
    assert answer.stderr.strip() == "error: GRADIO_SERVER_PORT=eighty: is no port; give a number from 1 to 65535"


def test_what_was_named_and_is_not_there_or_holds_no_release_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no release")
    none = "holds no release; give a release folder, or a folder of them"
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
def test_a_terminated_server_deletes_what_visitors_sent(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "cache")}
    with (tmp_path / "app.log").open("w") as log:
        command = [sys.executable, str(APP)]
        server = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for_page(f"http://127.0.0.1:{port}/", server, tmp_path / "app.log")
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="cell.png"\r\n\r\n1\r\n--x--\r\n'
        sent = urllib.request.Request(
            f"http://127.0.0.1:{port}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
        )
        (path,) = json.loads(urllib.request.urlopen(sent).read())
        assert Path(path).is_file()
    finally:
        server.terminate()
    assert server.wait(timeout=60) == 143, (tmp_path / "app.log").read_text()
    assert not Path(path).exists()


@pytest.mark.slow
def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = run_app(GRADIO_SERVER_PORT=str(port))
    assert answer.returncode == 1
    assert answer.stderr.strip() == f"error: port {port} is taken; set GRADIO_SERVER_PORT to a free one"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def address(tiny_release: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app on a free loopback port, with the tiny release embedded."""
    releases = tmp_path_factory.mktemp("model_card")
    shutil.copytree(tiny_release, releases / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (cache / "app.log").open("w")
    process = subprocess.Popen(
        [sys.executable, str(APP), "--releases", str(releases)],
        env=os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(cache)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for_page(f"http://127.0.0.1:{port}/", process, cache / "app.log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _wait_for_page(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"app.py ended with {process.returncode}:\n{log.read_text()}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py served no page in {START_SECONDS} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    answers = str(tmp_path_factory.mktemp("answers"))
    return Client(address, verbose=False, httpx_kwargs={"timeout": 300}, download_files=answers)


Answer = tuple[str, dict[str, float], str, str, dict[str, Any]]


def ask(client: Any, path: Path, model: str = "tiny") -> Answer:
    from gradio_client import handle_file

    return client.predict(handle_file(path), model, api_name="/predict")


def check_answer(answer: Answer, size: tuple[int, int]) -> None:
    outcome, probabilities, overlay, text, decision = answer
    assert set(probabilities) == {"ALL", "HEM"}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
    # A release without detector and thresholds gives every picture its most probable class.
    assert outcome == max(probabilities, key=probabilities.__getitem__)
    assert decision == {"outcome": outcome, "reasons": [], "ood_score": None}
    with Image.open(overlay) as image:
        assert image.size == size
    assert outcome in text
    assert "Model tiny, local files" in text
    assert text.endswith(RESEARCH_NOTICE)


@pytest.mark.slow
def test_a_phantom_is_answered_and_its_file_deleted(client: Any, cache: Path, tmp_path: Path) -> None:
    Image.fromarray(draw_cell("ALL", subject=5, cell=1).image).save(tmp_path / "my cell.png")
    check_answer(ask(client, tmp_path / "my cell.png"), (450, 450))
    assert not [path for path in cache.rglob("*.png") if "cell" in path.name]


@pytest.mark.slow
def test_a_real_cell_is_answered(client: Any, real_data: Path) -> None:
    cell = sorted((real_data / "cnmc2019" / "samples-bmp").glob("*.bmp"))[0]
    with Image.open(cell) as image:
        size = image.size
    check_answer(ask(client, cell), size)


@pytest.mark.slow
def test_visitors_who_send_the_same_picture_are_all_answered(client: Any, cache: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    Image.fromarray(draw_cell("ALL", subject=5, cell=2).image).save(tmp_path / "same.png")
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
    from gradio_client import handle_file

    drawn = draw_smear(("ALL", "HEM"), size=(400, 500), um_per_pixel=0.12, red_cells=30, seed=3)
    Image.fromarray(drawn.image).save(tmp_path / "smear.png")
    reading, boxes = client.predict(handle_file(tmp_path / "smear.png"), "tiny", 0.12, api_name="/field")
    assert len(reading["cells"]) == 2 and reading["model"] == "tiny" and reading["notice"] == RESEARCH_NOTICE
    with Image.open(boxes) as image:
        assert image.width > 500
    assert not list(cache.rglob("smear*"))


@pytest.mark.slow
def test_a_batch_is_answered(client: Any, cache: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    files = {f"{label}/P{number}/1.png": (label, number) for label in ("ALL", "HEM") for number in (1, 2)}
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for name, (label, number) in files.items():
            Image.fromarray(draw_cell(label, subject=number, cell=1).image).save(tmp_path / "cell.png")
            archive.write(tmp_path / "cell.png", name)
    answers = client.predict([handle_file(tmp_path / "cells.zip")], "tiny", api_name="/batch")
    assert [(cell["file"], cell["label"], cell["subject"]) for cell in answers["cells"]] == [
        (name, label, f"P{number}") for name, (label, number) in files.items()
    ]
    assert all(cell["outcome"] in ("ALL", "HEM") and cell["reasons"] == "" for cell in answers["cells"])
    assert dict((name, value) for name, value, _ in answers["figures"]).keys() >= {"accuracy", "AUROC"}
    assert not list(cache.rglob("cells.zip"))


@pytest.mark.slow
def test_the_server_says_that_it_lives(address: str) -> None:
    with urllib.request.urlopen(f"{address}healthz", timeout=60) as answer:
        assert json.load(answer) == {"status": "ok", "version": __version__}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc/passwd", "{app}", "{app}/../pyproject.toml"])
def test_no_path_of_this_machine_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={path.format(app=APP)}", timeout=60)
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
def test_a_text_file_renamed_is_one_clear_message(client: Any, cache: Path, tmp_path: Path) -> None:
    from gradio_client.exceptions import AppError

    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(AppError) as problem:
        ask(client, tmp_path / "text.png")
    assert str(problem.value) == "text.png: is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"
    assert "Traceback" not in (cache / "app.log").read_text()


@pytest.mark.slow
def test_an_unknown_model_is_one_clear_message(client: Any, tmp_path: Path) -> None:
    from gradio_client.exceptions import AppError

    Image.new("RGB", (64, 64)).save(tmp_path / "cell.png")
    with pytest.raises(AppError) as problem:
        ask(client, tmp_path / "cell.png", model="/etc")
    assert str(problem.value).startswith("'/etc' is no model name: give one of tiny")


@pytest.mark.slow
def test_only_the_named_endpoints_are_public(client: Any) -> None:
    described = client.view_api(return_format="dict", print_info=False)
    assert sorted(described["named_endpoints"]) == ["/batch", "/field", "/predict"]
    assert described["unnamed_endpoints"] == {}


@pytest.mark.slow
def test_the_page_names_no_font_or_script_of_another_site(address: str) -> None:
    page = urllib.request.urlopen(address, timeout=60).read().decode()
    assert "fonts.googleapis.com" not in page
    assert 'src="http' not in page
