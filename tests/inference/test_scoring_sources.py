"""A source must name every cell it is given, in a fixed order, and say why it cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.images import open_image
from leukoscope.inference.scoring import CellSource, SourceCell, open_source


def save(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(path)
    return path


def everything(source: CellSource) -> list[SourceCell]:
    return list(source.cells)


def grey_of(cell: SourceCell) -> int:
    return int(np.asarray(open_image(cell.file))[0, 0, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five cells of two subjects, whose grey is their number, and two files that are none."""
    names = ("ann/0.png", "ann/1.bmp", "bob/2.png", "bob/more/3.PNG", "bob/more/4.tif")
    for grey, name in enumerate(names):
        save(tmp_path / "cells" / name, grey)
    (tmp_path / "cells" / "notes.txt").write_text("no picture")
    save(tmp_path / "cells" / ".hidden.png")
    return tmp_path / "cells"


def test_a_folder_gives_its_images_in_a_fixed_order(folder: Path) -> None:
    source = open_source(str(folder))
    assert [cell.cell_id for cell in everything(source)] == [
        "ann/0.png", "ann/1.bmp", "bob/2.png", "bob/more/3.PNG", "bob/more/4.tif",
    ]  # fmt: skip
    assert [grey_of(cell) for cell in everything(source)] == [0, 1, 2, 3, 4]
    assert (len(source.cells), source.has_subjects) == (5, False)


def test_a_pattern_names_subjects(folder: Path) -> None:
    source = open_source(str(folder), subject_pattern=r"^(?P<subject>\w+)/")
    assert [cell.subject for cell in everything(source)] == ["ann", "ann", "bob", "bob", "bob"]
    assert source.has_subjects


def test_a_pattern_that_misses_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"'\^\(ann\)/': does not match 'bob/2.png'; it must match every image"):
        open_source(str(folder), subject_pattern="^(ann)/")


def test_links_to_folders_are_followed_and_hidden_folders_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "ann" / "more").symlink_to(save(tmp_path / "elsewhere" / "9.png", 9).parent)
    (folder / "ann" / "circle").symlink_to(folder)
    save(folder / "bob" / ".thumbnails" / "2.png")
    assert [cell.cell_id for cell in everything(open_source(str(folder)))] == [
        "ann/0.png", "ann/1.bmp", "ann/more/9.png", "bob/2.png", "bob/more/3.PNG", "bob/more/4.tif",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(path: str) -> object:
        # As for anybody but root, who may read every folder.
        if path == str(folder / "bob"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(LeukoscopeError) as error:
        open_source(str(folder))
    assert str(error.value) == (
        f"{folder / 'bob'}: the folder cannot be read (Permission denied); check who may read it, or move it away"
    )


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=f"--input {tmp_path}: holds no cell; give a folder of images"):
        open_source(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot exist on Windows or macOS")
def test_a_name_that_is_no_utf8_is_read_and_shown(tmp_path: Path) -> None:
    save(tmp_path / "cell.png", 7).rename(os.fsdecode(os.fsencode(tmp_path) + b"/cell-\xff.png"))
    (cell,) = everything(open_source(str(tmp_path)))
    assert (cell.cell_id, grey_of(cell)) == ("cell-\ufffd.png", 7)


def test_a_csv_names_paths_subjects_and_ids(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    absolute = folder / "bob" / "2.png"
    rows = f'one,"a, ""b""\nover two lines",cells/ann/1.bmp,007\ntwo,,{absolute},bob\n'
    table.write_text(f"\ufeffcell_id,note,file,patient_id\n{rows}", encoding="utf-8")
    source = open_source(str(table))
    cells = everything(source)
    assert [(cell.cell_id, cell.subject, grey_of(cell)) for cell in cells] == [("one", "007", 1), ("two", "bob", 2)]
    assert source.has_subjects


def test_a_table_of_paths_may_be_parquet(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["cells/ann/0.png"], "subject": [12]}), tmp_path / "cells.parquet")
    (cell,) = everything(open_source(str(tmp_path / "cells.parquet")))
    assert (cell.cell_id, cell.subject, grey_of(cell)) == ("cells/ann/0.png", "12", 0)
    pq.write_table(pa.table({"path": ["cells/ann/0.png", None], "subject": [12, 13]}), tmp_path / "cells.parquet")
    with pytest.raises(LeukoscopeError, match="cells.parquet: row 2 names no file; fill it in, or delete the row"):
        open_source(str(tmp_path / "cells.parquet"))


def test_a_file_that_is_not_there_is_refused_with_its_row(tmp_path: Path) -> None:
    for number, path in enumerate(("a\0.png", "gone.png", "x" * 5000)):
        pq.write_table(pa.table({"path": [path]}), tmp_path / f"{number}.parquet")
        with pytest.raises(LeukoscopeError, match=r"row 1: no such file .* below .*; correct the row"):
            open_source(str(tmp_path / f"{number}.parquet"))


def test_numbers_in_a_column_called_image_are_no_pictures(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [7], "path": ["cells/ann/1.bmp"]}), tmp_path / "cells.parquet")
    (cell,) = everything(open_source(str(tmp_path / "cells.parquet")))
    assert (cell.cell_id, grey_of(cell)) == ("cells/ann/1.bmp", 1)


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_column_called_image_may_hold_paths(folder: Path, tmp_path: Path, text: pa.DataType) -> None:
    table = pa.table({"image": pa.array(["cells/ann/0.png"]).cast(text)})
    pq.write_table(table, tmp_path / "cells.parquet")
    (cell,) = everything(open_source(str(tmp_path / "cells.parquet")))
    assert (cell.cell_id, grey_of(cell)) == ("cells/ann/0.png", 0)


def test_a_table_without_paths_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("name,age\nann,7\n")
    with pytest.raises(
        LeukoscopeError, match=r"cells.csv: has no column of image paths \(one of path, file, .*name, age"
    ):
        open_source(str(tmp_path / "cells.csv"))


def test_subjects_named_twice_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("file,subject\ncells/ann/0.png,ann\n")
    with pytest.raises(LeukoscopeError, match="a column of it names the subjects as well; leave the pattern out"):
        open_source(str(tmp_path / "cells.csv"), subject_pattern="(a)")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cells.csv", b"", "cells.csv: is empty; give a header"),
        ("cells.csv", b"PK\x03\x04 a spreadsheet", "cells.csv: is no text; export the table as CSV"),
        ("cells.csv", b"\xff\xfea", "cells.csv: is damaged UTF-16"),
        ("cells.parquet", b"PAR1, or is it?", "cells.parquet: is no whole Parquet file"),
        ("cells.xlsx", b"", r"cells.xlsx: is a .xlsx file; give a folder, .csv or .parquet"),
        ("cells.csv", b"file\n", "cells.csv: has a header and no row"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LeukoscopeError, match=message):
        open_source(str(tmp_path / name))


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(LeukoscopeError, match="^--input cnmc2019: no such folder or file; give a folder of images"):
        open_source("cnmc2019")


def damaged(path: Path, group: int) -> Path:
    """A Parquet file with a row group whose first bytes were written over."""
    start = pq.read_metadata(path).row_group(group).column(0).data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 20)
    return path


def test_damage_inside_a_table_of_paths_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png", "b.png"]}), tmp_path / "cells.parquet", use_dictionary=False)
    path = damaged(tmp_path / "cells.parquet", 0)
    with pytest.raises(
        LeukoscopeError, match=r"--input .*cells.parquet: is no whole Parquet file \(.*\); copy it again"
    ):
        open_source(str(path))
