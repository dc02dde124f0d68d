"""Every state of the demo: nothing is cut off or wider than the window. `make pictures` keeps a picture of each.

One width in the usual run; `LEUKOSCOPE_PICTURES=folder` has all of them, and writes state-width.png into the folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope.reports.text import FOREIGN_VERDICT
from leukoscope.synthetic import draw_cell, example_cell, smear_picture
from leukoscope.synthetic_smears import draw_smear
from served import APP, served, watched
from zips import cell_png, pack

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("LEUKOSCOPE_PICTURES")
_PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LOOKS: dict[str, dict[str, Any]] = {
    "1280x720": {"viewport": {"width": 1280, "height": 720}, "reduced_motion": "reduce"},
    "1280x800": {"viewport": {"width": 1280, "height": 800}},
    "1440x900-dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "768": {"viewport": {"width": 768, "height": 1024}},
    "390": _PHONE,
    "390-dark": {**_PHONE, "color_scheme": "dark"},
}
CHOSEN = os.environ.get("LEUKOSCOPE_LOOKS", " ".join(LOOKS) if FOLDER else "1280x720").split()
CNMC, PASSED, BALL4 = ("leukoscope-densenet169-cnmc", "leukoscope-efficientnet-b3-cnmc", "leukoscope-densenet201-ball4")


SOME_PREDICTED = re.compile(r"^[1-9]\d* of \d+ pictures")
UNSURE = ("HEM", 1, 5)  # class, subject and cell of one that both models of C-NMC abstain from


def _server(folder: Path, *names: str) -> Any:
    (folder / "releases").mkdir()
    for name in names:
        shutil.copytree(ROOT / "model_card" / name, folder / "releases" / name)
    return served(folder, *APP, "--releases", folder / "releases")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with every release."""
    with _server(tmp_path_factory.mktemp("all"), CNMC, PASSED, BALL4) as (address, _):
        yield address


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with the release of four classes alone."""
    with _server(tmp_path_factory.mktemp("four"), BALL4) as (address, _):
        yield address


@pytest.fixture(scope="module")
def no_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo without a model."""
    with _server(tmp_path_factory.mktemp("none")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for each state that no tile opens."""
    folder = tmp_path_factory.mktemp("given")
    pixels = example_cell("ALL", 1)
    noise = np.random.default_rng(0).normal(0, 60, pixels.shape) * (pixels.sum(axis=2, keepdims=True) > 0)
    Image.fromarray((pixels[..., ::-1] + noise).clip(0, 255).astype(np.uint8)).save(folder / "refused.png")
    Image.effect_noise((400, 300), 40).convert("RGB").save(folder / "no cell.png")
    label, subject, cell = UNSURE
    Image.fromarray(draw_cell(label, subject=subject, cell=cell).image).save(folder / "not sure.png")
    (folder / "report.pdf").write_bytes(b"%PDF-1.4")
    Image.fromarray(smear_picture("Pre", 4)).save(folder / "blood.png")
    for count, size in ((1, (300, 400)), (36, (1500, 2000))):
        field = draw_smear((("ALL", "ALL", "HEM") * 12)[:count], size=size, um_per_pixel=0.12, seed=4).image
        Image.fromarray(field).save(folder / f"{count} cells.png")
    for number in range(5):
        (folder / f"loose{number}.png").write_bytes(cell_png(("ALL", "HEM")[number % 2], number))
    pack(folder / "one.zip", {"ALL/P1/1.png": cell_png("ALL", 1)})
    pack(folder / "people.zip", {f"{label}/{label[0]}{n}/{cell}.png": cell_png(label, n, cell)
                                 for label in ("ALL", "HEM") for n in range(3) for cell in range(6)})  # fmt: skip
    return folder


def _given(visit: Any, *paths: Path) -> None:
    visit.page.locator("#upload input[type=file]").first.set_input_files([str(path) for path in paths])


def _looked_at(page: Any, state: str, look: str) -> None:
    """Keep a picture of a state that has come to rest; nothing of it is wider than the window."""
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, state
    if FOLDER:
        Path(FOLDER).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(FOLDER) / f"{state}-{look}.png")
        if width < 800 or state.startswith(("smear", "batch")):
            page.screenshot(path=Path(FOLDER) / f"{state}-{look}-whole.png", full_page=True)


@pytest.mark.parametrize("look", CHOSEN)
def test_every_state_of_a_cell(visits: Callable[..., Any], files: Path, look: str) -> None:
    visit = visits(**LOOKS[look])
    page = visit.page
    _looked_at(page, "cell", look)
    visit.act("row:1")
    page.locator(".lk-handle").wait_for()
    _looked_at(page, "map_that_passed", look)
    visit.act("row:0")
    for view in ("map", "turned", "changed", "covered"):
        visit.act(f"view:{view}")
        page.locator(f'[data-act="view:{view}"][aria-pressed=true]').wait_for()
        page.locator(":is(.lk-handle, .lk-forms li)").first.wait_for()
        _looked_at(page, view.replace("map", "map_that_failed"), look)
    verdicts = {"refused": FOREIGN_VERDICT, "no cell": "No white blood cell found", "not sure": "Not sure"}
    for state, verdict in verdicts.items():
        _given(visit, files / f"{state}.png")
        visit.shows(f"{state}.png")
        page.locator("#answer .lk-verdict", has_text=verdict).wait_for()
        page.wait_for_function("!document.querySelector('.lk-working')")
        _looked_at(page, state.replace(" ", "_"), look)
    _given(visit, files / "report.pdf")
    page.locator("#answer .lk-verdict", has_text="Not read").wait_for()
    assert "report.pdf was not read" in page.locator("#picture").inner_text()
    _looked_at(page, "failed", look)
    visit.context.set_offline(True)
    page.wait_for_function("getComputedStyle(document.body, '::after').content.includes('trying')")
    _looked_at(page, "server_lost", look)
    visit.context.set_offline(False)


# The boxes of cells on which the number of another cell lies.
COVERED_BOXES = """
() => {
  const boxes = [...document.querySelectorAll('#picture .lk-box')]
  const lies = (one, other) =>
    one.left < other.right - 1 && one.right > other.left + 1 && one.top < other.bottom - 1 && one.bottom > other.top + 1
  const covered = []
  for (const flag of document.querySelectorAll('#picture .lk-box span')) {
    for (const box of boxes) {
      if (box === flag.parentElement || !flag.offsetWidth) continue
      if (lies(flag.getBoundingClientRect(), box.getBoundingClientRect())) covered.push(box.title)
    }
  }
  return covered
}
"""


@pytest.mark.parametrize("look", CHOSEN)
def test_every_state_of_a_smear(visits: Callable[..., Any], files: Path, look: str) -> None:
    visit = visits(**LOOKS[look])
    page = visit.page
    visit.act("smear")
    page.locator("#picture button.lk-box").nth(3).wait_for()
    _looked_at(page, "smear_of_5", look)
    page.locator("#picture button.lk-box").first.click()
    page.locator("#picture [data-act=back]:visible").wait_for()
    _looked_at(page, "cell_of_a_smear", look)
    _given(visit, files / "1 cells.png")
    # The cell before it is called Cell 1, too.
    page.locator('.lk-tile[title="1 cells.png"][aria-pressed="true"]').wait_for()
    page.locator("#picture .lk-caption", has_text="Cell 1").wait_for()
    visit.act("back")
    page.locator("#picture button.lk-box").first.wait_for()
    _looked_at(page, "smear_of_1", look)
    _given(visit, files / "36 cells.png")
    page.locator("#picture button.lk-box").nth(20).wait_for()
    _looked_at(page, "smear_of_36", look)
    assert page.evaluate(COVERED_BOXES) == []


@pytest.mark.parametrize("look", CHOSEN)
def test_every_state_of_a_batch(visits: Callable[..., Any], files: Path, look: str) -> None:
    visit = visits(**LOOKS[look])
    page = visit.page
    _given(visit, *sorted(files.glob("loose*.png")))
    page.locator("#answer .lk-model", has_text="5 cells").wait_for()
    _looked_at(page, "batch_of_loose_cells", look)
    _given(visit, files / "one.zip")
    page.locator("#picture [data-act=back]:visible").wait_for()
    visit.act("back")
    page.locator("#answer .lk-model", has_text="1 cell").wait_for()
    _looked_at(page, "batch_of_one_cell", look)
    _given(visit, files / "people.zip")
    page.locator("#answer .lk-progress", has_text=SOME_PREDICTED).wait_for()
    _looked_at(page, "batch_waiting", look)
    page.locator("#answer .lk-model", has_text="36 cells").wait_for()
    _looked_at(page, "batch_by_subjects", look)
    page.locator("#picture summary").first.click()
    page.locator("#picture .lk-grid li").first.wait_for()
    _looked_at(page, "batch_of_a_person", look)
    page.locator("#answer [data-act^='read:']").click()
    page.locator("#answer .lk-other", has_text="same answer for").wait_for()
    _looked_at(page, "batch_of_two_models", look)
    visit.act("people")
    page.locator("#answer .lk-progress", has_text=SOME_PREDICTED).wait_for()
    visit.act("stop")
    page.locator("#answer .lk-model", has_text="stopped after").wait_for()
    _looked_at(page, "batch_stopped", look)
    if FOLDER:
        visit.act("people")
        page.locator("#answer .lk-model", has_text="112 cells").wait_for()
        _looked_at(page, "batch_of_two_people", look)


@pytest.mark.parametrize("look", CHOSEN)
def test_four_classes_no_model_and_waiting(
    chromium: Any, visits: Callable[..., Any], server: str, four_classes: str, no_models: str, slow_server: str,
    files: Path, tmp_path: Path, look: str,
) -> None:  # fmt: skip
    visit = visits(address=four_classes, **LOOKS[look])
    _looked_at(visit.page, "four_classes", look)
    _given(visit, files / "blood.png")
    visit.shows("blood.png")
    visit.page.wait_for_function("!document.querySelector('.lk-working')")
    visit.act("view:map")
    visit.page.locator(".lk-handle").wait_for()
    _looked_at(visit.page, "four_classes_map", look)
    with watched(chromium, no_models, "#answer .lk-verdict", **LOOKS[look]) as page:
        _looked_at(page, "no_model", look)
    context = chromium.new_context(**LOOKS[look])
    context.route("**/queue/join*", lambda route: None)  # no model answers
    page = context.new_page()
    page.goto(server)
    page.locator(".lk-skeleton >> nth=0").wait_for()
    assert "Synthetic ALL" in page.locator("#picture").inner_text(), "the cell that is answered first"
    _looked_at(page, "empty_start", look)
    context.close()
    visit = visits(address=slow_server, **LOOKS[look])
    Image.fromarray(draw_cell("HEM", subject=3, cell=1, size=301).image).save(tmp_path / "slow.png")
    _given(visit, tmp_path / "slow.png")
    visit.page.locator("#answer", has_text="reading …").wait_for()
    _looked_at(visit.page, "waiting", look)


def test_who_waits_behind_another_visitor_is_told_so_and_is_answered_then(
    visits: Callable[..., Any], files: Path
) -> None:
    first, second = visits(), visits()
    _given(first, files / "36 cells.png")
    first.page.locator('[data-act="stop"]').wait_for()
    second.act("smear")
    second.page.locator("#answer", has_text="Waiting: another visitor’s pictures are being read first").wait_for()
    second.page.locator("#answer", has_text="whole white cell").wait_for()


def test_a_smear_can_be_stopped_while_it_is_read(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.act("smear")
    visit.act("stop")
    visit.page.locator("#answer", has_text="Stopped before it was read").wait_for()
    visit.act("smear")
    visit.page.locator("#answer", has_text="whole white cell").wait_for()
