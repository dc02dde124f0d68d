"""How the demo bears visitors: predictions with heat maps per second, waiting times and errors, on loopback.

    PYTHONPATH=src python research/benchmarks/app_load.py [--clients 1 10 50 --requests 100]

Starts app.py in a process of its own and asks it, as so many visitors at once, about phantoms through /predict; each
visitor waits for one answer before the next question. Writes results/benchmarks/app_load.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.files import file_sha256
from leukoscope.models.release import WEIGHTS_FILE, write_json
from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "benchmarks" / "app_load.json"
START_SECONDS = 300
_REQUESTS_EACH = 10  # at least, or nothing but the first rush would be seen


def main() -> None:
    """Measure, write the figures, and say them."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as folder:
        cells = _draw_cells(Path(folder), count=8)
        with _demo(flags.releases, Path(folder)) as address:
            # The first answers import and load; they are not what a visitor of a running demo meets.
            with _clients(address, 1) as warming:
                _ask_together(warming, flags.model, cells, requests=10)
            levels = [_level(address, flags.model, cells, count, flags.requests) for count in flags.clients]
    failed = [level for level in levels if level["errors"]]
    if failed:
        sys.exit(f"error: some questions were not answered; the first: {failed[0]['first_error']}")
    result = {
        "notice": RESEARCH_NOTICE,
        "measures": "predictions with heat maps through /predict, from upload to answer, on this machine's loopback",
        "model": flags.model,
        "sha256": file_sha256(flags.releases / flags.model / WEIGHTS_FILE),
        "levels": levels,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "versions": {"leukoscope": __version__, "python": platform.python_version()},
    }
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.out, result)
    for level in levels:
        print(
            f"{level['clients']:3} at once: {level['per_second']:.1f} a second, p50 {level['p50_seconds']:.2f} s, "
            f"p95 {level['p95_seconds']:.2f} s, {level['errors']} errors"
        )
    print(flags.out)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=Path, default=ROOT / "model_card")
    parser.add_argument("--model", default="leukoscope-densenet169-cnmc")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 50], help="visitors at once, one level each")
    parser.add_argument("--requests", type=int, default=100, help="of a level together; at least 10 each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _draw_cells(folder: Path, count: int) -> list[Path]:
    paths = []
    for number, label in zip(range(count), cycle(PHANTOM_LABELS), strict=False):
        paths.append(folder / f"cell{number}.png")
        Image.fromarray(draw_cell(label, subject=number, cell=0).image).save(paths[-1])
    return paths


@contextmanager
def _demo(releases: Path, folder: Path) -> Iterator[str]:
    """The demo's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "app.py"), "--releases", str(releases)]
    server = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}healthz", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"error: the demo does not answer at {address}")


@contextmanager
def _clients(address: str, count: int) -> Iterator[list[Client]]:
    """So many visitors, who leave in the end: each holds a connection and a thread."""
    clients: list[Client] = []
    try:
        for _ in range(count):
            clients.append(Client(address, verbose=False, download_files=False))
        yield clients
    finally:
        for client in clients:
            client.close()


def _level(address: str, model: str, cells: Sequence[Path], count: int, requests: int) -> dict[str, Any]:
    """So many visitors at once."""
    with _clients(address, count) as clients:
        started = time.perf_counter()
        seconds, errors = _ask_together(clients, model, cells, max(requests, _REQUESTS_EACH * count))
        wall = time.perf_counter() - started
    return {
        "clients": count,
        "requests": len(seconds) + len(errors),
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "per_second": len(seconds) / wall,
        "p50_seconds": float(np.percentile(seconds, 50)) if seconds else None,
        "p95_seconds": float(np.percentile(seconds, 95)) if seconds else None,
    }


def _ask_together(
    clients: Sequence[Client], model: str, cells: Sequence[Path], requests: int
) -> tuple[list[float], list[str]]:
    """Seconds of each answer, and what went wrong with the others."""
    each = -(-requests // len(clients))

    def ask(client: Client) -> tuple[list[float], list[str]]:
        seconds, errors = [], []
        for cell in islice(cycle(cells), each):
            started = time.perf_counter()
            try:
                client.predict(handle_file(cell), model, api_name="/predict")
                seconds.append(time.perf_counter() - started)
            except Exception as error:  # whatever a visitor would meet counts as an error
                errors.append(f"{type(error).__name__}: {error}")
        return seconds, errors

    with ThreadPoolExecutor(len(clients)) as visitors:
        answered = list(visitors.map(ask, clients))
    return [one for seconds, _ in answered for one in seconds], [one for _, errors in answered for one in errors]


if __name__ == "__main__":
    main()
