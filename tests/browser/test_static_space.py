"""The page of a static Space in Chromium: it decides as `Predictor` does, draws its map, and sends no picture."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, Predictor
from leukoscope.data.images import open_image
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.hub.space import write_static_space
from leukoscope.inference.ood import picture_statistics
from leukoscope.inference.prediction import NOT_A_CELL, OUT_OF_DISTRIBUTION, Prediction
from leukoscope.models.release import read_release
from leukoscope.reports.formatting import encoded
from leukoscope.reports.text import (
    FOREIGN_VERDICT,
    MAP_CAVEAT,
    ORIENTATION_NAMES,
    decision_text,
    foreign_text,
    in_training_text,
)
from leukoscope.reports.trust import training_subject, trust_rows
from leukoscope.synthetic import EXAMPLE_CELLS, draw_cell, example_cell
from leukoscope.web.answer import views_of
from served import LAYOUT_SHIFT, watched
from zips import cell_png, png

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "model_card" / "leukoscope-densenet169-cnmc"
ANOTHER = ROOT / "model_card" / "leukoscope-efficientnet-b3-cnmc"  # whose maps passed their checks
ANSWERED = '#result[data-views="8"]:not([hidden]), #status.lk-message'
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark",
}  # fmt: skip


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is pytest's."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, npm_packages: Path) -> Iterator[str]:
    """The folder of a static Space, served to this machine alone."""
    folder = tmp_path_factory.mktemp("static") / "space"
    runtime = npm_packages / "node_modules" / "onnxruntime-web"
    releases = [read_release(release) for release in (RELEASE, ANOTHER)]
    write_static_space(releases, folder, title="Cells & <mine>", runtime=runtime)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained(RELEASE, backend="torch")


@pytest.fixture(scope="module")
def page(chromium: Any, address: str) -> Iterator[Any]:
    with watched(chromium, address, ANSWERED, viewport={"width": 1280, "height": 720}) as page:
        yield page


def ask(page: Any, path: Path) -> dict[str, Any]:
    """What the page answers for a file; its line of text where it gives no result."""
    page.evaluate(
        "document.querySelector('#status').className = ''; document.querySelector('#result').dataset.views = 0"
    )
    page.locator("#file").set_input_files(str(path))
    page.locator(ANSWERED).wait_for()
    if not page.locator("#result").is_visible():
        return {"problem": page.locator("#status").inner_text()}
    with page.expect_download() as download:
        page.locator("#save").click()
    return json.loads(Path(download.value.path()).read_text())


def assert_alike(ours: dict[str, Any], theirs: Prediction) -> None:
    assert ours["outcome"] == theirs.outcome.replace("not a cell", "out of distribution")
    # Of a whole field of view the page says only that it is out of distribution.
    reasons = [reason for reason in theirs.decision.reasons if reason.code != "field_of_view"]
    assert [reason["code"] for reason in ours["reasons"]] == [reason.code for reason in reasons]
    for found, reason in zip(ours["reasons"], reasons, strict=True):
        assert found["value"] == pytest.approx(reason.value, rel=1e-3, abs=1e-3)
        # But for the number's last digit.
        assert re.sub(r"\d", "0", found["text"]) == re.sub(r"\d", "0", reason.text)
    assert ours["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-3)
    assert ours["ood_score"] == pytest.approx(theirs.checks.ood_score, rel=1e-3)
    assert ours["view_box"] == pytest.approx(theirs.view_box)
    assert ours["notice"] == RESEARCH_NOTICE


def pictures(folder: Path) -> list[Path]:
    """Cut-out cells, a smear, a blank page, sides that do not divide evenly, another format."""
    made = {
        "leukaemic.png": draw_cell("ALL", subject=4, cell=1).image,
        "normal.bmp": draw_cell("HEM", subject=9, cell=2).image,
        "wide.png": draw_cell("HEM", subject=2, cell=0, size=301).image[20:],
        "smear.png": draw_cell("ALL", subject=1, cell=1, background="smear").image,
        "blank.png": np.full((97, 333, 3), 250, np.uint8),
        "lossless.webp": draw_cell("ALL", subject=7, cell=0).image,
    }
    for name, pixels in made.items():
        Image.fromarray(pixels).save(folder / name, lossless=True)
    return [folder / name for name in made]


@pytest.fixture
def phone(chromium: Any, address: str) -> Iterator[Any]:
    with watched(chromium, address, ANSWERED, **PHONE) as page:
        yield page


@pytest.mark.parametrize("device", ["page", "phone"])
def test_an_example_is_answered_on_the_stage_of_the_demo(request: pytest.FixtureRequest, device: str) -> None:
    page = request.getfixturevalue(device)
    size = page.viewport_size
    assert page.locator("h1").inner_text() == "Cells & <mine>", "a title is text"
    assert page.locator("#caption").inner_text() == "Synthetic ALL"
    assert page.locator("#outcome").inner_text() == "Looks like a leukaemic blast"
    assert page.locator("#agreement").inner_text() == "The same in all eight orientations"
    assert page.locator("#dots i").count() == 8
    outside, inside = trust_rows(read_release(RELEASE).metrics)
    people = page.locator("#trust tbody th").all_inner_texts()
    assert people[0].startswith(outside.name) and people[1].startswith(inside.name), "further people first"
    meters = [meter.name for row in (outside, inside) for meter in row.meters]
    shown = page.locator("#trust .lk-meter")
    assert [shown.nth(k).get_attribute("aria-label") for k in range(shown.count())] == meters
    assert page.locator("#examples button").count() == len(EXAMPLE_CELLS) == 6
    assert page.evaluate("document.fonts.check('15px IBM Plex Sans')")
    assert page.locator("#divider").is_hidden(), "its maps failed their checks: the plain cell comes first"
    page.locator("[data-view=map]").click()
    assert "this model's maps failed our checks" in page.locator("#tools").inner_text()
    assert "map strength" in page.locator("#tools").inner_text()
    first = ["#notice", "#stage-of", "#tools", "#outcome"]
    for shown in first + (["#drop", "#examples button"] if device == "page" else []):
        box = page.locator(shown).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"], f"{shown}: {box}"
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    stage = page.locator("#stage-of .lk-both").bounding_box()
    assert "maps failed our checks" in page.locator("#map-of").text_content()
    height = stage["y"] + stage["height"] / 3
    page.mouse.move(stage["x"] + stage["width"] / 2, height)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4, height, steps=4)
    page.mouse.up()
    assert 20 <= float(page.locator("#divider").get_attribute("aria-valuenow")) <= 30
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(18, 16, 22)") == (size["width"] == 390)


@pytest.mark.parametrize("look", [{"viewport": {"width": 1280, "height": 720}}, PHONE], ids=["laptop", "phone"])
def test_nothing_moves_while_the_page_loads_and_answers(chromium: Any, address: str, look: dict[str, Any]) -> None:
    with watched(chromium, address, ANSWERED, LAYOUT_SHIFT, **look) as page:
        assert page.locator("#others button").is_visible()
        assert page.evaluate("window.shifted") <= 0.01


def test_the_page_predicts_and_decides_as_the_predictor_does(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    outcomes = set()
    for path in pictures(tmp_path):
        theirs = predictor(path, explain=True, method="evidence")
        outcomes.add(theirs.outcome)
        assert_alike(ask(page, path), theirs)
        shown = decision_text(theirs.decision, theirs.probabilities, predictor.release.metrics)
        if theirs.outcome != NOT_A_CELL:  # of which the page says only that it is out of distribution
            refused = theirs.outcome == OUT_OF_DISTRIBUTION
            assert page.locator("#outcome").inner_text() == (FOREIGN_VERDICT if refused else shown.short)
            because = foreign_text(theirs.decision) if refused else shown.because
            assert because in page.locator("#notes").text_content()
        assert page.locator("#would li").count() == 2
        assert page.locator("#notice").inner_text() == RESEARCH_NOTICE
    assert len(outcomes) > 2


def test_real_cells_have_the_predictors_probabilities(page: Any, predictor: Predictor, real_data: Path) -> None:
    files = sorted((real_data / "cnmc2019").rglob("*.bmp"))[:2]
    assert files
    for path in files:
        assert_alike(ask(page, path), predictor(path, explain=True, method="evidence"))


def test_the_map_lies_over_the_picture_as_the_predictor_draws_it(
    page: Any, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "cell.png"
    Image.fromarray(example_cell("ALL", 0)).save(path)
    assert ask(page, path)["outcome"] == "ALL", "a refused picture has no map"
    page.locator("[data-view=map]").click()
    drawn = page.evaluate("document.querySelector('#overlay').toDataURL()").partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(drawn))) as image:
        ours = np.asarray(image.convert("RGB"))
    theirs = np.asarray(predictor(path, explain=True, method="evidence").overlay())
    assert ours.shape == theirs.shape
    assert (np.abs(ours.astype(int) - theirs).max(axis=2) <= 3).mean() > 0.999, "its lines, too"
    assert (ours.max(axis=2) - ours.min(axis=2) > 60).mean() > 0.02
    assert page.locator("#map-of").text_content().endswith(MAP_CAVEAT)


def test_a_cell_is_shown_in_its_eight_orientations_with_what_is_said_of_each(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "cell.png"
    pixels = example_cell("HEM", 1)[:, 20:]
    Image.fromarray(pixels).save(path)
    ask(page, path)
    page.locator("[data-view=turned]").click()
    forms = page.locator("#forms li")
    assert forms.count() == 8 and page.locator("#stage-of").is_hidden()
    assert [forms.nth(number).locator("span").inner_text() for number in range(8)] == list(ORIENTATION_NAMES)
    assert re.fullmatch(r"not sure|(HEM|ALL)\s\D?\d+\s%", forms.nth(5).locator("b").inner_text())
    drawn = page.evaluate("[...document.querySelectorAll('#forms canvas')].map(one => one.toDataURL())")
    for ours, theirs in zip(drawn, views_of(Image.fromarray(pixels)), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(ours.partition(",")[2]))) as image:
            side = image.width / theirs.width
            assert image.height == pytest.approx(theirs.height * side, abs=1)
            small = np.asarray(theirs.resize(image.size, Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(np.asarray(image.convert("RGB")) - small).mean() < 3
    page.locator("[data-view=cell]").click()
    assert page.locator("#stage-of").is_visible() and page.locator("#forms").is_hidden()


def test_a_refused_picture_says_how_far_it_is_by_colour_texture_and_shape(
    page: Any, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "smear.png"
    Image.fromarray(draw_cell("ALL", subject=1, cell=1, background="smear").image).save(path)
    assert ask(page, path)["outcome"] == OUT_OF_DISTRIBUTION
    assert predictor.ood is not None
    distances = predictor.ood.group_distances(predictor.release.preprocessing.frame(open_image(path)))
    rows = page.locator("#distances li")
    assert rows.locator("span").all_inner_texts() == ["colour", "texture", "size and outline"]
    shown = [float(times.removesuffix(" ×")) for times in rows.locator("b").all_inner_texts()]
    assert shown == pytest.approx(list(distances.values()), abs=0.06)
    assert page.locator("#views").is_hidden(), "nothing but the picture is shown"


def test_a_file_named_after_a_person_of_the_training_gets_the_caveat(page: Any, tmp_path: Path) -> None:
    for name, subject in (("UID_11_3_1_all.png", "11"), ("UID_H12_2_1_hem.png", "H12"), ("UID_999_1_1_all.png", "")):
        Image.fromarray(example_cell("ALL", 0)).save(tmp_path / name)
        ask(page, tmp_path / name)
        assert training_subject(read_release(RELEASE).metrics, name) == subject
        assert (in_training_text(subject) in page.locator("#notes").text_content()) == bool(subject), name


def test_another_model_is_downloaded_only_when_it_is_chosen(chromium: Any, address: str) -> None:
    with watched(chromium, address, ANSWERED, viewport={"width": 1280, "height": 720}) as page:
        graphs: list[str] = []
        page.on("request", lambda request: graphs.append(request.url) if request.url.endswith(".onnx") else None)
        line = page.locator("#others button")
        assert re.fullmatch(r"read by efficientnet-b3-cnmc\s*downloads 44 MB", line.inner_text())
        page.locator("#examples button").nth(3).click()
        page.locator("#caption", has_text="Synthetic HEM").wait_for()
        page.locator(ANSWERED).wait_for()
        assert graphs == []
        line.click()
        page.locator(f'#result[data-model="{ANOTHER.name}"][data-views="8"]:not([hidden])').wait_for()
        assert len(graphs) == 1 and ANOTHER.name in graphs[0]
        assert page.locator("#model").inner_text() == "efficientnet-b3-cnmc · its maps passed our checks"
        assert page.locator("#divider").is_visible(), "a map that passed comes first"
        assert "failed" not in page.locator("#tools").inner_text()
        assert "densenet169-cnmc" in line.inner_text() and "%" in line.inner_text()
        theirs = Predictor.from_pretrained(ANOTHER, backend="torch")(example_cell("HEM", 0))
        with page.expect_download() as download:
            page.locator("#save").click()
        ours = json.loads(Path(download.value.path()).read_text())
        assert ours["model"] == ANOTHER.name
        assert ours["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-3)


def test_a_picture_can_be_pasted_or_dropped(page: Any) -> None:
    for kind, data in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(_GIVEN, [kind, data, f"{kind}.png"])
        page.locator("#caption", has_text=f"{kind}.png").wait_for()
        page.locator(ANSWERED).wait_for()


_GIVEN = """async ([kind, data, name]) => {
  const blob = await (await fetch(document.querySelectorAll('#examples button')[3].dataset.file)).blob()
  const transfer = new DataTransfer()
  transfer.items.add(new File([blob], name, {type: 'image/png'}))
  const event = new Event(kind, {bubbles: true, cancelable: true})
  Object.defineProperty(event, data, {value: transfer})
  document.body.dispatchEvent(event)
}"""


def test_framing_gives_the_pixels_of_python(page: Any, tmp_path: Path) -> None:
    # Text passes between the two at once, numbers one by one.
    ask_frame = """async ([file, kinds]) => {
      const {frame, pictureStatistics} = await import('./leukoscope.js')
      const bytes = Uint8Array.from(atob(file), one => one.charCodeAt())
      const bitmap = await createImageBitmap(new Blob([bytes]), {colorSpaceConversion: 'none'})
      const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d')
      context.drawImage(bitmap, 0, 0)
      const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data
      const data = Uint8Array.from(rgba.filter((_, place) => place % 4 != 3))
      return kinds.map(kind => {
        const {pixels, box} = frame({width: bitmap.width, height: bitmap.height, data}, kind)
        return [Array.from(pixels.data, one => String.fromCharCode(one)).join(''), box, pictureStatistics(pixels)]
      })
    }"""
    base = Preprocessing(90, 0.7777)
    kinds = [
        replace(base, interpolation=interpolation, image_size=size)
        for interpolation, size in (("bicubic", 96), ("bilinear", 131), ("lanczos", 65))
    ]
    settings = [vars(kind) | {"resized_side": kind.resized_side} for kind in kinds]
    for path in pictures(tmp_path):
        framed, image = (
            page.evaluate(ask_frame, [base64.b64encode(path.read_bytes()).decode(), settings]),
            open_image(path),
        )
        for kind, (values, box, statistics) in zip(kinds, framed, strict=True):
            theirs = kind.frame(image)
            assert values.encode("latin-1") == theirs.tobytes(), (path.name, kind)
            assert box == pytest.approx(kind.view_box(image))
            assert statistics == pytest.approx(picture_statistics(theirs).tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("notes.txt", b"no picture", "notes.txt: is no picture that is read here; give a PNG, JPEG, WebP or BMP file."),
        ("cut.png", b"\x89PNG\r\n", "cut.png: is no picture that this browser can open; give a PNG, JPEG, WebP or BMP"),
        ("tiny.png", png(4), "tiny.png: is 4×4 pixels, too small for a cell; give at least 8×8."),
        (
            "clear.png",
            encoded(Image.new("RGBA", (64, 64)), "PNG"),
            "clear.png: has transparent parts; save it without transparency.",
        ),
        (
            "strip.png",
            encoded(Image.new("RGB", (400, 10)), "PNG"),
            "strip.png: is 400×10 pixels, one side more than 10 times the other; crop it to",
        ),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(page: Any, tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    (problem,) = ask(page, tmp_path / name).values()
    assert problem.startswith(told) and "\n" not in problem


def test_what_the_last_line_says_is_read_without_scrolling(page: Any) -> None:
    texts = page.locator(".lk-foot details[open] > div")
    for name in ("What this page leaves out", "Licences"):
        page.locator(".lk-foot summary", has_text=name).click()
        assert texts.count() == 1, "one at a time"
        box = texts.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"]
    page.keyboard.press("Escape")
    assert texts.count() == 0


def test_a_map_that_failed_its_checks_is_no_caution_beside_the_verdict(page: Any) -> None:
    """It cited a map that is not in sight, of a model whose maps failed."""
    page.locator("#examples button").nth(2).click()
    page.locator("#map-of", has_text="of its map lies on the cell").wait_for(state="attached")
    assert page.locator("#result").is_visible() and "of its map" not in page.locator("#notes").inner_text()


def test_the_same_file_can_be_given_again(page: Any, tmp_path: Path) -> None:
    (tmp_path / "cell.png").write_bytes(cell_png("ALL", 5, 1))
    first = ask(page, tmp_path / "cell.png")
    page.locator("#examples button").nth(4).click()
    page.locator("#caption", has_text="Synthetic HEM").wait_for()
    page.locator(ANSWERED).wait_for()  # of all its views: the page notices no other file before
    assert ask(page, tmp_path / "cell.png")["probabilities"] == first["probabilities"]


def test_the_browser_refuses_every_request_to_another_server(chromium: Any, address: str) -> None:
    page = chromium.new_page()  # not one that is watched: Chromium reports what it refuses
    page.goto(address)
    # The address of this very server by another name: it would answer.
    other = address.replace("127.0.0.1", "localhost")
    refused = page.evaluate("(url) => fetch(url, {mode: 'no-cors'}).then(() => '', (error) => error.message)", other)
    assert refused
    assert page.evaluate("(url) => fetch(url).then((found) => found.ok)", address)
    page.close()
