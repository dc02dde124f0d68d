"""The card of a cell: words that fit the dots, one model that speaks, and little to read."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from asked import answer
from leukoscope.demo.answers import Card, as_csv, caveats, cell_card, other_line, other_lines, steps, verdict
from leukoscope.demo.models import Models
from leukoscope.demo.pictures import CELL_NAMES, examples
from leukoscope.demo.stage import answered_stage

SURE = [0.95] * 8


@pytest.mark.parametrize(
    ("share", "views", "changes", "words"),
    [
        (0.95, [], [], "ALL 95\u00a0%, checking …"),
        (0.95, SURE, [], "ALL 95\u00a0%, checking …"),
        (0.95, SURE, SURE, "Looks like a leukaemic blast"),
        (0.95, [*SURE[:7], 0.1], SURE, "Looks like a leukaemic blast"),
        (0.99, [*SURE[:6], 0.1, 0.1], SURE, "Leans towards a leukaemic blast, not stable"),
        (0.99, SURE, [*SURE[:7], 0.5], "Leans towards a leukaemic blast, not stable"),
        (0.75, SURE, SURE, "Looks like a leukaemic blast"),
        (0.05, [0.05] * 8, [0.05] * 8, "Looks like a normal cell"),
        (0.6, [], [], "Not sure"),
    ],
)
def test_the_verdict_is_firm_only_once_it_is_known_to_be_stable(
    share: float, views: list[float], changes: list[float], words: str
) -> None:
    said = answer(share, views, changes)
    assert verdict(said) == words
    card = cell_card(said)
    assert card["checking"] == words.endswith("checking …")
    assert card["unstable"] == words.endswith("not stable")


def test_the_rows_of_dots_say_how_many_forms_agree() -> None:
    rows = cell_card(answer(0.95, [*SURE[:6], 0.1, 0.6], []))["checks"]
    assert rows[0]["words"] == "6 of 8 agree, turned and mirrored"
    assert rows[0]["colours"] == ["class-0"] * 6 + ["class-1", "no-class"]
    assert rows[1] == {"colours": ["unknown"] * 8, "words": "slightly changed …"}


def test_the_chosen_model_heads_whatever_it_says_and_the_others_say_a_line() -> None:
    unsure = answer(0.6, [0.6] * 8, [0.6] * 8)
    others = [answer(0.97, model="leukoscope-efficientnet-b3-cnmc"), answer(0.6)]
    card = cell_card(unsure, [*map(other_line, others)])
    assert (card["model"], card["verdict"]) == ("densenet169-cnmc", "Not sure")
    assert [line.get("words") or line["part"]["percent"] for line in card["others"]] == ["97\u00a0%", "not sure"]
    assert "knows" not in card


def test_where_it_does_not_know_a_picture_one_sentence_names_the_model_that_does() -> None:
    foreign = answer(0.9, ood_score=3.0, ood_group="texture")
    card = cell_card(foreign, [other_line(answer(0.97, model="leukoscope-efficientnet-b3-cnmc"))])
    assert card["verdict"] == "No class: unlike the cells it knows"
    assert card["caveats"] == ["Its texture is unlike that of the training cells."]
    assert card["knows"]["name"] == "leukoscope-efficientnet-b3-cnmc" and "parts" not in card
    assert "knows" not in cell_card(foreign, [other_line(answer(0.6))])
    assert any("3 times as far" in line or "3.0 times as far" in line for line in card["more"])


def visible(card: Card) -> str:
    """What is read of a card before "More"."""
    texts = [card["model"], card["verdict"], *card["caveats"], "How far to trust it", card["people"]]
    texts += [f"{part['percent']} {part['words']}" for part in card["parts"]]
    texts += [check["words"] for check in card["checks"]]
    texts += [f"{meter['label']} {meter['share']}" for meter in card["meters"]]
    for line in card["others"]:
        part = line.get("part") or {}
        texts.append(f"{line['model']} {part.get('label', '')} {part.get('percent') or line.get('words')}")
    return " ".join([*texts, "More"])


def test_the_answer_of_a_cell_has_at_most_60_words_and_12_figures() -> None:
    others = [answer(0.97, model="leukoscope-efficientnet-b3-cnmc"), answer(0.6, model="leukoscope-densenet201-ball4")]
    text = visible(cell_card(answer(0.95, SURE, SURE), [*map(other_line, others)])).replace("\u00a0%", "")
    assert len(text.split()) <= 60, text
    assert len(re.findall(r"(?<![\w-])[<>]?\d+(?![\w-])", text)) <= 12, text


def test_a_person_of_the_training_is_a_caveat() -> None:
    said = answer()
    assert caveats(replace(said, picture=replace(said.picture, name="UID_1_1_1_all.bmp"))) == [
        "Trained on a person called 1: if this is the same, the answer is too good."
    ]


def test_forms_that_differ_come_first() -> None:
    stage = answered_stage(answer(0.95, [*SURE[:7], 0.1], [*SURE[:7], 0.5]))
    assert [tile["differs"] for tile in stage["tiles"]] == [True] * 2 + [False] * 14
    assert stage["tiles"][0]["name"] == "Mirrored, 270°"
    assert stage["map_state"] == "unreliable", "it stands there before the map is looked at"


def test_where_its_maps_failed_that_of_another_model_is_one_press_away() -> None:
    passed = other_line(answer(0.9, model="leukoscope-efficientnet-b3-cnmc"))
    assert answered_stage(answer(), [{"name": "b", "words": "cannot be loaded"}, passed])["map_of"] == passed["name"]
    assert "map_of" not in answered_stage(answer(), [other_line(answer())])


def test_a_model_answers_step_by_step(tiny_release: Path) -> None:
    models = Models({"tiny": tiny_release, "other": tiny_release})
    picture = examples()[CELL_NAMES[0]]
    answers = list(steps(models, picture, "tiny"))
    known = [(len(answer.known.views), len(answer.known.changed)) for answer in answers]
    assert known == [(0, 0), (8, 0), (8, 8)]
    (other,) = other_lines(models, picture, "tiny")
    assert other["name"] == "other"
    saved = cell_card(answers[-1], [other])["saved"]
    assert json.loads(base64.b64decode(saved.partition(",")[2]))["model"] == "tiny"


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    csv = base64.b64decode(as_csv([{"file": "=1+1", "p": 0.5}]).partition(",")[2]).decode()
    assert csv == "file,p\n'=1+1,0.5\n"
