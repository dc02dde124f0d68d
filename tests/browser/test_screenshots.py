"""The three pictures of the demo in the README: `make screenshots` keeps them, else they are only taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
WIDTH, HEIGHT = 1280, 800


@pytest.mark.parametrize(("name", "act", "shown"), [
    ("app", "example:1", "#picture .lk-both"),
    ("app_field", "smear", "#picture button.lk-box"),
    ("app_evidence", "", "#card h1"),
])  # fmt: skip
def test_the_pictures_of_the_readme(
    visits: Callable[..., Any], tmp_path: Path, name: str, act: str, shown: str
) -> None:
    folder = Path(os.environ.get("LEUKOSCOPE_SCREENSHOTS") or tmp_path)
    visit = visits(viewport={"width": WIDTH, "height": HEIGHT})
    visit.act(act) if act else visit.page.get_by_role("link", name="Evidence").first.click()
    visit.page.locator(shown).first.wait_for()
    visit.page.mouse.move(0, 0)
    visit.page.wait_for_timeout(800)  # it comes to rest
    visit.page.screenshot(path=folder / f"{name}.png")
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.size == (WIDTH, HEIGHT)
        assert len(set(picture.convert("RGB").resize((128, 80)).getdata())) > 100, "an empty page"
