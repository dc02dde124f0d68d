"""Write the "morphology" block into the metrics.json of releases: `python tools/morphology.py RELEASE … --data FOLDER`.

The cells are those of the data set that the releases were trained on, cut out on black.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import open_image
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation.morphology import measure_cell
from leukoscope.models.release import METRICS, write_json

DEFINITION = (
    "area: pixels of the largest connected part brighter than black, holes filled; nucleus_share: share of it that is "
    "darker in green than Otsu's threshold after smoothing, holes filled; lobes: connected parts of that, each at "
    "least a tenth of it; quantiles over cells from 0 to 1 in steps of 0.05"
)
_QUANTILES = np.linspace(0, 1, 21)


def morphology_block(images: Iterable[Image.Image]) -> dict[str, Any]:
    """Make the "morphology" block of metrics.json.

    Args:
        images: the training cells; those that cannot be measured are left out.

    Returns:
        definition, cells, quantiles of area (pixels) and nucleus_share, and the share of cells with each number of
        lobes.
    """
    cells = [found for found in map(measure_cell, images) if found]
    lobes, counts = np.unique([cell.lobes for cell in cells], return_counts=True)
    return {
        "definition": DEFINITION,
        "cells": len(cells),
        "area": [round(float(x)) for x in np.quantile([cell.area for cell in cells], _QUANTILES)],
        "nucleus_share": [round(float(x), 4) for x in np.quantile([cell.nucleus_share for cell in cells], _QUANTILES)],
        "lobes": {
            str(number): round(float(count) / len(cells), 4) for number, count in zip(lobes, counts, strict=True)
        },
    }


def main() -> None:
    """Measure the cells of each data set once, and write what was found into every release."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    asked = parser.parse_args()
    blocks = {}
    for release in asked.releases:
        metrics = json.loads((release / METRICS).read_text(encoding="utf-8"))
        name = metrics["data"]["name"]
        find_cells = DATASETS[name].find_cells
        if DATASETS[name].background != "black" or find_cells is None:
            parser.error(f"{release}: trained on {name}, whose cells are not cut out on black")
        if name not in blocks:
            blocks[name] = morphology_block(open_image(cell.path) for cell in find_cells(ImageFolder.read(asked.data)))
        write_json(release / METRICS, metrics | {"morphology": blocks[name]})
        print(f"{release}: {blocks[name]['cells']} cells measured")


if __name__ == "__main__":
    main()
