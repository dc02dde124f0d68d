"""The server itself: finds the handler of a request, lets the asked-for faults strike, and runs in a thread."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub_server.api import Api
from hub_server.storage import Refused, Repository, Storage

# A Space is called spaces/owner/name here and a data set datasets/owner/name, as in their addresses.
_ID = r"(?P<id>((spaces|datasets)/)?[^/]+/[^/]+?)"
# Matched before %2F is decoded, for a branch may be called feature/x.
_ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/collections", "new_collection"),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", "collection"),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", "new_item"),
    ("GET|HEAD", r"/api/(agent-harnesses|telemetry/.*)", "nothing"),
    ("GET", rf"/api/models/{_ID}/auth-check(?P<write>/write)?", "auth_check"),
    ("GET", rf"/api/models/{_ID}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{_ID}/refs", "refs"),
    ("GET", rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("POST", rf"/api/models/{_ID}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"/api/models/{_ID}/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", rf"/api/models/{_ID}/branch/(?P<name>[^/]+)", "branch"),
    ("POST", rf"/api/models/{_ID}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_ID}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET|HEAD", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


@dataclass
class Fault:
    """One thing that goes wrong between a client and the Hub.

    Attributes:
        request: regular expression over "METHOD /path".
        kind: `refuse` answers `status` at once, `refuse_mid_upload` after half of the body; `cut` does what was asked
            for and ends the connection half-way through the answer; `wrong_etag` names another content.
        status, headers: of the refusal.
        times: how often, before all is well again.
    """

    request: str
    kind: Literal["refuse", "refuse_mid_upload", "cut", "wrong_etag"] = "refuse"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request meets it; counted."""
        if self.times < 1 or not re.search(self.request, f"{method} {path}"):
            return False
        self.times -= 1
        return True


class Hub:
    """The running server, as a test sees it.

    Attributes:
        url: what HF_ENDPOINT is set to.
        storage: every repository there is.
        faults: what will go wrong; to be added to.
        requests: "METHOD /path" of all that was asked, in order.
    """

    def __init__(self, folder: Path):
        self.url = ""
        self.storage = Storage(folder)
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._api = Api(self.storage)

    def repository(self, id: str) -> Repository:
        """One repository, to be looked into."""
        return self.storage.repositories[id]

    def content(self, id: str, path: str, revision: str = "main") -> bytes:
        """One file of a repository."""
        return self.storage.content(self.repository(id).at(revision).files[path].sha256)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = scope["raw_path"].decode().partition("?")[0]
        self.requests.append(f"{request.method} {path}")
        fault = next((f for f in self.faults if f.strikes(request.method, path)), None)
        if fault is not None and fault.kind.startswith("refuse"):
            if fault.kind == "refuse_mid_upload":
                await _take_half(request)
            await Response(status_code=fault.status, headers=dict(fault.headers))(scope, receive, send)
            return
        request.state.wrong_etag = "0" * 64 if fault is not None and fault.kind == "wrong_etag" else ""
        response = await self._answer(request, path)
        if fault is not None and fault.kind == "cut":
            await _cut(response, send)
        await response(scope, receive, send)

    async def _answer(self, request: Request, path: str) -> Response:
        path = re.sub("^/api/(spaces|datasets)/", r"/api/models/\1/", path)
        for methods, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and request.method in methods.split("|"):
                parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                try:
                    return await getattr(self._api, name)(request, **parts)
                except Refused as refused:
                    headers = {"X-Error-Code": refused.code} if refused.code else {}
                    headers["X-Error-Message"] = refused.message
                    return JSONResponse({"error": refused.message}, refused.status, headers)
        return JSONResponse({"error": f"{request.method} {path}: this Hub has no such address"}, 404)


class _Cut(Exception):
    """Ends the connection; the web server closes it when a handler fails."""


async def _cut(response: Response, send: Any) -> None:
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    half = response.body[: len(response.body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})
    raise _Cut


async def _take_half(request: Request) -> None:
    half, taken = int(request.headers["content-length"]) // 2, 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken >= half:
            return


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A Hub on a free port of 127.0.0.1 that keeps its files in `folder`."""
    hub = Hub(folder)
    listener = socket.create_server(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(hub, log_config=None, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = server.force_exit = True  # within a tenth of a second, for which no test need wait
        listener.close()
