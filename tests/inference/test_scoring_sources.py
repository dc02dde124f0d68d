"""A source must name every cell it is given, in a fixed order, and say why it cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.images import open_image
from leukoscope.inference.scoring import SourceCell, open_source

NAMES = ("ann/0.png", "ann/1.bmp", "bob/2.png", "bob/more/3.PNG", "bob/more/4.tif")


def save(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(path)
    return path


def grey_of(cell: SourceCell) -> int:
    return int(np.asarray(open_image(cell.file))[0, 0, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five cells of two subjects, whose grey is their number, and two files that are none."""
    for grey, name in enumerate(NAMES):
        save(tmp_path / "cells" / name, grey)
    (tmp_path / "cells" / "notes.txt").write_text("no picture")
    save(tmp_path / "cells" / ".hidden.png")
    return tmp_path / "cells"


def test_a_folder_gives_its_images_in_a_fixed_order_with_the_subjects_of_a_pattern(folder: Path) -> None:
    source = open_source(str(folder))
    assert [cell.cell_id for cell in source.cells] == list(NAMES) and not source.has_subjects
    assert [grey_of(cell) for cell in source.cells] == [0, 1, 2, 3, 4]
    source = open_source(str(folder), subject_pattern=r"^(?P<subject>\w+)/")
    assert [cell.subject for cell in source.cells] == ["ann", "ann", "bob", "bob", "bob"] and source.has_subjects
    with pytest.raises(LeukoscopeError, match=r"'\^\(ann\)/': does not match 'bob/2.png'; it must match every image"):
        open_source(str(folder), subject_pattern="^(ann)/")


def test_links_to_folders_are_followed_and_hidden_folders_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "ann" / "more").symlink_to(save(tmp_path / "elsewhere" / "9.png", 9).parent)
    (folder / "ann" / "circle").symlink_to(folder)
    save(folder / "bob" / ".thumbnails" / "2.png")
    assert [cell.cell_id for cell in open_source(str(folder)).cells] == [*NAMES[:2], "ann/more/9.png", *NAMES[2:]]


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


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot exist on Windows or macOS")
def test_a_name_that_is_no_utf8_is_read_and_shown(tmp_path: Path) -> None:
    save(tmp_path / "cell.png", 7).rename(os.fsdecode(os.fsencode(tmp_path) + b"/cell-\xff.png"))
    (cell,) = open_source(str(tmp_path)).cells
    assert (cell.cell_id, grey_of(cell)) == ("cell-\ufffd.png", 7)


def test_a_csv_names_paths_subjects_and_ids(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    rows = f'one,"a, ""b""\nover two lines",cells/ann/1.bmp,007\ntwo,,{folder / "bob" / "2.png"},bob\n'
    table.write_text(f"\ufeffcell_id,note,file,patient_id\n{rows}", encoding="utf-8")
    source = open_source(str(table))
    cells = [(cell.cell_id, cell.subject, grey_of(cell)) for cell in source.cells]
    assert cells == [("one", "007", 1), ("two", "bob", 2)] and source.has_subjects
    with pytest.raises(LeukoscopeError, match="a column of it names the subjects as well; leave the pattern out"):
        open_source(str(table), subject_pattern="(a)")


TEXT = pa.array(["cells/ann/0.png"])


@pytest.mark.parametrize(
    ("columns", "subject"),
    [
        ({"path": TEXT, "subject": [12]}, "12"),
        ({"path": TEXT, "image": [7]}, ""),
        *(({"image": TEXT.cast(kind)}, "") for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()))),
        ({"path": TEXT, "image": [{"bytes": b"", "path": "a.png"}]}, ""),
    ],
    ids=["subject", "numbers called image", "paths called image", "categories", "a nested column"],
)
def test_a_table_of_paths_may_be_parquet(folder: Path, tmp_path: Path, columns: dict[str, Any], subject: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "cells.parquet")
    (cell,) = open_source(str(tmp_path / "cells.parquet")).cells
    assert (cell.cell_id, cell.subject, grey_of(cell)) == ("cells/ann/0.png", subject, 0)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        *((path, r"no such file .* below .*; correct the row") for path in ("a\0.png", "gone.png", "x" * 5000)),
        (None, "names no file; fill it in, or delete the row"),
    ],
    ids=["zero", "gone", "long", "none"],
)
def test_a_row_without_a_file_is_named(tmp_path: Path, path: str | None, said: str) -> None:
    pq.write_table(pa.table({"path": pa.array([path], pa.string()), "subject": [1]}), tmp_path / "cells.parquet")
    with pytest.raises(LeukoscopeError, match=rf"row 1:? {said}"):
        open_source(str(tmp_path / "cells.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cells.csv", b"", "cells.csv: is empty; give a header"),
        ("cells.csv", b"PK\x03\x04 a spreadsheet", "cells.csv: is no text; export the table as CSV"),
        ("cells.csv", b"\xff\xfea", "cells.csv: is damaged UTF-16"),
        ("cells.csv", b"file\n", "cells.csv: has a header and no row"),
        (
            "cells.csv",
            b"name,age\nann,7\n",
            r"cells.csv: has no column of image paths \(one of path, file, .*name, age",
        ),
        ("cells.parquet", b"PAR1, or is it?", r"^.*cells.parquet: cannot be read as Parquet \(.*\); copy it"),
        ("cells.xlsx", b"", r"cells.xlsx: is a .xlsx file; give a folder, .csv or .parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LeukoscopeError, match=message):
        open_source(str(tmp_path / name))


def test_what_is_no_path_or_holds_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="^cnmc2019: no such folder or file; give a folder of images"):
        open_source("cnmc2019")
    with pytest.raises(LeukoscopeError, match=f"^{tmp_path}: holds no cell; give a folder of images"):
        open_source(str(tmp_path))


def test_damage_inside_a_table_of_paths_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    pq.write_table(pa.table({"path": ["a.png", "b.png"]}), path, use_dictionary=False)
    with path.open("r+b") as file:
        file.seek(pq.read_metadata(path).row_group(0).column(0).data_page_offset)
        file.write(b"\xff" * 20)
    with pytest.raises(LeukoscopeError, match=r".*cells.parquet: cannot be read as Parquet \(.*\); copy it"):
        open_source(str(path))
