"""Many cells without a browser: predicted, counted by subject, measured on labels, and what the stage shows of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import open_bytes
from leukoscope.inference.prediction import Checks, Prediction, Thresholds
from leukoscope.reports.formatting import encoded
from leukoscope.web import batch_page
from leukoscope.web.answer import Picture, ask
from leukoscope.web.app import Endpoints
from leukoscope.web.batch import BatchResult, BatchRow, columns, label_metrics, predict_batch, predict_files
from leukoscope.web.batch_files import Batch, BatchFile, open_batch
from leukoscope.web.batch_page import batch_answer, batch_picture, progress, reading_batch, subject_text
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
    assert RESULT.warnings[0].startswith("The model was trained on subjects called 2: if")
    assert label_metrics(replace(RESULT, rows=tuple(replace(one, truth="") for one in RESULT.rows))) == ([], [])


def test_a_subject_that_trained_the_release_or_an_earlier_one_is_known_under_its_other_ids() -> None:
    earlier = {"name": "cnmc2019", "fingerprint": "a", "unit": "subject", "subjects": ["51"]}
    own = {"data": {"name": "imagefolder", "title": "own"}}
    rows = tuple(replace(row, subject={"1": "78", "2": "H24"}[row.subject]) for row in RESULT.rows)

    def said(metrics: dict[str, Any]) -> str:
        return " ".join(replace(RESULT, rows=rows, metrics=metrics).warnings)

    told = "The model was trained on subjects called {}: if these are the same, the results are too good."
    assert said({"data": DATA, "training": {"subjects": ["51", "H14"]}}) == told.format("78, H24")
    assert said({**own, "training": {"subjects": ["2"], "started_from": {"seen": [earlier]}}}) == told.format("78")
    assert said({"training": {"subjects": ["2"]}}) == "", "a stranger's, without data"


def test_cells_without_a_subject_are_told_about_in_the_page_s_own_terms() -> None:
    nobodys = replace(RESULT, rows=tuple(replace(one, subject="") for one in RESULT.rows))
    assert label_metrics(nobodys)[1][-1].endswith("(not every cell has a subject: give a folder for each).")
    assert nobodys.warnings == [], "this release has no rule for subjects"
    said = "The subject of 4 of 4 cells is not known: give a table that names them, or each subject's cells a folder."
    judged = replace(nobodys, metrics={"subject_rule": SUBJECT_RULE, "data": DATA})
    assert judged.warnings == [said] and unescape(batch_answer(judged)).count(said) == 1
    assert replace(RESULT, metrics={"subject_rule": SUBJECT_RULE, "data": DATA}).warnings == []


def test_the_page_says_it_all_and_escapes_names() -> None:
    hostile = replace(RESULT, rows=(*RESULT.rows, row("<script>", "ALL", 0.3)), problems=("<img>: is bad",))
    page = batch_answer(hostile) + batch_picture(hostile)
    assert "<script>" not in page and "<img>" not in page
    assert "Wrong, the most confident first (3)" in page and "1 not used" in page
    assert page.count("in training?") == 1


def test_cells_without_a_class_are_counted_as_such_and_no_probability_stands_beside_them() -> None:
    foreign = replace(RESULT, rows=(*RESULT.rows, row("blank", "", 0.97, "2", ood_score=7.5)))
    page = batch_answer(foreign)
    for outcome, count in {"ALL": 2, "HEM": 2, "unlike its cells": 1}.items():
        assert f"<b>{count}</b> {outcome}</li>" in page
    cells = batch_picture(foreign).split("<li")[1:]
    assert "<b>HEM 80\u00a0%" in cells[0], "the least confident"
    (blank,) = (cell for cell in cells if "blank" in cell)
    assert "<b>unlike its cells</b>" in blank and "97" not in blank


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


def test_progress_is_told(tiny_release: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "cells.zip", {f"{n}.png": cell_png(cell=n, size=64) for n in range(20)})
    first, second, result = predict_batch(ModelCache({"tiny": tiny_release}), open_batch([path]), "tiny")
    assert (first, second) == (16, 20)
    assert isinstance(result, BatchResult) and len(result.rows) == 20
    assert "16 of 20 pictures predicted, about 1 s left." in progress(16, 20, 4.0, "")
    assert "0 of 20 pictures predicted." in progress(0, 20, 0.0, "")
    assert "20 of 20 pictures predicted." in progress(20, 20, 4.0, ""), "no time is left"


# Subjects


def test_subjects_are_told_apart_and_their_cells_drawn_with_those_refused_in_grey() -> None:
    rows = (*RESULT.rows, row("e", "", 0.5, "1", ood_score=3.0))
    result = replace(RESULT, rows=rows, metrics={"subject_rule": SUBJECT_RULE, "data": DATA})
    first, second = result.subject_predictions
    assert (first.subject, first.cells, first.refused, second.subject) == ("1", 3, 1, "2")
    page = batch_picture(result)
    assert page.count("<svg") == 2
    # A dot opens the cell of its number, counted over the whole batch.
    numbers = sorted(int(number) for number in re.findall(r'<circle data-act="cell:(\d+)"', page))
    assert numbers == list(range(5))
    assert [page.count(f'style="fill:var(--lk-{ink})"') for ink in ("class-0", "class-1", "none")] == [2, 2, 1]
    assert subject_text(result, "1").startswith("Together ")
    assert subject_text(result, "1").endswith(
        "3 cells: 1 ALL, 1 HEM, 0 not sure, 1 refused. 1 of the 2 with a class are right."
    )
    # No class between 20 and 80 %.
    assert "lk-zone" not in page and "<text" not in page, "small windows would shrink the numbers of the axis"
    unsure = {"abstention": {"default": {"threshold": 0.8}}}
    assert batch_picture(replace(result, metrics={**result.metrics, "decisions": unsure})).count("lk-zone") == 2


def test_too_few_cells_of_a_subject_have_no_figure() -> None:
    given = (row("a", "", 0.99, "1"), row("b", "", 0.9, "2"), row("c", "", 0.9, "2"))
    rows = tuple(replace(one, picture=png()) for one in given)
    result = replace(RESULT, rows=rows, metrics={"subject_rule": SUBJECT_RULE, "data": DATA})
    few, enough = result.subject_predictions
    assert (few.outcome, enough.outcome) == ("too few cells", "ALL")
    assert subject_text(result, "1") == (
        "Together too few cells: 1 cells can be used, but 2 are needed. 1 cells: 1 ALL, 0 HEM, 0 not sure, 0 refused."
    )
    assert f"Together ALL, probability of ALL {enough.probability:.3f} (" in subject_text(result, "2")
    assert "Rule for a subject: " in batch_answer(result) and "Together ALL" in batch_picture(result)


def test_a_smear_among_cells_is_said_to_be_one_and_what_to_do(tmp_path: Path) -> None:
    models, image = ModelCache({"cnmc": EMBEDDED / "leukoscope-densenet169-cnmc"}), example_smear().image
    path = pack(tmp_path / "cells.zip", {"smear.png": encoded(image, "PNG"), "cell.png": cell_png(cell=1)})
    *_, result = predict_batch(models, open_batch([path]), "cnmc")
    assert isinstance(result, BatchResult)
    (smear,) = (row for row in result.rows if row.name == "smear.png")
    alone = ask(Picture(image, "smear.png"), models, "cnmc").known
    assert (smear.prediction.outcome, smear.prediction.decision.reasons) == (alone.outcome, alone.decision.reasons)
    said = "smear.png: shows a smear, no single cell cut out on black; give it alone, and its cells are found"
    assert result.problems == (said,) and said in batch_answer(result)


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


def test_a_batch_waits_for_two_others(tiny_release: Path) -> None:
    given = Batch([BatchFile(f"{n}.png", partial(cell_png, cell=n)) for n in range(2)])
    assert batch_page._line.acquire() and batch_page._line.acquire()
    steps = reading_batch(ModelCache({"tiny": tiny_release}), given, "tiny")
    assert "0 of 2 pictures predicted" in str(next(steps)) and "0 of 2" in str(next(steps))
    batch_page._line.release()
    *_, last = steps
    assert isinstance(last, BatchResult)
    assert batch_page._line.acquire(blocking=False), "the next one may begin"
    for _ in range(2):
        batch_page._line.release()
