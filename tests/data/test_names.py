"""Names: one person under two spellings, and several people under one, are refused by every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import datasets
import pytest
from PIL import Image

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.names import check_subject_ids, folded, side_named, subject_name
from leukoscope.data.reading import Reading
from leukoscope.data.table import read_visitor_table
from leukoscope.evaluation.overlap import same_subject
from leukoscope.inference.scoring import open_source
from leukoscope.split_check import check_split

SPELLINGS = [
    ("12", "12.0"), ("001", "1"), ("12", "12,0"), ("7", "+7"), ("12", "１２"), ("0.50", "0.5"), ("UID_1", "UID_001"),
    ('="001"', "001"), ("P01", "P1"), ("P01", "P01\u200b"), ("P-01", "p 1"), ("anna", "ANNA"),
    ("Ann-Marie", "ann marie"),
]  # fmt: skip
DIFFERENT = ["12", "13", "P12", "H12", "P1_2", "A1-01", "A10-1", "2E5", "200000", "1-2", "1.2.3", "12a",
             "1234567890123456789", "1234567890123456788", "0", "Jörg", "Jorg", "कि", "का"]  # fmt: skip


def _named(*subjects: str) -> list[tuple[str, str]]:
    return [(subject, f"row {number}") for number, subject in enumerate(subjects, start=2)]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_two_spellings_of_one_id_are_refused_with_both(one: str, other: str) -> None:
    """Those behind a prefix, in a spreadsheet's quotes and with an invisible sign were two people."""
    with pytest.raises(LeukoscopeError) as refused:
        check_subject_ids(_named(one, "", other, "P3", one), "cells.csv")
    assert str(refused.value) == (
        f"cells.csv: subjects {one!r} (row 2) and {other!r} (row 4) are two spellings of one id; write the id of one "
        "person in one way, and add a letter to the ids of different people (P12a)"
    )


def test_different_ids_are_different_subjects() -> None:
    """Ids of 17 and more digits are not rounded; a ward called 2E5 is no number."""
    check_subject_ids(_named(*DIFFERENT), "cells.csv")
    assert same_subject("owner/cells", "12") == same_subject("owner/cells", "12.0")


@pytest.mark.parametrize("subject", ["1.67683E+15", "1,67683E+15", "1.67683e+15", "1E+15", "1.2E-05"])
def test_an_id_in_a_spreadsheets_scientific_form_is_refused_with_the_fix(subject: str) -> None:
    with pytest.raises(LeukoscopeError, match="row 2.* is in scientific form.*format the column as text in the spread"):
        check_subject_ids(_named(subject), "cells.csv")


@pytest.mark.parametrize("entry", [None, "", "  ", "nan", "NaN", "None", "null", "\xa0"])
def test_what_names_nobody_is_no_subject(entry: str | None) -> None:
    assert subject_name(entry) == ""
    assert subject_name(normalize("NFD", "Müller")) == "Müller"


@pytest.mark.parametrize(
    ("word", "side"),
    [("Training set", "train"), ("train_data", "train"), ("VAL", "validation"), ("dev", "validation"),
     ("hold-out", "test"), ("Test_images", "test"), ("TestA", ""), ("tested", ""), ("", "")],
)  # fmt: skip
def test_words_that_name_a_side(word: str, side: str) -> None:
    assert side_named(word) == side


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [("ALL", "all", True), ("Zelle  a", "Zelle a", True), ("0", "0.0", True), ("00", "0", True), ("0", "1", False)],
)
def test_spellings_of_one_class(one: str, other: str, is_same: bool) -> None:
    assert (folded(one) == folded(other)) == is_same


def _two_tables(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, *(f"{side}/{number}.png" for side in ("train", "test") for number in range(2)))
    for side, subject in (("train", one), ("test", other)):
        (root / side / "metadata.csv").write_text(f"file_name,label,patient_id\n0.png,ALL,{subject}\n1.png,HEM,Z\n")
    return lambda: load_cells("imagefolder", root)


def _one_table(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, "0.png", "1.png")
    (root / "t.csv").write_text(f'file,label,subject\n0.png,ALL,"{one}"\n1.png,HEM,"{other}"\n', encoding="utf-8")
    return lambda: load_cells("imagefolder", root, labels=root / "t.csv")


def _scored_table(root: Path, one: str, other: str) -> Callable[[], object]:
    _one_table(root, one, other)
    return lambda: open_source(str(root / "t.csv"))


def _folders(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, f"ALL/{one}/0.png", f"HEM/{other}/1.png", "HEM/P7/2.png")
    return lambda: load_cells("imagefolder", root, subject_folders=True)


def _pattern(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, f"ALL/{one}_0.png", f"HEM/{other}_1.png")
    return lambda: load_cells("imagefolder", root, subject_pattern="(?P<subject>[^/]+)_")


def _scored_pattern(root: Path, one: str, other: str) -> Callable[[], object]:
    _pattern(root, one, other)
    return lambda: open_source(str(root), Reading(subject_pattern="(?P<subject>[^/]+)_"))


def _people(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, f"{one}/0.png", f"{other}/1.png")
    return lambda: open_source(str(root), Reading(subject_folders=True))


def _hub(root: Path, one: str, other: str) -> Callable[[], object]:
    root.mkdir(parents=True)
    for side, subject in (("train", one), ("test", other)):
        rows = {"image": [Image.new("RGB", (16, 16))] * 2, "label": ["ALL", "HEM"], "patient": [subject, "Z"]}
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(root / f"{side}.parquet")
    return lambda: load_cells(str(root))


def _parquet(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, "0.png", "1.png")
    datasets.Dataset.from_dict({"file": ["0.png", "1.png"], "subject": [one, other]}).to_parquet(root / "t.parquet")
    return lambda: open_source(str(root / "t.parquet"))


def _split(root: Path, one: str, other: str) -> Callable[[], object]:
    root.mkdir()
    (root / "split.csv").write_text(f"file,patient_id,split\n0.png,{one},train\n1.png,{other},test\n")
    return lambda: check_split(root / "split.csv")


def _visitor(root: Path, one: str, other: str) -> Callable[[], object]:
    return lambda: read_visitor_table("t.csv", f"file,subject\n0.png,{one}\n1.png,{other}\n".encode())


READERS = [
    _two_tables,
    _one_table,
    _scored_table,
    _folders,
    _pattern,
    _scored_pattern,
    _people,
    _hub,
    _parquet,
    _split,
    _visitor,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__.strip("_"))
def test_every_reader_refuses_one_person_under_two_spellings(
    tmp_path: Path, reader: Callable[[Path, str, str], Callable[[], object]]
) -> None:
    """12 and 12.0 stood in training and in test; of a split that others published, no id was checked."""
    for number, (one, other) in enumerate((("12", "12.0"), ("P-01", "P1"))):
        with pytest.raises(LeukoscopeError, match=r"subjects '.*' \(.*\) and '.*' \(.*\) are two spellings of one id"):
            reader(tmp_path / f"a{number}", one, other)()
    with pytest.raises(LeukoscopeError, match=r"subject '1.67683E\+15' \(.*\) is in scientific form"):
        reader(tmp_path / "b", "1.67683E+15", "P2")()
    reader(tmp_path / "c", "2E5", "200000")()


def test_an_alias_may_join_two_spellings(tmp_path: Path) -> None:
    """Within one table, too: of C-NMC's people, h3 is H10 and H3 another."""
    load = _hub(tmp_path / "hub", "12", "12.0")
    (tmp_path / "hub" / "README.md").write_text('---\nleukoscope:\n  subject_aliases: {"12.0": "12"}\n---\n')
    load()
    rows = [f"UID_{who}_1_1_hem.bmp,{who},{side}" for who, side in (("h3", "train"), ("H3", "test"), ("H10", "test"))]
    (tmp_path / "split.csv").write_text("\n".join(["file,subject,split", *rows]))
    (crossing, *_) = check_split(tmp_path / "split.csv", "cnmc2019")["findings"]
    assert "1 of 2 subjects tested has other images in training, for example H10 = h3" in crossing["sentence"]
