"""The page without a browser: which question counts, what a click does, and what a visit keeps."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import unescape
from itertools import islice
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import gradio
import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.loading import StreamedCell
from leukoscope.data.smear import UnusableSmear
from leukoscope.reports import trust
from leukoscope.reports.text import outcome_text
from leukoscope.web.answer import Answer, Picture, Row, example
from leukoscope.web.batch import BatchResult
from leukoscope.web.batch_files import Batch, BatchFile
from leukoscope.web.drawing import WAITING_FOR_OTHERS
from leukoscope.web.export import File, save_row
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import BROKEN, FAILED, STOPPED, Page
from leukoscope.web.smear import Smear, example_smear, read_smear
from leukoscope.web.upload import OWN_FOLDER
from leukoscope.web.views import STAGE_VIEWS
from leukoscope.web.visit import RECENT_BYTES, RECENT_TILES, RESULT_DELETED, Scene, Visit
from leukoscope.web.work_queue import Question, WorkQueue
from zips import cell_png, pack, upload_folder

EMBEDDED = Path(__file__).parents[2] / "model_card"
CNMC, BALL4 = EMBEDDED / "leukoscope-densenet169-cnmc", EMBEDDED / "leukoscope-densenet201-ball4"


def page_of(models: ModelCache) -> Page:
    """The page, not served."""
    with gradio.Blocks():
        return Page(models)


@pytest.fixture(scope="module")
def page(tiny_release: Path) -> Page:
    return page_of(ModelCache({"one": tiny_release, "other": tiny_release}))


def click(page: Page, visit: Visit, act: str) -> Iterator[dict[Any, Any]]:
    return page._on_act(visit, SimpleNamespace(value=act))  # type: ignore[arg-type]


def shown(page: Page, steps: Iterator[dict[Any, Any]]) -> str:
    """What stands on the stage once all steps are drawn."""
    found: dict[Any, Any] = {}
    for step in steps:
        found |= step
    return unescape(str(found.get(page.picture, "")) + str(found.get(page.answer, "")))


# Which question counts


def test_of_two_questions_the_one_asked_last_counts_whichever_is_answered_first(page: Page) -> None:
    for older_first in (True, False):
        visit = Visit()
        older, newer = click(page, visit, "example:1"), click(page, visit, "example:4")
        seen = [next(older), next(newer)]
        for steps in (older, newer) if older_first else (newer, older):
            seen += list(steps)
        assert isinstance(visit.scene.content, Answer) and visit.scene.content.picture.example == 4
        assert all("Synthetic ALL" not in str(step.get(page.picture, "")) for step in seen[2:])


def test_a_model_that_is_loaded_answers_before_one_that_is_not(tiny_release: Path) -> None:
    models = ModelCache({"first": tiny_release, "loaded": tiny_release})
    models.predictor("loaded")
    page, visit = page_of(models), Visit()
    steps = click(page, visit, "example:1")
    next(steps)
    assert isinstance(visit.scene.content, Answer) and visit.scene.content.waiting == ("loaded", "first")
    list(steps)
    assert [row.model for row in visit.scene.content.rows] == ["loaded", "first"] and visit.scene.opened == 0


def test_a_model_that_is_loaded_while_another_answers_is_asked_next(tiny_release: Path) -> None:
    models = ModelCache(dict.fromkeys(("first", "slow", "loaded"), tiny_release))
    page, visit = page_of(models), Visit(chosen="slow")
    steps = click(page, visit, "example:1")
    next(steps)
    assert isinstance(visit.scene.content, Answer) and visit.scene.content.waiting == ("slow", "first", "loaded")
    models.predictor("loaded")
    list(steps)
    assert [row.model for row in visit.scene.content.rows] == ["slow", "loaded", "first"]
    assert visit.scene.model == "slow", "the model that was chosen is asked first, and its row is opened"


def test_the_model_that_a_visitor_opened_reads_what_is_given_next(tiny_release: Path) -> None:
    page, visit = page_of(ModelCache(dict.fromkeys(("first", "second"), tiny_release))), Visit()
    list(click(page, visit, "example:1"))
    assert visit.scene.model == "first"
    list(click(page, visit, "row:1"))
    for act in ("example:2", "smear", "people"):
        list(click(page, visit, act))
        assert visit.scene.model == "second", act
    list(click(page, visit, "read:first"))
    list(click(page, visit, "example:3"))
    assert visit.scene.model == "first", "the model that read a batch last, too"
    list(click(page, visit, "row:1"))
    list(click(page, visit, "example:1"))
    assert visit.scene.model == "second"


def test_no_tile_of_a_cell_is_marked_for_the_smear_of_a_model_of_whole_pictures() -> None:
    page, visit = page_of(ModelCache({"cnmc": CNMC, "ball4": BALL4})), Visit(chosen="ball4")
    for model, marked in (("ball4", 0), ("cnmc", 1)):
        list(page._draw(visit, partial(page.open_example, visit, 1, model)))
        assert visit.scene.model == model
        assert page._tiles(visit).count('aria-pressed="true"') == marked


def test_what_was_given_before_opens_with_the_model_that_was_chosen_since(tiny_release: Path) -> None:
    page, visit = page_of(ModelCache(dict.fromkeys(("first", "second"), tiny_release))), Visit()
    own = Picture.opened(example(2).image, "mine.png")
    list(page._draw(visit, lambda: page.read_picture(visit, own), new_input="mine.png"))
    list(click(page, visit, "example:1"))
    list(click(page, visit, "row:1"))
    list(click(page, visit, "given:1"))
    assert visit.scene.picture is not None and visit.scene.picture.caption == "mine.png"
    assert visit.scene.model == "second"


@pytest.mark.parametrize("act", ["example:2", "row:99", "view:nothing", "label:nothing", "no button"])
def test_the_last_step_changes_nothing_because_gradio_sends_it_again(page: Page, act: str) -> None:
    visit = Visit()
    list(click(page, visit, "example:1"))
    *_, last = page._on_click(visit, SimpleNamespace(value=act))  # type: ignore[arg-type]
    assert last == {page.visit: visit}
    *_, last = page._on_files(None, visit)
    assert last == {page.upload: None, page.visit: visit}


def test_clicks_of_one_moment_count_in_the_order_of_the_page_not_of_the_server(page: Page) -> None:
    visit = Visit()
    for number in (1, 4, 3, 2):
        list(page._on_act(visit, SimpleNamespace(value=f"example:{number}", index=number)))  # type: ignore[arg-type]
    assert isinstance(visit.scene.content, Answer) and visit.scene.content.picture.example == 4


def test_a_second_upload_counts_while_the_first_is_read(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    paths, visit = [tmp_path / f"{OWN_FOLDER}{number}" / f"{number}.png" for number in range(2)], Visit()
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_bytes(cell_png(subject=number))
    first, second = (page._on_upload([str(path)], visit) for path in paths)
    next(first)
    page_now = shown(page, second)
    assert list(first) == [] and "1.png" in page_now
    assert isinstance(visit.scene.content, Answer) and visit.scene.content.picture.caption == "1.png"
    assert not any(path.exists() for path in paths)


def test_a_new_picture_stands_there_before_its_answer_and_never_beside_an_old_one(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name, content, is_picture in (("new.png", cell_png(), True), ("broken.png", b"no picture", False)):
        visit = Visit()
        list(click(page, visit, "example:1"))
        path = upload_folder(tmp_path) / name
        path.write_bytes(content)
        steps = page._on_upload([str(path)], visit)
        first = next(steps)
        assert "<img" not in first[page.picture] and visit.scene.content is None
        assert f"Reading {name}" in first[page.picture] and f"Reading {name}" in first[page.answer]
        second = next(steps)
        assert ("<img" in second[page.picture]) == is_picture and "leukaemic" not in second[page.answer]
        last = shown(page, steps)
        assert "Synthetic ALL" not in last
        if not is_picture:
            assert "broken.png was not read" in second[page.picture] and visit.scene.content is None
            answer = unescape(second[page.answer])
            assert "Not read" in answer and "broken.png: is not an image" in answer
            assert "What can be given" in answer and "A folder or zip" in answer, "what can be given"


def test_a_question_that_fails_leaves_what_was_shown_and_an_older_failure_is_not_told(page: Page) -> None:
    visit = Visit()
    list(click(page, visit, "example:1"))
    before = visit.scene.content
    assert "is no model of this page" in shown(page, click(page, visit, "read:/etc"))
    assert visit.scene.content is before
    failing, newer = click(page, visit, "read:/etc"), click(page, visit, "example:2")
    next(newer)
    visit.asked += 1
    assert list(newer) == [], "a still newer question was asked"
    assert list(failing) != [] and visit.scene.content is not before


@pytest.mark.parametrize(
    "act",
    [
        "",
        "row",
        "row:x",
        "row:-99",
        "row:77",
        "recent:5",
        "given:7",
        "cell:1",
        "example:x",
        "view:lost",
        "pitch:nan",
        "__init__:1",
    ],
)
def test_what_no_button_of_ours_says_changes_nothing(page: Page, act: str) -> None:
    visit = Visit()
    list(click(page, visit, "example:1"))
    before = visit.scene.content
    list(click(page, visit, act))
    assert visit.scene.content is before


def test_what_was_forgotten_is_to_be_given_again(page: Page) -> None:
    for act in ["row:0", "view:turned", "view:covered", "label:ALL", "cell:0", "pitch:0.1", "save:png", "read:one"]:
        assert RESULT_DELETED in shown(page, click(page, Visit(), act)), act


def test_an_error_behind_a_click_is_shown_and_logged_once_with_its_traceback(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the parsing of a click may ignore a value: the page stayed on "reading …", and nothing was logged."""
    for act, broken in (("view:covered", "covered"), ("example:2", "answering"), ("smear", "read_smear")):
        visit = Visit()
        list(click(page, visit, "example:1"))
        caplog.clear()
        with monkeypatch.context() as patch:
            if broken == "covered":
                view = replace(STAGE_VIEWS["covered"], compute=lambda *_: {"": int("no number, deep inside")})
                patch.setitem(STAGE_VIEWS, "covered", view)
            else:
                patch.setattr(f"leukoscope.web.page.{broken}", lambda *_: int("no number, deep inside"))
            text = shown(page, click(page, visit, act))
        title = FAILED if act == "view:covered" else "Not read"
        assert title in text and BROKEN in text and "deep inside" not in text, act
        assert "Reading" not in text.partition(title)[2], act
        (record,) = caplog.records
        assert record.exc_info and "deep inside" in str(record.exc_info[1]), act


# What a click does


def test_an_example_is_answered_by_every_model_once_and_then_kept(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit()
    text = shown(page, click(page, visit, "example:1"))
    assert text.count('class="lk-other"') == 1 and "Synthetic ALL" in text and 'data-example="1"' in text
    list(click(page, visit, "example:2"))
    assert visit.scene.row.picture.example == 2, "of the same class, and another cell"
    for name in ("decide", "predict"):
        monkeypatch.setattr(page.models, name, lambda *_, **__: pytest.fail("asked again"))
    assert shown(page, click(page, Visit(), "example:1")).count('class="lk-other"') == 1


def test_a_row_opens_with_its_map_and_the_picture_has_three_views(page: Page) -> None:
    visit = Visit()
    list(click(page, visit, "example:1"))
    assert visit.scene.model == "one"
    assert 'data-model="other"' in shown(page, click(page, visit, "row:1")) and visit.scene.model == "other"
    assert shown(page, click(page, visit, "view:turned")).count(">Mirrored") == 4
    assert "Nucleus covered" in shown(page, click(page, visit, "view:covered"))
    assert "Map for HEM" in shown(page, click(page, visit, "row:1")) + shown(page, click(page, visit, "label:HEM"))


@pytest.mark.parametrize("view", ["cell", "map", "covered"])
def test_another_model_is_shown_in_the_view_that_was_chosen(page: Page, view: str) -> None:
    visit = Visit()
    list(click(page, visit, "example:1"))
    list(click(page, visit, f"view:{view}"))
    list(click(page, visit, "row:1"))
    assert (visit.scene.model, visit.scene.view) == ("other", view)
    assert bool(visit.scene.forms) == (view == "covered"), "computed for that model"


def test_an_answer_is_completed_below_the_reason_why_a_newer_question_failed(page: Page) -> None:
    """Its map and its small changes were computed no more, and the page said for ever that they were."""
    page.models.examples.clear()
    visit = Visit()
    asked = click(page, visit, "example:1")
    for _ in range(3):  # what is given, and two decisions
        next(asked)
    text = shown(page, click(page, visit, "read:/etc"))
    assert visit.scene.showing(Answer).complete and not visit.scene.row.changes_pending
    assert "is no model of this page" in text and "Computing" not in text and "lk-working" not in text


@pytest.mark.parametrize("act", ["example:2", "recent:0"])
def test_the_next_cell_is_shown_in_the_view_that_was_chosen(page: Page, act: str) -> None:
    page.models.examples.clear()
    visit = Visit()
    list(click(page, visit, "example:1"))
    list(click(page, visit, "view:covered"))
    answer = replace(visit.scene.showing(Answer), picture=example(3))
    visit.recent = [replace(visit.scene, content=answer, view="", forms=None)]
    steps = list(click(page, visit, act))
    assert visit.scene.view == "covered" and visit.scene.forms, "computed for that cell"
    pictures = [str(step[page.picture]) for step in steps if page.picture in step]
    assert pictures and all(re.search(r'data-act="view:covered"[^>]* aria-pressed="true"', html) for html in pictures)


def test_a_cell_of_one_s_own_is_shown_in_the_view_that_was_chosen(page: Page, tmp_path: Path) -> None:
    """A model whose maps passed showed it in Map, although Cell had been pressed last."""
    path = tmp_path / "mine.png"
    example(3).image.save(path)
    visit = Visit()
    list(click(page, visit, "example:1"))
    for view in ("changed", "cell"):
        list(click(page, visit, f"view:{view}"))
        list(page._on_upload([str(shutil.copy(path, tmp_path / "given.png"))], visit))
        assert visit.scene.picture is not None and visit.scene.picture.caption == "given.png"
        assert visit.scene.view == view


def test_a_model_whose_maps_passed_shows_the_cell_in_its_view_until_the_map_is_there(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "maps_passed", lambda _metrics: True)
    page.models.examples.clear()
    visit = Visit()
    list(click(page, visit, "example:1"))
    list(click(page, visit, "row:1"))
    pictures = [str(step[page.picture]) for step in click(page, visit, "example:2") if page.picture in step]
    waiting_for_answer, waiting_for_map, *_, complete = pictures
    assert all(re.search(r'data-act="view:map"[^>]* aria-pressed="true"', html) for html in pictures)
    assert "view:map" in waiting_for_answer and " disabled" in waiting_for_answer
    assert "The map is being computed" in waiting_for_map and "The picture as given" in waiting_for_map
    assert "lk-handle" in complete and "being computed" not in complete


@pytest.mark.parametrize("act", ["row:1", "view:turned", "view:covered", "label:ALL"])
def test_what_is_clicked_before_the_maps_are_there_stays_and_every_map_follows(page: Page, act: str) -> None:
    page.models.examples.clear()
    visit = Visit()
    asked = click(page, visit, "example:1")
    for _ in range(3):  # what is given, and two decisions
        next(asked)
    assert isinstance(visit.scene.content, Answer) and [row.pending for row in visit.scene.content.rows] == [True, True]
    steps = click(page, visit, act)
    next(steps)
    stands = visit.scene.opened, visit.scene.view, visit.scene.label
    assert list(asked) == [] and list(steps) != []
    assert visit.scene.content.complete and (visit.scene.opened, visit.scene.view, visit.scene.label) == stands
    is_second_open = act == "row:1"
    small_changes = [row.changes_pending for row in visit.scene.content.rows]
    assert small_changes == [is_second_open, not is_second_open], "of the row that is open"
    assert stands[0] == (1 if is_second_open else 0) and (not act.startswith("view") or act.endswith(stands[1]))


def on_stage(visit: Visit) -> tuple[object, object]:
    return visit.scene.content, visit.scene.behind


def test_a_smear_is_read_and_a_cell_of_it_leads_back(page: Page) -> None:
    visit = Visit()
    text = shown(page, click(page, visit, "smear"))
    assert isinstance(visit.scene.content, Smear) and text.count('class="lk-box') == 5 and "read by other" in text
    read = visit.scene.content
    text = shown(page, click(page, visit, "cell:1"))
    assert text.count('data-act="back"') == 2 and ">← Smear</button>" in text and ">Cell 2</span>" in text
    assert isinstance(on_stage(visit)[0], Answer) and on_stage(visit)[1] is read
    assert not visit.recent, "it is opened again from its smear"
    assert re.search(r"· \d+ µm², nucleus \d+\s% of it", text)
    assert text.count('data-act="cell:2"') == 2, "below the answer, and on a phone below the picture"
    list(click(page, visit, "view:turned"))
    next_text = shown(page, click(page, visit, "cell:2"))
    assert ">Cell 3</span>" in next_text and "lk-shows-turned" in next_text and on_stage(visit)[1] is read
    list(click(page, visit, "view:covered"))
    next_text = shown(page, click(page, visit, "cell:3"))
    assert ">Cell 4</span>" in next_text and visit.scene.forms and FAILED not in next_text
    shown(page, click(page, visit, "back"))
    assert on_stage(visit) == (read, None)
    shown(page, click(page, visit, "read:other"))
    assert visit.scene.model == "other"
    text = shown(page, click(page, visit, "pitch:0.14"))
    assert "0.140 µm per pixel, set by you" in text and "as given" not in text and visit.scene.model == "other"
    assert "0.140 µm per pixel, set by you" in shown(page, click(page, visit, "read:one")), "by another model, too"
    assert "from its red cells" in shown(page, click(page, visit, "pitch:0")), "measured again"
    assert "scale 900 µm per pixel" in shown(page, click(page, visit, "pitch:900"))


def test_a_smear_at_another_scale_is_found_again_by_its_number(page: Page) -> None:
    """It was not kept, and its number was given to what came next."""
    visit = Visit()
    list(click(page, visit, "smear"))
    list(click(page, visit, "pitch:0.2"))
    number = visit.scene.number
    list(click(page, visit, "example:1"))
    assert visit.scene.number != number
    assert "0.200 µm per pixel, set by you" in shown(page, click(page, visit, f"given:{number}"))
    shown(page, click(page, visit, "read:other"))
    assert visit.scene.number == number, "read by another model it is the same picture"


def test_a_cell_of_a_smear_stands_there_before_its_answer(page: Page) -> None:
    """The page only dimmed until the answer and its map were computed."""
    visit = Visit()
    list(click(page, visit, "smear"))
    steps = click(page, visit, "cell:1")
    first = next(steps)
    assert ">Cell 2</span>" in first[page.picture] and "Reading Cell 2 of Synthetic smear" in first[page.answer]
    assert "lk-working" in first[page.answer], "a line runs along its top"
    assert first[page.answer].count("reading …") == 2, "each model's answer follows"
    assert isinstance(visit.scene.smear, Smear)
    share = visit.scene.smear.reading.in_distribution
    text = shown(page, steps)
    assert visit.scene.row.picture.field_share == share and "Reading" not in text


def test_a_smear_of_one_cell_opens_it_whatever_was_shown_before(page: Page) -> None:
    whole = example_smear()
    left, top, right, bottom = read_smear(page.models, whole, "one").reading.cells[3].cell.box
    one_cell = replace(whole, image=whole.image.crop((left - 60, top - 60, right + 60, bottom + 60)), caption="own.png")
    visit = Visit()
    for before in ("example:1", "smear"):
        shown(page, click(page, visit, before))
        text = shown(page, page._draw(visit, partial(page.read_picture, visit, one_cell), new_input="own.png"))
        assert visit.scene.cell == 0 and ">Cell 1</span>" in text
    shown(page, click(page, visit, "smear"))
    assert ">Cell 1</span>" in shown(page, click(page, visit, "recent:0")), "from its tile, too"
    shown(page, click(page, visit, "back"))
    assert isinstance(visit.scene.content, Smear), "and leads back"


def test_a_picture_decides_what_is_shown() -> None:
    models = ModelCache({"cnmc": CNMC, "ball4": BALL4})
    page, smear = page_of(models), example_smear()
    left, top, right, bottom = read_smear(models, smear, "cnmc").reading.cells[3].cell.box
    crop = smear.image.crop((left - 60, top - 60, right + 60, bottom + 60))
    for picture, kind, behind in (
        (example(1), Answer, False),
        (replace(smear, image=crop), Answer, True),  # of the one cell that it holds
        (smear, Smear, False),
    ):
        visit = Visit()
        text = shown(page, page._draw(visit, partial(page.read_picture, visit, picture)))
        assert isinstance(visit.scene.content, kind) and (visit.scene.behind is not None) == behind, text
    blank = replace(example(1), image=Image.new("RGB", (450, 450), "white"), example=0)
    visit = Visit()
    text = shown(page, page._draw(visit, partial(page.read_picture, visit, blank)))
    assert "No white blood cell found" in text and "No class either" in text, "each refuses in its row"
    foreign = replace(example(2, smear=True), example=0)
    text = shown(page, page._draw(visit, partial(page.read_picture, visit, foreign)))
    assert isinstance(visit.scene.content, Smear) and visit.scene.model == "cnmc", (
        "no model that nobody chose is opened"
    )
    assert (
        "No class: unlike the cells it knows" in text
        and ">ball4 · of the whole picture</span><span>Looks like an early pre-B blast</span>" in text
    )
    text = shown(page, click(page, visit, "read:ball4"))
    assert isinstance(visit.scene.content, Answer) and "Looks like an early pre-B blast" in text
    assert "· of the whole picture" in text and "Map for " in shown(page, click(page, visit, "view:map"))
    shown(page, click(page, visit, "back"))
    assert isinstance(visit.scene.content, Smear) and visit.scene.content.whole_picture


def zipped(folder: Path, names: list[str]) -> str:
    files = {name: cell_png(subject=number) for number, name in enumerate(names)}
    return pack(upload_folder(folder) / "cells.zip", files)


def test_a_batch_is_stopped_by_any_newer_question_and_its_files_are_deleted(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for act, said in (("stop", "Stopped before a picture was read"), ("example:1", "Synthetic ALL")):
        path, visit = zipped(tmp_path, [f"{number}.png" for number in range(3)]), Visit()
        steps = page._on_upload([path], visit)
        assert "Reading cells.zip" in str(next(steps))
        given = str(next(steps))
        assert "Reading 3 pictures" in given and given.count("<img") >= 3, "what was given is shown at once"
        assert "0 of 3 pictures predicted" in str(next(steps))
        assert said in shown(page, click(page, visit, act))
        assert list(steps) == [] and not Path(path).exists()
        assert not (isinstance(visit.scene.content, BatchResult) and visit.scene.content.rows)


def test_what_a_stopped_batch_has_predicted_stays_to_be_opened_and_saved(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    names = [f"p{subject}/{cell:02d}.png" for subject in (1, 2) for cell in range(10)]
    path, visit = zipped(tmp_path, names), Visit()
    steps = page._on_upload([path], visit)
    waiting = [str(step) for step in islice(steps, 4)][-1]
    assert "16 of 20 pictures predicted" in waiting and waiting.count("<circle") == 16
    assert 'data-act="cell:' not in waiting, "no dot opens a cell while others are read"
    text = shown(page, click(page, visit, "stop"))
    assert list(steps) == [] and not Path(path).exists()
    assert "stopped after 16 of 20 pictures" in text and "not all read" in text
    assert ">So far: 16 " in text and "stopped after 16 of 20 pictures" in text, "in the answer itself"
    assert "data-give-again" in text
    assert "p2/05.png" in shown(page, click(page, visit, "cell:15"))
    shown(page, click(page, visit, "back"))
    shown(page, click(page, visit, "example:1"))
    assert "data-give-again" not in shown(page, click(page, visit, "given:1")), "the browser has what was given last"
    shown(page, click(page, visit, "read:other"))
    read = visit.scene.content
    assert isinstance(read, BatchResult) and len(read.rows) == 16 and not read.unread, "the whole of what was kept"


def test_a_batch_that_breaks_shows_what_was_predicted_below_the_message(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path, visit = zipped(tmp_path, [f"{number:02d}.png" for number in range(20)]), Visit()
    predict = page.models.predict

    def breaks(predictor: Any, images: Any, **options: Any) -> Any:
        if len(images) == 4:
            raise LeukoscopeError("the disk is full")
        return predict(predictor, images, **options)

    monkeypatch.setattr(page.models, "predict", breaks)
    text = shown(page, page._on_upload([path], visit))
    assert "the disk is full" in text and "stopped after 16 of 20 pictures" in text


def test_a_batch_opens_its_cells_and_is_read_by_another_model(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    names = [f"p{subject}/{cell}.png" for subject in (1, 2) for cell in (1, 2)]
    visit = Visit()
    text = shown(page, page._on_upload([zipped(tmp_path, names)], visit))
    read = visit.scene.content
    assert isinstance(read, BatchResult) and list(read.by_subject) == ["p1", "p2"] and text.count("<svg") == 2
    text = shown(page, click(page, visit, "cell:3"))
    assert "p2/2.png" in text and ">← Cells</button>" in text and text.count('class="lk-other"') == 1
    shown(page, click(page, visit, "back"))
    shown(page, click(page, visit, "read:other"))
    other = visit.scene.content
    assert isinstance(other, BatchResult) and other.model == "other"
    assert visit.scene.readings == (read,), "what the first model predicted stays"
    assert [row.picture for row in other.rows] == [row.picture for row in read.rows]
    assert all(row.picture is known.picture for row, known in zip(other.rows, read.rows, strict=True)), "kept once"
    shown(page, click(page, visit, "cell:0"))
    text = shown(page, click(page, visit, "back"))
    assert "same answer for 4 of 4 cells" in text
    text = shown(page, click(page, visit, f"read:{read.model}"))
    assert visit.scene.content is read and visit.scene.readings == (other,), "shown again, not read again"


def test_the_cell_of_a_batch_leads_to_the_next_one_of_its_person_in_the_view_that_was_chosen(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    names = [f"p{subject}/{cell}.png" for subject in (1, 2) for cell in (1, 2, 3)]
    visit = Visit()
    picture = shown(page, page._on_upload([zipped(tmp_path, names)], visit))
    second_grid = picture.split('<ul class="lk-grid">')[2].split("</ul>")[0]
    listed = re.findall(r'data-act="cell:(\d+)"', second_grid)
    assert sorted(listed) == ["3", "4", "5"]
    text = shown(page, click(page, visit, f"cell:{listed[0]}"))
    shown(page, click(page, visit, "view:covered"))
    for following in (listed[1], listed[2], listed[0]):
        assert re.findall(r'data-act="cell:(\d+)"', text) == [following] * 2, "on the stage and below the answer"
        text = shown(page, click(page, visit, f"cell:{following}"))
        assert (visit.scene.cell, visit.scene.view) == (int(following), "covered")
    assert isinstance(visit.scene.behind, BatchResult) and ">← Cells</button>" in text


def test_a_batch_that_another_model_begins_to_read_leads_back_when_it_is_stopped(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    visit = Visit()
    shown(page, page._on_upload([zipped(tmp_path, ["1.png", "2.png"])], visit))
    read = visit.scene.content
    steps = click(page, visit, "read:other")
    assert "0 of 2 pictures predicted" in str(next(steps))
    shown(page, click(page, visit, "stop"))
    assert visit.scene.content is read and list(steps) == []


def test_a_batch_of_one_cell_opens_it(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    visit = Visit()
    text = shown(page, page._on_upload([zipped(tmp_path, ["only.png"])], visit))
    assert visit.scene.cell == 0 and ">← Cells</button>" in text and "Next cell" not in text
    shown(page, click(page, visit, "back"))
    assert isinstance(visit.scene.content, BatchResult)


def test_a_batch_behind_those_of_other_visitors_says_so_and_goes_on_by_itself(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path, visit = zipped(tmp_path, [f"{number}.png" for number in range(2)]), Visit()
    with _working_for_another(page.models.next_part), _working_for_another(page.models.next_part):
        steps = page._on_upload([path], visit)
        next(step for step in steps if WAITING_FOR_OTHERS in str(step.get(page.answer, "")))
    assert "2 cells, people unknown" in shown(page, steps), "it goes on by itself"


def test_a_model_of_the_hub_is_one_row_more(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModelCache({"one": tiny_release})
    load = models._load
    monkeypatch.setattr(models, "_load", lambda name: load("one"))
    page, visit = page_of(models), Visit()
    list(click(page, visit, "example:1"))
    text = shown(page, click(page, visit, "add: lab/tiny "))
    assert visit.added == ["lab/tiny"] and visit.scene.model == "lab/tiny" and text.count('class="lk-other"') == 1
    assert shown(page, click(page, visit, "example:2")).count('class="lk-other"') == 1
    assert "is no model name" in shown(page, click(page, visit, "add:/etc")) and visit.added == ["lab/tiny"]


@pytest.mark.parametrize(("act", "kind"), [("example:1", "png"), ("smear", "csv"), ("people", "csv")])
def test_what_is_shown_is_saved(page: Page, act: str, kind: str) -> None:
    visit = Visit()
    list(click(page, visit, act))
    (step,) = click(page, visit, f"save:{kind}")
    parcel = json.loads(unescape(step[page.parcel].removeprefix("<template>").removesuffix("</template>")))
    assert parcel["name"].endswith(f".{kind}") and parcel["content"]
    if act == "people":
        table = list(csv.DictReader(io.StringIO(base64.b64decode(parcel["content"]).decode())))
        outcomes = [row.prediction.outcome for row in visit.scene.showing(BatchResult).rows]
        assert [row["outcome"] for row in table] == [outcome_text(outcome) for outcome in outcomes], "the page's words"


# What a visit keeps


def test_a_visit_keeps_its_newest_cells_once_each(page: Page) -> None:
    visit = Visit()
    for number in (1, 2, 3, 1):
        list(click(page, visit, f"example:{number}"))
    assert [one.picture.example for one in visit.recent if one.picture] == [1, 3, 2]
    list(click(page, visit, "recent:2"))
    assert isinstance(visit.scene.content, Answer) and visit.scene.content.picture.example == 2
    for _ in range(20):
        visit.remember(Scene(Answer(Picture(example(1).image.copy(), ""))))
    assert len(visit.recent) == RECENT_TILES


def test_a_visit_keeps_a_smear_of_its_own_with_a_tile_that_opens_it(page: Page) -> None:
    """A smear had no tile: once another picture was given, it was lost."""
    visit = Visit()
    own = replace(example_smear(), image=example_smear().image.copy(), caption="mine.png")
    shown(page, page._draw(visit, lambda: page.read_picture(visit, own), new_input="mine.png"))
    kept = visit.scene.content
    assert isinstance(kept, Smear) and "mine.png" in page._tiles(visit)
    assert "tabindex" not in page._tiles(visit), "its buttons are tab stops, it is none"
    shown(page, click(page, visit, "cell:1"))
    shown(page, click(page, visit, "smear"))
    assert [scene.content for scene in visit.recent] == [kept], "neither its cell nor the synthetic smear"
    shown(page, click(page, visit, "recent:0"))
    assert visit.scene.content is kept


def test_the_last_batch_has_a_tile_that_opens_it_and_its_cells(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch had none: once anything else was looked at, only the browser's Back led to it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    visit = Visit()
    names = [f"p{subject}/{cell}.png" for subject in (1, 2) for cell in (1, 2)]
    list(page._on_upload([zipped(tmp_path, names)], visit))
    tile = 'data-act="recent:0" title="4 cells of 2 people" aria-pressed='
    assert f'{tile}"true"' in page._tiles(visit) and "<span>4 cells</span>" in page._tiles(visit)
    batch = visit.scene.content
    list(click(page, visit, "example:1"))
    assert 'aria-pressed="true"' not in page._tiles(visit).partition('"recent:1"')[2]
    shown(page, click(page, visit, "recent:1"))
    assert visit.scene.content is batch
    list(click(page, visit, "cell:2"))
    assert 'aria-pressed="true"' in page._tiles(visit).partition('"recent:0"')[2], "as for a cell of a smear"
    list(click(page, visit, "people"))
    assert [scene.content for scene in visit.recent if isinstance(scene.content, BatchResult)] == [batch]
    list(page._on_upload([zipped(tmp_path, ["4.png", "5.png"])], visit))
    kept = [scene.content for scene in visit.recent if isinstance(scene.content, BatchResult)]
    assert kept == [visit.scene.content] != [batch], "the newest only"
    list(page._on_upload([zipped(tmp_path, ["only.png"])], visit))
    list(click(page, visit, "example:1"))
    assert "← Cells" in shown(page, click(page, visit, "recent:1")), "its one cell, as when it was given"


def test_back_finds_what_was_given_by_its_number_whichever_model_read_it_and_whatever_came_after(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser's Back led past one's own pictures and batches."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    visit = Visit()
    first = shown(page, page._on_upload([zipped(tmp_path, ["1.png", "2.png"])], visit))
    batch = visit.scene.content
    cell = shown(page, click(page, visit, "cell:0"))
    other = shown(page, click(page, visit, "row:1"))
    assert all('data-given="1"' in text for text in (first, cell, other))
    assert 'data-given="2"' in shown(page, click(page, visit, "example:3"))
    assert 'data-given="1"' in shown(page, click(page, visit, "given:1")) and visit.scene.content is batch
    assert 'data-given="3"' in shown(page, click(page, visit, "example:3")), "given again"
    assert "This picture is not kept any more." in shown(page, click(page, visit, "given:9"))


def test_a_visit_has_a_bound_whatever_is_given(page: Page) -> None:
    """A large batch, large smears and cells: together they never take more than one large batch and one large cell."""
    visit = Visit()

    def batch(rows: int, **options: Any) -> BatchResult:
        row = SimpleNamespace(picture=bytes(2**20), thumbnail=b"")
        return BatchResult((row,) * rows, ("ALL", "HEM"), "one", "", **options)  # type: ignore[arg-type]

    def kept() -> int:
        return sum(scene.memory for scene in visit.recent)

    def show(content: BatchResult) -> None:
        visit.show(Scene(content))
        assert kept() <= RECENT_BYTES

    visit.remember(Scene(Answer(Picture(Image.new("RGB", (4000, 4000)), "smear.png"))))
    show(batch(30, unread={"": 3}, total=33))
    assert len(visit.recent) == 1 and isinstance(visit.recent[0].content, Answer)
    show(batch(64))
    assert [type(scene.content) for scene in visit.recent] == [BatchResult], "a smear or a batch, if both are large"
    visit.remember(Scene(Answer(Picture(Image.new("RGB", (2000, 3000)), "cell.png"))))
    assert len(visit.recent) == 2 and kept() <= RECENT_BYTES
    show(batch(1, unread={"": 3}, total=4))
    assert [type(scene.content) for scene in visit.recent] == [Answer], "another batch is read"


def test_a_cell_of_a_smear_is_answered_by_every_model_as_it_reads_the_smear(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the model that had read the smear answered, and one that was added did so by the share of that one's."""
    visit = Visit()
    list(click(page, visit, "smear"))
    steps = click(page, visit, "cell:2")
    first = next(steps)
    assert "reading …" in first[page.answer]
    text = shown(page, steps)
    assert 'data-act="row:1" data-of-model="other"' in text and "reading …" not in text
    assert 'data-act="read:' not in text, "it has an answer"
    list(click(page, visit, "row:1"))
    smear = visit.scene.smear
    assert visit.scene.model == "other" and smear is not None and smear.reading.model == "other"
    text = shown(page, click(page, visit, "add:one"))
    smear = visit.scene.smear
    assert visit.scene.model == "one" and smear is not None and smear.reading.model == "one"
    assert visit.scene.cell == 2 and ">Cell 3</span>" in text and 'data-of-model="other"' in text
    monkeypatch.setattr("leukoscope.web.page.read_smear", None)  # each model has read it
    text = shown(page, click(page, visit, "cell:3"))
    assert ">Cell 4</span>" in text and 'data-of-model="other"' in text
    shown(page, click(page, visit, "back"))
    assert isinstance(visit.scene.content, Smear) and visit.scene.model == "one"
    shown(page, click(page, visit, "read:other"))
    assert visit.scene.model == "other"


def test_of_a_smear_of_many_cells_only_the_one_that_read_it_answers_unasked(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leukoscope.web.smear_page.MOST_BOXES_WITH_CLASS", 4)
    visit = Visit()
    list(click(page, visit, "smear"))
    text = shown(page, click(page, visit, "cell:2"))
    assert 'data-act="read:other"' in text and 'data-act="read:one"' not in text
    text = shown(page, click(page, visit, "read:other"))
    assert visit.scene.model == "other" and visit.scene.cell == 2 and 'data-act="read:one"' in text


def test_a_model_that_cannot_read_a_smear_says_why_beside_its_cell(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit()
    list(click(page, visit, "smear"))

    def fails(*_: object) -> Smear:
        raise UnusableSmear("no scale for this one")

    monkeypatch.setattr("leukoscope.web.page.read_smear", fails)
    text = shown(page, click(page, visit, "cell:2"))
    assert visit.scene.model == "one" and "no scale for this one" in text and "reading …" not in text


def test_the_failed_map_of_a_smears_cell_leads_to_a_model_whose_maps_passed(tiny_release: Path, tmp_path: Path) -> None:
    releases = {}
    for name, passed in (("failed", False), ("passed", True)):
        releases[name] = tmp_path / name
        shutil.copytree(tiny_release, releases[name])
        metrics = json.loads((tiny_release / "metrics.json").read_text())
        (releases[name] / "metrics.json").write_text(json.dumps(metrics | {"heat_maps": {"passed": passed}}))
    page, visit = page_of(ModelCache(releases)), Visit()
    for act in ("smear", "cell:2"):
        list(click(page, visit, act))
    text = shown(page, click(page, visit, "view:map"))
    assert "maps failed our checks" in text
    assert 'data-act="row:1"' in text and ">passed's<" in text
    text = shown(page, click(page, visit, "row:1"))
    assert visit.scene.model == "passed" and visit.scene.cell == 2
    assert "Map for" in text and ">passed's<" not in text
    list(click(page, visit, "row:0"))
    assert visit.scene.view == "map", "the view stays"


def test_the_answer_to_a_whole_smear_offers_the_models_of_its_cells_and_its_cells_none_of_whole_pictures() -> None:
    page, visit = page_of(ModelCache({"cnmc": CNMC, "ball4": BALL4})), Visit()
    assert 'data-act="read:ball4"' in shown(page, click(page, visit, "smear"))
    assert 'data-act="read:' not in shown(page, click(page, visit, "cell:2"))
    shown(page, click(page, visit, "back"))
    text = shown(page, click(page, visit, "read:ball4"))
    assert 'data-act="read:cnmc"' in text and visit.scene.model == "ball4"
    assert ">← Cells</button>" in text and "← Smear" not in text, "the smear is what is shown"
    assert visit.scene.row.refused and "or give a smear stained as those of B-ALL, four classes" in text
    assert 'data-act="read:ball4"' in shown(page, click(page, visit, "read:cnmc")) and visit.scene.cell is None


def test_real_cells_stay_in_the_strip_whichever_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strip asked the open model for its data set: of ball4 no copy is on the Hub, and the page broke."""
    page, visit = page_of(ModelCache({"ball4": BALL4, "cnmc": CNMC})), Visit()
    cell = StreamedCell(example(1).image, "ALL")
    monkeypatch.setattr("leukoscope.web.page.real_cells", lambda _: [cell])
    list(click(page, visit, "smear"))
    shown(page, click(page, visit, "read:ball4"))
    (offered,) = click(page, visit, "real")
    assert "Real cells of C-NMC 2019" in unescape(offered[page.tiles]) and 'data-act="real:0"' in offered[page.tiles]
    assert visit.scene.model == "ball4"


def test_without_a_whole_cell_no_model_is_offered_that_would_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    page, visit = page_of(ModelCache({"cnmc": CNMC, "other": CNMC, "ball4": BALL4})), Visit()
    assert 'data-act="read:other"' in shown(page, click(page, visit, "smear"))
    monkeypatch.setattr(Smear, "whole", property(lambda _: []))
    answer = page._answer(visit)
    assert "No whole white cell found" in answer
    assert 'data-act="read:ball4"' in answer and 'data-act="read:other"' not in answer


def test_a_model_that_the_visitor_chose_is_said_to_be_with_the_next_picture(page: Page) -> None:
    visit = Visit()
    assert "· chosen" not in shown(page, click(page, visit, "example:1"))
    assert "<b>other</b>\u00a0· chosen" in shown(page, click(page, visit, "row:1"))
    assert "<b>other</b>\u00a0· chosen" in shown(page, click(page, visit, "example:2"))
    assert "<b>other</b>\u00a0· chosen" in shown(page, click(page, visit, "smear"))
    assert "<b>other</b>\u00a0· chosen" in shown(page, click(page, visit, "cell:1")), "of one of its cells, too"
    assert "<b>other</b>\u00a0· chosen" in shown(page, click(page, visit, "people")), "and of a batch"
    list(click(page, visit, "example:2"))
    list(click(page, visit, "row:1"))
    assert visit.scene.model == "one" and "· chosen" not in shown(page, click(page, visit, "example:3"))
    assert "· chosen" not in shown(page, click(page, visit, "smear"))


def test_save_picture_saves_the_map_only_where_it_is_shown(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit()
    list(click(page, visit, "example:1"))
    asked = []

    def note_and_save(row: Row, label: str, *, with_map: bool) -> File:
        asked.append(with_map)
        return save_row(row, label, with_map=with_map)

    monkeypatch.setattr("leukoscope.web.page.save_row", note_and_save)
    for view in ("cell", "map"):
        list(click(page, visit, f"view:{view}"))
        list(click(page, visit, "save:png"))
    assert asked == [False, True]


def test_only_what_is_synthetic_has_an_address(page: Page) -> None:
    visit = Visit()
    for act, example_name, cell in (
        ("smear", "smear", ""), ("cell:1", "smear", "1"), ("people", "people", ""), ("cell:3", "people", "3"),
    ):  # fmt: skip
        text = shown(page, click(page, visit, act))
        assert f'data-example="{example_name}"' in text and "Copy link" in text
        assert f'data-cell="{cell}"' in text
    own = replace(example_smear(), image=example_smear().image.copy(), caption="mine.png")
    text = shown(page, page._draw(visit, lambda: page.read_picture(visit, own), new_input="mine.png"))
    text += shown(page, click(page, visit, "cell:1"))
    assert 'data-example=""' in text and 'data-example="smear"' not in text and "Copy link" not in text


def test_no_model_at_all_is_told() -> None:
    page = page_of(ModelCache({}))
    for act in ("example:1", "people"):
        assert "This demo comes with no model." in shown(page, click(page, Visit(), act))


def opened(page: Page, query: dict[str, str], lost: str = "") -> tuple[str, Visit]:
    """What a page shows that is opened by an address."""
    on_load: list[Callable[..., Any]] = []
    demo = SimpleNamespace(load=lambda fn, *_, **__: on_load.append(fn))
    page.open_on_load(demo)  # type: ignore[arg-type]
    visit = Visit()
    return shown(page, on_load[0](lost, visit, SimpleNamespace(query_params=query))), visit


def test_an_address_opens_model_and_example_and_a_lost_page_keeps_what_it_shows(page: Page) -> None:
    text, visit = opened(page, {"model": "other", "example": "people"})
    assert visit.scene.model == "other" and "112 cells of 2 people" in text
    text, visit = opened(page, {"model": "other", "example": "4"})
    assert visit.scene.model == "other" and "Synthetic HEM" in text
    text, visit = opened(page, {"model": "/etc", "example": "no number"})
    assert visit.scene.model == "one" and 'data-example="1"' in text and visit.added == []
    assert opened(page, {}, lost="1") == ("", Visit())


def test_an_address_opens_a_cell_of_the_synthetic_smear(page: Page) -> None:
    text, visit = opened(page, {"model": "other", "example": "smear", "cell": "2"})
    assert visit.scene.model == "other" and visit.scene.cell == 1 and ">Cell 2</span>" in text
    assert shown(page, click(page, Visit(), "smear:1")).count(">Cell 2</span>") == 1, "as Back and Forward ask"
    for cell in ("0", "no number"):
        _, visit = opened(page, {"model": "no model of ours", "example": "smear", "cell": cell})
        assert isinstance(visit.scene.content, Smear) and visit.scene.model == "one"
    text, visit = opened(page, {"example": "smear", "cell": "9"})
    assert "cell 9: Synthetic smear has 5 white cells; open one of them" in text
    assert isinstance(visit.scene.content, Smear)


@pytest.mark.parametrize("example", [{"example": "3"}, {"example": "smear", "cell": "2"}])
def test_an_address_opens_the_view_that_it_names(page: Page, example: dict[str, str]) -> None:
    text, visit = opened(page, {**example, "view": "covered"})
    assert visit.scene.view == "covered" and visit.scene.forms
    assert re.search(r'data-act="view:covered"[^>]* aria-pressed="true"', text)
    assert opened(page, {**example, "view": "/etc"})[1].scene.view == ""


def test_an_address_of_a_whole_smear_has_no_view(page: Page) -> None:
    _, visit = opened(page, {"example": "smear", "view": "map"})
    assert isinstance(visit.scene.content, Smear)


# Waiting


@contextmanager
def _working_for_another(queue: WorkQueue[Any]) -> Iterator[None]:
    """While a thread of this queue works for another visitor."""
    begun = Event()
    go_on = Event()

    def read() -> None:
        begun.set()
        assert go_on.wait(60)

    reading = queue.threads.submit(queue.threads.run_for, Question(-2), read)
    assert begun.wait(60)
    try:
        yield
    finally:
        go_on.set()
        reading.result(60)


def test_a_smear_behind_that_of_another_visitor_says_so_and_goes_on_by_itself(page: Page) -> None:
    visit = Visit()
    with _working_for_another(page.models.read_smear):
        steps = click(page, visit, "smear")
        begin = time.monotonic()
        step = next(found for found in steps if WAITING_FOR_OTHERS in str(found.get(page.answer, "")))
        assert time.monotonic() - begin < 3, "said at once, where reading the picture takes no time"
        assert 'data-act="stop"' in str(step[page.answer])
    assert "whole white cell" in shown(page, steps), "it goes on by itself"


def test_a_smear_that_is_stopped_leaves_its_line_and_its_picture_stays(page: Page) -> None:
    visit = Visit()
    with _working_for_another(page.models.read_smear):
        steps = click(page, visit, "smear")
        next(found for found in steps if WAITING_FOR_OTHERS in str(found.get(page.answer, "")))
        assert STOPPED in shown(page, click(page, visit, "stop"))
        assert list(steps) == []
    assert isinstance(visit.scene.content, Answer) and visit.scene.content.rows == ()
    assert page.models.read_smear.threads.running() == []


def test_a_smear_that_is_being_read_can_be_stopped(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()

    def slowly(*_: Any, stopped: Callable[[], bool], **__: Any) -> Any:
        while not stopped():
            time.sleep(0.01)
        ended.set()
        raise UnusableSmear("stopped")

    monkeypatch.setattr("leukoscope.web.model_cache.read_smear", slowly)
    visit = Visit()
    steps = click(page, visit, "smear")
    step = next(found for found in steps if 'data-act="stop"' in str(found.get(page.answer, "")))
    assert "Finding and reading its white cells" in str(step[page.answer])
    assert STOPPED in shown(page, click(page, visit, "stop"))
    assert list(steps) == [] and ended.wait(10), "nothing is computed any more"


def test_a_batch_that_is_read_has_a_place_for_each_picture_and_shows_them_as_they_come(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path, visit = zipped(tmp_path, [f"{cell:02d}.png" for cell in range(20)]), Visit()
    places = []
    for step in page._on_upload([path], visit):
        picture = str(step.get(page.picture, ""))
        if "lk-shows-batch" in picture:
            places.append((picture.count("<img "), picture.count('class="lk-unread"')))
    assert places == [(16, 4), (20, 0)]


def test_a_batch_is_read_by_another_model_that_knows_its_pictures(tiny_release: Path) -> None:
    page, visit = page_of(ModelCache({"one": tiny_release, "other": tiny_release, "ball4": BALL4})), Visit()
    batch = Batch([BatchFile(f"{n}.png", partial(cell_png, cell=n)) for n in range(2)])
    text = shown(page, page._draw(visit, lambda: page.read_batch(visit, lambda: batch)))
    assert 'data-act="read:other"' in text and "read:ball4" not in text, "that one reads pictures of a smear"
    text = shown(page, click(page, visit, "read:other"))
    assert isinstance(visit.scene.content, BatchResult) and visit.scene.content.model == "other"
    assert 'data-act="read:one"' in text
