"""How fast answers come beside what people would use instead: one run, the same machine, the same pictures.

    PYTHONPATH=src python research/benchmarks/inference.py --models model_card/leukoscope-*-cnmc \
        [--data DIR] [--keras_python PATH] [--device cuda] [--threads 2 --pictures 64 --repeats 30 --turns 3]

Every turn of a system is a process of its own, on the same cores and device; systems take turns. Keras is measured on
the CPU, beside releases whose network it has, and needs TensorFlow in an environment of its own, whose Python
--keras_python names. Writes results/benchmarks/inference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
from machine import machine
from timing import FIRST_ANSWER, seconds_each

from leukoscope import RESEARCH_NOTICE
from leukoscope.files import file_sha256

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results" / "benchmarks" / "inference.json"
MEASURES = {
    "one": "seconds from a picture file's bytes to an answer, one file after the other",
    "many": "files answered a second, at the batch size that suits a system best",
    "explained": "seconds from a file's bytes to an answer with Grad-CAM: ours of every class and the mean of eight "
    "views, that of others of one class and view",
    "views": "seconds for the eight turned and mirrored views of a file, in one batch",
    "cold": "seconds from the start of a process to its first answer, without Grad-CAM; an earlier run kept the graph",
    "peak_bytes": "the most memory that a process of all these measures held",
}
BACKENDS = {"torch": "torch", "openvino": "openvino"}  # and the module each needs
KERAS_NETWORKS = {"tf_efficientnet_b3": "EfficientNetB3", "densenet121": "DenseNet121", "densenet169": "DenseNet169"}
OURS, IN_BF16, GRAD_CAM = "leukoscope auto", "leukoscope bf16", "pytorch-grad-cam"
# On the CPU, times faster than each system: (what is compared, beside which system).
AIMS = {
    ("one", "pipeline"): 2.0,
    ("one", "keras predict"): 10.0,
    ("many in batches", "pipeline"): 1.5,
    ("explained", GRAD_CAM): 1.0,
}
EXPLAINED_AT_MOST = 8.0  # times an answer alone: a map of eight views
COLD_START_AT_MOST = 0.6  # seconds
_TIMED = ("one", "explained", "views", "cold")
_MATRIX = 2048
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
        "versions": versions() | _other_versions(flags.keras_python),
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
    parser.add_argument("--keras_python", type=Path, help="Python of an environment with tensorflow and pillow")
    parser.add_argument("--device", default="cpu", help="the torch device of every system, such as cuda")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each measure in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args()
    if flags.keras_python and not flags.keras_python.is_file():
        parser.error(f"--keras_python {flags.keras_python}: no such file; give one of an environment with tensorflow")
    if flags.threads > (os.cpu_count() or 1):
        parser.error(f"--threads {flags.threads}: this machine has {os.cpu_count()} cores")
    if flags.device != "cpu" and flags.keras_python:
        parser.error("--keras_python: Keras is measured on the CPU alone; leave it or --device out")
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
    from leukoscope.inference.predictor import Predictor

    config = json.loads((release / "config.json").read_text(encoding="utf-8"))
    systems = _systems(flags, release, config)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for command, turn in systems.values():
        # Graphs of a release are made once and kept, and files read for the first time come from the disk: no turn.
        _start([*command, _words(flags, turn, pictures, folder, first_only=True)], flags)
    for _ in range(flags.turns):
        for name, (command, turn) in systems.items():
            turns[name].append(_take_turn(flags, command, turn, pictures, folder))
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
        "auto_chose": Predictor.from_pretrained(release, backend="auto", device=flags.device).backend.name,
        "systems": figures,
        "ratios": [row for ours in (OURS, IN_BF16) if ours in figures for row in _ratios(ours, figures, flags.device)],
        "preprocessing": _preprocessing(release, pictures, flags.repeats),
        "compute": _compute(release, flags, figures),
    }


def _systems(
    flags: argparse.Namespace, release: Path, config: Mapping[str, Any]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Name → the command that takes a turn of it, and what to tell it."""
    own = [sys.executable, str(HERE / "inference_systems.py")]
    about = {
        "release": str(release.resolve()),
        "architecture": config["architecture"],
        "device": flags.device,
        "precision": "float32",
    }
    # On a GPU there is torch alone.
    found = [backend for backend, module in BACKENDS.items() if find_spec(module)] if flags.device == "cpu" else []
    systems = {f"leukoscope {b}": (own, about | {"system": "leukoscope", "backend": b}) for b in ("auto", *found)}
    if flags.device != "cpu" or _has_bf16():
        systems[IN_BF16] = (own, about | {"system": "leukoscope", "backend": "auto", "precision": "bf16"})
    systems |= {name: (own, about | {"system": name}) for name in ("pipeline", "timm", GRAD_CAM)}
    # Keras builds whole networks only: beside one that ends early it would compute another one.
    cut = "block_config" in config.get("model_args", {})
    if flags.keras_python and config["architecture"] in KERAS_NETWORKS and not cut:
        keras = {
            "network": KERAS_NETWORKS[config["architecture"]],
            "classes": config["num_classes"],
            "image_size": config["pretrained_cfg"]["input_size"][-1],
            "crop_pct": config["pretrained_cfg"]["crop_pct"],
            "threads": flags.threads,
        }
        theirs = [str(flags.keras_python), str(HERE / "keras_example.py")]
        systems |= {f"keras {call}": (theirs, keras | {"call": call}) for call in ("predict", "call")}
    return systems


def _has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    from leukoscope.inference.graph import openvino_core

    return find_spec("openvino") is not None and "BF16" in openvino_core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )


def _take_turn(
    flags: argparse.Namespace, command: Sequence[str], turn: Mapping[str, Any], pictures: Path, folder: Path
) -> dict[str, Any]:
    """A cold start, then a process that stays for the other measures."""
    cold = _start([*command, _words(flags, turn, pictures, folder, first_only=True)], flags)
    _start([*command, _words(flags, turn, pictures, folder, first_only=False)], flags)
    measured: dict[str, Any] = json.loads((folder / _TURN_RESULT).read_text(encoding="utf-8"))
    return measured | {"cold": [cold]}


def _words(
    flags: argparse.Namespace, turn: Mapping[str, Any], pictures: Path, folder: Path, *, first_only: bool
) -> str:
    """What a turn is told; see `timing.run_turn`."""
    common = {"pictures": str(pictures), "result": str(folder / _TURN_RESULT), "first_only": first_only}
    return json.dumps({**turn, **common, "repeats": flags.repeats, "batch_sizes": flags.batch_sizes})


def _start(command: Sequence[str], flags: argparse.Namespace) -> float:
    """Run a process to its end; seconds until its first answer."""
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
    """Speed of another answer would be no comparison; Keras has random weights."""
    wanted = np.array(turns["timm"][0]["probabilities"])
    for name, taken in turns.items():
        found, largest = np.array(taken[0]["probabilities"]), 0.15 if name == IN_BF16 else 0.02
        if not name.startswith("keras") and np.abs(found - wanted).max() >= largest:
            sys.exit(f"{name}: answers {found.tolist()}, timm {wanted.tolist()}; the same release must answer alike")


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
    return figures | {"peak_bytes": max(turn["peak_bytes"] for turn in turns)}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": middle, "quartiles": [low, high], "measured": len(values)}


def _ratios(ours: str, figures: Mapping[str, Mapping[str, Any]], device: str) -> list[dict[str, Any]]:
    """One of ours as multiples of the others', beside the aims."""
    own, called = figures[ours], "" if ours == OURS else "bf16, "
    aims = AIMS if device == "cpu" else {}
    rows = []
    for name, theirs in figures.items():
        if name.startswith("leukoscope"):
            continue
        for measure in _TIMED:
            key = f"{measure}_seconds"
            if key in theirs and key in own:
                faster = theirs[key]["median"] / own[key]["median"]
                rows.append(_row(f"{called}{measure}: times faster than {name}", faster, aims.get((measure, name))))
        if "many_cells_a_second" in theirs:
            mine, other = own["many_cells_a_second"], theirs["many_cells_a_second"]
            rows.append(_row(f"{called}many: times faster than {name}", mine["median"] / other["median"], None))
            batched = [found["median"] for size, found in other["all"].items() if int(size) > 1]
            if (aim := aims.get(("many in batches", name))) and batched:
                # In batches is how its users would do it, even where one at a time is faster.
                faster = mine["median"] / max(batched)
                rows.append(_row(f"{called}many: times faster than {name} in its best batches", faster, aim))
    explained = own["explained_seconds"]["median"] / own["one_seconds"]["median"]
    rows.append({"what": f"{called}explained: times an answer alone", "value": explained})
    rows[-1] |= {"aim": f"≤ {EXPLAINED_AT_MOST}", "met": explained <= EXPLAINED_AT_MOST}
    cold = own["cold_seconds"]["median"]
    rows.append({"what": f"{called}cold: seconds to the first answer", "value": cold})
    rows[-1] |= {"aim": f"≤ {COLD_START_AT_MOST}", "met": cold <= COLD_START_AT_MOST}
    return rows


def _row(what: str, value: float, aim: float | None) -> dict[str, Any]:
    return {"what": what, "value": value} | ({"aim": f"≥ {aim:g}", "met": value >= aim} if aim else {})


def _preprocessing(release: Path, pictures: Path, repeats: int) -> dict[str, Any]:
    """Seconds a picture of what comes before the network: ours step by step, timm's and the pipeline's as a whole."""
    from io import BytesIO

    import torch
    from PIL import Image
    from timm.data import create_transform
    from transformers import AutoImageProcessor

    from leukoscope.data.images import open_bytes
    from leukoscope.models.release import read_release

    ours = read_release(release).preprocessing
    size = (3, ours.image_size, ours.image_size)
    transform = create_transform(
        size, interpolation=ours.interpolation, crop_pct=ours.crop_pct, mean=ours.mean, std=ours.std
    )
    processor = AutoImageProcessor.from_pretrained(release)
    files = [path.read_bytes() for path in sorted(pictures.iterdir())]
    picture = open_bytes(files[0], "cell")
    pixels = torch.from_numpy(ours.frame(picture).copy()).permute(2, 0, 1)[None]
    steps: dict[str, Callable[[bytes], object]] = {
        "leukoscope, open": lambda file: open_bytes(file, "cell"),
        "leukoscope, frame": lambda file: ours.frame(picture),
        "leukoscope, normalise": lambda file: ours.normalise(pixels),
        "timm": lambda file: transform(Image.open(BytesIO(file)).convert("RGB")),
        "pipeline": lambda file: processor(Image.open(BytesIO(file)).convert("RGB")),
    }
    return {name: _spread(seconds_each(step, files, repeats)) for name, step in steps.items()}


def _compute(release: Path, flags: argparse.Namespace, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Arithmetic achieved, beside what multiplying large matrices reaches on the same cores or device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from leukoscope.models.weights import load_release

    torch.set_num_threads(flags.threads)
    loaded = load_release(release)
    side = loaded.preprocessing.image_size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        loaded.network(torch.zeros(1, 3, side, side))
    flops = counter.get_total_flops()
    # Of the precisions used alone: a processor without units for another emulates it, for many minutes.
    used = ("bfloat16", "float32") if IN_BF16 in figures else ("float32",)
    peak = {name: _matmul_rate(getattr(torch, name), flags.device) for name in used}
    achieved = {
        name: {"one": flops / found["one_seconds"]["median"], "many": flops * found["many_cells_a_second"]["median"]}
        for name, found in figures.items()
        if name != GRAD_CAM
    }
    shares = {
        name: {kind: rate / peak["bfloat16" if name == IN_BF16 else "float32"] for kind, rate in rates.items()}
        for name, rates in achieved.items()
    }
    return {
        "flops_a_cell": flops,
        "matmul_flops_a_second": peak,
        "achieved_flops_a_second": achieved,
        # Of the product in the precision that the system computes in.
        "share_of_matmul": shares,
    }


def _matmul_rate(dtype: Any, device: str) -> float:
    """Operations a second of a large square matrix product, the median of ten."""
    import torch

    left, right = (torch.randn(_MATRIX, _MATRIX).to(device, dtype) for _ in range(2))
    # A GPU returns before it has computed; reading one number waits for it.
    seconds = seconds_each(lambda _: (left @ right)[0, 0].item(), [b""], 10)
    return 2 * _MATRIX**3 / _spread(seconds)["median"]


def _other_versions(keras_python: Path | None) -> dict[str, str]:
    from importlib.metadata import version

    found = {name: version(name) for name in ("openvino", "onnxruntime") if find_spec(name)} | {
        "grad-cam": version("grad-cam")
    }
    if keras_python:
        code = "import tensorflow, keras; print(tensorflow.__version__, keras.__version__)"
        said = subprocess.run([keras_python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        found |= {"tensorflow": said[-2], "keras": said[-1]}
    return found


if __name__ == "__main__":
    main()
