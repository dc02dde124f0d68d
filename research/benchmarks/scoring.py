"""A hundred thousand cells through `leukoscope score`: how fast, in how much memory, and killed in the middle.

    PYTHONPATH=src python research/benchmarks/scoring.py --model model_card/leukoscope-densenet169-cnmc [--cells 100000]

A few hundred phantoms are scored over and over under ids of their own: first --short_cells of them in one go, then
--cells, ended by kill -9 when half of the shards are there and taken up again by the same command. Memory is what the
process and its children hold, looked at every --look_every seconds. Then --ray_cells are scored by one process and on
Ray with so many workers as --ray names, and the command is watched while 100,000 names pass through it. Writes
results/benchmarks/scoring.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from machine import machine
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.metrics import versions
from leukoscope.files import file_sha256
from leukoscope.inference.scoring import CELLS_PER_SHARD
from leukoscope.models.release import WEIGHTS_FILE, folder_name, write_json
from leukoscope.synthetic import draw_cell

RESULTS = Path(__file__).parents[2] / "results" / "benchmarks" / "scoring.json"
FLAT_WITHIN = 0.10
NAMES = 100_000
MEASURES = {
    "cells_a_second": "cells whose shards were finished, over the wall time of the process with its start",
    "memory": "bytes resident in the process and its children, every look_every seconds; steady: the median of those "
    "taken after the first shard was there",
    "largest_difference": "between probabilities of one picture under different ids, before and after the kill; every "
    "cell was checked to be there once and in order",
    "trace": "[seconds since the process began, bytes]",
    "ray": "the same cells by one local process and on a Ray cluster of this machine; core_hours_a_million: hours for "
    "a million cells, times the cores; driver: what the command itself holds, without the workers",
}
_TRACE_POINTS = 200
_FEWEST_LOOKS = 5  # that a median is taken of
_RECORDED_FLAGS = ("cells", "short_cells", "pictures", "threads", "batch_size", "look_every")


@dataclass(frozen=True)
class Part:
    """One process of a run.

    Attributes:
        seconds: of wall time.
        shards: finished by it.
        trace: (seconds, bytes, whether its first shard was there), one for each look.
    """

    seconds: float
    shards: int
    trace: Sequence[tuple[float, int, bool]]

    @property
    def peak(self) -> int:
        """The most bytes seen."""
        return max(held for _, held, _ in self.trace)

    @property
    def steady(self) -> float:
        """The median once cells are being answered."""
        return median(held for _, held, answering in self.trace if answering)

    def to_dict(self, cells: int) -> dict[str, Any]:
        """For JSON, with so many cells finished."""
        points = self.trace[:: max(1, len(self.trace) // _TRACE_POINTS)]
        return {
            "cells": cells,
            "seconds": self.seconds,
            "cells_a_second": cells / self.seconds,
            "memory": {"steady_bytes": self.steady, "peak_bytes": self.peak},
            "trace": [[round(seconds, 1), held] for seconds, held, _ in points],
        }


def main() -> None:
    """Score, kill, resume, check every row, write the figures and say them."""
    flags = _flags()
    if hasattr(os, "sched_setaffinity"):
        # Decoding has threads of its own, which OMP_NUM_THREADS does not count.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _draw(root / "cells", flags.pictures)
        short_table, short_out = _table(root, flags.short_cells, flags.pictures), root / "short.parquet"
        short = _score(flags, short_table, short_out)
        _check(short_out, flags.short_cells, flags.pictures)
        table, out = _table(root, flags.cells, flags.pictures), root / "out.parquet"
        half = max(1, flags.cells // CELLS_PER_SHARD // 2)
        killed = _score(flags, table, out, until=lambda: _shards(out) >= half)
        resumed = _score(flags, table, out)
        difference = _check(out, flags.cells, flags.pictures)
        on_ray = _on_ray(flags, root) if flags.ray else {}
    kept = killed.shards * CELLS_PER_SHARD
    growth = max(killed.steady, resumed.steady) / short.steady
    result = {
        "notice": RESEARCH_NOTICE,
        "measures": MEASURES,
        "model": folder_name(flags.model),
        "sha256": file_sha256(flags.model / WEIGHTS_FILE),
        **{name: getattr(flags, name) for name in _RECORDED_FLAGS},
        "cells_per_shard": CELLS_PER_SHARD,
        "short_run": short.to_dict(flags.short_cells),
        "until_killed": killed.to_dict(kept),
        "resumed": resumed.to_dict(flags.cells - kept),
        "largest_difference": difference,
        **({"ray": on_ray} if on_ray else {}),
        "memory_growth": {"times_short_run": growth, "aim": f"within {FLAT_WITHIN:.0%}"}
        | {"met": abs(growth - 1) <= FLAT_WITHIN},
        "machine": machine(),
        "versions": versions(),
    }
    flags.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.results, result)
    for name in ("short_run", "until_killed", "resumed"):
        part = result[name]
        print(f"{name}: {part['cells_a_second']:.1f} cells/s, {part['memory']['steady_bytes'] / 1e6:.0f} MB")
    for row in on_ray.get("rows", []):
        print(f"{row['scored_by']}: {row['cells_a_second']:.1f} cells/s")
    print(f"memory: {growth:.2f} times the short run's\n{flags.results}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="release folder")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--short_cells", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=300, help="different phantoms among them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--look_every", type=float, default=1.0, help="seconds between two looks at memory")
    parser.add_argument("--ray", type=int, nargs="*", default=[1, 2], help="workers of one core, a run each")
    parser.add_argument("--ray_cells", type=int, default=4000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args()
    if flags.cells <= CELLS_PER_SHARD:
        parser.error(f"--cells {flags.cells}: give more than {CELLS_PER_SHARD}, or there is nothing to go on with")
    return flags


def _draw(folder: Path, pictures: int) -> None:
    folder.mkdir()
    for number in range(pictures):
        cell = draw_cell(("ALL", "HEM")[number % 2], subject=number % 7, cell=number, size=450, background="black")
        Image.fromarray(cell.image).save(folder / f"{number}.png")


def _table(root: Path, cells: int, pictures: int) -> Path:
    """A CSV of the pictures over and over, under a name for each cell: a file named twice counts once."""
    path = root / f"{cells}.csv"
    folder = root / f"cells-{cells}"
    folder.mkdir()
    with path.open("w") as file:
        file.write("cell_id,file\n")
        for number in range(cells):
            os.link(root / "cells" / f"{number % pictures}.png", folder / f"{number}.png")
            file.write(f"cell-{number},{folder.name}/{number}.png\n")
    return path


def _shards(output: Path) -> int:
    return len(list(output.with_name(f"{output.name}.parts").glob("shard-*.parquet")))


def _on_ray(flags: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Score the same cells locally and by each number of workers; then let the names of 100,000 cells pass."""
    table = _table(root, flags.ray_cells, flags.pictures)
    parts = {("one local process", flags.threads): _score(flags, table, root / "local.parquet")}
    for workers in flags.ray:
        output = root / f"ray-{workers}.parquet"
        with _cluster(workers) as address:
            parts[f"Ray, {workers} worker{'s' * (workers > 1)}", workers] = _score(flags, table, output, ray=address)
        _check(output, flags.ray_cells, flags.pictures)
    with _cluster(max(flags.ray)) as address:
        names = root / "names.parquet"
        passed = _score(
            flags,
            _table(root, NAMES, flags.pictures),
            names,
            until=lambda: _shards(names) >= _FEWEST_LOOKS,
            ray=address,
        )
    return {
        "cells": flags.ray_cells,
        "rows": [
            {
                "scored_by": name,
                "cores": cores,
                "cells_a_second": flags.ray_cells / part.seconds,
                "core_hours_a_million": cores * part.seconds / 3600 * 1e6 / flags.ray_cells,
            }
            for (name, cores), part in parts.items()
        ],
        "driver": {"names": NAMES, "peak_bytes": passed.peak},
    }


@contextmanager
def _cluster(workers: int) -> Iterator[str]:
    """Start a Ray cluster on loopback; gives its address."""
    ray, address = Path(sys.executable).with_name("ray"), "127.0.0.1:6399"
    settings = ["--num-cpus", str(workers), "--node-ip-address", "127.0.0.1", "--port", "6399", "--disable-usage-stats"]
    # Loopback alone: Ray's token would be one more file.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    subprocess.run([ray, "start", "--head", "--include-dashboard=false", *settings], check=True, capture_output=True)
    try:
        yield address
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)


def _score(
    flags: argparse.Namespace,
    table: Path,
    output: Path,
    until: Callable[[], bool] | None = None,
    ray: str | None = None,
) -> Part:
    """Run `leukoscope score` to its end, or to a sudden one; with the address of a Ray cluster, there."""
    command = [sys.executable, "-m", "leukoscope", "score", str(flags.model.resolve())]
    command += ["--input", str(table), "--output", str(output), "--batch_size", str(flags.batch_size)]
    command += ["--ray", ray] if ray else []
    environment = os.environ | {"OMP_NUM_THREADS": str(flags.threads), "HF_HUB_OFFLINE": "1"}
    before, finished = _shards(output), 0
    trace: list[tuple[float, int, bool]] = []
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = psutil.Popen(command, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            finished = max(finished, _shards(output) - before)
            trace.append((time.perf_counter() - started, _held(process), finished > 0))
            if until and until():
                process.kill()
                # Looked at while it dies, it would hold nothing.
                process.wait()
            time.sleep(flags.look_every)
        seconds = time.perf_counter() - started
        if process.returncode and not until:
            said.seek(0)
            sys.exit(f"{command}: ended with {process.returncode}\n{said.read()}")
    if until and output.exists():
        sys.exit(f"{output}: was done before it could be killed; give more --cells")
    looks = sum(answering for _, _, answering in trace)
    if looks < _FEWEST_LOOKS:
        sys.exit(
            f"{table.name}: {looks} looks at memory after the first shard, fewer than {_FEWEST_LOOKS}; give more "
            "--cells and --short_cells, or a smaller --look_every"
        )
    return Part(seconds, _shards(output) - before if until else finished, trace)


def _held(process: psutil.Process) -> int:
    """Bytes resident in a process and its children; those that have just ended hold none."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _check(output: Path, cells: int, pictures: int) -> float:
    """Every cell once and in order; the largest difference between answers to the same picture."""
    import pyarrow.parquet as pq

    table = pq.read_table(output)
    if table["cell_id"].to_pylist() != [f"cell-{number}" for number in range(cells)]:
        sys.exit(f"{output}: its {len(table)} rows are not the {cells} cells asked for, each once and in order")
    shares = table.column("p_ALL").to_numpy()
    return float(max(np.ptp(shares[number::pictures]) for number in range(min(pictures, cells))))


if __name__ == "__main__":
    main()
