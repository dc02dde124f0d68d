"""The pictures of the demo in the README and of a link to it; `make screenshots` keeps them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope.web.link_preview import PREVIEW_PICTURE
from served import APP, served

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
WIDTH, HEIGHT = 1280, 800
ROOT = Path(__file__).parents[2]
PASSED = "leukoscope-efficientnet-b3-cnmc"  # the release whose maps passed their checks


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with two models that read cells on black."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("leukoscope-densenet169-cnmc", PASSED):
        shutil.copytree(ROOT / "model_card" / name, folder / "releases" / name)
    with served(folder, *APP, "--releases", folder / "releases") as (address, _):
        yield address


def come_to_rest(page: Any) -> None:
    """Wait until nothing moves and nothing is computed any more."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)
    page.wait_for_function("!document.querySelector('.lk-working')")


@pytest.mark.parametrize(("name", "act", "shown"), [
    ("app", "row:1", "#picture .lk-map"),
    ("app_field", "smear", "#picture button.lk-box"),
    ("app_evidence", "", "#card h1"),
])  # fmt: skip
def test_the_pictures_of_the_readme(
    visits: Callable[..., Any], two_models: str, tmp_path: Path, name: str, act: str, shown: str
) -> None:
    folder = Path(os.environ.get("LEUKOSCOPE_SCREENSHOTS") or tmp_path)
    visit = visits(address=two_models, viewport={"width": WIDTH, "height": HEIGHT})
    visit.act(act) if act else visit.page.get_by_role("link", name="Evidence").first.click()
    visit.page.locator(shown).first.wait_for()
    if name == "app":
        assert "its maps passed our checks" in visit.page.locator("#answer").inner_text()
    come_to_rest(visit.page)
    visit.page.screenshot(path=folder / f"{name}.png")
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.size == (WIDTH, HEIGHT)
        assert len(set(picture.convert("RGB").resize((128, 80)).getdata())) > 100, "an empty page"


def test_the_picture_of_a_link(visits: Callable[..., Any], two_models: str, tmp_path: Path) -> None:
    path = PREVIEW_PICTURE if os.environ.get("LEUKOSCOPE_SCREENSHOTS") else tmp_path / PREVIEW_PICTURE.name
    visit = visits(address=two_models, viewport={"width": 1372, "height": 720})
    visit.act("row:1")
    visit.page.locator("#picture .lk-map").first.wait_for()
    come_to_rest(visit.page)
    visit.page.evaluate("document.querySelector('#answer .lk-answer').scrollTop = 0")
    with Image.open(BytesIO(visit.page.screenshot())) as page:
        picture = page.convert("RGB").resize((1200, 630), Image.Resampling.LANCZOS)
    assert len(set(picture.resize((128, 80)).getdata())) > 100, "an empty page"
    picture.save(path, quality=85)
