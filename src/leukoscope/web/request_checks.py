"""A malformed request gets one line that says what was expected, and what was uploaded for it is deleted at once.

A program may send anything: `null`, NaN, a path without a file, a list for a name. Gradio answers some of that with
`{"error": null}` or HTTP 500, and writes a traceback into the log. `RequestChecks` reads the body of a request before
Gradio does. `check_inputs` looks at what each input is given, however it was asked: over HTTP, by the page, by MCP.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import gradio as gr
from gradio.route_utils import API_PREFIX
from huggingface_hub.errors import HTTPError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leukoscope.web.upload import NO_UPLOAD, delete_uploads

MAX_BODY = 4 * 2**20  # bytes; 2,000 files of a batch, named by their paths, take less than one million
# Every address at which an event is asked for by a body in JSON.
_ASKED = re.compile(rf"{API_PREFIX}/(?:queue/(?P<join>join)|(?P<way>run|api|call/v2|call)/(?P<endpoint>[^/]+))/?$")
_FILE = '{"path": …, "meta": {"_type": "gradio.FileData"}}, with the path that the upload was given'
# Of a path that no file can have; of another error the operator must be told.
_NO_PATH = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ENOTDIR, errno.ENOENT)


class _Malformed(Exception):
    """What is wrong with a request, and the HTTP status to say it with."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class RequestChecks:
    """ASGI layer that refuses malformed requests for an event of the demo."""

    def __init__(self, app: ASGIApp, demo: gr.Blocks) -> None:
        self.app = app
        self.demo = demo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        address = None
        if scope["type"] == "http" and scope["method"] == "POST":
            address = _ASKED.search(scope["path"])
        if address is None:
            await self.app(scope, receive, send)
            return
        content: Any = None
        body = b""

        async def receive_again() -> Message:
            nonlocal body
            if body:
                message = {"type": "http.request", "body": body, "more_body": False}
                body = b""
                return message
            return await receive()

        async def send_on(message: Message) -> None:
            # Deleted before the answer is sent: whoever reads it may look.
            if message["type"] == "http.response.start" and message["status"] >= 400:
                delete_uploads(_paths_in(content))
            await send(message)

        try:
            body = await _read_body(receive)
            content = _parsed(body)
            self._check(content, address)
            await self.app(scope, receive_again, send_on)
        except _Malformed as problem:
            await JSONResponse({"detail": str(problem)}, problem.status)(scope, receive, send_on)

    def _check(self, content: Any, address: re.Match[str]) -> None:
        if not isinstance(content, dict):
            raise _Malformed(f"body: expected an object of JSON, got {_short(content)}")
        endpoint = address["endpoint"]
        if endpoint is None:
            self._check_event(content)
        else:
            names = {fn.api_name for fn in self.demo.fns.values() if fn.api_visibility == "public"}
            if endpoint not in names:
                offered = ", ".join(sorted(str(name) for name in names if name))
                raise _Malformed(f"{_short(endpoint)}: no such endpoint; give one of {offered}", 404)
        if address["way"] == "call/v2":
            self._check_arguments(content, endpoint)
        elif not isinstance(content.get("data"), list):
            raise _Malformed(f"data: expected a list with a value for each input, got {_short(content.get('data'))}")

    def _check_event(self, content: dict[str, Any]) -> None:
        number = content.get("fn_index")
        if not isinstance(number, int) or number not in self.demo.fns:
            raise _Malformed(f"fn_index: expected the number of an event, got {_short(number)}")
        details = content.get("event_data")
        if self.demo.fns[number].collects_event_data and not isinstance(details, dict):
            raise _Malformed(f'event_data: expected an object such as {{"value": …}}, got {_short(details)}')

    def _check_arguments(self, content: dict[str, Any], endpoint: str) -> None:
        arguments = self.demo.get_api_info()["named_endpoints"][f"/{endpoint}"]["parameters"]
        names = [argument["parameter_name"] for argument in arguments]
        needed = [argument["parameter_name"] for argument in arguments if not argument["parameter_has_default"]]
        missing = [name for name in needed if name not in content]
        unknown = [name for name in content if name not in (*names, "oauth_token")]
        if missing or unknown:
            raise _Malformed(
                f"{endpoint}: expected an object with {', '.join(names)}; "
                + (f"{missing[0]} is missing" if missing else f"{_short(unknown[0])} is none of them")
            )


async def _read_body(receive: Receive) -> bytes:
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _Malformed("body: the connection ended before it was complete", 400)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise _Malformed(f"body: is over {MAX_BODY // 2**20} MB; upload files, and name their paths", 413)
        if not message.get("more_body", False):
            return b"".join(parts)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError):
        raise _Malformed(f"body: expected JSON, got {_short(body.decode('utf-8', 'replace'))}", 400) from None


def _refuse_number(name: str) -> None:
    raise _Malformed(f"body: holds {name}, which is no number of JSON; give null or a number", 400)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(text)
    return number


def check_inputs(demo: gr.Blocks) -> None:
    """Let a demo refuse a value that an input cannot take, and delete what was uploaded for it.

    It replaces the one method of Gradio through which every way of asking goes.
    """
    preprocess = demo.preprocess_data

    async def checked(block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> list[Any]:
        try:
            _check_values(block_fn.inputs, inputs)
            return await preprocess(block_fn, inputs, *arguments, **options)
        except gr.Error:
            delete_uploads(_paths_in(inputs))
            raise
        except (ValueError, HTTPError):  # a path that was not uploaded, or an address that does not answer
            message = NO_UPLOAD
        except OSError as error:
            if error.errno not in _NO_PATH:
                raise
            message = NO_UPLOAD
        except _Malformed as problem:
            message = str(problem)
        delete_uploads(_paths_in(inputs))
        raise gr.Error(message, title="This did not work", print_exception=False)

    demo.preprocess_data = checked  # type: ignore[method-assign]


def _check_values(blocks: Sequence[Any], values: Sequence[Any]) -> None:
    if len(values) < len(blocks):
        names = ", ".join(_name(block) for block in blocks if not isinstance(block, gr.State))
        raise _Malformed(f"data: expected a value for each of {names}, got {len(values)}")
    for block, content in zip(blocks, values, strict=False):
        expected = _expected(block, content)
        if expected:
            raise _Malformed(f"{_name(block)}: expected {expected}; got {_short(content)}")


def _name(block: Any) -> str:
    return block.label or block.get_block_name()


def _expected(block: Any, content: Any) -> str:
    """What an input takes, in words, where this is something else; else ""."""
    if content is None or isinstance(block, gr.State):
        return ""
    if isinstance(block, gr.Image):
        if _is_file(content):
            return ""
        return f"a file as {_FILE}"
    if isinstance(block, gr.File):
        files = content if isinstance(content, list) else [content]
        if all(_is_file(file) and "meta" in file for file in files):
            return ""
        return f"a list of files, each as {_FILE}"
    if isinstance(block, gr.Number):
        is_number = isinstance(content, int | float) and not isinstance(content, bool) and math.isfinite(content)
        return "" if is_number else "a number"
    if isinstance(block, gr.Dropdown | gr.Textbox):
        return "" if isinstance(content, str) else "text"
    return ""


def _is_file(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("path"), str)


def _paths_in(content: Any) -> Iterator[str]:
    """Every path of a file that a request names, however deep."""
    rest = [content]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            if isinstance(part.get("path"), str):
                yield part["path"]
            rest.extend(part.values())
        elif isinstance(part, list):
            rest.extend(part)


def _short(content: Any) -> str:
    """A value of JSON, in JSON, cut to some 60 characters."""
    with suppress(ValueError, TypeError):
        content = json.dumps(content)
    text = str(content)
    if len(text) <= 60:
        return text
    return f"{text[:60]}…"
