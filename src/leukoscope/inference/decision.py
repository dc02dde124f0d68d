"""One decision for each picture: a class, or why none is given.

Every way to a result (Python, `predict`, `score`, `field`, the demo's tabs, its API) shows what `decide` returns. The
thresholds were fitted on subjects outside training and stand in the "decisions" block of metrics.json, which
`leukoscope.evaluation.decisions` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

ABSTAIN = "abstain"
OUT_OF_DISTRIBUTION = "out of distribution"
NOT_A_CELL = "not a cell"
REFUSED = (OUT_OF_DISTRIBUTION, NOT_A_CELL)
WITHOUT_CLASS = (ABSTAIN, *REFUSED)
VIEWS_MAY_DISAGREE = 0.25
"""Share of a cell's eight views that may be predicted otherwise than their average before it is abstained from."""
FIELD_NEEDS = 0.5
"""Share of a field's cells that must be in distribution before any of them gets a class."""

_TEXTS = {
    "field_of_view": "the picture is no single cell cut out on black, which is what this model was trained on",
    "ood_colour": "its colours are unlike those of the training cells (OOD score {value:.1f}, limit {limit:.0f})",
    "ood_texture": "its texture is unlike that of the training cells (OOD score {value:.1f}, limit {limit:.0f})",
    "ood_field": "of its field only {value:.0%} of the cells are like the training cells, and {limit:.0%} are needed",
    "ood_shape": "its size or outline is unlike that of the training cells (OOD score {value:.1f}, limit {limit:.0f})",
    "low_confidence": "its most probable class has {value:.3f}, and the threshold is {limit:.3f}",
    "views_disagree": "{value:.0%} of its turned and mirrored views are predicted otherwise, more than {limit:.0%}",
    "explanation_off_cell": "{value:.0%} of its Grad-CAM map lies on the cell; 95 % of known cells have more than "
    "{limit:.0%}",
}


@dataclass(frozen=True)
class Reason:
    """One thing that speaks against giving a class, or for caution with it.

    Attributes:
        code: a key of the table above.
        value, limit: what was measured, and what it was held against; None where there is no number.
    """

    code: str
    value: float | None = None
    limit: float | None = None

    @property
    def text(self) -> str:
        """The reason in words."""
        return _TEXTS[self.code].format(value=self.value, limit=self.limit)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "text": self.text}


@dataclass(frozen=True)
class Decision:
    """What is decided of one picture.

    Attributes:
        outcome: a class, or one of `WITHOUT_CLASS`.
        reasons: why it is no class; with a class, what speaks for caution. Most important first.
        operating_point: which threshold chose between the two classes; "" for the most probable class.
    """

    outcome: str
    reasons: tuple[Reason, ...] = ()
    operating_point: str = ""

    @property
    def label(self) -> str | None:
        """The class decided on; None where there is none."""
        return None if self.outcome in WITHOUT_CLASS else self.outcome

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "outcome": self.outcome,
            "reasons": [reason.to_dict() for reason in self.reasons],
            "operating_point": self.operating_point,
        }


@dataclass(frozen=True)
class Checks:
    """What is known of a picture beside its probabilities.

    Attributes:
        ood_score: above 1 is out of distribution; None where the release has no detector.
        ood_group: what sets it apart most: "colour", "texture" or "shape".
        field_of_view: it is no single cell cut out on black, such as a smear, and the release was trained on these.
        field_share: share of the cells of its field that are in distribution; None for a picture of its own.
        disagreement: share of its eight views predicted otherwise than their average; None without them.
        on_cell: share of the most probable class's Grad-CAM map on the cell; None where it was not computed.
    """

    ood_score: float | None = None
    ood_group: str = "colour"
    field_of_view: bool = False
    field_share: float | None = None
    disagreement: float | None = None
    on_cell: float | None = None


@dataclass(frozen=True)
class Thresholds:
    """What a release decides by; empty for one that carries no decisions.

    Attributes:
        positive_label: the class that operating points look for; "" where there are none (more than two classes).
        operating_points: name (such as "sensitivity_95") → the positive class's probability from which a cell counts
            as positive, 0–1.
        abstain_below: the largest probability under which no class is given, 0–1; None where it was not measured.
        least_on_cell: share of a Grad-CAM map on the cell that 95 % of known cells exceed; None where not measured.
    """

    positive_label: str = ""
    operating_points: Mapping[str, float] = field(default_factory=dict)
    abstain_below: float | None = None
    least_on_cell: float | None = None

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
            least_on_cell=(metrics.get("evidence_scale") or {}).get("on_cell_p05"),
        )

    def decide(
        self, probabilities: Mapping[str, float], checks: Checks | None = None, *, operating_point: str = ""
    ) -> Decision:
        """The decision for one picture.

        Args:
            probabilities: class → probability, at least two classes, summing to 1.
            checks: what else is known of the picture.
            operating_point: one of `operating_points`; "" takes the most probable class.
        """
        known = checks or Checks()
        if known.ood_score is not None and known.ood_score > 1:
            found = [Reason(f"ood_{known.ood_group}", known.ood_score, 1.0)]
            if known.field_of_view:
                return Decision(NOT_A_CELL, (Reason("field_of_view"), *found), operating_point)
            return Decision(OUT_OF_DISTRIBUTION, tuple(found), operating_point)
        if known.field_share is not None and known.field_share < FIELD_NEEDS:
            # Cells of one field share a stain: where most are foreign, one that is not is a coincidence.
            found = [Reason("ood_field", known.field_share, FIELD_NEEDS)]
            return Decision(OUT_OF_DISTRIBUTION, tuple(found), operating_point)
        confidence, reasons = max(probabilities.values()), []
        if self.abstain_below is not None and confidence < self.abstain_below:
            reasons.append(Reason("low_confidence", confidence, self.abstain_below))
        if known.disagreement is not None and known.disagreement > VIEWS_MAY_DISAGREE:
            reasons.append(Reason("views_disagree", known.disagreement, VIEWS_MAY_DISAGREE))
        outcome = ABSTAIN if reasons else self._class(probabilities, operating_point)
        # A caution only: whether a map was asked for must not change the outcome.
        if known.on_cell is not None and self.least_on_cell is not None and known.on_cell < self.least_on_cell:
            reasons.append(Reason("explanation_off_cell", known.on_cell, self.least_on_cell))
        return Decision(outcome, tuple(reasons), operating_point)

    def _class(self, probabilities: Mapping[str, float], operating_point: str) -> str:
        if not operating_point:
            return max(probabilities, key=probabilities.__getitem__)
        if probabilities[self.positive_label] >= self.operating_points[operating_point]:
            return self.positive_label
        return next(label for label in probabilities if label != self.positive_label)

    def positives(self, probabilities: np.ndarray, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
        """(N, K) probabilities → for each operating point (N,) bool: whether a cell counts as positive.

        Args:
            labels: the K classes in the order of the probabilities.
        """
        if not self.operating_points:
            return {}
        score = probabilities[:, labels.index(self.positive_label)]
        return {name: score >= threshold for name, threshold in self.operating_points.items()}
