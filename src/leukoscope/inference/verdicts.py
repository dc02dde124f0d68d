"""From probabilities to a verdict: the thresholds a release carries, applied to one answer.

The thresholds were fitted on subjects outside training and stand in the "decisions" block of metrics.json
(`leukoscope.evaluation.decisions` measures them); the same rule answers the demo, single predictions and bulk scoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Thresholds:
    """What a release decides by; empty for one that carries no decisions.

    Attributes:
        positive_label: the class that operating points look for; "" where there are none (more than two classes).
        operating_points: name (such as "sensitivity_95") → the positive class's probability from which a cell counts
            as positive, 0–1.
        abstain_below: the largest probability under which "not sure" is said, 0–1; None where it was not measured.
    """

    positive_label: str = ""
    operating_points: Mapping[str, float] = field(default_factory=dict)
    abstain_below: float | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Thresholds:
        """Those of a release's metrics.json; empty where it has no "decisions"."""
        decisions = metrics.get("decisions") or {}
        points = decisions.get("operating_points") or {}
        abstention = decisions.get("abstention") or {}
        return cls(
            positive_label=points.get("positive_label", ""),
            operating_points={name: point["threshold"] for name, point in points.get("points", {}).items()},
            abstain_below=abstention["default"]["threshold"] if abstention else None,
        )

    def abstains(self, probabilities: np.ndarray) -> np.ndarray | None:
        """(N, K) probabilities → (N,) bool: too undecided to answer; None where the release has no such threshold."""
        return None if self.abstain_below is None else probabilities.max(axis=1) < self.abstain_below

    def positives(self, probabilities: np.ndarray, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
        """(N, K) probabilities → for each operating point (N,) bool: whether a cell counts as positive.

        Args:
            labels: the K classes in the order of the probabilities.
        """
        if not self.operating_points:
            return {}
        score = probabilities[:, labels.index(self.positive_label)]
        return {name: score >= threshold for name, threshold in self.operating_points.items()}
