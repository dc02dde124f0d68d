"""Does a cell's prediction gain from those of its nearest neighbours in the same batch? Out of fold, by subject.

The winner of the C-NMC challenge (Pan et al. 2019) corrects each cell by its neighbours in feature space.
Here a cell's logit is mixed with the mean logit of its k nearest cells (cosine, frozen features, no ids) among the test
cells of its fold. Needs the finished runs of a protocol whose recipe trains only the head, and the features they kept.

    PYTHONPATH=src python research/neighbours.py --runs DIR --features features-….npy --release DIR --train_dir DIR

Writes results/neighbours.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli.release import framed
from leukoscope.evaluation.bootstrap import paired_difference
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.models.release import read_release, write_json

KEYS = ("auroc_by_subject", "auroc_equal_size", "auroc", "balanced_accuracy_by_subject", "f1_weighted")
NEIGHBOURS, WEIGHTS = (5, 10, 20, 50), (0.25, 0.5, 0.75)


def mixed(fold: CellPredictions, order: np.ndarray, neighbours: int, weight: float) -> CellPredictions:
    """The fold with each logit mixed with the mean of its nearest cells' logits."""
    p = fold.probabilities.clip(1e-6, 1 - 1e-6)
    logits = np.log(p[:, 0]) - np.log(p[:, 1])
    both = (1 - weight) * logits + weight * logits[order[:, :neighbours]].mean(axis=1)
    first = 1 / (1 + np.exp(-both))
    return replace(fold, probabilities=np.stack([first, 1 - first], axis=1))


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="output_dir of the protocol")
    parser.add_argument("--features", type=Path, required=True, help="features-….npy of the cache")
    parser.add_argument("--release", type=Path, required=True, help="the release it composed")
    parser.add_argument("--train_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("results/neighbours.json"))
    given = parser.parse_args()
    cells = framed(read_release(given.release).preprocessing, "cnmc2019", given.train_dir, None, None)
    features = np.asarray(np.load(given.features, mmap_mode="r")[:, 0], dtype=np.float32)
    folds, orders, same = [], [], []
    for folder in sorted(given.runs.glob("cv-*")):
        fold = CellPredictions.load(folder / "predictions.parquet")
        rows = cells.rows(fold.cell_ids)
        others = np.setdiff1d(np.arange(len(features)), rows)
        x = (features[rows] - features[others].mean(axis=0)) / (features[others].std(axis=0) + 1e-6)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        likeness = x @ x.T
        np.fill_diagonal(likeness, -2)
        order = np.argsort(-likeness, axis=1)[:, : max(NEIGHBOURS)]
        subjects = np.asarray(fold.subjects)
        same.append(subjects[order[:, :10]] == subjects[:, None])
        folds.append(fold)
        orders.append(order)
    alone = pooled(folds)
    tried = []
    for k in NEIGHBOURS:
        for weight in WEIGHTS:
            together = pooled([mixed(fold, order, k, weight) for fold, order in zip(folds, orders, strict=True)])
            difference = paired_difference(together, alone)
            tried.append({"neighbours": k, "weight": weight, "difference": {key: difference[key] for key in KEYS}})
            print(k, weight, {key: round(difference[key]["difference"], 4) for key in KEYS}, flush=True)
    write_json(
        given.output,
        {
            "notice": RESEARCH_NOTICE,
            "measures": "out-of-fold predictions mixed with those of the nearest cells of the fold, less those alone",
            "cells": len(alone.cell_ids),
            "subjects": len(set(alone.subjects)),
            "share_of_neighbours_of_the_same_subject": float(np.concatenate(same).mean()),
            "tried": tried,
        },
    )


if __name__ == "__main__":
    main()
