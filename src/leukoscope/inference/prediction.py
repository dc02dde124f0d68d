"""A prediction and its decision: a class, or why none is given.

`Thresholds.decide` decides once for each picture, and everything that shows a result reads `Prediction.decision`. The
thresholds were fitted on subjects outside training by `leukoscope.evaluation.thresholds`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, ConfigError, ReleaseError
from leukoscope.data.changes import Change
from leukoscope.inference.gradcam import overlay
from leukoscope.models.metrics import EVIDENCE_METHOD, EvidenceScale, MapChecks, Metrics

# Outcomes without a class; TOO_FEW_CELLS is a subject's.
ABSTAIN = "abstain"
OUT_OF_DISTRIBUTION = "out of distribution"
NOT_A_CELL = "not a cell"
TOO_FEW_CELLS = "too few cells"
REFUSED = (OUT_OF_DISTRIBUTION, NOT_A_CELL)
WITHOUT_CLASS = (ABSTAIN, *REFUSED)
NUM_VIEWS = 8
"""Four quarter turns, each also mirrored: a cell has no upright, so a sound classifier predicts the same for all."""
VIEWS_MAY_DISAGREE = 0.25
"""Share of a cell's eight views that may be predicted otherwise than their average before the release abstains."""
FIELD_NEEDS = 0.5
"""Share of a field's cells that must be in distribution before any of them gets a class."""
SIDE_MAY_DIFFER = 0.05
"""By this share of the training pictures' side a picture's may differ without a reason for caution."""

NO_MAP = (
    "has no Grad-CAM map: the last features of its network are no map of channels (a vision transformer's are tokens)"
)
REASON_TEXTS = {
    "field_of_view": "The picture is no single cell cut out on black, which is what this model was trained on.",
    "ood_colour": "Its colours are unlike those of the training cells (OOD score {value:.1f}, limit {limit:.0f}).",
    "ood_texture": "Its texture is unlike that of the training cells (OOD score {value:.1f}, limit {limit:.0f}).",
    "ood_shape": "Its size or outline is unlike that of the training cells (OOD score {value:.1f}, limit {limit:.0f}).",
    "ood_field": "Only {value:.0%} of the smear's cells are like the training cells; {limit:.0%} are needed.",
    "low_confidence": "Its most probable class has {value:.0%}; the model gives a class from {limit:.0%}.",
    "views_disagree": "{value:.0%} of its turned and mirrored views get another class; at most {limit:.0%} may.",
    "other_frame": "Its shorter side has {value:.0f} pixels, that of the training cells {limit:.0f}: unless the whole "
    "picture was resized, the model sees the cell too large or too small.",
    "filled_black": "The picture has transparent parts: they were read as black.",
    "filled_pale": "The picture has transparent parts: they were read in the colour of an empty slide.",
    "explanation_off_cell": "{value:.0%} of its map lies on the cell: less than for 95 of 100 measured cells (limit "
    "{limit:.0%}).",
}
_NUMBER = re.compile(r"\{(value|limit):\.(\d)([f%])\}")


@dataclass(frozen=True)
class Reason:
    """One reason against giving a class, or for caution with it; `code` is a key of `REASON_TEXTS`.

    `value` was measured and compared with `limit`; None where there is no number.
    """

    code: str
    value: float | None = None
    limit: float | None = None

    @property
    def text(self) -> str:
        """The reason as a sentence."""
        return self.fill(REASON_TEXTS[self.code])

    def fill(self, template: str) -> str:
        """A sentence with the reason's numbers in it, with digits enough to tell the value from the limit."""
        numbers: dict[str, str] = {}
        for more_digits in range(6):
            for name, digits, kind in _NUMBER.findall(template):
                numbers[name] = format(getattr(self, name), f".{int(digits) + more_digits}{kind}")
            if len({float(number.rstrip("%")) for number in numbers.values()}) == len(numbers):
                break
        return _NUMBER.sub(lambda match: numbers[match[1]].replace("%", "\u00a0%"), template)

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {**asdict(self), "text": self.text}


@dataclass(frozen=True)
class Decision:
    """The outcome of one picture: a class, or one of `WITHOUT_CLASS`.

    `reasons` say why it is no class; with a class, they are reasons for caution. Most important first.
    """

    outcome: str
    reasons: tuple[Reason, ...] = ()

    @property
    def label(self) -> str | None:
        """The class; None where no class is given."""
        return None if self.outcome in WITHOUT_CLASS else self.outcome

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"outcome": self.outcome, "reasons": [reason.to_dict() for reason in self.reasons]}


@dataclass(frozen=True)
class Checks:
    """Measurements of a picture beside its probabilities.

    Attributes:
        ood_score: above 1 is out of distribution; None where the release has no detector.
        ood_group: what sets it apart most: "colour", "texture" or "shape".
        shorter_side: of the picture, in pixels.
        filled_with: the colour that its transparent parts were filled with; None where it has none.
        field_of_view: it looks like a smear, and the release was trained on single cells cut out on black.
        field_share: share of the cells of its field that are in distribution; None for a picture of its own.
        disagreement: share of its eight views predicted otherwise than their average; None without them.
        on_cell: share of the most probable class's evidence map on the cell; None where it was not computed.
    """

    ood_score: float | None = None
    ood_group: str = "colour"
    shorter_side: int | None = None
    filled_with: tuple[int, int, int] | None = None
    field_of_view: bool = False
    field_share: float | None = None
    disagreement: float | None = None
    on_cell: float | None = None


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a release; empty for one that carries no decisions.

    Attributes:
        abstain_below: the largest probability under which no class is given, 0–1; None where it was not measured.
        least_on_cell: share of a map on the cell that 95 % of the cells measured exceed.
        strong_evidence: what one cell in twenty exceeds with its strongest evidence for any class; the upper end of the
            colour scale.
        picture_side: pixels a side of the training cells' pictures; None where they have no common side.
    """

    abstain_below: float | None = None
    least_on_cell: float | None = None
    strong_evidence: float | None = None
    picture_side: int | None = None

    @classmethod
    def from_metrics(cls, metrics: Metrics) -> Thresholds:
        """Read those of a release's metrics.json; empty where it has no "decisions"."""
        abstention = metrics.decisions and metrics.decisions.abstention
        cells = metrics.dataset
        scale = metrics.evidence_scale
        if scale is None or scale.method != EVIDENCE_METHOD:
            scale = EvidenceScale(p05=None, p95=None)
        return cls(
            abstain_below=abstention.default.threshold if abstention else None,
            least_on_cell=scale.on_cell_p05,
            strong_evidence=scale.p95 or None,
            picture_side=cells.picture_side if cells else None,
        )

    def decide(self, probabilities: Mapping[str, float], checks: Checks = Checks()) -> Decision:
        """Decide for one picture by its class probabilities, which sum to 1, and its other measurements."""
        cautions = []
        if checks.filled_with is not None:
            cautions.append(Reason("filled_pale" if any(checks.filled_with) else "filled_black"))
        if checks.ood_score is not None and checks.ood_score > 1:
            unlike = Reason(f"ood_{checks.ood_group}", checks.ood_score, 1.0)
            if checks.field_of_view:
                return Decision(NOT_A_CELL, (Reason("field_of_view"), unlike, *cautions))
            return Decision(OUT_OF_DISTRIBUTION, (unlike, *cautions))
        if checks.field_share is not None and checks.field_share < FIELD_NEEDS:
            # Cells of one field share a stain: where most are out of distribution, one that is not is a coincidence.
            unlike = Reason("ood_field", checks.field_share, FIELD_NEEDS)
            return Decision(OUT_OF_DISTRIBUTION, (unlike, *cautions))
        confidence = max(probabilities.values())
        reasons = []
        if self.abstain_below is not None and confidence < self.abstain_below:
            reasons.append(Reason("low_confidence", confidence, self.abstain_below))
        if checks.disagreement is not None and checks.disagreement > VIEWS_MAY_DISAGREE:
            reasons.append(Reason("views_disagree", checks.disagreement, VIEWS_MAY_DISAGREE))
        outcome = ABSTAIN if reasons else max(probabilities, key=probabilities.__getitem__)
        side = self.picture_side
        if side and checks.shorter_side and abs(checks.shorter_side / side - 1) > SIDE_MAY_DIFFER:
            reasons.append(Reason("other_frame", checks.shorter_side, side))
        reasons += cautions
        # A caution only: the outcome must not depend on whether a map was asked for.
        if checks.on_cell is not None and self.least_on_cell is not None and checks.on_cell < self.least_on_cell:
            reasons.append(Reason("explanation_off_cell", checks.on_cell, self.least_on_cell))
        return Decision(outcome, tuple(reasons))


@dataclass(frozen=True)
class HeatMap:
    """One class's map: `evidence` (h, w) float32, ≥ 0, relative to the blank picture, in units of the logit."""

    evidence: np.ndarray
    label: str


@dataclass(frozen=True)
class ChangedAnswer:
    """What a release answers for a picture under one small change.

    Attributes:
        change: one of `leukoscope.data.changes`.
        decision: of the changed picture.
        probabilities: class → probability for the changed picture.
    """

    change: Change
    decision: Decision
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """What a release predicts for one picture.

    Attributes:
        decision: the outcome (a class, or why there is none) and its reasons.
        probabilities: class → probability, in the release's label order; sums to 1. Given whatever the outcome: they
            are no result by themselves.
        source: the picture's path or name; "image 3" for the third of those given without one.
        model, revision: folder or Hub id, and Hub commit ("" for a folder).
        seconds: from file to prediction, the batch's time shared evenly; pictures that were opened while the batch
            before was predicted cost nothing.
        heatmaps: class → its map, with `explain=True`; None where the network's last features are no map of channels,
            as a vision transformer's are not.
        view_box: (left, top, right, bottom) of what the network saw, in pixels of the upright picture.
        checks: the other measurements that were decided by.
        picture: the upright RGB picture, with `explain=True`.
        peak: the value at the upper end of the release's colour scale; None where it was not measured.
        pixel_hash: of the decoded picture; equal for copies of a picture, whatever file they are in.
        views: class → probability in each of the eight views, the upright one first; with `explain` or `tta`, else ().
        map_check: what the checks of the release's maps found, which no map shows by itself.
        changed: what the release answers under small changes; with `Predictor.with_small_changes`, else ().
    """

    decision: Decision
    probabilities: dict[str, float]
    source: str
    model: str
    revision: str
    seconds: float
    heatmaps: dict[str, HeatMap] | None = field(repr=False)
    view_box: tuple[float, float, float, float]
    checks: Checks = field(default_factory=Checks)
    picture: Image.Image | None = field(default=None, repr=False, compare=False)
    peak: float | None = None
    pixel_hash: str = ""
    views: tuple[dict[str, float], ...] = ()
    map_check: MapChecks = field(default_factory=MapChecks, repr=False)
    changed: tuple[ChangedAnswer, ...] = field(default=(), repr=False)

    @property
    def outcome(self) -> str:
        """A class, "abstain", "out of distribution" or "not a cell"."""
        return self.decision.outcome

    @property
    def most_probable(self) -> str:
        """The class of the largest probability, whatever the outcome."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def agreeing_views(self) -> int:
        """How many of the eight views have the most probable class of the upright view; 0 without `views`."""
        classes = [max(view, key=view.__getitem__) for view in self.views]
        return classes.count(classes[0]) if classes else 0

    def overlay(self, label: str | None = None, *, peak: float | None = None) -> Image.Image:
        """Draw a class's Grad-CAM map, by default of the most probable one, over the upright picture, as `overlay`.

        Args:
            peak: the value drawn hottest; None for this picture's largest value of any class. Give all pictures the
                release's (`prediction.peak`, where it was measured) to compare them.

        Raises:
            LeukoscopeError: `explain` was not set, a network without Grad-CAM maps, or no such class.
        """
        if self.picture is None:
            raise ConfigError(f"{self.source}: has no Grad-CAM map; predict it with explain=True")
        if self.heatmaps is None:
            raise ReleaseError(f"{self.model}: {NO_MAP}; explain with a convolutional network")
        if label is None:
            label = self.most_probable
        if label not in self.heatmaps:
            raise ConfigError(f"{self.source}: label {label!r} is unknown; name one of {', '.join(self.heatmaps)}")
        if peak is None:
            peak = max(float(heatmap.evidence.max()) for heatmap in self.heatmaps.values())
        return overlay(self.picture, self.heatmaps[label].evidence, self.view_box, peak=peak)

    def in_field(self, share: float | None, thresholds: Thresholds) -> Prediction:
        """Decide again for a cell of a field, of whose cells this share (0–1, None: unknown) is in distribution."""
        checks = replace(self.checks, field_share=share)
        return replace(self, checks=checks, decision=thresholds.decide(self.probabilities, checks))

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, without the maps and with the research notice."""
        return {
            "source": self.source,
            **self.decision.to_dict(),
            "probabilities": dict(self.probabilities),
            "ood_score": self.checks.ood_score,
            "disagreement": self.checks.disagreement,
            "agreeing_views": self.agreeing_views or None,
            "model": self.model,
            "revision": self.revision,
            "seconds": self.seconds,
            "view_box": list(self.view_box),
            "map_check": None if self.heatmaps is None else self.map_check.to_dict(),
            "notice": RESEARCH_NOTICE,
        }


def softmax(logits: np.ndarray) -> np.ndarray:
    """(…, K) → (…, K) probabilities, in double precision so that they sum to 1."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """(N,) probabilities → log p - log (1 - p), bounded where rounding left 0 or 1."""
    p = np.asarray(probabilities, dtype=np.float64).clip(1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)


def turned(pixels: np.ndarray, view: int) -> np.ndarray:
    """Turn (B, S, S, …) pictures to one of the eight views: 0 is upright, 4 to 7 are mirrored, then turned."""
    return np.rot90(pixels if view < 4 else pixels[:, :, ::-1], view % 4, axes=(1, 2))


def turned_back(maps: np.ndarray, view: int) -> np.ndarray:
    """Turn (…, h, h) maps of one of the eight views onto the upright pictures; undoes `turned`."""
    upright = np.rot90(maps, -(view % 4), axes=(-2, -1))
    return upright if view < 4 else upright[..., ::-1]


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """(B, 8, K) → (B,) share of a picture's views, 0–1, whose most probable class is not that of their average."""
    together = probabilities.mean(axis=1).argmax(axis=1)
    return (probabilities.argmax(axis=2) != together[:, None]).mean(axis=1)
