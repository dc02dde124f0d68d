"""The three pictures of the demo in the README: `make screenshots` keeps them, else they are only taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
WIDTH, HEIGHT = 1120, 1480


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(os.environ.get("LEUKOSCOPE_SCREENSHOTS") or tmp_path)


def taken(visit: Any, file: Path) -> None:
    """Take the picture once the page has come to rest."""
    visit.page.mouse.move(0, 0)
    visit.page.wait_for_timeout(500)
    visit.page.screenshot(path=file)
    with Image.open(file) as picture:
        assert picture.size == (WIDTH, HEIGHT)
        assert len(set(picture.convert("RGB").resize((112, 148)).getdata())) > 100, "an empty page"


def test_one_cell(visits: Callable[..., Any], folder: Path) -> None:
    visit = visits(viewport={"width": WIDTH, "height": HEIGHT})
    visit.pick_example()
    taken(visit, folder / "app.png")


def test_a_field_of_view(visits: Callable[..., Any], folder: Path) -> None:
    visit = visits(viewport={"width": WIDTH, "height": HEIGHT})
    visit.page.locator("#ask-field").click()
    visit.page.locator("#field-picture button.lk-box").first.wait_for()
    taken(visit, folder / "app_field.png")


def test_the_evidence(visits: Callable[..., Any], folder: Path) -> None:
    visit = visits(viewport={"width": WIDTH, "height": HEIGHT})
    visit.tab("Evidence")
    visit.page.locator("#card h1").first.wait_for()
    taken(visit, folder / "app_evidence.png")
