"""Ids of subjects: one person under two spellings, and several people under one, are refused by every reader."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import datasets
import pytest
from PIL import Image

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.subject_ids import check_subject_ids, subject_key
from leukoscope.evaluation.overlap import same_subject
from leukoscope.inference.scoring import open_source

PAIRS = [("12", "12.0"), ("001", "1"), ("12", "12,0"), ("7", "+7"), ("12", "１２"), ("0.50", "0.5")]
DIFFERENT = ["12", "13", "P12", "P012", "2E5", "200000", "1-2", "1.2.3", "12a", "H12", "1234567890123456789",
             "1234567890123456788", "2E-5", "0"]  # fmt: skip


def _places(*subjects: str) -> dict[str, str]:
    return {subject: f"row {number}" for number, subject in enumerate(subjects, start=2)}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_spellings_of_one_number_are_refused_with_both(one: str, other: str) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        check_subject_ids(_places(one, "P3", other), "cells.csv")
    assert str(refused.value) == (
        f"cells.csv: subjects {one!r} (row 2) and {other!r} (row 4) are the same number; write the id of one person in "
        "one way, and add a letter to the ids of different people (P12)"
    )


def test_different_ids_are_different_subjects() -> None:
    """Ids of 17 and more digits are not rounded; a ward called 2E5 is no number."""
    check_subject_ids(_places(*DIFFERENT), "cells.csv")
    assert subject_key("012") == Decimal(12) and subject_key("2E5") == "2E5"
    assert same_subject("owner/cells", "12") == same_subject("owner/cells", "12.0")


@pytest.mark.parametrize("subject", ["1.67683E+15", "1,67683E+15", "1.67683e+15", "1E+15", "1.2E-05"])
def test_an_id_in_a_spreadsheets_scientific_form_is_refused_with_the_fix(subject: str) -> None:
    with pytest.raises(LeukoscopeError, match="row 2.* is in scientific form.*format the column as text in the spread"):
        check_subject_ids(_places(subject), "cells.csv")


TRAIN, TEST = ("ALL", "HEM"), ("HEM", "ALL")


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
    return lambda: load_cells("imagefolder", root)


def _pattern(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, f"ALL/{one}_0.png", f"HEM/{other}_1.png")
    return lambda: load_cells("imagefolder", root, subject_pattern="(?P<subject>[^/]+)_")


def _scored_pattern(root: Path, one: str, other: str) -> Callable[[], object]:
    _pattern(root, one, other)
    return lambda: open_source(str(root), subject_pattern="(?P<subject>[^/]+)_")


def _people(root: Path, one: str, other: str) -> Callable[[], object]:
    place(root, f"{one}/0.png", f"{other}/1.png")
    source = open_source(str(root))
    return lambda: source.subjects(("ALL", "HEM"))


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


READERS = [_two_tables, _one_table, _scored_table, _folders, _pattern, _scored_pattern, _people, _hub, _parquet]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__.strip("_"))
def test_every_reader_refuses_one_person_under_two_spellings(
    tmp_path: Path, reader: Callable[[Path, str, str], Callable[[], object]]
) -> None:
    """12 and 12.0 stood in training and in test."""
    with pytest.raises(LeukoscopeError, match=r"subjects '12(\.0)?' \(.*\) and '12(\.0)?' \(.*\) are the same number"):
        reader(tmp_path / "a", "12", "12.0")()
    with pytest.raises(LeukoscopeError, match=r"subject '1.67683E\+15' \(.*\) is in scientific form"):
        reader(tmp_path / "b", "1.67683E+15", "P2")()
    reader(tmp_path / "c", "2E5", "200000")()


def test_an_alias_may_join_two_spellings(tmp_path: Path) -> None:
    load = _hub(tmp_path / "hub", "12", "12.0")
    (tmp_path / "hub" / "README.md").write_text('---\nleukoscope:\n  subject_aliases: {"12.0": "12"}\n---\n')
    load()
