"""Progress of long work, and notes about it.

Progress goes to stderr: on a terminal as rich's bar with the time left, elsewhere as a line every 30 seconds. Notes go
to the logger "leukoscope" at level INFO; the commands print them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

EVERY = 30.0  # seconds between two lines where stderr is no terminal

_LOGGER = logging.getLogger("leukoscope")
_T = TypeVar("_T")
_Item = TypeVar("_Item")
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
# Two bars at a time would draw over each other: work within other work shows none of its own.
_bar_is_open: ContextVar[bool] = ContextVar("bar_is_open", default=False)


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Show no progress within the block, where that is `wanted`."""
    before = _quiet.set(wanted or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(before)


def is_quiet() -> bool:
    """Whether this is within `quiet`."""
    return _quiet.get()


@contextmanager
def progress(
    label: str, total: int | None = None, *, unit: str = "cells", done: int = 0
) -> Iterator[Callable[..., None]]:
    """Show how far, how fast and how long yet the work within the block is.

    Yields a function to call after each part, `advance(by=1)`.

    Nothing is shown when `quiet`, within another such block, and in all but the first process of a launcher.

    Args:
        label: what is done, as in "decoding".
        total: its number of parts, each a `unit`; None where that is not known, and only the time so far is shown.
        done: how many of them were done before.
    """
    if _quiet.get() or _bar_is_open.get() or not _is_first():
        yield lambda by=1: None
        return
    times: list[rich_progress.ProgressColumn] = [rich_progress.TimeElapsedColumn()]
    if total is not None:
        times = [rich_progress.MofNCompleteColumn(), _Rate(), rich_progress.TimeRemainingColumn()]
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        *times,
        console=Console(stderr=True),
        transient=True,
        # What is printed to stdout meanwhile must not end on stderr, unless both are the terminal.
        redirect_stdout=sys.stdout.isatty(),
        disable=not sys.stderr.isatty(),  # it still measures the speed there
        speed_estimate_period=3600,  # seconds; a part may take minutes
    )
    bars.add_task(label, total=total, completed=done, unit=unit)
    (task,) = bars.tasks  # `add_task` returns its number only
    bars.advance(task.id, 0)  # the clock starts now, so that the first part gives a rate
    ended = threading.Event()
    if bars.disable:
        threading.Thread(target=_print_lines, args=(task, ended), daemon=True).start()
    _bar_is_open.set(True)
    try:
        with bars:
            yield lambda by=1: bars.advance(task.id, by)
    finally:
        ended.set()
        _bar_is_open.set(False)  # no `reset`: an abandoned generator may end in another context


class _Rate(rich_progress.ProgressColumn):
    """The unit of a task and, once a part is done, how many of them a second."""

    def render(self, task: rich_progress.Task) -> Text:
        """Draw it."""
        return Text(task.fields["unit"] + _rate(task))


def _rate(task: rich_progress.Task) -> str:
    """ ", 12.3/s", or "" as long as no part is done."""
    if not task.speed:
        return ""
    return f", {task.speed:.3g}/s"


def _print_lines(task: rich_progress.Task, ended: threading.Event) -> None:
    """Print how far a task is, every `EVERY` seconds until it has ended."""
    started = time.monotonic()
    while not ended.wait(EVERY):
        line = f"{task.description}: {duration(time.monotonic() - started)} so far"
        if task.total is not None:
            left = "" if task.time_remaining is None else f", about {duration(task.time_remaining)} left"
            unit = task.fields["unit"]
            line = f"{task.description}: {task.completed:,.0f} of {task.total:,.0f} {unit}{_rate(task)}{left}"
        print(line, file=sys.stderr, flush=True)


def track(
    items: Iterable[_T], label: str, total: int | None = None, *, unit: str = "cells", done: int = 0
) -> Iterator[_T]:
    """Iterate over items and show how many are done, as `progress` does; where `total` is None, it is their number."""
    if total is None and isinstance(items, Sized):
        total = done + len(items)
    with progress(label, total, unit=unit, done=done) as advance:
        for item in items:
            yield item
            advance()


def map_in_threads(
    function: Callable[[_Item], _T], items: Sequence[_Item], label: str = "", *, unit: str = "cells"
) -> list[_T]:
    """`function` of each item, in order, by a few threads; shown as `track` does under a label that is not ""."""
    # An executor's `map` holds a future of 1.7 kB for each item: 0.3 GB for 171,375 cells.
    with ThreadPool(min(32, (os.cpu_count() or 1) + 4)) as pool:
        outcomes = pool.imap(function, items, chunksize=32)
        if label:
            return list(track(outcomes, label, len(items), unit=unit))
        return list(outcomes)


def shown_name(name: str) -> str:
    r"""Write bytes of a file's name that are not UTF-8, which no log, table, PNG or JSON file takes, as `\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def note(text: str, *, err: bool = False) -> None:
    """Log a line about work under way; nothing for "", when `quiet`, and in all but the first process of a launcher.

    `err` marks it for stderr where `print_notes` prints it, because stdout may be read as JSON.
    """
    if text and not _quiet.get() and _is_first():
        _LOGGER.info(shown_name(text), extra={"to_stderr": err})


class _Printer(logging.Handler):
    """Prints notes as they are, to the streams of this moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one; the errors of a closed pipe are the command's to handle."""
        stream = sys.stdout
        if getattr(record, "to_stderr", True):
            stream = sys.stderr
        print(record.getMessage(), flush=True, file=stream)


def print_notes() -> None:
    """Print what is noted from now on: for commands, whose users read it."""
    if not any(isinstance(handler, _Printer) for handler in _LOGGER.handlers):
        _LOGGER.addHandler(_Printer())
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def _is_first() -> bool:
    # As torchrun and accelerate launch number their processes.
    return os.environ.get("RANK", "0") == "0"


def duration(seconds: float) -> str:
    """A time in words, as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
