"""Nothing on the server's page loads from another host: a header for the browser, and model cards without pictures.

The card of a Hub model is written by strangers. A picture in it would tell their server who looks at the page and when.
`card_text` removes what could load something; the header of `ContentPolicy` has the browser refuse whatever is left.
"""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN = "'self' data: blob:"
# Gradio's page starts by inline scripts, and runs the JavaScript of a component by `Function`: without 'unsafe-inline'
# and 'unsafe-eval' it stays empty. Scripts of other hosts are refused all the same.
# There is no `frame-ancestors`: a Space is shown in a frame of huggingface.co.
_DIRECTIVES = {
    "default-src": _OWN,
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": _OWN,
    "font-src": _OWN,
    "media-src": _OWN,
    "connect-src": _OWN,
    "object-src": "'none'",
    "frame-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
POLICY = "; ".join(f"{name} {sources}" for name, sources in _DIRECTIVES.items())

MAX_CARD = 100_000  # characters; a stranger's card may be of any length

_METADATA = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_IMAGE = re.compile(r"!\[[^\[\]]*\](\([^()]*\)|\[[^\[\]]*\])")
# An image in another notation, such as ![name] with its address elsewhere: without the mark it is a link.
_IMAGE_MARK = re.compile(r"!+(?=\[)")
_BARE_LINK = re.compile(r"<(https?://[^<>\s]+)>")
_TAG = re.compile(r"<[A-Za-z/!?][^<>]*>")
_TAG_BEGINNING = re.compile(r"<(?=[A-Za-z/!?])")
# Gradio draws such a block as a diagram, whose labels may be HTML.
_DIAGRAM = re.compile(r"^([ \t]*(?:```+|~~~+))[ \t]*mermaid", re.IGNORECASE | re.MULTILINE)


class ContentPolicy:
    """ASGI layer that adds the header Content-Security-Policy to every response.

    A response is passed on message by message, so that Gradio's event streams stay streams.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


def card_text(markdown: str) -> str:
    """A model card for the page: without its metadata, its pictures and all HTML; links stay."""
    text = _METADATA.sub("", markdown[:MAX_CARD])
    text = _IMAGE.sub("", text)
    text = _IMAGE_MARK.sub("", text)
    text = _BARE_LINK.sub(r"\1", text)
    text = _TAG.sub("", text)
    text = _TAG_BEGINNING.sub("&lt;", text)  # tags within tags, and tags that do not end
    text = _DIAGRAM.sub(r"\1text", text)
    if len(markdown) > MAX_CARD:
        text += f"\n\nOnly the first {MAX_CARD} characters of this card are shown."
    return text
