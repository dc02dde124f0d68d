"""The demo as a visitor meets it in a browser: one walk of each tab on a laptop, a tablet and a phone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from leukoscope.demo.components import CellStage, PeoplePlot, PictureStrip, SmearStage, VerdictCard
from leukoscope.synthetic import draw_cell, example_smear
from served import free_port

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LOOKS: dict[str, dict[str, Any]] = {
    "laptop": {"viewport": {"width": 1280, "height": 720}},
    "tablet": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "dark"},
    "phone": PHONE,
}
looks = pytest.mark.parametrize("look", LOOKS)
Visits = Callable[..., Any]
ATTACK = "${document.body.remove()}{{#each}}<img src=x onerror=document.body.remove()>`\\"
PLACE = {"left": 40, "top": 40, "width": 20, "height": 20}  # of a box
# What each tab shows last.
LAST_OF = {
    "Cell": "#cell-card .others button:nth-child(2)",
    "Smear": "#smear-card .cells button",
    "Batch": "#people h2",
    "Evidence": "#model-card :text('The card ends.')",
}
FIRST_FOLD = "document.querySelector('#cell-card h2').getBoundingClientRect().bottom <= innerHeight"


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A cell, and a smear, as a visitor has them."""
    paths = {"cell": tmp_path / "my ${1} cell.png", "smear": tmp_path / "smear.png"}
    Image.fromarray(draw_cell("ALL", subject=0, cell=0).image).save(paths["cell"])
    Image.fromarray(example_smear()).save(paths["smear"])
    return paths


@looks
def test_one_cell(visits: Visits, pictures: dict[str, Path], look: str) -> None:
    visit = visits(**LOOKS[look])
    page = visit.page
    assert visit.answered() == "Looks like a leukaemic blast"
    page.locator("#cell-card .others button").nth(1).wait_for()
    read = re.sub(r"\s+", " ", visit.text("#cell-card"))
    assert len(read.split()) <= 60 and len(re.findall(r"(?<![\w-])\d+(?![\w-])", read)) <= 12, read
    assert page.evaluate(FIRST_FOLD) and visit.is_no_wider_than_its_window
    assert page.evaluate("window.shifted") < 0.1
    # Its stability, from the dots; the map, whose check stands there before it is looked at.
    page.locator("#cell-card .checks").click()
    assert page.locator("#cell-stage figure:visible").count() == 16
    assert "unreliable" in visit.text("#cell-stage .pill")
    page.locator("#cell-stage label:has([value=map])").click()
    visit.sees("do not read them")
    page.get_by_role("button", name="Show that of efficientnet-b3-cnmc").click()
    visit.answered(model="efficientnet-b3-cnmc · its maps passed our checks")
    page.locator("#cell-card .others button").nth(1).wait_for()
    divider = page.locator("#cell-stage .divider")
    divider.focus()
    page.keyboard.press("ArrowRight")
    assert divider.input_value() == "51"
    # More is open still when something else is chosen, and the address opens it again.
    page.locator("#cell-card summary").click()
    page.locator("#cell-strip button").nth(3).click()
    visit.answered(verdict="normal cell")
    page.locator("#cell-card details[open]").wait_for()
    page.wait_for_url(lambda url: "example=4" in url and "efficientnet" in url and "view=map" in url)
    # An own picture is shown at once; after a reload the page says that it was not kept.
    page.set_input_files("#cell-strip .file >> nth=0", pictures["cell"])
    # A phone shows no name beside a map.
    page.locator("#cell-stage .name", has_text="my ${1} cell.png").wait_for(state="attached")
    visit.answered()
    page.reload()
    visit.refused("Your picture was not kept")
    assert page.locator("#cell-stage .cell img").count() == 0
    page.set_input_files("#cell-strip .file >> nth=0", {"name": "a.png", "mimeType": "image/png", "buffer": b"none"})
    visit.refused("a.png: is not an image")


@looks
def test_a_smear(visits: Visits, pictures: dict[str, Path], look: str) -> None:
    visit = visits(**LOOKS[look])
    page = visit.page
    visit.open("Smear")
    page.locator("#smear-card .cells button").nth(4).wait_for()
    page.locator("#smear-stage summary", has_text="0.12 µm per pixel, as given").wait_for()
    assert page.locator("#smear-stage .field > button").count() == 5 and visit.is_no_wider_than_its_window
    halves = page.locator(".stage-and-answer:has(#smear-stage)")
    assert halves.evaluate("halves => halves.scrollHeight <= halves.clientHeight"), "nothing of the answer is cut"
    page.locator("#smear-stage .field > button").first.click()
    page.locator("#cell-stage .name", has_text="Cell 1 of Synthetic smear").wait_for()
    visit.answered()
    page.wait_for_url(lambda url: "example=smear" in url and "cell=1" in url)
    page.get_by_role("button", name="Back to the smear").click()
    # A smear given as a cell opens its tab by itself; its scale can be set.
    visit.open("Cell")
    page.set_input_files("#cell-strip .file >> nth=0", pictures["smear"])
    page.locator("#smear-stage .name", has_text="smear.png").wait_for()
    page.locator("#smear-stage summary", has_text="from its red cells").click()
    page.locator("#smear-stage [name=um]").fill("0.2")
    page.locator("#smear-stage form button").click()
    page.locator("#smear-stage summary", has_text="0.2 µm per pixel, as given").wait_for()


def test_a_smear_given_as_a_cell_stands_where_the_synthetic_one_would(
    visits: Visits, pictures: dict[str, Path]
) -> None:
    visit = visits()
    page = visit.page
    page.set_input_files("#cell-strip .file >> nth=0", pictures["smear"])
    page.locator("#smear-card .cells button").first.wait_for()
    page.wait_for_timeout(1000)
    assert visit.text("#smear-stage .name") == "smear.png"
    page.wait_for_url(lambda url: "own=1" in url and "tab=smear" in url)
    page.reload()
    visit.refused("Your picture was not kept")


@looks
def test_a_batch(visits: Visits, look: str) -> None:
    visit = visits("?example=people", "#people .person", **LOOKS[look])
    page = visit.page
    page.locator("#cells table").first.wait_for()
    assert visit.text("#people h2") == "112 of 112 pictures read"
    rows = page.locator("#people .person")
    assert rows.count() == 2 and "Looks like ALL" in rows.nth(0).inner_text()
    assert visit.is_no_wider_than_its_window
    # A person is one stop of the Tab key; arrow keys go on, and what is in focus is named.
    rows.nth(0).locator("circle").first.focus()
    page.keyboard.press("ArrowRight")
    name = rows.nth(0).locator("circle").nth(1).locator("title").text_content()
    assert visit.text("#people .axis span:nth-child(2)") == name
    page.keyboard.press("Enter")
    page.locator("#cell-stage .name", has_text=name.partition(":")[0]).wait_for()
    page.get_by_role("button", name="Back to the batch").click()
    rows.nth(1).wait_for()


@looks
def test_evidence(visits: Visits, look: str) -> None:
    visit = visits("?tab=evidence", "#name", **LOOKS[look])
    visit.open("Evidence")
    visit.sees("34 further people")
    visit.sees("The card ends.")
    visit.page.locator("#tested-people circle").nth(40).wait_for()
    assert visit.page.locator("#tested-people circle").count() == 41 and visit.is_no_wider_than_its_window
    # No column of a table is cut.
    table = visit.page.locator("#evidence table").first
    assert table.evaluate("table => table.getBoundingClientRect().right <= innerWidth")


def test_links_of_earlier_pages_open(visits: Visits) -> None:
    visit = visits("?example=2&model=leukoscope-efficientnet-b3-cnmc&view=turned")
    visit.answered(model="efficientnet-b3-cnmc")
    assert visit.page.locator("#cell-stage [value=stability]").is_checked()
    visit = visits("?example=smear&cell=2")
    visit.page.locator("#cell-stage .name", has_text="Cell 2 of Synthetic smear").wait_for()
    visit = visits("?example=people&cell=1")
    visit.page.locator("#cell-stage .name", has_text="synthetic-1/cell-01.png").wait_for()
    visit = visits("?example=99")
    visit.sees("The example that this address names is not here")
    visit.answered(verdict="leukaemic blast")


def test_a_server_that_is_away_is_asked_again_once_it_is_back(visits: Visits, pictures: dict[str, Path]) -> None:
    visit = visits()
    visit.answered()
    page = visit.page
    page.context.set_offline(True)
    page.set_input_files("#cell-strip .file >> nth=0", pictures["cell"])
    visit.sees("Lost: the server cannot be reached")
    page.locator("#cell-strip button").nth(3).click()
    visit.sees("The server is away. It is asked again, by itself, once it is back.")
    page.context.set_offline(False)
    visit.answered(verdict="normal cell")


def test_the_first_tab_key_leads_to_the_tabs_and_arrow_keys_between_them(visits: Visits) -> None:
    page = visits().page
    for key in ("Tab", "Enter", "ArrowRight"):
        page.keyboard.press(key)
    page.locator("[role=tab].selected:focus", has_text="Smear").wait_for()


def test_of_quick_clicks_the_last_counts(visits: Visits) -> None:
    visit = visits()
    for tile in (1, 3, 5, 2, 4):
        visit.page.locator("#cell-strip button").nth(tile).click()
    visit.page.wait_for_url(lambda url: "example=5" in url)
    visit.page.locator("#cell-stage .name", has_text="Synthetic HEM").wait_for()
    visit.answered(verdict="normal cell")


@pytest.mark.parametrize("tab", LAST_OF)
@pytest.mark.parametrize("look", ["laptop", "tablet"])
def test_axe_finds_nothing(visits: Visits, tab: str, look: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = visits(**LOOKS[look], reduced_motion="reduce")
    visit.open(tab)
    visit.page.locator(LAST_OF[tab]).last.wait_for()
    violations = axe.run(visit.page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in violations] == []


def test_no_text_from_outside_runs_as_code(chromium: Any) -> None:
    split = [{"name": "$", "words": "{document.body.remove()}", "model": "$", "label": "{1}", "title": "$"}]
    text = dict.fromkeys(
        ("problem", "model", "verdict", "maps", "people", "saved_name", "name", "scale", "title"), ATTACK
    )
    values: list[Any] = [
        VerdictCard({**text, ATTACK: ATTACK, "caveats": [ATTACK, "$", "{document.body.remove()}"], "others": split}),
        CellStage({**text, "picture": "data:,", "map_words": ATTACK, "map_of": ATTACK, "tiles": split}),
        SmearStage(
            {
                **text,
                "picture": "data:,",
                "width": 100,
                "height": 100,
                "boxes": [{**split[0], "whole": True, **PLACE}] * 3,
            }
        ),
        PeoplePlot({**text, "notes": [ATTACK, "$", "{document.body.remove()}"], "people": split}),
    ]
    with gr.Blocks() as demo:
        PictureStrip([{"name": ATTACK, "label": ATTACK, "picture": ""}], ATTACK)
        for value in values:
            value.unrender()
            value.render()
    port = free_port()
    demo.launch(server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False, share=False, inbrowser=False)
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    for part in (".card", ".stage .pill", ".stage .field", ".plot", ".strip"):
        page.locator(part).wait_for(state="attached")
    page.wait_for_timeout(500)
    # Words of boxes at the same place stand above, below and inside.
    page.add_style_tag(content=".stage { height: 400px }")
    page.locator("[data-place=above]").wait_for()
    words = page.locator(".field span").evaluate_all("spans => spans.map((span) => span.getBoundingClientRect().top)")
    assert len(set(words)) == 3
    assert page.locator("body").count() == 1 and page.locator("img[src=x]").count() == 0
    assert page.get_by_text(ATTACK).count() >= 8
    page.close()
    demo.close(verbose=False)
