"""What a link to the page shows where it is sent: the page's own title, sentence and picture.

Gradio writes tags of its own, whose title is "Gradio" and whose picture is empty, and has no option for others.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREVIEW_PICTURE = Path(__file__).with_name("preview.jpg")
"""1200 × 630 pixels, as sites show it: `make screenshots` takes it anew."""
PREVIEW_PATH = "/preview.jpg"
TITLE = "Leukoscope"
SENTENCE = (
    "Is this white blood cell a leukaemic blast? Open classifiers that say how far to trust them. For research only, "
    "never for diagnosis."
)

_TAG = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')


def with_preview(page: str, address: str) -> str:
    """An HTML page with the tags of a preview in place of Gradio's.

    Args:
        address: of the page, with scheme and host, since sites take no picture by a relative address.
    """
    properties = {
        "og:type": "website",
        "og:title": TITLE,
        "og:description": SENTENCE,
        "og:url": address,
        "og:image": address.rstrip("/") + PREVIEW_PATH,
        "og:image:width": "1200",
        "og:image:height": "630",
        "og:image:alt": "A cell, half of it under its map, beside the answer of a model",
    }
    tags = [f'<meta property="{name}" content="{escape(value)}">' for name, value in properties.items()]
    tags.append('<meta name="twitter:card" content="summary_large_image">')
    return _TAG.sub("", page).replace("</head>", "\n".join([*tags, "</head>"]), 1)


class LinkPreview:
    """ASGI layer that writes `with_preview` into the page at /; every other response passes message by message."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        address = str(request.base_url)
        # The proxy of a Space speaks HTTP to the server.
        if request.headers.get("x-forwarded-proto") == "https":
            address = str(request.base_url.replace(scheme="https"))
        start: Message = {}
        parts: list[bytes] = []

        async def send_with_preview(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(parts)
            headers = MutableHeaders(scope=start)
            if headers.get("content-type", "").startswith("text/html"):
                body = with_preview(body.decode("utf-8"), address).encode("utf-8")
                headers["Content-Length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, send_with_preview)
