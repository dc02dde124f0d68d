"""What the models answer, without a browser: rows by real networks, how the stage shows them, and what is saved."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image, ImageColor, ImageDraw
from PIL.PngImagePlugin import PngImageFile

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.data.images import SHOWN_BRIGHTER
from leukoscope.data.registry import EMPTY_SLIDE_RGB
from leukoscope.inference.gradcam import overlay
from leukoscope.inference.prediction import ABSTAIN, OUT_OF_DISTRIBUTION, Decision, HeatMap, Reason
from leukoscope.inference.smear import CLASS_COLOURS, TRANSPARENT
from leukoscope.reports import trust
from leukoscope.reports.text import MAP_CAVEAT, MAP_CAVEATS, percent
from leukoscope.reports.trust import trust_rows
from leukoscope.synthetic import EXAMPLE_CELLS, EXAMPLE_SMEAR_PITCH, EXAMPLE_SMEARS, draw_cell
from leukoscope.web import drawing, stage
from leukoscope.web.answer import (
    GREY_BELOW_MAP,
    OPACITY,
    Answer,
    Picture,
    Row,
    answering,
    ask,
    covered,
    data_of_real_cells,
    example,
    real_cells,
    scale_colours,
    under_small_changes,
    views_of,
)
from leukoscope.web.app import Endpoints
from leukoscope.web.export import save_row
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.saved_picture import MARGIN, SHEET_WIDTH, row_image
from leukoscope.web.smear import example_smear, read_smear
from leukoscope.web.smear_page import smear_answer
from leukoscope.web.upload import read_upload
from leukoscope.web.views import STAGE_VIEWS, chosen_view, offered
from release_fixtures import ROBUSTNESS

EMBEDDED = Path(__file__).parents[2] / "model_card"
CNMC, BALL4 = EMBEDDED / "leukoscope-densenet169-cnmc", EMBEDDED / "leukoscope-densenet201-ball4"
BLANK = Picture(Image.new("RGB", (450, 450), "white"), "blank")
NO_MAP = "This model has no map: its last features are no map of channels."


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache({"cnmc": CNMC, "ball4": BALL4})


@pytest.fixture(scope="module")
def cell(models: ModelCache) -> Row:
    return ask(example(1), models, "cnmc")


@pytest.fixture(scope="module")
def refused(models: ModelCache) -> Row:
    return ask(BLANK, models, "cnmc")


# The rows


def transparent_cell() -> Image.Image:
    """A cell cut out, its surroundings transparent and red underneath."""
    pixels = np.asarray(example(1).image)
    on_cell = pixels.any(axis=-1)
    rgba = np.full((*on_cell.shape, 4), (255, 0, 0, 0), np.uint8)
    rgba[on_cell] = np.concatenate([pixels[on_cell], np.full((on_cell.sum(), 1), 255, np.uint8)], axis=1)
    return Image.fromarray(rgba)


def test_each_model_sees_a_transparent_picture_on_the_ground_of_its_own_cells_and_says_so(
    models: ModelCache, cell: Row, tmp_path: Path
) -> None:
    transparent_cell().save(tmp_path / "cell.png")
    picture = Picture.opened(*read_upload(tmp_path / "cell.png"))
    assert picture.on_black, "a cell cut out is given to the models of such cells"
    on_black = ask(picture, models, "cnmc", explain=False)
    assert on_black.known.probabilities == pytest.approx(cell.known.probabilities, abs=1e-5)
    assert "transparent parts: they were read as black" in " ".join(on_black.caveats())
    pale = ask(picture, models, "ball4", explain=False)
    assert pale.picture.image.getpixel((0, 0)) == EMPTY_SLIDE_RGB
    assert "they were read in the colour of an empty slide" in " ".join(pale.caveats())

    smear = np.dstack([np.asarray(example_smear().image), np.full(example_smear().image.size[::-1], 255, np.uint8)])
    smear[:40, :40] = (0, 0, 0, 0)
    Image.fromarray(smear).save(tmp_path / "smear.png")
    uploaded = Picture.opened(*read_upload(tmp_path / "smear.png"), um_per_pixel=EXAMPLE_SMEAR_PITCH)
    read = read_smear(models, uploaded, "cnmc")
    assert read.picture.image.getpixel((0, 0)) == EMPTY_SLIDE_RGB
    assert TRANSPARENT in read.reading.to_dict()["notes"] and TRANSPARENT in smear_answer(read)
    assert read.reading.counts == read_smear(models, example_smear(), "cnmc").reading.counts


def test_every_model_decides_then_the_maps_follow_and_the_best_that_gives_a_class_is_opened() -> None:
    models = ModelCache({"cnmc": CNMC, "ball4": BALL4})  # which has not answered this example before
    steps = list(answering(Answer(example(1), waiting=("ball4", "cnmc", "missing")), models))
    assert [len(step.rows) for step in steps] == [1, 2, 3, 3, 3] and steps[0].waiting == ("cnmc", "missing")
    assert steps[0].best is None, "the next one may know such cells"
    assert "data-model" not in stage.cell_answer(steps[0], 1), "the address waits for what is opened"
    of_smear = stage.cell_answer(Answer(steps[0].picture, waiting=("a",)), 0, address=drawing.Address("smear", 1, 2))
    assert 'data-model="a" data-example="smear" data-given="1" data-cell="2"' in of_smear, "that of a cell does not"
    assert [step.best for step in steps[1:]] == [1, 1, 1, 1]
    assert [step.complete for step in steps] == [False, False, False, True, True]
    foreign, soon, missing = steps[2].rows
    assert foreign.refused and not foreign.pending and foreign.distances is not None, "refused, it needs no map"
    assert soon.pending and not soon.maps and soon.called() == "ALL"
    assert " disabled>Save picture" in stage.cell_answer(steps[2], 1), "its place waits for it"
    assert " disabled>" not in stage.cell_answer(steps[4], 1)
    assert "Computing eight orientations" in stage.cell_picture(soon, view="turned", forms={})
    with_map = steps[3].rows[1]
    assert with_map.maps and "Computing small changes" in stage.cell_picture(with_map, view="changed", forms={})
    known = steps[-1].rows[1]
    assert stage.cell_picture(known, view="changed", forms={}).count("<li ") == 8
    assert not known.pending and known.maps and known.known.outcome == soon.known.outcome
    assert known.known.probabilities == pytest.approx(soon.known.probabilities, abs=1e-4)
    assert missing.prediction is None and "is no model name" in missing.error
    assert "is no model name" in stage.cell_answer(steps[-1], 2) + stage.cell_answer(steps[-1], 1)
    assert not list(answering(steps[-1], models)), "nothing is left to ask"


def test_the_decision_is_that_of_one_view_and_the_map_the_mean_of_eight(cell: Row) -> None:
    alone = Predictor.from_pretrained(CNMC)(cell.picture.image)
    assert cell.known.outcome == alone.outcome
    assert cell.known.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
    assert len(cell.known.views) == len(cell.orientations) == 8
    assert cell.known.views[0] == pytest.approx(cell.known.probabilities, abs=1e-4)
    assert "orientations" in cell.agreement()
    turned = [np.asarray(image) for image in views_of(cell.picture.image)]
    assert np.array_equal(turned[1], np.rot90(turned[0])) and np.array_equal(turned[4], turned[0][:, ::-1])


def test_an_answer_is_read_from_the_model_to_how_far_to_trust_it(cell: Row) -> None:
    page = unescape(stage.cell_answer(Answer(cell.picture, (cell, replace(cell, model="other"))), 0))
    order = [
        'class="lk-model"',
        "Looks like a leukaemic blast",
        'class="lk-bar"',
        "lk-orientations",
        "How far to trust",
    ]
    places = [page.index(part) for part in [*order, 'data-act="row:1"', "Save picture"]]
    assert places == sorted(places)
    assert "var(--lk-class-0)" in page, "a blast's colour"
    assert re.search(r"Of 100 cells that it calls ALL, \d+ were ALL: \d+ unseen people", page)
    assert re.search(r"no weights were trained on these \d+ people, .* chosen after looking at their results\.", page)


def test_how_far_to_trust_is_measured_on_further_people_first(cell: Row) -> None:
    outside, inside = trust_rows(cell.metrics)
    assert outside.name == "34 further people" and inside.name == "41 people, cross-validation"
    further = cell.metrics["further_subjects"]
    assert ("earlier weights" in outside.caveat) == bool(further.get("earlier_weights"))
    key = "recall_HEM_by_subject" if "recall_HEM_by_subject" in further else "recall_HEM"
    assert outside.meters[1].share == round(100 * further[key]["value"])
    assert inside.meters[0].name == "84 of 100 blasts, 95 % interval 78 to 89"
    page = unescape(stage.cell_answer(Answer(cell.picture, (cell,)), 0))
    assert page.index("34 further people") < page.index("41 people,")
    assert f'aria-label="{outside.meters[1].name}"' in page
    alone = {key: block for key, block in cell.metrics.items() if key != "further_subjects"}
    assert trust_rows(alone)[0].caveat == "not measured on further people"
    assert not trust_rows(alone)[0].meters


def test_the_worst_two_small_changes_stand_under_how_far_to_trust_it(cell: Row) -> None:
    sentence = "Of 100 cells, 11 change class when 10 % larger, 5 when 15 % more saturated."
    measured = replace(cell, metrics={**cell.metrics, "robustness": ROBUSTNESS})
    page = unescape(stage.cell_answer(Answer(cell.picture, (measured,)), 0))
    assert page.index("41 people,") < page.index(sentence)
    assert "thin lines: 95 % intervals" in page
    unmeasured = {key: block for key, block in cell.metrics.items() if key != "robustness"}
    plain = replace(cell, metrics=unmeasured)
    assert "change class" not in stage.cell_answer(Answer(cell.picture, (plain,)), 0)


def test_a_release_opens_with_its_map_only_where_its_maps_passed(cell: Row) -> None:
    for passed, view in ((True, "map"), (False, "cell"), (None, "cell")):
        checks = {} if passed is None else {"passed": passed}
        row = replace(cell, metrics={**cell.metrics, "heat_maps": checks})
        assert chosen_view(row, "").name == view
        picture = stage.cell_picture(row, view="map", forms={})
        failed = passed is False
        assert ("maps failed our checks" in unescape(picture)) == failed
        assert "map strength" in picture
        answer = stage.cell_answer(Answer(row.picture, (row,)), 0)
        assert ("its maps passed our checks" in answer) == (passed is True)
    assert [view.label for view in offered(cell)] == ["Cell", "Turned", "Changed", "Covered", "Map"]


def test_a_map_that_failed_leads_to_one_of_another_model_that_passed(cell: Row) -> None:
    failed = replace(cell, metrics={**cell.metrics, "heat_maps": {"passed": False}})
    passed = replace(cell, model="leukoscope-other", metrics={**cell.metrics, "heat_maps": {"passed": True}})
    led = stage.cell_picture(failed, view="map", forms=None, rows=(failed, passed))
    assert 'data-act="row:1"' in led and ">other's<" in unescape(led)
    for row, rows in ((failed, (failed, failed)), (passed, (failed, passed)), (failed, ())):
        assert 'data-act="row:' not in stage.cell_picture(row, view="map", forms=None, rows=rows)


def test_another_model_that_is_not_sure_has_its_bar_in_grey(cell: Row) -> None:
    unsure = replace(cell, prediction=replace(cell.known, decision=Decision(ABSTAIN)))
    line = stage.model_line(unsure)
    assert line["words"] == f"Not sure, {unsure.called()}" and line["share"]
    assert [colour for _, colour in line["bar"]] == ["var(--lk-none)"]


def test_a_scale_bar_says_how_large_a_cell_is(cell: Row) -> None:
    """All cells on black fill the stage alike."""
    pixel = f'data-share="{1 / cell.picture.image.width:.6f}" data-unit="px"'
    assert pixel in stage.cell_picture(cell, view="cell", forms=None)
    assert "lk-scale-bar" not in stage.cell_picture(cell, view="map", forms=None), "its place has the map's scale"
    of_smear = replace(cell, picture=replace(cell.picture, field_share=1.0))
    micrometre = f'data-share="{1 / 0.06 / cell.picture.image.width:.6f}" data-unit="µm"'
    assert micrometre in stage.cell_picture(of_smear, view="cell", forms=None)
    photograph = Row(Picture.opened(Image.new("RGB", (640, 480), "white"), "photo.png"), "a")
    assert "lk-scale-bar" not in stage.cell_picture(photograph, forms=None)


def test_a_long_name_keeps_both_its_ends_on_a_tile() -> None:
    assert stage.tile_label("own_lymphocyte") == "own_…yte" and stage.tile_label("own_cell") == "own_cell"


def test_an_example_leads_to_the_next_tile(cell: Row) -> None:
    for number, following in ((1, "example:2"), (5, "example:6"), (6, "smear")):
        row = Row(example(number), "a")
        assert f'data-tile="{following}"' in stage.cell_picture(row, forms=None)
    assert 'data-tile="example:1"' in stage.cell_picture(Row(example(4, smear=True), "a"), forms=None)
    own = Row(Picture.opened(example(1).image, "mine.png"), "a")
    assert 'data-tile="example:1"' in stage.cell_picture(own, forms=None), "after one's own, the first"
    assert "data-tile" not in stage.cell_picture(own, forms=None, back="smear")


def test_small_changes_that_change_the_answer_are_counted_with_it(cell: Row, models: ModelCache) -> None:
    answers_of = under_small_changes(cell, models).known.changed
    changed = tuple(replace(answer, decision=cell.known.decision) for answer in answers_of)
    assert len(changed) == 8
    others = (replace(changed[5], decision=Decision(ABSTAIN)), replace(changed[6], decision=Decision("HEM")))
    for answers, said in ((changed, False), ((*changed[:5], *others, changed[7]), True)):
        row = replace(cell, prediction=replace(cell.known, changed=answers))
        page = stage.cell_answer(Answer(row.picture, (row,)), 0)
        assert ("Another answer in 2 of 8 small changes" in page) == said
        assert ("The same in all eight small changes" in page) != said


def test_a_cell_of_which_the_model_is_not_sure_has_its_small_changes_too(cell: Row, models: ModelCache) -> None:
    """The row was missing; only the view of changed pictures said it."""
    answers_of = under_small_changes(cell, models).known.changed
    unsure = Decision(ABSTAIN)
    alike = tuple(replace(answer, decision=unsure) for answer in answers_of)
    other = (replace(alike[0], decision=Decision("HEM")), *alike[1:])
    for answers, said in ((alike, "Not sure in all eight small changes"), (other, "HEM in 1 of 8 small changes")):
        row = replace(cell, prediction=replace(cell.known, decision=unsure, changed=answers))
        assert said in stage.cell_answer(Answer(row.picture, (row,)), 0)


def test_the_model_that_was_chosen_is_opened_unless_it_refuses_the_picture(cell: Row, refused: Row) -> None:
    other = replace(cell, model="other")
    assert Answer(cell.picture, (other, cell), chosen=cell.model).best == 1
    assert Answer(cell.picture, (other,), waiting=(cell.model,), chosen=cell.model).best is None
    assert Answer(cell.picture, (other, replace(refused, model=cell.model)), chosen=cell.model).best == 0
    unsure = replace(cell, prediction=replace(cell.known, decision=Decision(ABSTAIN)))
    assert Answer(cell.picture, (other, unsure), chosen=cell.model).best == 1


def test_a_single_cell_of_a_training_subject_has_the_same_caveat_as_a_batch(cell: Row) -> None:
    trained = replace(cell, picture=replace(cell.picture, caption="UID_11_3_1_all.bmp"))
    assert any("Trained on a person called 11" in line for line in trained.caveats())
    assert "Trained on a person called 11" in stage.cell_answer(Answer(trained.picture, (trained,)), 0)
    other = replace(cell, picture=replace(cell.picture, caption="UID_999_3_1_all.bmp"))
    assert not any("Trained on a person" in line for line in [*other.caveats(), *cell.caveats()])


def test_a_release_of_blocks_speaks_softly(models: ModelCache) -> None:
    row = ask(example(2, smear=True), models, "ball4")
    page = stage.cell_answer(Answer(row.picture, (row,)), 0)
    assert row.called() == "Early" and " an early pre-B blast" in page and "Perhaps" not in page
    assert page.count("lk-ends") == 1 and page.count("<li style=") == 4, "four classes"
    assert "not measured on further people" in page and "not measured on people: its data name no people" in page


# The stage


def test_what_strangers_wrote_is_escaped(cell: Row) -> None:
    hostile = "<script>x</script>"
    shares = {hostile: 0.9, "b": 0.1}
    heat = next(iter((cell.known.heatmaps or {}).values()))
    maps = {label: replace(heat, label=label) for label in shares}
    known = replace(cell.known, probabilities=shares, heatmaps=maps, views=(shares,) * 8, decision=Decision(hostile))
    picture = replace(cell.picture, caption=hostile, remark=hostile)
    row = Row(picture, hostile, known)
    page = "".join(stage.cell_picture(row, view=view, forms={"nucleus": row}, back=hostile) for view in STAGE_VIEWS)
    page += stage.cell_answer(Answer(picture, (row, Row(picture, hostile, error=hostile)), (hostile,)), 0)
    page += drawing.message(hostile, hostile) + drawing.waiting(hostile) + drawing.invitation(hostile)
    page += stage.tiles([stage.picture_tile(hostile, hostile, picture, False)], credit=hostile)
    assert "<script>" not in page and page.count("&lt;script&gt;") > 12


def test_probabilities_without_a_class_are_folded_under_what_they_are_not(cell: Row, refused: Row) -> None:
    given, withheld = (stage.cell_answer(Answer(row.picture, (row,)), 0) for row in (cell, refused))
    assert "What it would have said" not in given
    before, after = withheld.split("<h3>What it would have said</h3>")
    assert "No white blood cell found" in before and "lk-ends" not in before
    assert "leukaemic" not in re.sub(r"<[^>]*>", "", before)
    assert 'class="lk-more"' in before and "lk-ends" in after


def test_a_refused_picture_says_what_sets_it_apart_and_not_how_many_blasts_are_recognised(refused: Row) -> None:
    foreign = replace(example(1), image=Image.fromarray(np.asarray(example(1).image)[:, :, ::-1]), example=0)
    assert refused.shows_no_cell and refused.verdict() == "No white blood cell found"
    assert not replace(refused, picture=foreign).shows_no_cell
    row = replace(refused, picture=foreign)
    assert row.verdict() == "No class: unlike the cells it knows"
    page = unescape(stage.cell_answer(Answer(foreign, (row,)), 0))
    assert row.distances is not None and list(row.distances) == ["colour", "texture", "shape"]
    assert all(f"{distance:.1f} ×" in page for distance in row.distances.values())
    assert "as the limit allows; 98 of 100 cells" in page and "OOD score" not in page and "What helps" in page
    assert "How far to trust it" not in page
    picture = stage.cell_picture(row, forms={})
    assert "lk-map" not in picture and "data-act" not in picture


def test_a_smear_given_as_one_cell_has_no_class(models: ModelCache) -> None:
    seen = ask(example_smear(), models, "cnmc")
    assert seen.known.outcome == "not a cell" and not seen.decision_text().has_class
    assert "The cells of a smear are read by /field." in seen.summary() and not seen.maps


def test_a_map_beside_the_nuclei_of_a_smear_is_a_caution(models: ModelCache) -> None:
    """The check vanished for smears: > 99 % stood there with two ticks."""
    row = ask(example(1, smear=True), models, "ball4")
    image, nuclei = row.picture.image, row.picture.parts["nucleus"]
    for on_nuclei in (True, False):
        heat = (nuclei if on_nuclei else ~nuclei).astype(np.float32)
        maps = {label: HeatMap(heat, label) for label in row.known.probabilities}
        box = (0.0, 0.0, float(image.width), float(image.height))
        drawn = replace(row, prediction=replace(row.known, heatmaps=maps, view_box=box))
        assert ("lies on nuclei, which fill" in drawn.decision_text().because) != on_nuclei


def test_a_map_that_failed_its_checks_is_no_caution_beside_the_verdict(cell: Row) -> None:
    decision = Decision("ALL", (Reason("explanation_off_cell", 0.6, 0.63),))
    for passed in (True, False, None):
        metrics = {**cell.metrics, "heat_maps": {"method": "evidence", "passed": passed}}
        row = replace(cell, metrics=metrics, prediction=replace(cell.known, decision=decision))
        said = "60\u00a0% of its map lies on the cell"
        assert (said in " ".join(row.caveats())) == (passed is not False)
        # Where the map is explained, and where the answer is all that is read, both are said.
        page = stage.cell_answer(Answer(row.picture, (row,)), 0)
        assert said in page.partition("Map and model")[2]
        because = row.decision_text().because
        assert said in because and ("This model's maps failed our checks." in because) == (passed is False)


def test_turned_and_covered_are_views_of_the_stage(cell: Row, models: ModelCache) -> None:
    parts = cell.picture.parts
    assert list(parts) == ["nucleus", "cytoplasm", "outside"] and sum(part.sum() for part in parts.values()) == 450**2
    assert 0.6 < parts["nucleus"].sum() / (~parts["outside"]).sum() < 0.95, "a blast has little cytoplasm"
    found = covered(cell, models)
    for name, one in found.items():
        changed = (np.asarray(one.picture.image) != np.asarray(cell.picture.image)).any(axis=2)
        assert changed.any() and not (changed & ~parts[name]).any(), name
    assert covered(replace(cell, picture=BLANK), models) == {}
    assert stage.cell_picture(cell, view="turned", forms={}).count("<li ") == 8
    shown = stage.cell_picture(cell, view="covered", forms=found)
    assert shown.count("<li ") == 4
    assert "Nucleus covered" in shown
    assert "No nucleus is told apart" in stage.cell_picture(cell, view="covered", forms={})
    unsure = replace(cell, prediction=replace(cell.known, decision=Decision("abstain")))
    shown = stage.cell_picture(cell, view="covered", forms={"nucleus": unsure})
    assert re.search(r"<b>ALL\s[\d>]+\s%, not\ssure</b><span>Nucleus covered</span>", shown)


def test_a_covered_part_shows_the_share_of_the_class_where_no_class_is_given(cell: Row) -> None:
    """All that stood there was "unlike", for every part."""
    prediction = replace(cell.known, decision=Decision(OUT_OF_DISTRIBUTION), probabilities={"ALL": 0.31, "HEM": 0.69})
    shown = stage.cell_picture(cell, view="covered", forms={"nucleus": replace(cell, prediction=prediction)})
    assert "<b>ALL\u00a031\u00a0%</b><span>Nucleus covered</span>" in shown
    assert "A covered cell is unlike the training cells: no class. That alone can change the figure for ALL." in shown
    only_outside = stage.cell_picture(cell, view="covered", forms={"outside": replace(cell, prediction=prediction)})
    assert "<b>ALL\u00a031\u00a0%, no\u00a0class</b><span>Background covered</span>" in only_outside


def test_spots_stained_darker_are_no_nucleus(cell: Row, models: ModelCache) -> None:
    spotted = Picture.opened(Image.fromarray(draw_cell("ALL", subject=5, cell=1, seed=1).image), "spotted")
    assert list(spotted.parts) == ["outside"]
    outside = covered(replace(cell, picture=spotted), models)["outside"]
    changed = (np.asarray(outside.picture.image) != np.asarray(spotted.image)).any(axis=2)
    assert changed[spotted.parts["outside"]].all(), "it was painted black on black: covered, and as given"


_NUCLEUS = (66, 26, 78)
_CYTOPLASM = (88, 54, 104)


def _cell_of_discs(*discs: tuple[int, int, int, tuple[int, int, int]]) -> Picture:
    """A cell on black whose discs (x, y, radius, colour) lie over each other."""
    down, across = np.indices((450, 450))
    pixels = np.zeros((450, 450, 3), np.uint8)
    for x, y, radius, colour in discs:
        pixels[np.hypot(across - x, down - y) < radius] = colour
    return Picture.opened(Image.fromarray(pixels), "discs")


def test_a_nucleus_is_round_and_leaves_cytoplasm() -> None:
    cell = (225, 225, 110, _CYTOPLASM)
    eccentric = _cell_of_discs(cell, (225, 240, 85, _NUCLEUS))
    assert list(eccentric.parts) == ["nucleus", "cytoplasm", "outside"]
    crescent = _cell_of_discs(cell, (225, 225, 90, _NUCLEUS), (260, 225, 60, _CYTOPLASM))
    assert list(crescent.parts) == ["outside"], "darker chromatin with a deep bay"
    assert list(_cell_of_discs(cell).parts) == ["outside"], "all of it is alike"


def test_a_borderline_answer_says_under_which_changes_it_is_another(cell: Row, models: ModelCache) -> None:
    changed = models.with_small_changes(models.predictor("cnmc"), cell.known)
    answers = {answer.change.name: replace(answer, decision=cell.known.decision) for answer in changed.changed}
    steady = replace(cell, prediction=replace(changed, changed=tuple(answers.values())))
    assert steady.borderline() == ""
    assert "Borderline" not in stage.cell_answer(Answer(cell.picture, (steady,)), 0)

    for name in ("size_up_5", "brightness_down_5"):
        answers[name] = replace(answers[name], decision=Decision("HEM"))
    borderline = replace(cell, prediction=replace(changed, changed=tuple(answers.values())))
    sentence = "Borderline: HEM when 5 % darker or larger."
    assert borderline.borderline() == sentence
    assert sentence.rstrip(".") in stage.cell_answer(Answer(cell.picture, (borderline,)), 0)
    assert "HEM in 2 of " in stage.cell_picture(borderline, view="changed", forms={})

    answers["rotation_30"] = replace(answers["rotation_30"], decision=Decision("HEM"))
    larger = replace(cell, prediction=replace(changed, changed=tuple(answers.values())))
    assert larger.borderline() == "Borderline: HEM when 5 % darker or larger; in 3 of 8 small changes in all."

    answers["rotation_30"] = replace(answers["rotation_30"], decision=cell.known.decision)
    answers["size_up_5"] = replace(answers["size_up_5"], decision=Decision(OUT_OF_DISTRIBUTION))
    refused_once = replace(cell, prediction=replace(changed, changed=tuple(answers.values())))
    assert refused_once.borderline() == ("Borderline: HEM when 5 % darker; unlike its training cells when 5 % larger.")
    assert "Another answer in 2 of " in stage.cell_picture(refused_once, view="changed", forms={})


def test_the_map_is_redrawn_without_asking_the_model_again(cell: Row) -> None:
    (first, one), (second, other) = cell.pictures("ALL"), cell.pictures("HEM")
    assert one is not None and other is not None and not np.array_equal(np.asarray(one), np.asarray(other))
    assert np.array_equal(np.asarray(first), np.asarray(second))
    page = stage.cell_picture(cell, view="map", label="HEM", forms={})
    assert "Map for HEM" in page and MAP_CAVEAT in unescape(stage.cell_answer(Answer(cell.picture, (cell,)), 0))
    assert "lk-dark" in page, "the cell beside the map"
    for view in ("cell", "turned", "covered"):
        page = stage.cell_picture(cell, view=view, forms={"nucleus": cell})
        assert "lk-dark" in page and "shown brighter" in page


def test_a_pale_cell_on_black_is_not_shown_brighter(cell: Row) -> None:
    pixels = np.asarray(cell.picture.image).astype(float) * 4
    pale = replace(cell, picture=Picture(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "pale.png"))
    assert pale.picture.on_black
    for row, brightens in ((cell, True), (pale, False)):
        page = stage.cell_picture(row, view="cell", forms={})
        assert ("lk-dark" in page) == ("shown brighter" in page) == brightens
        assert "lk-on-black" in page and "lk-fills" not in page, "the stage round it is black"
        assert stage.picture_tile("recent:0", "", row.picture, False).dark == brightens


def test_the_whole_result_is_told_to_a_program(tiny_release: Path) -> None:
    text = ask(example(1), ModelCache({"tiny": tiny_release}), "tiny").summary()
    assert "has no calibration: its percentages are not how often it is right." in text and "no OOD detector" in text
    assert "Model tiny, local files." in text and text.endswith(RESEARCH_NOTICE)


# The examples


def test_examples_are_three_of_each_label_and_one_smear_of_each() -> None:
    drawn = [example(number) for number in range(1, 7)]
    assert [one.caption for one in drawn] == ["Synthetic ALL"] * 3 + ["Synthetic HEM"] * 3
    assert len({one.image.tobytes() for one in drawn}) == 6
    smears = [example(number, smear=True).caption for number in range(1, 5)]
    assert [one.split(", ")[1] for one in smears] == ["Benign", "Early", "Pre", "Pro"]
    assert example(99).example == 6 and example(-1).example == 1, "an address may ask for any"


@pytest.mark.parametrize(
    "name", ["densenet169-cnmc", "efficientnet-b3-cnmc", pytest.param("densenet201-ball4", marks=pytest.mark.slow)]
)
def test_every_example_offered_is_given_its_class_but_for_the_last_cell(name: str) -> None:
    smear = name.endswith("ball4")
    expected = [label for label, *_ in (EXAMPLE_SMEARS if smear else EXAMPLE_CELLS)]
    if not smear:
        expected[-1] = ABSTAIN
    shown = [example(number + 1, smear=smear).image for number in range(len(expected))]
    predictor = Predictor.from_pretrained(EMBEDDED / f"leukoscope-{name}")
    assert [prediction.outcome for prediction in predictor(shown)] == expected


def test_the_first_two_examples_are_stable_and_the_third_is_not() -> None:
    predictor = Predictor.from_pretrained(EMBEDDED / "leukoscope-densenet169-cnmc")
    for number, is_stable in ((1, True), (2, True), (3, False)):
        (prediction,) = predictor([example(number).image], explain=True)
        changed = predictor.with_small_changes(prediction).changed
        assert all(answer.decision.outcome == "ALL" for answer in changed) == is_stable


def test_real_cells_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Five seconds after a stream; older versions do not wait.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (16, 16))] * 2, "label": ["ALL", "HEM"]})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "hub" / "train.parquet")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("leukoscope.web.answer.get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    first = real_cells(str(tmp_path / "hub"))
    assert [cell.label for cell in first] == ["ALL", "HEM"]
    shutil.rmtree(tmp_path / "hub")
    assert real_cells(str(tmp_path / "hub")) is first


def test_real_cells_are_those_of_the_model_s_data_set_if_the_hub_has_it(models: ModelCache, tiny_release: Path) -> None:
    assert data_of_real_cells(models, ["cnmc"]).hub_id == "dwb2023/cnmc-leukemia-2019"
    assert data_of_real_cells(models, ["ball4", "cnmc"]).hub_id == "dwb2023/cnmc-leukemia-2019"
    with pytest.raises(LeukoscopeError, match="tiny was trained on data of which no copy on the Hub is known. Give a"):
        data_of_real_cells(ModelCache({"tiny": tiny_release}), ["tiny"])


def test_a_hub_that_does_not_answer_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LeukoscopeError, match="cannot be reached now: the Hub does not answer. Try again later"):
        real_cells("dwb2023/cnmc-leukemia-2019")


# What is saved, and the API


def test_a_saved_result_says_who_answered_what_the_map_is_and_that_it_is_research(cell: Row) -> None:
    row = replace(cell, picture=replace(cell.picture, caption="../my <cell>.png"))
    file = save_row(row, "HEM")
    assert file.name == "leukoscope----my--cell-.png"
    with Image.open(BytesIO(file.content)) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Source"] == "model cnmc, revision of a local folder"
        assert image.text["Description"] == row.summary(label="HEM") != row.summary()
        assert "map for HEM" in image.text["Description"] and MAP_CAVEAT in image.text["Description"]
        recognised = [trust_row.sentence for trust_row in trust_rows(row.metrics)]
        assert recognised and all(sentence in image.text["Description"] for sentence in recognised)
        assert 1.4 * image.width > image.height > 450


def test_a_saved_result_holds_the_bars_and_the_colour_scale(cell: Row, refused: Row) -> None:
    drawn = np.asarray(row_image(cell, "ALL"))
    share = max(cell.known.probabilities.values())
    blast = (drawn == (0xD5, 0x5E, 0x00)).all(axis=2)
    longest = blast[drawn.shape[0] // 2 :].sum(axis=1).max()
    assert longest == pytest.approx(share * (SHEET_WIDTH - 2 * MARGIN), abs=2)
    # The bright end of the scale stands below the right picture.
    below = drawn[545:600, SHEET_WIDTH // 2 :].astype(int)
    assert (abs(below - scale_colours(160)[-1].astype(int)).sum(axis=2) < 6).any()
    assert not (np.asarray(row_image(refused, "ALL")) == (0xD5, 0x5E, 0x00)).all(axis=2).any()


def test_the_scale_has_the_colours_that_a_map_has_on_a_dark_cell() -> None:
    """The strongest place was a dull olive, its end of the scale bright yellow."""
    grey = Image.new("RGB", (256, 64), 3 * (GREY_BELOW_MAP,))
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (64, 1))
    drawn = np.asarray(overlay(grey, ramp, (0, 0, 256, 64), opacity=OPACITY, peak=1.0)).astype(int)
    assert np.abs(drawn[32] - scale_colours(256)).max() <= 4
    page_css = Path(stage.__file__).with_name("page.css").read_text(encoding="utf-8")
    ends = re.search(r"lk-scale \{.*?linear-gradient\(90deg, (.*?)\)", page_css, re.DOTALL)
    assert ends is not None
    assert ends[1] == ", ".join("#" + bytes(colour).hex() for colour in scale_colours(5))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that are drawn on saved pictures, which are drawn as ever."""
    words_drawn = []
    write = ImageDraw.ImageDraw.text

    def note_and_write(pen: ImageDraw.ImageDraw, at: tuple[float, float], words: str, *rest: Any, **more: Any) -> None:
        words_drawn.append(words)
        write(pen, at, words, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note_and_write)
    return words_drawn


def test_a_saved_cell_that_is_dark_stands_beside_a_brighter_one(cell: Row, written: list[str]) -> None:
    assert cell.picture.is_dark
    cells = np.asarray(row_image(cell, "ALL", with_map=False)).astype(int)[:530]  # above their captions
    assert "shown brighter" in written
    assert cells[:, 560:].sum() == pytest.approx(SHOWN_BRIGHTER * cells[:, :560].sum(), rel=0.05)
    row_image(cell, "ALL", with_map=True)
    assert written.count("shown brighter") == 1, "not beside a map"


def test_a_saved_picture_has_the_map_where_the_page_shows_it(cell: Row, written: list[str]) -> None:
    for with_map in (True, False):
        written.clear()
        save_row(cell, with_map=with_map)
        assert ("Check of its maps" in written) == (" strong, for ALL" in written) == with_map
        assert "Leukoscope" in written and "Synthetic ALL, as in the file" in written


def test_a_saved_cell_without_a_class_has_dots_as_grey_as_its_bar_and_its_limit_in_words(
    models: ModelCache, monkeypatch: pytest.MonkeyPatch, written: list[str]
) -> None:
    unsure = ask(example(6), models, "cnmc")
    # An orientation in which it is sure has the colour of its class.
    unsure = replace(unsure, prediction=replace(unsure.known, views=8 * (unsure.known.probabilities,)))
    limit = stage.missed_limit(unsure)
    assert limit is not None and percent(limit) == "72\u00a0%"
    assert stage.model_line(unsure)["limit"] == limit
    answer = unescape(stage.cell_answer(Answer(unsure.picture, (unsure,)), 0))
    assert f"--limit:{100 * limit:.1f}%" in answer and "<span>not sure</span>" in answer
    monkeypatch.setattr(trust, "trust_rows", lambda _metrics: ())  # their meters have the colours of the classes
    below_the_stage = np.asarray(row_image(unsure, "HEM"))[650:]
    assert "not sure" in written, "the picture says what the page says"
    shares = {"ALL": 0.2828, "HEM": 0.7172}
    near = replace(unsure, prediction=replace(unsure.known, probabilities=shares, decision=Decision(ABSTAIN, (
        Reason("low_confidence", 0.7172, unsure.thresholds.abstain_below),
    ))))  # fmt: skip
    row_image(near, "HEM")
    assert any(words.startswith("71.7\u00a0% ") for words in written), "it rounds to the limit"
    assert "<b>71.7\u00a0%</b>" in stage.cell_answer(Answer(near.picture, (near,)), 0)
    for class_colour in CLASS_COLOURS[:2]:
        assert not (below_the_stage == ImageColor.getrgb(class_colour)).all(axis=2).any()


def test_a_model_without_maps_shows_the_cell_and_says_so(vit_release: Path, tmp_path: Path) -> None:
    row = ask(example(1), ModelCache({"vit": vit_release}), "vit")
    assert NO_MAP in row.summary() and "Map for" not in stage.cell_picture(row, view="map", forms={})
    assert NO_MAP in stage.cell_answer(Answer(row.picture, (row,)), 0) and row_image(row, "ALL").width > 0
    example(1).image.save(tmp_path / "cell.png")
    outcome, _, drawn, text, _ = Endpoints(ModelCache({"vit": vit_release})).predict(str(tmp_path / "cell.png"), "vit")
    assert outcome in ("ALL", "HEM") and drawn is None and NO_MAP in text


def test_a_release_whose_maps_by_covering_passed_shows_these_everywhere(tiny_release: Path, tmp_path: Path) -> None:
    release = shutil.copytree(tiny_release, tmp_path / "release")
    metrics = json.loads((release / "metrics.json").read_text())
    metrics["heat_maps"] = {"method": "evidence", "passed": False}
    metrics["occlusion_maps"] = {"method": "occlusion", "passed": True}
    (release / "metrics.json").write_text(json.dumps(metrics))
    models = ModelCache({"covering": release})
    image = example(1).image
    expected = Predictor.from_pretrained(release)(image, explain=True)
    assert expected.map_check.method == "occlusion"

    *_, answer = answering(Answer(Picture(image, "a.png"), waiting=("covering",)), models)

    (row,) = answer.rows
    assert row.known.map_check.method == "occlusion" and chosen_view(row, "").name == "map"
    for label, heat in (expected.heatmaps or {}).items():
        assert np.allclose(row.maps[label], heat.evidence, atol=1e-5)
    page = unescape(stage.cell_answer(answer, 0))
    assert "its maps passed our checks" in page and MAP_CAVEATS["occlusion"] in page
    assert "maps failed our checks" not in stage.cell_picture(row, forms={})
    image.save(tmp_path / "cell.png")
    assert Endpoints(models).predict(str(tmp_path / "cell.png"), "covering")[-1]["map_check"]["method"] == "occlusion"


def test_the_api_says_whether_the_maps_of_the_release_passed(tiny_release: Path, tmp_path: Path) -> None:
    release = shutil.copytree(tiny_release, tmp_path / "release")
    metrics = json.loads((release / "metrics.json").read_text())
    metrics["heat_maps"] = {"method": "evidence", "passed": False}
    (release / "metrics.json").write_text(json.dumps(metrics))
    example(1).image.save(tmp_path / "cell.png")

    answer = Endpoints(ModelCache({"failed": release})).predict(str(tmp_path / "cell.png"), "failed")

    assert answer[-1]["map_check"]["passed"] is False
    assert "This model's Grad-CAM maps failed our checks." in answer[3]
