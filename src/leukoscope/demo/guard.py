"""What stands between the network and Gradio: a policy for every response, the page's head, checks of what is asked."""

from __future__ import annotations

import json
import re
from html import escape
from inspect import signature
from typing import Any

import gradio as gr
from gradio.route_utils import API_PREFIX
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

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


class Guard(BaseHTTPMiddleware):
    """Layer around Gradio's server."""

    def __init__(self, app: ASGIApp, demo: gr.Blocks) -> None:
        super().__init__(app)
        self.demo = demo

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Answer one request, a malformed one by one line."""
        path = request.scope["path"]
        address = _ASKED.search(path)
        is_page = request.method == "GET" and path == "/"
        if is_page:  # whose text is read here
            headers = request.scope["headers"]
            request.scope["headers"] = [header for header in headers if header[0] != b"accept-encoding"]
        response: Response
        try:
            if address and request.method == "POST":
                self.check(await _read_body(request), address)
        except HTTPException as problem:
            response = JSONResponse({"detail": problem.detail}, problem.status_code)
        except ClientDisconnect:
            response = Response()  # nobody reads it
        else:
            response = await call_next(request)
        if is_page:
            response = await _with_head(response, request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    def check(self, body: bytes, address: re.Match[str]) -> None:
        """Check the question of a request.

        Raises:
            HTTPException: it is malformed, names no event of the page, or a file that this server did not receive.
        """
        try:
            content = json.loads(body, parse_constant=_refuse_number, object_hook=_require_upload)
        except (ValueError, RecursionError):
            raise HTTPException(400, f"body: expected JSON, got {body[:60]!r}") from None
        if not isinstance(content, dict):
            raise HTTPException(422, f"body: expected an object of JSON, got {_short(content)}")
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


async def _with_head(response: Any, request: Request) -> Response:
    """Write the style, and what a link shows where it is sent, into the page: Gradio has no option for either."""
    page = b"".join([part async for part in response.body_iterator]).decode("utf-8")
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Response(with_head(page, request), response.status_code, headers)


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
    """The body of a request that says how long it is."""
    if int(request.headers.get("content-length", MAX_BODY + 1)) > MAX_BODY:
        size = f"{MAX_BODY // 2**20} MB, or of unknown length"
        raise HTTPException(413, f"body: is over {size}; upload files, and name their paths")
    return await request.body()


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
