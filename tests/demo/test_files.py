"""The files of a batch: zips that may harm are refused, and people and classes come from a table or from folders."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from asked import packed, png, sent
from leukoscope import DataError
from leukoscope.demo import files
from leukoscope.demo.files import PEOPLE_UNKNOWN, Batch, read_folder, sample_batch, unpacked
from leukoscope.demo.uploads import Upload

CLASSES = ("ALL", "HEM")


def batch(*given: Upload, by_folder: bool = False) -> Batch:
    with unpacked(given) as folder:
        return read_folder(folder, CLASSES, by_folder=by_folder)


def refusal(*given: Upload, by_folder: bool = False) -> str:
    with pytest.raises(DataError) as error:
        batch(*given, by_folder=by_folder)
    return str(error.value)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "C:/a.png", "a\\b.png", "x/../../a.png"])
def test_a_path_that_leads_out_of_a_zip_or_a_folder_is_refused(name: str, own_uploads: Path) -> None:
    assert "holds a path that leads out of it or is too long; pack it again" in refusal(packed({name: png()}))
    assert "holds a path that leads out of it or is too long; pack it again" in refusal(
        sent(png(), name)._replace(name=name)
    )
    assert not list(own_uploads.parent.glob("*.png")) and list(own_uploads.iterdir()) == []


def test_a_zip_that_is_too_large_unpacked_cut_short_encrypted_or_linked_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = packed({"a.png": bytes(10_000_000)})
    monkeypatch.setattr(files, "MAX_UNPACKED", 5 * 2**20)
    assert refusal(bomb) == "cells.zip: 1 files of 9 MB; at most 2000 files and 5 MB fit in one batch: split it"
    monkeypatch.setattr(files, "MAX_FILES", 2)
    assert refusal(packed({f"{number}.png": png() for number in range(3)})).startswith("cells.zip: 3 files")
    cut = packed({"a.png": png()})
    Path(cut.path).write_bytes(Path(cut.path).read_bytes()[:-30])
    assert refusal(cut) == "cells.zip: the zip is damaged or cut short; pack or send it again"
    link = packed({})
    entry = zipfile.ZipInfo("a.png")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(link.path, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert refusal(link) == "cells.zip: a.png: is a link, encrypted, or not packed by deflate; pack it as a plain zip"
    other = packed({})
    with zipfile.ZipFile(other.path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", png())
    assert refusal(other) == "cells.zip: a.png: is a link, encrypted, or not packed by deflate; pack it as a plain zip"


def test_no_file_and_a_file_that_is_gone_are_refused() -> None:
    assert refusal() == "files: none was sent; give pictures of single cells, or a zip of them"
    assert refusal(Upload("/etc/passwd", "a.png")).startswith("This is no upload of yours")


def test_a_table_names_people_and_classes() -> None:
    table = b"file_name,subject,label\np1/a.png,P1,ALL\np2/b.png,P2,hem\n"
    given = packed({"p1/a.png": png(), "p2/b.png": png(cell=1), "metadata.csv": table, "__MACOSX/a.png": b""})
    cells, problems, notes = batch(given)
    assert [(cell.name, cell.subject, cell.label) for cell in cells] == [
        ("p1/a.png", "P1", "ALL"),
        ("p2/b.png", "P2", "HEM"),
    ]
    assert (problems, notes) == ([], [])


def test_folders_are_people_where_the_visitor_says_so_and_classes_where_they_are_called_so() -> None:
    given = {"ALL/p1/a.png": png(), "HEM/p2/b.png": png(cell=1), "notes.txt": b"x"}
    cells, _, notes = batch(packed(given))
    assert [(cell.subject, cell.label) for cell in cells] == [("", "ALL"), ("", "HEM")] and notes == [PEOPLE_UNKNOWN]
    cells, _, notes = batch(packed(given), by_folder=True)
    assert [cell.subject for cell in cells] == ["p1", "p2"] and notes == []


def test_a_table_that_contradicts_itself_is_refused_without_a_folder_of_this_machine(own_uploads: Path) -> None:
    table = b"file_name,subject\na.png,P1\n"
    said = refusal(packed({"a.png": png(), "b.png": png(cell=1), "metadata.csv": table}))
    assert "b.png" in said and str(own_uploads) not in said, said
    said = refusal(sent(b"file_name,subject\na.png,1.67E+15\n", "metadata.csv"), sent(png(), "a.png"))
    assert "is in scientific form" in said


def test_the_example_has_two_people_of_enough_cells() -> None:
    assert {cell.subject for cell in sample_batch().cells} == {"synthetic-1", "synthetic-2"}
    assert len(sample_batch().cells) == 112


def test_a_table_of_another_kind_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """813 bytes of Parquet beside a CSV took 1.4 GB of the server."""
    monkeypatch.setattr("leukoscope.data.table._parquet", None)
    monkeypatch.setattr("leukoscope.data.table._lines_of_json", None)
    content = {
        "1.png": png(),
        "t.csv": b"file,subject\n1.png,P1\n",
        "u.parquet": b"PAR1",
        "metadata.jsonl": b'{"file": "1.png", "subject": "P2"}',
    }
    answer = batch(packed(content))
    assert [cell.subject for cell in answer.cells] == ["P1"]
