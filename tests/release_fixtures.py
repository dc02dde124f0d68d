"""A release folder with known metrics, for everything that is rendered from one."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from leukoscope import RESEARCH_NOTICE

MEASURED = {
    "cells": 1234,
    "accuracy": 0.8111,
    "balanced_accuracy": 0.7222,
    "f1_weighted": 0.8333,
    "f1_macro": 0.7444,
    "auroc": 0.8554,
    "accuracy_by_subject": 0.81,
    "balanced_accuracy_by_subject": 0.7011,
    "f1_weighted_by_subject": 0.79,
    "f1_macro_by_subject": 0.7,
    "auroc_by_subject": 0.7771,
    "auroc_equal_size": 0.6666,
    "recall_by_subject": {"ALL": 1.0, "HEM": 0.1919},
    "per_class": {
        "ALL": {"precision": 800 / 999, "recall": 800 / 834, "f1": 0.8729, "support": 834},
        "HEM": {"precision": 201 / 235, "recall": 201 / 400, "f1": 0.6331, "support": 400},
    },
    "confusion_matrix": [[800, 34], [199, 201]],
    "subjects": {
        "H10": {"label": "HEM", "cells": 405, "accuracy": 0.1919},
        "16": {"label": "ALL", "cells": 53, "accuracy": 1.0},
    },
}
METRICS: dict[str, Any] = {
    "schema_version": 3,
    "notice": RESEARCH_NOTICE,
    "recipe": {
        "name": "densenet121",
        "architecture": "densenet121",
        "image_size": 160,
        "num_train_epochs": 2,
        "frozen": [],
    },
    "labels": ["ALL", "HEM"],
    "positive_label": "ALL",
    "data": {
        "name": "cnmc2019",
        "title": "C-NMC 2019",
        "licence": "CC BY 3.0",
        "citation": "Gupta & Gupta 2019.",
        "count_differences": ["fold_2 ALL: 413 cells here, 2,457 published"],
        "synthetic": False,
        "unit": "subject",
    },
    "training": {
        "cells": 7779,
        "subjects": ["1", "2", "3"],
        "split": "every cell trains",
        "start_weights": "channels selected from ImageNet EfficientNet-B4",
        "seed": 0,
        "seconds": 600.0,
        "protocol_seconds": 6000.0,
        "hardware": "CPU, 2 threads",
        "versions": {"leukoscope": "0.1.0"},
    },
    "evaluations": [
        {
            "name": "subject_cv",
            "estimates": "recipe (cross-validated)",
            "split": {
                "strategy": "subject-cv",
                "detail": "2-fold cross-validation by subject",
                "disjoint_by": "subject",
            },
            "metrics": MEASURED,
            "size_only_baseline": {"f1_weighted": 0.7999, "auroc_by_subject": 0.7222},
            "folds": [
                {
                    "fold": 0,
                    "cells": 617,
                    "subjects": ["16"],
                    "f1_weighted": 0.8011,
                    "balanced_accuracy": 0.7,
                    "auroc": None,
                },
                {
                    "fold": 1,
                    "cells": 617,
                    "subjects": ["H10"],
                    "f1_weighted": 0.8654,
                    "balanced_accuracy": 0.7,
                    "auroc": 0.9,
                },
            ],
        },
        {
            "name": "random",
            "estimates": "recipe (random split by image: subjects on both sides)",
            "split": {"strategy": "random", "detail": "70/15/15 by image", "disjoint_by": "cell"},
            "metrics": {**MEASURED, "f1_weighted": 0.9666},
        },
    ],
}
SUBJECT_RULE: dict[str, Any] = {
    "positive_label": "ALL",
    "rule": {"pooling": "quantiles", "coefficients": [0.2] * 5, "intercept": 0.0},
    "least_cells": 2,
    "measured": {
        "subjects": 41,
        "auroc": {"value": 0.9, "low": 0.8, "high": 1.0},
        "sensitivity": {"share": 0.9, "low": 0.8, "high": 1.0, "right": 26, "of": 28},
        "specificity": {"share": 0.9, "low": 0.8, "high": 1.0, "right": 11, "of": 13},
        "error_rate": {"share": 0.05, "low": 0.01, "high": 0.2},
    },
}


def _changed(family: str, shows: str, by_class: float, refused: float = 0.0) -> dict[str, Any]:
    return {
        **{"family": family, "strength": 1.0, "shows": shows, "changed": by_class + refused},
        **{"class_changed": by_class, "refused": refused, "abstained": 0.0},
        "directions": [{"from": "HEM", "to": "ALL", "share": by_class}] if by_class else [],
        **{"auroc_by_subject": 0.8 - by_class, "recall_by_subject": {"ALL": 0.9, "HEM": 0.5}},
        "intervals": {
            "class_changed": {"low": by_class / 2, "high": by_class * 2},
            "auroc_by_subject": {"low": 0.5, "high": 0.9},
            "recall_HEM_by_subject": {"low": 0.4, "high": 0.6},
        },
    }


ROBUSTNESS: dict[str, Any] = {
    **{"estimates": "a test", "weighted_by": "subject", "cells": 1200, "subjects": 41, "refused_unchanged": 3},
    "unchanged": {"auroc_by_subject": 0.8111, "recall_by_subject": {"ALL": 0.91, "HEM": 0.62}},
    "changes": {
        "brightness_up_10": _changed("brightness", "10 % brighter", 0.021),
        "size_up_5": _changed("size", "5 % larger", 0.08),
        "size_up_10": _changed("size", "10 % larger", 0.112),
        "saturate_up_15": _changed("saturation", "15 % more saturated", 0.05, refused=0.23),
    },
}


@pytest.fixture
def release_metrics() -> dict[str, Any]:
    """The content of the release's metrics.json, free to be changed."""
    return copy.deepcopy(METRICS)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release folder with known metrics; the card needs no weights."""
    folder = tmp_path / "leukoscope-test"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    config = {"architecture": "densenet121", "num_classes": 2, "label_names": ["ALL", "HEM"]}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"crop_pct": 350 / 450}}))
    return folder


@pytest.fixture
def whole_release(tmp_path: Path, watched_release: Path) -> Path:
    """A release with all that is published: known metrics, real weights, a card, an OOD detector, predictions."""
    import numpy as np

    from leukoscope.evaluation.predictions import CellPredictions

    folder = tmp_path / "whole" / "leukoscope-test"
    shutil.copytree(watched_release, folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "README.md").write_text("---\nlibrary_name: timm\npipeline_tag: image-classification\n---\n# Test\n")
    for name in ("figures", "predictions"):
        (folder / name).mkdir()
    (folder / "figures" / "subjects.png").write_bytes(b"a plot")
    answers = CellPredictions(("UID_1_1_1_all",), ("1",), np.array([0]), np.array([[0.75, 0.25]]), ("ALL", "HEM"))
    answers.save(folder / "predictions" / "subject_cv.parquet")
    return folder
