"""The graphics card of the machine that serves the demo: its own, or one that a ZeroGPU Space lends call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

# One cell takes well under a second; the rest is for a card that has to wake up.
LENT_SECONDS = 15

_P = ParamSpec("_P")
_T = TypeVar("_T")


def on_gpu(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """`call` as it is, or, where the package `spaces` is installed, run while the Space's GPU is lent.

    On ZeroGPU it runs in a forked process: what it takes and returns is pickled, what it closes over is not.
    """
    try:
        import spaces
    except ImportError:
        return call
    return spaces.GPU(duration=LENT_SECONDS)(call)


def best_device() -> str:
    """ "cuda" where torch can use a GPU (or a ZeroGPU Space will lend one), else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
