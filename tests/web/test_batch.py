"""Many cells without a browser: what a zip may hold, and what the stage shows of it."""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.inference.prediction import Checks, Thresholds
from leukoscope.synthetic import draw_cell
from leukoscope.web import batch, batch_files
from leukoscope.web.answer import Picture, ask
from leukoscope.web.app import build_demo
from leukoscope.web.batch import (
    ORDERS,
    SAMPLE_CELLS,
    batch_answer,
    batch_picture,
    predict_files,
    progress,
    reading_batch,
    sample_batch,
    subject_text,
    subjects_found,
)
from leukoscope.web.batch_files import Batch, BatchFile, open_batch, subjects_of, suggested_pattern
from leukoscope.web.batch_results import (
    BatchResult,
    BatchRow,
    label_metrics,
    predict_batch,
    save_cells,
    save_subjects,
    subject_rows,
    wrong_rows,
)
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.smear import example_smear
from leukoscope.web.upload import OWN_FOLDER

EMBEDDED = Path(__file__).parents[2] / "model_card"


def png(side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(buffer, "PNG")
    return buffer.getvalue()


def cell_png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_cell("ALL", subject=0, cell=number, size=64, background="black").image).save(buffer, "PNG")
    return buffer.getvalue()


def upload_folder(cache: Path) -> Path:
    folder = cache / f"{OWN_FOLDER}1"
    folder.mkdir()
    return folder


def pack(path: Path, files: Mapping[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def test_labels_come_from_folders_and_a_csv_goes_first(tmp_path: Path) -> None:
    table = b"File,Label,Subject\na.png,HEM,7\nmissing.png,ALL,1\n"
    files = {"set/all/a.png": b"", "set/all/b.png": b"", "c.png": b"", "labels.csv": table, "__MACOSX/._a.png": b""}
    batch = open_batch([pack(tmp_path / "cells.zip", files)])
    assert [file.name for file in batch.files] == ["set/all/a.png", "set/all/b.png", "c.png"]
    assert [batch.label_of(file.name, ("ALL", "HEM")) for file in batch.files] == ["HEM", "ALL", ""]
    assert batch.subjects == {"set/all/a.png": "7"}
    assert batch.problems == ["labels.csv: names 'missing.png', which was not given"]


def test_labels_of_a_csv_that_are_no_class_are_told_once_each(tmp_path: Path) -> None:
    table = "file,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(("1", "all", "1", "blast")))
    files = {f"{n}.png": b"" for n in range(4)} | {"labels.csv": table.encode()}
    batch = open_batch([pack(tmp_path / "cells.zip", files)])
    assert [batch.label_of(file.name, ("ALL", "HEM")) for file in batch.files] == ["", "ALL", "", ""]
    assert batch.unknown_labels(("ALL", "HEM")) == [
        "labels.csv: label '1' is none of ALL, HEM",
        "labels.csv: label 'blast' is none of ALL, HEM",
    ]
    many = Batch(label_tables={f"{n:0100}": "a.csv" for n in range(25)})
    told = many.unknown_labels(("ALL", "HEM"))
    assert len(told) == 21 and max(map(len, told)) < 100
    assert told[-1] == "5 more labels are none of ALL, HEM"


def test_a_class_is_the_innermost_folder_that_names_one() -> None:
    names = ("ALL/P00/1.png", "P00/hem/1.png", "ALL/hem/1.png", "P00/1.png")
    assert [Batch().label_of(name, ("ALL", "HEM")) for name in names] == ["ALL", "HEM", "HEM", ""]


@pytest.mark.parametrize("row", ["P1/1.png", "./P1/1.png", "P1\\1.png", "study/P1/1.png", "../study/P1/1.png"])
def test_a_csv_names_pictures_from_its_own_folder_on(tmp_path: Path, row: str) -> None:
    table = f"file,label,subject\n{row},ALL,1\n".encode()
    files = {"study/P1/1.png": b"", "study/P2/1.png": b""}
    inside = open_batch([pack(tmp_path / "cells.zip", {**files, "study/labels.csv": table})])
    assert (inside.labels, inside.subjects) == ({"study/P1/1.png": "ALL"}, {"study/P1/1.png": "1"})
    assert inside.problems == []


def test_a_csv_apart_names_pictures_by_the_end_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nP1/1.png,ALL\n2.png,HEM\n1.png,HEM\nP2/1.png,\n")
    zipped = pack(tmp_path / "cells.zip", {"study/P1/1.png": b"", "study/P2/1.png": b"", "study/P2/2.png": b""})
    batch = open_batch([zipped, str(tmp_path / "labels.csv")])
    assert batch.labels == {"study/P1/1.png": "ALL", "study/P2/2.png": "HEM"}
    assert batch.problems == [
        "labels.csv: '1.png' is the name of several pictures; write the folder before it (rows like this: 1)"
    ]


def test_rows_of_csvs_that_contradict_each_other_are_told_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label,subject\n1.png,ALL,P1\n2.png,ALL,P1\n")
    (tmp_path / "b.csv").write_text("file,subject\n2.png,P2\n")
    zipped = pack(tmp_path / "cells.zip", {"1.png": b"", "2.png": b""})
    batch = open_batch([zipped, str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert (batch.labels, batch.subjects) == ({"1.png": "ALL", "2.png": "ALL"}, {"1.png": "P1"})
    assert batch.problems == [
        "b.csv: 2.png is there with the subject 'P1' and with 'P2'; neither is used: keep one of the two rows"
    ]


def test_a_csv_as_a_german_excel_saves_it_is_read(tmp_path: Path) -> None:
    table = "file;label;subject\r\nZähl1.png;ALL;Müller, A.\r\n".encode("cp1252")
    batch = open_batch([pack(tmp_path / "cells.zip", {"Zähl1.png": b"", "labels.csv": table})])
    assert (batch.labels, batch.subjects) == ({"Zähl1.png": "ALL"}, {"Zähl1.png": "Müller, A."})
    assert batch.problems == [
        "labels.csv: is not in UTF-8 and was read as Windows-1252; check names with umlauts or accents"
    ]


def test_zips_that_hold_the_same_names_keep_all_their_pictures_apart(tmp_path: Path) -> None:
    labels = b"file,label\n0.png,ALL\n"
    first = pack(tmp_path / "P1.zip", {"0.png": b"a", "1.png": b"b", "labels.csv": labels})
    second = pack(tmp_path / "P2.zip", {"0.png": b"c", "1.png": b"d"})
    batch = open_batch([first, second])
    names = ["P1/0.png", "P1/1.png", "P2/0.png", "P2/1.png"]
    assert [file.name for file in batch.files] == names and batch.problems == []
    assert b"".join(file.read() for file in batch.files) == b"abcd"
    assert batch.labels == {"P1/0.png": "ALL"}
    pattern = suggested_pattern(names, ("ALL", "HEM"))
    assert list(subjects_of(names, pattern, {}).values()) == ["P1", "P1", "P2", "P2"]
    third = pack(tmp_path / "more.zip", {"2.png": b"e"})
    assert [file.name for file in open_batch([first, third]).files] == ["0.png", "1.png", "2.png"]


def test_loose_files_of_one_name_are_told(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "0.png" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode())
    batch = open_batch([str(path) for path in paths])
    assert [file.read() for file in batch.files] == [b"a"]
    assert batch.problems == ["0.png: is the name of two files; only the first is used: rename the other"]


def test_a_zip_s_directory_is_read_once_for_all_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Counted(zipfile.ZipFile):
        def __init__(self, path: str) -> None:
            opened.append(path)
            super().__init__(path)

    path = pack(tmp_path / "cells.zip", {f"{number}.png": b"%d" % number for number in range(5)})
    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    batch = open_batch([path])
    assert [file.read() for file in batch.files] == [b"0", b"1", b"2", b"3", b"4"]
    assert opened == [path]


def test_what_a_mac_adds_to_a_zip_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MAX_FILES", 3)
    names = [f"P1/{number}.png" for number in range(3)]
    added = {f"__MACOSX/P1/._{number}.png": b"" for number in range(3)} | {"P1/.DS_Store": b""}
    batch = open_batch([pack(tmp_path / "mac.zip", dict.fromkeys(names, b"") | added)])
    assert [file.name for file in batch.files] == names


def test_what_is_no_picture_in_a_zip_is_summed_up_by_kind(tmp_path: Path) -> None:
    files = {"P1/1.png": png(), "P1/no suffix": png(), "P1/2.jfif": png(), "P1/table.csv": b"file,label\n1.png,ALL\n"}
    others = {"P1/a.txt": b"", "b.TXT": b"notes", "c.txt": b"", "d.heic": b"\0\0\0\x18ftypheic", "README": b"read me"}
    junk = {"P1/Thumbs.db": b"", "__MACOSX/P1/._1.png": b""}
    batch = open_batch([pack(tmp_path / "set.zip", files | others | junk)])
    assert [file.name for file in batch.files] == ["P1/1.png", "P1/no suffix", "P1/2.jfif"]
    assert batch.problems == [
        "set.zip: 5 file(s) left out, no pictures that can be read: .txt 3, .heic 1, no suffix 1; export them as PNG "
        "or JPEG"
    ]


def test_a_time_in_a_name_leads_nowhere(tmp_path: Path) -> None:
    name = "P1/2024-05-01T12:30:00.png"
    (file,) = open_batch([pack(tmp_path / "cells.zip", {name: b"a"})]).files
    assert (file.name, file.read()) == (name, b"a")


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png", "C:/out.png"])
def test_a_zip_with_a_path_trick_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LeukoscopeError, match=r"cells.zip: holds the path .*, which leads out of it; pack it again"):
        open_batch([pack(tmp_path / "cells.zip", {name: png()})])


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("passwords.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(LeukoscopeError, match="passwords.png is a link, not a file"):
        open_batch([str(tmp_path / "cells.zip")])


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({f"{n}.png": b"" for n in range(2100)}, "holds 2100 files; at most 2000 fit in one batch: split it"),
        ({f"{n}.png": bytes(19 * 2**20) for n in range(11)}, "would unpack to 209 MB, more than 200 MB; split it"),
        ({"wide.png": bytes(21 * 2**20)}, "wide.png is over 20 MB; crop it to one cell"),
    ],
)
def test_a_bomb_is_refused_by_its_directory(tmp_path: Path, files: Mapping[str, bytes], problem: str) -> None:
    path = pack(tmp_path / "cells.zip", files)
    assert Path(path).stat().st_size < 2**20
    with pytest.raises(LeukoscopeError, match=problem):
        open_batch([path])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_entries_could_expand_without_limit_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "cells.zip", "w", method) as archive:
        archive.writestr("a.png", bytes(2**20))
    with pytest.raises(LeukoscopeError, match="cells.zip: a.png is not packed by deflate; pack it again as a plain"):
        open_batch([str(tmp_path / "cells.zip")])


def test_a_zip_that_is_stored_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cells.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", png())
    (file,) = open_batch([str(tmp_path / "cells.zip")]).files
    assert file.read() == png()


def test_a_zip_that_lies_about_its_sizes_unpacks_no_more_than_it_says(tmp_path: Path) -> None:
    path = Path(pack(tmp_path / "cells.zip", {"a.png": bytes(2**20)}))
    honest = (2**20).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(honest, (100).to_bytes(4, "little")))
    (file,) = open_batch([str(path)]).files
    with pytest.raises(LeukoscopeError, match="a.png: is damaged within its zip; pack it again"):
        file.read()


def test_tables_of_strangers_cannot_fill_the_memory(tmp_path: Path) -> None:
    table = b"file,label\n" + b"".join(b"%d.png,ALL\n" % number for number in range(1000))
    refused = open_batch([pack(tmp_path / "cells.zip", {"a.png": png(), "t.csv": table})]).problems
    assert len(refused) == 21 and refused[-1] == "t.csv: names 980 more files that were not given"
    many = {f"{number}.csv": b"file,label\na.png,ALL\n" for number in range(5)}
    with pytest.raises(LeukoscopeError, match="5 CSVs were given; at most 4 belong to one batch"):
        open_batch([pack(tmp_path / "cells.zip", {"a.png": png(), **many})])
    with pytest.raises(LeukoscopeError, match=r"t.csv: holds more than 20,000 rows"):
        open_batch([pack(tmp_path / "cells.zip", {"a.png": png(), "t.csv": b"file,label\n" + b"a,ALL\n" * 20_001})])
    with pytest.raises(LeukoscopeError, match=r"t.csv: holds more than 20,000 rows"):
        open_batch([pack(tmp_path / "cells.zip", {"a.png": png(), "t.csv": b"file,label\r" + b"a,ALL\r" * 20_001})])
    with pytest.raises(LeukoscopeError, match=r"holds x{60}…, a name of 304 letters; at most 255 are read"):
        open_batch([pack(tmp_path / "cells.zip", {"x" * 300 + ".png": png()})])


def test_an_upload_that_is_gone_is_to_be_sent_again(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"^cells.zip: is no longer here; send it again"):
        open_batch([str(tmp_path / "cells.zip")])


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(LeukoscopeError, match="3 files were given; at most 2 fit in one batch: split it"):
        open_batch([str(tmp_path / name) for name in "abc"])


def test_loose_files_are_bounded_together_and_none_is_read_to_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(11):
        with (tmp_path / f"{number}.png").open("wb") as file:
            file.truncate(19 * 2**20)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path.name} was read"))
    paths = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    assert len(open_batch(paths[:10]).files) == 10
    with pytest.raises(LeukoscopeError, match="^11 files of 209 MB were given; at most 200 MB fit in one batch: split"):
        open_batch(paths)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name,label\na.png,ALL\n", "has no column of image paths"),
        (b"file\na.png\n", "names neither a subject nor a label; give a header with the columns file,subject"),
        (b"", "is empty; give a header with the columns file,subject"),
        (b"\xff\x00\x00", "is no text; export the table as CSV"),
    ],
)
def test_a_csv_without_the_columns_says_what_it_needs(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(LeukoscopeError, match=f"labels.csv: {said}"):
        open_batch([str(tmp_path / "labels.csv")])


def test_subjects_come_from_names() -> None:
    names = ["UID_H12_1_2_hem.bmp", "UID_7_1_1_all.bmp", "other.bmp"]
    found = subjects_of(names, r"^UID_(H?\d+)_", {"other.bmp": "3"})
    assert list(found.values()) == ["H12", "7", "3"]
    assert set(subjects_of(names, "", {}).values()) == {""}
    found = subjects_of(["ALL_P01_1.png", "HEM_P02_1.png", "HEM.png"], r"(ALL|HEM)(?:_(?P<subject>P\d+))?", {})
    assert list(found.values()) == ["P01", "P02", ""], "the group `subject`, as on the command line"
    assert list(subjects_of(["P1_2.png"], r"P\d", {}).values()) == ["P1"]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "give a regular expression such as"),
        ("a" * 201, "pattern of 201 letters; give one of at most 200"),
        (r"^(\w|\w\w)+!$", "takes too long; give one without nested repeats"),
    ],
)
def test_a_bad_pattern_is_refused_in_time(pattern: str, problem: str) -> None:
    with pytest.raises(LeukoscopeError, match=problem):
        subjects_of(["a" * 60 + "-!"], pattern, {})


def row(name: str, truth: str, p_all: float, subject: str = "", ood_score: float = 0.1) -> BatchRow:
    shares = {"ALL": p_all, "HEM": 1 - p_all}
    checks = Checks(ood_score=ood_score)
    decision = Thresholds().decide(shares, checks)
    return BatchRow(name, truth, subject, decision, shares, checks, png(8))


DATA = {"name": "cnmc2019", "title": "C-NMC", "citation": "Gupta (2019)", "licence": "CC BY 3.0"}
DECISIONS = {"operating_points": {"positive_label": "ALL", "points": {"youden": {"threshold": 0.4}}}}
RESULT = BatchResult(
    rows=(row("a", "ALL", 0.9, "1"), row("b", "ALL", 0.2, "1"), row("=c", "HEM", 0.99, "2"), row("d", "HEM", 0.1, "2")),
    classes=("ALL", "HEM"), model="tiny", revision="", problems=("x: is bad",),
    metrics={"data": DATA, "training": {"subjects": ["2"]}, "decisions": DECISIONS},
)  # fmt: skip


def test_what_is_wrong_comes_surest_first_and_figures_are_right() -> None:
    assert [wrong.name for wrong in wrong_rows(RESULT)] == ["=c", "b"]
    measured = label_metrics(RESULT)
    assert measured is not None
    assert dict((name, value) for name, value, _ in measured.rows)["accuracy"] == "0.500"
    assert measured.notes[0].startswith("The model was trained on subjects called 2: if")


def test_a_trained_subject_is_known_under_its_other_ids() -> None:
    rows = tuple(replace(row, subject={"1": "78", "2": "H24"}[row.subject]) for row in RESULT.rows)
    measured = label_metrics(
        replace(RESULT, rows=rows, metrics={"data": DATA, "training": {"subjects": ["51", "H14"]}})
    )
    assert measured is not None
    assert measured.notes[0].startswith("The model was trained on subjects called 78, H24: if")
    assert subject_rows(RESULT) == [("1", 2, 2, 1, 1, "0.550"), ("2", 2, 2, 1, 1, "0.545")]


def test_subjects_of_the_release_that_it_was_fine_tuned_from_are_known_too() -> None:
    earlier = {"name": "cnmc2019", "fingerprint": "a", "unit": "subject", "subjects": ["51"]}
    training = {"subjects": ["2"], "started_from": {"seen": [earlier]}}
    rows = tuple(replace(row, subject={"1": "78", "2": "2"}[row.subject]) for row in RESULT.rows)
    own = {"name": "imagefolder", "title": "own"}
    measured = label_metrics(replace(RESULT, rows=rows, metrics={"data": own, "training": training}))
    assert measured is not None
    assert (
        measured.notes[0]
        == "The model was trained on subjects called 2, 78: if these are the same, the results are too good."
    )
    other = tuple(replace(row, subject="9") for row in RESULT.rows)
    measured = label_metrics(replace(RESULT, rows=other, metrics={"training": training}))  # a stranger's, without data
    assert measured is not None and not any("too good" in note for note in measured.notes)


def test_cells_without_a_subject_are_told_about_in_the_page_s_own_terms() -> None:
    measured = label_metrics(replace(RESULT, rows=tuple(replace(one, subject="") for one in RESULT.rows)))
    assert measured is not None
    assert measured.notes[-1].endswith(
        "(not every cell has a subject: give a pattern that finds it, a folder for each, or a CSV)."
    )
    assert not any("--" in note for note in measured.notes)
    assert subjects_found(["", ""]) == "No subjects: the names suggest none."


def test_without_labels_nothing_is_measured() -> None:
    assert label_metrics(replace(RESULT, rows=tuple(replace(one, truth="") for one in RESULT.rows))) is None


def test_the_page_says_it_all_and_escapes_names() -> None:
    hostile = replace(RESULT, rows=(*RESULT.rows, row("<script>", "ALL", 0.3)), problems=("<img>: is bad",))
    page = batch_answer(hostile) + batch_picture(hostile, "most")
    assert "<script>" not in page and "<img>" not in page
    assert "Wrong, the most confident first (3)" in page and "1 not used" in page


def test_cells_without_a_class_are_counted_as_such_and_no_probability_stands_beside_them() -> None:
    foreign = replace(RESULT, rows=(*RESULT.rows, row("blank", "", 0.97, "2", ood_score=7.5)))
    page = batch_answer(foreign)
    for outcome, count in {"ALL": 2, "HEM": 2, "unlike its cells": 1}.items():
        assert f"<dt>{outcome}</dt><dd>{count}</dd>" in page
    cells = batch_picture(foreign, "ood").split("<li")[1:]
    assert "<b>unlike its cells</b>" in cells[0] and "97" not in cells[0]
    assert "<b>ALL 90\u00a0%</b>" in cells[1]
    assert subject_rows(foreign)[1] == ("2", 3, 2, 1, 1, "0.687")


@pytest.mark.parametrize(("order", "first"), [("most", "=c"), ("least", "b"), ("names", "=c")])
def test_the_gallery_is_sorted(order: str, first: str) -> None:
    assert min(RESULT.rows, key=ORDERS[order][1]).name == first


def test_files_to_keep_hold_every_answer_and_no_formula() -> None:
    table = pyarrow.csv.read_csv(io.BytesIO(save_cells(RESULT).content))
    assert table["p_ALL"].to_pylist() == [0.9, 0.2, 0.99, 0.1]
    assert table["positive_youden"].to_pylist() == [True, False, True, False]
    assert table["outcome"].to_pylist() == ["ALL", "HEM", "ALL", "HEM"]
    assert table["label"].to_pylist() == ["ALL", "ALL", "HEM", "HEM"], "the truth that was given"
    assert table["ood_score"].to_pylist() == [0.1] * 4
    assert table["file"].to_pylist() == ["a", "b", "'=c", "d"]
    assert set(table["notice"].to_pylist()) == {RESEARCH_NOTICE}


def test_a_file_says_why_a_cell_has_no_class() -> None:
    rows = (row("a", "", 0.9), row("b", "", 0.9, ood_score=7.5))
    said = pyarrow.csv.read_csv(io.BytesIO(save_cells(replace(RESULT, rows=rows)).content)).to_pylist()
    assert [(one["outcome"], one["reasons"], one["ood_score"]) for one in said] == [
        ("ALL", "", 0.1), ("out of distribution", "ood_colour", 7.5),
    ]  # fmt: skip
    assert not {"verdict", "guard_score"} & set(said[0])


@pytest.fixture
def endpoint(tiny_release: Path) -> Callable[..., Any]:
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    (found,) = (block.fn for block in demo.fns.values() if block.api_name == "batch")
    assert found is not None
    return found


def test_a_labelled_zip_is_answered_and_deleted(
    endpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    files = {}
    for label in ("ALL", "HEM"):
        for cell in range(3):
            buffer = io.BytesIO()
            Image.fromarray(draw_cell(label, subject=cell, cell=0).image).save(buffer, "PNG")
            files[f"{label}/s{cell}_{label}.png"] = buffer.getvalue()
    files |= {"ALL/broken.png": b"no picture", "truth.csv": b"file,label\ns0_HEM.png,healthy\n"}
    path = pack(upload_folder(tmp_path) / "cells.zip", files)
    answer = endpoint([path], "tiny", r"s(\d)_")
    assert [cell["file"] for cell in answer["cells"]] == list(files)[:6]
    assert [cell["label"] for cell in answer["cells"]] == ["ALL"] * 3 + ["", "HEM", "HEM"]
    # A release without detector and thresholds gives every picture its most probable class.
    for cell in answer["cells"]:
        assert cell["outcome"] == ("ALL" if cell["p_ALL"] >= cell["p_HEM"] else "HEM")
        assert (cell["reasons"], cell["ood_score"]) == ("", None)
    assert [line[0] for line in answer["subjects"]] == ["0", "1", "2"]
    assert "accuracy" in dict((name, value) for name, value, _ in answer["figures"])
    assert any(note.startswith("ALL/broken.png: is not an image") for note in answer["notes"])
    assert "truth.csv: label 'healthy' is none of ALL, HEM" in answer["notes"]
    assert answer["notice"] == RESEARCH_NOTICE
    assert not Path(path).exists()


def test_a_large_picture_within_a_zip_is_not_decoded(endpoint: Callable[..., Any], tmp_path: Path) -> None:
    answer = endpoint([pack(tmp_path / "cells.zip", {"wide.png": png(3000), "a.png": png()})], "tiny")
    assert [cell["file"] for cell in answer["cells"]] == ["a.png"]
    assert answer["notes"] == [
        "wide.png: is 3000×3000 pixels, more than the 8 megapixels read here; crop it to its cells first"
    ]


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
    path = pack(tmp_path / "cells.zip", {f"{n}.png": cell_png(n) for n in range(20)})
    first, second, result = predict_batch(ModelCache({"tiny": tiny_release}), open_batch([path]), "tiny", "")
    assert (first, second) == (16, 20)
    assert isinstance(result, BatchResult) and len(result.rows) == 20
    assert "16 of 20 pictures predicted, about 1 s left." in progress(16, 20, 4.0, "")
    assert "0 of 20 pictures predicted." in progress(0, 20, 0.0, "")
    assert "20 of 20 pictures predicted." in progress(20, 20, 4.0, ""), "no time is left"


# Subjects

RULE = {
    "positive_label": "ALL",
    "rule": {"pooling": "mean", "coefficients": [1.0], "intercept": 0.0},
    "least_cells": 2,
    "measured": {
        "subjects": 41,
        "auroc": {"value": 0.9, "low": 0.8, "high": 1.0},
        "sensitivity": {"share": 0.9, "low": 0.8, "high": 1.0, "right": 26, "of": 28},
        "specificity": {"share": 0.9, "low": 0.8, "high": 1.0, "right": 11, "of": 13},
        "error_rate": {"share": 0.05, "low": 0.01, "high": 0.2},
    },
}


def test_subjects_are_told_apart_and_their_cells_drawn_with_those_refused_in_grey() -> None:
    rows = (*RESULT.rows, row("e", "", 0.5, "1", ood_score=3.0))
    result = replace(RESULT, rows=rows, metrics={"subject_rule": RULE, "data": DATA, "decisions": DECISIONS})
    first, second = result.subject_predictions
    assert (first.subject, first.cells, first.refused, second.subject) == ("1", 3, 1, "2")
    page = batch_picture(result)
    assert page.count("<svg") == 2
    # A dot opens the cell of its number, counted over the whole batch.
    numbers = sorted(int(number) for number in re.findall(r'<circle data-act="cell:(\d+)"', page))
    assert numbers == list(range(5))
    assert [page.count(f'fill="{ink}"') for ink in ("#d55e00", "#0072b2", "#85858b")] == [2, 2, 1]
    assert subject_text(result, "1") == (
        "3 cells: 1 ALL, 1 HEM, 0 without a class, 1 refused. Of 2 given a class, 1 right."
    )
    # No class between 20 and 80 %.
    assert "lk-zone" not in page
    unsure = {**DECISIONS, "abstention": {"default": {"threshold": 0.8}}}
    assert batch_picture(replace(result, metrics={**result.metrics, "decisions": unsure})).count("lk-zone") == 2


def test_too_few_cells_of_a_subject_have_no_figure() -> None:
    given = (row("a", "", 0.99, "1"), row("b", "", 0.9, "2"), row("c", "", 0.9, "2"))
    rows = tuple(replace(one, picture=png()) for one in given)
    result = replace(RESULT, rows=rows, metrics={"subject_rule": RULE, "data": DATA, "decisions": DECISIONS})
    few, enough = result.subject_predictions
    assert (few.outcome, enough.outcome) == ("too few cells", "ALL")
    page, table = batch_answer(result), save_subjects(result).content.decode().splitlines()
    line = '<th scope="row">1</th><td>too few cells</td><td>1</td><td>0</td><td>0</td><td>0</td><td>–</td>'
    assert line in page and f"<td>{enough.probability:.3f} (" in page
    assert few.probability is not None and f"{few.probability:.2f}" not in table[1]
    assert (few.to_dict()["p_ALL"], few.to_dict()["low"], few.to_dict()["high"]) == (None, None, None)


def test_a_smear_among_cells_is_said_to_be_one_and_what_to_do(tmp_path: Path) -> None:
    models, image = ModelCache({"cnmc": EMBEDDED / "leukoscope-densenet169-cnmc"}), example_smear().image
    image.save(buffer := io.BytesIO(), "PNG")
    path = pack(tmp_path / "cells.zip", {"smear.png": buffer.getvalue(), "cell.png": cell_png(1)})
    *_, result = predict_batch(models, open_batch([path]), "cnmc", "")
    assert isinstance(result, BatchResult)
    (smear,) = (row for row in result.rows if row.name == "smear.png")
    alone = ask(Picture(image, "smear.png"), models, "cnmc").decision()
    assert (smear.decision.outcome, smear.decision.reasons) == (alone.outcome, alone.reasons)
    said = "smear.png: shows a smear, no single cell cut out on black; give it alone, and its cells are found"
    assert result.problems == (said,) and said in batch_answer(result)


@pytest.mark.parametrize(
    ("names", "pattern", "subjects"),
    [
        (["ALL/UID_1_2_1_all.bmp", "ALL/UID_1_3_1_all.bmp", "HEM/UID_H2_1_hem.bmp", "HEM/UID_H2_2_hem.bmp"],
         r"UID_(H?\d+)_", ["1", "H2"]),
        (["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png"], r"(?:^|/)([^/]*\d[^/]*)/[^/]+$", ["p1", "p2"]),
        (["ALL/P01_a.png", "ALL/P01_b.png", "HEM/P02-1.png", "HEM/P02-2.png"],
         r"(?:^|/)([A-Za-z]+[-_ ]?\d+)[-_ .][^/]*\.[^/.]+$", ["P01", "P02"]),
        (["1a_1.png", "1a_2.png", "2-1.png", "2-2.png"], r"(?:^|/)([^/_-]*\d[^/_-]*)[_-][^/]*$", ["1a", "2"]),
        (["ALL/P1/1.png", "ALL/P1/2.png", "HEM/P2/3.png", "HEM/P2/4.png"], r"(?:^|/)([^/]*\d[^/]*)/[^/]+$",
         ["P1", "P2"]),
        (["ALL/1.png", "ALL/2.png", "HEM/3.png", "HEM/4.png"], "", []),
        (["ALL_1.png", "ALL_2.png", "HEM_1.png", "HEM_2.png"], "", []),
        (["blast_P1_1.png", "blast_P1_2.png", "normal_P2_1.png", "normal_P2_2.png"], "", []),
        (["L1/1.png", "L1/2.png", "l2/3.png", "l2/4.png"], "", []),
        (["fold_0/1.png", "fold_0/2.png", "fold_1/3.png", "fold_1/4.png"], "", []),
        (["ALL/cell_1.png", "ALL/cell_2.png", "HEM/cell_1.png", "HEM/cell_2.png"], "", []),
        (["a.png"], "", []),
        # Names without a digit, in folders; one folder is one subject.
        (["Anna Schmidt/1.png", "Anna Schmidt/2.png", "Ben/1.png", "Ben/2.png"], r"(?:^|/)([^/]+)/[^/]+$",
         ["Anna Schmidt", "Ben"]),
        (["ALL/Anna/1.png", "ALL/Anna/2.png"], r"(?:^|/)([^/]+)/[^/]+$", ["Anna"]),
        (["P7/1.png", "P7/2.png"], r"(?:^|/)([^/]*\d[^/]*)/[^/]+$", ["P7"]),
        # One subject of C-NMC 2019: the release that knows it can say so.
        (["UID_H24_10_1_hem.bmp", "UID_H24_10_2_hem.bmp"], r"UID_(H?\d+)_", ["H24"]),
        (["train/1.png", "train/2.png", "test/3.png", "test/4.png"], "", []),
        (["healthy/1.png", "healthy/2.png", "Leukemia/3.png", "Leukemia/4.png"], "", []),
        (["images/1.png", "images/2.png"], "", []),
    ],
)  # fmt: skip
def test_a_pattern_is_suggested_from_the_names(names: list[str], pattern: str, subjects: list[str]) -> None:
    assert suggested_pattern(names, ("ALL", "HEM", "L1", "L2")) == pattern
    found = subjects_of(names, pattern, {})
    assert sorted(set(found.values()) - {""}) == subjects
    said = subjects_found(list(found.values()))
    assert said.startswith(f"Subjects: {len(subjects)}. " if subjects else "No subjects: the names suggest none.")


def test_a_picture_is_kept_as_it_was_given(tiny_release: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "cells.zip", {"a.png": cell_png(1)})
    result = predict_files(ModelCache({"tiny": tiny_release}), [path], "tiny", "")
    assert np.array_equal(np.asarray(result.rows[0].open()), np.asarray(Image.open(io.BytesIO(cell_png(1)))))


@pytest.mark.parametrize(("folder", "subject"), [("", "Anna Schmidt"), ("P7/", "P7"), ("ALL/", "Anna Schmidt")])
def test_a_zip_of_one_subject_s_cells_gives_one_prediction(
    tiny_release: Path, tmp_path: Path, folder: str, subject: str
) -> None:
    path = pack(tmp_path / "Anna Schmidt.zip", {f"{folder}{n}.png": cell_png(n) for n in range(4)})
    batch, models = open_batch([path]), ModelCache({"tiny": tiny_release})
    pattern = suggested_pattern([file.name for file in batch.files], ("ALL", "HEM"))
    *_, result = predict_batch(models, batch, "tiny", pattern)
    assert isinstance(result, BatchResult) and {row.subject for row in result.rows} == {subject}
    (prediction,) = replace(result, metrics={"subject_rule": RULE, "data": DATA}).subject_predictions
    assert prediction.cells == 4


def test_a_zip_of_two_classes_is_no_subject(tiny_release: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "cells.zip", {f"{label}/{n}.png": cell_png(n) for n, label in enumerate(("ALL", "HEM") * 2)})
    *_, result = predict_batch(ModelCache({"tiny": tiny_release}), open_batch([path]), "tiny", "")
    assert isinstance(result, BatchResult) and {row.subject for row in result.rows} == {""}


def test_subjects_that_may_have_trained_the_model_are_marked() -> None:
    metrics = {"subject_rule": RULE, "data": {**DATA, "name": "cnmc2019"}, "decisions": DECISIONS,
               "training": {"subjects": ["1"]}}  # fmt: skip
    result = replace(RESULT, metrics=metrics)
    assert result.trained_on == {"1"}
    page = batch_answer(result)
    assert "1 (in training?)" in page and "2 (in training?)" not in page
    assert "trained on subjects called 1: if these are the same, the results are too good" in page


def test_a_suggested_pattern_gives_way_to_that_of_the_next_files(tiny_release: Path) -> None:
    def found(names: Sequence[str], pattern: str) -> str:
        given = Batch([BatchFile(name, lambda: cell_png(0)) for name in names])
        return str(next(reading_batch(ModelCache({"tiny": tiny_release}), given, "tiny", pattern)))

    folders, names = r"(?:^|/)([^/]*\d[^/]*)/[^/]+$", [f"ALL/UID_{one}_{n}_1_all.bmp" for one in (1, 2) for n in (1, 2)]
    assert "Subjects: 2. p1 (2), p2 (2)" in found([f"p{one}/{n}.png" for one in (1, 2) for n in (1, 2)], "")
    assert "Subjects: 2. 1 (2), 2 (2)" in found(names, folders), "C-NMC's own names"
    assert "Subjects: 2. UID (2)" not in found(names, r"(\d)_1_all"), "a visitor's own pattern stays"
    assert "No subjects" in found(["a.png"], folders)


def test_a_batch_waits_for_two_others(tiny_release: Path) -> None:
    given = Batch([BatchFile(f"{n}.png", partial(cell_png, n)) for n in range(2)])
    assert batch._line.acquire() and batch._line.acquire()
    steps = reading_batch(ModelCache({"tiny": tiny_release}), given, "tiny")
    assert "0 of 2 pictures predicted" in str(next(steps)) and "0 of 2" in str(next(steps))
    batch._line.release()
    *_, last = steps
    assert isinstance(last, BatchResult)
    assert batch._line.acquire(blocking=False), "the next one may begin"
    for _ in range(2):
        batch._line.release()


def test_a_picture_that_was_not_kept_is_told_and_files_need_subjects() -> None:
    with pytest.raises(LeukoscopeError, match=r"64 MB of pictures are kept, and this one is not among them; send this"):
        replace(RESULT.rows[0], picture=b"").open()
    with pytest.raises(LeukoscopeError, match="no subject is known"):
        save_subjects(replace(RESULT, metrics={}))


def test_the_sample_holds_two_subjects_whom_the_suggested_pattern_finds() -> None:
    names = [file.name for file in sample_batch().files]
    found = subjects_of(names, suggested_pattern(names, ("ALL", "HEM")), {})
    assert sorted(set(found.values())) == ["synthetic-1", "synthetic-2"]
    assert len(names) == 2 * SAMPLE_CELLS
    needed = json.loads((EMBEDDED / "leukoscope-densenet169-cnmc" / "metrics.json").read_text())["subject_rule"]
    assert needed["least_cells"] < SAMPLE_CELLS, "a few of them may be refused"
    assert Image.open(io.BytesIO(sample_batch().files[0].read())).size[0] > 64
