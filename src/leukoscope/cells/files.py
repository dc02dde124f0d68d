"""Where files are kept between runs, and writing them so that they are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BETWEEN_RENAMES = 5.0  # seconds


def cache_root() -> Path:
    """Where decoded cells and exported graphs are kept: `$LEUKOSCOPE_CACHE`, else `~/.cache/leukoscope`."""
    return Path(os.environ.get("LEUKOSCOPE_CACHE", Path.home() / ".cache" / "leukoscope"))


def write_whole(path: Path, text: str) -> Path:
    """Write text aside, then rename: a reader, or a killed process, never leaves or meets half a file.

    Returns:
        `path`.

    Raises:
        OSError: the disk refuses; an older file of that name is untouched.
    """
    # By process, because two that decode the same cells may finish together.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text)
    aside.replace(path)
    return path


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """A folder to be made, which takes the place of `target` when all went well.

    Yields:
        where to make it, beside `target`; nothing is there yet.

    Raises:
        OSError: the disk refuses; `target` is then as it was.
    """
    aside = target.with_name(f".{target.name}.tmp")
    restore_replaced(target)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        _swap_in(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def restore_replaced(target: Path) -> None:
    """Put back the folder that a process was replacing when it was killed between its two renames.

    Raises:
        OSError: the disk refuses.
    """
    old = target.with_name(f".{target.name}.old")
    # A process that is alive needs no second for the other rename; the first one set this time.
    if not target.exists() and old.exists() and time.time() - old.stat().st_ctime > _BETWEEN_RENAMES:
        old.rename(target)


def _swap_in(aside: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one, which stays if that fails."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
