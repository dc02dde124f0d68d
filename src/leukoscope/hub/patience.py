"""Asking the Hub again when it is busy: what its client library repeats by itself is uploads, not commits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 4
FIRST_WAIT = 1.0  # seconds; doubled each time
LONGEST_WAIT = 60.0  # seconds; a Hub that asks for more is not waited for
_PASSING = (408, 429, 500, 502, 503, 504)
_T = TypeVar("_T")


def patiently(call: Callable[[], _T], *, repeatable: bool = True) -> _T:
    """Call, and call again after a wait where the Hub is busy or the connection broke.

    Args:
        call: one or several requests to the Hub.
        repeatable: whether doing it twice does no harm; else it is repeated only where the Hub says that it has not
            begun (429).

    Raises:
        HTTPError, OSError: of the last try, or of one that waiting does not help.
    """
    from huggingface_hub.errors import HTTPError

    wait = FIRST_WAIT
    for tries_left in reversed(range(TRIES)):
        try:
            return call()
        except (HTTPError, OSError) as error:
            asked = _wait_asked_for(error, wait, repeatable)
            if asked is None or not tries_left:
                raise
        time.sleep(asked)
        wait *= 2
    raise AssertionError("the last try returns or raises")


def _wait_asked_for(error: Exception, wait: float, repeatable: bool) -> float | None:
    """Seconds until the next try; None where there should be none."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if not isinstance(error, HfHubHTTPError):
        broken = isinstance(error, HTTPError | ConnectionError) and not isinstance(error, OfflineModeIsEnabled)
        return wait if broken and repeatable else None
    status = error.response.status_code
    if status not in _PASSING or not (repeatable or status == 429):
        return None
    named = error.response.headers.get("Retry-After", "")
    seconds = float(named) if named.isdecimal() else wait
    return seconds if seconds <= LONGEST_WAIT else None
