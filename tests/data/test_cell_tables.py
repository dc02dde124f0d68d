"""Tables as laboratories export them: every reader gives the same cells to the same subjects, or the same refusal."""

from __future__ import annotations

import json
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
    "a spreadsheet": (b"PK\x03\x04" + bytes(20), "is not a text file"),
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


@pytest.mark.parametrize("reader", READERS)
def test_a_file_name_may_begin_with_a_hash(tmp_path: Path, reader: str) -> None:
    """Such rows were taken for comments: four of eight cells were missing."""
    names = ["#0.bmp", "1.bmp", "#2.bmp", "3.bmp"]
    root = place(tmp_path / "cells", *names)
    classes = ("ALL", "HEM")
    rows = [f"{name},P{number % 2},{classes[number % 2]}" for number, name in enumerate(names)]
    read = READERS[reader](root, "\n".join(["file,subject,label", *rows]).encode())
    assert read == {name: f"P{number % 2}" for number, name in enumerate(names)}
    table = root / "files.csv"
    table.write_text("\n".join(["file", *names]))
    assert [row.file for row in read_table(table).rows] == names
    table.write_text("file\n# end of the export\n")
    with pytest.raises(LeukoscopeError, match="row 2: no such file '# end of the export' below"):
        open_source(str(table))


def test_a_comment_before_the_header_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("# exported 2024\n\nfile,subject\na.png,P1\n")
    assert [(row.number, row.file) for row in read_table(tmp_path / "t.csv").rows] == [(4, "a.png")]
    assert capsys.readouterr().err == (
        f"{tmp_path / 't.csv'}: 1 line(s) before the header left out as comments: '# exported 2024'\n"
    )


def test_the_line_by_which_excel_names_the_separator_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=;\nfile;subject\na,1.png;P1\n")
    assert [(row.number, row.file) for row in read_table(tmp_path / "t.csv").rows] == [(3, "a,1.png")]


@pytest.mark.parametrize("content", ['[{"image": "a.png", "choice": "ALL"}]', '[\n {"id": 1}]', '{"a.png": "ALL"}'])
def test_json_is_not_shown_as_a_header_of_one_column(tmp_path: Path, content: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(LeukoscopeError, match=r"export.json: is JSON, not a table; export it as CSV \(Label Studio: "):
        read_table(tmp_path / "export.json")


@pytest.mark.parametrize("name", ["NA", "nan.png", "1e5", "TRUE", "007", "12345678901234567890", "1.50"])
def test_entries_stay_as_the_file_spells_them(tmp_path: Path, name: str) -> None:
    """pandas would take them for a missing value, a number or a truth."""
    for file, content in {
        "t.csv": f"file,subject,label\n{name},{name}x,\n{name}2,{name}y,{name}z\n",
        "t.jsonl": "\n".join(
            json.dumps({"file": f"{name}{end}", "subject": f"{name}{subject}"})
            for end, subject in (("", "x"), ("2", "y"))
        ),
    }.items():
        (tmp_path / file).write_text(content)
        rows = read_table(tmp_path / file).rows
        assert [(row.file, row.subject) for row in rows] == [(name, f"{name}x"), (f"{name}2", f"{name}y")]


def test_long_numbers_of_json_are_not_rounded_where_a_row_has_none(tmp_path: Path) -> None:
    rows = ['{"file": "a", "subject": 12345678901234567}', '{"file": "b", "subject": 12345678901234568, "label": 1}']
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    assert [row.subject for row in read_table(tmp_path / "t.jsonl").rows] == ["12345678901234567", "12345678901234568"]


def test_rows_are_numbered_as_a_spreadsheet_counts(tmp_path: Path) -> None:
    """An entry of two lines is one row; so is a blank line."""
    (tmp_path / "t.csv").write_text('file,subject,remark\na.png,P1,"two\nlines"\n\nb.png,P1,\n,P1,x\n')
    with pytest.raises(LeukoscopeError, match="t.csv: row 5 names no file"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,subject\na.png,P1" + "," * 40 + "x\n", "row 2 has 42 entries, the header 2; put quotes around"),
        ('file,subject\na.png,"P1\n', "t.csv: is not CSV ("),
        ("file" + "," * 20_000, "t.csv: has more than 10,000 columns"),
    ],
)
def test_damaged_csv_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(LeukoscopeError) as refused:
        read_table(tmp_path / "t.csv")
    assert said in str(refused.value)


ONE_HOT = "filename,ALL,HEM\n" + "".join(
    f"{file},{int(file[:3] == 'ALL')},{int(file[:3] == 'HEM')}\n" for file in PLAIN
)


def test_a_one_hot_table_says_that_its_column_of_classes_is_missing(
    cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --subject_pattern it asked for --subject_pattern."""
    table = cells / "_classes.csv"
    table.write_text(ONE_HOT)
    with pytest.raises(LeukoscopeError) as refused:
        load_cells("imagefolder", cells, labels=table, subject_pattern=r"(?P<subject>P\d+)_")
    assert str(refused.value) == (
        f"{table}: has no column of classes; its columns ALL, HEM hold 0 and 1 (one-hot): replace them by one column "
        "called label that holds the name of the class"
    )
    table.write_text("file,age\n" + "".join(f"{file},7\n" for file in PLAIN))
    with pytest.raises(
        LeukoscopeError, match=r"has no column of classes \(one of label, class, choice\), only file, age"
    ):
        load_cells("imagefolder", cells, labels=table, subject_pattern=r"(?P<subject>P\d+)_")
    header, *rows = ONE_HOT.splitlines()
    table.write_text("\n".join([f"{header},subject", *(f"{row},P1" for row in rows)]))
    load_cells("imagefolder", cells, labels=table)
    assert "its columns ALL, HEM hold 0 and 1 and are not used; if they are classes" in capsys.readouterr().err
