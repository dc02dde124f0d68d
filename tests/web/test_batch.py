"""Many cells without a browser: predicted, counted by subject, measured on labels, and what the stage shows of it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import open_bytes
from leukoscope.data.subjects import find_subjects
from leukoscope.inference.prediction import Checks, Prediction, Thresholds
from leukoscope.reports.formatting import encoded
from leukoscope.web.answer import Picture, ask
from leukoscope.web.app import Endpoints
from leukoscope.web.batch import BatchResult, BatchRow, by_number, columns, label_metrics, predict_batch, predict_files
from leukoscope.web.batch_files import Batch, BatchFile, open_batch
from leukoscope.web.batch_page import (
    WIDTH,
    Verdict,
    _span,
    batch_answer,
    batch_picture,
    batch_tile,
    cell_name,
    given_picture,
    person_answer,
    person_sentences,
    progress,
    verdict,
)
from leukoscope.web.drawing import WAITING_FOR_OTHERS
from leukoscope.web.export import csv_file
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.smear import example_smear
from release_fixtures import SUBJECT_RULE
from zips import cell_png, pack, png, upload_folder

EMBEDDED = Path(__file__).parents[2] / "model_card"


def row(name: str, truth: str, p_all: float, subject: str = "", ood_score: float = 0.1) -> BatchRow:
    shares = {"ALL": p_all, "HEM": 1 - p_all}
    checks = Checks(ood_score=ood_score)
    decision = Thresholds().decide(shares, checks)
    prediction = Prediction(decision, shares, name, "tiny", "", 0.0, None, (0, 0, 8, 8), checks)
    return BatchRow(name, truth, subject, prediction, png(8))


DATA = {"name": "cnmc2019", "title": "C-NMC", "citation": "Gupta (2019)", "licence": "CC BY 3.0"}
RESULT = BatchResult(
    rows=(row("a", "ALL", 0.9, "1"), row("b", "ALL", 0.2, "1"), row("=c", "HEM", 0.99, "2"), row("d", "HEM", 0.1, "2")),
    classes=("ALL", "HEM"), model="tiny", revision="", problems=("x: is bad",),
    metrics={"data": DATA, "training": {"subjects": ["2"]}},
)  # fmt: skip


def test_what_is_wrong_comes_surest_first_and_figures_are_right() -> None:
    assert [(number, wrong.name) for number, wrong in RESULT.wrong] == [(2, "=c"), (1, "b")]
    measured, _ = label_metrics(RESULT)
    assert dict((name, value) for name, value, _ in measured)["accuracy"] == "0.500"
    assert RESULT.warnings[0].startswith("The model was trained on people called 2: if")
    assert label_metrics(replace(RESULT, rows=tuple(replace(one, truth="") for one in RESULT.rows))) == ([], [])


def test_a_subject_that_trained_the_release_or_an_earlier_one_is_known_under_its_other_ids() -> None:
    earlier = {"name": "cnmc2019", "fingerprint": "a", "unit": "subject", "subjects": ["51"]}
    own = {"data": {"name": "imagefolder", "title": "own"}}
    rows = tuple(replace(row, subject={"1": "78", "2": "H24"}[row.subject]) for row in RESULT.rows)

    def said(metrics: dict[str, Any]) -> str:
        return " ".join(replace(RESULT, rows=rows, metrics=metrics).warnings)

    told = "The model was trained on people called {}: if these are the same, the results are too good."
    assert said({"data": DATA, "training": {"subjects": ["51", "H14"]}}) == told.format("78, H24")
    assert said({**own, "training": {"subjects": ["2"], "started_from": {"seen": [earlier]}}}) == told.format("78")
    assert said({"training": {"subjects": ["2"]}}) == "", "a stranger's, without data"


def test_cells_without_a_subject_are_told_about_in_the_page_s_own_terms() -> None:
    nobodys = replace(RESULT, rows=tuple(replace(one, subject="") for one in RESULT.rows))
    assert label_metrics(nobodys)[1][-1].endswith("(not every cell has a subject: give a folder for each).")
    assert nobodys.warnings == [], "this release has no rule for subjects"
    said = "The person of {} of 4 cells is not known: give a table that names people, or each person's cells a folder."
    judged = replace(nobodys, metrics={"subject_rule": SUBJECT_RULE, "data": DATA})
    assert judged.warnings == [said.format(4)]
    page = batch_answer(judged)
    assert "not known" not in page and "it answers about people, too" in page, "a hint, where nobody is named"
    some = replace(judged, rows=(*RESULT.rows[:3], nobodys.rows[3]))
    assert unescape(batch_answer(some)).count(said.format(1)) == 1 and "person unknown" in batch_picture(some)
    assert replace(RESULT, metrics={"subject_rule": SUBJECT_RULE, "data": DATA}).warnings == []


def test_the_page_says_it_all_and_escapes_names() -> None:
    hostile = replace(RESULT, rows=(*RESULT.rows, row("<script>", "ALL", 0.3)), problems=("<img>: is bad",))
    page = batch_answer(hostile) + batch_picture(hostile)
    assert "<script>" not in page and "<img>" not in page
    assert "3 wrong, ringed in the plot; the most confident first" in page and "1 not used" in page
    assert page.count("in training?") == 1


def test_cells_without_a_class_are_counted_as_such_and_no_probability_stands_beside_them() -> None:
    foreign = replace(RESULT, rows=(*RESULT.rows, row("blank", "", 0.97, "2", ood_score=7.5)))
    page = batch_answer(foreign)
    for outcome, count in {"blasts": 2, "normal": 2, "unlike its training cells": 1}.items():
        assert f"<b>{count}</b> {outcome}</li>" in page
    cells = re.findall("<li .*?</li>", batch_picture(foreign), re.DOTALL)
    assert "<b>normal 80\u00a0%" in cells[0], "the least sure"
    (blank,) = (cell for cell in cells if "blank" in cell)
    assert (
        "<b>unlike</b>" in blank and "blank: unlike its training cells" in batch_picture(foreign) and "97" not in blank
    )


def test_a_file_to_keep_holds_every_answer_why_there_is_none_and_no_formula() -> None:
    result = replace(RESULT, rows=(*RESULT.rows[:3], row("d", "", 0.1, ood_score=7.5)))
    table = pyarrow.csv.read_csv(io.BytesIO(csv_file("cells.csv", columns(result)).content)).to_pydict()
    assert table["p_ALL"] == [0.9, 0.2, 0.99, 0.1]
    assert table["outcome"] == ["ALL", "HEM", "ALL", "out of distribution"]
    assert table["reasons"] == ["", "", "", "ood_colour"]
    assert table["label"] == ["ALL", "ALL", "HEM", ""], "the truth that was given"
    assert table["ood_score"] == [0.1, 0.1, 0.1, 7.5]
    assert table["file"] == ["a", "b", "'=c", "d"] and set(table["notice"]) == {RESEARCH_NOTICE}


@pytest.fixture
def endpoint(tiny_release: Path) -> Callable[..., Any]:
    return Endpoints(ModelCache({"tiny": tiny_release})).batch


def test_a_labelled_zip_is_answered_and_deleted(
    endpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    known = {f"{label}/s{n}/{label}.png": cell_png(label, n) for label in ("ALL", "HEM") for n in range(3)}
    wide = {"ALL/s0/wide.png": png(3000)}
    others = {"ALL/s0/broken.png": b"no picture", "truth.csv": b"file,label\nz.png,ALL\n", "notes.txt": b"mine"}
    files = {**known, **wide, **others}
    path = pack(upload_folder(tmp_path) / "cells.zip", files)
    answer = endpoint([path], "tiny")
    assert [cell["file"] for cell in answer["cells"]] == list(known)
    assert [cell["label"] for cell in answer["cells"]] == ["ALL"] * 3 + ["HEM"] * 3
    assert [cell["subject"] for cell in answer["cells"]] == ["s0", "s1", "s2"] * 2
    # A release without detector and thresholds gives every picture its most probable class.
    for cell in answer["cells"]:
        assert cell["outcome"] == ("ALL" if cell["p_ALL"] >= cell["p_HEM"] else "HEM")
        assert (cell["reasons"], cell["ood_score"]) == ("", None)
    assert "accuracy" in dict((name, value) for name, value, _ in answer["figures"])
    assert any(note.startswith("ALL/s0/broken.png: is not an image") for note in answer["notes"])
    assert any(note.startswith("cells.zip: 1 file(s) skipped") for note in answer["notes"])
    assert any(note.startswith("Subjects were guessed from the folder of each picture: s0") for note in answer["notes"])
    assert "truth.csv: names none of these pictures; it was not used." in answer["notes"]
    said = "ALL/s0/wide.png: is 3000×3000 pixels, more than the 8 megapixels allowed; crop it to its cells first"
    assert said in answer["notes"], "not decoded"
    assert answer["notice"] == RESEARCH_NOTICE
    assert not Path(path).exists()


def test_transparent_pictures_of_a_batch_are_counted_and_stay_transparent_for_another_model(
    tiny_release: Path, tmp_path: Path
) -> None:
    rgba = Image.open(io.BytesIO(cell_png())).convert("RGBA")
    rgba.paste((255, 0, 0, 0), (0, 0, 4, 4))
    rgba.save(tmp_path / "cut.png")
    (tmp_path / "whole.png").write_bytes(cell_png(cell=1))
    paths = [str(tmp_path / name) for name in ("cut.png", "whole.png")]
    *_, result = predict_batch(ModelCache({"tiny": tiny_release}), open_batch(paths), "tiny")
    assert isinstance(result, BatchResult)
    assert "1 of 2 pictures have transparent parts: these are read as black." in result.warnings
    assert columns(result)["reasons"] == ["filled_black", ""]
    again = Picture.opened(open_bytes(result.rows[0].kept(), "cut.png", ground=None), "cut.png")
    assert again.on((1, 2, 3)).image.getpixel((0, 0)) == (1, 2, 3)


def test_nothing_usable_is_one_message_and_leaves_no_file(
    endpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = pack(upload_folder(tmp_path) / "cells.zip", {"a.png": b"no picture"})
    with pytest.raises(gr.Error, match="not one picture can be used: a.png: is not an image"):
        endpoint([path], "tiny")
    assert not Path(path).exists()
    with pytest.raises(gr.Error, match="files: none was sent"):
        endpoint(None, "tiny")


def test_progress_is_told_with_the_rows_so_far(tiny_release: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "cells.zip", {f"{n}.png": cell_png(cell=n, size=64) for n in range(20)})
    first, second, result = predict_batch(ModelCache({"tiny": tiny_release}), open_batch([path]), "tiny")
    assert [(step.done, len(step.rows)) for step in (first, second, result)] == [(0, 0), (16, 16), (20, 20)]
    assert (first.unread, second.unread, result.unread) == ({"": 20}, {"": 4}, {})
    assert result.seconds == 0.0 < second.seconds
    page = progress(replace(second, seconds=4.0))
    assert "16 of 20 pictures predicted" in page and "about 1 s left" in page
    assert "0 of 20 pictures predicted" in progress(first) and "left" not in progress(first)
    assert "people unknown" in page and "no people" not in page
    assert "another visitor" in progress(first, waits=WAITING_FOR_OTHERS)


# Subjects


JUDGED = {"subject_rule": SUBJECT_RULE, "data": DATA}


def test_each_person_has_a_row_of_dots_and_refused_cells_are_hollow_in_their_own_place() -> None:
    rows = (*RESULT.rows, row("e", "", 0.5, "1", ood_score=3.0))
    result = replace(RESULT, rows=rows, metrics=JUDGED)
    first, second = result.subject_predictions
    assert (first.subject, first.cells, first.refused, second.subject) == ("1", 3, 1, "2")
    page = batch_picture(result)
    assert page.count("<svg") == 2 and 'aria-label="1 blast, 1 normal, 1 unlike its training cells"' in page
    dots = re.findall(
        r'<circle class="([\w-]+)" data-act="cell:(\d+)" cx="([\d.]+)%".*?style="--c:var\(--lk-([\w-]+)\)', page
    )
    # A dot opens the cell of its number, counted over the whole batch.
    assert sorted(int(number) for _, number, *_ in dots) == list(range(5))
    assert {(form, ink) for form, *_, ink in dots} == {
        ("lk-known", "class-0"), ("lk-known", "class-1"), ("lk-unlike", "none")
    }  # fmt: skip
    assert re.findall(r'data-act="cell:(\d+)"[^>]* data-wrong', page) == ["1", "2"], "ringed"
    at = {int(number): float(x) for _, number, x, _ in dots}
    assert at[1] < at[0] < at[4] and at[3] < at[2] < at[4], "by the probability of ALL; refused cells beyond its end"
    assert "lk-zone" not in page and "lk-in-band" not in page
    # No class between 20 and 80 %.
    unsure = {"abstention": {"default": {"threshold": 0.8}}}
    zoned = batch_picture(replace(result, metrics={**result.metrics, "decisions": unsure}))
    assert zoned.count("lk-zone") == 2 and zoned.count("lk-in-band") == 1, "named once"
    head = zoned[zoned.index("lk-cells-axis") : zoned.index("<details" if "<details" in zoned else "lk-subject")]
    words = re.sub("<[^>]*>", " ", head.partition(">")[2]).split()
    assert " ".join(words) == (
        "Each dot is one cell; further right: more probably a blast. "
        "normal blasts grey band, 20–80 %: not sure ringed: wrong by your labels "
        "Person unlike 0 % 50 % 100 % blast Answer"
    )


def test_a_dot_lies_in_the_grey_band_or_beside_it_and_never_across_its_edge() -> None:
    limit = 0.8
    metrics = {**JUDGED, "decisions": {"abstention": {"default": {"threshold": limit}}}}
    rows = []
    for number, p_all in enumerate((0.19, 0.2, 0.205, 0.21, 0.5, 0.79, 0.795, 0.8, 0.81, 0.81)):
        cell = row(f"c{number}", "", p_all, "1")
        decision = Thresholds(abstain_below=limit).decide(cell.prediction.probabilities, Checks())
        rows.append(replace(cell, prediction=replace(cell.prediction, decision=decision)))
    page = batch_picture(replace(RESULT, rows=tuple(rows), metrics=metrics))
    zone = re.search(r'class="lk-zone" x="([\d.]+)%" width="([\d.]+)%"', page)
    assert zone
    low, high = float(zone[1]), float(zone[1]) + float(zone[2])
    dots = re.findall(r'<circle .*?cx="([\d.]+)%".*? r="(\d+)".*?style="--c:var\(--lk-([\w-]+)\)', page)
    assert {ink for *_, ink in dots} == {"class-0", "class-1", "none"}
    for x, radius, ink in dots:
        left, right = float(x) - 100 * int(radius) / WIDTH, float(x) + 100 * int(radius) / WIDTH
        if ink == "none":
            assert low <= left and right <= high
        else:
            assert right <= low or left >= high


def test_what_is_answered_about_a_person_stands_in_the_row_and_why_behind_it() -> None:
    given = (row("a", "", 0.99, "1"), row("b", "ALL", 0.9, "2"), row("c", "HEM", 0.9, "2"), row("d", "", 0.1, "3"))
    rows = tuple(replace(one, picture=png()) for one in (*given, row("e", "", 0.9, "3", ood_score=4.0)))
    rows = (*rows, replace(row("f", "", 0.9, "3", ood_score=4.0), picture=png()))
    result = replace(RESULT, rows=rows, metrics=JUDGED)
    few, enough, unlike = result.subject_predictions
    assert (few.outcome, enough.outcome, unlike.outcome) == ("too few cells", "ALL", "out of distribution")
    answers = {subject: person_answer(result, subject) for subject in "123"}
    assert (answers["1"].short, answers["1"].detail) == ("no answer", "1 cell; 2 needed")
    assert (answers["2"].short, answers["2"].detail) == ("blasts", "probability 90\u00a0%")
    assert (answers["3"].short, answers["3"].detail) == ("no answer", "2 of 3 unlike")
    assert person_sentences(result, "1") == ["1 cell: 1 blast."], "that it is too few stands in the row"
    strange = replace(row("g", "", 0.9, "1", ood_score=4.0), picture=png())
    assert person_sentences(replace(result, rows=(*rows, strange)), "1") == [
        "An answer about a person needs 2 cells like the training cells; here is 1.",
        "2 cells: 1 blast, 1 unlike its training cells.",
    ]  # fmt: skip
    assert person_sentences(result, "2")[1:] == ["2 cells: 2 blasts.", "Right by your labels: 1 of 2 with a class."]
    page = batch_picture(result)
    assert all(answer.short in page and answer.detail in page for answer in answers.values())
    assert "With other cells of this person the probability would be 90\u00a0%." in page
    assert "Rule for a person: " in batch_answer(result)
    answered = verdict(result)
    assert answered.sentence == "Cells of person 2 look like blasts"
    both = (row("a", "", 0.9, "1"), row("b", "", 0.9, "1"), row("c", "", 0.1, "2"), row("d", "", 0.1, "2"))
    assert verdict(replace(result, rows=both)).sentence == (
        "Cells of person 1 look like blasts, those of person 2 look normal"
    )
    named = tuple(replace(one, subject=f"a-long-name-of-somebody-{one.subject}") for one in both)
    assert verdict(replace(result, rows=named)).sentence == (
        "Cells of a-long-…mebody-1 look like blasts, those of a-long-…mebody-2 look normal"
    )
    several = tuple(replace(one, subject=f"P{n}") for n in range(4) for one in both[:2])
    assert verdict(replace(result, rows=several[:6])).sentence == "Cells of people P0,\u00a0P1 and P2 look like blasts"
    assert verdict(replace(result, rows=several)).sentence == "Cells of 4 people look like blasts"
    with_one_more = (*several, *both[2:])
    assert verdict(replace(result, rows=with_one_more)).sentence == (
        "Cells of 4 people look like blasts, those of person 2 look normal"
    ), "who stands out has a name"
    long_names = tuple(replace(one, subject=f"a-long-name-of-somebody-{one.subject}") for one in several[:4])
    assert verdict(replace(result, rows=long_names)).sentence == "Cells of 2 people look like blasts"
    assert verdict(replace(result, rows=both[:2])).sentence == "Cells of person 1 look like blasts"
    error_rate = "Such answers were wrong for 5 of 100 unseen people (95\u00a0%: 1 to 20)."
    assert verdict(replace(result, rows=both)).because == error_rate
    assert answered.because == (
        f"{error_rate} The 2 without an answer have fewer than 2 cells like its training cells or most cells unlike "
        "its training cells."
    )
    above = "3 people, <b>2 without an answer</b></p>"
    assert above in batch_answer(result), "the headline names only who has one"
    assert "without an answer" not in batch_answer(replace(result, rows=both))
    one_without = verdict(replace(result, rows=rows[:3])).because
    assert one_without.endswith("The person without an answer has fewer than 2 cells like its training cells.")
    nobody = replace(result, rows=(rows[0], *rows[3:]))
    assert verdict(nobody) == Verdict(
        f"No answer about any of {len(nobody.subjects)} people",
        "An answer needs 2 cells like its training cells; 1\u00a0person has 1. "
        "Most cells of 1 person are unlike its training cells.",
    )
    assert "without an answer" not in batch_answer(nobody), "its headline says so"


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.9, 0.97), "90–97 %"),
        ((0.97, 0.996), "97 to over 99 %"),
        ((0.004, 0.3), "under 1 to 30 %"),
        ((0.995, 0.999), ">99 %"),
    ],
)
def test_an_interval_up_to_nearly_certain_reads_as_no_arrow(interval: tuple[float, float], words: str) -> None:
    assert _span(interval).replace("\u00a0", " ") == words


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 6, 7, 30])
def test_the_tile_of_a_batch_is_filled_by_six_of_its_cells_or_all_of_fewer(cells: int) -> None:
    white = encoded(Image.new("RGB", (132, 132), "white"), "WEBP")
    rows = tuple(replace(row(str(number), "", 0.9), thumbnail=white) for number in range(cells))
    tile = batch_tile("recent:0", replace(RESULT, rows=rows), False)
    assert tile.label == ("1 cell" if cells == 1 else f"{cells} cells")
    content = base64.b64decode(tile.image.source.partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert pixels.shape == (108, 132) and pixels.mean() >= 255 * 3 / 4 - 3


def test_people_without_an_answer_have_one_reason_that_is_said_once() -> None:
    rows = tuple(row(name, "", 0.9, name) for name in "ab")
    result = replace(RESULT, rows=rows, metrics=JUDGED)
    page = batch_answer(result)
    assert verdict(result).sentence == "No answer about any of 2 people", "counts of cells were read as people"
    assert '<li class="lk-kind">cells</li>' in page, "what the counts below it are of"
    assert "An answer needs 2 cells like its training cells; 2\u00a0people have 1." in page
    assert page.count("needs 2 cells") == 1
    one = verdict(replace(result, rows=rows[:1]))
    assert one.sentence == "No answer about the person" and one.because.startswith("An answer needs 2 cells")
    unlike = replace(result, rows=tuple(row(name, "", 0.9, name, ood_score=9) for name in "ab"))
    assert verdict(unlike).sentence == "No answer: unlike the cells it knows"
    assert "lk-trust" not in batch_answer(unlike), "how far to trust an answer, where there is none"


def test_that_another_model_can_answer_about_more_people_stands_above_the_caveats() -> None:
    """Nobody had an answer of a model that needs 50 cells; that another one needs 5 was nowhere to be seen."""
    rule = {**SUBJECT_RULE, "least_cells": 3}
    few = replace(RESULT, metrics={**JUDGED, "subject_rule": rule})
    least = {"leukoscope-other": 2, "third": None, "fourth": 3}
    others = list(least)

    def said(result: BatchResult, readings: Sequence[BatchResult] = ()) -> list[str]:
        page = batch_answer(result, others, readings, least_cells=least)
        assert page.count('data-act="read:leukoscope-other"') == 1
        return re.findall(r'<div class="lk-way-out">\s*<p>([^<]+)\.</p>', page)

    assert said(few) == ["other needs only 2 cells of a person, so it can answer about all 2 people"]
    assert said(few, [replace(few, model="leukoscope-other")]) == [], "its answers stand there"
    one = replace(few, rows=(*RESULT.rows[:3], row("d", "HEM", 0.1, "2", ood_score=9.0)))
    assert said(one) == ["other needs only 2 cells of a person, so it can answer about 1 of 2 people"]
    assert said(replace(one, rows=one.rows[2:3])) == [], "one cell is too few for it, too"
    assert said(replace(few, rows=few.rows[:2])) == [
        "other needs only 2 cells of a person, so it can answer about this person"
    ]
    more = [row(f"{n}", "", 0.99, "3") for n in range(3)]
    some = said(replace(few, rows=(*few.rows[:2], *more)))
    assert some == ["other needs only 2 cells of a person, so it can answer about 1 more person"]
    some = said(replace(few, rows=(*few.rows, *more)))
    assert some == ["other needs only 2 cells of a person, so it can answer about up to 2 more people"]
    assert "lk-way-out" not in batch_answer(few, others), "of which nothing is known"
    title = (
        "leukoscope-other needs only 2 cells of a person, so it can answer about all 2 people; read the 4 cells, too"
    )
    assert f'title="{title}"' in batch_answer(few, others, least_cells=least)
    page = batch_answer(few, ["other"], least_cells={"other": 1})
    assert "other needs only 1 cell of a person, so it can answer about all 2 people." in page
    assert page.index("lk-way-out") < page.index("lk-shares")


def test_the_models_say_how_many_cells_of_a_person_they_need() -> None:
    names = {name: EMBEDDED / f"leukoscope-{name}" for name in ("efficientnet-b3-cnmc", "densenet201-ball4")}
    models = ModelCache(names)
    least = [models.least_cells(name) for name in (*names, "owner/unread")]
    assert least == [5, None, None]


def test_people_with_cells_enough_stand_before_the_others_and_keep_their_places() -> None:
    """Of 14 people, the three with an answer were somewhere among those without one; rows moved once all were read."""
    cells = {"1": 1, "2": 3, "3": 1, "10": 3}
    rows = tuple(row(f"{person}_{n}", "", 0.99, person) for person, count in cells.items() for n in range(count))
    result = replace(RESULT, rows=rows, metrics=JUDGED)
    plot = batch_picture(result)
    assert re.findall(r'<h3 title="(\w+)">', plot) == ["2", "10", "1", "3"]
    dots = re.findall(r'data-act="cell:(\d+)"[^>]*><title>(\w+): ', plot)
    assert {name: rows[int(number)].name for number, name in dots} == {row.name: row.name for row in rows}
    reading = batch_picture(replace(result, total=9, unread={"3": 1}))
    assert re.findall(r'<h3 title="(\w+)">', reading) == ["2", "3", "10", "1"], (
        "3 will have two cells, which are enough"
    )
    begun = batch_picture(replace(result, rows=rows[1:2], total=8, unread={"1": 1, "2": 2, "3": 1, "10": 3}))
    assert re.findall(r'<h3 title="(\w+)">', begun) == ["2", "10", "1", "3"], "while cells are read, too"


def test_why_many_people_have_no_answer_is_said_once_above_their_rows() -> None:
    """“no answer, 8 cells; 50 needed” stood in 12 of 14 rows."""
    few = tuple(row(f"{person}", "", 0.99, str(person)) for person in range(12))
    result = replace(RESULT, rows=(*few, row("a", "", 0.9, "99"), row("b", "", 0.9, "99")), metrics=JUDGED)
    told = "No answer about these 12 people: each has fewer than 2 cells."
    for shown in (result, replace(result, rows=few[:3], unread={**{str(n): 1 for n in range(3, 12)}, "99": 2})):
        page = batch_picture(shown)
        assert page.count(told) == 1 and "needed" not in page
        assert page.index('<h3 title="99">') < page.index(told) < page.index('<h3 title="0">')
    assert batch_picture(result).count("<b></b><span>1 cell</span>") == 12
    assert "1 cell; 2 needed" in batch_picture(replace(result, rows=few[:2])), "of two people, in their rows"


def test_a_cell_that_is_not_sure_has_its_probability_and_a_person_s_is_that_of_the_answer() -> None:
    unsure = {"abstention": {"default": {"threshold": 0.8}}}
    rows = (row("a", "", 0.6, "1"), row("b", "", 0.05, "2"), row("c", "", 0.05, "2"))
    abstained = replace(rows[0].prediction, decision=Thresholds(0.8).decide(rows[0].prediction.probabilities, Checks()))
    rows = (replace(rows[0], prediction=abstained), *rows[1:])
    result = replace(RESULT, rows=rows, metrics={**JUDGED, "decisions": unsure})
    page = batch_picture(result)
    assert "<b>blast? 60\u00a0%</b>" in page and "a: not sure, blast 60\u00a0%" in page
    near = {"ALL": 0.797, "HEM": 0.203}
    close = replace(abstained, probabilities=near, decision=Thresholds(0.8).decide(near, Checks()))
    near_the_limit = batch_picture(replace(result, rows=(replace(rows[0], prediction=close), *rows[1:])))
    assert "<b>blast? 79.7\u00a0%</b>" in near_the_limit and "a: not sure, blast 79.7\u00a0%" in near_the_limit
    assert person_answer(result, "2").detail == "probability 95\u00a0%"
    assert person_sentences(result, "2")[0] == "With other cells of this person the probability would be 95\u00a0%."


def test_each_class_has_one_name_on_the_whole_page_of_a_batch() -> None:
    """Its plot said "blasts", its counts "ALL"."""
    result = replace(RESULT, metrics={**JUDGED, "training": {}})
    page = batch_picture(result) + batch_answer(result)
    words = re.sub("<[^>]*>", " ", page)
    assert "blast" in words and "normal" in words
    assert not re.search(r"\b(ALL|HEM)\b", words)


def test_each_clause_of_a_verdict_is_kept_together_and_all_counts_are_figures() -> None:
    page = batch_answer(replace(RESULT, metrics={}))
    verdict_of = page[page.index("lk-verdict") :].split("</h2>")[0]
    assert re.findall(r'lk-clause">([^<]+)</span>', verdict_of) == ["2 look like blasts,", "2 normal"]
    assert ">model tiny · 4 cells of 2 people<" in page


def test_a_batch_speaks_of_people_and_sets_off_every_percent_sign() -> None:
    """Its rule said "wrong for 6% of unseen subjects", its notes that subjects are named by a table."""
    notes = ("Subjects are named by subjects.csv.", "t.csv: names neither subjects nor classes; it was not used.")
    rows = [row(f"{label}{n}", label, 0.9 - 0.6 * (label == "HEM"), f"{label}{n}")
            for label in ("ALL", "HEM") for n in range(12)]  # fmt: skip
    page = batch_answer(replace(RESULT, rows=tuple(rows), metrics=JUDGED, notes=notes))
    words = unescape(re.sub("<[^>]*>", " ", page)).replace("subjects.csv", "")
    assert "Rule for a person" in words and "People are named by" in words and "samples of people" in words
    assert "ubject" not in words and not re.search(r"\d%|\d %", words)


def test_the_parts_of_a_progress_stand_where_those_of_its_answer_do() -> None:
    """The line of the progress was a part of its own: bar and trust moved up by its height when the answer came."""
    rows = tuple(replace(one, subject="", truth="") for one in RESULT.rows)
    unsure = {"abstention": {"default": {"threshold": 0.8}}}
    loose = replace(RESULT, rows=rows, problems=(), metrics={**JUDGED, "decisions": unsure, "ood": {}}, total=4)
    pages = (progress(replace(loose, unread={"": 2})), batch_answer(loose))
    of_progress, of_answer = (re.findall(r"^  <(\w+)", page, re.MULTILINE) for page in pages)
    assert of_progress[:3] == ["div", "p", "div"] and of_answer[: len(of_progress)] == of_progress
    assert all(page.count("</b> not sure") == page.count("</b> unlike its training cells") == 1 for page in pages)


def test_that_no_person_will_have_an_answer_is_said_from_the_start() -> None:
    few = replace(RESULT, rows=RESULT.rows[:1], metrics=JUDGED, unread={"2": 1}, total=2)
    assert "No answer about any person will follow. An answer needs 2 cells" in progress(few)
    assert "none has more than 1 picture." in progress(few)
    assert "will follow" not in progress(replace(few, unread={"2": 2}, total=3))


def test_how_many_people_can_have_an_answer_is_said_from_the_start() -> None:
    """That a person's answer follows stood beside "No answer about these 12 people"."""
    first = RESULT.rows[:1]
    some = replace(RESULT, rows=first, metrics=JUDGED, unread={"2": 2}, total=3)
    assert "2 cells like its training cells: at most 1 of 2 people can get one, once" in progress(some)
    every = replace(some, unread={"1": 1, "2": 2}, total=4)
    assert "A person’s answer follows once all of their pictures are predicted." in progress(every)


def test_the_tile_of_a_batch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    result = replace(RESULT)
    first = batch_tile("recent:0", result, False)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a thumbnail is decoded again"))
    assert batch_tile("recent:1", result, True).image == first.image


def test_few_labelled_cells_are_counted_and_have_neither_shares_nor_intervals() -> None:
    page = batch_answer(RESULT)
    counted = "Recognised by the most probable class, given as the answer or not: 1 of 2 blasts, 1 of 2 normal cells."
    assert counted in page
    own = page[page.index("Measured on your labels") :]
    assert "ccuracy" not in own and "lk-meter" not in own.split("</section>")[0]

    def labelled(people: int) -> str:
        cells = [row(f"{label}{n}", label, p, f"{label}{n % people}")
                 for label, p in (("ALL", 0.9), ("HEM", 0.3)) for n in range(12)]  # fmt: skip
        whole = batch_answer(replace(RESULT, rows=tuple(cells)))
        return whole[whole.index("Measured on your labels") :].split("</section>")[0]

    assert "24 cells of 6 people" in labelled(3) and "Accuracy 100\u00a0%" in labelled(3)
    assert "95 % interval" not in labelled(3) and "From 5 people of each class on" in labelled(3)
    assert "100 of 100 blasts, 95 % interval" in labelled(6) and "0.9" not in labelled(6)


def test_a_smear_among_cells_is_said_to_be_one_and_what_to_do(tmp_path: Path) -> None:
    models, image = ModelCache({"cnmc": EMBEDDED / "leukoscope-densenet169-cnmc"}), example_smear().image
    path = pack(tmp_path / "cells.zip", {"smear.png": encoded(image, "PNG"), "cell.png": cell_png(cell=1)})
    *_, result = predict_batch(models, open_batch([path]), "cnmc")
    assert isinstance(result, BatchResult)
    (smear,) = (row for row in result.rows if row.name == "smear.png")
    alone = ask(Picture(image, "smear.png"), models, "cnmc").known
    assert (smear.prediction.outcome, smear.prediction.decision.reasons) == (alone.outcome, alone.decision.reasons)
    said = "smear.png: shows a smear, no single cell cut out on black; give it alone, and its cells are found"
    assert result.problems == (said,)
    page = batch_answer(result, ["other"])
    assert said in page and "1 cell, people unknown" in page and "read the 1 cell, too" in page
    foreign = batch_answer(replace(result, rows=(smear,)))
    assert "1 pictures" not in foreign and "No class: no cell cut out on black" in foreign


def test_a_picture_without_a_cell_counts_once_and_takes_no_person_from_the_others(tmp_path: Path) -> None:
    """A gradient was one of 25 cells, one of "2 not used" and a smear; beside it, all people were unknown."""
    ramp = np.linspace(60, 200, 96).astype(np.uint8)
    gradient = encoded(Image.fromarray(np.stack([np.tile(ramp, (96, 1))] * 3, axis=-1)), "PNG")
    people = {f"patient_{person}/{n}.png": cell_png(subject=person, cell=n) for person in (1, 2) for n in (0, 1)}
    path = pack(tmp_path / "cells.zip", {**people, "gradient.png": gradient, "broken.png": b"no picture"})
    models = ModelCache({"cnmc": EMBEDDED / "leukoscope-densenet169-cnmc"})
    *_, result = predict_batch(models, open_batch([path]), "cnmc")
    assert isinstance(result, BatchResult) and result.subjects == ["patient_1", "patient_2"]
    page = unescape(batch_answer(result, ["other"]))
    assert "4 cells of 2 people" in page and "read the 4 cells, too" in page and "2 not used" in page
    assert "not a cell" not in page and "<b>0</b> unlike its training cells" in page
    alone = ask(Picture(Image.open(io.BytesIO(gradient)), "gradient.png"), models, "cnmc")
    assert alone.verdict() == "No white blood cell found"
    assert "gradient.png: no white blood cell found; nothing in it is stained as the nucleus of one is" in page
    plot = batch_picture(result)
    assert plot.count("<circle") == 4 and "person unknown" not in plot and "gradient" not in plot
    assert result.without_subject == ""
    labelled = replace(result, rows=tuple(replace(row, truth="ALL") for row in result.rows))
    assert label_metrics(labelled)[1][0].startswith("4 cells with a known class"), "what is not used is not measured"
    assert "gradient.png" not in {row.name for _, row in labelled.wrong}
    nothing = replace(result, rows=tuple(row for row in result.rows if row.name == "gradient.png"))
    assert verdict(nothing).sentence == "No white blood cell found"


def test_a_picture_is_kept_as_it_was_given_or_told_that_it_is_not(tiny_release: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "cells.zip", {"a.png": cell_png(cell=1)})
    (one,) = predict_files(ModelCache({"tiny": tiny_release}), [path], "tiny").rows
    assert np.array_equal(np.asarray(open_bytes(one.kept(), "a")), np.asarray(Image.open(io.BytesIO(cell_png(cell=1)))))
    with pytest.raises(LeukoscopeError, match=r"64 MB of pictures are kept, and this one is not among them; send this"):
        replace(one, picture=b"").kept()


@pytest.mark.parametrize(("names", "subject"), [("{}", ""), ("P7/{}", "P7"), ("ALL/{}", ""), ("{label}/{}", "")])
def test_a_folder_around_all_cells_may_be_a_subject_and_a_zip_is_none(
    tiny_release: Path, tmp_path: Path, names: str, subject: str
) -> None:
    labels = ("ALL", "HEM") * 2
    files = {names.format(f"{n}.png", label=label): cell_png(cell=n) for n, label in enumerate(labels)}
    path = pack(tmp_path / "Anna Schmidt.zip", files)
    *_, result = predict_batch(ModelCache({"tiny": tiny_release}), open_batch([path]), "tiny")
    assert isinstance(result, BatchResult) and {row.subject for row in result.rows} == {subject}
    found = replace(result, metrics={"subject_rule": SUBJECT_RULE, "data": DATA}).subject_predictions
    assert [one.cells for one in found] == [4] * bool(subject)


def test_no_more_parts_of_batches_are_read_at_once_than_the_memory_holds(tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    given = Batch([BatchFile(f"{n}.png", partial(cell_png, cell=n)) for n in range(2)])
    begun = [Event() for _ in range(3)]
    go_on = Event()

    def steps(number: int) -> Iterator[BatchResult]:
        begun[number].set()
        assert go_on.wait(60)
        yield from predict_batch(models, given, "tiny")

    with ThreadPoolExecutor(3) as visitors:
        asked = [visitors.submit(models.next_part, steps(number)) for number in range(2)]
        assert all(event.wait(60) for event in begun[:2])
        asked.append(visitors.submit(models.next_part, steps(2)))
        assert not begun[2].wait(0.3), "two are read"
        go_on.set()
        assert [part.total for future in asked if (part := future.result(60))] == [2, 2, 2]


def test_what_another_model_predicted_stands_beside_it_as_a_line() -> None:
    other = replace(RESULT, model="other", rows=(row("a", "ALL", 0.1, "1"), *RESULT.rows[1:]))
    page = batch_answer(RESULT, ["other", "third"], [other])
    line = page[page.index('data-act="read:other"') :].split("</button>")[0]
    assert "same answer for 3 of 4 cells" in line and "flex:1;--c" in line and "flex:3;--c" in line
    unread = page[page.index('data-act="read:third"') :].split("</button>")[0]
    assert "read the 4 cells, too" in unread and "lk-bar" not in unread
    judged = [replace(reading, metrics=JUDGED) for reading in (RESULT, other)]
    assert "same answer for 1 of 2 people" in batch_answer(judged[0], ["other"], [judged[1]]), "about people first"


def test_cells_of_unknown_people_have_the_caveat_that_one_cell_has() -> None:
    trained = {"training": {"name": "cnmc2019", "subjects": ["7", "H3"]}, "data": DATA}
    rows = tuple(row(name, "", 0.9) for name in ("mine/UID_7_1_2_all.bmp", "mine/UID_9_1_2_all.bmp", "mine/a.png"))
    result = replace(RESULT, rows=rows, metrics=trained)
    assert result.names_of_training == ["7"] and "people called 7" in result.warnings[0]
    page = batch_answer(result)
    assert "It was trained on a person called 7 and may look better than it is." in page
    assert "<span>UID_7_1</span><span>_2_all</span>" in batch_picture(result), "a name without its folder"
    assert cell_name(result.rows[0]) == "UID_7_1_2_all"
    assert cell_name(replace(result.rows[0], subject="7")) == "7 / UID_7_1_2_all"
    long = replace(result.rows[0], subject="somebody of a long name", name=f"a/cell of the first{' slide' * 9} 17.bmp")
    assert cell_name(long) == "somebod…ong name / cell of the…ide slide 17"
    alike = replace(result, rows=result.rows[:2])
    assert ">7_1_2_all</span>" in batch_picture(alike), "and without what all names begin with"


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([f"UID_{person}_{cell}_1_all.bmp" for person in (7, 9) for cell in (1, 2)], "UID_ numbers"),
        ([f"{person}/{cell}.png" for person in "ab" for cell in (1, 2)], "folders"),
    ],
)
def test_a_caveat_of_guessed_people_is_short(pictures: list[str], said: str) -> None:
    """Two caveats filled four lines: how far to trust the answer was cut off below them."""
    guessed_from = find_subjects(pictures, {}, ("ALL", "HEM")).guessed_from
    page = batch_answer(replace(RESULT, guessed_from=guessed_from))
    assert f"<li>People are guessed from {said}; a table of files and people is safer.</li>" in page


def test_one_reason_for_several_files_is_said_once() -> None:
    problems = (*(f"{number}.jpg: shows a smear" for number in range(8)), "x.png: is damaged: copy it again")
    page = batch_answer(replace(RESULT, problems=problems))
    assert "9 not used, and why" in page and page.count("shows a smear") == 1
    assert "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 2 more: shows a smear" in page
    assert "x.png: is damaged: copy it again" in page


def test_what_was_given_is_shown_before_it_is_predicted() -> None:
    readable = [BatchFile(f"{number}.png", png) for number in range(30)]
    page = given_picture(Batch([BatchFile("broken.png", lambda: b"no picture"), *readable]))
    assert ">31 pictures</p>" in page and page.count("<img") == 23, "of the first 24 those that can be read"
    assert "--columns:6;--narrow-columns:5" in page, "they fill the stage"


def test_dark_cells_that_are_given_are_shown_brighter_at_once() -> None:
    """They were nearly black until the first of them was predicted."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24] = (90, 30, 110)
    dark = encoded(Image.fromarray(pixels), "PNG")
    white = encoded(Image.new("RGB", (32, 32), "white"), "PNG")
    page = given_picture(Batch([BatchFile("dark.png", lambda: dark), BatchFile("white.png", lambda: white)]))
    assert re.findall(r"<li([^>]*)><img", page) == [' class="lk-dark"', ""]


def test_people_stand_in_the_order_of_their_numbers() -> None:
    """They stood as text: 16 before 2."""
    names = ["H10", "16", "2", "H9", "anna", "23"]
    assert sorted(names, key=by_number) == ["2", "16", "23", "H9", "H10", "anna"]


def test_cells_unlike_the_training_cells_come_after_the_least_sure() -> None:
    """One without a figure stood between two with 83 and 86 %."""
    rows = [row("sure", "ALL", 0.95, "A"), row("far", "ALL", 0.7, "A", ood_score=9), row("less sure", "ALL", 0.6, "A")]
    page = batch_picture(replace(RESULT, rows=tuple(rows), problems=()))
    assert "The least sure first, unlike ones last" in page
    listed = page[page.index("lk-grid") :]
    assert re.findall(r'class="lk-end" title="([^"]+)"', listed) == ["less sure", "sure", "far"]
