"""A file is known by what it holds: read once, and again whenever it was written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from leukoscope.data import content
from leukoscope.data.content import content_hashes

YEARS_AGO = 1_500_000_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(content, "_TICK", -1)  # else it waits until the clock has moved on
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
    content_hashes([file], tmp_path / "hashes.json")
    assert not (tmp_path / "hashes.json").exists()


@pytest.mark.parametrize("damage", ["{", "[1]", "{}"])
def test_a_damaged_record_costs_nothing_but_time(file: Path, tmp_path: Path, damage: str) -> None:
    kept = tmp_path / "hashes.json"
    kept.write_text(damage)
    assert content_hashes([file], kept)[str(file)] == sha256(b"one cell").hexdigest()
    assert str(file) in json.loads(kept.read_text())


def test_a_record_that_cannot_be_written_is_done_without(file: Path) -> None:
    assert content_hashes([file], file / "hashes.json")[str(file)] == sha256(b"one cell").hexdigest()


def test_what_is_no_file_has_no_hash(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = [str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "pipe"), "zero\0byte"]
    assert content_hashes(names) == dict.fromkeys(names, "")


def test_a_copy_has_the_same_hash(file: Path, tmp_path: Path) -> None:
    copy = shutil.copy(file, tmp_path / "copy")
    assert len(set(content_hashes([file, copy]).values())) == 1
