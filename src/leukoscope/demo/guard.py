"""What stands between the network and Gradio: a policy for every response, the page's head, checks of what is asked."""

from __future__ import annotations

import json
import re
from html import escape
from inspect import signature
from typing import Any

import gradio as gr
from gradio.route_utils import API_PREFIX
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leukoscope import DataError
from leukoscope.demo.components import DEMO_FOLDER, read_part
from leukoscope.demo.uploads import uploaded

MAX_BODY = 4 * 2**20  # bytes; 2,000 files of a batch, named by their paths, take less than one million
_OWN = "'self' data: blob:"
# Gradio's page starts by inline scripts and runs the templates of components by `Function`. There is no
# `frame-ancestors`: a Space is shown in a frame of huggingface.co.
POLICY = (
    f"default-src {_OWN}; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    f"img-src {_OWN}; font-src {_OWN}; media-src {_OWN}; connect-src {_OWN}; object-src 'none'; frame-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
# Every address at which an event is asked for by a body in JSON.
_ASKED = re.compile(rf"{API_PREFIX}/(?:queue/join|(?P<way>run|api|call/v2|call)/(?P<endpoint>[^/]+))/?$")
_TAG = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')
PREVIEW_ROUTE = "/preview.jpg"
_SENTENCE = (
    "Is this white blood cell a leukaemic blast? Open classifiers that say how far to trust them. For research only, "
    "never for diagnosis."
)


class Guard:
    """ASGI layer around Gradio's server."""

    def __init__(self, app: ASGIApp, demo: gr.Blocks) -> None:
        self.app = app
        self.demo = demo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"] == "/":
            await self._with_head(scope, receive, send_with_policy)
        elif scope["method"] == "POST" and _ASKED.search(scope["path"]):
            await self._checked(scope, receive, send_with_policy)
        else:
            await self.app(scope, receive, send_with_policy)

    async def _with_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the style, and what a link shows where it is sent, into the page: Gradio has no option for either."""
        start: Message = {}
        body = b""

        async def collect(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            page = with_head(body.decode("utf-8"), Request(scope)).encode("utf-8")
            MutableHeaders(scope=start)["Content-Length"] = str(len(page))
            await send(start)
            await send({"type": "http.response.body", "body": page})

        scope["headers"] = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
        await self.app(scope, receive, collect)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a malformed request by one line."""
        try:
            body = await _read_body(Request(scope, receive))
            self._check(body, scope["path"])
        except ClientDisconnect:
            return
        except HTTPException as problem:
            await JSONResponse({"detail": problem.detail}, problem.status_code)(scope, receive, send)
            return
        waiting = [body]

        async def receive_again() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()

        await self.app(scope, receive_again, send)

    def _check(self, body: bytes, path: str) -> None:
        try:
            content = json.loads(body, parse_constant=_refuse_number, object_hook=_require_upload)
        except (ValueError, RecursionError):
            raise HTTPException(400, f"body: expected JSON, got {body[:60]!r}") from None
        if not isinstance(content, dict):
            raise HTTPException(422, f"body: expected an object of JSON, got {_short(content)}")
        address = _ASKED.search(path)
        assert address is not None
        endpoint = address["endpoint"]
        number = content.get("fn_index")
        event = self.demo.fns.get(number) if isinstance(number, int) else None
        if endpoint:
            public = {fn.api_name: fn for fn in self.demo.fns.values() if fn.api_visibility == "public"}
            event = public.get(endpoint)
            if event is None:
                raise HTTPException(404, f"{endpoint}: no such endpoint; give one of {', '.join(map(str, public))}")
        if event is None:
            raise HTTPException(422, f"fn_index: expected the number of an event, got {_short(number)}")
        if event.collects_event_data and not isinstance(content.get("event_data"), dict):
            raise HTTPException(422, f"event_data: expected an object, got {_short(content.get('event_data'))}")
        if address["way"] == "call/v2":  # its values have names
            try:
                signature(event.fn).bind(**content)  # type: ignore[arg-type]  # a public one has a function
            except TypeError as error:
                raise HTTPException(422, f"body: {error}") from None
            return
        values = content.get("data")
        if not isinstance(values, list) or len(values) != len(event.inputs):
            raise HTTPException(422, f"data: expected a list of {len(event.inputs)} values, got {_short(values)}")


def with_head(page: str, request: Request) -> str:
    """The page with its style, and the tags of a preview in place of Gradio's."""
    address = request.base_url
    # The proxy of a Space speaks HTTP to the server.
    if request.headers.get("x-forwarded-proto") == "https":
        address = address.replace(scheme="https")
    properties = {
        "og:type": "website",
        "og:title": "Leukoscope",
        "og:description": _SENTENCE,
        "og:url": str(address),
        "og:image": f"{str(address).rstrip('/')}{PREVIEW_ROUTE}",
        "og:image:alt": "A cell, half of it under its map, beside the answer of a model",
        "twitter:card": "summary_large_image",
    }
    tags = "\n".join(f'<meta property="{name}" content="{escape(text)}">' for name, text in properties.items())
    style = read_part("shared.css") + (DEMO_FOLDER / "style.css").read_text(encoding="utf-8")
    # Twice, to outrank the style of Gradio's components.
    head = f"{tags}<style>.gradio-container.gradio-container {{\n{style}}}</style></head>"
    return _TAG.sub("", page).replace("</head>", head, 1)


async def _read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"body: is over {MAX_BODY // 2**20} MB; upload files, and name their paths")
    return body


def _refuse_number(name: str) -> None:
    raise HTTPException(400, f"body: holds {name}, which is no number of JSON; give null or a number")


def _require_upload(content: dict[str, Any]) -> dict[str, Any]:
    """Refuse a file of a request, however deep, that this server did not receive."""
    if content.get("path") is not None:
        try:
            uploaded(content["path"])
        except DataError as error:
            raise HTTPException(422, str(error)) from None
    return content


def _short(content: Any) -> str:
    """A value of JSON, in JSON, cut to 60 characters."""
    return json.dumps(content)[:60]
