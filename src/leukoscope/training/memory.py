"""How a training process on a CPU handles memory."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C library keep the memory it frees, for this process.

    glibc returns every large block to the system at once. A training step on a CPU asks for the same blocks again, and
    the page faults that this costs take about a tenth of its time. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(option, 2**31 - 1)
