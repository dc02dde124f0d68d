"""The demo as a visitor meets it in a browser: by mouse, by keyboard, on a phone, in the dark, without a server."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from leukoscope import RESEARCH_NOTICE
from leukoscope.synthetic import draw_cell, example_cell, example_smear, smear_picture
from zips import cell_png, pack

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
SLOW_SECONDS = 6  # of `slow_server`
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LAPTOP = {"viewport": {"width": 1280, "height": 720}}
SAID = "#answer .lk-dot"
VERDICT = "#answer .lk-verdict"


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A picture that the models give a class."""
    Image.fromarray(example_cell("ALL", 0)).save(tmp_path / "my cell.png")
    return tmp_path / "my cell.png"


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A zip of labelled phantoms, one picture among them broken."""
    files = {f"{label}/P{n}/1.png": cell_png(label, n) for label in ("ALL", "HEM") for n in range(10)}
    return Path(pack(tmp_path / "cells.zip", {**files, "ALL/P0/broken.png": b"no picture"}))


def upload(visit: Any, path: Path) -> None:
    visit.page.locator("#upload input[type=file]").first.set_input_files(str(path))


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


def saved(visit: Any, act: str) -> bytes:
    with visit.page.expect_download() as download:
        visit.act(act)
    return Path(download.value.path()).read_bytes()


def in_view(visit: Any, *selectors: str) -> None:
    """Each of these is seen without scrolling."""
    height = visit.page.viewport_size["height"]
    for selector in selectors:
        box = visit.page.locator(selector).first.bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= height, f"{selector}: {box}"


# The stage


@pytest.mark.parametrize("look", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_an_example_is_answered_by_every_model_before_any_click(
    visits: Callable[..., Any], look: dict[str, Any]
) -> None:
    visit = visits(**look)
    assert "Synthetic ALL" in visit.page.locator("#picture .lk-caption").inner_text()
    assert visit.page.locator(VERDICT).inner_text() == "Looks like a leukaemic blast"
    assert visit.page.locator("button.lk-other").count() == 0, "a model of smears does not know a cell on black"
    in_view(visit, ".lk-notice", ".lk-views", "#picture .lk-both", VERDICT, "#answer .lk-bar", ".lk-orientations")
    if look is LAPTOP:
        in_view(visit, ".lk-trust", ".lk-acts", ".lk-give", ".lk-tile", ".lk-foot p")
        picture, answer = (visit.page.locator(part).bounding_box() for part in ("#picture", "#answer"))
        assert picture["width"] / answer["width"] == pytest.approx(7 / 6, rel=0.02)
    else:
        picture, answer = (visit.page.locator(part).bounding_box() for part in ("#picture", "#answer"))
        assert picture["width"] == answer["width"] == 390 and picture["y"] + picture["height"] <= answer["y"] + 1
    assert visit.page.evaluate("window.shifted") <= 0.02 and visit.page.title() == "Leukoscope"
    said = visit.page.locator("#answer").inner_text().split()
    assert len(said) <= 90, "words of a cell's answer, all details closed"
    assert visit.page.get_by_text("No visit is logged").is_hidden()
    words = visit.page.evaluate("document.body.textContent.replace(/<[^>]*>/g, ' ').split(/\s+/).length")
    assert words <= 1200


def test_a_row_opens_and_the_map_is_shown_as_far_as_the_slider_says(visits: Callable[..., Any], tmp_path: Path) -> None:
    visit = visits(**LAPTOP)
    visit.act("view:map")
    slider, stage = visit.page.locator("#picture .lk-handle"), visit.page.locator("#picture .lk-both")
    slider.wait_for()
    assert "maps failed our checks" in visit.page.locator(".lk-bottom").inner_text()
    assert slider.get_attribute("role") == "slider" and slider.get_attribute("aria-valuenow") == "50"
    shares = []
    for key, place in (("End", "100"), ("Home", "0")):
        slider.press(key)
        assert slider.get_attribute("aria-valuenow") == place
        with Image.open(io.BytesIO(stage.screenshot())) as image:
            pixels = np.asarray(image.convert("RGB"))
        shares.append(((pixels > (150, 60, -1)) & (pixels < (256, 256, 120))).all(axis=2).mean())
    assert shares[1] > shares[0] + 0.01, "the map lies to the right of the divider"
    box = stage.bounding_box()
    visit.page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    visit.page.mouse.up()
    assert 45 <= int(slider.get_attribute("aria-valuenow")) <= 55
    handle = slider.bounding_box()
    assert handle["x"] + handle["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=8), "where the line is"
    for act, forms in (("label:HEM", 0), ("view:turned", 8), ("view:covered", 4)):
        visit.act(act)
        # Two clicks within milliseconds may reach the server in any order.
        visit.page.locator(f'[data-act="{act}"][aria-pressed=true]').wait_for()
        if forms:
            visit.page.locator("#picture .lk-forms li").nth(forms - 1).wait_for()
            in_view(visit, "#picture .lk-forms", "#picture .lk-forms li >> nth=-1")
    with Image.open(io.BytesIO(saved(visit, "save:png"))) as image:
        assert isinstance(image, PngImageFile) and image.text["Disclaimer"] == RESEARCH_NOTICE
        assert "not why" in image.text["Description"], "what the page says of the map"
    Image.effect_noise((400, 400), 80).convert("RGB").save(tmp_path / "noise.png")
    upload(visit, tmp_path / "noise.png")
    visit.page.locator("button.lk-other").wait_for()
    visit.act("row:1")
    visit.page.locator(".lk-model", has_text="densenet201-ball4").wait_for()


@pytest.mark.parametrize("look", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_what_is_opened_moves_neither_verdict_nor_button(visits: Callable[..., Any], look: dict[str, Any]) -> None:
    """The verdict left the window, the button its row; on a phone each view of the cell had a height of its own."""
    visit = visits(**look)
    page = visit.page
    more = page.locator(".lk-more summary")
    # Where the page scrolls, only what stands beside each other is compared.
    above_button = "() => document.querySelector('.lk-more summary').getBoundingClientRect().y"
    to_verdict = f"({above_button})() - document.querySelector('#answer .lk-verdict').getBoundingClientRect().y"
    before = page.evaluate(to_verdict)
    more.click()
    page.locator(".lk-more dl").wait_for()
    assert page.evaluate(to_verdict) == pytest.approx(before, abs=1)
    if look is LAPTOP:
        in_view(visit, VERDICT, ".lk-more > div", ".lk-acts")
    visit.act("row:1") if page.locator("[data-act='row:1']").count() else visit.act("view:turned")
    page.locator(".lk-more[open] dl").wait_for()
    more.focus()
    page.keyboard.press("Escape")
    page.locator(".lk-more dl").wait_for(state="hidden")
    page.locator(".lk-another summary").click()
    page.wait_for_function("document.activeElement.dataset.act == 'add'")
    assert page.evaluate(to_verdict) == pytest.approx(before, abs=1)
    places = set()
    for view in ("cell", "turned", "changed", "covered", "map"):
        visit.act(f"view:{view}")
        page.locator(f'[data-act="view:{view}"][aria-pressed=true]').wait_for()
        page.locator(".lk-view-waiting").wait_for(state="detached")
        places.add(round(page.evaluate("document.querySelector('#answer').getBoundingClientRect().y + scrollY")))
    assert len(places) == 1


def test_what_is_given_moves_no_tile(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits(**LAPTOP)
    tiles = (
        "[...document.querySelectorAll('.lk-give, [data-act^=example]')].map(tile => tile.getBoundingClientRect().x)"
    )
    before = visit.page.evaluate(tiles)
    upload(visit, cell)
    visit.page.locator("[data-act='recent:0']").wait_for()
    in_view(visit, "[data-act='recent:0']")
    box = visit.page.locator("[data-act='recent:0']").bounding_box()
    assert visit.page.evaluate(tiles) == before and box["x"] + box["width"] <= 1280


def test_an_enlarged_cell_fills_the_stage(visits: Callable[..., Any]) -> None:
    """It was cut at the square of its file."""
    visit = visits(**LAPTOP)
    page = visit.page
    stage = page.locator("#picture").bounding_box()
    beside = {"x": stage["x"] + 8, "y": stage["y"] + stage["height"] / 2, "width": 24, "height": 24}
    dark = page.screenshot(clip=beside)
    for _ in range(3):
        page.locator("[data-zoom-by='1.5']").click()
    page.mouse.move(0, 0)
    assert page.screenshot(clip=beside) != dark, "the cell reaches the stage's edge"
    enlarged = page.evaluate("Number(document.querySelector('.lk-both').style.getPropertyValue('--zoom'))")
    page.mouse.move(stage["x"] + 300, stage["y"] + 300)
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"Number(document.querySelector('.lk-both').style.getPropertyValue('--zoom')) < {enlarged}")


def test_a_smear_and_its_cells_stand_on_the_same_stage(visits: Callable[..., Any], tmp_path: Path) -> None:
    visit = visits(**LAPTOP)
    visit.act("smear")
    visit.page.locator("#picture button.lk-box").nth(3).wait_for()
    in_view(visit, "#picture .lk-field", VERDICT, "#answer .lk-bar", "#answer .lk-grid")
    assert "like blasts" in visit.page.locator(VERDICT).inner_text()
    box = visit.page.locator("#picture button.lk-box").nth(2)
    beside = visit.page.locator("#answer .lk-thumbnail").nth(2)
    box.hover()
    beside.and_(visit.page.locator("[data-marked]")).wait_for()
    visit.page.locator(VERDICT).hover()
    assert visit.page.locator("[data-marked]").count() == 0
    beside.focus()
    box.and_(visit.page.locator("[data-marked]")).wait_for()
    rows = list(csv.DictReader(io.StringIO(saved(visit, "save:csv").decode())))
    assert len(rows) == 5 and {row["notice"] for row in rows} == {RESEARCH_NOTICE}
    visit.page.locator("#picture button.lk-box").first.click()
    visit.shows("Cell 1")
    in_view(visit, "#picture .lk-both", VERDICT, "[data-act=back]:visible")
    visit.act("back")
    visit.page.locator("#picture button.lk-box").nth(3).wait_for()


def test_many_cells_go_from_a_zip_to_subjects_a_cell_and_a_table(visits: Callable[..., Any], cells: Path) -> None:
    visit = visits(**LAPTOP)
    upload(visit, cells)
    visit.page.locator("#picture .lk-subject svg").nth(9).wait_for()
    visit.page.locator("#answer .lk-model", has_text="20 cells of 10 people").wait_for()
    said = visit.page.locator("#answer").inner_text()
    assert "Measured on your labels" in said
    assert "ALL/P0/broken.png: is not an image" in said
    in_view(visit, VERDICT, "#answer .lk-bar", "#picture .lk-subject svg")
    visit.page.locator("#picture .lk-subject").last.scroll_into_view_if_needed()
    in_view(visit, "#picture .lk-cells-axis")
    rows = list(csv.DictReader(io.StringIO(saved(visit, "save:csv").decode())))
    assert [row["label"] for row in rows] == ["ALL"] * 10 + ["HEM"] * 10
    visit.page.locator("#picture .lk-subject svg").nth(9).wait_for()
    dot = visit.page.locator("#picture circle").first
    dot.hover()
    cell = visit.page.locator("#picture .lk-cell-of-dot img")
    listed = visit.page.locator(f'#picture .lk-grid [data-act="{dot.get_attribute("data-act")}"] img')
    assert cell.get_attribute("src") == listed.get_attribute("src"), "the cell of the dot that the mouse is on"
    words = visit.page.locator("#picture .lk-cell-of-dot").inner_text()
    title = dot.locator("title").text_content() or ""
    assert Path(title.partition(": ")[0]).stem.endswith(words.split()[-1]), "its file's name"
    assert words.split()[0] in title, "its class"
    visit.page.mouse.move(0, 0)
    cell.wait_for(state="detached")
    dot.click()
    visit.page.locator("#picture details.lk-subject[open]").wait_for()
    assert visit.page.locator("[data-act=back]").count() == 0, "a dot of a closed row opens the row"
    dot.click()
    visit.page.locator("[data-act=back]:visible").wait_for()
    visit.page.locator("#answer .lk-model", has_text=re.compile(r"P\d / ")).wait_for()
    assert not visit.page.locator("#picture .lk-caption > span").is_visible(), "its person and file are said once"
    visit.act("back")
    visit.page.locator("#picture .lk-subject svg").nth(9).wait_for()
    visit.page.locator("#picture details.lk-subject[open] summary").press("Enter")
    visit.page.locator("#picture details.lk-subject[open]").wait_for(state="detached")
    # By keyboard, cells are reached behind their row.
    visit.page.locator("#picture summary").first.press("Enter")
    visit.page.locator("#picture .lk-grid button").first.press("Enter")
    visit.page.locator("[data-act=back]:visible").wait_for()
    visit.act("back")
    visit.page.locator("#picture details.lk-subject[open] .lk-grid button").first.wait_for()
    assert visit.page.locator("#picture details.lk-subject[open]").count() == 1, "the row that was open, no other"
    visit.page.locator("#picture summary").first.press("Enter")
    visit.page.locator("#picture details.lk-subject[open]").wait_for(state="detached")
    visit.page.locator("#picture summary").nth(1).press("Enter")
    visit.page.locator("#picture details.lk-subject[open] circle").first.dispatch_event("click")
    visit.act("back")
    visit.page.locator("#picture details.lk-subject[open] .lk-grid button").first.wait_for()
    assert visit.page.locator("#picture details.lk-subject[open]").count() == 1, "what was closed stays closed"


def test_a_batch_of_people_of_the_same_names_opens_with_no_row_of_the_one_before(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    visit = visits(**LAPTOP)
    opened = visit.page.locator("#picture details.lk-subject[open]")
    for number in range(2):
        names = {f"P{subject}/{cell}.png": cell_png("ALL", subject, cell) for subject in (1, 2) for cell in range(2)}
        names |= {f"P1/{number}{cell}.png": cell_png("HEM", number, cell) for cell in range(1 + number)}
        upload(visit, Path(pack(tmp_path / f"{number}.zip", names)))
        visit.page.locator("#answer .lk-model", has_text=f"{5 + number} cells of 2 people").wait_for()
        visit.page.wait_for_timeout(300)
        assert opened.count() == 0, "the rows of the former batch"
        visit.page.locator("#picture summary").first.click()
        opened.wait_for()
    visit.act("example:2")
    visit.shows("Synthetic")
    visit.page.locator(".lk-tile", has_text="6 cells").click()
    opened.wait_for()


@pytest.mark.parametrize("look", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_cells_that_are_read_take_the_places_of_those_that_are_not_and_move_nothing(
    visits: Callable[..., Any], tmp_path: Path, look: dict[str, Any]
) -> None:
    visit = visits(**look)
    files = {f"{number}.png": cell_png(("ALL", "HEM")[number % 2], number % 5, number) for number in range(30)}
    top = visit.page.locator("#answer").bounding_box()["y"]
    upload(visit, Path(pack(tmp_path / "cells.zip", files)))
    visit.page.locator("#answer .lk-progress", has_text="16 of 30").wait_for()
    heights = "(pictures) => pictures.map((picture) => picture.offsetHeight)"
    thumbnails = visit.page.locator("#picture .lk-grid .lk-thumbnail").evaluate_all(heights)
    assert len(thumbnails) == 24 and max(thumbnails) - min(thumbnails) <= 1
    visit.page.locator("#answer .lk-model", has_text="30 cells").wait_for()
    assert visit.page.locator("#answer").bounding_box()["y"] == top
    verdict = visit.page.locator(VERDICT).bounding_box()
    assert verdict["y"] + verdict["height"] < look["viewport"]["height"]


@pytest.mark.parametrize("look", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_little_moves_when_the_answer_of_a_batch_comes_and_what_follows_fades_out(
    visits: Callable[..., Any], tmp_path: Path, look: dict[str, Any]
) -> None:
    people = {f"{label}{n}/{cell}.png": cell_png(label, n, cell) for label in ("ALL", "HEM") for n in (0, 1, 2)
              for cell in range(3)}  # fmt: skip
    loose = [tmp_path / f"loose{n:02}.png" for n in range(18)]
    for path, content in zip(loose, people.values(), strict=True):
        path.write_bytes(content)
    smears = [tmp_path / f"smear{n}.png" for n in range(2)]
    for number, path in enumerate(smears):
        Image.fromarray(smear_picture("Pre", number)).save(path)
    visit = visits(**look)
    fade = "getComputedStyle(document.querySelector('.lk-many'), '::after').opacity"
    to_end = "(list => { list.scrollTop = list.scrollHeight })(document.querySelector('.lk-many'))"
    kinds = (("18 cells of 6 people", [Path(pack(tmp_path / "people.zip", people))]), ("18 cells, people", loose),
             ("2 pictures, people", smears))  # fmt: skip
    for model_line, paths in kinds:
        visit.page.evaluate("window.shifted = 0")
        visit.page.locator("#upload input[type=file]").first.set_input_files([str(path) for path in paths])
        visit.page.locator("#answer .lk-model", has_text=model_line).wait_for()
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("window.shifted") <= 0.02, model_line
        scrolls = "(list => list.scrollHeight > list.clientHeight + 32)(document.querySelector('.lk-many'))"
        # A button says that there are more rows.
        follows = visit.page.evaluate(f"{scrolls} && document.querySelector('.lk-all-rows').hidden")
        assert float(visit.page.evaluate(fade)) == follows, model_line
        visit.page.evaluate(to_end)
        visit.page.wait_for_function(f"Number({fade}) === 0")


def test_a_batch_can_be_stopped(visits: Callable[..., Any], cells: Path) -> None:
    visit = visits()
    visit.act("people")
    visit.page.locator("#answer progress").wait_for()
    visit.page.get_by_text("16 of 112 pictures predicted").wait_for()
    visit.act("stop")
    visit.page.locator("#answer .lk-model", has_text="stopped after").wait_for()
    dots = visit.page.locator("#picture circle").count()
    assert 16 <= dots < 112
    visit.page.wait_for_timeout(2000)
    assert visit.page.locator("#picture circle").count() == dots, "what ran does not come back"
    upload(visit, cells)
    visit.act("stop")
    visit.page.locator("#answer .lk-model", has_text="stopped after").wait_for()
    visit.page.get_by_role("button", name="Read again").click()
    visit.page.locator("#picture .lk-subject svg").nth(9).wait_for()
    visit.page.locator("#answer .lk-model", has_text="20 cells of 10 people").wait_for()
    assert visit.page.get_by_role("button", name="Read again").count() == 0


# What is asked, and in which order


def test_the_last_of_several_quick_clicks_counts(visits: Callable[..., Any]) -> None:
    visit = visits()
    for number in (2, 3, 4, 5):
        visit.act(f"example:{number}")
    visit.page.wait_for_url("**example=5**")
    visit.page.wait_for_timeout(1500)
    assert "example=5" in visit.page.url and "Synthetic HEM" in visit.page.locator("#picture .lk-caption").inner_text()


def test_a_new_picture_stands_there_at_once_and_never_an_old_answer_beside_it(
    visits: Callable[..., Any], slow_server: str, tmp_path: Path
) -> None:
    visit = visits(address=slow_server)
    Image.fromarray(draw_cell("HEM", subject=3, cell=1, size=301).image).save(tmp_path / "slow.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = visit.page
    for name, stands in (("slow.png", "reading …"), ("broken.png", "Not read")):
        before = page.locator("#answer").inner_text()
        assert any(words in before for words in ("Looks like", "Probably", "Not sure"))
        upload(visit, tmp_path / name)
        page.locator("#answer", has_text=stands).wait_for()
        said = page.locator("#answer").inner_text()
        assert not any(words in said for words in ("Looks like", "Probably", "Not sure", "recognise"))
        assert page.locator("#picture img").count() == (name == "slow.png")
        caption = page.locator("#picture").inner_text()
        assert name in caption and "Synthetic" not in caption
        if name == "slow.png":
            page.locator(SAID).wait_for()


@pytest.mark.parametrize("given", ["chosen", "dropped"])
def test_what_was_shown_goes_at_once_however_a_file_is_given(
    visits: Callable[..., Any], cell: Path, given: str
) -> None:
    visit = visits()
    sent: list[Any] = []
    visit.page.route(re.compile(r"/upload\?"), lambda route: sent.append(route))
    upload(visit, cell) if given == "chosen" else drop(visit, cell)
    visit.page.wait_for_function("getComputedStyle(document.querySelector('#answer section')).visibility == 'hidden'")
    assert visit.page.locator("#picture img").first.is_hidden()
    while not sent:
        visit.page.wait_for_timeout(50)
    sent[0].continue_()
    visit.shows("my cell.png")
    visit.page.locator(VERDICT).wait_for()
    assert visit.page.locator("#picture img").first.is_visible()
    visit.page.unroute_all()


def test_back_during_an_answer_shows_the_one_before_and_the_late_answer_does_not_return(
    visits: Callable[..., Any], slow_server: str, tmp_path: Path
) -> None:
    visit = visits(address=slow_server)
    visit.act("example:4")
    visit.page.wait_for_url("**example=4**")
    Image.fromarray(draw_cell("HEM", subject=3, cell=1, size=301).image).save(tmp_path / "slow.png")
    upload(visit, tmp_path / "slow.png")
    visit.page.locator("#answer", has_text="reading …").wait_for()
    visit.page.go_back()
    visit.shows("Synthetic ALL")
    visit.page.wait_for_timeout(1000 * SLOW_SECONDS + 2000)
    assert "Synthetic ALL" in visit.page.locator("#picture .lk-caption").inner_text()
    assert "example=1" in visit.page.url and visit.page.locator("[data-example='1']").count() == 1


def test_a_question_that_comes_late_or_fails_leaves_the_page_as_it_was(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits()
    asked: list[Any] = []  # the first question waits for the test to go on
    visit.page.route("**/queue/join*", lambda route: route.continue_() if asked else asked.append(route))
    visit.act("example:2")
    upload(visit, cell)
    visit.shows("my cell.png")
    asked[0].abort()
    visit.page.wait_for_timeout(1000)
    assert "my cell.png" in visit.page.locator("#picture .lk-caption").inner_text()
    visit.page.unroute_all()


def test_without_its_server_the_page_keeps_what_it_shows(visits: Callable[..., Any], cell: Path) -> None:
    visit = visits()
    upload(visit, cell)
    visit.shows("my cell.png")
    visit.page.wait_for_function("!document.querySelector('.lk-working')")
    visit.context.set_offline(True)
    visit.page.wait_for_function("getComputedStyle(document.body, '::after').content.includes('trying')")
    assert visit.page.locator("#picture .lk-both img").first.is_visible()
    visit.context.set_offline(False)
    # As Gradio does once a server answers again.
    visit.page.reload()
    visit.shows("my cell.png")
    visit.act("view:turned")
    visit.page.get_by_text("Give the picture again.").wait_for()
    visit.act("example:2")
    visit.shows("Synthetic ALL")


def test_an_address_opens_model_tab_and_example_and_back_leads_to_those_before(visits: Callable[..., Any]) -> None:
    visit = visits()
    visit.page.wait_for_url("**example=1**")
    visit.act("example:4")
    visit.page.wait_for_url("**example=4**")
    visit.page.get_by_role("link", name="Evidence").first.click()
    visit.page.locator("#card h1").wait_for()
    visit.page.wait_for_url("**tab=evidence**")
    visit.page.go_back()
    visit.page.locator("nav a[aria-current=page]", has_text="Cells").wait_for()
    visit.page.go_back()
    visit.shows("Synthetic ALL")
    address = visit.page.url.replace("example=1", "example=6")
    visit.page.goto(address)
    visit.shows("Synthetic HEM")


@pytest.mark.parametrize(
    "look", [{}, {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}]
)
def test_the_scale_of_a_smear_is_changed_in_its_own_line(visits: Callable[..., Any], look: dict[str, Any]) -> None:
    visit = visits(**look)
    page = visit.page
    visit.act("smear")
    page.locator("#picture button.lk-box").nth(3).wait_for()
    change = page.locator("#picture .lk-chip summary")
    line = page.locator("#picture .lk-chip")
    field = line.locator("input")
    closed = line.bounding_box()
    for closes in (lambda: page.keyboard.press("Escape"), line.locator("[data-cancel]").click):
        change.click()
        page.locator("#picture .lk-chip input:focus").wait_for()
        opened = line.bounding_box()
        assert (opened["y"], opened["height"]) == (closed["y"], closed["height"])
        assert line.evaluate("line => line.scrollWidth <= line.clientWidth")
        page.keyboard.type("0.2")
        closes()
        assert not field.is_visible() and change.evaluate("change => change === document.activeElement")
        assert field.input_value() == "0.12", "nothing was applied"
    assert "as given" in line.inner_text()
    change.click()
    page.locator("#picture .lk-chip input:focus").wait_for()
    page.keyboard.type("0.125")
    page.keyboard.press("Enter")
    page.locator("#picture .lk-pitch", has_text="0.125 µm per pixel, set by you").wait_for()
    change.click()
    page.locator("#picture .lk-chip input:focus").wait_for()
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    page.locator("#picture .lk-pitch", has_text="from its red cells").wait_for()
    if look:
        measured = line.bounding_box()
        assert measured["y"] + measured["height"] <= page.locator("#picture .lk-field").bounding_box()["y"]


def test_back_and_forward_lead_from_a_cell_to_its_smear_and_to_the_cell_again(visits: Callable[..., Any]) -> None:
    visit = visits()
    page = visit.page
    visit.act("smear")
    boxes = page.locator("#picture button.lk-box")
    boxes.nth(3).wait_for()
    boxes.nth(1).click()
    visit.shows("Cell 2")
    page.wait_for_function("history.state?.cell == '1'")
    page.go_back()
    boxes.nth(3).wait_for()
    page.go_forward()
    visit.shows("Cell 2")
    # The button on the picture is a step of its own, from which Back leads to the cell.
    visit.act("back")
    boxes.nth(3).wait_for()
    page.wait_for_function("history.state?.cell == ''")
    page.go_back()
    visit.shows("Cell 2")
    page.go_back()
    boxes.nth(3).wait_for()
    page.go_back()
    visit.shows("Synthetic ALL")


def test_forward_leads_to_a_cell_of_one_s_own_not_of_the_synthetic_smear(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    """The synthetic smear, to which Back had led, has a cell of the same number."""
    Image.fromarray(example_smear()).save(tmp_path / "own.png")
    visit = visits()
    page = visit.page
    synthetic = page.locator("#picture .lk-caption", has_text="Synthetic smear")
    boxes = page.locator("#picture button.lk-box")
    visit.act("smear")
    synthetic.wait_for()
    boxes.nth(3).wait_for()
    upload(visit, tmp_path / "own.png")
    visit.shows("own.png")
    boxes.nth(1).click()
    page.wait_for_function("history.state?.cell == '1'")
    page.go_back()
    visit.shows("own.png")
    page.go_back()
    synthetic.wait_for()
    page.wait_for_function("location.search.includes('example=smear')")
    boxes.nth(3).wait_for()
    page.go_forward()
    visit.shows("own.png")
    boxes.nth(3).wait_for()
    page.go_forward()
    visit.shows("Cell 2")
    visit.act("back")
    visit.shows("own.png")


def test_back_leads_to_one_s_own_picture_and_batch(visits: Callable[..., Any], cell: Path, cells: Path) -> None:
    """It led past both, to the example before them."""
    visit = visits()
    page = visit.page
    upload(visit, cells)
    page.locator("#answer .lk-model", has_text="20 cells of 10 people").wait_for()
    upload(visit, cell)
    visit.shows("my cell.png")
    page.wait_for_function("!document.querySelector('.lk-working')")
    visit.act("example:4")
    page.wait_for_url("**example=4**")
    page.go_back()
    visit.shows("my cell.png")
    page.wait_for_function("!document.querySelector('.lk-working')")
    page.go_back()
    page.locator("#answer .lk-model", has_text="20 cells of 10 people").wait_for()
    page.go_forward()
    visit.shows("my cell.png")
    page.go_forward()
    visit.shows("Synthetic HEM")


def test_a_cell_that_is_shown_as_it_is_is_called_so(visits: Callable[..., Any]) -> None:
    """The next cell was as dark, and called "shown brighter"."""
    visit = visits()
    button = visit.page.locator("#picture [data-brighter]")
    button.click()
    visit.act("example:4")
    visit.shows("Synthetic HEM")
    visit.page.wait_for_timeout(300)
    assert (button.inner_text(), button.get_attribute("aria-pressed")) == ("shown as it is", "false")


def test_one_tile_is_ringed_wherever_the_pointer_rests(visits: Callable[..., Any], cell: Path) -> None:
    """The tile that had been pressed kept a violet ring under the pointer: two looked chosen."""
    visit = visits()
    visit.page.locator("#tiles [data-act='example:4']").click()
    visit.page.locator("#tiles [data-act='example:4'][aria-pressed=true]").wait_for()
    upload(visit, cell)
    visit.page.locator("#tiles [aria-pressed=true]:not([data-act='example:4'])").wait_for()
    visit.page.wait_for_timeout(300)
    ringed = """() => {
      const tiles = [...document.querySelectorAll('#tiles .lk-tile')]
      const violet = getComputedStyle(tiles.find((tile) => tile.ariaPressed === 'true')).borderColor
      return tiles.filter((tile) => getComputedStyle(tile).borderColor === violet
        || getComputedStyle(tile).outlineStyle !== 'none').map((tile) => tile.ariaPressed)
    }"""
    assert visit.page.evaluate(ringed) == ["true"]
    visit.page.keyboard.press("Tab")
    assert sorted(visit.page.evaluate(ringed)) == ["false", "true"], "the ring of the keyboard is seen"


def test_a_screen_reader_is_told_in_words_that_an_answer_came(visits: Callable[..., Any]) -> None:
    """It was told "common.complete", a key that Gradio has no words for."""
    visit = visits()
    visit.act("example:2")
    visit.page.locator("[role=status]", has_text="Done").first.wait_for(state="attached")
    told = visit.page.locator("[role=status]").all_inner_texts()
    assert not any("common." in words for words in told)


def test_two_visitors_do_not_see_each_other(visits: Callable[..., Any], cell: Path) -> None:
    first, second = visits(), visits()
    upload(first, cell)
    second.act("example:4")
    first.shows("my cell.png")
    second.shows("Synthetic HEM")
    assert "my cell.png" not in second.page.content()


# What is given


def test_a_folder_and_a_file_can_be_dropped_anywhere(visits: Callable[..., Any], tmp_path: Path, cell: Path) -> None:
    folder = tmp_path / "June"
    for subject, person in enumerate(("Anna Schmidt", "Ben")):
        (folder / person).mkdir(parents=True)
        for number in range(4):
            (folder / person / f"zelle{number}ä.png").write_bytes(cell_png("ALL", subject, number))
    visit = visits()
    drop(visit, folder, ".lk-give")
    visit.page.locator(".lk-subject h3", has_text="Anna Schmidt").wait_for()
    visit.page.locator("#answer .lk-model", has_text="8 cells of 2 people").wait_for()
    drop(visit, cell)
    visit.shows("my cell.png")


def test_what_cannot_be_read_is_one_kind_message(visits: Callable[..., Any], tmp_path: Path) -> None:
    visit = visits()
    for name, content, said in (
        ("text.png", b"not a picture", "text.png: is not an image"),
        ("report.pdf", b"%PDF-1.4", "report.pdf: is not an image; give one of BMP"),
        ("cut.zip", b"PK\x03\x04 cut", "cut.zip: the zip is damaged or cut short"),
    ):
        (tmp_path / name).write_bytes(content)
        upload(visit, tmp_path / name)
        visit.page.locator("#answer .lk-caveats", has_text=said).wait_for()
        assert f"{name} was not read" in visit.page.locator("#picture").inner_text()
        assert "What can be given" in visit.page.locator("#answer").inner_text()
        assert "Error" not in visit.page.locator("#answer").inner_text()
    visit.act("real")
    visit.page.locator("#answer .lk-message", has_text="cannot be reached now").wait_for(timeout=20_000)
    visit.act("example:1")
    visit.page.get_by_text("+ another model").click()
    visit.page.locator("input[data-act=add]").fill("/etc")
    visit.page.keyboard.press("Enter")
    visit.page.locator("#answer .lk-message", has_text="is no model name").wait_for()


def test_a_finger_on_a_dot_opens_its_row(visits: Callable[..., Any], cells: Path) -> None:
    """It opened the cell of a dot of eight pixels that nobody could have aimed at."""
    visit = visits(**PHONE)
    upload(visit, cells)
    visit.page.locator("#answer .lk-model", has_text="20 cells of 10 people").wait_for()
    dot = visit.page.locator("#picture circle").first
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    visit.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    visit.page.locator("#picture details[open] .lk-grid li").first.wait_for()
    visit.page.wait_for_timeout(500)
    assert visit.page.locator("#picture [data-act=back]").count() == 0


def test_on_a_phone_the_next_example_is_one_press_away(visits: Callable[..., Any]) -> None:
    visit = visits(**PHONE)
    visit.act("example:5")
    visit.page.wait_for_url("**example=5")
    for example, tile in (("6", "example:6"), ("smear", "smear"), ("people", "people"), ("1", "example:1")):
        visit.page.locator("#picture .lk-next").click()
        visit.page.wait_for_url(f"**example={example}")
        assert visit.page.locator(f'#tiles [data-act="{tile}"]').get_attribute("aria-pressed") == "true"


def test_on_a_phone_the_page_scrolls_through_all_people_and_no_list_in_it(
    visits: Callable[..., Any], cells: Path
) -> None:
    visit = visits(**PHONE)
    upload(visit, cells)
    visit.page.locator("#answer .lk-model", has_text="20 cells of 10 people").wait_for()
    verdict = visit.page.locator(VERDICT).bounding_box()
    assert verdict["y"] + verdict["height"] < PHONE["viewport"]["height"]
    hidden = "(list) => list.scrollHeight - list.clientHeight"
    people = visit.page.locator("#picture .lk-many")
    assert people.evaluate(hidden) > 0
    visit.page.get_by_text("All 10 people").click()
    assert people.evaluate(hidden) <= 0
    row = visit.page.locator("#picture .lk-subject").last
    row.locator("h3").click()
    listed = row.locator(".lk-grid")
    listed.wait_for()
    assert listed.bounding_box()["y"] >= row.locator("summary").bounding_box()["y"] + 48, "below the row"
    assert listed.evaluate("(grid) => getComputedStyle(grid).gridTemplateColumns.split(' ').length") == 3
    assert people.evaluate(hidden) <= 0
    listed.locator("button").first.click()
    visit.act("back")
    listed.locator("button").first.wait_for()
    visit.page.wait_for_timeout(300)
    place = listed.locator("button").first.bounding_box()
    height = visit.page.evaluate("innerHeight")
    assert place is not None and 0 < place["y"] < height, "back at the cell that was opened"


@pytest.mark.parametrize("look", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_of_a_person_of_many_cells_the_first_are_shown_and_close_stays_in_sight(
    visits: Callable[..., Any], look: dict[str, Any]
) -> None:
    visit = visits(**look)
    visit.act("people")
    visit.page.locator("#answer .lk-model", has_text="112 cells of 2 people").wait_for()
    row = visit.page.locator("#picture .lk-subject").first
    row.locator("h3").click()
    shown = row.locator(".lk-grid button:visible")
    shown.first.wait_for()
    assert shown.count() == 12
    assert "12 of 56" in row.inner_text()
    row.get_by_text("All 56 cells").click()
    assert shown.count() == 56
    assert "12 of 56" not in row.inner_text()
    shown.nth(40).scroll_into_view_if_needed()
    visit.page.wait_for_timeout(300)
    close = row.get_by_text("Close", exact=True)
    in_view(visit, "#picture .lk-subject[open] .lk-close-person")
    shown.nth(40).click()
    visit.act("back")
    shown.nth(40).wait_for()
    assert shown.count() == 56, "those that were asked for"
    close.click()
    visit.page.wait_for_timeout(300)
    in_view(visit, "#picture .lk-subject summary")
    row.locator("h3").click()
    shown.first.wait_for()


def test_the_list_is_where_it_was_when_a_person_is_closed(visits: Callable[..., Any], tmp_path: Path) -> None:
    """The rows above the person stayed out of sight."""
    visit = visits(**LAPTOP)
    cells = {f"P{person}/{cell}.png": cell_png("ALL", person, cell) for person in range(6) for cell in range(6)}
    upload(visit, Path(pack(tmp_path / "people.zip", cells)))
    visit.page.locator("#answer .lk-model", has_text="36 cells of 6 people").wait_for()
    row = visit.page.locator("#picture .lk-subject").nth(4)
    before = row.bounding_box()
    row.locator("h3").click()
    row.locator(".lk-grid button:visible").first.wait_for()
    visit.page.wait_for_timeout(300)
    assert row.bounding_box()["y"] < before["y"]
    tile = row.locator(".lk-thumbnail:visible").last.bounding_box()
    close = row.locator(".lk-close-person")
    assert close.bounding_box()["y"] + close.bounding_box()["height"] <= tile["y"], "beside the words, not on a cell"
    close.click()
    visit.page.wait_for_timeout(300)
    assert row.bounding_box() == before


def test_below_the_head_of_the_plot_no_part_of_another_person_is_seen(visits: Callable[..., Any]) -> None:
    """The list was too short for the last person's row to begin there: half a dot of the row above stuck out."""
    visit = visits(**LAPTOP)
    visit.act("people")
    visit.page.locator("#answer .lk-model", has_text="112 cells of 2 people").wait_for()
    row = visit.page.locator("#picture .lk-subject").last
    row.locator("h3").click()
    row.locator(".lk-grid button:visible").first.wait_for()
    for _ in range(2):
        visit.page.wait_for_timeout(300)
        head = visit.page.locator("#picture .lk-cells-axis").bounding_box()
        assert abs(row.bounding_box()["y"] - head["y"] - head["height"]) < 2
        row.locator(".lk-grid button:visible").first.click()
        visit.act("back")
        row.locator(".lk-grid button:visible").first.wait_for()
    row.locator(".lk-close-person").click()
    visit.page.wait_for_timeout(300)
    assert not row.evaluate("row => row.style.minHeight")


def test_on_a_phone_the_words_of_all_people_stand_below_each_other(visits: Callable[..., Any], tmp_path: Path) -> None:
    visit = visits(**PHONE)
    names = {
        f"{person}/{cell}.png": cell_png("ALL", number, cell)
        for number, person in enumerate(("H12", "a long name of 17"))
        for cell in (1, 2)
    }
    upload(visit, Path(pack(tmp_path / "people.zip", names)))
    visit.page.locator("#answer .lk-model", has_text="4 cells of 2 people").wait_for()
    for part in ("b", "span"):
        boxes = [box.bounding_box() for box in visit.page.locator(f".lk-subject .lk-about > {part}").all()]
        assert len({(box["x"], box["height"]) for box in boxes}) == 1, part


# Every visitor


def test_nothing_is_wider_than_the_window(visits: Callable[..., Any], cells: Path) -> None:
    visit = visits(viewport={"width": 360, "height": 800})
    for ask, shown in (
        (lambda: None, SAID),
        (lambda: visit.act("smear"), "#picture .lk-box"),
        (lambda: upload(visit, cells), ".lk-subject svg"),
    ):
        ask()
        visit.page.locator(shown).first.wait_for()
        for width in (1440, 768, 360):
            visit.page.set_viewport_size({"width": width, "height": 800})
            visit.page.wait_for_function(f"innerWidth == {width}")
            assert visit.width() <= width, shown


def test_a_finger_meets_targets_of_44_pixels(visits: Callable[..., Any]) -> None:
    visit = visits(**PHONE)
    give = visit.page.locator(".lk-give").bounding_box()
    assert give["width"] >= 120 and give["height"] >= 44 and give["x"] + give["width"] <= 390, (
        "nothing of it is cut off"
    )
    small = visit.page.evaluate(
        "[...document.querySelectorAll('#cells button, #cells summary')].filter(one => one.checkVisibility())"
        ".map(one => [one.textContent, one.getBoundingClientRect()])"
        ".filter(([, box]) => box.height < 43.5 || box.width < 43.5).map(([name]) => name)"
    )
    assert small == []


def test_the_keyboard_alone_is_enough(visits: Callable[..., Any]) -> None:
    visit = visits()
    for act, shown in (("example:4", "Synthetic HEM"), ("smear", "Synthetic smear"), ("cell:0", "Cell 1")):
        for _ in range(80):
            visit.page.keyboard.press("Tab")
            if visit.page.evaluate("document.activeElement.dataset.act") == act:
                break
        visit.page.keyboard.press("Enter")
        visit.shows(shown)
        visit.page.wait_for_function("!document.querySelector('.lk-working')")
    nameless = "[...document.querySelectorAll('img')].filter(e => e.getAttribute('alt') === null).length"
    assert visit.page.evaluate(nameless) == 0 and visit.page.locator("h1").count() == 1


@pytest.mark.parametrize("look", [LAPTOP, {**LAPTOP, "color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing_serious(visits: Callable[..., Any], cells: Path, look: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra test")
    visit, serious = visits(**look), []
    dark = visit.page.evaluate("document.body.classList.contains('dark')")
    assert dark == (look.get("color_scheme") == "dark")
    for name, ask, shown in (
        ("cell", lambda: None, SAID),
        ("map", lambda: visit.act("view:map"), ".lk-handle"),
        ("smear", lambda: visit.act("smear"), "#picture .lk-box"),
        ("batch", lambda: upload(visit, cells), "#answer >> text=20 cells of 10 people >> nth=0"),
        ("behind a row", lambda: visit.page.locator("#picture summary").first.click(), "#picture .lk-grid li"),
        ("evidence", lambda: visit.page.get_by_role("link", name="Evidence").first.click(), "#card h1"),
    ):
        ask()
        visit.page.locator(shown).first.wait_for()
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


# Gradio fades what is about to change; some of its icons turn for ever. What follows a scroll bar runs always.
_STANDS_STILL = """() => !document.querySelector('.pending, .generating')
  && document.getAnimations().filter(one => one.timeline instanceof DocumentTimeline).every(
    one => one.playState != 'running' || one.effect.getComputedTiming().endTime == Infinity)"""
