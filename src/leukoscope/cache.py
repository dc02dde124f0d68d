"""What Leukoscope keeps between runs: decoded cells, features of frozen backbones, graphs of networks.

They lie in one folder (`leukoscope.files.cache_root`). What no running process holds is deleted after 30 days without
use, and the longest unused first where all together exceed `LEUKOSCOPE_CACHE_GB` gigabytes.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from leukoscope import ConfigError
from leukoscope.files import cache_root

try:
    import fcntl
except ImportError:  # Windows, where a file that is mapped cannot be deleted
    fcntl = None  # type: ignore[assignment]

DAYS_KEPT = 30
DEFAULT_GIGABYTES = 20.0
CACHE_KINDS = {"cells": "decoded cells", "features": "features of a frozen backbone", "graphs": "graph of a network"}
GRAPH_REPORT = "export.json"
"""The file of a cached graph that a process locks and marks as used."""
_HAS_LOCKS = fcntl is not None
_held: dict[Path, BinaryIO] = {}


@dataclass(frozen=True)
class CacheEntry:
    """One cached array with the file that describes it, or one cached graph."""

    kind: str  # a key of `CACHE_KINDS`
    path: Path  # the array; of a graph, its folder
    files: tuple[Path, ...]
    last_used: float  # seconds since 1970

    @property
    def bytes(self) -> int:
        """Its size on the disk."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    @property
    def marker(self) -> Path:
        """The file that a process locks while it uses the entry."""
        return self.path / GRAPH_REPORT if self.kind == "graphs" else self.path

    def delete(self) -> bool:
        """Delete the entry unless a running process uses it; returns whether it was deleted."""
        if is_held(self.marker):
            return False
        with suppress(OSError):
            if self.kind == "graphs":
                shutil.rmtree(self.path)
            else:
                for file in self.files:
                    file.unlink(missing_ok=True)
            return True
        return False


def hold(marker: Path) -> None:
    """Mark a cached file as used now, and lock it until this process ends; does nothing if the file does not exist."""
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(marker)
    if not _HAS_LOCKS:
        return
    with suppress(OSError):
        file = marker.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _held[marker] = file  # an earlier one is closed, which gives its lock back


def is_held(marker: Path) -> bool:
    """Whether a running process, this one included, has locked a cached file; False on systems without such locks."""
    if not _HAS_LOCKS:
        return False
    try:
        with marker.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def entries() -> list[CacheEntry]:
    """All entries, the least recently used first."""
    root = cache_root()
    caches = []
    for kind in ("cells", "features"):
        for array in root.glob(f"{kind}-*.npy"):
            files = tuple(root.glob(f"{array.stem}.*"))
            caches.append(CacheEntry(kind, array, files, array.stat().st_mtime))
    for report in (root / "graphs").glob(f"*/{GRAPH_REPORT}"):
        caches.append(CacheEntry("graphs", report.parent, tuple(report.parent.iterdir()), report.stat().st_mtime))
    return sorted(caches, key=lambda entry: entry.last_used)


def limit_in_bytes() -> float:
    """`LEUKOSCOPE_CACHE_GB` in bytes.

    Raises:
        ConfigError: it is not a number of gigabytes.
    """
    text = os.environ.get("LEUKOSCOPE_CACHE_GB") or str(DEFAULT_GIGABYTES)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1
    if not gigabytes >= 0:
        raise ConfigError(f"LEUKOSCOPE_CACHE_GB={text}: is not a number of gigabytes; give one such as 20")
    return gigabytes * 1e9


def tidy() -> list[CacheEntry]:
    """Delete entries not used for 30 days, then the least recently used above the limit; returns the deleted ones."""
    limit = limit_in_bytes()
    caches = entries()
    total = sum(entry.bytes for entry in caches)
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    deleted = []
    for entry in caches:
        size = entry.bytes
        if (entry.last_used < oldest or total > limit) and entry.delete():
            deleted.append(entry)
            total -= size
    return deleted


def clear() -> list[CacheEntry]:
    """Delete the entries that no running process uses; returns the entries that are left."""
    return [entry for entry in entries() if not entry.delete()]
