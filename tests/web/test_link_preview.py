"""A link to the page is shown elsewhere with our title and picture, and with no tag of Gradio's."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from leukoscope.web.link_preview import PREVIEW_PATH, PREVIEW_PICTURE, TITLE, LinkPreview, with_preview

GRADIOS = """<!doctype html><html><head><meta charset="utf-8" />
<meta property="og:title" content="Gradio" /><meta property="og:url" content="{url}" />
<meta
    property="og:image"
    content="" />
<meta name="twitter:creator" content="@Gradio" />
</head><body>ä</body></html>"""


def _tags(page: str) -> dict[str, str]:
    return dict(re.findall(r'<meta (?:property|name)="([^"]+)" content="([^"]*)"', page))


def test_gradio_s_tags_are_replaced() -> None:
    page = with_preview(GRADIOS, "https://demo.example/a/")
    tags = _tags(page)
    assert "Gradio" not in page and page.count("og:title") == page.count('og:image"') == 1
    assert tags["og:title"] == TITLE
    assert tags["og:url"] == "https://demo.example/a/"
    assert tags["og:image"] == f"https://demo.example/a{PREVIEW_PATH}"
    assert "For research only" in tags["og:description"]


@pytest.mark.parametrize("address", ["http://demo.example", "http://other.example:7860"])
def test_only_the_page_itself_is_changed_and_its_length_is_right(address: str) -> None:
    async def page(request: Request) -> Response:
        return HTMLResponse(GRADIOS)

    async def other(request: Request) -> Response:
        return PlainTextResponse(GRADIOS)

    app = Starlette(routes=[Route("/", page), Route("/other", other)], middleware=[Middleware(LinkPreview)])
    client = TestClient(app, base_url=address)
    answered = client.get("/")
    assert _tags(answered.text)["og:image"] == address + PREVIEW_PATH
    assert int(answered.headers["content-length"]) == len(answered.content)
    assert "<body>ä</body>" in answered.text
    assert client.get("/other").text == GRADIOS
    by_proxy = client.get("/", headers={"X-Forwarded-Proto": "https"})
    assert _tags(by_proxy.text)["og:image"] == address.replace("http:", "https:") + PREVIEW_PATH


def test_the_picture_has_the_size_that_sites_show() -> None:
    with Image.open(PREVIEW_PICTURE) as picture:
        assert picture.size == (1200, 630)
    assert PREVIEW_PICTURE.stat().st_size < 300_000
