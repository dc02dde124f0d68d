"""What Leukoscope keeps between runs: decoded cells, features of frozen backbones, networks, hashes of files.

An entry is a folder below `cache_root`. Beside each of its files lies a record of the file's length and sha256, which
`intact` compares before the file is used: whoever needs a damaged file makes it again. Whole files are compared, since
sha256 reads 1.4 GB a second: 171,375 cells at 224 px, those of the largest public set, take 20 seconds.
Entries that no running process holds are deleted after 30 days without use, and the least recently used first where
all together exceed `LEUKOSCOPE_CACHE_GB` gigabytes.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from leukoscope import ConfigError
from leukoscope.files import atomic_file, file_sha256, file_state, first_line, require_space, write_atomic
from leukoscope.progress import map_in_threads, note

try:
    import fcntl
except ImportError:  # Windows, where a file that is mapped cannot be deleted
    fcntl = None  # type: ignore[assignment]

DAYS_KEPT = 30
DEFAULT_GIGABYTES = 20.0
CACHE_KINDS = {
    "cells": "decoded cells",
    "features": "features of a frozen backbone",
    "graphs": "compiled network",
    "hashes": "hashes of files",
}
_KEY_LENGTH = 16
_HAS_LOCKS = fcntl is not None
_held: dict[Path, int] = {}  # folder → descriptor that carries the lock


# Files of an entry


def entry_folder(kind: str, *identity: object) -> Path:
    """The folder of an entry of a kind of `CACHE_KINDS`; `identity` is whatever its content depends on."""
    key = sha256(repr(identity).encode()).hexdigest()[:_KEY_LENGTH]
    return cache_root() / f"{kind}-{key}"


def intact(path: Path) -> Path | None:
    """Return a file's path if its length and sha256 are as recorded; None if it is missing or damaged.

    A note names a damaged file. The folder counts as used now, and stays until this process ends.
    """
    hold(path.parent)
    with suppress(OSError, UnicodeDecodeError):
        if _record_file(path).read_text(encoding="utf-8") == _record_of(path):
            return path
    if path.exists():
        note(f"{path}: damaged; it is made again", err=True)
    return None


@contextmanager
def replacing(path: Path, *, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path; what is written there replaces `path` when the block ends, with its record.

    Each file is complete by itself, so what takes long may be kept as several files of one entry.

    Args:
        needed: bytes that will be written; what was not used for long is deleted before.

    Raises:
        OSError: the disk refuses, or has less space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hold(path.parent)
    tidy()
    require_space(path.parent, needed)
    with atomic_file(path) as temporary:
        yield temporary
        record = _record_of(temporary)
        # Without a record a file counts as damaged; the older file's record must not stay beside the new file.
        _record_file(path).unlink(missing_ok=True)
    try:
        write_atomic(_record_file(path), record)
    except OSError:
        path.unlink()
        raise


def _record_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record_of(path: Path) -> str:
    return f"{path.stat().st_size} {file_sha256(path)}\n"


def content_hashes(paths: Iterable[str | Path], remembered: Path | None = None) -> dict[str, str]:
    """Hash files: path as given → sha256 of its bytes; "" for what is no file or cannot be read.

    Cells, start weights and scored pictures are identified by name and content, so that a copy on another machine is
    the same data, and a file that was replaced is not. `remembered` is a JSON file of earlier hashes, made where it is
    missing or damaged.
    """
    names = [str(path) for path in paths]
    memory: dict[str, list[Any]] = {}
    if remembered and intact(remembered):
        memory = json.loads(remembered.read_text(encoding="utf-8"))
    before = dict(memory)

    def hashed(name: str) -> str:
        if not file_state(name):  # opening a pipe would block
            return ""
        with suppress(OSError):
            return file_sha256(name, memory)
        return ""

    hashes = map_in_threads(hashed, names, "reading files", unit="files")
    if remembered and memory != before:
        with suppress(OSError), replacing(remembered) as temporary:  # they are hashed again next time
            temporary.write_text(json.dumps(memory), encoding="utf-8")
    return dict(zip(names, hashes, strict=True))


# The folder of all entries


def cache_root() -> Path:
    """The folder of all entries: `$LEUKOSCOPE_CACHE`, by default `~/.cache/leukoscope`.

    In a container without a home folder, or with one that cannot be written, a temporary folder takes its place.
    """
    named = os.environ.get("LEUKOSCOPE_CACHE")
    if named:
        return Path(named)
    try:
        folder = Path.home() / ".cache" / "leukoscope"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = f"{folder} cannot be written"
    except (OSError, RuntimeError) as error:  # no home folder
        reason = first_line(error)
    return _temporary_cache(reason)


@cache
def _temporary_cache(reason: str) -> Path:
    folder = Path(mkdtemp(prefix="leukoscope-"))
    os.environ.setdefault("MPLCONFIGDIR", str(folder))  # else Matplotlib says in its own words that it has no home
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print(f"{reason}: the cache lasts for this run; LEUKOSCOPE_CACHE names a folder for it", file=sys.stderr)
    return folder


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache, as it is listed and deleted."""

    kind: str  # a key of `CACHE_KINDS`
    path: Path
    last_used: float  # seconds since 1970

    @property
    def bytes(self) -> int:
        """Its size on the disk."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())

    def delete(self) -> bool:
        """Delete the entry unless a running process uses it; returns whether it was deleted."""
        if is_held(self.path):
            return False
        with suppress(OSError):
            shutil.rmtree(self.path)
            return True
        return False


def hold(folder: Path) -> None:
    """Mark an entry as used now, and lock it until this process ends; does nothing if the folder does not exist."""
    with suppress(OSError):  # the cache may be another user's, or read-only
        os.utime(folder)
    if not _HAS_LOCKS:
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        earlier = _held.pop(folder, None)
        _held[folder] = descriptor
        if earlier is not None:
            os.close(earlier)


def is_held(folder: Path) -> bool:
    """Whether a running process, this one included, has locked an entry; False on systems without such locks."""
    if not _HAS_LOCKS:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def entries() -> list[CacheEntry]:
    """All entries, the least recently used first."""
    caches = []
    for kind in CACHE_KINDS:
        for folder in cache_root().glob(f"{kind}-{'[0-9a-f]' * _KEY_LENGTH}"):
            with suppress(OSError):  # another process deletes it
                caches.append(CacheEntry(kind, folder, folder.stat().st_mtime))
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
