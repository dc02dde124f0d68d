"""A folder is walked once: its pictures are found by content, in a fixed order, and what is left out is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope.data.folder import passed_over
from leukoscope.data.layouts import ImageFolder, find_class_folders
from leukoscope.data.loading import load_cells
from leukoscope.data.registry import DATASETS


def _place(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "purple").save(path)


def test_cells_are_found_in_one_order_whatever_order_they_were_written_in(tmp_path: Path) -> None:
    names = [f"fold_0/all/UID_1_1_{n}_all.png" for n in range(5)]
    _place(tmp_path / "a", *names)
    _place(tmp_path / "b", *reversed(names))
    first, second = ([p.name for p in ImageFolder.read(tmp_path / part).images] for part in "ab")
    assert first == second == sorted(first)


def test_pictures_are_found_by_content_whatever_they_are_called(tmp_path: Path) -> None:
    for kind, name in {
        "PNG": "a",
        "JPEG": "b.jfif",
        "BMP": "c.dat",
        "TIFF": "d.1",
        "WEBP": "e.img",
        "GIF": "f",
    }.items():
        (tmp_path / "ALL").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "ALL" / name, kind)
    (tmp_path / "ALL" / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "ALL" / "notes.txt").write_text("BM is no bitmap")
    os.mkfifo(tmp_path / "ALL" / "pipe")
    for junk in ("@eaDir", "__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / junk).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / junk / "thumbnail.png")
    (tmp_path / "ALL" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "HEM").mkdir()
    assert [path.name for path in ImageFolder.read(tmp_path).images] == ["a", "b.jfif", "c.dat", "d.1", "e.img", "f"]
    told = list(
        passed_over(
            DATASETS["imagefolder"], ImageFolder.read(tmp_path), list(find_class_folders(ImageFolder.read(tmp_path)))
        )
    )
    assert told == [
        "2 file(s) left out, no pictures that can be read: .heic 1, no suffix 1; export them as PNG or JPEG; "
        f"1 hidden file(s) of other programs skipped, for example {tmp_path / '__MACOSX'}",
        "folder 'HEM' holds no picture that can be read: it makes no class",
    ]


def test_loading_walks_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _place(tmp_path, "ALL/1.png", "HEM/1.png", "loose.png")
    walk, walked = os.walk, []

    def counted(root: Any, **options: Any) -> Any:
        walked.append(Path(root))
        return walk(root, **options)

    monkeypatch.setattr(os, "walk", counted)
    assert len(load_cells("imagefolder", tmp_path).train) == 2
    assert walked == [tmp_path]
