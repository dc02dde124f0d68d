"""How fast training is beside Hugging Face's example script: cells per second, taking turns in one run.

    PYTHONPATH=src python research/benchmarks/training.py --hf_script run_image_classification_no_trainer.py \
        --dataset_name cnmc2019 --train_dir … [--threads 2 --cells 128 --turns 2]

Both sides train the same timm network from the same files in batches of the same size; every turn is a process of its
own. "all layers" is like for like; "own precision" and "own recipe" are what Leukoscope does unless told otherwise.
Writes results/benchmarks/training.json.
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
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from machine import machine

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.splits import Split
from leukoscope.evaluation.metrics import versions
from leukoscope.models.build import build_network, model_args
from leukoscope.models.metrics import Metrics
from leukoscope.models.recipes import Recipe, get_recipe
from leukoscope.models.release import write_json
from leukoscope.models.weights import save_release
from leukoscope.training.accelerator import cpu_has_bf16, keep_freed_memory, make_accelerator
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.data import preprocessing_for
from leukoscope.training.trainer import Trainer

RESULTS = Path(__file__).parents[2] / "results" / "benchmarks" / "training.json"
DIFFERS = [
    "Leukoscope keeps the decoded cells; the script decodes every cell in every epoch",
    "Leukoscope's cold epoch includes all that it does before: decoding, of the validation cells, too, and computing "
    "the features of a frozen network; the script's is its first epoch alone",
    "Leukoscope turns, resizes, mirrors and stains cells in batches; the script crops and mirrors them one by one",
    "Leukoscope clips gradients, weighs classes and uses a fused AdamW on channels-last memory",
    "in rows of own precision and of the own recipe, the script still computes in float32",
    "of the own recipe, the early layers are frozen; the script trains all",
]


def main() -> None:
    """Measure, write the figures, and say them."""
    flags = _flags()
    if hasattr(os, "sched_setaffinity"):
        # Decoding has threads of its own, which OMP_NUM_THREADS does not count; every turn inherits these cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    if flags.turn:
        turn = json.loads(flags.turn)
        result = {"leukoscope": _ours, "script": _hf}[turn["side"]](flags, turn)
        write_json(flags.folder / "turn.json", result, exact=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        flags.folder = Path(folder)
        _lay_out(flags)
        rows = [row for recipe in flags.recipes for row in _compared(flags, recipe)]
    result = {
        "notice": RESEARCH_NOTICE,
        "measures": "cells per second of an epoch's training side: cold, the first epoch with all that is done before; "
        "warm, the median of the others. Beside the script",
        "beside": "Hugging Face's example script",
        "differs": DIFFERS,
        "data": flags.dataset_name,
        **{
            k: getattr(flags, k) for k in ("cells", "validation_cells", "batch_size", "image_size", "epochs", "threads")
        },
        "rows": rows,
        "machine": machine(),
        "versions": versions(),
    }
    flags.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.results, result)
    for row in rows:
        print(
            f"{row['recipe']}, {row['setting']}: {row['times_faster']['warm']:.2f} times the script's speed warm, "
            f"{row['times_faster']['cold']:.2f} cold"
        )
    print(flags.results)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf_script", type=Path, help="the caller's copy of run_image_classification_no_trainer.py")
    parser.add_argument("--dataset_name", default="phantoms")
    parser.add_argument("--train_dir")
    parser.add_argument("--recipes", nargs="+", default=["efficientnet_b3", "densenet121", "densenet169_block2"])
    parser.add_argument("--cells", type=int, default=128, help="a multiple of the batch size")
    parser.add_argument("--validation_cells", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file keeps a GPU's figures apart")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.hf_script is None or not flags.hf_script.is_file():
        parser.error(f"--hf_script {flags.hf_script}: no such file; give your copy of Hugging Face's example script")
    if flags.epochs < 2 or flags.cells % flags.batch_size:
        parser.error("give --epochs of 2 or more, and --cells in whole batches")
    return flags


def _lay_out(flags: argparse.Namespace) -> None:
    """The same files twice, as each side wants its folders: <side>/<class>/ and <class>/."""
    data = load_cells(flags.dataset_name, flags.train_dir, image_size=450)
    order = np.random.default_rng(0).permutation(len(data.train))[: flags.cells + flags.validation_cells]
    if len(order) < flags.cells + flags.validation_cells:
        sys.exit(f"--cells {flags.cells}: the data has {len(data.train)} training cells")
    for number, row in enumerate(order.tolist()):
        side = "train" if number < flags.cells else "validation"
        cell = data.train[row]
        label = data.info.labels[cell["label"]]
        first = flags.folder / "hf" / side / label / f"{side}-{number}.png"
        first.parent.mkdir(parents=True, exist_ok=True)
        cell["image"].convert("RGB").save(first)
        other = flags.folder / "ours" / label / first.name
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, other)


def _compared(flags: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """A row for each way that Leukoscope trains a network."""
    on_cpu = get_recipe(name).cpu_precision if cpu_has_bf16() else "no"
    own = "bf16" if torch.cuda.is_available() else on_cpu
    settings = {"all layers": ("no", False), "own precision": (own, False), "own recipe": (own, True)}
    if own == "no":
        del settings["own precision"]
    script: list[dict[str, Any]] = []
    ours: dict[str, list[dict[str, Any]]] = {setting: [] for setting in settings}
    for _ in range(flags.turns):
        script.append(_take_turn(flags, side="script", recipe=name))
        for setting, (precision, frozen) in settings.items():
            ours[setting].append(_take_turn(flags, side="leukoscope", recipe=name, precision=precision, frozen=frozen))
    rows = []
    for setting, (precision, frozen) in settings.items():
        speed = {side: _speed(turns) for side, turns in (("leukoscope", ours[setting]), ("script", script))}
        rows.append(
            {
                "recipe": name,
                "setting": setting,
                "precision": {"leukoscope": precision, "script": "no"},
                "early_layers_frozen": frozen,
                "times_faster": {k: speed["leukoscope"][k] / speed["script"][k] for k in ("cold", "warm")},
                "images_per_second": speed,
                "turns": {"leukoscope": ours[setting], "script": script},
            }
        )
    return rows


def _take_turn(flags: argparse.Namespace, **turn: Any) -> dict[str, Any]:
    """One side's training in a process of its own."""
    # Decoded anew in every turn.
    cache = flags.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(flags.threads), "LEUKOSCOPE_CACHE": str(cache)}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(flags.folder / "hf-home"), "TQDM_DISABLE": "1"}
    words = [sys.executable, __file__, *sys.argv[1:], "--folder", str(flags.folder), "--turn", json.dumps(turn)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{turn}: ended with {ended.returncode}\n{ended.stderr}")
    result: dict[str, Any] = json.loads((flags.folder / "turn.json").read_text(encoding="utf-8"))
    print(turn, {k: v for k, v in result.items() if k != "adapted"}, flush=True)
    return result


def _recipe(flags: argparse.Namespace, turn: dict[str, Any]) -> Recipe:
    """Without dropout, which the two sides would apply at different places."""
    recipe = replace(get_recipe(turn["recipe"]), image_size=flags.image_size, train_batch_size=flags.batch_size)
    recipe = replace(recipe, num_train_epochs=flags.epochs, drop_rate=0.0, drop_path_rate=0.0)
    return recipe if turn.get("frozen") else replace(recipe, frozen=())


def _ours(flags: argparse.Namespace, turn: dict[str, Any]) -> dict[str, Any]:
    recipe, run = _recipe(flags, turn), RunArguments(mixed_precision=turn["precision"])
    accelerator = make_accelerator(TrainingConfig(run=run), recipe)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    set_seed(0)
    data = load_cells("imagefolder", str(flags.folder / "ours"))
    preprocessing = preprocessing_for(recipe, data)
    # First, because it imports what decoding needs.
    network = build_network(recipe, len(data.info.labels))
    started = time.perf_counter()
    cells = frame_cells(data, preprocessing)
    decoding = time.perf_counter() - started
    sides = {side: tuple(c for c in cells.row_of if f"/{side}-" in c) for side in ("train", "validation")}
    split = Split("benchmark", "cell", 0, data.fingerprint, sides["train"], sides["validation"], (), "")
    started = time.perf_counter()
    engine = Trainer(accelerator, network, cells, split, recipe)
    preparing = time.perf_counter() - started
    rows = list(engine.fit())
    result = _timed(flags.cells, [flags.cells / row["images_per_second"] for row in rows], decoding + preparing)
    return result | {"decoding_seconds": decoding, "preparing_seconds": preparing}


def _hf(flags: argparse.Namespace, turn: dict[str, Any]) -> dict[str, Any]:
    from hf_example import run_script

    # The script opens what timm builds: BatchNorm before pooling costs what it costs after.
    recipe, folder = replace(_recipe(flags, turn), pooled_norm=False), flags.folder / "network"
    data = load_cells("imagefolder", str(flags.folder / "ours"))
    save_release(
        folder,
        build_network(recipe, len(data.info.labels)),
        architecture=recipe.architecture,
        model_args=model_args(recipe),
        labels=data.info.labels,
        preprocessing=preprocessing_for(recipe, data),
        metrics=Metrics(labels=list(data.info.labels)),
    )
    values = {
        "dataset_name": flags.folder / "hf",
        "model_name_or_path": folder,
        "per_device_train_batch_size": flags.batch_size,
        "per_device_eval_batch_size": flags.batch_size,
        "num_train_epochs": flags.epochs,
        "seed": 0,
    }
    argv = [str(word) for flag, value in values.items() for word in (f"--{flag}", value)]
    result = run_script(flags.hf_script, argv, flags.image_size)
    return _timed(flags.cells, result["epoch_seconds"]) | {"adapted": result["adapted"]}


def _timed(cells: int, seconds: list[float], before: float = 0.0) -> dict[str, Any]:
    return {"cold": cells / (seconds[0] + before), "warm": cells / median(seconds[1:]), "epoch_seconds": seconds}


def _speed(turns: list[dict[str, Any]]) -> dict[str, float]:
    return {k: median(turn[k] for turn in turns) for k in ("cold", "warm")}


if __name__ == "__main__":
    main()
