"""Evidence and API in Chromium: what folds, scrolls and leads somewhere; what the page says to call really answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope.synthetic import example_cell

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
ROOT = Path(__file__).parents[2]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LOOKS: list[dict[str, Any]] = [{"viewport": {"width": 1280, "height": 720}}, PHONE]
# Words that are broken between two letters: their last part is on another line.
_BROKEN_WORDS = """() => [...document.querySelectorAll('#evidence-page :is(th, td, summary, dt)')].flatMap((cell) => {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT)
  const broken = []
  while (texts.nextNode()) for (const match of texts.currentNode.data.matchAll(/[a-z]+/g)) {
    const range = document.createRange()
    range.setStart(texts.currentNode, match.index)
    range.setEnd(texts.currentNode, match.index + match[0].length)
    if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) broken.push(match[0])
  }
  return broken
})"""


def opened(visits: Callable[..., Any], name: str, shows: str, **look: Any) -> Any:
    """The page of this tab."""
    page = visits(**look).page
    page.get_by_role("link", name=name).first.click()
    page.locator(shows).first.wait_for()
    return page


@pytest.mark.parametrize("look", LOOKS, ids=["laptop", "phone"])
def test_evidence_folds_scrolls_in_its_boxes_and_breaks_no_word(
    visits: Callable[..., Any], look: dict[str, Any]
) -> None:
    page = opened(visits, "Evidence", "#card h1", **look)
    summaries = page.locator("#card summary")
    opens = {
        summaries.nth(number).inner_text(): summaries.nth(number).evaluate("one => one.parentElement.open")
        for number in range(summaries.count())
    }
    assert opens.pop("What it is not for")
    assert len(opens) >= 7 and not any(opens.values())
    page.locator("#card summary", has_text="Use it").click()
    assert page.locator("#card pre").first.is_visible()
    closed = page.locator("#card details:not([open]) > summary")
    while closed.count():
        closed.first.click()
    assert cut_lines(page, "#card pre") == []
    assert page.evaluate(_BROKEN_WORDS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= look["viewport"]["width"]
    page.get_by_role("button", name="Small changes").click()
    box = page.locator("#lk-small-changes").bounding_box()
    assert 0 <= box["y"] < look["viewport"]["height"] / 2, "its heading is in sight, below the line on top"
    small = page.evaluate(
        "[...document.querySelectorAll('#evidence-page :is(button, summary)')]"
        ".filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 43.5)"
        ".map(one => one.textContent)"
    )
    assert not look.get("is_mobile") or small == []


def test_on_a_phone_each_model_has_room_above_and_below(visits: Callable[..., Any]) -> None:
    """Their names touched the line above."""
    page = opened(visits, "Evidence", "#card h1", **PHONE)
    rooms = page.locator(".lk-models > div").evaluate_all(
        """rows => rows.map(row => {
          const texts = document.createRange()
          texts.selectNodeContents(row.querySelector('.lk-choose') ?? row.firstElementChild)
          const words = texts.getBoundingClientRect()
          const last = row.querySelector('summary') ?? row.lastElementChild
          texts.selectNodeContents(last.lastElementChild ?? last)
          const box = row.getBoundingClientRect()
          return [words.top - box.top, box.bottom - texts.getBoundingClientRect().bottom]
        })"""
    )
    assert len(rooms) >= 3
    assert all(15 <= room <= 24 for both in rooms for room in both), rooms


def test_the_card_s_columns_start_at_the_same_height_and_have_the_same_gaps(visits: Callable[..., Any]) -> None:
    """The right one was stretched to the height of the left one."""
    page = opened(visits, "Evidence", "#card h1")
    columns = page.locator("#card .md > div > div")
    tops = columns.evaluate_all("both => both.map(one => one.firstElementChild.getBoundingClientRect().top)")
    assert abs(tops[0] - tops[1]) < 1
    gaps = columns.evaluate_all(
        """both => both.flatMap(one => [...one.querySelectorAll('details + details')].map(
          fold => fold.getBoundingClientRect().top - fold.previousElementSibling.getBoundingClientRect().bottom))"""
    )
    assert len(gaps) >= 4 and max(gaps) - min(gaps) < 1, gaps


@pytest.mark.parametrize("look", LOOKS, ids=["laptop", "phone"])
def test_words_have_the_sizes_of_the_page_in_the_card_too(visits: Callable[..., Any], look: dict[str, Any]) -> None:
    """Gradio's 14 px stood below the page's 15."""
    page = opened(visits, "Evidence", "#card h1", **look)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    verdict = 24 if look.get("is_mobile") else 28
    assert sizes_of_words(page) == {13, 15, 18, verdict}
    card = {
        tag: page.locator(f"#card {tag}").first.evaluate("one => getComputedStyle(one).fontSize")
        for tag in ("h1", "p", "li", "td", "code", "pre code")
    }
    assert card == {"h1": "18px", "p": "15px", "li": "15px", "td": "13px", "code": "13px", "pre code": "13px"}
    page.get_by_role("link", name="API").first.click()
    page.locator("#api pre").first.wait_for()
    assert sizes_of_words(page) <= {13, 15, 18, verdict}


def sizes_of_words(page: Any) -> set[float]:
    """The sizes of all words in sight, in pixels."""
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
          .filter(one => one.checkVisibility())
          .filter(one => [...one.childNodes].some(part => part.nodeType === 3 && part.data.trim()))
          .map(one => parseFloat(getComputedStyle(one).fontSize))"""
    )
    return set(sizes)


def cut_lines(page: Any, code: str) -> list[str]:
    """The pieces of code of which a line is cut."""
    return page.locator(code).evaluate_all(
        "parts => parts.filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"
    )


def test_on_a_phone_the_calls_of_the_api_page_are_read_in_full(visits: Callable[..., Any]) -> None:
    """Their lines were cut at the edge of the window."""
    page = opened(visits, "API", "#api pre", **PHONE)
    assert cut_lines(page, "#api pre") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    copied = page.locator("#api pre").first.inner_text().splitlines()
    assert copied[0] == "from gradio_client import Client, handle_file", "set in on the page alone"


def test_the_heads_of_the_small_changes_name_the_greys_of_the_bars(visits: Callable[..., Any]) -> None:
    """The figures had heads without words, far from the legend."""
    page = opened(visits, "Evidence", "#card h1")
    heads = page.locator(".lk-changes thead :is(th, td)")
    words = [text.strip() for text in heads.all_inner_texts()]
    assert words == ["the picture is", "another class", "not sure", "refused", "the same answer", ""]
    lines = page.locator(".lk-changes thead th").evaluate_all("heads => heads.map(head => head.clientHeight)")
    assert max(lines) < 40, "each on one line"
    greys = page.locator(".lk-changes thead .lk-key").evaluate_all(
        "keys => keys.map(key => getComputedStyle(key).backgroundColor)"
    )
    assert len(set(greys)) == 4
    heights = (
        page.locator(".lk-changes tbody tr")
        .first.locator(".lk-bar i")
        .evaluate_all("parts => parts.map(part => part.getBoundingClientRect().height)")
    )
    assert max(heights) - min(heights) < 1, "one scale"
    first_row = page.locator(".lk-changes tbody tr").first.locator("td").all_inner_texts()
    assert first_row[:4] == ["13", "15", "0", "72"], "all of 100 cells"


def test_on_a_phone_the_small_changes_have_heads_of_two_lines_and_rows_of_one(visits: Callable[..., Any]) -> None:
    page = opened(visits, "Evidence", "#card h1", **PHONE)
    page.get_by_role("button", name="Small changes").click()
    heights = page.locator(".lk-changes tr").evaluate_all("rows => rows.map(row => row.clientHeight)")
    assert heights[0] < 56 and max(heights[1:]) < 32
    assert page.locator(".lk-changes thead th").last.inner_text().strip().split() == ["the", "same", "answer"]


def test_the_model_whose_figures_follow_is_chosen_and_seen_in_the_table(visits: Callable[..., Any]) -> None:
    page = opened(visits, "Evidence", "#card h1")
    table = page.get_by_role("group", name="All models")
    assert table.get_by_role("button", pressed=True).inner_text() == "densenet169-cnmc"
    # All of its place in the table is pressed.
    table.locator("th", has_text="densenet201-ball4").click(position={"x": 4, "y": 4})
    page.locator("#card h1", has_text="densenet201-ball4").wait_for()
    assert table.get_by_role("button", pressed=True).inner_text() == "densenet201-ball4"
    assert page.get_by_role("heading", name="Figures and card of densenet201-ball4").is_visible()
    chosen = page.locator(".lk-all-models tr[aria-current]")
    assert "densenet201-ball4" in chosen.inner_text()
    grounds = page.locator(".lk-all-models tbody tr").evaluate_all(
        "rows => rows.map(row => getComputedStyle(row).backgroundColor)"
    )
    assert len(set(grounds)) == 2


@pytest.mark.parametrize("look", LOOKS, ids=["laptop", "phone"])
def test_the_chosen_model_has_an_address(visits: Callable[..., Any], look: dict[str, Any]) -> None:
    """Whoever opened the link of a card met the first model's, and Back left Evidence."""
    page = opened(visits, "Evidence", "#card h1", **look)
    card = page.locator("#card h1")
    name = page.get_by_role("button", name="densenet201-ball4")
    assert name.count() == 1, "one of the two is shown"
    name.focus()
    page.keyboard.press("Enter")
    card.filter(has_text="densenet201-ball4").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "densenet201-ball4", "the keyboard goes on from it"
    page.wait_for_url("**card=leukoscope-densenet201-ball4")
    address = page.url
    page.go_back()
    card.filter(has_text="densenet169-cnmc").wait_for()
    assert "tab=evidence" in page.url and "card=" not in page.url
    page.goto(address)
    card.filter(has_text="densenet201-ball4").wait_for()
    page.get_by_role("link", name="Cells").first.click()
    page.wait_for_url(lambda url: "card=" not in url)


@pytest.mark.parametrize("look", LOOKS, ids=["laptop", "phone"])
def test_a_model_on_evidence_leads_to_a_cell_that_it_reads(visits: Callable[..., Any], look: dict[str, Any]) -> None:
    page = opened(visits, "Evidence", "#card h1", **look)
    link = page.get_by_role("link", name="Try densenet201-ball4 on a cell")
    assert link.count() == 1, "one of the two is shown"
    link.click()
    page.locator('#answer [data-model="leukoscope-densenet201-ball4"]').wait_for()
    assert "tab=" not in page.url


def test_an_address_with_an_unknown_card_says_so_and_forgets_the_name(visits: Callable[..., Any]) -> None:
    """The first model's card stood there without a word, and the address kept the name."""
    page = opened(visits, "Evidence", "#card h1")
    page.wait_for_url("**tab=evidence**")
    page.goto(f"{page.url}&card=nobody")
    page.get_by_text("No model of that name here: nobody.").wait_for()
    page.wait_for_url(lambda url: "card=" not in url and "tab=evidence" in url)


def test_what_the_last_line_says_is_read_without_scrolling_and_moves_nothing(visits: Callable[..., Any]) -> None:
    """It unfolded below the window, and the page scrolled to it."""
    for look in (*LOOKS, {"viewport": {"width": 640, "height": 360}}):
        page = visits(**look).page
        foot = page.locator(".lk-foot")
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        before = foot.bounding_box(), page.evaluate("document.documentElement.scrollHeight")
        for name in ("Privacy", "Licences"):
            summary = foot.locator("summary", has_text=name)
            summary.focus()
            page.keyboard.press("Enter")
            text = foot.locator("details[open] > div")
            assert text.count() == 1, "one at a time"
            box = text.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= look["viewport"]["height"]
            assert box["x"] >= 0 and box["x"] + box["width"] <= look["viewport"]["width"]
            lefts = text.locator("dd").evaluate_all("lines => lines.map((line) => line.getBoundingClientRect().x)")
            assert len(lefts) >= 3 and len(set(lefts)) == 1, "each topic starts a line"
            assert before == (foot.bounding_box(), page.evaluate("document.documentElement.scrollHeight"))
        page.keyboard.press("Escape")
        assert not foot.locator("details[open]").count()
        assert page.evaluate("document.activeElement.textContent") == "Licences"
        summary.click()
        assert text.is_visible()
        summary.click()
        assert not text.is_visible()
        summary.click()
        text.get_by_role("button", name="Close").click()
        assert not text.is_visible()


_DOTS = """() => [...document.querySelectorAll('.lk-dot-plot')].map((plot) => {
  const left = [...plot.querySelectorAll(':scope > i')].map((dot) => dot.getBoundingClientRect().left)
  return left.slice(1).map((x, number) => x - left[number])
})"""
_LINES_OF_HEADS = """() => [...document.querySelectorAll('#evidence .lk-table thead th')].map((head) => {
  const range = document.createRange()
  range.selectNodeContents(head)
  return new Set([...range.getClientRects()].map((box) => box.top)).size
})"""


def test_dots_of_both_classes_have_one_distance(visits: Callable[..., Any]) -> None:
    page = opened(visits, "Evidence", "#card h1", **LOOKS[0])
    distances = [distance for plot in page.evaluate(_DOTS) for distance in plot]
    assert len(distances) > 30 and max(distances) - min(distances) < 0.5


def test_on_a_phone_plots_are_as_wide_as_the_page_and_tables_are_closed(visits: Callable[..., Any]) -> None:
    """The plot of normal cells had 60 % of the width, and evidence was 2,800 pixels long."""
    page = opened(visits, "Evidence", "#card h1", **PHONE)
    page.wait_for_timeout(500)
    widths = page.evaluate("[...document.querySelectorAll('.lk-dot-plot')].map((plot) => plot.clientWidth)")
    assert len(widths) == 2 and min(widths) > 280
    assert page.evaluate("document.documentElement.scrollHeight") < 2600
    assert not page.locator(".lk-changes").is_visible()
    page.get_by_role("button", name="Small changes").click()
    assert page.locator(".lk-changes").is_visible()


def test_the_table_has_heads_of_two_lines_at_most(visits: Callable[..., Any]) -> None:
    page = opened(visits, "Evidence", "#card h1")
    lines = page.evaluate(_LINES_OF_HEADS)
    assert len(lines) == 5 and max(lines) <= 2


def test_a_row_of_the_table_has_its_intervals_in_numbers_and_checks_of_three_lines(visits: Callable[..., Any]) -> None:
    """The checks had five lines beside a column that was half empty."""
    page = opened(visits, "Evidence", "#card h1", **LOOKS[0])
    intervals = page.locator(".lk-all-models .lk-interval")
    assert intervals.first.inner_text() == "(62–96)" and intervals.first.is_visible()
    heights = page.locator(".lk-all-models .lk-measured").evaluate_all(
        "rows => rows.map(row => row.getBoundingClientRect().height)"
    )
    assert heights and max(heights) <= 21, "each on one line"
    lines = page.locator(".lk-all-models tbody td:last-child:not([colspan])").evaluate_all(
        """cells => cells.map(cell => {
          const words = document.createRange()
          words.selectNodeContents(cell)
          return words.getBoundingClientRect().height
        })"""
    )
    assert lines and max(lines) < 64


@pytest.mark.parametrize("width", [768, 1101])
def test_on_a_tablet_the_table_fits(visits: Callable[..., Any], width: int) -> None:
    """It scrolled sideways."""
    page = opened(visits, "Evidence", "#card h1", viewport={"width": width, "height": 1024})
    table = page.locator(".lk-all-models")
    assert table.is_visible() and table.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_the_page_ends_without_a_hole(visits: Callable[..., Any]) -> None:
    """The right column of the card ended half-way, and a phone's page in a stretch of ground."""
    page = opened(visits, "Evidence", "#card h1")
    left, right = page.locator("#card .md > div > div > details:last-child").evaluate_all(
        "sections => sections.map((section) => section.getBoundingClientRect().bottom)"
    )
    assert abs(left - right) <= 24
    page = opened(visits, "Evidence", "#card h1", **PHONE)
    assert page.evaluate(
        "document.documentElement.scrollHeight - scrollY"
        " - document.querySelector('#evidence-page').getBoundingClientRect().bottom < 2"
    )


def test_on_a_phone_the_rows_of_the_table_fold(visits: Callable[..., Any]) -> None:
    """With all closed, evidence is three windows long; a row opens by the keyboard, too."""
    page = opened(visits, "Evidence", "#card h1", **PHONE)
    page.evaluate("document.querySelectorAll('#evidence-page details').forEach((one) => { one.open = false })")
    assert page.evaluate("document.documentElement.scrollHeight") < 2600
    row = page.locator(".lk-models > div").first
    assert "further people" in row.locator("small").first.inner_text() and not row.locator("dl").is_visible()
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    assert row.locator("dl").is_visible() and "AUROC" in row.locator("dl").inner_text()
    assert not row.locator("dl [aria-label^='81 of 100 blasts']").count(), "its line shows this meter"
    page.locator("#card summary", has_text="How good it is").click()
    table = page.locator("#card .lk-scrolls").first
    assert table.is_visible() and table.evaluate("one => one.scrollWidth <= one.clientWidth"), "its AUROC was cut"


def test_the_calls_of_the_api_page_answer(visits: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(visits, "API", "#api pre")
    page.wait_for_url("**tab=api**")
    Image.fromarray(example_cell("ALL", 0)).save(tmp_path / "cell.png")
    calls = page.locator("#api pre")
    code = [calls.nth(number).text_content().replace("path/to", str(ROOT / "model_card")) for number in range(3)]
    assert page.url.partition("?")[0] in code[0] and page.url.partition("?")[0] in code[1]
    commands = [[sys.executable, "-c", code[0]], ["bash", "-ec", code[1]], [sys.executable, "-c", code[2]]]
    answers = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300) for command in commands
    ]
    assert [answer.returncode for answer in answers] == [0, 0, 0], [answer.stderr[-500:] for answer in answers]
    python, curl, pipeline = (answer.stdout for answer in answers)
    assert "Loaded as API" not in python.splitlines()[-1] and python.splitlines()[-1].startswith("ALL {")
    assert "event: complete" in curl and '["ALL"' in curl
    assert pipeline.splitlines()[-1].startswith("[{'label': 'ALL'")


def test_a_call_is_copied_and_gradios_own_view_opens(visits: Callable[..., Any]) -> None:
    page = opened(visits, "API", "#api pre")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#api [data-copy-code]").first.click()
    page.locator("#api [data-copy-code]", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from gradio_client") and page.url.partition("?")[0] in copied
    page.locator("[data-all-parameters]").click()
    page.locator(".api-docs").wait_for()
