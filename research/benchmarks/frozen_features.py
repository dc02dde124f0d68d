"""What keeping a frozen backbone's features saves: the same head, trained epoch by epoch with and without them.

    PYTHONPATH=src python research/benchmarks/frozen_features.py [--dataset_name cnmc2019 --train_dir …]

The two take turns within one run, so that whatever else the machine does slows both. Writes
results/benchmarks/frozen_features.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.splits import Split
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe, get_recipe
from leukoscope.models.release import write_json
from leukoscope.models.weights import round_as_stored
from leukoscope.training.config import DataArguments, RunArguments, TrainingConfig
from leukoscope.training.data import FeatureInputs, features_file, frozen_features, preprocessing_for
from leukoscope.training.train import choose_split, make_accelerator
from leukoscope.training.trainer import Trainer

RESULTS = Path(__file__).parents[2] / "results" / "benchmarks" / "frozen_features.json"


def main() -> None:
    """Measure, write the figures, and say them."""
    flags = _flags()
    recipe = replace(get_recipe(flags.recipe), image_size=flags.image_size, num_train_epochs=flags.num_train_epochs)
    data = DataArguments(flags.dataset_name, flags.train_dir, max_train_samples=flags.max_train_samples)
    config = TrainingConfig(data, run=RunArguments(mixed_precision="no"))
    accelerator = make_accelerator(config, recipe)
    loaded = config.data.load(recipe.image_size)
    cells = frame_cells(loaded, preprocessing_for(recipe, loaded))
    split = choose_split(config, cells.data)
    with tempfile.TemporaryDirectory() as folder:
        # Features kept by an earlier run would make the first epoch free.
        os.environ["LEUKOSCOPE_CACHE"] = folder
        result = _measure(recipe, cells, split, accelerator)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS, result)
    typical = result["seconds_an_epoch"]
    print(
        f"an epoch takes {typical['anew']:.2f} s from pixels and {typical['kept']:.3f} s from features: "
        f"{result['times_faster_an_epoch']:.0f} times faster, after {result['seconds_to_keep']:.1f} s to keep them; "
        f"the losses differ by {result['largest_loss_difference']:.1g} at most\n{RESULTS}"
    )


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="densenet169_block2")
    parser.add_argument("--dataset_name", default="phantoms")
    parser.add_argument("--train_dir")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--num_train_epochs", type=int, default=3)
    parser.add_argument("--max_train_samples", type=int)
    return parser.parse_args()


def _measure(recipe: Recipe, cells: FramedCells, split: Split, accelerator: Accelerator) -> dict[str, Any]:
    """Random weights: what the backbone holds does not change what it costs."""
    preprocessing = preprocessing_for(recipe, cells.data)

    def built() -> nn.Module:
        set_seed(0)
        network = build_network(recipe, len(cells.data.info.labels))
        # As the Trainer does first: the file of features is named for these weights.
        round_as_stored(network, head=False)
        return network

    def trainer(cache_features: bool) -> Trainer:
        return Trainer(accelerator, built(), cells, split, recipe, seed=0, cache_features=cache_features)

    reader = trainer(True)
    anew, kept = trainer(False).fit(), reader.fit()
    network = built()
    started = time.perf_counter()
    path = features_file(network, cells, recipe)
    features = frozen_features(path, network, cells, preprocessing, recipe.augmentation.views)
    to_keep = time.perf_counter() - started

    seconds: dict[str, list[float]] = {"anew": [], "kept": []}
    differences = []
    for number in range(recipe.num_train_epochs):
        rows = {}
        for name, course in (("anew", anew), ("kept", kept)):
            # The two share one random generator: both get the same dropout.
            set_seed(number)
            started = time.perf_counter()
            rows[name] = next(course)
            seconds[name].append(time.perf_counter() - started)
        if not isinstance(reader.inputs, FeatureInputs) or list(path.parent.glob("features-*.npy")) != [path]:
            sys.exit(f"{path}: training did not read these features; give a recipe whose backbone is frozen")
        differences.append(abs(rows["anew"]["val_loss"] - rows["kept"]["val_loss"]))
    typical = {name: median(values) for name, values in seconds.items()}
    saved = typical["anew"] - typical["kept"]
    return {
        "notice": RESEARCH_NOTICE,
        "measures": "wall time of an epoch, validation included, whose head learns from pixels or from kept features",
        "recipe": recipe.name,
        "image_size": recipe.image_size,
        "data": cells.data.info.name,
        "cells": {"kept": len(features), "trained_on": len(split.train), "validated_on": len(split.validation)},
        "looks": features.shape[1],
        "megabytes": path.stat().st_size / 1e6,
        "seconds_to_keep": to_keep,
        "seconds_an_epoch": typical,
        "seconds_of_each_epoch": seconds,
        "times_faster_an_epoch": typical["anew"] / typical["kept"],
        "epochs_until_paid": to_keep / saved,
        "largest_loss_difference": max(differences),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} thread(s), {accelerator.device.type}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
