"""The content of files: sha256 of their bytes, remembered until a file changes.

Cells, start weights and scored pictures are known by name and content, so that a copy on another machine is the same
data, and a file that was replaced is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from leukoscope.files import cache_root, write_atomic
from leukoscope.progress import track

# A file system's clock may be this coarse (FAT): what was written within it may be written again at the same time.
_TICK = 2_000_000_000  # ns


def content_hashes(paths: Iterable[str | os.PathLike[str]], kept: Path | None = None) -> dict[str, str]:
    """Hash files: path as given → sha256 of its bytes; "" for what is no file or cannot be read.

    Args:
        kept: a JSON file that remembers hashes, made where it is missing. A file is read again only if its size, times
            or inode changed since. The time of change is set by the system: copying with old dates does not hide it.
    """
    names = [os.fspath(path) for path in paths]
    before, fresh = _read(kept), dict[str, list[Any]]()

    def hashed(name: str) -> str:
        place, started = os.path.abspath(name), time.time_ns()
        if (state := file_state(name)) is None:
            return ""
        if (known := before.get(place)) and known[:-1] == state:
            return str(known[-1])
        try:
            with open(place, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""
        if started - max(state[1:3]) > _TICK:
            fresh[place] = [*state, digest]
        return digest

    with ThreadPoolExecutor() as pool:
        hashes = list(track(pool.map(hashed, names), "reading files", len(names)))
    if kept and fresh:
        with suppress(OSError):  # they are hashed again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, json.dumps(before | fresh))
    return dict(zip(names, hashes, strict=True))


def file_state(path: str | None) -> list[int] | None:
    """Size, times (ns) and inode of a file, which tell whether it was replaced; None for what is no file."""
    try:
        found = os.stat(path or "")
    except (OSError, ValueError):  # a path may hold a zero byte
        return None
    regular = stat.S_ISREG(found.st_mode)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino] if regular else None


def hashes_of_folder(root: Path) -> Path:
    """Where the cache remembers the hashes of a folder's files."""
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_root() / f"hashes-{key}.json"


def _read(kept: Path | None) -> dict[str, list[Any]]:
    if kept is not None:
        with suppress(OSError, ValueError):  # missing, or damaged
            found = json.loads(kept.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {}
