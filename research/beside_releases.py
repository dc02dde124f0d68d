"""Our releases beside the prior systems and each other, on the same cells of unseen subjects.

    python research/beside_releases.py

reads the out-of-fold predictions in model_card/ and results/prior/ and writes results/beside_releases.json, from which
docs/results.md renders its table. Both networks of a pair are judged on the same bootstrap samples of subjects.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.bootstrap import BOOTSTRAP_SAMPLES, CONFIDENCE_LEVEL
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.release import PREDICTIONS_FOLDER, write_json
from research.paired import paired_difference
from research.prior_claims import CLAIMS, UNSEEN

KEYS = ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject")


def compare(releases: Path, prior: Path, dataset: str = "cnmc2019") -> dict[str, Any]:
    """Paired differences, release less system and release less release, with intervals by subject.

    Args:
        releases: folder of releases with their out-of-fold predictions.
        prior: folder of the rows of `research.prior_systems`.

    Raises:
        LeukoscopeError: two that predict other cells or classes.
    """
    systems = {
        recipe: CellPredictions.load(file)
        for recipe, claim in CLAIMS.items()
        if claim.dataset == dataset and (file := prior / f"{recipe}-{UNSEEN}.parquet").is_file()
    }
    files = sorted(releases.glob(f"*/{PREDICTIONS_FOLDER}/subject_cv.parquet"))
    ours = {file.parents[1].name: CellPredictions.load(file) for file in files}

    def less(release: CellPredictions, other: CellPredictions) -> dict[str, Any]:
        found = paired_difference(release, other)
        return {key: found[key] for key in KEYS}

    rows = [
        {
            "release": name,
            "cells": len(release.cell_ids),
            "subjects": len(set(release.subjects)),
            "beside": {name: less(release, system) for name, system in systems.items()},
        }
        for name, release in ours.items()
    ]
    pairs = [{"release": one, "other": other, **less(ours[one], ours[other])} for one, other in combinations(ours, 2)]
    about = {
        "notice": RESEARCH_NOTICE,
        "estimates": OUT_OF_FOLD,
        "level": CONFIDENCE_LEVEL,
        "samples": BOOTSTRAP_SAMPLES,
    }
    return {**about, "releases": rows, "pairs": pairs}


if __name__ == "__main__":
    write_json(ROOT / "results" / "beside_releases.json", compare(ROOT / "model_card", ROOT / "results" / "prior"))
