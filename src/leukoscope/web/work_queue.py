"""Queues in which the work of several visitors waits, and the questions that wait there.

A question is computed by a thread of its own, so that the page can say meanwhile that it waits, and can end it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar, cast

POLL_SECONDS = 0.3
WARM_UP = -1
"""The visitor of what the demo computes for itself before anybody asks."""
_T = TypeVar("_T")
_Step = TypeVar("_Step")


@dataclass(eq=False)
class Question:
    """What somebody asked.

    Attributes:
        visitor: who asked: any number that is the same for all questions of a visit; None for a program.
        queue: the queue in which its work waits or is done now; None while it is in none.
        work: that work.
        abandoned: nobody waits for the answer any more.
    """

    visitor: int | None = None
    queue: WorkQueue[Any] | None = None
    work: Future[Any] | None = None
    abandoned: bool = False

    @property
    def waits_for_others(self) -> bool:
        """Whether its work has not begun, and that of another visitor is done now."""
        queue = self.queue
        if queue is None or self.work is None or self.work.running() or self.work.done():
            return False
        return any(question.visitor not in (self.visitor, WARM_UP) for question in queue.threads.running())

    def abandon(self) -> None:
        """Take it out of its queue; work that has begun ends where it asks `abandoned`, else at its end."""
        self.abandoned = True
        if self.work is not None:
            self.work.cancel()


asking: ContextVar[Question | None] = ContextVar("asking", default=None)
"""The question that the running code answers."""


class Threads(ThreadPoolExecutor):
    """Threads that know whose calls they run; several queues may share them."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._lock = Lock()
        self._running: list[Question] = []

    def running(self) -> list[Question]:
        """The questions whose calls run now."""
        with self._lock:
            return list(self._running)

    def run_for(self, question: Question, call: Callable[[], _T]) -> _T:
        """Run a call of a question in this thread."""
        with self._lock:
            self._running.append(question)
        try:
            return call()
        finally:
            with self._lock:
                self._running.remove(question)


class WorkQueue(Generic[_T]):
    """A function whose calls wait until a thread is free: who calls first comes first."""

    def __init__(self, function: Callable[..., _T], threads: Threads) -> None:
        self.threads = threads
        self._function = function

    def __call__(self, *args: Any, **options: Any) -> _T:
        """Wait, call the function and return what it returns."""
        question = asking.get() or Question()
        call = partial(self._function, *args, **options)
        question.work = self.threads.submit(copy_context().run, self.threads.run_for, question, call)
        question.queue = self
        try:
            return cast("_T", question.work.result())
        finally:
            question.queue = None


def steps_of(question: Question, steps: Generator[_Step]) -> Generator[_Step | None]:
    """The steps of a question, computed by a thread; None every `POLL_SECONDS` while one is computed.

    When this iterator is closed, the question is abandoned: no further step is computed.
    """
    thread = ThreadPoolExecutor(1)
    computing = None
    try:
        while True:
            computing = thread.submit(copy_context().run, _next_step, question, steps)
            while not computing.done():
                try:
                    computing.exception(timeout=POLL_SECONDS)
                except TimeoutError:
                    yield None
            step = computing.result()
            if step is None:
                return
            yield step
    finally:
        question.abandon()
        if computing is None or computing.done():
            steps.close()
        else:
            thread.submit(steps.close)
        thread.shutdown(wait=False)


def _next_step(question: Question, steps: Iterator[_Step]) -> _Step | None:
    asking.set(question)
    return next(steps, None)
