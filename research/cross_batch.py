"""A cross-batch yardstick: a recipe trained on the cells of two official folds of C-NMC, tested on the third.

The five folds by subject share their subjects' batch; the official folds are batches of their own. Subjects of the
tested fold that stand in several folds, also under another name, are left out of training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.bootstrap import BOOTSTRAP_SAMPLES, CONFIDENCE_LEVEL, subject_intervals
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.models.release import read_metrics, write_json
from leukoscope.protocol import ProtocolRun, finish, refuse_split_flags
from leukoscope.training.config import TrainingConfig, parse_config
from research.commands import make_parser, run

FOLDS = ("fold_0", "fold_1", "fold_2")
ESTIMATES = "recipe (trained on two official folds, tested on the third)"


def runs_of(config: TrainingConfig) -> list[ProtocolRun]:
    """One run for each official fold that is tested."""
    refuse_split_flags(config)
    made = []
    for tested in FOLDS:
        train = [fold for fold in FOLDS if fold != tested]
        data = replace(config.data, split="official", train_folds=train, test_folds=[tested], no_validation=True)
        to = replace(config.run, output_dir=str(config.output_dir / f"on-{tested}"))
        made.append(ProtocolRun(f"tested on {tested}", TrainingConfig(data, config.model, to), ESTIMATES))
    return made


def measured(predictions: CellPredictions) -> dict[str, Any]:
    """The usual metrics, with intervals by subject."""
    metrics = measure(predictions)
    intervals = {"level": CONFIDENCE_LEVEL, "draws": BOOTSTRAP_SAMPLES, "seed": 0, **subject_intervals(predictions)}
    counts = {"cells": len(predictions.cell_ids), "subjects": len(metrics["subjects"])}
    return {**counts, **headline(metrics), "intervals": intervals}


def main() -> None:
    """Make the runs of one recipe that are not finished yet, and write the file."""
    parser = make_parser("cross_batch", __doc__)
    parser.add_argument("--output", type=Path, default=Path("results/cross_batch.json"), help="The file to write.")
    own, flags = parser.parse_known_args()
    config = parse_config(["--dataset_name", "cnmc2019", *flags])
    made = finish(runs_of(config))
    parts = [CellPredictions.load(one.folder / "predictions.parquet") for one in made]
    about = [read_metrics(one.folder).content() for one in made]
    content = {
        "notice": RESEARCH_NOTICE,
        "estimates": ESTIMATES,
        "recipe": about[0]["recipe"]["name"],
        "data": {key: about[0]["data"][key] for key in ("name", "title", "fingerprint", "cells", "citation")},
        "training": {key: about[0]["training"][key] for key in ("start_weights", "created", "hardware", "versions")},
        "over_the_three": measured(pooled(parts)),
        "by_tested_fold": {
            fold: measured(part) | {"left_out": one["evaluations"][0]["split"]["notes"]}
            for fold, part, one in zip(FOLDS, parts, about, strict=True)
        },
    }
    write_json(own.output, content)
    print(f"{own.output}\n{RESEARCH_NOTICE}")


if __name__ == "__main__":
    run(main)
