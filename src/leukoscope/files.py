"""Files that come with Leukoscope, hashes of files, and writing files and folders completely or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from leukoscope import LeukoscopeError

# The first bytes of a Git LFS pointer, the text in place of a file that was not fetched yet.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_BETWEEN_RENAMES = 5.0  # seconds
# ns after which another change of a file shows in its times: the clock of a file system may be this coarse (FAT).
_TICK = 2_000_000_000
_ABANDONED = 86_400.0  # seconds after which a temporary file or folder was left by a killed process


def first_line(error: Exception) -> str:
    """The first line of an error's text, without its full stop; its type where it has no text."""
    # The full text of a file system's error holds the path of the cache.
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0].rstrip(".")


def remedy(error: Exception, otherwise: str) -> str:
    """The fix for a write error: `otherwise`, and first to free some space if the disk is full."""
    # safetensors' own errors have no errno.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if full:
        return f"free some space or {otherwise}"
    return otherwise


@contextmanager
def disk_errors(problem: str, otherwise: str, *, needed: int | None = None) -> Iterator[None]:
    """Turn write errors within the block into `LeukoscopeError`, with the system's reason and the fix.

    Args:
        problem: the place and what cannot be done there, as "runs/a: cannot be written".
        otherwise: the fix, unless the disk is full.
        needed: bytes that were to be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # shutil.Error, of copying a tree, holds one error per file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else getattr(error, "strerror", None) or error
        space = "" if needed is None else f"; {needed / 1e6:.0f} MB needed"
        raise LeukoscopeError(f"{problem} ({reason}{space}); {remedy(error, otherwise)}") from None


def require_space(folder: Path, needed: int) -> None:
    """Raise `OSError` where `needed` bytes do not fit on a folder's disk."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_hashes: dict[str, list[Any]] = {}


def file_state(path: str | Path) -> list[int] | None:
    """Size, times (ns) and inode of a file, which tell whether it was replaced; None for what is no file.

    The time of change is set by the system: copying with old dates does not hide it.
    """
    try:
        status = os.stat(path or "")
    except (OSError, ValueError):  # a path may hold a zero byte
        return None
    regular = stat.S_ISREG(status.st_mode)
    if regular:
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return None


def file_sha256(path: str | Path, memory: dict[str, list[Any]] = _hashes) -> str:
    """The sha256 of a file's bytes, read again only if its state is not the one in `memory`; raises `OSError`."""
    place = os.path.abspath(path)
    started = time.time_ns()
    state = file_state(place)
    remembered = memory.get(place)
    if state and remembered and remembered[:-1] == state:
        return str(remembered[-1])
    with open(place, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if state and started - max(state[1:3]) > _TICK:
        memory[place] = [*state, digest]
    return digest


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, ending in `.tmp`, that replaces it when the block ends without an error.

    After an `OSError`, an older `target` is unchanged.
    """
    # In containers, two processes that write the same file both have process id 1.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    _remove_abandoned(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> Path:
    """Write a text file with `atomic_file`, and return its path; after an `OSError`, an older one is unchanged."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a path for a folder, which does not exist yet, that replaces `target` when the block ends without an error.

    It lies beside `target`, where no other process writes. After an `OSError`, `target` is unchanged.
    """
    target = target.resolve()  # "." has no name, and a link must stay a link
    old = target.with_name(f".{target.name}.old")
    restore_replaced(target)
    _remove_abandoned(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as aside:
        temporary = Path(aside, target.name)
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files and folders of `target` that killed processes left more than a day ago."""
    for other in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > _ABANDONED:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def is_git_clone(folder: Path) -> bool:
    """Whether a folder is a git clone, whose history would be lost if the folder were replaced."""
    return (folder / ".git").exists()


def restore_replaced(target: Path) -> None:
    """Restore a folder whose replacing process was killed between the renames of `atomic_folder`; raises `OSError`."""
    target = target.resolve()
    old = target.with_name(f".{target.name}.old")
    # The first rename set this time, and a process that still runs makes the second within a second.
    if not target.exists() and old.exists() and time.time() - old.stat().st_ctime > _BETWEEN_RENAMES:
        old.rename(target)


_HOMES = (
    Path(__file__).parents[2],  # a checkout
    # An installed wheel; with --user or --target, pip does not install below sys.prefix.
    *(above / "share" / "leukoscope" for above in Path(__file__).parents[1:5]),
)


def resource_file(name: str) -> Path:
    """Find a file that comes with Leukoscope, by its path in the repository; raises `LeukoscopeError` without one."""
    for home in _HOMES:
        if (home / name).is_file():
            return home / name
    raise LeukoscopeError(f"{_HOMES[0] / name}: the file is missing; restore it from the repository")


def embedded_releases() -> Path:
    """The folder of the releases that come along: all in a clone, one in an installed wheel."""
    return resource_file("model_card/template.md").parent
