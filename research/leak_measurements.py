"""Write src/leukoscope/leak_measurements.json from results/: by how much a split by image overstated networks.

`leukoscope audit --split_file` quotes it. `make docs` renders it anew.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from leukoscope.models.release import write_json
from research.tables import by_protocol, overstated, read_results

TARGET = ROOT / "src" / "leukoscope" / "leak_measurements.json"


def leak_measurements(results: Path) -> dict[str, Any]:
    """Differences of balanced accuracy by subject, from the committed results.

    Returns:
        `by_image_minus_by_subject`: of the rebuilt systems, how many networks were overstated beyond chance and the
        smallest and largest of these differences; `same_test_cells`: mean, smallest and largest over seeds of one
        network tested on the same cells, with and without these subjects' other cells in training.
    """
    differences = overstated(by_protocol(read_results(results / "prior"))).values()
    beyond_chance = [difference["difference"] for difference in differences if difference["low"] > 0]
    comparisons = read_results(results / "leakage")
    of_cnmc = next(comparison for comparison in comparisons if comparison["data"]["name"] == "cnmc2019")
    same_cells = of_cnmc["difference"]["balanced_accuracy"]
    return {
        "metric": "balanced accuracy by subject",
        "by_image_minus_by_subject": {
            "networks": len(differences),
            "overstated": len(beyond_chance),
            "smallest": min(beyond_chance),
            "largest": max(beyond_chance),
        },
        "same_test_cells": {key: same_cells[key] for key in ("mean", "smallest", "largest")},
    }


if __name__ == "__main__":
    write_json(TARGET, leak_measurements(ROOT / "results"))
    print(TARGET.relative_to(ROOT))
