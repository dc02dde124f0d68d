"""`leukoscope cache`: what is kept between runs, and how to delete it."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from typer import Option

from leukoscope.cli.options import print_table


def cache(clear: Annotated[bool, Option("--clear", help="Delete the entries that no process uses.")] = False) -> None:
    """List the cache: decoded cells, features, networks and hashes of files, least recently used first.

    Leukoscope deletes entries that were not used for 30 days, and the least recently used entries if the cache is
    larger than LEUKOSCOPE_CACHE_GB gigabytes (20). LEUKOSCOPE_CACHE names the folder.
    """
    from leukoscope.cache import CACHE_KINDS, cache_root, entries, is_held, limit_in_bytes
    from leukoscope.cache import clear as clear_cache

    limit = limit_in_bytes()
    if clear:
        bytes_before = sum(entry.bytes for entry in entries())
        bytes_left = sum(entry.bytes for entry in clear_cache())
        typer.echo(f"{cache_root()}: {_gigabytes(bytes_before - bytes_left)} deleted; {_gigabytes(bytes_left)} in use")
        return
    caches = entries()
    rows = []
    for entry in caches:
        days = (time.time() - entry.last_used) / (24 * 3600)
        use = "in use" if is_held(entry.path) else f"{days:.0f} day(s) ago"
        rows.append([entry.path.name, CACHE_KINDS[entry.kind], _gigabytes(entry.bytes), use])
    if rows:
        print_table(["name", "what", "size", "last used"], rows)
    total = sum(entry.bytes for entry in caches)
    typer.echo(f"{cache_root()}: {_gigabytes(total)} of at most {_gigabytes(limit)}")


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
