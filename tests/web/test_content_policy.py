"""Nothing on the server's page loads from another host: what the header says, and what a stranger's card may hold."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from leukoscope.web.content_policy import MAX_CARD, POLICY, ContentPolicy, card_text

ELSEWHERE = "http://elsewhere.example/a.png"
# Notations by which a card might load a picture, a frame or a style sheet.
LOADING = (
    f"![a]({ELSEWHERE})",
    f"![a](<{ELSEWHERE}> 'title')",
    f"![a][one]\n\n[one]: {ELSEWHERE}",
    f"![one]\n\n[one]: {ELSEWHERE}",
    f"!![a [b] c]({ELSEWHERE})",
    f"[![badge]({ELSEWHERE})](https://huggingface.co)",
    f"<img src={ELSEWHERE}>",
    f'<IMG\nSRC="{ELSEWHERE}"\n/>',
    f"<<b>img src={ELSEWHERE}>",
    f"<img src={ELSEWHERE}",
    f'<img alt=">" src="{ELSEWHERE}">',
    f'<img alt="<" src="{ELSEWHERE}">',
    f'<p style="background: url({ELSEWHERE})">text</p>',
    f"<style>body {{ background: url({ELSEWHERE}) }}</style>",
    f"<style>@import '{ELSEWHERE}';</style>",
    f"<link rel=stylesheet href={ELSEWHERE}>",
    f"<iframe src={ELSEWHERE}></iframe>",
    f"<object data={ELSEWHERE}></object><embed src={ELSEWHERE}>",
    f"<video poster={ELSEWHERE}></video><audio src={ELSEWHERE}></audio>",
    f'<svg><image href="{ELSEWHERE}"/></svg>',
    f"<input type=image src={ELSEWHERE}>",
    f"<script src={ELSEWHERE}></script>",
    f"```mermaid\ngraph TD\nA[\"<img src='{ELSEWHERE}'>\"]\n```",
)


@pytest.mark.parametrize("card", LOADING)
def test_a_card_that_loads_something_is_text(card: str) -> None:
    text = card_text(f"---\nlicense: mit\n---\n# Title\n\n{card}\n\nthe end")
    assert "license" not in text
    assert text.lstrip().startswith("# Title") and text.endswith("the end")
    assert "![" not in text and "mermaid" not in text
    assert not any(f"<{letter}" in text for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/!?")


def test_what_a_card_says_stays() -> None:
    card = "| a | b |\n|---|---|\n| 1 | p < 0.05, n > 3 |\n\n[link](https://example.org), <https://example.org/x>!\n"
    assert card_text(card) == card.replace("<https://example.org/x>", "https://example.org/x")
    long = card_text("word " * MAX_CARD)
    assert len(long) < MAX_CARD + 100 and long.endswith(f"Only the first {MAX_CARD} characters of this card are shown.")


def test_the_header_stands_on_every_response_which_is_passed_on_in_its_parts() -> None:
    sent: list[dict[str, Any]] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for part in (b"first", b"second"):
            await send({"type": "http.response.body", "body": part, "more_body": part == b"first"})
            assert sent[-1]["body"] == part, "it waits for nothing that follows"

    async def send(message: Any) -> None:
        sent.append(message)

    layer: Any = ContentPolicy(answer)
    anyio.run(layer, {"type": "http"}, None, send)
    assert (b"content-security-policy", POLICY.encode()) in sent[0]["headers"]
    assert len(sent) == 3


def test_the_header_lets_scripts_run_and_nothing_come_from_elsewhere() -> None:
    directives = dict(directive.split(" ", 1) for directive in POLICY.split("; "))
    for kind in ("img-src", "font-src", "media-src", "connect-src"):
        assert directives[kind] == "'self' data: blob:"
    for kind in ("object-src", "frame-src"):
        assert directives[kind] == "'none'"
    assert {"'unsafe-inline'", "'unsafe-eval'"} <= set(directives["script-src"].split())
    assert "frame-ancestors" not in POLICY and "http" not in POLICY and "*" not in POLICY
