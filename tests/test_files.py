"""Files and folders are written completely or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from leukoscope.files import atomic_file, atomic_folder, restore_replaced, write_atomic


def test_a_file_replaces_the_older_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == tmp_path and path.read_text() == "old"
        raise OSError("full")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("split.json", "old")]
    assert write_atomic(path, "new") == path
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("split.json", "new")]


def test_what_a_killed_process_left_of_the_same_file_is_removed_a_day_later(tmp_path: Path) -> None:
    path = tmp_path / "cells-[1].npy"
    for number, age in ((1, 2 * 86_400), (2, 60)):
        left = tmp_path / f".{path.name}.{number}.tmp"
        left.write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    write_atomic(path, "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f".{path.name}.2.tmp", path.name]


def test_a_folder_takes_the_place_of_an_older_one_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "cards" / "folder"
    for content in ("first", "second"):
        with atomic_folder(target) as aside:
            aside.mkdir()
            (aside / content).write_text(content)
            assert not (target / content).exists()
    with pytest.raises(OSError, match="full"), atomic_folder(target) as aside:
        aside.mkdir()
        raise OSError("full")
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_of_two_that_write_one_folder_neither_gets_files_of_the_other(tmp_path: Path) -> None:
    target = tmp_path / "release"
    with atomic_folder(target) as first:
        first.mkdir()
        (first / "1").write_text("")
        with atomic_folder(target) as second:
            second.mkdir()
            (second / "2").write_text("")
        assert [path.name for path in target.iterdir()] == ["2"]
    assert [path.name for path in target.iterdir()] == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_folder_whose_replacement_was_killed_between_two_renames_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "release"
    target.mkdir()
    (target / "weights").write_text("kept")
    target.rename(tmp_path / ".release.old")  # and here the process was killed
    restore_replaced(target)
    assert not target.exists(), "a process that is alive may be about to rename its folder"
    monkeypatch.setattr("leukoscope.files._BETWEEN_RENAMES", 0.0)
    restore_replaced(target)
    assert (target / "weights").read_text() == "kept"
    restore_replaced(target)
    assert (target / "weights").read_text() == "kept"


def test_the_current_folder_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of "." there is no name to look for what was replaced."""
    monkeypatch.chdir(tmp_path)
    restore_replaced(Path("."))
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    """Two containers, in which each process is number 1, or two threads."""
    with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "a") as second:
        first.write_text("whole")
        second.write_text("other")
        assert first.read_text() == "whole"
    assert (tmp_path / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "link") as folder:
            folder.mkdir()
            (folder / "file").write_text(content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "real" / "file").read_text() == content
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
