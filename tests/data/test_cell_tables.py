"""Tables as laboratories export them: every reader gives the same cells to the same subjects, or the same refusal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from drawn import place, save_cell
from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import read_table
from leukoscope.data.loading import load_cells
from leukoscope.data.subject_ids import subject_name
from leukoscope.inference.scoring import open_source

PLAIN = {
    "ALL/P00_0.bmp": "P00",
    "ALL/P00_1.bmp": "P00",
    "ALL/P01_2.bmp": "P01",
    "HEM/P10_0.bmp": "P10",
    "HEM/P10_1.bmp": "P10",
    "HEM/P11_2.bmp": "P11",
}
_ROWS = [(file, subject, file[:3]) for file, subject in PLAIN.items()]


def table(*header: str, separator: str = ",", end: str = "\n", edit: Callable[[str], str] = str) -> str:
    """The plain table, its entries changed by `edit`."""
    lines = [header, *([edit(entry) for entry in row[: len(header)]] for row in _ROWS)]
    return end.join(separator.join(line) for line in lines) + end


COLUMNS = ("file", "subject", "label")
# What is read as the plain table.
READ: Mapping[str, str | bytes] = {
    "plain": table(*COLUMNS),
    "byte-order mark": table(*COLUMNS).encode("utf-8-sig"),
    "UTF-16": table(*COLUMNS, separator="\t").encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + table(*COLUMNS).encode("utf-16-be"),
    "semicolons": table(*COLUMNS, separator=";"),
    "tabs": table(*COLUMNS, separator="\t"),
    "Windows lines and paths": table(*COLUMNS, end="\r\n", edit=lambda one: one.replace("/", "\\")),
    "CR only": table(*COLUMNS, end="\r"),
    "header with blanks": table("file", " subject ", " label"),
    "Patient ID": table("File Name", "Patient ID"),
    "donor": table("image", "Donor", "class"),
    "Label Studio": table(
        "image", "subject", "choice", edit=lambda one: f"/data/local-files/?d={one}" if "/" in one else one
    ),
    "uploaded": table("image", "subject", edit=lambda one: one.replace("ALL/", "http://h/data/upload/7/1a2b3c4d-ALL/")),
    "blanks": table("file", "subject", edit=lambda one: f"{one} "),
    "no-break spaces": table("file", "subject", edit=lambda one: f"\xa0{one}\xa0"),
    "quotes": table('"file"', '"subject"', '"label"', edit=lambda one: f'"{one}"'),
    "dot slash": table("file", "subject", edit=lambda one: f"./{one}" if "/" in one else one),
    "no suffix": table("file", "subject", edit=lambda one: one.removesuffix(".bmp")),
    "index column": "".join(
        f"{number},{line}\n" if number else f",{line}\n" for number, line in enumerate(table(*COLUMNS).splitlines())
    ),
    "comment": "# exported 2024\n\n" + table(*COLUMNS),
    "blank rows": table(*COLUMNS) + "\n,,\n\n",
    "rows twice": table(*COLUMNS) + "".join(table(*COLUMNS).splitlines(keepends=True)[1:3]),
}
# What is refused, and what every reader says.
REFUSED: Mapping[str, tuple[str | bytes, str]] = {
    "no header": (table(*COLUMNS).partition("\n")[2], "has no header, its first row is"),
    "header twice": (table("file", "subject", "Subject"), "its columns 'subject' and 'Subject' both name the subject"),
    "two kinds of subject": (table("file", "subject", "patient"), "its columns 'subject' and 'patient' both name"),
    "no subject": (table("file"), "names n(o|either a) subject"),
    "ID is no subject": (table("file", "ID"), "names n(o|either a) subject"),
    "one is nan": (table("file", "subject").replace("bmp,P01", "bmp,nan"), "row 4 names no subject for 'ALL/P01_2"),
    "two subjects": (table("file", "subject") + "ALL/P00_0.bmp,P01\n", "'P00' (row 2) and with 'P01' (row 8)"),
    "two labels": (table(*COLUMNS) + "ALL/P00_0.bmp,P00,HEM\n", "'ALL' (row 2) and with 'HEM' (row 8)"),
    "no such file": (table("file", "subject") + "ALL/gone.bmp,P00\n", "row 8: no such file 'ALL/gone.bmp' below"),
    "a comma too many": (table("file", "subject") + "ALL/P00_0.bmp,Doe, A.\n", "row 8 has 3 entries, the header 2"),
    "a row without file": (table("file", "subject") + ",P00\n", "row 8 names no file"),
    "header only": ("file,subject\n", "has a header and no row"),
    "nothing": ("", "is empty"),
    "a spreadsheet": (b"PK\x03\x04" + bytes(20), "is no text"),
    "names of another list": ("Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\n", "has no (column|header)"),
}


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """The plain table's pictures, a class a folder, all different."""
    for number, name in enumerate(PLAIN):
        save_cell(tmp_path / "cells" / name, name[:3], cell=number)
    return tmp_path / "cells"


def scored(cells: Path, content: bytes) -> dict[str, str]:
    (cells / "table.csv").write_bytes(content)
    read = open_source(str(cells / "table.csv")).cells
    found = {os.path.relpath(cell.file, cells): cell.subject for cell in read}
    if not all(found.values()):  # `patient` and `--by_subject` say so: tests/cli/test_score_patient.py
        raise LeukoscopeError("names no subject")
    return found


def loaded(cells: Path, content: bytes) -> dict[str, str]:
    (cells.parent / "table.csv").write_bytes(content)
    train = load_cells("imagefolder", cells, labels=cells.parent / "table.csv").train
    return {f"{cell}.bmp": subject for cell, subject in zip(train["cell_id"][:], train["subject"][:], strict=True)}


READERS = {"patient": scored, "--labels": loaded}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", READ)
def test_every_reader_gives_each_cell_to_its_subject(cells: Path, reader: str, name: str) -> None:
    content = READ[name]
    assert READERS[reader](cells, content if isinstance(content, bytes) else content.encode()) == PLAIN


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", REFUSED)
def test_every_reader_refuses_what_could_give_a_wrong_subject(cells: Path, reader: str, name: str) -> None:
    content, said = REFUSED[name]
    pattern = re.sub(r"\(row (\d)\)", r"\(row \1\)", said)
    with pytest.raises(LeukoscopeError, match=pattern):
        READERS[reader](cells, content if isinstance(content, bytes) else content.encode())


def test_umlauts_are_one_name_however_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for encoding in ("utf-8", "utf-16", "cp1252"):
        (tmp_path / "t.csv").write_bytes("file,subject\nä.png,Müller\n".encode(encoding))
        (row,) = read_table(tmp_path / "t.csv").rows
        assert (row.file, row.subject) == ("ä.png", "Müller")
        assert ("was read as Windows-1252" in capsys.readouterr().err) == (encoding == "cp1252")
    assert subject_name(normalize("NFD", "Müller")) == "Müller"


@pytest.mark.parametrize("suffix", [".png", ""])
def test_a_file_is_found_in_another_unicode_form(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / normalize("NFD", "zähl.png"))
    (tmp_path / "t.csv").write_text(f"file,subject\n{normalize('NFC', 'zähl')}{suffix},P1\n", encoding="utf-8")
    source = open_source(str(tmp_path / "t.csv"))
    assert [Path(cell.file).is_file() for cell in source.cells] == [True]


def test_a_folder_that_both_unicode_forms_name_holds_each_picture_once(tmp_path: Path) -> None:
    """As a Mac's disk finds it; here a link stands for that."""
    place(tmp_path / normalize("NFC", "Jörg"), "1.png")
    (tmp_path / normalize("NFD", "Jörg")).symlink_to(tmp_path / normalize("NFC", "Jörg"))
    (tmp_path / "t.csv").write_text(f"file,subject\n{normalize('NFC', 'Jörg')}/1,P1\n", encoding="utf-8")
    (cell,) = open_source(str(tmp_path / "t.csv")).cells
    assert Path(cell.file).is_file()


@pytest.mark.parametrize("reader", READERS)
def test_a_name_without_suffix_that_fits_two_files_is_refused(cells: Path, reader: str) -> None:
    (cells / "ALL/P00_0.PNG").write_bytes((cells / "ALL/P00_0.bmp").read_bytes())
    said = r"row 2: 'ALL/P00_0' may be ALL/P00_0\.PNG or ALL/P00_0\.bmp; add its suffix"
    with pytest.raises(LeukoscopeError, match=said):
        READERS[reader](cells, b"file,subject\nALL/P00_0,P00\n")


def test_subjects_that_differ_in_case_only_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("file,subject\na.png,anna\nb.png,ANNA\nc.png,zoe\nd.png,ZOE\n")
    read_table(tmp_path / "t.csv")
    said = capsys.readouterr().err
    assert said.endswith("subjects 'ANNA' and 'anna' differ in case only; they count as two\n")
    assert said.count("differ in case only") == 1, "one is told, not all"


@pytest.mark.parametrize("value", [None, "", "  ", "nan", "NaN", "None", "null", "\xa0"])
def test_what_names_nobody_is_no_subject(value: str | None) -> None:
    assert subject_name(value) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((content, "holds no lines of JSON") for content in ("{", "[1]", "[" * 100_000)),
        ('{"file": "a.png", "label": ["ALL", "HEM"]}', r"row 1 names 2 classes \('ALL, HEM'\)"),
    ],
)
def test_json_that_is_no_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(LeukoscopeError, match=said):
        read_table(tmp_path / "metadata.jsonl")
