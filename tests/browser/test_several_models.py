"""The demo with every release: what follows the model whose answer is opened, and how small what is pressed may be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope.synthetic import draw_cell, smear_picture
from served import APP, served

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
ROOT = Path(__file__).parents[2]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
TWO_LINES = (
    "Of 100 cells of 9 people, 50 change class when shifted by +4° in hue, fewer than 1 when compressed (JPEG 90)."
)
LAPTOP = {"viewport": {"width": 1280, "height": 720}}
ANSWERED = "!document.querySelector('.lk-working, .lk-wait, .pending')"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with every release."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("leukoscope-densenet169-cnmc", "leukoscope-efficientnet-b3-cnmc", "leukoscope-densenet201-ball4"):
        shutil.copytree(ROOT / "model_card" / name, folder / "releases" / name)
    with served(folder, *APP, "--releases", folder / "releases") as (address, _):
        yield address


def test_the_figures_of_every_model_are_in_sight_at_once(visits: Callable[..., Any]) -> None:
    """A page of text stood above them."""
    page = visits(**LAPTOP).page
    page.get_by_role("link", name="Evidence").first.click()
    page.locator("#card h1").first.wait_for()
    last_model = page.locator(".lk-all-models tbody tr", has_text="efficientnet-b3-cnmc").first.bounding_box()
    assert last_model["y"] + last_model["height"] <= LAPTOP["viewport"]["height"]
    claim, line = page.locator(".lk-conclusion").evaluate(
        "one => [one.clientHeight, parseFloat(getComputedStyle(one).lineHeight)]"
    )
    assert claim < 1.5 * line, "its last two words stood alone on a second line"
    names = page.locator(".lk-all-models tbody th").evaluate_all(
        "all => all.map(one => getComputedStyle(one.querySelector('button') ?? one).fontSize)"
    )
    assert len(names) == 4 and len(set(names)) == 1, names
    jumps = page.locator(".lk-jumps").bounding_box()
    title = page.locator(".lk-above-table .lk-verdict").bounding_box()
    assert title["x"] + title["width"] <= jumps["x"], "beside each other"


def test_on_a_phone_the_answer_of_another_model_is_in_sight(visits: Callable[..., Any]) -> None:
    """The page stayed where the row of the model was, below the new answer."""
    page = visits(**PHONE).page
    page.wait_for_function(ANSWERED)
    row = page.locator("button.lk-other").first
    row.scroll_into_view_if_needed()
    assert page.evaluate("scrollY") > 100
    row.focus()
    page.keyboard.press("Enter")
    page.locator("#answer .lk-model", has_text="efficientnet-b3-cnmc").wait_for()
    page.wait_for_function(ANSWERED)
    notice = page.locator(".lk-notice").bounding_box()
    for part in ("#picture .lk-both", "#answer .lk-verdict"):
        box = page.locator(part).bounding_box()
        assert notice["y"] + notice["height"] <= box["y"] and box["y"] + box["height"] <= 844, part
    page.wait_for_function("document.activeElement.matches('#answer .lk-answer')")


def test_question_and_meanings_follow_the_model_whose_answer_is_opened(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    """They named the classes of the first model beside the answer of one with other classes."""
    page = visits(**LAPTOP).page
    question = page.locator("#lk-question")
    meanings = page.locator("#lk-classes")
    assert question.inner_text() == "Is this white blood cell a leukaemic blast?"
    assert "HEM: a normal cell" in meanings.inner_text()
    Image.fromarray(smear_picture("Pre", 4)).save(tmp_path / "blood.png")
    page.locator("#upload input[type=file]").first.set_input_files(str(tmp_path / "blood.png"))
    # Its cells are foreign to the first model; what the other one says of the whole picture is a line to press.
    page.locator("#answer [data-act='read:leukoscope-densenet201-ball4']").click()
    page.locator("#answer [data-model=leukoscope-densenet201-ball4]").wait_for()
    assert question.inner_text() == "Is this white blood cell Benign, Early, Pre or Pro?"
    assert "Pre: a pre-B blast" in meanings.inner_text() and "HEM" not in meanings.inner_text()
    page.locator('.lk-tile[title="blood.png"]').wait_for()  # once its answer is complete
    page.locator('[data-act="example:1"]').click()
    page.locator("#answer [data-model=leukoscope-densenet169-cnmc]").wait_for()
    assert question.inner_text() == "Is this white blood cell a leukaemic blast?"


_SMALL = """[...document.querySelectorAll('button, summary, a')].filter((part) => part.checkVisibility())
  .filter((part) => {
    const box = part.getBoundingClientRect()
    return box.height < 24 || box.width < 24
  }).map((part) => part.textContent.trim())"""


def test_what_is_pressed_by_a_mouse_is_24_pixels_high(visits: Callable[..., Any]) -> None:
    """WCAG 2.2, 2.5.8."""
    visit = visits(**LAPTOP)
    visit.page.wait_for_function(ANSWERED)
    assert visit.page.evaluate(_SMALL) == []
    for act, part in (("view:map", ".lk-handle"), ("smear", "#picture .lk-box")):
        visit.act(act)
        visit.page.locator(part).first.wait_for()
        visit.page.wait_for_function(ANSWERED)
        assert visit.page.evaluate(_SMALL) == [], act


def test_how_far_to_trust_it_and_the_other_models_lie_above_the_buttons(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    """At 1280 × 720 they faded out below the buttons, which stay at the end of the answer."""
    visit = visits(**LAPTOP)
    page = visit.page
    # No model of C-NMC gives it a class.
    Image.fromarray(draw_cell("HEM", subject=1, cell=5).image).save(tmp_path / "not sure.png")
    page.locator("#upload input[type=file]").first.set_input_files(str(tmp_path / "not sure.png"))
    visit.shows("not sure.png")
    page.locator("#answer .lk-verdict", has_text="Not sure").wait_for()
    for act in ("", "smear"):
        if act:
            visit.act(act)
            page.locator("#picture .lk-box").first.wait_for()
        page.wait_for_function(ANSWERED)
        fade = 0
        if act == "smear":
            # What another model's small changes do takes two lines, and the last line of all would fade out.
            page.locator("#answer .lk-trust > p").evaluate(f"part => part.textContent = {TWO_LINES!r}")
            fade = 8
        buttons = page.locator("#answer .lk-acts").bounding_box()
        for part in (".lk-trust", "section > .lk-others"):
            for box in (part.bounding_box() for part in page.locator(f"#answer {part}").all()):
                assert box["y"] + box["height"] + fade <= buttons["y"], (act, part)
        others = page.locator("#answer .lk-others").bounding_box()
        assert others["y"] + others["height"] <= 720, "of a smear they stand among the buttons"


def test_a_link_opens_the_cell_of_the_synthetic_smear_by_the_model_that_is_chosen(visits: Callable[..., Any]) -> None:
    visit = visits(**LAPTOP)
    page = visit.page
    visit.act("smear")
    page.locator("#picture button.lk-box").nth(2).click()
    visit.shows("Cell 3")
    page.locator("#answer [data-of-model='leukoscope-efficientnet-b3-cnmc']").click()
    page.wait_for_url("**model=leukoscope-efficientnet-b3-cnmc**example=smear&cell=3")
    visit.act("view:turned")
    page.locator("#picture [data-act='view:turned'][aria-pressed='true']").wait_for()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#answer [data-copy]").click()
    page.locator("#answer [data-copy]", has_text="Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url + "&view=turned"
    page.goto(link)
    visit.shows("Cell 3")
    page.locator("#answer [data-copy]").wait_for()  # "Reading Cell 3 …" names no model
    page.locator("#picture [data-act='view:turned'][aria-pressed='true']").wait_for()
    assert "view=" not in page.url, "it names what is opened, until another view is chosen"
    assert page.locator("#answer .lk-model").inner_text().startswith("model efficientnet-b3-cnmc")
    visit.act("example:2")
    page.wait_for_url("**example=2")
    page.go_back()
    visit.shows("Cell 3")
    page.wait_for_function(ANSWERED)


def test_back_and_forward_lead_to_the_other_model_in_the_view_that_is_shown(visits: Callable[..., Any]) -> None:
    """Forward led to the first model's answer again, and Back to the plain cell."""
    visit = visits(**LAPTOP)
    page = visit.page
    page.wait_for_function(ANSWERED)
    visit.act("view:turned")
    page.locator("#answer [data-of-model='leukoscope-efficientnet-b3-cnmc']").click()
    other = page.locator("#answer [data-model='leukoscope-efficientnet-b3-cnmc']")
    other.wait_for()
    page.wait_for_url("**model=leukoscope-efficientnet-b3-cnmc**")
    page.go_back()
    page.locator("#answer [data-model='leukoscope-densenet169-cnmc']").wait_for()
    page.go_forward()
    other.wait_for()
    page.locator("#picture .lk-shows-turned").wait_for()


def test_on_a_phone_nothing_of_a_picture_is_cut_or_lies_over_another(visits: Callable[..., Any]) -> None:
    """The name of a smear was cut; forms that are refused grew over those beside them."""
    visit = visits(**PHONE)
    page = visit.page
    page.wait_for_function(ANSWERED)
    visit.act("view:changed")
    page.locator(".lk-forms li").nth(7).wait_for()
    boxes = page.evaluate("[...document.querySelectorAll('.lk-forms li')].map((form) => form.getBoundingClientRect())")
    for left, right in pairwise(boxes):
        assert left["right"] <= right["left"] or left["bottom"] <= right["top"]
    visit.act("smear")
    name = page.locator("#picture .lk-chip [title]")
    name.wait_for()
    assert name.inner_text() == "Synthetic smear" and name.evaluate("name => name.scrollWidth <= name.clientWidth")


def test_the_strip_ends_with_a_whole_tile(visits: Callable[..., Any], tmp_path: Path) -> None:
    visit = visits(**LAPTOP)
    edge = visit.page.evaluate("document.querySelector('.lk-tiles').getBoundingClientRect().right")
    for number in range(4):
        name = f"cell {number}.png"
        Image.new("RGB", (200, 200), (number, 0, 0)).save(tmp_path / name)
        visit.page.locator("#upload input[type=file]").first.set_input_files(str(tmp_path / name))
        visit.page.locator(f'.lk-tile[title="{name}"]').wait_for()
        cut = visit.page.evaluate(
            "edge => [...document.querySelectorAll('.lk-tile')].map((tile) => tile.getBoundingClientRect())"
            ".filter((box) => box.left < edge - 1 && box.right > edge + 1).length",
            edge,
        )
        assert cut == 0, name


def test_on_a_phone_the_dots_of_two_people_are_in_sight(visits: Callable[..., Any]) -> None:
    visit = visits(**PHONE)
    visit.act("people")
    visit.page.locator("#answer .lk-model", has_text="112 cells of 2 people").wait_for()
    stage = visit.page.locator("#picture").bounding_box()
    heights = "(list) => [list.scrollHeight, list.clientHeight]"
    needed, has = visit.page.locator("#picture .lk-many").evaluate(heights)
    assert needed <= has <= stage["height"]
    second = visit.page.locator("#picture .lk-subject").last.bounding_box()
    assert second["y"] + second["height"] <= stage["y"] + stage["height"] + 1, "not behind a button"
    assert not visit.page.locator(".lk-all-rows").is_visible()
    for button in visit.page.locator("#picture .lk-other-pictures button").all():
        box = button.bounding_box()
        assert box["height"] >= 44 and second["y"] + second["height"] <= box["y"], "over no row"
    overlap = """(circles) => circles.some((one, at) => circles.slice(at + 1).some((other) => {
      const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()]
      return Math.hypot(a.x - b.x, a.y - b.y) < a.width - 2.5
    }))"""
    first = visit.page.locator("#picture .lk-subject").first
    assert not first.locator("circle.lk-known").evaluate_all(overlap), "dots are as small as their rows are low"


def test_on_a_phone_nothing_lies_under_the_way_back_or_the_place_of_one_s_own_file(visits: Callable[..., Any]) -> None:
    visit = visits(**PHONE)
    page = visit.page
    page.wait_for_function(ANSWERED)
    give = page.locator(".lk-give").bounding_box()
    page.evaluate("document.querySelector('.lk-shelf').scrollLeft = 200")
    top = min(tile.bounding_box()["y"] for tile in page.locator(".lk-tile").all())
    assert give["y"] + give["height"] <= top
    visit.act("people")
    page.locator("#picture .lk-subject summary h3").first.click()
    page.locator("#picture .lk-grid button").first.click()
    back = page.locator(".lk-other-pictures [data-act=back]")
    back.wait_for()
    page.wait_for_function(ANSWERED)
    visit.act("view:changed")
    forms = page.locator(".lk-forms").bounding_box()
    assert forms["y"] + forms["height"] <= back.bounding_box()["y"] + 1


def test_the_row_of_an_opened_person_stays_in_sight_in_another_model_s_answer(visits: Callable[..., Any]) -> None:
    visit = visits(**LAPTOP)
    page = visit.page
    visit.act("people")
    page.locator("#answer .lk-model", has_text="112 cells of 2 people").wait_for()
    page.locator("#picture .lk-subject summary h3").last.click()
    opened = page.locator("#picture .lk-subject[open] summary")
    opened.wait_for()
    page.wait_for_timeout(200)
    before = opened.bounding_box()
    stage = page.locator("#picture").bounding_box()
    pictures = [thumbnail.bounding_box() for thumbnail in page.locator("#picture .lk-grid button:visible").all()]
    dots = page.locator("#picture .lk-subject[open] circle[data-act]").all()
    assert before["height"] >= 103 and max(dot.bounding_box()["width"] for dot in dots) >= 5, "its dots stay large"
    in_sight = [box for box in pictures if box["y"] + box["height"] <= stage["y"] + stage["height"]]
    assert len({box["y"] for box in in_sight}) >= 2, "two rows of the person's cells"
    names = page.locator("#picture .lk-subject[open] .lk-grid .lk-end:visible").all()
    ends = [box["y"] + box["height"] for box in (name.bounding_box() for name in names)]
    assert len(ends) == 12 and max(ends) <= stage["y"] + stage["height"] - 12, "whole, above what fades out"
    page.locator("#answer [data-act^='read:']").first.click()
    page.locator("#answer .lk-other", has_text="same answer").wait_for()
    opened.wait_for()
    page.wait_for_timeout(200)
    assert abs(opened.bounding_box()["y"] - before["y"]) <= 1


def test_how_far_to_trust_a_batch_with_two_caveats_is_in_sight_and_another_model_that_can_answer_stands_above_them(
    visits: Callable[..., Any], tmp_path: Path
) -> None:
    """At 1280 × 720 the line on small changes lay below the buttons, and the other model's line was a riddle."""
    folder = tmp_path / "cells"
    folder.mkdir()
    for number, (person, label, cells) in enumerate(
        (("11", "ALL", 56), ("H12", "HEM", 56), ("1", "ALL", 6), ("3", "ALL", 6))
    ):
        for cell in range(cells):
            drawn = Image.fromarray(draw_cell(label, subject=number, cell=cell).image)
            drawn.save(folder / f"UID_{person}_{cell + 1}_1_{label.lower()}.png")
    shutil.make_archive(str(tmp_path / "people"), "zip", folder)
    visit = visits(**LAPTOP)
    page = visit.page
    page.wait_for_function(ANSWERED)
    page.evaluate("window.shifted = 0")
    page.locator("#upload input[type=file]").first.set_input_files(str(tmp_path / "people.zip"))
    page.locator("#answer .lk-model", has_text="124 cells of 4 people").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("window.shifted") <= 0.02
    assert page.locator("#answer .lk-caveats li").count() == 2
    changes = page.locator("#answer .lk-trust .lk-quiet").last.bounding_box()
    acts = page.locator("#answer .lk-acts").bounding_box()
    assert changes["y"] + changes["height"] + 10 <= acts["y"], "not faded out, either"
    way_out = page.locator("#answer .lk-way-out")
    assert "efficientnet-b3-cnmc needs only 5 cells of a person" in way_out.inner_text()
    caveats = page.locator("#answer .lk-caveats").bounding_box()
    assert way_out.bounding_box()["y"] < caveats["y"], "near the headline"
    way_out.locator("button").click()
    page.locator("#answer .lk-model", has_text="efficientnet-b3-cnmc").wait_for()


@pytest.mark.parametrize("window", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_rows_of_many_people_end_with_a_whole_one_above_the_button_that_shows_all(
    visits: Callable[..., Any], tmp_path: Path, window: dict[str, Any]
) -> None:
    """At 1280 × 720 the list of 14 people was cut in the middle of a row, and nothing said that more follow."""
    for person in range(12):
        folder = tmp_path / "cells" / f"P{person}"
        folder.mkdir(parents=True)
        for cell in range(2):
            Image.fromarray(draw_cell("ALL", subject=person, cell=cell).image).save(folder / f"{cell}.png")
    shutil.make_archive(str(tmp_path / "people"), "zip", tmp_path / "cells")
    visit = visits(**window)
    page = visit.page
    page.wait_for_function(ANSWERED)
    page.locator("#upload input[type=file]").first.set_input_files(str(tmp_path / "people.zip"))
    page.locator("#answer .lk-acts").wait_for()
    page.locator("#answer .lk-model", has_text="24 cells of 12 people").wait_for()
    button = page.locator(".lk-all-rows", has_text="All 12 people")
    button.wait_for()
    page.wait_for_timeout(200)
    end = page.locator(".lk-many").evaluate("(list) => list.getBoundingClientRect().bottom")
    bottoms = page.locator(".lk-subject").evaluate_all(
        "(rows) => rows.map((row) => row.getBoundingClientRect().bottom)"
    )
    assert min(abs(bottom - end) for bottom in bottoms) <= 1, "a whole row is the last one"
    assert end <= button.bounding_box()["y"] + 1
    assert page.locator("#answer .lk-way-out").count() == 0, "nobody has five cells"
    if window is LAPTOP:
        meters = page.locator("#answer .lk-trust tbody tr").last.bounding_box()
        acts = page.locator("#answer .lk-acts").bounding_box()
        assert meters["y"] + meters["height"] <= acts["y"], "how far to trust it is in sight"
    button.click()
    assert not button.is_visible()
    stage = page.locator("#picture").bounding_box()
    last = page.locator(".lk-subject").last.bounding_box()
    assert last["y"] + last["height"] <= stage["y"] + stage["height"] + 1, "all are on the stage"
    if window is LAPTOP:
        page.mouse.wheel(0, 2000)
        page.wait_for_timeout(300)
        assert page.locator("#answer .lk-verdict").bounding_box()["y"] >= 0, "the answer stays in sight"
