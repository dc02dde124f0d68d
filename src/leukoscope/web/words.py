"""An answer in words: what the model says, where it looked, and what it was trained on.

Pure functions from numbers to sentences, shared by the page and the API. Each picture of a result has its text
equivalent here, so that nobody needs to see a heat map to know what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from leukoscope.cells.field_stain import measure_stain
from leukoscope.cells.images import BACKGROUND_LEVEL
from leukoscope.inference.decision import (
    ABSTAIN,
    NOT_A_CELL,
    OUT_OF_DISTRIBUTION,
    VIEWS_MAY_DISAGREE,
    Decision,
    Thresholds,
)
from leukoscope.inference.heatmaps import BLACK_SHARE, share_within
from leukoscope.inference.views import VIEWS

# Registered data sets name their classes by these words.
MEANINGS = {
    "ALL": "leukaemic blast",
    "HEM": "normal precursor",
    "Benign": "benign haematogone",
    "Early": "early pre-B blast",
    "Pre": "pre-B blast",
    "Pro": "pro-B blast",
}
# Stands beside boxes and tables: the same cell may be named otherwise at an operating point.
LIKELIEST = "A cell is given its most probable class; in the tab “One cell” another operating point can be chosen."
# For a result that its session has forgotten.
TOO_LONG_AGO = "This was read too long ago; give it again."
FIRM, LEANING = 0.9, 0.65
# Operating points as a release names them.
POINTS = {
    "sensitivity_95": "95\u00a0%-sensitivity",
    "specificity_95": "95\u00a0%-specificity",
    "youden": "Youden",
}
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True)
class Judgement:
    """What is said of a cell: one sentence to remember, the figures behind it, and whether it names a class."""

    headline: str
    because: str = ""
    has_class: bool = True


def named(label: str) -> str:
    """A label with its meaning, where that is known: "ALL (leukaemic blast)"."""
    return f"{label} ({MEANINGS[label]})" if label in MEANINGS else label


def percent(share: float) -> str:
    """A share in [0, 1] as a whole percentage that never rounds to certainty."""
    if 0 < share < 0.01:
        return "<1\u00a0%"
    if 0.99 < share < 1:
        return ">99\u00a0%"
    return f"{share:.0%}".replace("%", "\u00a0%")


def point_name(point: str) -> str:
    """An operating point as a person reads it."""
    return POINTS.get(point) or point.replace("_", " ")


_WITHOUT_CLASS = {
    ABSTAIN: "No class: the model abstains.",
    OUT_OF_DISTRIBUTION: "Out of distribution: no class is given.",
    NOT_A_CELL: "Not a cell: no class is given.",
}


def judgement(decision: Decision, probabilities: Mapping[str, float], thresholds: Thresholds) -> Judgement:
    """A decision in words.

    Args:
        probabilities: label → probability, at least two labels, summing to 1.
        thresholds: what the release decides by.
    """
    reasons = " ".join(f"{reason.text[0].upper()}{reason.text[1:]}." for reason in decision.reasons)
    if decision.outcome == NOT_A_CELL:
        reasons += " If it is a smear, open it in the tab “A field of view”, or send it to /field."
    if decision.label is None:
        return Judgement(_WITHOUT_CLASS[decision.outcome], reasons, has_class=False)
    if not decision.operating_point:
        return Judgement(verdict(probabilities), reasons)
    said = _at_point(decision, probabilities, thresholds)
    return Judgement(said.headline, f"{said.because} {reasons}".strip())


def _at_point(decision: Decision, probabilities: Mapping[str, float], thresholds: Thresholds) -> Judgement:
    wanted, label, point = thresholds.positive_label, decision.outcome, decision.operating_point
    side = "above" if label == wanted else "below"
    limit = percent(thresholds.operating_points[point])
    meaning = f", {MEANINGS[label]}" if label in MEANINGS else ""
    return Judgement(
        f"{label}{meaning}: {side} the {point_name(point)} threshold.",
        f"{wanted} has {percent(probabilities[wanted])}; the threshold lies at {limit}.",
    )


def agreement(label: str, together: str, share: float, disagreement: float) -> str:
    """Whether turned and mirrored views of a cell are answered alike.

    Args:
        label: the answer to the picture as given, which is one of the views.
        together: the class of the views' average, which gives it the probability `share`.
        disagreement: share of the views that name another class than `together`.
    """
    if disagreement == 0:
        return f"All {VIEWS} turned and mirrored views are answered {label}; their average gives it {percent(share)}."
    others = round(disagreement * VIEWS)
    counted = (
        f"{others} of {VIEWS} turned and mirrored views {'is' if others == 1 else 'are'} not answered {together}, "
        f"which has {percent(share)} in their average."
    )
    turned = f" Their average says {together}, the upright view {label}." if together != label else ""
    limit = percent(VIEWS_MAY_DISAGREE)
    if disagreement > VIEWS_MAY_DISAGREE:
        return f"{counted}{turned} More than {limit} differ: with all views, the model abstains."
    return f"{counted}{turned}"


def verdict(probabilities: Mapping[str, float]) -> str:
    """One sentence on what the model says and how firmly.

    Args:
        probabilities: label → probability, at least two labels, summing to 1.
    """
    (first, p), (second, q) = sorted(probabilities.items(), key=lambda item: -item[1])[:2]
    if p >= FIRM:
        return f"The model reads this picture as {named(first)}: {percent(p)}."
    if p >= LEANING:
        return f"The model leans towards {named(first)}, {percent(p)}, and is not firm about it."
    return f"The model is undecided: {named(first)} {percent(p)}, {named(second)} {percent(q)}."


def evidence(heat: np.ndarray, view: Image.Image, label: str) -> str:
    """The text equivalent of a heat map.

    Args:
        heat: (h, w) evidence for `label` over the view, at least 0, any scale.
        view: RGB, the part of the picture the model saw.

    Returns:
        Where a cell lies cut out on black: how much of the evidence lies on it, beside how much of the view it fills
        (what an indifferent model would score). In a stained smear: the same for its nuclei. Elsewhere: how
        concentrated the evidence is, and where.
    """
    if float(heat.sum()) <= 0:
        return f"Nothing the model saw speaks for {label}: its heat map is empty."
    cell = np.asarray(view).max(axis=2) > BACKGROUND_LEVEL
    if (~cell).mean() >= BLACK_SHARE and cell.any():
        # Nearly all of such a cell is nucleus: the two are not told apart.
        on_cell, filled = share_within(heat, cell), float(cell.mean())
        return (
            f"{percent(on_cell)} of the evidence for {label} lies on the cell, {percent(1 - on_cell)} on background; "
            f"the cell fills {percent(filled)} of what the model saw."
        )
    stain = measure_stain(view)
    if not stain.problem and stain.holds_nuclei:
        nuclei = stain.nuclear(np.asarray(view)) > stain.threshold
        on_nuclei, filled = share_within(heat, nuclei), float(nuclei.mean())
        return (
            f"{percent(on_nuclei)} of the evidence for {label} lies on what is stained like nuclei, which fills "
            f"{percent(filled)} of what the model saw."
        )
    return _concentration(heat, label)


def weak_evidence(heatmaps: Mapping[str, np.ndarray], label: str, weak: float | None = None) -> str:
    """A warning where a picture's evidence is weaker than usual, or weaker than that for another class; else "".

    Args:
        heatmaps: class → (h, w) evidence of one picture, on one scale.
        weak: the strongest evidence that one cell in twenty stays below; None where that is not known.
    """
    if weak is not None and max(float(heat.max()) for heat in heatmaps.values()) < weak:
        return "Little evidence for any class: of the cells this model was checked on, 95\u00a0% have more."
    strengths = {name: float(heat.sum()) for name, heat in heatmaps.items()}
    strongest = max(strengths, key=strengths.__getitem__)
    if strongest == label or strengths[label] >= strengths[strongest]:
        return ""
    share = percent(strengths[label] / strengths[strongest])
    return f"Little evidence: it amounts to {share} of what speaks for {strongest}."


def provenance(model: str, revision: str, seconds: float) -> str:
    """Which weights answered, and how long they took."""
    return f"Model {model}, {_version(revision)}; {milliseconds(seconds)}."


def milliseconds(seconds: float) -> str:
    """A duration in whole milliseconds, at least 1."""
    return f"{max(1, round(seconds * 1000))} ms"


def warnings(metrics: Mapping[str, Any], *, detects: bool) -> tuple[str, ...]:
    """What must be said beside every answer of a release, most important first.

    Args:
        metrics: of the model's release.
        detects: whether the release has an OOD detector.
    """
    said = []
    if (metrics.get("data") or {}).get("synthetic"):
        said.append(
            "This model was trained on synthetic phantoms, not on real cells: its answers mean nothing outside them."
        )
    missing = [] if metrics.get("calibration") else ["no calibration: its percentages are not how often it is right"]
    if not detects:
        missing.append("no OOD detector: it gives a class to any picture, even one without a cell")
    if missing:
        said.append(f"This model brings {'; and '.join(missing)}.")
    return tuple(said)


def _version(revision: str) -> str:
    return f"revision {revision[:12]}" if revision else "local files"


def _concentration(heat: np.ndarray, label: str) -> str:
    """How small a part of the view holds half of the evidence, and where its centre lies."""
    shares = np.sort(heat.ravel())[::-1].cumsum() / heat.sum()
    half = (int(np.searchsorted(shares, 0.5)) + 1) / heat.size
    y, x = ((np.indices(heat.shape) * heat).sum(axis=(1, 2)) / heat.sum() + 0.5) / heat.shape
    place = f"{ROWS[min(2, int(y * 3))]} {COLUMNS[min(2, int(x * 3))]}".replace("middle centre", "centre")
    return f"Half of the evidence for {label} lies in {percent(half)} of what the model saw, around its {place}."
