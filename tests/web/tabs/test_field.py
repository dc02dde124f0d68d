"""The tab "Field" without a browser: a phantom smear read by a real network, boxes, exports, errors."""

from __future__ import annotations

import csv
import json
from collections import Counter
from io import BytesIO, StringIO
from pathlib import Path

import gradio
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.fields import cut_out
from leukoscope.inference.field import FieldReading
from leukoscope.inference.scoring import safe_cell
from leukoscope.web import panels
from leukoscope.web.app import build_demo
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.result import predict_cell
from leukoscope.web.tabs.field import (
    EXAMPLE_PITCH,
    FieldResult,
    boxes,
    example_field,
    field_summary,
    predict_field,
    save_field,
    strip,
)
from leukoscope.web.text import percent
from leukoscope.web.upload import FIELD

RELEASE = Path(__file__).parents[3] / "model_card" / "leukoscope-densenet169-cnmc"


@pytest.fixture(scope="module")
def result(tiny_release: Path) -> FieldResult:
    return predict_field(ModelCache({"tiny": tiny_release}), *example_field(), "tiny", EXAMPLE_PITCH)


@pytest.fixture(scope="module")
def reading(result: FieldResult) -> FieldReading:
    return result.reading


def test_every_cell_is_a_button_that_says_what_it_is(result: FieldResult, reading: FieldReading) -> None:
    page = boxes(result.image, reading)
    assert len(reading.cells) == 5
    assert page.count('<button class="lk-box') == 5
    right = [one for one in reading.cells if one.cell.box[0] + one.cell.box[2] > result.image.width]
    assert page.count('class="lk-box lk-right"') == len(right) == 4, "whose texts would leave the picture"
    for number, cell in enumerate(reading.cells):
        assert f'data-cell="{number}"' in page
        assert f'aria-label="Cell {number + 1}: {cell.outcome} ' in page
    assert '<p class="lk-headline" role="status">Nucleated cells: 5, whole: 5.</p>' in field_summary(reading)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet169", "efficientnet-b3"])
def test_most_cells_of_the_synthetic_fields_are_in_distribution(name: str) -> None:
    folder = RELEASE.with_name(f"leukoscope-{name}-cnmc")
    seen = predict_field(ModelCache({name: folder}), *example_field(), name, EXAMPLE_PITCH).reading
    assert seen.in_distribution is not None and seen.in_distribution >= 0.7


def test_a_field_that_is_mostly_out_of_distribution_has_no_class_on_the_page_nor_behind_its_boxes() -> None:
    image, caption = example_field()
    # Another stain: the same field, warmer.
    pixels = np.asarray(image).astype(np.float32) * (1.0, 0.86, 0.74)
    warm, models = Image.fromarray(pixels.astype(np.uint8)), ModelCache({"a": RELEASE})
    seen = predict_field(models, warm, caption, "a", EXAMPLE_PITCH)
    whole = [cell for cell in seen.reading.cells if cell.prediction]
    assert len(whole) >= 3 and seen.reading.in_distribution is not None and seen.reading.in_distribution < 0.5
    assert {cell.outcome for cell in whole} == {"out of distribution"}
    assert "are needed for a class" in field_summary(seen.reading)
    assert "<dt>ALL</dt>" not in field_summary(seen.reading)
    page = boxes(seen.image, seen.reading)
    assert page.count("border-style:dashed") == len(seen.reading.cells)
    assert "out of distribution; open it" in page and "out of distribution " not in page, "no share without a class"
    # A cell opened from the field is decided knowing its field.
    assert seen.reading.field.scale is not None
    cut = cut_out(warm, whole[0].cell, seen.reading.field.scale.um_per_pixel)
    opened = predict_cell(models, cut, "Cell 1", "a", field_share=seen.reading.in_distribution)
    assert opened.prediction.outcome == "out of distribution"
    assert opened.decision("youden").outcome == "out of distribution"


def test_what_a_stranger_called_a_file_is_escaped(result: FieldResult) -> None:
    from dataclasses import replace

    hostile = replace(result.reading, source="<script>.png", model="<b>")
    assert "<script>" not in boxes(result.image, hostile) + field_summary(hostile)
    assert save_field("JSON", FieldResult(result.image, hostile)).name == "leukoscope--script-.json"


def test_the_exports_agree_and_name_no_folder(result: FieldResult, reading: FieldReading, tiny_release: Path) -> None:
    whole = json.loads(save_field("JSON", result).content)
    rows = list(csv.DictReader(StringIO(save_field("CSV", result).content.decode())))
    assert [row["outcome"] for row in rows] == [cell["outcome"] for cell in whole["cells"]]
    assert Counter(cell["outcome"] for cell in whole["cells"]) == {k: n for k, n in whole["counts"].items() if n}
    # A release without a detector has no OOD scores.
    assert {row["ood_score"] for row in rows} == {""} and whole["in_distribution"] is None
    assert float(rows[0]["p_ALL"]) == whole["cells"][0]["probabilities"]["ALL"]
    assert {row["notice"] for row in rows} == {whole["notice"]} == {RESEARCH_NOTICE}
    assert {row["model"] for row in rows} == {whole["model"]} == {"tiny"}
    with Image.open(BytesIO(save_field("PNG", result).content)) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Title"].startswith("Synthetic field read by tiny: Nucleated cells: 5")


def test_a_field_without_a_class_is_still_measured(result: FieldResult, reading: FieldReading) -> None:
    rows = list(csv.DictReader(StringIO(save_field("CSV", result).content.decode())))
    shown = strip(result)
    for row in rows:
        area, share = float(row["area_um2"]), float(row["nucleus_share"])
        assert 30 < area < 400 and 0.4 < share <= 1
        assert float(row["nucleus_um2"]) == pytest.approx(area * share, rel=1e-3)
        assert f"{area:.0f} µm² · nucleus {percent(share)}<" in shown
    assert "are estimates: pale cytoplasm" in shown and "lobes" not in shown + ",".join(rows[0])
    assert shown.count("<li ") == len(reading.cells) == 5 and 'value="area"' in shown


def test_a_smear_given_as_one_cell_is_not_a_cell_and_is_sent_to_field() -> None:
    seen = predict_cell(ModelCache({"a": RELEASE}), *example_field(), "a")
    for point in ("", "youden"):
        assert seen.decision(point).outcome == "not a cell"
        text = seen.decision_text(point)
        assert text.headline == "Not a cell: no class is given." and not text.has_class
        assert text.because.startswith("The picture is no single cell cut out on black")
    assert seen.summary().startswith("Not a cell: no class is given.\n")
    assert "The cells of a smear are read by /field." in seen.summary()
    assert not seen.maps and "Map for" not in panels.pictures(seen, "ALL", 0.5), "a refused picture has no class's map"
    assert seen.foreign is not None and max(seen.foreign.distances.values()) > 1


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
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    (endpoint,) = (block.fn for block in demo.fns.values() if block.api_name == "field")
    assert endpoint is not None
    with pytest.raises(gradio.Error, match=problem):
        endpoint(str(tmp_path / "field.png"), "tiny", scale)


def test_a_model_of_whole_fields_is_sent_to_the_other_tab_not_to_the_command_line() -> None:
    models = ModelCache({"ball4": RELEASE.with_name("leukoscope-densenet201-ball4")})
    with pytest.raises(LeukoscopeError, match="^ball4: was trained on pictures with their background") as refused:
        predict_field(models, *example_field(), "ball4", EXAMPLE_PITCH)
    assert "tab “Cells”" in str(refused.value)
    for text in (str(refused.value), FIELD.remedy):
        assert "leukoscope predict" not in text and "leukoscope field" not in text


def test_how_a_scale_was_guessed_is_said_in_the_visitor_s_language(tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    read = predict_field(models, *example_field(), "tiny")
    said = field_summary(read.reading)
    assert read.reading.field.scale is not None and read.reading.field.scale.source == "red cells"
    assert "by the red cells. This is a guess: correct it under “More”." in said
    assert "better give it" not in said, "the page has its own words"
