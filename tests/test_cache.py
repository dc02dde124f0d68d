"""What is kept between runs is checked before it is used, has an end, and is not deleted while a process uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leukoscope import LeukoscopeError, cache, files
from leukoscope.cache import (
    cache_root,
    clear,
    content_hashes,
    entries,
    entry_folder,
    hold,
    intact,
    is_held,
    replacing,
    tidy,
)
from leukoscope.cli import app

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "root"
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(folder))
    monkeypatch.delenv("LEUKOSCOPE_CACHE_GB", raising=False)
    return folder


# Files of an entry


def test_an_entry_is_named_for_all_that_its_content_depends_on(root: Path) -> None:
    folder = entry_folder("cells", "data", 224)
    assert folder.parent == root and folder.name.startswith("cells-")
    assert folder == entry_folder("cells", "data", 224)
    assert len({folder.name, *(entry_folder("cells", *other).name for other in (("data",), ("data", "224")))}) == 3


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "emptied": lambda path: path.write_bytes(b""),
    "half zeros": lambda path: path.write_bytes(bytes(50) + path.read_bytes()[50:]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "without its record": lambda path: path.with_name("array.npy.sha256").unlink(),
    "a damaged record": lambda path: path.with_name("array.npy.sha256").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_and_may_be_replaced(
    damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = entry_folder("features") / "array.npy"
    assert intact(path) is None and capsys.readouterr().err == "", "nothing was there"
    for content in (b"\1" * 100, b"\2" * 100):
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        assert intact(path) == path and path.read_bytes() == content
    damage(path)
    assert intact(path) is None
    assert capsys.readouterr().err == f"{path}: damaged; it is made again\n"


def test_an_older_file_stays_where_its_successor_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    path = entry_folder("features") / "array.npy"
    with replacing(path) as temporary:
        temporary.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device"), replacing(path, needed=10**18):
        pytest.fail("refused before anything is computed")
    with pytest.raises(ValueError, match="a bug"), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise ValueError("a bug")
    assert intact(path) == path and path.read_bytes() == b"old"
    assert len(list(path.parent.iterdir())) == 2


# Hashes of files

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
def test_a_file_is_hashed_again_only_when_it_changed(
    file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    remembered = root / "hashes.json"
    assert content_hashes([file], remembered) == {str(file): sha256(b"one cell").hexdigest()}
    before = remembered.stat().st_mtime_ns
    intact(remembered)  # its own hash is remembered by this process
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert content_hashes([file], remembered)[str(file)] == sha256(b"one cell").hexdigest()
    assert remembered.stat().st_mtime_ns == before
    change(file)
    assert content_hashes([file], remembered)[str(file)] == sha256(b"two cell").hexdigest()


def test_what_was_just_written_is_not_remembered(file: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be written again before the file system's clock moves on."""
    monkeypatch.setattr(files, "_TICK", 2_000_000_000)
    copy = shutil.copy(file, file.with_name("copy"))
    assert len(set(content_hashes([file, copy], root / "hashes.json").values())) == 1
    assert not (root / "hashes.json").exists()


def test_remembered_hashes_that_are_damaged_or_cannot_be_written_cost_nothing_but_time(file: Path, root: Path) -> None:
    remembered = root / "hashes.json"
    content_hashes([file], remembered)
    wrong = remembered.read_text().replace(sha256(b"one cell").hexdigest(), 64 * "0")
    for damage in ("{", wrong):
        remembered.write_text(damage)
        assert content_hashes([file], remembered)[str(file)] == sha256(b"one cell").hexdigest()
        assert sha256(b"one cell").hexdigest() in json.loads(remembered.read_text())[str(file)]
    assert content_hashes([file], file / "hashes.json")[str(file)] == sha256(b"one cell").hexdigest()


def test_what_is_no_file_has_no_hash(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = [str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "pipe"), "zero\0byte"]
    assert content_hashes(names) == dict.fromkeys(names, "")


# The folder of all entries


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
    cache._temporary_cache.cache_clear()
    folder = cache_root()
    assert folder == cache_root() and folder.parent == tmp_path and os.access(folder, os.W_OK)
    assert os.environ["MPLCONFIGDIR"] == str(folder), "Matplotlib says nothing of its own"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": the cache lasts for this run; LEUKOSCOPE_CACHE names a folder for it")


def keep(name: str, *, days: float, size: int = 1000) -> Path:
    """An entry of so many bytes, last used so many days ago."""
    folder = entry_folder(name.partition("-")[0], name)
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(bytes(size))
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return folder


def test_what_was_not_used_for_thirty_days_goes_and_what_is_not_ours_stays(root: Path) -> None:
    old = {keep(f"{kind}-a", days=31) for kind in cache.CACHE_KINDS}
    young = keep("cells-b", days=29)
    foreign = root / "cells-of-mine"
    foreign.mkdir()
    os.utime(foreign, (0, 0))
    assert {entry.path for entry in tidy()} == old
    assert set(root.iterdir()) == {young, foreign}
    assert tidy() == []


def test_above_the_limit_the_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [keep(f"cells-{days}", days=days) for days in (1, 3, 2)]
    monkeypatch.setenv("LEUKOSCOPE_CACHE_GB", "2e-6")  # 2,000 bytes
    tidy()
    assert [path.exists() for path in kept] == [True, False, True]
    hold(kept[2])
    monkeypatch.setenv("LEUKOSCOPE_CACHE_GB", "0")
    tidy()
    assert [path.exists() for path in kept] == [False, False, True], "this process holds the third"


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is mapped cannot be deleted there")
def test_what_another_process_holds_stays_until_it_ends() -> None:
    path = keep("cells-a", days=100)
    code = "import sys; from pathlib import Path; from leukoscope.cache import hold; hold(Path(sys.argv[1])); input()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE) as process:
        limit = time.monotonic() + 60
        while not is_held(path) and time.monotonic() < limit:
            time.sleep(0.05)
        os.utime(path, (0, 0))
        assert tidy() == [] and [entry.path for entry in clear()] == [path]
        process.communicate(b"\n")
    assert [entry.path for entry in tidy()] == [path]


def test_use_is_remembered() -> None:
    hold(keep("cells-a", days=29))
    (entry,) = entries()
    assert entry.last_used == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE_GB", text)
    with pytest.raises(LeukoscopeError, match=f"LEUKOSCOPE_CACHE_GB={text}: is not a number of gigabytes; give one"):
        tidy()


def test_the_command_lists_and_clears(root: Path) -> None:
    cells = keep("cells-a", days=3, size=20_000_000)
    keep("graphs-a", days=2)
    listed = CliRunner().invoke(app, ["cache"]).stdout
    assert cells.name in listed and "decoded cells" in listed and "3 day(s) ago" in listed
    assert "compiled network" in listed and listed.endswith(f"{root}: 0.02 GB of at most 20.00 GB\n")
    cleared = CliRunner().invoke(app, ["cache", "--clear"])
    assert cleared.stdout == f"{root}: 0.02 GB deleted; 0.00 GB in use\n"
    assert entries() == []
