"""Write the "morphology" block into the metrics.json of releases: `python tools/morphology.py RELEASE … --data FOLDER`.

The cells are those of the data set that the releases were trained on, cut out on black.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from leukoscope.data.images import open_image
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation.morphology import morphology_block
from leukoscope.models.release_files import METRICS, write_json

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("releases", type=Path, nargs="+")
parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
asked = parser.parse_args()
blocks = {}
for release in asked.releases:
    metrics = json.loads((release / METRICS).read_text())
    name = metrics["data"]["name"]
    if DATASETS[name].background != "black":
        parser.error(f"{release}: trained on {name}, whose cells are not cut out on black")
    if name not in blocks:
        cells = DATASETS[name].find_cells(asked.data)
        blocks[name] = morphology_block(open_image(cell.path) for cell in cells)
    write_json(release / METRICS, metrics | {"morphology": blocks[name]})
    print(f"{release}: {blocks[name]['cells']} cells measured")
