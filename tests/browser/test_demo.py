"""The demo as a visitor meets it in a browser: every tab used by mouse, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import base64
import csv
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.prediction import EvidenceScale
from leukoscope.models.release import read_metrics
from leukoscope.synthetic import draw_cell, draw_field
from leukoscope.web.tabs.batch import sample_batch

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
TABS = ("Cells", "Evidence")
_SHORT = "document.querySelector('#cell-summary .lk-short')"
PHONE = {"viewport": {"width": 360, "height": 740}}


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    Image.fromarray(draw_cell("ALL", subject=4, cell=1).image).save(tmp_path / "my cell.png")
    return tmp_path / "my cell.png"


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A zip of labelled phantoms, one picture among them broken."""
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for label in ("ALL", "HEM"):
            for number in range(10):
                buffer = io.BytesIO()
                Image.fromarray(draw_cell(label, subject=number, cell=0).image).save(buffer, "PNG")
                archive.writestr(f"{label}/{label}{number}.png", buffer.getvalue())
        archive.writestr("ALL/broken.png", b"no picture")
    return tmp_path / "cells.zip"


def upload(visit: Any, path: Path, target: str = "upload") -> None:
    visit.page.locator(f"#{target} input[type=file]").first.set_input_files(str(path))


def drop(visit: Any, path: Path, target: str = "") -> None:
    """Drag a file or a folder onto an element, or to wherever the page is scrolled, and let it go there."""
    size, mouse = visit.page.viewport_size, visit.context.new_cdp_session(visit.page)
    box = visit.page.locator(target).bounding_box() if target else {"x": 0, "y": 0, **size}
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    dragged = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    visit.page.evaluate("window.dropped = 0; addEventListener('drop', () => { window.dropped = 1 }, {capture: true})")
    # While the page scrolls under the mouse, another element comes below it, and Chromium drops nothing there.
    for _ in range(100):
        for kind in ("dragEnter", "dragOver", "drop"):
            mouse.send("Input.dispatchDragEvent", {"type": kind, **place, "data": dragged})
        if visit.page.evaluate("window.dropped"):
            return
        visit.page.wait_for_timeout(200)
    pytest.fail("the page let nothing be dropped")


def hold(visit: Any, number: int) -> list[Any]:
    """The questions that the page asks from now on; that of this number, from 1, waits for the test to go on."""
    asked: list[Any] = []

    def ask(route: Any) -> None:
        asked.append(route)
        if len(asked) != number:
            route.continue_()

    visit.page.route("**/queue/join*", ask)
    return asked


def controls(visit: Any) -> int:
    """How many controls stand beside a result, without those under "More" and the cells of the visit."""
    return visit.page.locator("#cell-result :is(button, input, summary):not(#visit *) >> visible=true").count()


def unfold(visit: Any, name: str) -> None:
    """Open an accordion, as far as Gradio's last frame: it then sets anew what it was given while it was closed."""
    visit.page.locator(f"#{name} button").first.click()
    visit.page.evaluate("new Promise(frame => requestAnimationFrame(() => requestAnimationFrame(frame)))")
    visit.page.wait_for_timeout(200)  # the first time, the code of the components has to come, too


def overlay(visit: Any) -> str:
    return visit.page.locator("#pictures img").nth(1).get_attribute("src")


def saved(visit: Any, button: str) -> bytes:
    with visit.page.expect_download() as download:
        visit.page.locator(f"#{button}").click()
    return Path(download.value.path()).read_bytes()


def test_an_example_is_answered_before_any_click(visits: Callable[..., Any]) -> None:
    visit = visits(viewport={"width": 1280, "height": 720})
    assert "an example" in visit.page.locator("#pictures figcaption").first.inner_text()
    assert visit.page.locator("#cell-summary .lk-short").inner_text() == "Looks like a leukaemic blast"
    head = visit.page.locator("#notice").bounding_box()
    assert head["y"] + head["height"] <= 120
    for selector in (".lk-short", ".lk-track", "#cell-summary .lk-note", ".lk-stage", ".lk-tools", "#turn", "#upload"):
        box = visit.page.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] < 720, f"{selector} is on the first screen"
    assert visit.page.evaluate("window.shifted") < 0.1
    assert controls(visit) <= 5 and visit.page.locator("button.primary >> visible=true").count() <= 1
    assert visit.page.get_by_text("Privacy").is_visible() and not visit.page.get_by_text("Apache").is_hidden()
    assert visit.page.get_by_text("lies on this server's disk").is_hidden()


def test_the_map_stands_out_from_the_cell_and_its_strength_is_told(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example()
    shown = []
    for picture in visit.page.locator("#pictures img").all():
        content = base64.b64decode(picture.get_attribute("src").partition(",")[2])
        shown.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int))
    changed = abs(shown[0] - shown[1]).max(axis=2)[shown[0].max(axis=2) > 30]
    assert np.percentile(changed, 90) > 40, "of 255 levels, on the cell"
    release = read_metrics(Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc")
    if EvidenceScale.from_metrics(release).strong is None:  # measured on maps of another method
        assert visit.page.locator("#pictures .lk-chip").count() == 0
        return
    assert visit.page.locator("#pictures .lk-chip").inner_text() in ("weak map", "usual map", "strong map")
    before = visit.page.locator("#pictures .lk-scale span").inner_text()
    unfold(visit, "more")
    visit.page.get_by_label("One colour scale for all pictures").check()
    visit.page.wait_for_function(
        "old => document.querySelector('#pictures .lk-scale span').innerText != old", arg=before
    )


def test_the_map_is_drawn_over_the_cell_as_far_as_the_slider_says(visits: Callable[..., Any]) -> None:
    visit = visits()
    stage, moved = visit.page.locator(".lk-stage"), visit.page.locator(".lk-stage img").first
    assert "at: 50%" in stage.get_attribute("style")
    visit.page.locator(".lk-tools input").focus()
    for _ in range(10):
        visit.page.keyboard.press("ArrowLeft")
    assert "at: 40%" in stage.get_attribute("style")
    width = moved.bounding_box()["width"]
    stage.focus()
    visit.page.keyboard.press("+")
    assert moved.bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.01)
    left, box = moved.bounding_box()["x"], stage.bounding_box()
    _drag(visit, box, (100, 100), (130, 100))
    assert moved.bounding_box()["x"] == pytest.approx(left + 30, abs=2)
    stage.focus()
    visit.page.keyboard.press("-")
    assert moved.bounding_box()["width"] == pytest.approx(width, rel=0.01)


def _drag(visit: Any, box: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    visit.page.mouse.move(box["x"] + start[0], box["y"] + start[1])
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + end[0], box["y"] + end[1], steps=4)
    visit.page.mouse.up()


def test_the_divider_is_dragged_and_a_tap_covers_a_part(visits: Callable[..., Any]) -> None:
    visit = visits()
    stage = visit.page.locator(".lk-stage")
    box = stage.bounding_box()
    _drag(visit, box, (round(box["width"] / 2), 40), (round(box["width"] * 0.8), 40))
    (share,) = re.findall(r"--at: ([\d.]+)%", stage.get_attribute("style"))
    assert float(share) == pytest.approx(80, abs=2)
    assert visit.page.locator("#forms li").count() == 0, "a drag is no tap"
    stage.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    visit.page.locator("#forms li").nth(1).wait_for()
    assert "Without its" in visit.page.locator("#forms").inner_text()


def test_turned_and_covered_forms_stand_beside_the_result(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.page.locator("#turn").click()
    visit.page.locator("#forms li").nth(3).wait_for()
    assert visit.page.locator("#forms li span").all_inner_texts() == ["0°", "90°", "180°", "270°"]
    box = visit.page.locator("#forms").bounding_box()
    assert box["y"] < 900, "right below the result, not at the foot of the page"
    visit.page.locator("#cover").click()
    visit.page.locator("#forms", has_text="Without its nucleus").wait_for()
    assert visit.page.locator("#forms li").count() == 4
    cut = "[...document.querySelectorAll('#forms span')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert visit.page.evaluate(cut) == 0, "every caption is whole"


def test_an_address_opens_model_tab_and_example_and_a_visit_keeps_its_cells(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example(4)
    visit.page.wait_for_url("**/?model=leukoscope-densenet169-cnmc&tab=cell&example=5")
    visit.page.reload()
    visit.page.locator("#pictures figcaption", has_text="Synthetic HEM (an example)").wait_for()
    visit.page.locator("#visit [data-model]").wait_for(state="attached")
    visit.page.locator("#examples button").first.click()
    visit.page.locator("#visit li").nth(1).wait_for()
    visit.page.locator("#visit button").nth(1).click()
    visit.page.locator("#pictures figcaption", has_text="Synthetic HEM (an example)").wait_for()
    visit.page.goto(visit.page.url.split("?")[0] + "?model=leukoscope-densenet201-ball4&tab=evidence&example=2")
    visit.page.locator("#evidence section").first.wait_for()
    visit.tab("Cells")
    visit.page.locator("#pictures figcaption", has_text="Synthetic smear, Early").wait_for()


def test_a_permalink_says_at_once_what_it_waits_for(visits: Callable[..., Any], server: str) -> None:
    visit = visits()
    visit.page.add_init_script(_WATCH_PERMALINK)
    visit.page.goto(f"{server}?model=leukoscope-densenet201-ball4&example=2")
    visit.page.locator("#pictures figcaption", has_text="Synthetic smear, Early").wait_for()
    visit.page.locator("#smear-examples button").nth(3).wait_for()
    said = visit.page.evaluate("window.waited")
    assert any("Loading leukoscope-densenet201-ball4" in text for text in said), said
    assert "ball4" in visit.page.locator("#model input").input_value()


_WATCH_PERMALINK = """window.waited = []
new MutationObserver(() => {
  const text = document.querySelector('#cell-summary')?.innerText
  if (text && window.waited.at(-1) != text) window.waited.push(text)
}).observe(document, {subtree: true, childList: true, characterData: true})"""


def test_back_leads_to_the_example_and_the_tab_before(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.page.wait_for_url("**example=1**")
    visit.pick_example(3)
    visit.page.wait_for_url("**example=4**")
    visit.tab("Evidence")
    visit.page.wait_for_url("**tab=evidence**")
    visit.page.go_back()
    visit.page.wait_for_url("**tab=cell**")
    visit.page.locator("[role=tab][aria-selected=true]", has_text="Cells").wait_for()
    visit.page.go_back()
    visit.page.wait_for_url("**example=1**")
    visit.page.locator("#pictures figcaption", has_text="Synthetic ALL").wait_for()


def test_what_was_there_is_dimmed_as_soon_as_a_picture_is_chosen(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits()
    held: list[Any] = []
    visit.page.route("**/upload*", lambda route: held.append(route))  # no builtin: Playwright marks it
    with visit.page.expect_request("**/upload*"):
        upload(visit, cell)
    # While the upload is held.
    visit.page.wait_for_function(f"document.body.dataset.lkBusy && {_LOOK}.opacity < 0.5")
    assert visit.page.evaluate(_LOOK)["events"] == "none"
    # Another model would take the upload away without a word.
    picker = visit.page.locator("#model input")
    picker.focus()
    picker.press("ArrowDown")
    picker.press("Enter")
    assert "densenet169" in picker.input_value()
    # The picture before would be turned, and stand below the next one.
    visit.page.locator("#turn").press("Enter")
    visit.page.wait_for_timeout(1000)
    assert not visit.page.locator("#forms li").count()
    for route in held:  # the upload and the question how far it is
        route.continue_()
    visit.own_result()
    assert visit.page.evaluate(_LOOK) == {"opacity": 1, "events": "auto"}


_LOOK = """(() => { const style = getComputedStyle(document.getElementById('cell-result'))
  return {opacity: Number(style.opacity), events: style.pointerEvents} })()"""


def test_the_second_of_two_quick_clicks_counts(visits: Callable[..., Any]) -> None:
    visit = visits()
    held = hold(visit, 1)  # answered only after the second click
    visit.page.evaluate(_TWO_CLICKS)
    held[0].continue_()
    visit.page.wait_for_url("**example=5**")
    visit.page.locator("#pictures figcaption", has_text="Synthetic HEM").wait_for()


def test_a_cell_is_turned_before_another_picture_is_read(visits: Callable[..., Any], cell: Path) -> None:
    """Else its forms would stand below the other picture."""
    visit = visits()
    held = hold(visit, 1)
    visit.page.locator("#turn").click()
    while not held:
        visit.page.wait_for_timeout(50)
    visit.page.locator("#examples button").nth(4).click()
    upload(visit, cell)
    visit.page.wait_for_timeout(1000)
    assert "an example" in visit.page.locator("#pictures figcaption").first.inner_text(), "neither is read yet"
    held[0].continue_()
    visit.page.locator("#pictures figcaption", has_text="my cell.png").wait_for()
    visit.page.wait_for_function("!document.body.dataset.lkBusy")
    assert not visit.page.locator("#forms li").count()


def test_a_question_that_fails_leaves_the_page_as_it_was(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits()
    visit.page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "The queue is full."}))
    visit.page.locator("#examples button").nth(4).click()
    visit.page.wait_for_function("!document.body.dataset.lkBusy")
    visit.page.unroute("**/queue/join*")
    upload(visit, cell)
    visit.page.locator("#pictures figcaption", has_text="my cell.png").wait_for()


_TWO_CLICKS = """(async () => {
  for (const number of [1, 4]) {
    document.querySelectorAll('#examples button')[number].click()
    await new Promise((done) => setTimeout(done, 80))
  }
})()"""


def test_a_result_that_comes_while_the_one_before_is_kept_is_kept_too(visits: Callable[..., Any]) -> None:
    visit = visits()
    asked = hold(visit, 2)  # what keeps a pick's answer gets through, but not back
    visit.page.locator("#examples button").nth(1).click()
    while len(asked) < 2:
        visit.page.wait_for_timeout(50)
    answer = asked[1].fetch()
    visit.page.wait_for_timeout(2000)
    visit.page.locator("#examples button").nth(4).click()
    visit.page.locator("#pictures figcaption", has_text="Synthetic HEM").wait_for()
    visit.page.wait_for_function("!document.body.dataset.lkBusy")
    asked[1].fulfill(response=answer)
    visit.page.wait_for_url("**example=5**")


def test_a_server_that_is_gone_is_told_in_place_of_the_result(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits()
    visit.page.locator("#ask-batch").click()
    visit.page.locator(".lk-subject svg").nth(1).wait_for()
    visit.page.wait_for_function("!location.search.includes('example')")
    visit.context.set_offline(True)
    upload(visit, cell)
    visit.page.locator("#offline", has_text="cannot be reached").wait_for()
    for stale in ("#cell-result", "#batch", ".toast-wrap"):
        assert not visit.page.locator(stale).is_visible(), "no result of other cells beside it, no second message"
    visit.context.set_offline(False)
    visit.page.locator("#examples button").nth(1).click()
    visit.page.locator("#cell-result").wait_for()
    assert not visit.page.locator("#offline").is_visible()


def test_one_cell_of_a_smear_is_cut_out_and_a_refused_one_has_no_class_s_map(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    drawn = draw_field(("ALL",), size=(360, 360), um_per_pixel=0.12, red_cells=22, scale_bar=False, seed=3)
    warm = (drawn.image.astype(np.float32) * (1.0, 0.86, 0.74)).astype(np.uint8)  # of another laboratory
    Image.fromarray(warm).save(tmp_path / "lymphocyte.png")
    visit = visits()
    upload(visit, tmp_path / "lymphocyte.png")
    visit.own_result()
    said = visit.page.locator("#cell-summary").inner_text()
    assert "Cut out of your picture, as the training cells are." in said and "Not a" not in said
    assert visit.page.locator("#pictures figcaption").inner_text().startswith("Cell 1 of lymphocyte.png")
    assert visit.page.locator("#cell-summary .lk-range").count() == 3
    assert "Map for" not in visit.page.locator("#pictures").inner_text()
    assert controls(visit) <= 5, "nothing is turned or covered that has no class"
    visit.page.locator("#propose").click()
    visit.page.wait_for_function("document.querySelector('#model input').value.includes('ball4')")


def test_what_is_proposed_for_a_field_stays_when_one_of_its_cells_is_opened(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    drawn = draw_field(("ALL", "HEM"), size=(480, 640), um_per_pixel=0.12, red_cells=50, scale_bar=False, seed=3)
    warm = (drawn.image.astype(np.float32) * (1.0, 0.86, 0.74)).astype(np.uint8)
    Image.fromarray(warm).save(tmp_path / "smear.png")
    visit = visits()
    upload(visit, tmp_path / "smear.png")
    visit.page.locator("#propose").wait_for()
    visit.page.locator("#field-picture button.lk-box").first.click()
    visit.own_result()
    assert visit.page.locator("#propose").inner_text() == "Read it with densenet201-ball4"
    visit.page.locator("#propose").click()
    visit.page.locator("#pictures figcaption", has_text=re.compile(r"^smear\.png")).wait_for()
    visit.page.locator("#smear-examples button").nth(3).wait_for()


def test_a_folder_and_a_file_can_be_dropped_anywhere(visits: Callable[..., Any], tmp_path: Path, cell: Path) -> None:
    folder = tmp_path / "Anna Schmidt"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(draw_cell("ALL", subject=1, cell=number).image).save(folder / f"zelle{number}ä.png")
    visit = visits()
    drop(visit, folder, "#upload")
    visit.page.locator(".lk-subject h3", has_text="Anna Schmidt").wait_for()
    assert "Cells predicted: 4." in visit.page.locator("#batch-summary").inner_text()
    drop(visit, cell)
    visit.page.locator("#pictures figcaption", has_text="my cell.png").wait_for()


def test_files_given_while_an_answer_is_computed_are_read_next(
    visits: Callable[..., Any], tmp_path: Path, cell: Path
) -> None:
    visit = visits()
    held: list[Any] = []
    holding = [True]  # no answer before all are given
    visit.page.route("**/queue/join*", lambda route: held.append(route) if holding else route.continue_())
    upload(visit, cell)
    visit.page.wait_for_function("document.body.dataset.lkBusy")
    for number in (1, 2):
        Image.fromarray(draw_cell("HEM", subject=number, cell=1).image).save(tmp_path / f"later {number}.png")
        drop(visit, tmp_path / f"later {number}.png")
    while not held:
        visit.page.wait_for_timeout(50)
    holding.clear()
    for route in held:
        route.continue_()
    visit.page.locator("#pictures figcaption", has_text="later 2.png").wait_for()
    visit.page.locator("#visit li").nth(3).wait_for()
    names = visit.page.locator("#visit li span").all_inner_texts()
    assert names[:3] == ["later 2.png", "later 1.png", "my cell.png"], "each in its turn"


def test_a_picture_of_16_bits_and_a_large_photo_are_read(visits: Callable[..., Any], tmp_path: Path) -> None:
    deep = Image.fromarray(draw_cell("ALL", subject=4, cell=1).image).convert("L")
    Image.fromarray(np.asarray(deep, np.uint16) * 16).save(tmp_path / "deep.tif")
    drawn = draw_field(("ALL", "HEM"), size=(480, 640), um_per_pixel=0.12, red_cells=50, scale_bar=False, seed=3)
    Image.fromarray(drawn.image).resize((4000, 3000)).save(tmp_path / "phone.jpg")
    visit = visits()
    upload(visit, tmp_path / "deep.tif")
    visit.page.locator("#cell-summary", has_text="Converted from 16 bits a channel to 8.").wait_for()
    upload(visit, tmp_path / "phone.jpg")
    visit.page.locator("#field-picture button.lk-box").nth(1).wait_for()


def test_on_a_phone_the_pictures_follow_their_title_and_there_is_one_notice(visits: Callable[..., Any]) -> None:
    visit = visits(**PHONE)
    title, pictures = (visit.page.locator(one).bounding_box() for one in ("#pick-one", "#examples"))
    assert 0 <= pictures["y"] - title["y"] - title["height"] < 40
    assert visit.page.locator(".lk-notice >> visible=true").count() == 1
    visit.page.locator("#ask-field").click()
    visit.page.locator("#field-picture .lk-box").first.wait_for()
    assert visit.page.locator(".lk-notice >> visible=true").count() == 1


def test_on_a_phone_the_progress_of_many_cells_and_their_result_are_seen(visits: Callable[..., Any]) -> None:
    visit = visits(**PHONE)
    visit.page.locator("#ask-batch").evaluate("one => one.click()")
    visit.page.locator("#batch-summary progress").wait_for()
    visit.page.wait_for_function(_SEEN, arg=["#batch-summary progress", 1])
    visit.page.locator(".lk-subject svg").nth(1).wait_for()
    visit.page.wait_for_function(_SEEN, arg=["#batch-summary .lk-headline", 0.7])


_SEEN = """([selector, most]) => {
  const box = document.querySelector(selector)?.getBoundingClientRect()
  return box && box.top >= 0 && box.top < innerHeight * most
}"""


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_all_tabs_are_seen_at_every_width(visits: Callable[..., Any], width: int) -> None:
    visit = visits(viewport={"width": width, "height": 740})
    shown = visit.page.get_by_role("tab").locator("visible=true").all_inner_texts()
    assert [name.strip() for name in shown] == list(TABS)
    assert visit.width() <= width
    assert visit.page.locator(".lk-head p").bounding_box()["height"] < 60, "not one letter a line"
    head = visit.page.locator("#notice").bounding_box()
    assert head["y"] + head["height"] <= 120
    # The decision and what it rests on are on the first screen of a phone, too.
    box = visit.page.locator("#cell-summary .lk-track").bounding_box()
    assert box["y"] + box["height"] < 740
    # So are the examples: who has no picture of a cell at hand can go on.
    box = visit.page.locator("#examples button").last.bounding_box()
    assert box["y"] + box["height"] < 740
    assert visit.page.evaluate("window.shifted") < 0.1


def test_an_upload_is_judged_and_shown(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits()
    refused: list[str] = []
    visit.page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    upload(visit, cell)
    visit.own_result()
    assert visit.page.locator("#cell-summary .lk-bars li").count() == 2
    assert visit.page.locator("#pictures figcaption").first.inner_text().startswith("my cell.png.")
    unfold(visit, "more")
    visit.page.locator("#explanation", has_text="of the map for").wait_for()
    assert refused == [], "the page shows the upload until the result is there"


def test_class_and_operating_point_change_what_is_shown(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example()
    unfold(visit, "more")
    assert visit.page.get_by_label("Decide at").input_value() == "the most probable class"
    before, said = overlay(visit), visit.page.locator("#cell-summary .lk-short").inner_text()
    visit.page.get_by_role("radio", name="HEM").check()
    visit.page.wait_for_function("old => document.querySelectorAll('#pictures img')[1].src != old", arg=before)
    visit.page.get_by_label("Decide at").click()
    visit.page.get_by_role("option", name="95 %-specificity threshold").click()
    visit.page.wait_for_function("old => document.querySelector('#cell-summary .lk-short').innerText != old", arg=said)
    assert "95 %-specificity" in visit.page.locator("#cell-summary").inner_text().replace("\u00a0", " ")
    visit.page.get_by_label("Decide at").click()
    visit.page.get_by_role("option", name="the most probable class").click()
    visit.page.wait_for_function("old => document.querySelector('#cell-summary .lk-short').innerText == old", arg=said)


def test_a_picture_without_a_class_shows_its_probabilities_only_when_they_are_unfolded(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    headline = "Out of distribution: no class is given."
    Image.new("RGB", (450, 450), "white").save(tmp_path / "given.png")
    visit = visits()
    upload(visit, tmp_path / "given.png")
    visit.own_result()
    assert visit.page.locator("#cell-summary .lk-headline").inner_text() == headline
    assert "(OOD score" in visit.page.locator("#cell-summary").inner_text()
    assert visit.page.locator("#cell-summary .lk-bars li").count() == 2
    assert not visit.page.locator("#cell-summary .lk-bars").is_visible()
    visit.page.get_by_text("Probabilities: no result for this picture").click()
    assert visit.page.locator("#cell-summary .lk-bars").is_visible()
    # No operating point makes a class of it.
    unfold(visit, "more")
    visit.page.get_by_label("Decide at").click()
    visit.page.get_by_role("option", name="95 %-sensitivity threshold").click()
    with Image.open(io.BytesIO(saved(visit, "save-result"))) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Description"].startswith(headline)
    assert visit.page.locator("#cell-summary .lk-headline").inner_text() == headline


def test_a_model_of_smears_is_offered_smears(visits: Callable[..., Any]) -> None:
    visit = visits()
    assert not visit.page.locator("#smear-examples").is_visible()
    visit.page.locator("#model input").click()
    visit.page.get_by_role("option", name="densenet201-ball4").click()
    visit.page.locator("#smear-examples button").nth(3).wait_for()
    assert not visit.page.locator("#examples").is_visible()
    assert not visit.page.locator("#ask-field").is_visible(), "it reads no fields"
    visit.page.wait_for_url("**model=leukoscope-densenet201-ball4**")  # the first example's answer has come
    visit.pick_example(3, "smear-examples")
    visit.page.locator("#pictures figcaption", has_text="Synthetic smear, Pro").wait_for()
    assert "pro-B blast" in visit.page.locator("#cell-summary .lk-short").inner_text()
    assert "Out of distribution" not in visit.page.locator("#cell-summary").inner_text()
    visit.tab("Guess first")
    visit.page.locator("#guess-start").click()
    visit.page.locator("#guess .lk-message", has_text="choose a model of ALL and HEM").wait_for()
    assert visit.page.locator("#guess-start").is_visible()
    visit.tab("Evidence")
    visit.page.locator("#evidence-points", has_text="names no operating points").wait_for()
    visit.page.get_by_label("Sensitivity wanted").first.wait_for(state="hidden")


def test_the_slider_changes_pixels(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example()
    before = overlay(visit)
    unfold(visit, "more")
    slider = visit.page.get_by_role("slider", name="Opacity")
    slider.focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowLeft")
    visit.page.wait_for_function("old => document.querySelectorAll('#pictures img')[1].src != old", arg=before)


def test_a_result_is_saved_whole(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example()
    with Image.open(io.BytesIO(saved(visit, "save-result"))) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert "model leukoscope-densenet169-cnmc" in image.text["Source"]
        pixels = np.asarray(image.convert("RGB"))
    # The probability bar and, below the pictures, the colour scale.
    assert (pixels == (0x6B, 0x3F, 0xA0)).all(axis=2).sum(axis=1).max() > 300
    below = np.unique(pixels[480:520].reshape(-1, 3), axis=0).astype(int)
    assert ((below[:, 0] - below[:, 2]) > 100).sum() > 20


def test_a_cell_of_a_field_opens_in_one_cell(visits: Callable[..., Any], tmp_path: Path) -> None:
    drawn = draw_field(("ALL", "HEM", "ALL"), size=(480, 640), um_per_pixel=0.12, red_cells=50, scale_bar=False, seed=3)
    Image.fromarray(drawn.image).save(tmp_path / "smear.png")
    visit = visits()
    upload(visit, tmp_path / "smear.png")
    visit.page.locator("#field-picture button.lk-box").nth(2).wait_for()
    rows = list(csv.DictReader(io.StringIO(saved(visit, "save-field-csv").decode())))
    assert len(rows) == visit.page.locator("#field-picture .lk-box").count() == 3
    visit.page.locator("#field-picture button.lk-box").nth(1).click()
    visit.own_result()
    assert visit.page.locator("#pictures figcaption").first.inner_text().startswith("Cell 2 of smear.png.")
    # The decision is that of the field.
    outcome, said = rows[1]["outcome"], visit.page.locator("#cell-summary").inner_text()
    assert {"abstain": "Not sure", "out of distribution": "Out of distribution"}.get(outcome, outcome) in said
    assert visit.page.locator("#field-picture button.lk-box").nth(1).is_visible(), "the field stays"
    # The strip is sorted in the browser.
    visit.page.locator("#field-cells select").select_option("area")
    areas = visit.page.locator("#field-cells li").evaluate_all("all => all.map(one => Number(one.dataset.area))")
    assert areas == sorted(areas, reverse=True)


def test_the_notice_covers_neither_the_decision_of_a_field_s_cell_nor_a_print(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.page.locator("#ask-field").click()
    visit.page.locator("#field-picture button.lk-box").nth(4).wait_for()
    visit.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    visit.page.locator("#field-picture button.lk-box").nth(1).dispatch_event("click")
    visit.page.locator("#pictures figcaption", has_text="Cell 2 of Synthetic field").wait_for()
    visit.page.wait_for_function(
        f"() => {_SHORT}.getBoundingClientRect().top >= "
        "document.getElementById('notice').getBoundingClientRect().bottom - 1"
    )
    assert visit.page.evaluate(f"{_SHORT}.getBoundingClientRect().top < innerHeight / 2")
    visit.page.emulate_media(media="print")
    assert visit.page.evaluate("getComputedStyle(document.getElementById('notice')).position") == "static"


def test_a_printed_result_takes_one_page(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example()
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", visit.page.pdf(format="A4"))) == 1
    visit.page.emulate_media(media="print")
    assert visit.page.locator("#cell-summary .lk-short").is_visible() and visit.page.locator(".lk-stage").is_visible()


def test_a_second_result_leaves_no_empty_box(visits: Callable[..., Any]) -> None:
    visit = visits()
    empty = visit.page.locator("[aria-label='Empty value'] >> visible=true")  # Gradio's {…}
    for number in (1, 2):
        visit.pick_example(number)
        visit.page.wait_for_timeout(1000)
        assert empty.count() == 0
    for _ in range(2):
        visit.page.locator("#ask-field").click()
        visit.page.locator("#field-picture img[alt^='Synthetic field']").wait_for()
        visit.page.wait_for_function("!document.body.dataset.lkBusy")
        visit.page.wait_for_timeout(1000)
        assert empty.count() == 0


def test_another_model_reads_what_is_shown_again(visits: Callable[..., Any]) -> None:
    visit = visits()

    def choose(name: str) -> None:
        visit.page.locator("#model input").click()
        visit.page.get_by_role("option", name=name).click()

    visit.page.locator("#ask-field").click()
    visit.page.locator("#field-picture button.lk-box").nth(1).click()
    visit.page.locator("#pictures figcaption", has_text="Cell 2 of Synthetic field").wait_for()
    choose("ball4")
    visit.page.locator("#pictures figcaption", has_text=re.compile("^Synthetic field")).wait_for()
    assert not visit.page.locator("#field-picture .lk-box").first.is_visible(), "it is no reading of this model"
    choose("cnmc")
    visit.page.locator("#field-picture button.lk-box").first.wait_for()
    visit.page.locator("#ask-batch").click()
    visit.page.locator("#batch-gallery img").first.wait_for()
    choose("ball4")
    visit.page.locator("#batch-summary", has_text="ball4").wait_for()
    visit.page.locator("#batch-gallery img").first.wait_for()


def test_the_subjects_of_an_unpacked_data_set_are_found_within_its_folders(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "C-NMC.zip", "w") as archive:
        for number in range(8):
            label, subject = ("all", f"{number % 2 + 1}") if number < 4 else ("hem", f"H{number % 2 + 1}")
            buffer = io.BytesIO()
            Image.fromarray(draw_cell(label.upper(), subject=number, cell=0).image).save(buffer, "PNG")
            archive.writestr(f"{label.upper()}/UID_{subject}_{number}_1_{label}.png", buffer.getvalue())
    visit = visits()
    upload(visit, tmp_path / "C-NMC.zip", "upload")
    visit.page.locator(".lk-subject svg").nth(3).wait_for()
    unfold(visit, "batch-more")
    assert visit.page.locator("#batch-pattern textarea, #batch-pattern input").input_value() == r"UID_(H?\d+)_"
    assert visit.page.locator(".lk-subject h3").all_inner_texts() == ["1", "2", "H1", "H2"]
    assert "--" not in visit.page.locator("#batch-summary").inner_text()


def test_a_batch_shows_progress_errors_and_a_table_to_keep(visits: Callable[..., Any], cells: Path) -> None:
    visit = visits()
    visit.page.evaluate(_WATCH_PROGRESS)
    upload(visit, cells)
    visit.page.locator("#batch-gallery .lk-cells li").nth(19).wait_for()
    assert visit.page.evaluate("window.progress")
    said = visit.page.locator("#batch-summary").inner_text()
    assert "Cells predicted: 20." in said and "Measured on your labels" in said
    assert "ALL/broken.png: is not an image" in said
    rows = list(csv.DictReader(io.StringIO(saved(visit, "save-batch-csv").decode())))
    assert [row["label"] for row in rows] == ["ALL"] * 10 + ["HEM"] * 10
    for outcome in ("ALL", "HEM", "abstain", "out of distribution"):
        count = sum(row["outcome"] == outcome for row in rows)
        assert f"{outcome}\n{count}\n" in said.replace("\n\n", "\n")
    first = visit.page.locator("#batch-gallery li").first.inner_text()
    unfold(visit, "batch-more")
    visit.page.locator("#batch-pattern").get_by_role("textbox").fill(r"(\d)\.png$")
    visit.page.keyboard.press("Enter")
    visit.page.locator("#batch-summary", has_text="One prediction for a subject").wait_for()
    visit.page.locator("#batch-order input").click()
    visit.page.get_by_role("option", name="the least confident").click()
    visit.page.wait_for_function("old => document.querySelector('#batch-gallery li').innerText != old", arg=first)


@pytest.mark.parametrize("phone", [False, True])
def test_subjects_go_from_a_zip_to_a_report_on_two_pages(
    visits: Callable[..., Any], chromium: Any, tmp_path: Path, phone: bool
) -> None:
    with zipfile.ZipFile(tmp_path / "subjects.zip", "w") as archive:
        for file in sample_batch().files:
            archive.writestr(file.name, file.read())
    visit = visits(**PHONE) if phone else visits()
    upload(visit, tmp_path / "subjects.zip", "upload")
    visit.page.locator(".lk-subject svg").nth(1).wait_for()
    unfold(visit, "batch-more")
    assert visit.page.locator("#batch-pattern textarea, #batch-pattern input").input_value() != ""
    answer = visit.page.locator("#batch-summary")
    assert "2 subjects" not in answer.inner_text(), "the progress gave way to the result"
    assert visit.page.locator(".lk-subject").count() == 2
    assert "too few cells" not in answer.inner_text(), "the sample holds enough cells of each subject"
    assert visit.width() <= (360 if phone else 1280)

    assert visit.page.locator(".lk-parcel").count() and not visit.page.locator(".lk-parcel >> visible=true").count()
    visit.page.locator("#report-name").get_by_role("textbox").fill("Sample 7")
    (tmp_path / "report.html").write_bytes(saved(visit, "save-report"))
    visit.page.locator("#report-subject input").click()
    visit.page.get_by_role("option", name="synthetic-2").click()
    visit.page.wait_for_function("!document.querySelector('#report-name :is(input, textarea)').value")
    page = chromium.new_page()
    page.set_default_timeout(120_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("h1").inner_text() == "Report on the cells of Sample 7"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4", prefer_css_page_size=True))) <= 2
    page.close()

    dot = visit.page.locator(".lk-subject circle[data-cell]").nth(5)
    number = int(dot.get_attribute("data-cell"))
    dot.dispatch_event("click")
    visit.own_result()
    names = [file.name for file in sample_batch().files]
    assert visit.page.locator("#pictures figcaption").first.inner_text().startswith(f"{names[number]}.")


def test_a_batch_can_be_stopped(visits: Callable[..., Any]) -> None:
    visit = visits()
    assert not visit.page.locator("#batch-stop").is_visible(), "nothing runs"
    visit.page.locator("#ask-batch").click()
    visit.page.get_by_text("pictures predicted").first.wait_for()
    visit.page.locator("#batch-stop").click()
    visit.page.get_by_text("Stopped. Nothing of it was kept.").wait_for()
    visit.page.locator("#batch-stop").wait_for(state="hidden")
    visit.page.wait_for_function("!document.body.dataset.lkBusy")  # what is said is not dimmed
    visit.page.locator("#ask-batch").click()
    visit.page.locator(".lk-subject svg").nth(1).wait_for()
    # It has ended: to stop it now would delete its result.
    visit.page.locator("#batch-stop").wait_for(state="hidden")


# Progress passes too quickly to be waited for.
_WATCH_PROGRESS = """() => new MutationObserver(() => {
  if (/ of 21 pictures predicted/.test(document.querySelector('#batch-summary')?.innerText)) window.progress = true
}).observe(document.body, {subtree: true, childList: true, characterData: true})"""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.png", b"not a picture", "text.png: is not an image"),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page.png: is not an image"),
        ("empty.png", b"\n", "empty.png: is not an image"),
    ],
)
def test_a_bad_file_is_one_kind_message(
    visits: Callable[..., Any], tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    visit = visits()
    upload(visit, tmp_path / name)
    visit.page.locator("#cell-summary .lk-message").wait_for()
    assert said in visit.page.locator("#cell-summary").inner_text()
    visit.pick_example()


def test_a_file_that_is_no_picture_takes_the_place_of_the_result(visits: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4")
    visit = visits()
    upload(visit, tmp_path / "report.pdf")
    visit.page.get_by_text("report.pdf: is not an image; give one of BMP").wait_for()
    assert visit.page.locator("#pictures img").count() == 0


def test_another_model_is_loaded_without_a_percentage(visits: Callable[..., Any]) -> None:
    visit = visits()
    assert "subjects it has not seen" in visit.page.locator("#about-model").inner_text()
    assert visit.page.locator("#about-model a").get_attribute("href").startswith("?model=")
    visit.page.evaluate(_WATCH_LOADING)
    visit.page.locator("#model input").click()
    visit.page.get_by_role("option", name="densenet201-ball4").click()
    visit.page.locator("#smear-examples button").nth(3).wait_for()
    assert visit.page.evaluate("window.percentages") == 0
    visit.page.locator("#about-model", has_text="its data names none").wait_for()


# A percentage that stands still tells nothing of a model that is being loaded.
_WATCH_LOADING = """() => { window.percentages = 0
  new MutationObserver(() => {
    for (const one of document.querySelectorAll('.progress-text, .progress-level-inner, .eta-bar, .meta-text'))
      if (/%/.test(one.innerText)) window.percentages += 1
  }).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""


def test_without_a_network_real_cells_are_refused_in_one_sentence(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.page.locator("#ask-real-cells").click()
    visit.page.get_by_text("cannot be streamed from the Hub").wait_for()
    assert visit.page.evaluate(_LOOK) == {"opacity": 1, "events": "auto"}, "the result stays"
    visit.pick_example()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visits: Callable[..., Any], scheme: str) -> None:
    visit = visits(color_scheme=scheme)
    visit.pick_example()
    body = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_luminance(body) < 0.1) == (scheme == "dark")
    for selector in ("#cell-summary .lk-short", ".lk-bars li", "#notice .lk-notice", ".lk-note"):
        ink, ground = visit.page.evaluate(_COLOURS, selector)
        assert _contrast(ink, ground) >= 4.5, f"{selector}: {ink} on {ground}"


# The colour of an element's text and the first opaque ground behind it.
_COLOURS = """(selector) => {
  let element = document.querySelector(selector)
  const ink = getComputedStyle(element).color
  while (element && /^rgba\\(.*, 0\\)$|transparent/.test(getComputedStyle(element).backgroundColor))
    element = element.parentElement
  return [ink, getComputedStyle(element || document.body).backgroundColor]
}"""


def _luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of a CSS rgb() colour."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(ink: str, ground: str) -> float:
    darker, lighter = sorted((_luminance(ink), _luminance(ground)))
    return (lighter + 0.05) / (darker + 0.05)


def test_nothing_is_wider_than_a_phone(visits: Callable[..., Any], cells: Path) -> None:
    visit = visits(**PHONE)
    for name in TABS:
        _fill(visit, name, cells)
        assert visit.width() <= 360, name


def _fill(visit: Any, name: str, cells: Path) -> None:
    """Open a tab and have it show a result."""
    visit.tab(name)
    if name == "Cells":
        upload(visit, cells)
        visit.page.locator("#batch-gallery .lk-cells").wait_for()
        visit.page.locator("#ask-field").click()
        visit.page.locator("#field-picture .lk-box").first.wait_for()
        visit.page.locator("#field-picture button").first.click()
        visit.own_result()
        visit.page.locator("#turn").click()
        visit.page.locator("#forms li").first.wait_for()
        unfold(visit, "more")
    if name == "Evidence":
        visit.page.locator("#card h1").first.wait_for()


def test_the_keyboard_alone_is_enough(visits: Callable[..., Any]) -> None:
    visit = visits()
    _press_until(visit, "document.activeElement.closest('#examples')")
    visit.page.keyboard.press("Enter")
    visit.own_result()
    visit.page.locator("body").click(position={"x": 2, "y": 2})
    _press_until(visit, "document.activeElement.getAttribute('role') == 'tab'")
    _press_until(visit, "document.activeElement.id == 'ask-field'")
    visit.page.keyboard.press("Enter")
    visit.page.locator("#field-picture button.lk-box").first.wait_for()
    _press_until(visit, "document.activeElement.dataset.cell == '0'")
    visit.page.keyboard.press("Enter")
    visit.page.locator("#pictures figcaption", has_text="Cell 1 of Synthetic field").wait_for()


def _press_until(visit: Any, condition: str) -> None:
    """Press Tab until the focus is where it should be."""
    for _ in range(80):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate(f"Boolean({condition})"):
            return
    pytest.fail(f"80 presses of Tab never reach: {condition}")


def test_everything_has_a_name_for_a_screen_reader(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.pick_example()
    nameless = visit.page.evaluate(
        "[...document.querySelectorAll('img')].filter(e => e.getAttribute('alt') === null).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert visit.page.title() == "Leukoscope"
    assert visit.page.locator("h1").count() == 1
    assert visit.page.evaluate("document.documentElement.lang")


@pytest.mark.parametrize("look", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing_serious(visits: Callable[..., Any], cells: Path, look: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra test")
    visit = visits(**look)
    serious = []
    for name in TABS:
        _fill(visit, name, cells)
        visit.page.wait_for_function(_STANDS_STILL)
        # What lies under the notice would be judged on its colour.
        visit.page.evaluate("scrollTo(0, 0)")
        found = axe.Axe().run(visit.page, options={"resultTypes": ["violations"]}).response["violations"]
        serious += [
            f"{name}: {finding['id']}: {node['failureSummary']} {node['html'][:200]}"
            for finding in found
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]
    assert serious == []


# Gradio fades what is about to change; some of its icons turn for ever.
_STANDS_STILL = """() => !document.querySelector('.pending, .generating')
  && document.getAnimations().every(
    one => one.playState != 'running' || one.effect.getComputedTiming().endTime == Infinity)"""


def test_two_visitors_do_not_see_each_other(visits: Callable[..., Any], cell: Path) -> None:
    first, second = visits(), visits()
    upload(first, cell)
    second.page.locator("#examples button").nth(3).click()
    for visit in (first, second):
        visit.own_result()
    assert first.page.locator("#pictures figcaption").first.inner_text().startswith("my cell.png.")
    assert second.page.locator("#pictures figcaption").first.inner_text().startswith("Synthetic HEM.")
    unfold(first, "more")
    first.page.get_by_role("radio", name="HEM").check()
    first.page.locator("#pictures .lk-scale", has_text="Map for HEM").wait_for()
    assert "my cell.png" not in second.page.content()
