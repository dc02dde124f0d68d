"""The handlers of the page, asked as Gradio asks them, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from asked import packed, png, sent
from leukoscope.demo.app import build
from leukoscope.demo.models import Models
from leukoscope.demo.server import warm_up
from leukoscope.demo.uploads import Chosen, Visit

Handler = Callable[..., Any]


@pytest.fixture(scope="module")
def page(tiny_release: Path) -> dict[str, list[Handler]]:
    """Name → the handlers of that name, tab by tab."""
    named: dict[str, list[Handler]] = {}
    for event in build(Models({"tiny": tiny_release, "other": tiny_release})).fns.values():
        handlers = named.setdefault(getattr(event.fn, "__name__", ""), [])
        if event.fn is not None and event.fn not in handlers:
            handlers.append(event.fn)
    return named


def by_name(answer: Any) -> dict[str, Any]:
    """What a handler gives, by the id of the component that gets it."""
    named = {getattr(block, "elem_id", None) or type(block).__name__: value for block, value in answer.items()}
    return {name: value for name, value in named.items() if not isinstance(value, Visit)}


def name_kept(visit: Visit, key: str) -> str:
    """The name of a picture that the visit kept."""
    picture = visit.picture(key)
    assert picture is not None
    return picture.name


def given(*uploads: Any) -> dict[str, Any]:
    return {"example": "", "files": [{"upload": upload.path, "name": upload.name} for upload in uploads]}


def answer_of(page: dict[str, list[Handler]], model: str, visit: Visit) -> list[Any]:
    """The steps of an answer, after one that changes nothing: without any, Gradio empties card and stage."""
    nothing, *steps = page["go_on"][0](model, visit)
    assert by_name(nothing) == {}
    return steps


def found_by(page: dict[str, list[Handler]], model: str, visit: Visit) -> dict[str, Any]:
    """What is shown of a smear."""
    found: dict[str, Any] = {}
    for step in page["go_on"][1](model, visit):
        found |= by_name(step)
    return found


def test_a_cell_is_shown_at_once_and_then_answered_step_by_step(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    started = by_name(page["begin"][0](given(sent(png(), "my cell.png")), "tiny", visit))
    assert started["cell-stage"]["name"] == "my cell.png" and started["cell-card"]["waiting"]
    cards = [by_name(step)["cell-card"] for step in answer_of(page, "tiny", visit)]
    assert cards[0]["checking"] and not cards[-1]["checking"] and cards[-1]["others"][0]["name"] == "other"
    assert cards[-1]["saved"].startswith("data:application/json")


def test_an_example_that_was_answered_is_shown_with_its_answer(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    page["begin"][0]({"example": "6", "files": []}, "tiny", visit)
    answered = by_name(answer_of(page, "tiny", visit)[-1])
    again = by_name(page["begin"][0]({"example": "6", "files": []}, "tiny", visit))
    assert again == answered and answer_of(page, "tiny", visit) == []
    other = by_name(page["begin"][0]({"example": "6", "files": []}, "other", visit))
    assert other["cell-card"]["waiting"]


def test_a_newer_question_ends_an_answer(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    page["begin"][0]({"example": "1", "files": []}, "tiny", visit)
    steps = page["go_on"][0]("tiny", visit)
    assert (by_name(next(steps)), "cell-card" in by_name(next(steps))) == ({}, True)
    page["begin"][0]({"example": "2", "files": []}, "tiny", visit)
    assert list(steps) == []


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"example": "own", "files": []}, "Your picture was not kept when the page was loaded again."),
        ({"example": "own-cell-3-1", "files": []}, "Your picture was not kept"),
        (5, "picture: expected {"),
        ({"files": [{"upload": "/etc/passwd", "name": "a.png"}]}, "This is no upload of yours"),
    ],
)
def test_what_is_lost_or_no_picture_is_said_and_no_other_cell_is_shown(
    page: dict[str, list[Handler]], chosen: Any, problem: str
) -> None:
    visit = Visit()
    started = by_name(page["begin"][0](chosen, "tiny", visit))
    assert started["cell-card"]["problem"].startswith(problem) and started["cell-stage"] == {}
    assert answer_of(page, "tiny", visit) == []


def test_a_model_that_is_none_is_one_sentence(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    page["begin"][0]({"example": "1", "files": []}, "tiny", visit)
    (step,) = answer_of(page, "../tiny", visit)
    assert by_name(step)["cell-card"]["problem"].startswith("'../tiny' is no model name")


def test_a_zip_given_as_a_cell_opens_the_batch(page: dict[str, list[Handler]], own_uploads: Path) -> None:
    visit = Visit()
    started = page["begin"][0](given(packed({"a.png": png(), "b.png": png(cell=1)})), "tiny", visit)
    strip = by_name(started)["batch-strip"]
    assert strip["example"].startswith("handed-") and answer_of(page, "tiny", visit) == []
    batch = by_name(page["begin"][2](strip, "tiny", visit))
    assert batch["people"]["title"] == "Reading …"
    *_, table = page["go_on"][2]("tiny", visit, False)
    assert list(by_name(table)) == ["cells"] and len(visit.result["batch"].cells) == 2
    assert list(own_uploads.iterdir()) == []
    opened = by_name(page["press"][1](visit, gr.EventData(None, {"number": 1})))
    assert name_kept(visit, opened["cell-strip"]["example"]) == "b.png"
    assert by_name(page["press"][1](visit, gr.EventData(None, {"number": 9.5}))) == {}
    cells = visit.result["batch"].cells
    cells[1] = cells[1]._replace(content=b"")
    with pytest.raises(gr.Error, match="b.png: of a batch, 64 MB of pictures are kept; send this one alone"):
        page["press"][1](visit, gr.EventData(None, {"number": 1}))


def test_a_smear_is_read_its_cells_open_once_and_its_scale_is_set(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    assert found_by(page, "tiny", visit) == {}
    nothing = {"example": "", "files": []}
    assert page["first_smear"][0](nothing, visit)["example"] == "smear"
    assert page["first_smear"][0](given(sent(png())), visit) == gr.skip()
    visit.handed["smear"] = Chosen("")
    assert page["first_smear"][0](nothing, visit) == gr.skip()
    visit.wanted["smear"] = 1
    page["begin"][1]({"example": "smear", "files": []}, "tiny", visit)
    found = found_by(page, "tiny", visit)
    assert len(found["smear-stage"]["boxes"]) == 5
    assert name_kept(visit, found["cell-strip"]["example"]) == "Cell 2 of Synthetic smear"
    page["set_scale"][0](visit, gr.EventData(None, {"um": 0.2}))
    again = found_by(page, "tiny", visit)
    assert again["smear-stage"]["scale"] == "0.2 µm per pixel, as given" and "cell-strip" not in again
    several = by_name(page["begin"][1](given(sent(png()), sent(png(cell=1))), "tiny", visit))
    assert several["smear-card"]["problem"] == "Several pictures belong into the tab Batch; give one smear here."


@pytest.mark.parametrize(
    ("address", "strip", "tab"),
    [
        ({}, ("cell-strip", "1"), "cell"),
        ({"example": "4", "model": "other"}, ("cell-strip", "4"), "cell"),
        ({"example": "people", "cell": "3"}, ("batch-strip", "people"), "batch"),
        ({"example": "smear", "tab": "evidence"}, ("smear-strip", "smear"), "evidence"),
        ({"own": "1", "tab": "smear"}, ("smear-strip", "own"), "smear"),
        ({"example": "99", "model": "../x", "cell": "x"}, ("cell-strip", "1"), "cell"),
    ],
)
def test_an_address_opens_what_it_names(
    page: dict[str, list[Handler]], address: dict[str, str], strip: tuple[str, str], tab: str
) -> None:
    visit = Visit()
    opened = by_name(page["open_named"][0](visit, SimpleNamespace(query_params=address)))
    name, example = strip
    assert opened[name]["example"] == example and opened["pages"].selected == tab
    assert opened["model"] == ("other" if address.get("model") == "other" else "tiny")
    assert visit.wanted == ({"batch": 2} if "people" in address.values() else {})


def test_lines_tiles_and_buttons_choose(page: dict[str, list[Handler]]) -> None:
    assert page["chosen_model"][0]("tiny", gr.EventData(None, {"model": "other"})) == "other"
    assert page["chosen_model"][0]("tiny", gr.EventData(None, {"model": 5})) == "tiny"
    assert page["go_back"][0](gr.EventData(None, {"back": "smear"})).selected == "smear"
    facts, people, card = page["show"][0]("tiny")
    assert "### tiny" in facts and people["people"] == [] and card and len(facts.split("**tiny**")) == 3
    assert "'../x' is no model name" in page["show"][0]("../x")[0]


def test_a_batch_is_stopped_and_answers_of_one_model_stay_its_own(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    lost = by_name(page["begin"][2]({"example": "own", "files": []}, "tiny", visit))
    assert lost["people"]["problem"].startswith("Your picture was not kept")
    assert [by_name(step) for step in page["go_on"][2]("tiny", visit, False)] == [{}]
    assert page["other_model"][0]("other", visit) == gr.skip()
    page["begin"][2]({"example": "people", "files": []}, "tiny", visit)
    steps = page["go_on"][2]("tiny", visit, False)
    next(steps)
    assert by_name(next(steps))["people"]["reading"]
    page["stop"][0](visit)
    *_, plot, table = [by_name(step) for step in steps]
    assert plot["people"]["title"].startswith("Stopped: ") and list(table) == ["cells"]
    assert page["other_model"][0]("other", visit)["caveats"][0].startswith("Answers of tiny. Give the pictures again")
    row = SimpleNamespace(row_value=["synthetic-1/cell-01.png"])
    assert name_kept(visit, by_name(page["press_row"][0](visit, row))["cell-strip"]["example"]) == row.row_value[0]
    assert by_name(page["press_row"][0](visit, SimpleNamespace(row_value=["none"]))) == {}
    page["begin"][2]({"example": "people", "files": []}, "tiny", visit)
    *_, refused = [by_name(step) for step in page["go_on"][2]("../x", visit, False)]
    assert refused["people"]["problem"].startswith("'../x' is no model name")


def test_a_smear_that_is_lost_or_asked_of_no_model_is_one_sentence(page: dict[str, list[Handler]]) -> None:
    visit = Visit()
    lost = by_name(page["begin"][1]({"example": "own", "files": []}, "tiny", visit))
    assert lost["smear-card"]["problem"].startswith("Your picture was not kept") and lost["smear-stage"] == {}
    page["begin"][1]({"example": "smear", "files": []}, "tiny", visit)
    refused = found_by(page, "../x", visit)
    assert refused["smear-card"]["problem"].startswith("'../x' is no model name")
    assert "smear-stage" not in refused, "it is shown since the beginning"


def test_every_model_is_asked_before_a_visitor_comes(tiny_release: Path, tmp_path: Path, capsys: Any) -> None:
    models = Models({"tiny": tiny_release, "broken": tmp_path})
    warm_up(models)
    assert list(models.drawn) == [("tiny", "1")]
    assert "warning: broken: has no config.json" in capsys.readouterr().out
