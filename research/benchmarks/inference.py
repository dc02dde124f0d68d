"""How fast answers come beside what people would use instead: one run, the same machine, the same pictures.

    PYTHONPATH=src python research/benchmarks/inference.py --models model_card/leukoscope-*-cnmc \
        [--data DIR] [--device cuda] [--threads 2 --pictures 64 --repeats 30 --turns 3]

Every turn of a system is a process of its own, on the same cores and device; systems take turns. Writes
results/benchmarks/inference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from inference_systems import FIRST_ANSWER
from machine import machine

from leukoscope import RESEARCH_NOTICE
from leukoscope.files import file_sha256

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results" / "benchmarks" / "inference.json"
MEASURES = {
    "one": "seconds from a picture file's bytes to an answer, one file after the other",
    "many": "files answered a second, at the batch size that suits a system best",
    "explained": "seconds from a file's bytes to an answer with Grad-CAM: ours of every class and the mean of eight "
    "views, that of others of one class and view",
    "cold": "seconds from the start of a process to its first answer, without Grad-CAM; an earlier run kept the graph",
}
OURS, GRAD_CAM = "leukoscope auto", "pytorch-grad-cam"
# On the CPU, times faster than each system: (what is compared, beside which system).
AIMS = {("one", "pipeline"): 2.0, ("many in batches", "pipeline"): 1.5, ("explained", GRAD_CAM): 1.0}
EXPLAINED_AT_MOST = 8.0  # times an answer alone: a map of eight views
COLD_START_AT_MOST = 0.6  # seconds
_TIMED = ("one", "explained", "cold")
_TURN_RESULT = "turn.json"


def main() -> None:
    """Measure, write the figures, and say the ratios."""
    flags = _flags()
    if flags.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # Whatever a system takes for its number of threads, it has no more cores than the others.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    with tempfile.TemporaryDirectory() as folder:
        pictures = _lay_out(flags, Path(folder) / "pictures")
        releases = [_compared(flags, release, pictures, Path(folder)) for release in flags.models]
    from leukoscope.evaluation.metrics import versions
    from leukoscope.models.release import write_json

    result = {
        "notice": RESEARCH_NOTICE,
        "measures": MEASURES,
        "pictures": f"{flags.pictures} {'cells of C-NMC 2019' if flags.data else 'phantoms'}",
        **{name: getattr(flags, name) for name in ("device", "threads", "repeats", "turns", "batch_sizes")},
        "releases": releases,
        "machine": machine(),
        "versions": versions() | {name: version(name) for name in ("openvino", "onnxruntime", "grad-cam")},
    }
    flags.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.results, result)
    for release in releases:
        for row in release["ratios"]:
            aim = f", aim {row['aim']}: {'met' if row['met'] else 'MISSED'}" if "aim" in row else ""
            print(f"{release['model']}, {row['what']}: {row['value']:.2f}{aim}")
    print(flags.results)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="release folders")
    parser.add_argument("--data", type=Path, help="folder with cnmc2019/: its cells in place of phantoms")
    parser.add_argument("--device", default="cpu", help="the torch device of every system, such as cuda")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each measure in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args()
    if flags.threads > (os.cpu_count() or 1):
        parser.error(f"--threads {flags.threads}: this machine has {os.cpu_count()} cores")
    return flags


def _lay_out(flags: argparse.Namespace, folder: Path) -> Path:
    """The pictures as files, as every system reads them."""
    from PIL import Image

    from leukoscope.data.images import BACKGROUND_LEVEL, open_image
    from leukoscope.data.layouts import ImageFolder
    from leukoscope.synthetic import draw_cell

    folder.mkdir()
    found = ImageFolder.read(flags.data / "cnmc2019").images if flags.data else []
    if flags.data and len(found) < flags.pictures:
        sys.exit(f"--data {flags.data}: holds {len(found)} cells in cnmc2019/, fewer than --pictures {flags.pictures}")
    for number in range(flags.pictures):
        if flags.data:
            pixels = np.asarray(open_image(found[number * len(found) // flags.pictures]))
            # The compressed copies of cells carry a trace of light round them, the data set's own files none.
            picture = Image.fromarray(np.where(pixels.max(axis=2, keepdims=True) > BACKGROUND_LEVEL, pixels, 0))
        else:
            cell = draw_cell(("ALL", "HEM")[number % 2], subject=number % 7, cell=number, size=450, background="black")
            picture = Image.fromarray(cell.image)
        # As the data set's own files are.
        picture.save(folder / f"{number:04d}.bmp")
    return folder


def _compared(flags: argparse.Namespace, release: Path, pictures: Path, folder: Path) -> dict[str, Any]:
    """Every system's figures for one release, and ours as multiples of the others'."""
    config = json.loads((release / "config.json").read_text(encoding="utf-8"))
    systems = _systems(flags, release, config)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for turn in systems.values():
        # Graphs of a release are made once and kept, and files read for the first time come from the disk: no turn.
        _start(_words(flags, turn, pictures, folder, first_only=True), flags)
    for _ in range(flags.turns):
        for name, turn in systems.items():
            turns[name].append(_take_turn(flags, turn, pictures, folder))
            print(release.name, name, {k: v for k, v in turns[name][-1].items() if k in ("cold", "many")}, flush=True)
    _check_agreement(turns)
    figures = {name: _figures(taken) for name, taken in turns.items()}
    # It never answers without a map, its first answer included.
    for measure in ("one_seconds", "cold_seconds"):
        del figures[GRAD_CAM][measure]
    return {
        "model": release.name,
        "sha256": file_sha256(release / "model.safetensors"),
        "architecture": config["architecture"],
        "image_size": config["pretrained_cfg"]["input_size"][-1],
        "systems": figures,
        "ratios": _ratios(figures, flags.device),
    }


def _systems(flags: argparse.Namespace, release: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → what a turn of it is told."""
    about = {"release": str(release.resolve()), "architecture": config["architecture"], "device": flags.device}
    return {OURS: about | {"system": "leukoscope"}} | {
        name: about | {"system": name} for name in ("pipeline", "timm", GRAD_CAM)
    }


def _take_turn(flags: argparse.Namespace, turn: Mapping[str, Any], pictures: Path, folder: Path) -> dict[str, Any]:
    """A cold start, then a process that stays for the other measures."""
    cold = _start(_words(flags, turn, pictures, folder, first_only=True), flags)
    _start(_words(flags, turn, pictures, folder, first_only=False), flags)
    measured: dict[str, Any] = json.loads((folder / _TURN_RESULT).read_text(encoding="utf-8"))
    return measured | {"cold": [cold]}


def _words(
    flags: argparse.Namespace, turn: Mapping[str, Any], pictures: Path, folder: Path, *, first_only: bool
) -> str:
    """What a turn is told; see `inference_systems`."""
    common = {"pictures": str(pictures), "result": str(folder / _TURN_RESULT), "first_only": first_only}
    return json.dumps({**turn, **common, "repeats": flags.repeats, "batch_sizes": flags.batch_sizes})


def _start(words: str, flags: argparse.Namespace) -> float:
    """Take a turn in a process of its own; seconds until its first answer."""
    command = [sys.executable, str(HERE / "inference_systems.py"), words]
    environment = os.environ | {"OMP_NUM_THREADS": str(flags.threads), "HF_HUB_OFFLINE": "1"}
    if flags.device == "cpu":
        # Some systems would take a GPU unasked.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryFile("w+") as problems:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=problems, text=True)
        assert process.stdout is not None
        said = any(line.strip() == FIRST_ANSWER for line in process.stdout)
        seconds = time.perf_counter() - started
        for _ in process.stdout:
            pass
        if process.wait() or not said:
            problems.seek(0)
            sys.exit(f"{command}: ended with {process.returncode}\n{problems.read()}")
    return seconds


def _check_agreement(turns: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Speed of another answer would be no comparison."""
    wanted = np.array(turns["timm"][0]["probabilities"])
    for name, taken in turns.items():
        answers = np.array(taken[0]["probabilities"])
        if np.abs(answers - wanted).max() >= 0.02:
            sys.exit(f"{name}: answers {answers.tolist()}, timm {wanted.tolist()}; the same release must answer alike")


def _figures(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"{name}_seconds": _spread([second for turn in turns for second in turn[name]])
        for name in _TIMED
        if name in turns[0]
    }
    if "many" in turns[0]:
        by_size = {size: _spread([turn["many"][size] for turn in turns]) for size in turns[0]["many"]}
        best = max(by_size, key=lambda size: by_size[size]["median"])
        figures["many_cells_a_second"] = {"batch_size": int(best), **by_size[best], "all": by_size}
    return figures


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "measured": len(values)}


def _ratios(figures: Mapping[str, Mapping[str, Any]], device: str) -> list[dict[str, Any]]:
    """Ours as multiples of the others', beside the aims."""
    own = figures[OURS]
    aims = AIMS if device == "cpu" else {}
    rows = []
    for name, theirs in figures.items():
        if name == OURS:
            continue
        for measure in _TIMED:
            key = f"{measure}_seconds"
            if key in theirs:
                faster = theirs[key]["median"] / own[key]["median"]
                rows.append(_row(f"{measure}: times faster than {name}", faster, aims.get((measure, name))))
        aim = aims.get(("many in batches", name))
        if aim:
            # In batches is how its users would do it, even where one at a time is faster.
            batched = [size["median"] for number, size in theirs["many_cells_a_second"]["all"].items() if number != "1"]
            faster = own["many_cells_a_second"]["median"] / max(batched)
            rows.append(_row(f"many: times faster than {name} in its best batches", faster, aim))
    explained = own["explained_seconds"]["median"] / own["one_seconds"]["median"]
    rows.append({"what": "explained: times an answer alone", "value": explained})
    rows[-1] |= {"aim": f"≤ {EXPLAINED_AT_MOST}", "met": explained <= EXPLAINED_AT_MOST}
    cold = own["cold_seconds"]["median"]
    rows.append({"what": "cold: seconds to the first answer", "value": cold})
    rows[-1] |= {"aim": f"≤ {COLD_START_AT_MOST}", "met": cold <= COLD_START_AT_MOST}
    return rows


def _row(what: str, value: float, aim: float | None) -> dict[str, Any]:
    return {"what": what, "value": value} | ({"aim": f"≥ {aim:g}", "met": value >= aim} if aim else {})


if __name__ == "__main__":
    main()
