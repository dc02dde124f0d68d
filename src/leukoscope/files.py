"""The cache folder, files that come with Leukoscope, and writing files and folders completely or not at all."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from leukoscope import LeukoscopeError

# How a file begins that Git LFS has not fetched yet: a text stands in its place.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_BETWEEN_RENAMES = 5.0  # seconds
_ABANDONED = 86_400.0  # seconds after which a temporary file or folder is one of a process that was killed


def remedy(error: Exception, otherwise: str) -> str:
    """What helps where the disk refuses: `otherwise`, and free space only where it is full."""
    # Of safetensors' own errors there is nothing but the text.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return f"free some space or {otherwise}" if full else otherwise


@contextmanager
def disk_errors(problem: str, otherwise: str, *, needed: int | None = None) -> Iterator[None]:
    """Name what cannot be written where the disk refuses it within the block.

    Args:
        problem: the place and what cannot be done there, as "runs/a: cannot be written".
        otherwise: what helps, unless the disk is full.
        needed: bytes.

    Raises:
        LeukoscopeError: the problem, the system's reason and what helps.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        # Copying a tree collects what went wrong, file by file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else getattr(error, "strerror", None) or error
        space = "" if needed is None else f"; {needed / 1e6:.0f} MB needed"
        raise LeukoscopeError(f"{problem} ({reason}{space}); {remedy(error, otherwise)}") from None


def cache_root() -> Path:
    """Where decoded cells and exported graphs are kept: `$LEUKOSCOPE_CACHE`; unset or empty, `~/.cache/leukoscope`."""
    named = os.environ.get("LEUKOSCOPE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "leukoscope"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write a file to a temporary path, which replaces `target` when the block ends without an error.

    Yields:
        the temporary path, in the folder of `target`; its suffix is `.tmp`.

    Raises:
        OSError: the disk refuses; an older `target` is then as it was.
    """
    # Two that decode the same cells may write together, and in containers both are process 1.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    _remove_abandoned(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> Path:
    """Write a text file with `atomic_file`.

    Returns:
        `path`.

    Raises:
        OSError: the disk refuses; an older file of that name is unchanged.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Make a folder at a temporary path, which replaces `target` when the block ends without an error.

    Yields:
        the temporary path, in a folder beside `target` that no other process uses; nothing is there yet.

    Raises:
        OSError: the disk refuses; `target` is then as it was.
    """
    target = target.resolve()  # "." has no name, and a link is to stay one
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
    """Remove the temporary files and folders of `target` that processes left a day ago when they were killed."""
    for other in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > _ABANDONED:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def is_git_clone(folder: Path) -> bool:
    """Whether replacing a folder would delete the history of a git repository."""
    return (folder / ".git").exists()


def restore_replaced(target: Path) -> None:
    """Put back the folder that a process was replacing when it was killed between the two renames of `atomic_folder`.

    Raises:
        OSError: the disk refuses.
    """
    target = target.resolve()
    old = target.with_name(f".{target.name}.old")
    # A process that still runs needs less than a second for the other rename; the first one set this time.
    if not target.exists() and old.exists() and time.time() - old.stat().st_ctime > _BETWEEN_RENAMES:
        old.rename(target)


_HOMES = (
    Path(__file__).parents[2],  # a checkout
    # An installed wheel: below the prefix that pip installed into, which is not sys.prefix with --user or --target.
    *(above / "share" / "leukoscope" for above in Path(__file__).parents[1:5]),
)


def resource_file(name: str) -> Path:
    """Find a file that comes with Leukoscope, by its path in the repository.

    Raises:
        LeukoscopeError: neither the checkout nor the installed wheel contains it.
    """
    for home in _HOMES:
        if (home / name).is_file():
            return home / name
    raise LeukoscopeError(f"{_HOMES[0] / name}: the file is missing; restore it from the repository")


def embedded_releases() -> Path:
    """The folder whose sub-folders are the releases that come with Leukoscope."""
    return resource_file("model_card/template.md").parent
