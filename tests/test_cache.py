"""What is kept between runs has an end, and nothing that a running process uses is deleted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leukoscope import LeukoscopeError
from leukoscope.cache import GRAPH_REPORT, clear, entries, hold, is_held, tidy
from leukoscope.cli import app

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    monkeypatch.delenv("LEUKOSCOPE_CACHE_GB", raising=False)
    return tmp_path


def keep(root: Path, name: str, *, days: float, size: int = 1000) -> Path:
    """A kept file of so many bytes, last used so many days ago."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def test_what_was_not_used_for_thirty_days_goes_with_all_its_files(root: Path) -> None:
    old = keep(root, "cells-a.npy", days=31)
    facts = keep(root, "cells-a.facts.json", days=31)
    features = keep(root, "features-b.npy", days=31)
    digest = keep(root, "features-b.sha256", days=31)
    graph = keep(root, f"graphs/c/{GRAPH_REPORT}", days=31)
    young = keep(root, "cells-d.npy", days=29)
    other = keep(root, "hashes-e.json", days=400)
    assert {entry.path for entry in tidy()} == {old, features, graph.parent}
    assert not any(path.exists() for path in (old, facts, features, digest, graph.parent))
    assert young.exists() and other.exists()
    assert tidy() == []


def test_above_the_limit_the_longest_unused_goes_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [keep(root, f"cells-{days}.npy", days=days) for days in (1, 3, 2)]
    monkeypatch.setenv("LEUKOSCOPE_CACHE_GB", "2e-6")  # 2,000 bytes
    tidy()
    assert [path.exists() for path in kept] == [True, False, True]
    hold(kept[2])
    monkeypatch.setenv("LEUKOSCOPE_CACHE_GB", "0")
    tidy()
    assert [path.exists() for path in kept] == [False, False, True], "this process holds the third"


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is mapped cannot be deleted there")
def test_what_another_process_holds_stays_until_it_ends(root: Path) -> None:
    path = keep(root, "cells-a.npy", days=100)
    code = "import sys; from pathlib import Path; from leukoscope.cache import hold; hold(Path(sys.argv[1])); input()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE) as process:
        limit = time.monotonic() + 60
        while not is_held(path) and time.monotonic() < limit:
            time.sleep(0.05)
        os.utime(path, (0, 0))
        assert tidy() == [] and [entry.path for entry in clear()] == [path]
        process.communicate(b"\n")
    assert [entry.path for entry in tidy()] == [path]


def test_use_is_remembered(root: Path) -> None:
    path = keep(root, "cells-a.npy", days=29)
    hold(path)
    (entry,) = entries()
    assert entry.last_used == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE_GB", text)
    with pytest.raises(LeukoscopeError, match=f"LEUKOSCOPE_CACHE_GB={text}: is not a number of gigabytes; give one"):
        tidy()


def test_the_command_lists_and_clears(root: Path) -> None:
    keep(root, "cells-a.npy", days=3, size=20_000_000)
    keep(root, f"graphs/c/{GRAPH_REPORT}", days=2)
    listed = CliRunner().invoke(app, ["cache"]).stdout
    assert "cells-a.npy" in listed and "decoded cells" in listed and "3 day(s) ago" in listed
    assert "graph of a network" in listed and listed.endswith(f"{root}: 0.02 GB of at most 20.00 GB\n")
    cleared = CliRunner().invoke(app, ["cache", "--clear"])
    assert cleared.stdout == f"{root}: 0.02 GB deleted; 0.00 GB in use\n"
    assert entries() == []
