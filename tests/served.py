"""The demo in a process of its own, for tests over HTTP and in a browser."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

APP: tuple[str | Path, ...] = (sys.executable, Path(__file__).parents[1] / "app.py")
START_SECONDS = 300  # a busy machine with two cores; an idle one needs about five


def free_port() -> int:
    """A port that nobody listens at, below those that Linux gives to connections: to start may take minutes."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


@contextmanager
def served(
    folder: Path, *command: str | Path, environment: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The demo on a free loopback port; its log, without a traceback, and Gradio's cache lie in the folder."""
    port = free_port()
    address, log = f"http://127.0.0.1:{port}/", folder / "app.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "cache")},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}healthz", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"no page is served:\n{log.read_text()}")
                time.sleep(0.2)
        yield address, process
        _, traceback, rest = log.read_text().partition("Traceback")
        assert not traceback, rest
    finally:
        process.terminate()
        process.wait(timeout=60)


LAYOUT_SHIFT = """window.shifted = 0
new PerformanceObserver((list) => list.getEntries().forEach((shift) => {
  if (!shift.hadRecentInput) window.shifted += shift.value
})).observe({type: 'layout-shift', buffered: true})"""
"""JavaScript that adds up, as `window.shifted`, the layout shifts of what moves without being asked to."""


@contextmanager
def watched(browser: Any, address: str, answered: str, script: str = "", **options: Any) -> Iterator[Any]:
    """A page of a server once it shows what it should; at the end it has asked no other, no script has failed, and
    nothing that it needs was refused by its Content-Security-Policy.

    Args:
        answered: CSS selector of what is waited for.
        script: JavaScript that runs before those of the page.
        options: of the browser's context.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(120_000)  # two answers of a busy machine
    page, asked, broken = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda line: broken.append(line.text) if "Content Security Policy" in line.text else None)
    page.add_init_script(script)
    page.goto(address)
    page.locator(answered).first.wait_for()
    yield page
    context.close()
    server = address.partition("?")[0]
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
    assert broken == []
