"""Cells through `leukoscope score`: how fast, killed in the middle and taken up again, and on Ray.

    PYTHONPATH=src python research/benchmarks/scoring.py --model model_card/leukoscope-densenet169-cnmc [--cells 100000]

A few hundred phantoms are scored over and over under ids of their own: --cells of them, ended by kill -9 when half of
the shards are there and taken up again by the same command. Then --ray_cells are scored by one process and on Ray with
as many workers as --ray names. Writes results/benchmarks/scoring.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.metrics import versions
from leukoscope.files import file_sha256
from leukoscope.inference.scoring import CELLS_PER_SHARD
from leukoscope.models.release import WEIGHTS_FILE, folder_name, write_json
from leukoscope.synthetic import draw_cell

RESULTS = Path(__file__).parents[2] / "results" / "benchmarks" / "scoring.json"
MEASURES = {
    "cells_a_second": "cells whose shards were finished, over the wall time of the process with its start",
    "ray": "the same cells by one local process and on a Ray cluster of this machine; core_hours_a_million: hours for "
    "a million cells, times the cores",
}
_RECORDED_FLAGS = ("cells", "pictures", "threads", "batch_size")


class Part(NamedTuple):
    """One process of a run: its seconds of wall time and, where it was killed, the shards that it had finished."""

    seconds: float
    shards: int

    def to_dict(self, cells: int) -> dict[str, Any]:
        """For JSON, with so many cells finished."""
        return {"cells": cells, "seconds": self.seconds, "cells_a_second": cells / self.seconds}


def main() -> None:
    """Score, kill, resume, check every row, write the figures and say them."""
    flags = _flags()
    if hasattr(os, "sched_setaffinity"):
        # Decoding has threads of its own, which OMP_NUM_THREADS does not count.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _draw(root / "cells", flags.pictures)
        table, out = _table(root, flags.cells, flags.pictures), root / "out.parquet"
        half = max(1, flags.cells // CELLS_PER_SHARD // 2)
        killed = _score(flags, table, out, until=lambda: _shards(out) >= half)
        resumed = _score(flags, table, out)
        _check(out, flags.cells)
        on_ray = _on_ray(flags, root) if flags.ray else {}
    kept = killed.shards * CELLS_PER_SHARD
    result = {
        "notice": RESEARCH_NOTICE,
        "measures": MEASURES,
        "model": folder_name(flags.model),
        "sha256": file_sha256(flags.model / WEIGHTS_FILE),
        **{name: getattr(flags, name) for name in _RECORDED_FLAGS},
        "cells_per_shard": CELLS_PER_SHARD,
        "until_killed": killed.to_dict(kept),
        "resumed": resumed.to_dict(flags.cells - kept),
        **({"ray": on_ray} if on_ray else {}),
        "machine": machine(),
        "versions": versions(),
    }
    flags.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.results, result)
    for name in ("until_killed", "resumed"):
        print(f"{name}: {result[name]['cells_a_second']:.1f} cells/s")
    for row in on_ray.get("rows", []):
        print(f"{row['scored_by']}: {row['cells_a_second']:.1f} cells/s")
    print(flags.results)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="release folder")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=300, help="different phantoms among them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=32)
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
    """Score the same cells locally and by each number of workers."""
    table = _table(root, flags.ray_cells, flags.pictures)
    parts = {("one local process", flags.threads): _score(flags, table, root / "local.parquet")}
    for workers in flags.ray:
        output = root / f"ray-{workers}.parquet"
        with _cluster(workers) as address:
            parts[f"Ray, {workers} worker{'s' * (workers > 1)}", workers] = _score(flags, table, output, ray=address)
        _check(output, flags.ray_cells)
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
    before = _shards(output)
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            if until and until():
                process.kill()
                process.wait()
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        if process.returncode and not until:
            log.seek(0)
            sys.exit(f"{command}: ended with {process.returncode}\n{log.read()}")
    if until and output.exists():
        sys.exit(f"{output}: was done before it could be killed; give more --cells")
    return Part(seconds, _shards(output) - before)


def _check(output: Path, cells: int) -> None:
    """Every cell once and in order."""
    import pyarrow.parquet as pq

    table = pq.read_table(output)
    if table["cell_id"].to_pylist() != [f"cell-{number}" for number in range(cells)]:
        sys.exit(f"{output}: its {len(table)} rows are not the {cells} cells asked for, each once and in order")


if __name__ == "__main__":
    main()
