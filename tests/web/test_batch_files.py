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
from leukoscope.web.batch_files import SAMPLE_CELLS, BatchFacts, is_zip, open_batch, sample_batch
from zips import pack, png

EMBEDDED = Path(__file__).parents[2] / "model_card"


def test_a_class_is_the_folder_s_that_names_one_and_two_are_refused(tmp_path: Path) -> None:
    """A relabelled picture, exported as <label>/<old path>, counted as one of its old class."""
    names = ("ALL/P00/1.png", "P00/hem/2.png", "P00/3.png")
    batch = open_batch([pack(tmp_path / "cells.zip", dict.fromkeys(names, png()))])
    assert list(batch.facts(("ALL", "HEM")).class_of.values()) == ["ALL", "HEM", ""]
    batch = open_batch([pack(tmp_path / "cells.zip", {"ALL/hem/1.png": png(), "ALL/2.png": png()})])
    with pytest.raises(LeukoscopeError, match=r"^ALL/hem/1\.png: its path names two classes, 'ALL' and 'HEM'; move"):
        batch.facts(("ALL", "HEM"))


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
    assert sorted(batch.tables) == ["P1/a.csv", "b.CSV", "c.csv"]
    assert batch.problems == [
        "set.zip: 2 file(s) skipped, not readable images: .heic 1, no suffix 1; export them as PNG or JPEG"
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
        ({"wide.png": bytes(21 * 2**20)}, "wide.png: is over 20 MB; crop it to one cell"),
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


TABLE = b"file,subject,label\n1.png,Anna,ALL\n2.png,Anna,ALL\n3.png,Ben,hem\n4.png,Ben,HEM\n"


def test_a_table_in_a_zip_names_subjects_and_classes(tmp_path: Path) -> None:
    """Two people's cells were one subject, called after the zip, and the table was left out."""
    flat = {f"{number}.png": png() for number in range(1, 5)}
    for folder in ("", "export/"):
        inside = {
            f"{folder}{name}": content for name, content in {**flat, "cells.csv": TABLE.replace(b"hem", b"HEM")}.items()
        }
        batch = open_batch([pack(tmp_path / "Archive.zip", inside)])
        facts = batch.facts(("ALL", "HEM"))
        assert list(facts.subject_of.values()) == ["Anna", "Anna", "Ben", "Ben"]
        assert list(facts.class_of.values()) == ["ALL", "ALL", "HEM", "HEM"]
        assert facts.notes == (f"Subjects are named by {folder}cells.csv.",)
        assert batch.problems == [] and len(batch.files) == 4


def test_pictures_and_their_table_may_be_sent_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("file,subject\nall/1.png,Anna\nall/2.png,Ben\n")
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(png())
    batch = open_batch([str(tmp_path / name) for name in ("1.png", "cells.csv", "2.png")])
    assert batch.subjects(("ALL", "HEM")) == {"1.png": "Anna", "2.png": "Ben"}


@pytest.mark.parametrize("name", ["Archive.zip", "P7.zip", "Anna Schmidt.zip"])
def test_cells_that_lie_flat_have_no_subject_whatever_the_zip_is_called(tmp_path: Path, name: str) -> None:
    batch = open_batch([pack(tmp_path / name, {f"IMG_{year}_{n}.png": png() for year in (2023, 2024) for n in (0, 1)})])
    facts = batch.facts(("ALL", "HEM"))
    assert set(facts.subject_of.values()) == {""} and facts.notes == ()


def test_a_subject_that_is_guessed_is_said_to_be(tmp_path: Path) -> None:
    for names, note in {
        ("P1/a.png", "P1/b.png", "P2/a.png", "P2/b.png"): "the folder of each picture: P1, P2",
        (
            "UID_1_2_1_all.bmp",
            "UID_1_3_1_all.bmp",
            "UID_H2_1_1_hem.bmp",
            "UID_H2_2_1_hem.bmp",
        ): "the number after UID_ in",
    }.items():
        facts = open_batch([pack(tmp_path / "cells.zip", dict.fromkeys(names, b""))]).facts(("ALL", "HEM"))
        assert facts.guess.startswith(f"Subjects were guessed from {note}") and facts.notes == ()


def test_a_table_that_cannot_be_followed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = {f"{number}.png": png() for number in range(1, 5)}

    def facts(table: bytes) -> BatchFacts:
        return open_batch([pack(tmp_path / "cells.zip", {**flat, "cells.csv": table})]).facts(("ALL", "HEM"))

    with pytest.raises(LeukoscopeError, match=r"^cells\.csv: names no subject for '4\.png' \(1 of 4 pictures\)"):
        facts(TABLE.replace(b"HEM", b"hem").rsplit(b"\n", 2)[0])
    with pytest.raises(LeukoscopeError, match=r"1\.png' is there with subject 'Anna' .* and with 'Ben'"):
        facts(TABLE.replace(b"hem", b"HEM").replace(b"4.png", b"1.png"))
    foreign = facts(TABLE.replace(b"HEM", b"AML").replace(b"hem", b"AML"))
    assert list(foreign.class_of.values()) == ["ALL", "ALL", "", ""]
    assert foreign.notes[-1] == "The table names classes that this model does not know: AML."
    others = facts(b"picture,patient\n1.png,Anna\n2.png,Ben\n")
    assert others.notes == ("cells.csv: has no column of image files, such as “file”; it was not used.",)
    monkeypatch.setattr(batch_files, "MAX_TABLE", 20)
    with pytest.raises(LeukoscopeError, match=r"^cells\.zip: cells\.csv: is over 0 MB; give a table of these pictures"):
        facts(TABLE)


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
