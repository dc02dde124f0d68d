"""Who calls first comes first, a waiting question knows for whom, and one that is given up is not computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from threading import Event, Thread

import pytest

from leukoscope.web.work_queue import WARM_UP, Question, Threads, WorkQueue, asking, steps_of


def _ask(question: Question, queue: WorkQueue[int], number: int) -> Thread:
    """A thread in which the question calls the queue's function."""

    def call() -> None:
        asking.set(question)
        queue(number)

    thread = Thread(target=call)
    thread.start()
    return thread


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class _Held:
    """A queue of one thread whose work ends when it is let go on; it notes what was done."""

    def __init__(self) -> None:
        self.go_on = Event()
        self.done: list[int] = []
        self.queue = WorkQueue(self._work, Threads(1))

    def _work(self, number: int) -> int:
        self.go_on.wait(10)
        self.done.append(number)
        return number


def test_a_question_waits_for_others_only_behind_the_work_of_another_visitor() -> None:
    for running, waiting, expected in ((1, 2, True), (1, 1, False), (WARM_UP, 2, False)):
        held = _Held()
        first, second = Question(running), Question(waiting)
        threads = [_ask(first, held.queue, 1)]
        _until(lambda question=first: question.work is not None and question.work.running())  # type: ignore[misc]
        threads.append(_ask(second, held.queue, 2))
        _until(lambda question=second: question.queue is not None)  # type: ignore[misc]
        assert second.waits_for_others is expected
        assert not first.waits_for_others
        held.go_on.set()
        for thread in threads:
            thread.join(10)
        assert held.done == [1, 2]
        assert not second.waits_for_others
        assert second.queue is None


def test_steps_come_in_order_with_none_while_one_is_computed() -> None:
    def steps() -> Generator[str]:
        yield "first"
        time.sleep(0.7)
        yield "second"

    seen = list(steps_of(Question(), steps()))
    assert [step for step in seen if step] == ["first", "second"]
    assert None in seen[1:-1]


def test_an_error_of_a_step_reaches_who_asked() -> None:
    def steps() -> Generator[str]:
        yield "first"
        raise ValueError("the picture is damaged")

    question = Question()
    seen = steps_of(question, steps())
    assert next(seen) == "first"
    with pytest.raises(ValueError, match="the picture is damaged"):
        list(seen)
    assert question.abandoned


def test_a_question_given_up_computes_no_further_step() -> None:
    closed = Event()
    computed: list[int] = []

    def steps() -> Generator[int]:
        try:
            for number in range(1, 9):
                computed.append(number)
                yield number
        finally:
            closed.set()

    question = Question()
    seen = steps_of(question, steps())
    assert next(seen) == 1
    seen.close()
    assert question.abandoned
    assert closed.wait(10)
    assert computed == [1]


def test_work_that_waits_leaves_its_queue_when_it_is_given_up() -> None:
    held = _Held()
    first, second = Question(1), Question(2)
    thread = _ask(first, held.queue, 1)
    _until(lambda: first.work is not None and first.work.running())

    def call() -> None:
        asking.set(second)
        with pytest.raises(CancelledError):
            held.queue(2)

    given_up = Thread(target=call)
    given_up.start()
    _until(lambda: second.queue is not None)
    second.abandon()
    held.go_on.set()
    thread.join(10)
    given_up.join(10)
    assert held.done == [1]
