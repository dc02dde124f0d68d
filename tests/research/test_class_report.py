"""The report of each class by itself: one-vs-rest accuracy is not the accuracy of all classes."""

from __future__ import annotations

from typing import Any

import pytest

from research.prior_systems import class_report

# Four classes of ten cells; two Early taken for Pre, one Pre for Pro.
MATRIX = [[10, 0, 0, 0], [0, 8, 2, 0], [0, 0, 9, 1], [0, 0, 0, 10]]
NAMES = ("Benign", "Early", "Pre", "Pro")
FIGURES: dict[str, Any] = {
    "cells": 40,
    "accuracy": 37 / 40,
    "balanced_accuracy": 37 / 40,
    "per_class": {
        name: {
            "precision": MATRIX[k][k] / sum(row[k] for row in MATRIX),
            "recall": MATRIX[k][k] / 10,
            "f1": 0.9,
            "support": 10,
        }
        for k, name in enumerate(NAMES)
    },
    "confusion_matrix": MATRIX,
}


def test_one_vs_rest_halves_the_error_of_four_classes_and_not_of_two() -> None:
    report = class_report(FIGURES)
    assert report["classes"]["Early"]["one_vs_rest_accuracy"] == pytest.approx(38 / 40)
    assert report["classes"]["Pre"]["specificity"] == pytest.approx(28 / 30)
    assert report["mean"]["one_vs_rest_accuracy"] == pytest.approx(1 - (1 - FIGURES["accuracy"]) / 2)
    # Two classes need no such accuracy of their own.
    per_class = {name: {"precision": 0.8, "recall": 0.8, "f1": 0.8, "support": 10} for name in ("ALL", "HEM")}
    figures = FIGURES | {"cells": 20, "accuracy": 0.8, "per_class": per_class, "confusion_matrix": [[8, 2], [2, 8]]}
    report = class_report(figures)
    assert report["mean"]["one_vs_rest_accuracy"] == pytest.approx(0.8)
    assert report["classes"]["ALL"]["specificity"] == pytest.approx(0.8)


def test_a_class_that_was_not_tested_is_no_part_of_the_mean() -> None:
    absent = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    per_class = {"ALL": {"precision": 1.0, "recall": 0.75, "f1": 0.86, "support": 4}, "HEM": absent}
    figures = FIGURES | {"cells": 4, "per_class": per_class, "confusion_matrix": [[3, 1], [0, 0]]}
    report = class_report(figures)
    assert report["mean"]["recall"] == 0.75
    assert report["classes"]["ALL"]["specificity"] is None and report["mean"]["specificity"] is None
