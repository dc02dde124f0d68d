"""A browser on the demo: app.py in a process of its own, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from served import APP, LAYOUT_SHIFT, served, watched

ROOT = Path(__file__).parents[2]
RELEASES = ("leukoscope-densenet169-cnmc", "leukoscope-densenet201-ball4")  # the first is what a visitor meets


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with true releases."""
    folder = tmp_path_factory.mktemp("demo")
    for name in RELEASES:
        release = shutil.copytree(ROOT / "model_card" / name, folder / "releases" / name)
        with (release / "README.md").open("a") as card:
            # Of a stranger's card, which `watched` finds if the page asks for it.
            card.write(
                '\n\n<img src="http://127.0.0.1:9/a.png">![b](<http://127.0.0.1:9/b.png>)\n\nThe card ends here.\n'
            )
    with served(folder, *APP, "--releases", folder / "releases") as (address, _):
        yield address


# Every model takes seconds for a picture of a visitor, and its examples as long as ever.
_SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from leukoscope.inference.predictor import Predictor
predict = Predictor.__call__
def slowly(self, images, *given, **options):
    images = list(images)
    if any(image.width == 301 for image in images):
        time.sleep({seconds})
    return predict(self, images, *given, **options)
Predictor.__call__ = slowly
import app
sys.argv = ["app.py", "--releases", {releases!r}]
sys.exit(app.main())
"""
SLOW_SECONDS = 6


@pytest.fixture(scope="session")
def slow_server(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo whose models take `SLOW_SECONDS` for a picture 301 pixels wide."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copytree(ROOT / "model_card" / RELEASES[0], folder / "releases" / RELEASES[0])
    code = _SLOW.format(root=str(ROOT), seconds=SLOW_SECONDS, releases=str(folder / "releases"))
    with served(folder, sys.executable, "-c", code) as (address, _):
        yield address


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


class Visit:
    """One visitor's page, its first example answered."""

    def __init__(self, page: Any) -> None:
        self.page, self.context = page, page.context
        self.page.wait_for_function("!document.querySelector('.lk-working')")
        # Its last event, after which nothing undoes what a test begins.
        self.page.wait_for_function("new URLSearchParams(location.search).has('model')")

    def act(self, name: str) -> None:
        """Click what does this."""
        self.page.locator(f'[data-act="{name}"]:visible').first.click()

    def shows(self, caption: str) -> None:
        """Wait until a picture of this caption is on the stage."""
        self.page.locator("#picture .lk-caption", has_text=caption).wait_for()

    def width(self) -> int:
        """Of all that the page holds, in CSS pixels."""
        return self.page.evaluate("document.documentElement.scrollWidth")


@pytest.fixture
def visits(chromium: Any, server: str) -> Iterator[Any]:
    """Opens visits, each `watched`."""
    with ExitStack() as opened:

        def visit(**options: Any) -> Visit:
            address = options.pop("address", server)
            look = {"viewport": {"width": 1280, "height": 720}} | options
            return Visit(opened.enter_context(watched(chromium, address, "#answer [data-model]", LAYOUT_SHIFT, **look)))

        yield visit
