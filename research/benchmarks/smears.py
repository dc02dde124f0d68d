"""How well cells are found in smears, how fast, and how far the found cells are from those a release knows.

    PYTHONPATH=src python research/benchmarks/smears.py --data DIR --model model_card/leukoscope-densenet169-cnmc

DIR holds bccd/BCCD and ball4/. Constants of `leukoscope.data.smear` were chosen on BCCD's training list; the figures
here are those of its test list. Writes results/smears.json.
"""

from __future__ import annotations

import argparse
import platform
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.images import open_smear
from leukoscope.data.smear import UnusableSmear, cut_out, find_cells
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import write_json

RESULTS = Path(__file__).parents[2] / "results" / "smears.json"
# BCCD's red cells are 102 px wide (median of the training list's boxes): 7.5 µm.
BCCD_UM_PER_PIXEL = 0.0735
ENOUGH_OVERLAP = 0.5
Box = tuple[int, ...]


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    flags = parser.parse_args()
    bccd, ball4 = flags.data / "bccd" / "BCCD", flags.data / "ball4"
    names = (bccd / "ImageSets" / "Main" / "test.txt").read_text(encoding="utf-8").split()
    result = {
        "notice": RESEARCH_NOTICE,
        "bccd": {
            "match": f"intersection over union of boxes of at least {ENOUGH_OVERLAP}",
            "test_scale_given": _found(bccd, names, BCCD_UM_PER_PIXEL),
            "test_scale_measured": _found(bccd, names, None),
        },
        "domain_gap": _domain_gap(Predictor.from_pretrained(flags.model), bccd, names, ball4),
        "hardware": f"{platform.machine()}, 1 thread",
    }
    write_json(RESULTS, result)
    print(RESULTS)


def _found(bccd: Path, names: Sequence[str], um_per_pixel: float | None) -> dict[str, Any]:
    """Recall and precision of white cells' boxes, scales as multiples of the true one, and CPU seconds a smear."""
    right, found, true = 0, 0, 0
    ratios, seconds = [], []
    for name in names:
        truth = white_cells(bccd / "Annotations" / f"{name}.xml")
        image = open_smear(bccd / "JPEGImages" / f"{name}.jpg")
        started = time.process_time()
        smear = find_cells(image, um_per_pixel=um_per_pixel)
        seconds.append(time.process_time() - started)
        boxes = [cell.box for cell in smear.cells]
        right, found, true = right + matches(truth, boxes), found + len(boxes), true + len(truth)
        if smear.scale:
            ratios.append(smear.scale.um_per_pixel / BCCD_UM_PER_PIXEL)
    return {
        "smears": len(names),
        "true": true,
        "found": found,
        "right": right,
        "recall": right / true,
        "precision": right / found,
        "scale_read_in": len(ratios),
        "scale_median_ratio": float(np.median(ratios)),
        "scale_within_25_percent": float((np.abs(np.log(ratios)) <= np.log(1.25)).mean()),
        "cpu_seconds": float(np.median(seconds)),
    }


def white_cells(annotation: Path) -> list[Box]:
    """Boxes (left, top, right, bottom) of the white cells that a file of BCCD names."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = [o for o in ElementTree.parse(annotation).iter("object") if o.findtext("name") == "WBC"]
    return [tuple(int(o.findtext(f"bndbox/{side}") or 0) for side in sides) for o in objects]


def matches(truth: Sequence[Box], found: Sequence[Box]) -> int:
    """Count pairs of one true and one found box, each in one pair at most, best pairs first."""
    pairs = sorted(((_iou(t, f), i, j) for i, t in enumerate(truth) for j, f in enumerate(found)), reverse=True)
    used_true: set[int] = set()
    used_found: set[int] = set()
    for overlap, i, j in pairs:
        if overlap >= ENOUGH_OVERLAP and i not in used_true and j not in used_found:
            used_true.add(i)
            used_found.add(j)
    return len(used_true)


def _iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (sum((right - left) * (bottom - top) for left, top, right, bottom in (one, other)) - shared)


def _domain_gap(predictor: Predictor, bccd: Path, names: Sequence[str], ball4: Path) -> dict[str, Any]:
    """OOD scores of cut-outs: 1 is the limit, 98 % of unseen subjects' C-NMC cells lie below it."""
    of_bccd = [bccd / "JPEGImages" / f"{name}.jpg" for name in names[:40]]
    sources: dict[str, tuple[list[Path], float | None]] = {"BCCD, test list": (of_bccd, BCCD_UM_PER_PIXEL)}
    for folder in sorted((ball4 / "Original").iterdir()):
        paths = sorted(folder.glob("*.jpg"))
        sources[f"ball4 {folder.name}"] = paths[:: max(1, len(paths) // 8)], None
    gaps = {}
    for name, (paths, um_per_pixel) in sources.items():
        scores = [one.checks.ood_score for one in predictor(list(_cut_outs(paths, um_per_pixel))[:60])]
        known = np.array([score for score in scores if score is not None])
        gaps[name] = {
            "cells": len(known),
            "in_distribution_share": float((known <= 1).mean()),
            "ood_score": {q: float(np.percentile(known, int(q))) for q in ("5", "50", "95")},
        }
    held_out = predictor.release.metrics["ood"]["held_out"]["kept_share"]
    return {"model": predictor.release.name, "C-NMC in distribution, held-out subjects": held_out, "cut_outs": gaps}


def _cut_outs(paths: Sequence[Path], um_per_pixel: float | None) -> Iterator[Image.Image]:
    for path in paths:
        image = open_smear(path)
        try:
            smear = find_cells(image, um_per_pixel=um_per_pixel)
        except UnusableSmear:
            continue
        yield from (
            cut_out(image, cell, smear.scale.um_per_pixel) for cell in smear.cells if cell.whole and smear.scale
        )


if __name__ == "__main__":
    main()
