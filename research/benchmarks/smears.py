"""How well cells are found in smears, and how fast.

    PYTHONPATH=src python research/benchmarks/smears.py --data DIR

DIR holds bccd/BCCD. Constants of `leukoscope.data.smear` were chosen on BCCD's training list; the figures
here are those of its test list. Writes results/smears.json.
"""

from __future__ import annotations

import argparse
import platform
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.images import open_smear
from leukoscope.data.smear import find_cells
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
    flags = parser.parse_args()
    bccd = flags.data / "bccd" / "BCCD"
    names = (bccd / "ImageSets" / "Main" / "test.txt").read_text(encoding="utf-8").split()
    result = {
        "notice": RESEARCH_NOTICE,
        "bccd": {
            "match": f"intersection over union of boxes of at least {ENOUGH_OVERLAP}",
            "test_scale_given": _found(bccd, names, BCCD_UM_PER_PIXEL),
            "test_scale_measured": _found(bccd, names, None),
        },
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
    """Count pairs of one true and one found box that overlap enough, each box in one pair at most."""
    if not (truth and found):
        return 0
    overlaps = box_iou(torch.tensor(truth, dtype=torch.float), torch.tensor(found, dtype=torch.float)).numpy()
    rows, columns = linear_sum_assignment(overlaps >= ENOUGH_OVERLAP, maximize=True)
    return int((overlaps[rows, columns] >= ENOUGH_OVERLAP).sum())


if __name__ == "__main__":
    main()
