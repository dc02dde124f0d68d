"""Tables as laboratories export them: every reader gives the same cells to the same subjects, or the same refusal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from drawn import place, save_cell
from leukoscope import LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.data.splits import make_split
from leukoscope.data.table import read_table, read_visitor_table
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
    "ID is no subject": (table("file", "ID"), "names n(o|either a) subject|has no column called label, but ID"),
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


@pytest.mark.parametrize("file", ["zähl.png", "zähl", "Jörg/1", "Jörg/1.png"])
def test_a_file_is_found_in_another_unicode_form(tmp_path: Path, file: str) -> None:
    """A Mac's disk finds a folder by both forms; here a link stands for that."""
    place(tmp_path, normalize("NFD", "zähl.png"), normalize("NFC", "Jörg/1.png"))
    (tmp_path / normalize("NFD", "Jörg")).symlink_to(tmp_path / normalize("NFC", "Jörg"))
    (tmp_path / "t.csv").write_text(f"file,subject\n{normalize('NFC', file)},P1\n", encoding="utf-8")
    (cell,) = open_source(str(tmp_path / "t.csv")).cells
    assert Path(cell.file).is_file()


@pytest.mark.parametrize("reader", READERS)
def test_a_name_without_suffix_that_fits_two_files_is_refused(cells: Path, reader: str) -> None:
    (cells / "ALL/P00_0.PNG").write_bytes((cells / "ALL/P00_0.bmp").read_bytes())
    said = r"row 2: 'ALL/P00_0' may be ALL/P00_0\.PNG or ALL/P00_0\.bmp; write the path with suffix"
    with pytest.raises(LeukoscopeError, match=said):
        READERS[reader](cells, b"file,subject\nALL/P00_0,P00\n")


_LONG = "12345678901234567"
_SPELT = ("NA", "nan.png", "1e5", "TRUE", "007", "12345678901234567890", "1.50")
# What lies in a file and its rows: number, file and subject.
ROWS: list[tuple[str, str | bytes, list[tuple[int, str, str]]]] = [
    *(("t.csv", "file,subject\nä.png,Müller\n".encode(encoding), [(2, "ä.png", "Müller")])
      for encoding in ("utf-8", "utf-16", "cp1252")),
    ("t.csv", "# exported 2024\n\nfile,subject\na.png,P1\n", [(4, "a.png", "P1")]),
    ("t.csv", "sep=;\nfile;subject\na,1.png;P1\n", [(3, "a,1.png", "P1")]),
    # pandas would take them for a missing value, a number or a truth.
    *(("t.csv", f"file,subject,label\nb,P1,{name}\n{name},{name}x,\n", [(2, "b", "P1"), (3, name, f"{name}x")])
      for name in _SPELT),
    *(("t.jsonl", json.dumps({"file": name, "subject": f"{name}x"}), [(1, name, f"{name}x")]) for name in _SPELT),
    # Long numbers of JSON were rounded where another row had none.
    ("t.jsonl", f'{{"file": "a", "subject": {_LONG}}}\n{{"file": "b", "subject": {_LONG}8, "label": 1}}',
     [(1, "a", _LONG), (2, "b", f"{_LONG}8")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "rows"), ROWS)
def test_entries_stay_as_the_file_spells_them_and_rows_are_numbered_as_a_spreadsheet_counts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes,
    rows: list[tuple[int, str, str]],
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [(row.number, row.file, row.subject) for row in read_table(path).rows] == rows
    messages = capsys.readouterr().err
    assert ("was read as Windows-1252" in messages) == (
        b"\xfc" in path.read_bytes() and b"\xfe" not in path.read_bytes()
    )
    comment = f"{path}: 1 line(s) before the header left out as comments: '# exported 2024'\n"
    assert (messages == comment) == ("exported" in str(content))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        *(("t.jsonl", content, "holds no lines of JSON") for content in ("{", "[1]", "[" * 100_000)),
        ("t.jsonl", '{"file": "a.png", "label": ["ALL", "HEM"]}', "row 1 names the class "),
        *(
            ("t.json", content, "t.json: is JSON, not a table; export it as CSV (Label Studio: ")
            for content in ('[{"image": "a.png", "choice": "ALL"}]', '[\n {"id": 1}]', '{"a.png": "ALL"}')
        ),
        # An entry of two lines is one row; so is a blank line.
        ("t.csv", 'file,subject,remark\na.png,P1,"two\nlines"\n\nb.png,P1,\n,P1,x\n', "t.csv: row 5 names no file"),
        ("t.csv", "file,subject\na.png,P1" + "," * 40 + "x\n", "row 2 has 42 entries, the header 2; put quotes around"),
        ("t.csv", 'file,subject\na.png,"P1\n', "t.csv: is not CSV ("),
    ],
)
def test_what_is_no_table_of_cells_is_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LeukoscopeError, match=re.escape(problem)):
        read_table(tmp_path / name)


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


def _refusal(root: Path, content: str, **flags: Any) -> str:
    (root / "t.csv").write_text(content)
    with pytest.raises(LeukoscopeError) as refused:
        load_cells("imagefolder", root, labels=root / "t.csv", **flags)
    return str(refused.value)


_ONE_HOT = "file,subject,ALL,HEM\n" + "".join(f"{file},{who},0,1\n" for file, who in PLAIN.items())
_SIDES = table("file", "subject").replace("subject", "subject,split").replace("P00\n", "P00,train\n")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_ONE_HOT, "has no column called label, but ALL, HEM; name that of the classes with --label_column_name ALL"),
        (table("file", "subject", "diagnosis"), "but diagnosis; name that of the classes with --label_column_n"),
        (table(*COLUMNS).replace("label", "label,class", 1).replace("ALL\n", "ALL,x\n").replace("HEM\n", "HEM,x\n"),
         "its columns 'label' and 'class' both name the label; name one with --label_column_name"),
        (table(*COLUMNS).replace("file", "file,path", 1).replace("bmp,", "bmp,x,"), "name one with --file_column"),
        (table(*COLUMNS).replace("P00,ALL", "P00,['ALL';'HEM']", 1), "row 2 names the class \"['ALL';'HEM']\"; a c"),
        (table(*COLUMNS).replace("P00,ALL", 'P00,"ALL,HEM"', 1), "names the class 'ALL,HEM'; a class is one plain"),
        (table(*COLUMNS).replace("P00,ALL", "P00,ALL;HEM", 1), "names the class 'ALL;HEM'; a class is one plain text"),
        (table(*COLUMNS).replace("P00,ALL", 'P00,"(\'ALL\')"', 1), "a class is one plain text"),
        (table(*COLUMNS).replace(",ALL", ",0").replace("P10,HEM", "P10,0.0"), "names the class '0', row 5 '0.0'; s"),
        (_SIDES.replace("P01\n", "P01,A\n").replace("P10\n", "P10,test\n").replace("P11\n", "P11,test\n"),
         "row 4: its column 'split' holds 'A', which is no side of a split; write train, validation or test"),
        (_SIDES.replace("P01\n", "P01,\n").replace("P10\n", "P10,test\n").replace("P11\n", "P11,test\n"),
         "row 4 names no side for 'ALL/P01_2.bmp', other rows name theirs"),
    ],
    ids=["one-hot", "diagnosis", "two labels", "two files", "list", "comma", "semicolon", "tuple", "0.0", "no side",
         "side missing"],
)  # fmt: skip
def test_what_could_be_two_things_is_refused_with_the_flag(cells: Path, content: str, problem: str) -> None:
    """Folders' names became the classes, several classes a third one, and a split was ignored, with a note or none."""
    assert problem in _refusal(cells, content)


def test_flags_name_the_columns_or_leave_them_out(cells: Path) -> None:
    content = table("bild", "wer", "befund").replace("befund", "befund,split", 1).replace("P00,ALL\n", "P00,ALL,A\n")
    for ending in ("P01,ALL\n", "P10,HEM\n", "P11,HEM\n"):
        content = content.replace(ending, f"{ending[:-1]},B\n")
    (cells / "t.csv").write_text(content)
    named: dict[str, Any] = {
        "file_column": "Bild",
        "label_column_name": "befund",
        "subject_column": "wer",
        "split_column": "none",
    }
    data = load_cells("imagefolder", cells, labels=cells / "t.csv", **named)
    assert (data.info.labels, data.own_splits) == (("ALL", "HEM"), {})
    assert data.train["subject"][:] == list(PLAIN.values())
    assert "has no column 'who' (--subject_column), only bild" in _refusal(
        cells, content, **named | {"subject_column": "who"}
    )
    # Folders name the classes where a flag says so.
    (cells / "t.csv").write_text(table("file", "subject", "age"))
    data = load_cells("imagefolder", cells, labels=cells / "t.csv", label_column_name="none")
    assert data.info.labels == ("ALL", "HEM")


def test_a_column_of_sides_is_the_data_sets_own_split(cells: Path) -> None:
    """It was ignored without a word."""
    sides = dict(zip(PLAIN, ("train", "training", "Test", "train", "train", "test"), strict=True))
    rows = [f"{file},{who},{file[:3]},{sides[file]}" for file, who in PLAIN.items()]
    (cells / "t.csv").write_text("\n".join(["file,subject,label,Split", *rows]))
    data = load_cells("imagefolder", cells, labels=cells / "t.csv")
    assert data.own_splits == {"train": 4, "test": 2}
    assert make_split(data, None, validation=False).test == ("ALL/P01_2", "HEM/P11_2")
    with pytest.raises(LeukoscopeError) as refused:
        make_split(data, "random")
    assert str(refused.value) == (
        "--split random: the column 'Split' is the data set's own split; leave --split out, or leave the column out "
        "with --split_column none"
    )
    data = load_cells("imagefolder", cells, labels=cells / "t.csv", split_column="none")
    assert not data.own_splits


def test_paths_start_from_the_cells_or_from_the_table(tmp_path: Path, cells: Path) -> None:
    """One table beside the pictures serves train, audit, score and patient alike."""
    rows = [f"cells/{file},{who},{file[:3]}" for file, who in PLAIN.items()]
    (tmp_path / "t.csv").write_text("\n".join(["file,subject,label", *rows]))
    data = load_cells("imagefolder", cells, labels=tmp_path / "t.csv")
    assert data.train["cell_id"][:] == [file.removesuffix(".bmp") for file in PLAIN]
    for source, reading in ((tmp_path / "t.csv", NO_FLAGS), (cells, Reading(labels=tmp_path / "t.csv"))):
        found = {os.path.relpath(cell.file, cells): cell.subject for cell in open_source(str(source), reading).cells}
        assert found == PLAIN


# Tables of visitors


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.parquet", b"PAR1", "tables are read as CSV only"),
        ("t.csv", b"file,subject\n" + b"a" * 5 * 2**20, "bytes, more than 4,194,304"),
        ("t.csv", b"file\n" + b"a.png\n" * 30_000, "rows, more than 20,000"),
        ("t.csv", b"file" + b"," * 200, "columns, more than 100"),
        ("t.csv", b"file\n" + b"a" * 20_000, "bytes in a row, more than 10,000"),
        ("t.csv", b"file" + b",x" * 50 + b"\n\n" + b"," * 500 + b"\n", "columns, more than 100"),
    ],
)
def test_a_visitors_table_has_limits_that_are_checked_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, problem: str
) -> None:
    """813 bytes of Parquet took 1.4 GB of the server."""
    monkeypatch.setattr("pandas.read_csv", None)
    with pytest.raises(LeukoscopeError, match=problem):
        read_visitor_table(name, content)


def test_a_visitors_table_is_read_as_any_other() -> None:
    table = read_visitor_table("a/t.csv", b"Image Name;Patient ID\nx.png;7\n")
    assert [(row.file, row.subject) for row in table.rows] == [("x.png", "7")]
