"""A request can name only files that were uploaded: no picture of the server is opened, no path of it is probed.

Each event of the page and of the API that takes a file is asked as a program asks it, over HTTP.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio import route_utils
from PIL import Image

from leukoscope.synthetic import draw_cell
from leukoscope.web.app import build_demo
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.request_checks import check_inputs
from leukoscope.web.upload import NO_UPLOAD, OWN_FOLDER, keep_uploads_apart

META = {"meta": {"_type": "gradio.FileData"}}


class Visitor:
    """One session of the demo, over HTTP."""

    def __init__(self, client: httpx.Client, demo: gr.Blocks):
        self.client, self.demo, self.session = client, demo, "a-visit"

    def upload(self, path: Path) -> str:
        answer = self.client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
        return str(answer.json()[0])

    def ask(self, event: int, file: Any) -> dict[str, Any]:
        """The last message of an event, its file input given and everything else left empty."""
        given = {"Image": file, "File": [file], "Dropdown": "tiny"}
        data = [given.get(type(one).__name__) for one in self.demo.fns[event].inputs]
        body = {"data": data, "fn_index": event, "session_hash": self.session}
        joined = self.client.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return dict(message)
        raise AssertionError("no answer")


@pytest.fixture
def visitor(tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitor]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(route_utils, "GradioUploadFile", route_utils.GradioUploadFile)
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    keep_uploads_apart(demo)
    check_inputs(demo)
    _, address, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, share=False, inbrowser=False
    )
    with httpx.Client(base_url=address, timeout=30) as client:
        yield Visitor(client, demo)
    demo.close(verbose=False)


def events(demo: gr.Blocks) -> list[int]:
    """Those with a function that takes an image or files."""
    files = gr.Image | gr.File
    return [n for n, event in demo.fns.items() if event.fn and any(isinstance(one, files) for one in event.inputs)]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture of the server that nobody uploaded."""
    path = tmp_path / "laboratory" / "cell.bmp"
    path.parent.mkdir()
    Image.fromarray(draw_cell("ALL").image).save(path)
    return path


def in_upload(cache: Path, letter: str, make: Callable[[Path], None]) -> str:
    """The path of what is made where an upload could lie."""
    path = cache / f"{OWN_FOLDER}{letter * 32}" / "cell.bmp"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    return str(path)


def beside(cache: Path, secret: Path) -> str:
    """A file of the cache that is no upload, as an example that everyone sees."""
    path = cache / "0123" / "cell.bmp"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(secret.read_bytes())
    return str(path)


PATHS: Mapping[str, Callable[[Path, Path], str]] = {
    "absolute": lambda cache, secret: str(secret),
    "relative": lambda cache, secret: os.path.relpath(secret),
    "up and down": lambda cache, secret: f"{cache}/{OWN_FOLDER}{'c' * 32}/../../laboratory/cell.bmp",
    "file:": lambda cache, secret: secret.as_uri(),
    "URL": lambda cache, secret: "http://127.0.0.1:9/cell.bmp",
    "device": lambda cache, secret: "/dev/zero",
    "folder": lambda cache, secret: str(secret.parent),
    "missing": lambda cache, secret: str(secret.parent / "no.bmp"),
    "empty": lambda cache, secret: "",
    "zero byte": lambda cache, secret: "/a\0b",
    "too long": lambda cache, secret: f"{cache}/{OWN_FOLDER}{'d' * 32}/" + "x" * 5000,
    "link": lambda cache, secret: in_upload(cache, "a", lambda path: path.symlink_to(secret)),
    "pipe": lambda cache, secret: in_upload(cache, "b", os.mkfifo),
    "no upload": beside,
}


@pytest.mark.parametrize("more", [{}, {"is_stream": True}, {"url": "http://127.0.0.1:9/cell.bmp"}], ids=str)
def test_a_file_that_was_not_uploaded_is_refused_in_the_same_words(
    visitor: Visitor, secret: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    assert len(events(visitor.demo)) >= 4
    for event in events(visitor.demo):
        answers = {
            kind: visitor.ask(event, {"path": path(tmp_path / "cache", secret), **more}) for kind, path in PATHS.items()
        }
        assert not any(answer["success"] for answer in answers.values()), f"{visitor.demo.fns[event]}: {answers}"
        # Of many files, each must come with its description.
        refused = {answer["output"]["error"].partition(", with the path")[0] for answer in answers.values()}
        (message,) = refused
        needs_meta = f'expected a list of files, each as {{"path": …, {json.dumps(META)[1:]}'
        assert message == NO_UPLOAD or message.endswith(needs_meta), f"{visitor.demo.fns[event]}: {message}"
    assert secret.exists()


def test_with_its_description_neither(visitor: Visitor, secret: Path, tmp_path: Path) -> None:
    """Gradio itself refuses these; whether a file is there makes no difference."""
    for event in events(visitor.demo):
        for more in (META, {**META, "is_stream": True}):
            said = {}
            for kind, path in PATHS.items():
                given = path(tmp_path / "cache", secret)
                answer = visitor.ask(event, {"path": given, **more})
                assert not answer["success"], f"{visitor.demo.fns[event]} {kind}: {answer}"
                said[kind] = str(answer["output"].get("error")).replace(given, "PATH")
                assert "not an image" not in said[kind] and "No such file" not in said[kind]
            assert said["absolute"] == said["missing"] == said["folder"] == said["device"]


def test_what_was_uploaded_is_answered(visitor: Visitor, secret: Path) -> None:
    for event in events(visitor.demo):
        many = any(isinstance(one, gr.File) for one in visitor.demo.fns[event].inputs)
        for more in (META,) if many else ({}, META):
            answer = visitor.ask(event, {"path": visitor.upload(secret), **more})
            # What it shows is judged: a cell on black is no smear.
            said = answer["output"].get("error") or ""
            assert answer["success"] or "plasma of a smear is pale" in said, f"{visitor.demo.fns[event]}: {answer}"
