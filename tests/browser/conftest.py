"""A browser on the demo: app.py in a process of its own, Debian's Chromium, and a watch on what the page requests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RELEASES = ("leukoscope-densenet169-cnmc", "leukoscope-densenet201-ball4")  # the first is what a visitor meets
START_SECONDS = 300  # a busy machine with two cores; an idle one needs about five
WAIT = 120_000  # milliseconds; two answers of a busy machine


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo on a free loopback port with true releases."""
    folder = tmp_path_factory.mktemp("demo")
    for name in RELEASES:
        shutil.copytree(ROOT / "model_card" / name, folder / "releases" / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "app.log").open("w")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--releases", str(folder / "releases")],
        env=os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "cache")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        yield _waited_for(f"http://127.0.0.1:{port}/", process, folder / "app.log")
        assert "Traceback" not in (folder / "app.log").read_text()
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _waited_for(address: str, process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}healthz", timeout=5).close()
            return address
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py served no page:\n{log.read_text()}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium without a window; the tests fail, rather than skip, where it is asked for and missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra test: pip install -e '.[test]'")
    path = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("LEUKOSCOPE_BROWSER") == "required":
            pytest.fail("Chromium is missing: apt-get install chromium")
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # A container's root has no namespaces for Chromium's own sandbox; the page is ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


# Cumulative layout shift, of what moves without being asked to.
_SHIFTED = """window.shifted = 0
new PerformanceObserver((list) => list.getEntries().forEach((one) => {
  if (!one.hadRecentInput) window.shifted += one.value
})).observe({type: 'layout-shift', buffered: true})"""


class Visit:
    """One visitor's page; notes every request that leaves the server it came from, and every error of its scripts."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}} | options)
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.elsewhere: list[str] = []
        self.broken: list[str] = []
        self.page.on("request", lambda request: self._note(request.url, address))
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))
        self.page.add_init_script(_SHIFTED)
        self.page.goto(address)
        self.page.locator("#answer .lk-row.open").wait_for()  # the example that everyone meets
        self.page.wait_for_function("!document.querySelector('.lk-wait')")
        # Its last event, after which nothing undoes what a test begins.
        self.page.wait_for_function("new URLSearchParams(location.search).has('model')")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.elsewhere.append(url)

    def act(self, name: str) -> None:
        """Click what does this."""
        self.page.locator(f'[data-act="{name}"]').first.click()

    def width(self) -> int:
        """Of all that the page holds, in CSS pixels."""
        return self.page.evaluate("document.documentElement.scrollWidth")


@pytest.fixture
def visits(chromium: Any, server: str) -> Iterator[Any]:
    """Opens visits; at the end none of them has left this machine or met a broken script."""
    opened: list[Visit] = []

    def visit(**options: Any) -> Visit:
        opened.append(Visit(chromium, server, **options))
        return opened[-1]

    yield visit
    for one in opened:
        one.context.close()
    assert [url for one in opened for url in one.elsewhere] == []
    assert [error for one in opened for error in one.broken] == []
