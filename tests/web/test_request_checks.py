"""Some thirty malformed requests for every endpoint and event: one line says what was expected, and no traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio import route_utils

from leukoscope.web.app import app_options, build_demo
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.request_checks import MAX_BODY, check_inputs
from leukoscope.web.upload import NO_UPLOAD, OWN_FOLDER, keep_uploads_apart
from zips import png

ELSEWHERE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
# Not of the shape that an endpoint takes, whichever: the body, and what is said.
SHAPES = {
    "null": "body: expected an object of JSON, got null",
    "[]": "body: expected an object of JSON, got []",
    '"x"': 'body: expected an object of JSON, got "x"',
    "5": "body: expected an object of JSON, got 5",
    "": 'body: expected JSON, got ""',
    "{": 'body: expected JSON, got "{"',
    "[" * 5000: "body: expected JSON, got",
    '{"data": NaN}': "body: holds NaN, which is no number of JSON; give null or a number",
    '{"data": [null, "tiny", Infinity]}': "body: holds Infinity, which is no number of JSON",
    '{"data": [null, "tiny", 1e999]}': "body: holds 1e999, which is no number of JSON",
    '{"data": [null], "session_hash": NaN}': "body: holds NaN",
}
NOT_A_LIST = {
    "{}": "data: expected a list with a value for each input, got null",
    '{"data": null}': "data: expected a list with a value for each input, got null",
    '{"data": "x"}': 'data: expected a list with a value for each input, got "x"',
    '{"data": {"image": null}}': "data: expected a list with a value for each input, got {",
}
# What the first input, which takes a picture or pictures, may not be.
NO_FILES: tuple[Any, ...] = (
    5,
    True,
    "a.png",
    {},
    {"path": None},
    {"path": 5},
    {"meta": ELSEWHERE["meta"]},
    [5],
    [None],
    ["a.png"],
)


@pytest.fixture(scope="module")
def demo(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(route_utils, "GradioUploadFile", route_utils.GradioUploadFile)
        demo = build_demo(ModelCache({"tiny": tiny_release}))
        keep_uploads_apart(demo)
        check_inputs(demo)
        demo.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, share=False,
            inbrowser=False, app_kwargs=app_options(demo),
        )  # fmt: skip
        yield demo
        demo.close(verbose=False)


@pytest.fixture
def client(demo: gr.Blocks, capsys: pytest.CaptureFixture[str]) -> Iterator[httpx.Client]:
    """Asks the demo, which logs no traceback meanwhile."""
    with httpx.Client(base_url=str(demo.local_url), timeout=60) as client:
        yield client
    sys.stderr.flush()
    assert "Traceback" not in capsys.readouterr().err


def post(client: httpx.Client, address: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, str) else json.dumps(body)
    return client.post(f"/gradio_api/{address}", content=content, headers={"content-type": "application/json"})


def refusal(client: httpx.Client, endpoint: str, data: Any) -> str:
    """What an endpoint says to these values."""
    joined = post(client, f"call/{endpoint}", {"data": data})
    assert joined.status_code == 200, joined.text
    answer = client.get(f"/gradio_api/call/{endpoint}/{joined.json()['event_id']}").text
    assert answer.startswith("event: error"), answer
    return str(json.loads(answer.partition("data: ")[2].strip())["error"])


def uploaded(client: httpx.Client, name: str = "cell.png") -> dict[str, Any]:
    (path,) = client.post("/gradio_api/upload", files={"files": (name, png())}).json()
    assert Path(path).is_file()
    return {**ELSEWHERE, "path": path}


def test_a_body_of_another_shape_is_one_line(client: httpx.Client) -> None:
    for endpoint in ("predict", "field", "batch"):
        for address in (f"call/{endpoint}", f"run/{endpoint}", f"api/{endpoint}/", f"call/v2/{endpoint}"):
            for body, words in SHAPES.items():
                answer = post(client, address, body)
                assert answer.status_code in (400, 422), f"{address} {body[:60]}: {answer.text}"
                assert answer.json()["detail"].startswith(words) and "\n" not in answer.json()["detail"]
            if "v2" not in address:
                for body, words in NOT_A_LIST.items():
                    answer = post(client, address, body)
                    assert (answer.status_code, answer.json()["detail"][: len(words)]) == (422, words), address
    too_long = json.dumps({"data": ["x" * MAX_BODY]})
    assert post(client, "call/batch", too_long).status_code == 413
    assert post(client, "call/nothing", {"data": []}).json() == {
        "detail": '"nothing": no such endpoint; give one of batch, field, predict'
    }
    assert post(client, "call/v2/nothing", {}).status_code == 404


def test_arguments_by_name_are_all_needed_and_no_others(client: httpx.Client) -> None:
    for body, words in {
        "{}": "image is missing",
        '{"model": "tiny"}': "image is missing",
        '{"image": null, "modle": "tiny"}': '"modle" is none of them',
    }.items():
        answer = post(client, "call/v2/predict", body)
        assert answer.status_code == 422
        assert answer.json() == {"detail": f"predict: expected an object with image, model; {words}"}


def test_an_event_that_is_not_there_is_one_line(client: httpx.Client) -> None:
    for number in (None, "1", 999, -1, [1]):
        answer = post(client, "queue/join", {"data": [], "fn_index": number, "session_hash": "a"})
        assert answer.status_code == 422, number
        assert answer.json() == {"detail": f"fn_index: expected the number of an event, got {json.dumps(number)}"}


def test_a_value_that_an_input_cannot_take_is_one_line(client: httpx.Client) -> None:
    for endpoint, name in {"predict": "image", "field": "image", "batch": "files"}.items():
        rest = ["tiny", 0] if endpoint == "field" else ["tiny"]
        for value in NO_FILES:
            message = refusal(client, endpoint, [value, *rest])
            assert message.startswith(f"{name}: expected a") and "\n" not in message, f"{endpoint} {value}: {message}"
            assert "gradio.FileData" in message and "; got " in message
        for file in (ELSEWHERE, {**ELSEWHERE, "path": ""}, {**ELSEWHERE, "path": "/a\0b"}):
            assert refusal(client, endpoint, [[file] if endpoint == "batch" else file, *rest]) == NO_UPLOAD
        for model in (["tiny"], {"name": "tiny"}, 5, True):
            message = refusal(client, endpoint, [None, model, *rest[1:]])
            assert message == f"model: expected text; got {json.dumps(model)}"
        assert refusal(client, endpoint, []).startswith(f"data: expected a value for each of {name}, model")
        assert refusal(client, endpoint, [None, *rest]).startswith(f"{name}: ")
    scales: tuple[Any, ...] = ("0.2", [0.2], True, {})
    for scale in scales:
        assert (
            refusal(client, "field", [None, "tiny", scale])
            == f"um_per_pixel: expected a number; got {json.dumps(scale)}"
        )


def test_no_event_of_the_page_is_answered_by_null(client: httpx.Client, demo: gr.Blocks) -> None:
    events = {n: event for n, event in demo.fns.items() if event.fn and event.api_visibility != "public"}
    assert any(event.collects_event_data for event in events.values())
    for number, event in events.items():
        for value in (5, [5], "x", None):
            data = [value] * len(event.inputs)
            body = {"data": data, "fn_index": number, "session_hash": f"{number}-{value}", "event_data": value}
            joined = post(client, "queue/join", body)
            if event.collects_event_data:
                words = f'event_data: expected an object such as {{"value": …}}, got {json.dumps(value)}'
                assert (joined.status_code, joined.json()["detail"]) == (422, words)
                continue
            assert joined.status_code == 200
            visitor = {"session_hash": f"{number}-{value}"}
            with client.stream("GET", "/gradio_api/queue/data", params=visitor) as lines:
                messages = (json.loads(line.removeprefix("data: ")) for line in lines.iter_lines() if line)
                answer = next(message for message in messages if message["msg"] == "process_completed")
            assert answer["success"] or answer["output"]["error"], f"{event.fn} {value}: {answer}"


def test_what_was_uploaded_for_a_refused_request_is_deleted_at_once(client: httpx.Client, tmp_path: Path) -> None:
    refused: dict[str, Callable[[Any], list[Any]]] = {
        "predict": lambda file: [file, ["tiny"]],
        "field": lambda file: [file, "tiny", "0.2"],
        "batch": lambda file: [[file, ELSEWHERE], "tiny"],
    }
    for endpoint, data in refused.items():
        file = uploaded(client)
        refusal(client, endpoint, data(file))
        assert not Path(file["path"]).parent.exists(), endpoint
    file = uploaded(client)
    assert post(client, "call/predict", {"data": {"image": file}}).status_code == 422
    assert not Path(file["path"]).exists()
    others = tmp_path / f"{OWN_FOLDER}1" / "cell.png"
    others.parent.mkdir()
    others.write_bytes(png())
    assert refusal(client, "predict", [{**ELSEWHERE, "path": str(others)}, ["tiny"]]).startswith("model: ")
    assert others.exists(), "only what lies in the folder of uploads"
