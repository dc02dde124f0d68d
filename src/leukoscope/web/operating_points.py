"""Sensitivity against specificity, and what they mean where the disease is rare: from a release's committed answers.

The answers are those of networks that never saw the subject. A release without them (one from the Hub brings none)
still has the operating points that its metrics.json names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukoscope.models.release_files import PREDICTIONS, ReleaseInfo
from leukoscope.web.panels import table
from leukoscope.web.words import percent, point_name


@dataclass(frozen=True)
class Scores:
    """Calibrated probabilities of the positive class for unseen subjects' cells, each class sorted."""

    positives: np.ndarray
    negatives: np.ndarray

    def at_sensitivity(self, wanted: float) -> Rates:
        """The highest threshold that still finds the wanted share of positive cells."""
        missed = int(np.floor((1 - wanted) * len(self.positives) + 1e-9))
        threshold = float(self.positives[min(missed, len(self.positives) - 1)])
        found = float((self.positives >= threshold).mean())
        return Rates(threshold, found, float((self.negatives < threshold).mean()))


@dataclass(frozen=True)
class Rates:
    """A threshold and the shares of positive and negative cells it answers right."""

    threshold: float
    sensitivity: float
    specificity: float

    def predictive_values(self, prevalence: float) -> tuple[float | None, float | None]:
        """Positive and negative predictive value where that share of cells is positive; None where nothing is so."""
        true, false = self.sensitivity * prevalence, (1 - self.specificity) * (1 - prevalence)
        spared, missed = self.specificity * (1 - prevalence), (1 - self.sensitivity) * prevalence
        return (
            true / (true + false) if true + false else None,
            spared / (spared + missed) if spared + missed else None,
        )


def scores_of(release: ReleaseInfo) -> Scores | None:
    """The committed answers of a two-class release, scaled as the release scales them; None where it brings none."""
    from leukoscope.evaluation.calibration import calibrated
    from leukoscope.evaluation.metrics import CellPredictions
    from leukoscope.hub.figures import judged_evaluation

    metrics = release.metrics
    points = metrics.get("decisions", {}).get("operating_points")
    tested = judged_evaluation(metrics) if metrics.get("evaluations") else None
    path = release.folder and tested and release.folder / PREDICTIONS / f"{tested['name']}.parquet"
    if not points or not path or not path.is_file():
        return None
    answers = calibrated(CellPredictions.load(path), metrics["calibration"]["temperature"])
    positive = answers.label_names.index(points["positive_label"])
    shares, true = answers.probabilities[:, positive], answers.references == positive
    return Scores(np.sort(shares[true]), np.sort(shares[~true]))


def points_table(metrics: Mapping[str, Any], scores: Scores | None, sensitivity: float, prevalence: float) -> str:
    """The named operating points and, where the answers are at hand, the one with the wanted sensitivity."""
    named = metrics.get("decisions", {}).get("operating_points", {}).get("points", {})
    if not named:
        return '<p class="lk-note">This release names no operating points: they need two classes.</p>'
    rows = [_row(point_name(name), _named(point), prevalence) for name, point in named.items()]
    if scores:
        rows.insert(
            0, _row(f"{percent(sensitivity)} sensitivity, chosen", scores.at_sensitivity(sensitivity), prevalence)
        )
    heads = ("operating point", "threshold", "sensitivity", "specificity", "PPV", "NPV")
    note = (
        "The chosen one is fitted to and judged on the same cells of unseen subjects; the named ones are cross-fitted."
        if scores
        else "This copy of the release brings no answers of its own, so only its named points can be shown."
    )
    return table(heads, rows, "Operating points") + f'<p class="lk-note">{note}</p>'


def _named(point: Mapping[str, Any]) -> Rates:
    judged = point["cross_fitted"]
    return Rates(point["threshold"], judged["sensitivity"], judged["specificity"])


def _row(name: str, rates: Rates, prevalence: float) -> tuple[str, ...]:
    values = (rates.threshold, rates.sensitivity, rates.specificity, *rates.predictive_values(prevalence))
    return (name, *("–" if value is None else f"{value:.3f}" for value in values))
