"""What is given as many cells: zips that may harm, names that repeat, subjects that folders and names tell."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.web import batch_files
from leukoscope.web.batch_files import SAMPLE_CELLS, is_zip, open_batch, sample_batch, subjects_of, true_class
from zips import pack, png

EMBEDDED = Path(__file__).parents[2] / "model_card"


def test_a_class_is_the_innermost_folder_that_names_one() -> None:
    names = ("ALL/P00/1.png", "P00/hem/1.png", "ALL/hem/1.png", "P00/1.png")
    assert [true_class(name, ("ALL", "HEM")) for name in names] == ["ALL", "HEM", "HEM", ""]


def test_pictures_of_several_zips_are_named_after_them(tmp_path: Path) -> None:
    first = pack(tmp_path / "P1.zip", {"0.png": b"a", "1.png": b"b"})
    second = pack(tmp_path / "P2.zip", {"0.png": b"c", "1.png": b"d"})
    batch = open_batch([first, second])
    names = ["P1/0.png", "P1/1.png", "P2/0.png", "P2/1.png"]
    assert [file.name for file in batch.files] == names and batch.problems == []
    assert b"".join(file.read() for file in batch.files) == b"abcd"
    assert list(batch.subjects(("ALL", "HEM")).values()) == ["P1", "P1", "P2", "P2"]


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
    files = {"P1/1.png": png(), "P1/2.jfif": png()}
    others = {"P1/a.csv": b"", "b.CSV": b"notes", "c.csv": b"", "d.heic": b"\0\0\0\x18ftypheic", "README": b"read me"}
    junk = {"P1/Thumbs.db": b"", "__MACOSX/P1/._1.png": b""}
    batch = open_batch([pack(tmp_path / "set.zip", files | others | junk)])
    assert [file.name for file in batch.files] == ["P1/1.png", "P1/2.jfif"]
    assert batch.problems == [
        "set.zip: 5 file(s) left out, no pictures that can be read: .csv 3, .heic 1, no suffix 1; export them as PNG "
        "or JPEG"
    ]


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr = mode << 16
    return found


@pytest.mark.parametrize(
    ("inside", "method", "problem"),
    [
        *(
            (entry(name), zipfile.ZIP_DEFLATED, "holds the path .*, which leads out of it; pack it again")
            for name in ("../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png", "C:/out.png")
        ),
        (entry("secret.png", stat.S_IFLNK | 0o777), zipfile.ZIP_DEFLATED, "secret.png is a link, not a file"),
        (entry("x" * 300 + ".png"), zipfile.ZIP_DEFLATED, r"holds x{60}…, a name of 304 letters; at most 255 are read"),
        # Such entries could expand without limit.
        *(
            (entry("a.png"), method, "a.png is not packed by deflate; pack it again as a plain zip")
            for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
        *((entry(name), zipfile.ZIP_STORED, "") for name in ("a.png", "P1/2024-05-01T12:30:00.png")),
    ],
)
def test_a_zip_that_may_harm_is_refused(tmp_path: Path, inside: zipfile.ZipInfo, method: int, problem: str) -> None:
    path = str(tmp_path / "cells.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, png(), method)
    if problem:
        with pytest.raises(LeukoscopeError, match=f"cells.zip: {problem}"):
            open_batch([path])
    else:
        assert [(file.name, file.read()) for file in open_batch([path]).files] == [(inside.filename, png())]


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


def test_a_zip_that_lies_about_its_sizes_unpacks_no_more_than_it_says(tmp_path: Path) -> None:
    path = Path(pack(tmp_path / "cells.zip", {"a.png": bytes(2**20)}))
    honest = (2**20).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(honest, (100).to_bytes(4, "little")))
    (file,) = open_batch([str(path)]).files
    with pytest.raises(LeukoscopeError, match="a.png: is damaged within its zip; pack it again"):
        file.read()


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
    monkeypatch.setattr(batch_files, "MAX_FILES", 2)
    with pytest.raises(LeukoscopeError, match="3 files were given; at most 2 fit in one batch: split it"):
        open_batch(paths[:3])


@pytest.mark.parametrize(
    ("names", "subjects"),
    [
        (["ALL/UID_1_2_1_all.bmp", "ALL/UID_1_3_1_all.bmp", "HEM/UID_H2_1_hem.bmp", "HEM/UID_H2_2_hem.bmp"],
         ["1", "H2"]),
        (["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png"], ["p1", "p2"]),
        (["ALL/P01_a.png", "ALL/P01_b.png", "HEM/P02-1.png", "HEM/P02-2.png"], ["P01", "P02"]),
        (["1a_1.png", "1a_2.png", "2-1.png", "2-2.png"], ["1a", "2"]),
        (["ALL/P1/1.png", "ALL/P1/2.png", "HEM/P2/3.png", "HEM/P2/4.png"], ["P1", "P2"]),
        (["ALL/1.png", "ALL/2.png", "HEM/3.png", "HEM/4.png"], []),
        (["ALL_1.png", "ALL_2.png", "HEM_1.png", "HEM_2.png"], []),
        (["blast_P1_1.png", "blast_P1_2.png", "normal_P2_1.png", "normal_P2_2.png"], []),
        (["L1/1.png", "L1/2.png", "l2/3.png", "l2/4.png"], []),
        (["fold_0/1.png", "fold_0/2.png", "fold_1/3.png", "fold_1/4.png"], []),
        (["ALL/cell_1.png", "ALL/cell_2.png", "HEM/cell_1.png", "HEM/cell_2.png"], []),
        (["a.png"], []),
        # Names without a digit, in folders; one folder is one subject.
        (["Anna Schmidt/1.png", "Anna Schmidt/2.png", "Ben/1.png", "Ben/2.png"], ["Anna Schmidt", "Ben"]),
        (["ALL/Anna/1.png", "ALL/Anna/2.png"], ["Anna"]),
        (["P7/1.png", "P7/2.png"], ["P7"]),
        # One subject of C-NMC 2019: the release that knows it can say so.
        (["UID_H24_10_1_hem.bmp", "UID_H24_10_2_hem.bmp"], ["H24"]),
        (["train/1.png", "train/2.png", "test/3.png", "test/4.png"], []),
        (["healthy/1.png", "healthy/2.png", "Leukemia/3.png", "Leukemia/4.png"], []),
        (["images/1.png", "images/2.png"], []),
    ],
)  # fmt: skip
def test_subjects_are_found_in_folders_and_names(names: list[str], subjects: list[str]) -> None:
    found = subjects_of(names, ("ALL", "HEM", "L1", "L2"))
    assert sorted(set(found.values())) == subjects and (not found or list(found) == names)


def test_the_sample_holds_two_subjects_with_cells_enough() -> None:
    found = sample_batch().subjects(("ALL", "HEM"))
    assert sorted(set(found.values())) == ["synthetic-1", "synthetic-2"] and len(found) == 2 * SAMPLE_CELLS
    needed = json.loads((EMBEDDED / "leukoscope-densenet169-cnmc" / "metrics.json").read_text())["subject_rule"]
    assert needed["least_cells"] < SAMPLE_CELLS, "a few of them may be refused"
    assert Image.open(io.BytesIO(sample_batch().files[0].read())).size[0] > 64


def test_a_zip_that_is_cut_short_or_gone_is_called_so(tmp_path: Path) -> None:
    path = Path(pack(tmp_path / "cells.zip", {"a.png": png()}))
    path.write_bytes(path.read_bytes()[:60])
    assert is_zip(str(path))
    with pytest.raises(LeukoscopeError, match=r"^cells.zip: the zip is damaged or cut short; pack or send it again$"):
        open_batch([str(path)])
    path.unlink()
    with pytest.raises(LeukoscopeError, match=r"^cells.zip: is no longer here; send it again"):
        open_batch([str(path)])
