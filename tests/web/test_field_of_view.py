"""The tab "A field of view" without a browser: a phantom smear read by a real network, boxes, exports, errors."""

from __future__ import annotations

import csv
import json
from collections import Counter
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import gradio
import numpy as np
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.cells.fields import cut_out
from leukoscope.inference.field_reading import FieldReading
from leukoscope.web.demo import build_demo
from leukoscope.web.field_of_view import EXAMPLE_PITCH, EXAMPLES, FieldLook, example, read
from leukoscope.web.field_panels import boxes, counts, save_reading
from leukoscope.web.look import examine, look_at, summary
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
    assert (
        "A cell is given its most probable class; in the tab “One cell” another operating point can be chosen" in page
    )
    for number, cell in enumerate(reading.cells):
        assert f'data-cell="{number}"' in page
        assert f'aria-label="Cell {number + 1}: {cell.outcome}, ' in page
    assert f'<p class="lk-verdict" role="status">{reading.summary}</p>' in counts(reading)
    assert RESEARCH_NOTICE in counts(reading)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "efficientnet-b3"])
def test_most_cells_of_the_synthetic_fields_are_in_distribution_and_all_most_probably_what_they_are(name: str) -> None:
    folder = RELEASE.with_name(f"leukoscope-{name}-cnmc")
    for number, (_, classes) in enumerate(EXAMPLES):
        seen = read(Shelf({name: folder}), partial(example, number), name, EXAMPLE_PITCH).reading
        assert seen.share_known is not None and seen.share_known >= 0.8
        found = [cell.prediction for cell in seen.cells if cell.prediction]
        assert Counter(one.most_probable for one in found) == Counter(classes)
        # It may abstain from a drawing, but gives none the other class.
        assert all(one.outcome in (one.most_probable, "abstain", "out of distribution") for one in found)


def test_a_field_that_is_mostly_out_of_distribution_has_no_class_on_the_page_nor_behind_its_boxes() -> None:
    image, caption = example(0)
    # Another stain: the same field, warmer.
    pixels = np.asarray(image).astype(np.float32) * (1.0, 0.86, 0.74)
    warm, shelf = Image.fromarray(pixels.astype(np.uint8)), Shelf({"a": RELEASE})
    seen = read(shelf, lambda: (warm, caption), "a", EXAMPLE_PITCH)
    whole = [cell for cell in seen.reading.cells if cell.prediction]
    assert len(whole) >= 3 and seen.reading.share_known is not None and seen.reading.share_known < 0.5
    assert {cell.outcome for cell in whole} == {"out of distribution"}
    assert "no cell gets a class" in counts(seen.reading)
    assert "<dt>ALL</dt><dd>0</dd>" in counts(seen.reading) and "<dt>HEM</dt><dd>0</dd>" in counts(seen.reading)
    page = boxes(seen.image, seen.reading)
    assert page.count("border-style:dashed") == len(seen.reading.cells)
    # A cell opened from the field is decided knowing its field.
    assert seen.reading.field.scale is not None
    cut = cut_out(warm, whole[0].cell, seen.reading.field.scale.um_per_pixel)
    opened = examine(shelf, cut, "Cell 1", "a", field_share=seen.reading.share_known)
    assert opened.prediction.outcome == "out of distribution"
    assert opened.decision("youden").outcome == "out of distribution"


def test_what_a_stranger_called_a_file_is_escaped(look: FieldLook) -> None:
    from dataclasses import replace

    hostile = replace(look.reading, source="<script>.png", model="<b>")
    assert "<script>" not in boxes(look.image, hostile) + counts(hostile)
    assert save_reading(look.image, hostile, "JSON").name == "leukoscope--script-.json"


def test_the_exports_agree_and_name_no_folder(look: FieldLook, reading: FieldReading, tiny_release: Path) -> None:
    whole = json.loads(save_reading(look.image, reading, "JSON").content)
    rows = list(csv.DictReader(StringIO(save_reading(look.image, reading, "CSV").content.decode())))
    assert [row["outcome"] for row in rows] == [cell["outcome"] for cell in whole["cells"]]
    assert Counter(cell["outcome"] for cell in whole["cells"]) == {k: n for k, n in whole["counts"].items() if n}
    # A release without a detector has no OOD scores.
    assert {row["ood_score"] for row in rows} == {""} and whole["share_known"] is None
    assert float(rows[0]["p_ALL"]) == whole["cells"][0]["probabilities"]["ALL"]
    assert {row["notice"] for row in rows} == {whole["notice"]} == {RESEARCH_NOTICE}
    assert {row["model"] for row in rows} == {whole["model"]} == {"tiny"}
    with Image.open(BytesIO(save_reading(look.image, reading, "PNG").content)) as image:
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Title"].startswith("Synthetic field 1 read by tiny: 5 nucleated cell(s)")


def test_a_smear_given_as_one_cell_is_not_a_cell_and_is_sent_to_this_tab() -> None:
    seen = look_at(Shelf({"a": RELEASE}), lambda: example(0), "a")
    for point in ("", "youden"):
        assert seen.decision(point).outcome == "not a cell"
        judged = seen.judgement(point)
        assert judged.headline == "Not a cell: no class is given." and not judged.has_class
        assert judged.because.startswith("The picture is no single cell cut out on black")
        assert "If it is a smear, open it in the tab “A field of view”, or send it to /field." in judged.because
    assert summary(seen).startswith("Not a cell: no class is given.\n")


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
