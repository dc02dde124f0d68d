"""In the browser nothing is loaded from another host, whatever the page or a model card holds."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
# Directive of the policy → JavaScript that loads something it is about.
LOADERS = {
    "img-src": "document.body.append(Object.assign(new Image(), {src: url}))",
    "media-src": "document.body.append(Object.assign(document.createElement('video'), {src: url}))",
    "connect-src": "fetch(url).catch(() => {})",
    "frame-src": "document.body.append(Object.assign(document.createElement('iframe'), {src: url}))",
    "object-src": "document.body.append(Object.assign(document.createElement('object'), {data: url}))",
    "script-src-elem": "document.body.append(Object.assign(document.createElement('script'), {src: url}))",
    "style-src-elem": "const sheet = document.createElement('link'); sheet.rel = 'stylesheet'; sheet.href = url;"
    " document.head.append(sheet)",
    "font-src": "new FontFace('elsewhere', `url(${url})`).load().catch(() => {})",
}


def test_the_browser_refuses_whatever_would_load_from_another_host(chromium: Any, server: str) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        Thread(target=elsewhere.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.goto(server)
        page.evaluate(
            "window.refused = []; document.addEventListener('securitypolicyviolation',"
            " (event) => window.refused.push(event.effectiveDirective))"
        )
        for directive, load in LOADERS.items():
            page.evaluate(f"(url) => {{ {load} }}", f"http://127.0.0.1:{elsewhere.server_port}/{directive}")
            page.wait_for_function("(directive) => window.refused.includes(directive)", arg=directive)
        page.close()
        elsewhere.shutdown()
    assert asked == []


def test_a_card_with_pictures_of_another_host_is_shown_without_them(visits: Callable[..., Any]) -> None:
    """The fixture adds them to the card; `watched` fails where the browser is refused one, or asks for it."""
    page = visits().page
    page.get_by_role("link", name="Evidence").first.click()
    page.get_by_text("The card ends here.").wait_for(state="attached")
    page.locator("#card summary", has_text="Cite").click()
    assert page.get_by_text("The card ends here.").is_visible()
    assert page.locator("#card img").count() == 0
