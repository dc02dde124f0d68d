"""Files and folders are written completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from leukoscope import files
from leukoscope.files import atomic_file, atomic_folder, cache_root, content_hashes, restore_replaced, write_atomic


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


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_named_cache_needs_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", "")
    assert cache_root() == Path.home() / ".cache" / "leukoscope"
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("LEUKOSCOPE_CACHE", "/cache")
    assert cache_root() == Path("/cache")


@pytest.mark.parametrize("home", ["read-only", "none"])
def test_without_a_home_that_can_be_written_the_cache_lies_in_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str
) -> None:
    """Containers run as a user without an entry in passwd, or with HOME on a read-only disk."""
    for name in ("LEUKOSCOPE_CACHE", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # to be put back afterwards, whatever it is
        monkeypatch.delenv(name)
    if home == "none":
        monkeypatch.setattr(Path, "home", no_home)
    else:
        (tmp_path / "home").touch()
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files._temporary_cache.cache_clear()
    folder = cache_root()
    assert folder == cache_root() and folder.parent == tmp_path and os.access(folder, os.W_OK)
    assert os.environ["MPLCONFIGDIR"] == str(folder), "Matplotlib says nothing of its own"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": the cache lasts for this run; LEUKOSCOPE_CACHE names a folder for it")


# Files known by what they hold

YEARS_AGO = 1_500_000_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "_TICK", -1)  # else it waits until the clock has moved on
    path = tmp_path / "cell.bmp"
    path.write_bytes(b"one cell")
    os.utime(path, (YEARS_AGO, YEARS_AGO))
    return path


def _rewritten(file: Path) -> None:
    file.write_bytes(b"two cell")


def _replaced(file: Path) -> None:
    """As unzip and `cp -p` do: same name, size and date."""
    other = file.with_name("other")
    other.write_bytes(b"two cell")
    os.utime(other, (YEARS_AGO, YEARS_AGO))
    other.replace(file)


@pytest.mark.parametrize("change", [_rewritten, _replaced])
def test_a_file_is_read_again_only_when_it_changed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    kept = tmp_path / "cache" / "hashes.json"
    assert content_hashes([file], kept) == {str(file): sha256(b"one cell").hexdigest()}
    before = kept.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert content_hashes([file], kept)[str(file)] == sha256(b"one cell").hexdigest()
    assert kept.stat().st_mtime_ns == before
    change(file)
    assert content_hashes([file], kept)[str(file)] == sha256(b"two cell").hexdigest()


def test_what_was_just_written_is_not_remembered(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be written again before the file system's clock moves on."""
    monkeypatch.undo()
    copy = shutil.copy(file, tmp_path / "copy")
    assert len(set(content_hashes([file, copy], tmp_path / "hashes.json").values())) == 1
    assert not (tmp_path / "hashes.json").exists()


def test_a_record_that_is_damaged_or_cannot_be_written_costs_nothing_but_time(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "hashes.json"
    for damage in ("{", "[1]"):
        kept.write_text(damage)
        assert content_hashes([file], kept)[str(file)] == sha256(b"one cell").hexdigest()
        assert str(file) in json.loads(kept.read_text())
    assert content_hashes([file], file / "hashes.json")[str(file)] == sha256(b"one cell").hexdigest()


def test_what_is_no_file_has_no_hash(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = [str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "pipe"), "zero\0byte"]
    assert content_hashes(names) == dict.fromkeys(names, "")
