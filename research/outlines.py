"""How often cells of C-NMC are torn or merged, by what their outlines say, and what that is worth.

    python -m research.outlines --train_dir DIR --work FILE

measures each cell without a network: solidity (its area over that of its convex hull), the share of it that holes
make up, and its roundness 4πA/P². FILE (.npz) keeps what was measured. It counts by class and official fold how often a
limit on them speaks, and how well stored out-of-fold predictions of our releases do without those cells; and how well
roundness alone tells the classes apart, beside the size. Writes results/outlines.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes
from skimage.measure import label, perimeter, regionprops

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.images import foreground, open_image
from leukoscope.evaluation.bootstrap import point_metrics
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.release import PREDICTIONS_FOLDER, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "outlines.json"
RELEASES = ("leukoscope-densenet169-cnmc", "leukoscope-efficientnet-b3-cnmc")
# What may speak: name → (measure, whether it speaks above its limit, limit).
REASONS = {
    "solidity below 0.75": ("solidity", False, 0.75),
    "solidity below 0.80": ("solidity", False, 0.80),
    "solidity below 0.85": ("solidity", False, 0.85),
    "solidity below 0.90": ("solidity", False, 0.90),
    "holes above 0.1 %": ("holes", True, 0.001),
    "holes above 0.5 %": ("holes", True, 0.005),
    "more than one piece": ("pieces", True, 1),
}
MAY_COST = 2.0  # of 100 cells
MAY_PREFER = 3.0  # times as often for one class as for the other
LEAST_PIECE = 0.01  # of the largest


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    flags = parser.parse_args()
    if not flags.work.exists():
        np.savez(flags.work, allow_pickle=True, **measured(flags.train_dir))
    with np.load(flags.work) as table:
        row_of = {cell: row for row, cell in enumerate(table["cell"].tolist())}
        columns = {name: table[name] for name in table.files}
    result: dict[str, Any] = {"notice": RESEARCH_NOTICE, "cells": len(row_of), "reasons": {}}
    for name, (measure, above, limit) in REASONS.items():
        speaks = columns[measure] > limit if above else columns[measure] < limit
        result["reasons"][name] = _how_often(speaks, columns)
        for release in RELEASES:
            result["reasons"][name][release] = _without(_stored(release), speaks, row_of)
    result["alone"] = _alone(_stored(RELEASES[0]), columns, row_of)
    write_json(RESULTS, result)
    print(RESULTS)


def measured(folder: Path) -> dict[str, np.ndarray]:
    """Column → (N,) of all official cells: name, class, fold and the measures of the outline."""
    rows = []
    for path in sorted(folder.rglob("fold_*/*/*")):
        rows.append((path.stem, path.parent.name, path.parent.parent.name, *outline(open_image(path))))
    names = ("cell", "class", "fold", "solidity", "holes", "pieces", "roundness", "area")
    return {name: np.asarray(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def outline(image: Image.Image) -> tuple[float, float, int, float, int]:
    """Solidity and roundness of a cell's largest piece, its holes' share, its number of pieces, its area in pixels."""
    mask = np.pad(foreground(np.asarray(image)), 2)
    filled = binary_fill_holes(mask)
    parts = label(filled)
    areas = np.bincount(parts.ravel())[1:]
    largest = parts == areas.argmax() + 1
    (region,) = regionprops(largest.astype(np.uint8))
    roundness = 4 * np.pi * areas.max() / perimeter(largest) ** 2
    pieces = int((areas > LEAST_PIECE * areas.max()).sum())
    return float(region.solidity), float((filled.sum() - mask.sum()) / mask.sum()), pieces, roundness, int(mask.sum())


def _stored(release: str) -> CellPredictions:
    return CellPredictions.load(ROOT / "model_card" / release / PREDICTIONS_FOLDER / "subject_cv.parquet")


def _how_often(speaks: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of 100 cells of each class, and of each class in each fold; whether the rule lets it decide."""
    shares = {kind: 100 * float(speaks[columns["class"] == kind].mean()) for kind in ("all", "hem")}
    folds = {}
    for fold in np.unique(columns["fold"]).tolist():
        here = columns["fold"] == fold
        folds[fold] = {kind: 100 * float(speaks[here & (columns["class"] == kind)].mean()) for kind in shares}
    costs = 100 * float(speaks.mean())
    preferences = [max(share.values()) / max(min(share.values()), 0.01) for share in (shares, *folds.values())]
    decides = 0 < costs < MAY_COST and max(preferences) < MAY_PREFER
    return {
        "of_100": costs,
        "by_class": shares,
        "by_fold": folds,
        "most_preferred": max(preferences),
        "may_decide": decides,
    }


def _without(predictions: CellPredictions, speaks: np.ndarray, row_of: dict[str, int]) -> dict[str, Any]:
    """Metrics by subject of all cells, of those that are left, and of those of which the reason speaks."""
    spoken = np.asarray([speaks[row_of[cell]] for cell in predictions.cell_ids])
    figures = {}
    for name, kept in (("all", np.ones_like(spoken)), ("left", ~spoken), ("spoken_of", spoken)):
        metrics = point_metrics(predictions.take(np.flatnonzero(kept))) if kept.any() else {}
        figures[name] = {key: value for key, value in metrics.items() if key.endswith("_by_subject")}
    return figures


def _alone(predictions: CellPredictions, columns: dict[str, np.ndarray], row_of: dict[str, int]) -> dict[str, Any]:
    """AUROC by subject of a measure alone, untrained, by fold: above 0.5 the first class has more of it."""
    order = np.asarray([row_of[cell] for cell in predictions.cell_ids])
    figures: dict[str, Any] = {}
    for measure in ("area", "roundness", "solidity"):
        ranks = np.argsort(np.argsort(columns[measure][order], kind="stable")) / len(order)
        ranked = replace(predictions, probabilities=np.stack([ranks, 1 - ranks], axis=1))
        figures[measure] = {}
        for fold in ("all", *np.unique(columns["fold"]).tolist()):
            here = np.flatnonzero((columns["fold"][order] == fold) | (fold == "all"))
            figures[measure][fold] = point_metrics(ranked.take(here))["auroc_by_subject"]
    return figures


if __name__ == "__main__":
    main()
