"""A browser on the demo: app.py in a process of its own, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from served import APP, LAYOUT_SHIFT, served, watched

ROOT = Path(__file__).parents[2]
# The first is what a visitor meets; the maps of the second passed their checks; the third knows four classes.
RELEASES = ("leukoscope-densenet169-cnmc", "leukoscope-efficientnet-b3-cnmc", "leukoscope-densenet201-ball4")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with true releases."""
    folder = tmp_path_factory.mktemp("demo")
    for name in RELEASES:
        release = shutil.copytree(ROOT / "model_card" / name, folder / "releases" / name)
        with (release / "README.md").open("a") as card:
            # Of a stranger's card, which `watched` finds if the page asks for it.
            card.write('\n\n<img src="http://127.0.0.1:9/a.png">![b](<http://127.0.0.1:9/b.png>)\n\nThe card ends.\n')
    with served(folder, *APP, "--releases", folder / "releases") as (address, _):
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium without a window; the tests fail, rather than skip, where it is asked for and missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra test: pip install -e '.[test]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
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
    """One visitor's page."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def text(self, selector: str) -> str:
        """What is read there."""
        return str(self.page.locator(selector).first.inner_text())

    def answered(self, verdict: str = "", model: str = "") -> str:
        """Wait until the card holds an answer that is not checked any more, and return its verdict."""
        card = self.page.locator("#cell-card .card:not(.waiting)", has_text=model)
        card.locator("h2", has_text=verdict).wait_for()
        return self.text("#cell-card h2")

    def open(self, tab: str) -> None:
        """Press a tab."""
        self.page.get_by_role("tab", name=tab).first.click()

    def sees(self, words: str) -> None:
        """Wait until words are visible."""
        self.page.locator(f":visible:text({words!r})").first.wait_for()

    def refused(self, words: str) -> None:
        """Wait until nothing but these words is answered, for good."""
        self.sees(words)
        self.page.wait_for_timeout(1000)
        self.sees(words)

    @property
    def is_no_wider_than_its_window(self) -> bool:
        """Whether nothing is cut off or scrolled at the right."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture
def visits(chromium: Any, server: str) -> Iterator[Any]:
    """Opens visits, each `watched`."""
    with ExitStack() as opened:

        def visit(path: str = "", answered: str = "#cell-card h2", **options: Any) -> Visit:
            look = {"viewport": {"width": 1280, "height": 720}} | options
            page = opened.enter_context(watched(chromium, server + path, answered, LAYOUT_SHIFT, **look))
            return Visit(page)

        yield visit
