"""The tab "A field of view" without a browser: a phantom smear read by a real network, boxes, exports, errors."""

from __future__ import annotations

import csv
import json
from collections import Counter
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import gradio
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.cells.images import UnreadableImage
from leukoscope.inference.field_reading import FieldReading
from leukoscope.web.demo import build_demo
from leukoscope.web.field_of_view import EXAMPLE_PITCH, EXAMPLES, FieldLook, example, read
from leukoscope.web.field_panels import boxes, counts, save_reading
from leukoscope.web.look import look_at
from leukoscope.web.shelf import Shelf
from leukoscope.web.tables import safe_cell

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet121-cnmc"


@pytest.fixture(scope="module")
def look(tiny_release: Path) -> FieldLook:
    return read(Shelf({"tiny": tiny_release}), lambda: example(0), "tiny", EXAMPLE_PITCH)


@pytest.fixture(scope="module")
def reading(look: FieldLook) -> FieldReading:
    return look.reading


def test_every_cell_is_a_button_that_says_what_it_is(look: FieldLook, reading: FieldReading) -> None:
    page = boxes(look.image, reading)
    assert len(reading.cells) == 5
    assert page.count('<button class="lk-box"') == 5
    assert "Here a cell is named by its likeliest class; the tab “One cell” decides at an operating point" in page
    for number, cell in enumerate(reading.cells):
        assert f'data-cell="{number}"' in page
        assert f'aria-label="Cell {number + 1}: {cell.verdict}, ' in page
    assert f'<p class="lk-verdict" role="status">{reading.summary}</p>' in counts(reading)
    assert RESEARCH_NOTICE in counts(reading)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "efficientnet-b3"])
def test_a_release_knows_the_cells_of_the_synthetic_fields(name: str) -> None:
    folder = RELEASE.with_name(f"leukoscope-{name}-cnmc")
    for number, (_, classes) in enumerate(EXAMPLES):
        seen = read(Shelf({name: folder}), partial(example, number), name, EXAMPLE_PITCH).reading
        assert all(cell.prediction and cell.prediction.recognised for cell in seen.cells)
        assert Counter(cell.prediction.label for cell in seen.cells if cell.prediction) == Counter(classes)


def test_what_a_stranger_called_a_file_is_escaped(look: FieldLook) -> None:
    from dataclasses import replace

    hostile = replace(look.reading, source="<script>.png", model="<b>")
    assert "<script>" not in boxes(look.image, hostile) + counts(hostile)
    assert save_reading(look.image, hostile, "JSON").name == "leukoscope--script-.json"


def test_the_exports_agree_and_name_no_folder(look: FieldLook, reading: FieldReading, tiny_release: Path) -> None:
    whole = json.loads(save_reading(look.image, reading, "JSON").content)
    rows = list(csv.DictReader(StringIO(save_reading(look.image, reading, "CSV").content.decode())))
    assert [row["verdict"] for row in rows] == [cell["verdict"] for cell in whole["cells"]]
    assert float(rows[0]["p_ALL"]) == whole["cells"][0]["probabilities"]["ALL"]
    assert {row["notice"] for row in rows} == {whole["notice"]} == {RESEARCH_NOTICE}
    assert {row["model"] for row in rows} == {whole["model"]} == {"tiny"}
    with Image.open(BytesIO(save_reading(look.image, reading, "PNG").content)) as image:
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Title"].startswith("Synthetic field 1 read by tiny: 5 nucleated cell(s)")


def test_a_smear_given_as_one_cell_is_sent_to_this_tab() -> None:
    with pytest.raises(
        UnreadableImage, match="Synthetic field 1: shows a smear, .* open it in the tab “A field of view”"
    ):
        look_at(Shelf({"a": RELEASE}), lambda: example(0), "a")


@pytest.mark.parametrize(("name", "shown"), [("=1+1.png", "'=1+1.png"), ("-x", "'-x"), ("cell.png", "cell.png")])
def test_a_name_is_no_formula_of_a_spreadsheet(name: str, shown: str) -> None:
    assert safe_cell(name) == shown


@pytest.mark.parametrize(
    ("size", "scale", "problem"),
    [((5000, 4000), 0, "more than the 16 megapixels a field of view may take here"), ((400, 300), 90, "scale 90")],
)
def test_the_endpoint_refuses_in_one_sentence(
    tiny_release: Path, tmp_path: Path, size: tuple[int, int], scale: float, problem: str
) -> None:
    Image.new("RGB", size, (230, 220, 215)).save(tmp_path / "field.png")
    demo = build_demo(Shelf({"tiny": tiny_release}))
    (endpoint,) = (block.fn for block in demo.fns.values() if block.api_name == "field")
    with pytest.raises(gradio.Error, match=problem):
        endpoint(str(tmp_path / "field.png"), "tiny", scale)
