"""The pictures of the demo in the README and of a link to it; `make screenshots` keeps them."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope.demo.components import DEMO_FOLDER

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
SIZE = {"width": 1280, "height": 800}


@pytest.mark.parametrize(
    ("name", "path", "tab", "shown"),
    [
        ("app", "?model=leukoscope-efficientnet-b3-cnmc&view=map", "Cell", "#cell-stage .map img"),
        ("app_field", "", "Smear", "#smear-card .cells button"),
        ("app_evidence", "", "Evidence", "#evidence table"),
    ],
)
def test_the_pictures_of_the_readme(
    visits: Callable[..., Any], tmp_path: Path, name: str, path: str, tab: str, shown: str
) -> None:
    folder = Path(os.environ.get("LEUKOSCOPE_SCREENSHOTS") or tmp_path)
    visit = visits(path, viewport=SIZE)
    visit.answered()
    visit.open(tab)
    visit.page.locator(shown).first.wait_for()
    visit.page.wait_for_timeout(800)
    visit.page.screenshot(path=folder / f"{name}.png")
    with Image.open(folder / f"{name}.png") as picture:
        assert len(set(picture.convert("RGB").resize((128, 80)).getdata())) > 100, "an empty page"


def test_the_picture_of_a_link(visits: Callable[..., Any], tmp_path: Path) -> None:
    path = DEMO_FOLDER / "preview.jpg" if os.environ.get("LEUKOSCOPE_SCREENSHOTS") else tmp_path / "preview.jpg"
    visit = visits("?model=leukoscope-efficientnet-b3-cnmc&view=map", viewport={"width": 1200, "height": 630})
    visit.answered()
    visit.page.wait_for_timeout(800)
    with Image.open(BytesIO(visit.page.screenshot())) as picture:
        picture.convert("RGB").save(path, quality=85)
        assert picture.size == (1200, 630)
