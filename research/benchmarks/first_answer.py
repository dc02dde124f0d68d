"""How long a stranger waits: from `git clone` to the first explained answer, in an empty folder and environment.

    PYTHONPATH=src python research/benchmarks/first_answer.py [--answers 3]

Clones this repository from its folder here, installs it as `make demo` does, and asks an embedded release about a
phantom. Writes results/benchmarks/first_answer.json. Nothing is kept of the pip cache, so every package comes from the
index.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.models.release import write_json
from leukoscope.synthetic import draw_cell

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "benchmarks" / "first_answer.json"
PYTHON = ".venv/bin/python"  # of the clone


def main() -> None:
    """Measure, write the figures, and say them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=3, help="how often the installed release is asked")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # A graph of the release that an earlier command kept would spare the first answer making it.
        os.environ["LEUKOSCOPE_CACHE"] = str(Path(folder) / "cache")
        checkout = Path(folder) / "leukoscope"
        seconds = _first_answer(checkout, asked.answers)
        versions = _versions(checkout)
    result = {
        "notice": RESEARCH_NOTICE,
        "measures": "seconds of wall time: cloning, installing from the package index without a cache, and each answer "
        "with its overlay, each in a process of its own",
        "cloned": "local clone, without the network",
        "installer": "uv" if shutil.which("uv") else "pip",
        "seconds": seconds,
        "until_first_answer": seconds["clone"] + seconds["install"] + seconds["answers"][0],
        "machine": machine(),
        "versions": versions,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS, result)
    print(f"first explained answer after {result['until_first_answer']:.0f} s; {RESULTS}")


def _first_answer(checkout: Path, answers: int) -> dict[str, Any]:
    folder = checkout.parent
    picture = folder / "cell.png"
    Image.fromarray(draw_cell("ALL").image).save(picture)
    seconds: dict[str, Any] = {"clone": _timed(["git", "clone", "--quiet", str(ROOT), str(checkout)], folder)}
    # The Makefile's own stamp: installs and starts nothing.
    seconds["install"] = _timed(["make", f"PYTHON={sys.executable}", ".venv/.installed"], checkout)
    release = min((checkout / "model_card").glob("*/config.json")).parent
    words = ["predict", str(release), str(picture), "--explain", str(folder / "overlays")]
    command = [str(checkout / PYTHON), "-m", "leukoscope", *words]
    seconds["answers"] = [_timed(command, checkout, PYTHONPATH="src") for _ in range(answers)]
    return seconds


def _timed(command: list[str], folder: Path, **own: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=_environment(**own), check=True)
    return time.perf_counter() - started


def _environment(**own: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1", **own}


def _versions(checkout: Path) -> dict[str, str]:
    """Those of the environment that answered, not of this one."""
    code = "import json; from leukoscope.evaluation.metrics import versions; print(json.dumps(versions()))"
    command, environment = [str(checkout / PYTHON), "-c", code], _environment(PYTHONPATH="src")
    said = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


if __name__ == "__main__":
    main()
