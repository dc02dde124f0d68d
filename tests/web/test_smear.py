"""A smear without a browser: a phantom smear read by a real network, boxes, exports, errors."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from html import unescape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from scipy.ndimage import distance_transform_edt

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.smear import Scale
from leukoscope.inference.prediction import Decision, Thresholds
from leukoscope.inference.smear import colour_place
from leukoscope.reports.text import outcome_text, percent
from leukoscope.web.answer import Picture, ask
from leukoscope.web.app import Endpoints
from leukoscope.web.drawing import colour
from leukoscope.web.export import save_smear
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.saved_picture import _Sheet
from leukoscope.web.smear import RIM, Smear, example_smear, open_cell, painted_rim, read_smear, with_painted_rim
from leukoscope.web.smear_page import _foreign_text, smear_answer, smear_picture, summary, title_words, verdict
from leukoscope.web.upload import FIELD_LIMIT

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


@pytest.fixture(scope="module")
def result(tiny_release: Path) -> Smear:
    return read_smear(ModelCache({"tiny": tiny_release}), example_smear(), "tiny")


def test_every_cell_is_a_button_that_says_what_it_is(result: Smear) -> None:
    page, reading = smear_picture(result), result.reading
    assert len(reading.cells) == 5
    assert page.count('<button type="button" class="lk-box') == 5
    for number, cell in enumerate(reading.cells):
        assert f'data-act="cell:{number}"' in page
        assert f'aria-label="Cell {number + 1}: {cell.outcome} ' in page
    assert "5 whole white cells" in smear_answer(result)


def test_a_box_without_a_class_says_so_not_by_its_colour_alone(result: Smear) -> None:
    cells = []
    for cell, outcome in zip(result.reading.cells, ("ALL", "abstain", "out of distribution"), strict=False):
        assert cell.prediction is not None
        cells.append(replace(cell, prediction=replace(cell.prediction, decision=Decision(outcome))))
    page = unescape(smear_picture(replace(result, reading=replace(result.reading, cells=tuple(cells)))))
    for number, mark, words in (
        (1, "ALL", "ALL "),
        (2, "?", "not sure, "),
        (3, "no class", "unlike its training cells"),
    ):
        assert f">{number}<i> {mark}</i></span>" in page
        assert f'title="Cell {number}: {words}' in page and f'aria-label="Cell {number}: {words}' in page
    unsure = cells[1].prediction
    assert unsure is not None
    share = f"{unsure.most_probable} {percent(unsure.probabilities[unsure.most_probable])}"
    assert f"Cell 2: not sure, {share}; open it" in page, "what it is nearest to, as of a single cell"
    near = {"ALL": 0.717, "HEM": 0.283}
    decided = Thresholds(abstain_below=0.7178).decide(near)
    near_the_limit = replace(cells[1], prediction=replace(unsure, probabilities=near, decision=decided))
    assert title_words(near_the_limit, ("ALL", "HEM")) == "not sure, ALL 71.7\u00a0%"


def test_how_many_cells_are_like_the_training_cells_is_a_number(result: Smear) -> None:
    """Of five cells, "80 %" were."""
    for unlike, words in (
        (1, "5 whole white cells, 4 of 5 like its training cells"),
        (0, "5 whole white cells, all like its training cells"),
        (5, "5 whole white cells"),
    ):
        assert summary(_with_unlike_cells(result, unlike)) == words
    few = "2 of 5 cells are like the training cells; below 50\u00a0%, none gets a class."
    assert _foreign_text(_with_unlike_cells(result, 3)) == few


def _with_unlike_cells(result: Smear, unlike: int) -> Smear:
    """The smear with so many of its cells unlike the training cells, and the others like them."""
    cells = []
    for number, cell in enumerate(result.reading.cells):
        assert cell.prediction is not None
        checks = replace(cell.prediction.checks, ood_score=9.0 if number < unlike else 0.5)
        cells.append(replace(cell, prediction=replace(cell.prediction, checks=checks)))
    return replace(result, reading=replace(result.reading, cells=tuple(cells)))


def test_a_cell_along_the_upper_edge_has_the_name_of_its_smear_above_it(result: Smear) -> None:
    assert "lk-with-bar" not in smear_picture(result)
    first = result.reading.cells[0]
    left, top, right, bottom = first.cell.box
    at_the_top = replace(first, cell=replace(first.cell, box=(left, 0, right, bottom - top)))
    assert "lk-with-bar" in smear_picture(replace(result, reading=replace(result.reading, cells=(at_the_top,))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet169", "efficientnet-b3"])
def test_most_cells_of_the_synthetic_fields_are_in_distribution(name: str) -> None:
    folder = RELEASE.with_name(f"leukoscope-{name}-cnmc")
    seen = read_smear(ModelCache({name: folder}), example_smear(), name).reading
    assert seen.in_distribution is not None and seen.in_distribution >= 0.7
    if name == "densenet169":
        assert Counter(cell.outcome for cell in seen.cells) == {"ALL": 3, "HEM": 1, "abstain": 1}


def test_a_field_that_is_mostly_out_of_distribution_has_no_class_on_the_page_nor_behind_its_boxes() -> None:
    image = example_smear().image
    # Another stain: the same field, warmer.
    pixels = np.asarray(image).astype(np.float32) * (1.0, 0.86, 0.74)
    warm, models = Image.fromarray(pixels.astype(np.uint8)), ModelCache({"a": RELEASE})
    seen = read_smear(models, replace(example_smear(), image=warm), "a")
    whole = [cell for cell in seen.reading.cells if cell.prediction]
    assert len(whole) >= 3 and seen.reading.in_distribution is not None and seen.reading.in_distribution < 0.5
    assert {cell.outcome for cell in whole} == {"out of distribution"}
    assert seen.is_foreign and "None of the cells is like the training cells" in unescape(smear_answer(seen))
    one_cell = replace(seen, reading=replace(seen.reading, cells=(seen.reading.cells[seen.whole[0]],)))
    page = unescape(smear_answer(one_cell))
    assert "1 whole white cell<" in page and "The cell is unlike the training cells" in page
    assert "0\u00a0%" not in page.partition("</ul>")[0], "no share of one cell"
    assert verdict(seen) == "No class: unlike the cells it knows" and "lk-trust" not in smear_answer(seen)
    page = smear_picture(seen)
    assert page.count("lk-without") == len(seen.reading.cells)
    assert "unlike its training cells; open it" in page and "unlike its training cells " not in page, (
        "no share without a class"
    )
    # A cell opened from the smear is decided knowing its smear.
    opened = ask(open_cell(seen, seen.whole[0]).picture, models, "a")
    assert opened.known.outcome == "out of distribution"


def test_what_a_stranger_called_a_file_is_escaped(result: Smear) -> None:
    hostile = replace(result, reading=replace(result.reading, source="<script>.png", model="<b>"))
    assert "<script>" not in smear_picture(hostile) + smear_answer(hostile)
    assert save_smear("csv", hostile).name == "leukoscope--script-.csv"


def test_the_exports_agree_and_name_no_folder(result: Smear) -> None:
    whole, shown = result.reading.to_dict(), smear_answer(result)
    rows = list(csv.DictReader(StringIO(save_smear("csv", result).content.decode())))
    assert [row["outcome"] for row in rows] == [outcome_text(cell["outcome"]) for cell in whole["cells"]]
    assert {(row["um_per_pixel"], row["scale_from"]) for row in rows} == {("0.12", "given")}
    assert Counter(cell["outcome"] for cell in whole["cells"]) == {k: n for k, n in whole["counts"].items() if n}
    # A release without a detector has no OOD scores.
    assert {row["ood_score"] for row in rows} == {""} and whole["in_distribution"] is None
    assert float(rows[0]["p_ALL"]) == whole["cells"][0]["probabilities"]["ALL"]
    assert {row["notice"] for row in rows} == {whole["notice"]} == {RESEARCH_NOTICE}
    assert {row["model"] for row in rows} == {whole["model"]} == {"tiny"}
    with Image.open(BytesIO(save_smear("png", result).content)) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Title"].startswith("Synthetic smear read by tiny: 5 nucleated cell(s)")
    for row in rows:
        area, share = float(row["area_um2"]), float(row["nucleus_share"])
        assert 30 < area < 400 and 0.4 < share <= 1
        assert float(row["nucleus_um2"]) == pytest.approx(area * share, rel=1e-3)
        assert f"<span>{area:.0f}\u00a0µm²</span>" in shown and f"nucleus {percent(share)} of it; open it" in shown
    assert "are estimates: pale cytoplasm" in shown and shown.count('<li style="--c') == 5
    formula = replace(result, reading=replace(result.reading, source="=1+1.png"))
    assert "'=1+1.png" in save_smear("csv", formula).content.decode()


@pytest.mark.parametrize(
    ("size", "scale", "problem"),
    [((5000, 4000), 0, "more than the 16 megapixels a field of view may take here"), ((400, 300), 90, "scale 90")],
)
def test_the_endpoint_refuses_in_one_sentence(
    tiny_release: Path, tmp_path: Path, size: tuple[int, int], scale: float, problem: str
) -> None:
    Image.new("RGB", size, (230, 220, 215)).save(tmp_path / "field.png")
    with pytest.raises(gradio.Error, match=problem):
        Endpoints(ModelCache({"tiny": tiny_release})).field(str(tmp_path / "field.png"), "tiny", scale)


def test_a_model_of_whole_fields_is_sent_to_the_other_tab_not_to_the_command_line() -> None:
    models = ModelCache({"ball4": RELEASE.with_name("leukoscope-densenet201-ball4")})
    with pytest.raises(LeukoscopeError, match="^ball4: was trained on pictures with their background") as refused:
        read_smear(models, example_smear(), "ball4")
    assert "give the picture to /predict" in str(refused.value)
    for text in (str(refused.value), FIELD_LIMIT.remedy):
        assert "leukoscope predict" not in text and "leukoscope smear" not in text


def test_a_smear_has_a_scale_bar(result: Smear) -> None:
    width = result.picture.image.width
    assert f'data-share="{1 / 0.12 / width:.6f}" data-unit="µm"' in smear_picture(result)


def test_on_a_phone_the_synthetic_smear_leads_to_the_next_tile(result: Smear) -> None:
    assert 'data-tile="people"' in smear_picture(result)
    own = replace(result, picture=replace(result.picture, caption="mine.png"))
    assert 'data-tile="example:1"' in smear_picture(own)


def test_a_scale_that_was_guessed_is_to_be_corrected_on_the_stage(tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    read = read_smear(models, replace(example_smear(), um_per_pixel=None), "tiny")
    assert read.reading.smear.scale is not None and read.reading.smear.scale.source == "red cells"
    assert "from its red cells" in smear_picture(read) and 'data-act="pitch"' in smear_picture(read)
    assert "better give it" not in smear_answer(read), "the page has its own words"


def test_cells_that_are_too_large_at_the_scale_given_are_said_before_the_answer(tiny_release: Path) -> None:
    picture = replace(example_smear(), um_per_pixel=0.45, scale_set=True)
    read = read_smear(ModelCache({"tiny": tiny_release}), picture, "tiny")
    said = "At 0.450 µm per pixel (given), 5 stained regions are larger than a white cell and not counted."
    page = unescape(smear_answer(read))
    assert page.count(said) == 1 and page.index(said) < page.index("lk-grid")
    implausible = read_smear(ModelCache({"a": RELEASE}), replace(picture, um_per_pixel=0.3), "a")
    assert verdict(implausible) == "No class: the scale is not plausible", "not the cells are to blame"
    assert "Give the right scale, or 0" in smear_answer(implausible)
    assert "or a smear stained as those of C-NMC 2019" in smear_answer(implausible), "it may be the right one already"
    measured = replace(implausible, picture=replace(picture, scale_set=False))
    assert "Give its scale in micrometres per pixel" in smear_answer(measured), "it was measured already"
    refused = replace(read, reading=replace(read.reading, cells=()))
    assert f"Nothing in it has the stain and the size of a white cell. {said}" in unescape(smear_answer(refused))


def test_a_cell_that_the_edge_cuts_is_not_opened(tiny_release: Path, result: Smear) -> None:
    models = ModelCache({"tiny": tiny_release})
    assert open_cell(result, 2).picture.caption == "Cell 3 of Synthetic smear"
    image = result.picture.image
    left, _, right, _ = result.reading.cells[4].cell.box
    cut = read_smear(models, Picture(image.crop(((left + right) // 2, 0, *image.size)), "a.png", 0.12), "tiny")
    (edge,) = set(range(len(cut.reading.cells))) - set(cut.whole)
    assert cut.whole == list(range(len(cut.whole))), "the cells that can be opened are numbered from 1"
    assert "1 cut by the edge" in smear_answer(cut)
    picture = smear_picture(cut)
    assert picture.count("<span>cut by the edge</span>") == picture.count("lk-cut") == 1, "neither not sure nor unlike"
    with pytest.raises(LeukoscopeError, match="is cut by the edge of a.png; open a whole one"):
        open_cell(cut, edge)


def test_a_smear_without_a_whole_cell_is_refused_and_nothing_is_said_of_an_answer(result: Smear) -> None:
    reading = result.reading
    assert reading.smear.scale is not None
    measured = replace(reading.smear, scale=replace(reading.smear.scale, source="red cells"))
    cut = tuple(replace(cell, prediction=None) for cell in reading.cells[:2])
    expected = (
        (cut, "No whole white cell found", "2 white cells are cut by the edge of the picture; only whole cells are",
         "If this one holds whole cells, give its scale (“change” on the picture)"),
        ((), "No white blood cell found", "Nothing in it has the stain and the size of a white cell.",
         "or the scale of this one (“change” on the picture)"),
    )  # fmt: skip
    recalls = [{"label": "ALL", "recall": 0.9}]
    for cells, said, reason, asked in expected:
        smear = replace(result, reading=replace(reading, cells=cells, smear=measured), metrics={"per_class": recalls})
        page = unescape(smear_answer(smear))
        assert f'<span class="lk-dot" style="--c:var(--lk-none)"></span>{said}</h2>' in page
        assert f"<li>{reason}" in page and "What helps" in page
        assert "lk-trust" not in page and "calibration" not in page and "0 whole" not in page
        assert asked in page
        given = replace(smear, reading=replace(smear.reading, smear=reading.smear))
        assert asked not in unescape(smear_answer(given)), "what was given is not asked for"
    assert "the right scale, or 0" in smear_answer(given), "a wrong scale hides cells"


def test_page_table_and_saved_picture_have_one_scale(result: Smear, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw_text = _Sheet.text

    def noted(sheet: _Sheet, sentence: str, *style: Any, **options: Any) -> None:
        drawn.append(sentence)
        draw_text(sheet, sentence, *style, **options)

    monkeypatch.setattr(_Sheet, "text", noted)
    reading = result.reading
    first = replace(reading.cells[0], prediction=None)
    only_cut = replace(reading, cells=(first,))
    for scale, words in ((Scale(0.0781, "given"), "as given"), (Scale(0.0781, "red cells"), "from its red cells")):
        found = replace(reading.smear, scale=scale)
        smear = replace(result, reading=replace(only_cut, smear=found))
        assert f"0.078 µm per pixel, {words}" in smear_picture(smear)
        (row,) = csv.DictReader(StringIO(save_smear("csv", smear).content.decode()))
        assert (row["um_per_pixel"], row["scale_from"]) == ("0.0781", scale.source)
        drawn.clear()
        save_smear("png", smear)
        assert f"0.078 µm per pixel, {words}." in drawn[-1]


def test_the_plasma_at_the_edge_of_a_cut_out_is_shown_in_the_colours_of_the_cell(result: Smear) -> None:
    cell = result.cut_out(0)
    depth = distance_transform_edt(np.asarray(cell).any(axis=2))
    deep = np.kron(depth > RIM + 2, np.ones((2, 2), dtype=bool))
    edge = (depth > 0) & (depth <= 2)
    beside_edge = (depth > 2) & (depth <= RIM)
    inner = (depth > RIM) & (depth <= 3 * RIM)
    painted = np.asarray(painted_rim(cell))
    assert not painted[deep][:, 3].any(), "the cell itself is shown as it is"
    shown = np.asarray(with_painted_rim(cell).resize(cell.size, Image.Resampling.BOX))
    colour_of_cell = shown[inner].mean(axis=0)
    assert np.asarray(cell)[edge].mean() > 1.4 * colour_of_cell.mean(), "the plasma is paler"
    assert shown[beside_edge].mean(axis=0) == pytest.approx(colour_of_cell, rel=0.15)
    assert shown[edge].mean() < colour_of_cell.mean(), "its outline fades into the black"
    opened = open_cell(result, 0).picture
    assert opened.rim is not None and opened.image == cell, "the model is given the cut-out as it is"
    assert not np.asarray(painted_rim(Image.new("RGB", (9, 9)))).any()


def test_a_cell_opened_from_a_smear_is_said_to_be_cut_out_of_it(result: Smear) -> None:
    cell = open_cell(result, 0).picture
    assert cell.remark == "Cut out of the smear, as the training cells are."


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        (("ALL", "HEM"), [0, 1]),
        (("HEM", "ALL"), [1, 0]),
        (("Benign", "Early", "Pre", "Pro"), [1, 0, 3, 2]),
        (("a", "b", "c"), [0, 1, 2]),
    ],
)
def test_normal_cells_are_blue_and_never_the_orange_of_blasts(labels: tuple[str, ...], places: list[int]) -> None:
    assert [colour_place(label, labels) for label in labels] == places
    assert [colour(label, labels) for label in labels] == [f"var(--lk-class-{place})" for place in places]


def test_many_cells_stand_under_their_outcome(result: Smear, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "lk-outcome" not in smear_answer(result), "a few stand in the order of their numbers"
    monkeypatch.setattr("leukoscope.web.smear_page.MOST_BOXES_WITH_CLASS", 3)
    page = unescape(smear_answer(result))
    counts = Counter(cell.outcome for cell in result.reading.cells)
    assert page.count("lk-outcome") == len(counts) and page.count('<li style="--c') == 5
    for outcome, count in counts.items():
        kind = {"ALL": "blasts", "HEM": "normal cells"}.get(outcome, outcome_text(outcome))
        assert f"{count} {kind.removesuffix('s') if count == 1 else kind}</h3>" in page
    assert "lk-crowded" in smear_picture(result)


def test_what_a_smear_shows_is_one_sentence(result: Smear) -> None:
    outcomes = [cell.outcome for cell in result.reading.cells]
    said = verdict(result)
    assert ("look like" in said or "looks like" in said) and said[0].isupper()
    assert ("blast" in said) == ("ALL" in outcomes) and ("normal cell" in said) == ("HEM" in outcomes)
    none = replace(result, reading=replace(result.reading, cells=()))
    assert verdict(none) == "No white blood cell found"
