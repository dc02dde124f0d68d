"""How any system of inference.py is timed, alike in every environment: the standard library alone.

A system is measured in a process of its own. It says when it has given its first answer, so that its caller can time
the start, and goes on to the measurements that are asked of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST_ANSWER = "first answer"


@dataclass(frozen=True)
class System:
    """What a system can be asked; None for what it does not offer.

    Attributes:
        one: a picture file's bytes → probabilities of the classes, in the release's order.
        many: paths of files and a batch size → answers.
        explained: a file's bytes → an answer and a Grad-CAM.
        views: a file's bytes → the answer to its eight turned and mirrored views, in one batch.
    """

    one: Callable[[bytes], Sequence[float]]
    many: Callable[[Sequence[str], int], object] | None = None
    explained: Callable[[bytes], object] | None = None
    views: Callable[[bytes], object] | None = None


def run_turn(turn: dict[str, Any], make: Callable[[], System]) -> None:
    """Load a system, answer once, then measure what the turn asks for and write its "result" file.

    Args:
        turn: "pictures", a folder of image files; "result", a file; "first_only", to stop after the first answer;
            "repeats", timed calls a measure; "batch_sizes", to be tried on all pictures.
    """
    system = make()
    paths = [str(path) for path in sorted(Path(turn["pictures"]).iterdir())]
    first = _shares(system, Path(paths[0]).read_bytes())
    print(FIRST_ANSWER, flush=True)
    if turn["first_only"]:
        return
    files = [Path(path).read_bytes() for path in paths]
    repeats = turn["repeats"]
    result: dict[str, Any] = {"probabilities": [first, *(_shares(system, file) for file in files[1:4])]}
    for name, call in (("one", system.one), ("explained", system.explained), ("views", system.views)):
        if call is not None:
            result[name] = seconds_each(call, files, repeats)
    if system.many is not None:
        result["many"] = {str(size): _cells_a_second(system.many, paths, size) for size in turn["batch_sizes"]}
    result["peak_bytes"] = peak_bytes()
    Path(turn["result"]).write_text(json.dumps(result), encoding="utf-8")


def _shares(system: System, file: bytes) -> list[float]:
    return [float(share) for share in system.one(file)]


def seconds_each(call: Callable[[bytes], object], files: Sequence[bytes], repeats: int) -> list[float]:
    """Seconds of single calls, file after file, once they are warm."""
    for file in files[:2]:
        call(file)
    seconds = []
    for number in range(repeats):
        started = time.perf_counter()
        call(files[number % len(files)])
        seconds.append(time.perf_counter() - started)
    return seconds


def _cells_a_second(many: Callable[[Sequence[str], int], object], paths: Sequence[str], size: int) -> float:
    many(paths[:size], size)
    started = time.perf_counter()
    many(paths, size)
    return len(paths) / (time.perf_counter() - started)


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts from its start, elsewhere a parent's may count in."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(peak) * 1024
    import resource

    # macOS counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
