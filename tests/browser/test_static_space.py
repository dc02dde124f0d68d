"""The page of a static Space in Chromium: it decides as `Predictor` does, and sends no picture."""

from __future__ import annotations

import base64
import http.server
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
from leukoscope.inference.prediction import Prediction
from leukoscope.models.release import read_release
from leukoscope.reports.words import encoded, trust_rows
from leukoscope.synthetic import EXAMPLE_CELLS, draw_cell
from served import LAYOUT_SHIFT, watched

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=1)]
ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "model_card" / "leukoscope-densenet169-cnmc"
ANSWERED = "#answer:is([data-state=class], [data-state=none], [data-state=problem])"
LAPTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 720}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark",
}  # fmt: skip
ASK_PREDICTION = """async ([file, name]) => {
  const {decode, predict} = await import('./leukoscope.js')
  const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt())
  return predict(await decode(new Blob([bytes]), name))
}"""
# Text passes between the two at once, numbers one by one.
ASK_FRAMES = """async ([file, kinds]) => {
  const {decode, frame, pictureStatistics} = await import('./leukoscope.js')
  const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt())
  const image = await decode(new Blob([bytes]), 'cell.png')
  return kinds.map((kind) => {
    const pixels = frame(image, kind)
    return [Array.from(pixels.data, (level) => String.fromCharCode(level)).join(''), pictureStatistics(pixels)]
  })
}"""
GIVE = """async ([kind, data, name]) => {
  const blob = await (await fetch(document.querySelectorAll('#examples button')[3].dataset.file)).blob()
  const transfer = new DataTransfer()
  transfer.items.add(new File([blob], name, {type: 'image/png'}))
  const event = new Event(kind, {bubbles: true, cancelable: true})
  Object.defineProperty(event, data, {value: transfer})
  document.body.dispatchEvent(event)
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is pytest's."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, npm_packages: Path) -> Iterator[str]:
    """The folder of a static Space, served to this machine alone."""
    folder = tmp_path_factory.mktemp("static") / "space"
    runtime = npm_packages / "node_modules" / "onnxruntime-web"
    write_static_space(read_release(RELEASE), folder, title="Cells & <mine>", runtime=runtime)
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
    with watched(chromium, address, ANSWERED, **LAPTOP) as page:
        yield page


def give(page: Any, path: Path) -> str:
    """Choose a file; the verdict."""
    page.evaluate("document.querySelector('#answer').dataset.state = ''")
    page.locator("#file").set_input_files(str(path))
    page.locator(ANSWERED).wait_for()
    return page.locator("#verdict").inner_text()


def ask(page: Any, path: Path) -> dict[str, Any]:
    """What the page's script answers for a file."""
    return page.evaluate(ASK_PREDICTION, [base64.b64encode(path.read_bytes()).decode(), path.name])


def assert_alike(ours: dict[str, Any], theirs: Prediction) -> None:
    assert ours["outcome"] == theirs.outcome.replace("not a cell", "out of distribution")
    # Of a whole field of view the page says only that it is out of distribution.
    reasons = [reason for reason in theirs.decision.reasons if reason.code != "field_of_view"]
    assert [reason["code"] for reason in ours["reasons"]] == [reason.code for reason in reasons]
    for found, reason in zip(ours["reasons"], reasons, strict=True):
        assert found["value"] == pytest.approx(reason.value, rel=1e-3, abs=1e-3)
        # But for the number's last digit.
        assert re.sub(r"\d", "0", found["text"]) == re.sub(r"\d", "0", reason.text)
    assert ours["probabilities"] == pytest.approx(list(theirs.probabilities.values()), abs=1e-3)
    assert ours["ood_score"] == pytest.approx(theirs.checks.ood_score, rel=1e-3)


def pictures(folder: Path) -> list[Path]:
    """Cut-out cells, a smear, a blank page, sides that do not divide evenly, another format."""
    drawn = {
        "leukaemic.png": draw_cell("ALL", subject=4, cell=1).image,
        "normal.bmp": draw_cell("HEM", subject=9, cell=2).image,
        "wide.png": draw_cell("HEM", subject=2, cell=0, size=301).image[20:],
        "smear.png": draw_cell("ALL", subject=1, cell=1, background="smear").image,
        "blank.png": np.full((97, 333, 3), 250, np.uint8),
        "lossless.webp": draw_cell("ALL", subject=7, cell=0).image,
    }
    for name, pixels in drawn.items():
        Image.fromarray(pixels).save(folder / name, lossless=True)
    return [folder / name for name in drawn]


@pytest.mark.parametrize("look", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_an_example_is_answered_beside_the_figures_of_the_release(
    chromium: Any, address: str, look: dict[str, Any]
) -> None:
    with watched(chromium, address, ANSWERED, LAYOUT_SHIFT, **look) as page:
        assert page.locator("h1").inner_text() == "Cells & <mine>", "a title is text"
        assert page.locator("#notice").inner_text() == RESEARCH_NOTICE
        assert page.locator("#name").inner_text() == "Synthetic ALL"
        assert page.locator("#verdict").inner_text() == "Probably a leukaemic blast"
        assert re.fullmatch(r">?\d+\s% ALL\s+<?\d+\s% HEM", page.locator("#probabilities").inner_text())
        assert page.locator("#examples button").count() == len(EXAMPLE_CELLS) == 6
        rows = trust_rows(read_release(RELEASE).metrics)
        figures = [f"{meter.share} {meter.low}–{meter.high}" for row in rows for meter in row.meters]
        assert [" ".join(cell.split()) for cell in page.locator("td").all_inner_texts()] == figures
        assert page.locator("tr").nth(1).inner_text().startswith(rows[0].name), "further people first"
        width = look["viewport"]["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 16, 22)"
        assert dark == (look is PHONE)
        assert page.evaluate("window.shifted") <= 0.1


def test_the_page_predicts_and_decides_as_the_predictor_does(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    verdicts = set()
    for path in pictures(tmp_path):
        theirs = predictor(path)
        assert_alike(ask(page, path), theirs)
        verdict = give(page, path)
        verdicts.add(verdict)
        has_class = theirs.decision.label is not None
        assert verdict.startswith("Probably ") == has_class
        assert page.locator("#probabilities li").count() == 2 * has_class, "without a class they are no result"
        assert page.locator("#reasons li").count() > 0 or has_class
    assert len(verdicts) > 2


def test_real_cells_have_the_predictors_probabilities(page: Any, predictor: Predictor, real_data: Path) -> None:
    files = sorted((real_data / "cnmc2019").rglob("*.bmp"))[:2]
    assert files
    for path in files:
        assert_alike(ask(page, path), predictor(path))


def test_a_picture_can_be_pasted_or_dropped_and_the_same_file_given_again(page: Any, tmp_path: Path) -> None:
    for kind, data in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(GIVE, [kind, data, f"{kind}.png"])
        page.locator("#name", has_text=f"{kind}.png").wait_for()
        page.locator(ANSWERED).wait_for()
    path = pictures(tmp_path)[0]
    assert give(page, path) == give(page, path)


def test_of_pictures_given_one_after_the_other_the_last_is_answered(page: Any, tmp_path: Path) -> None:
    first, *_, last = pictures(tmp_path)
    expected = give(page, last)
    page.locator("#file").set_input_files(str(first))
    assert give(page, last) == expected
    assert page.locator("#name").inner_text() == last.name


def test_framing_gives_the_pixels_of_python(page: Any, tmp_path: Path) -> None:
    base = Preprocessing(90, 0.7777)
    kinds = [
        replace(base, interpolation="bicubic", image_size=96),
        replace(base, interpolation="bilinear", image_size=131),
        replace(base, interpolation="lanczos", image_size=65),
    ]
    settings = [vars(kind) | {"resized_side": kind.resized_side} for kind in kinds]
    for path in pictures(tmp_path):
        image = open_image(path)
        framed = page.evaluate(ASK_FRAMES, [base64.b64encode(path.read_bytes()).decode(), settings])
        for kind, (values, statistics) in zip(kinds, framed, strict=True):
            theirs = kind.frame(image)
            assert values.encode("latin-1") == theirs.tobytes(), (path.name, kind)
            assert statistics == pytest.approx(picture_statistics(theirs).tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("notes.txt", b"no picture", "is no picture that this browser can open; give a PNG, JPEG, WebP or BMP file."),
        ("tiny.png", encoded(Image.new("RGB", (4, 4)), "PNG"), "is 4×4 pixels, too small for a cell; give at least"),
        ("clear.png", encoded(Image.new("RGBA", (64, 64)), "PNG"), "has transparent parts; save it without"),
        ("strip.png", encoded(Image.new("RGB", (400, 10)), "PNG"), "is 400×10 pixels, one side more than 10 times"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(
    page: Any, tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    sentence = give(page, tmp_path / name)
    assert sentence.startswith(f"{name}: {problem}") and "\n" not in sentence
    assert page.locator("#probabilities li, #reasons li").count() == 0
    assert page.evaluate("document.querySelector('#cell').width") == 1, "the picture before it is gone"


def test_the_browser_refuses_every_request_to_another_server(chromium: Any, address: str) -> None:
    page = chromium.new_page()  # not one that is watched: Chromium reports what it refuses
    page.goto(address)
    # The address of this very server by another name: it would answer.
    other = address.replace("127.0.0.1", "localhost")
    refused = page.evaluate("(url) => fetch(url, {mode: 'no-cors'}).then(() => '', (error) => error.message)", other)
    assert refused
    assert page.evaluate("(url) => fetch(url).then((response) => response.ok)", address)
    page.close()
