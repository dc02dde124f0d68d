"""A result in words: the decision, what the Grad-CAM map shows, and what the model was trained on.

Pure functions from numbers to sentences, shared by the page and the API. Each picture of a result has its text
equivalent here, so that nobody needs to see a Grad-CAM map to know what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from leukoscope.data.fields import measure_stain
from leukoscope.data.framing import BACKGROUND_LEVEL
from leukoscope.inference.gradcam import BLACK_SHARE, share_within
from leukoscope.inference.prediction import (
    ABSTAIN,
    NOT_A_CELL,
    OUT_OF_DISTRIBUTION,
    REFUSED,
    VIEWS_MAY_DISAGREE,
    Checks,
    Decision,
    Thresholds,
)
from leukoscope.inference.predictor import VIEWS

if TYPE_CHECKING:
    from leukoscope.evaluation.morphology import Morphology

# Registered data sets name their classes by these labels.
MEANINGS = {
    "ALL": "leukaemic blast",
    "HEM": "normal precursor",
    "Benign": "benign haematogone",
    "Early": "early pre-B blast",
    "Pre": "pre-B blast",
    "Pro": "pro-B blast",
}
# Shown beside the boxes of a field: at an operating point, the same cell may get another class.
MOST_PROBABLE_NOTE = "A cell gets its most probable class; in the tab “Cell” another operating point can be chosen."
RESULT_DELETED = "This result was deleted after half an hour without use; upload again."
# Probabilities from which a prediction counts as firm, and as leaning to its class.
FIRM, LEANING = 0.9, 0.65
# Operating points as a release names them.
POINTS = {
    "sensitivity_95": "95\u00a0%-sensitivity",
    "specificity_95": "95\u00a0%-specificity",
    "youden": "Youden",
}
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
_SHORT = {
    ABSTAIN: "Not sure",
    OUT_OF_DISTRIBUTION: "Not a cell this model knows",
    NOT_A_CELL: "Not a single cell",
}
_WITHOUT_CLASS = {
    ABSTAIN: "No class: the model abstains.",
    OUT_OF_DISTRIBUTION: "Out of distribution: no class is given.",
    NOT_A_CELL: "Not a cell: no class is given.",
}


@dataclass(frozen=True)
class DecisionText:
    """A decision in words.

    Attributes:
        headline: one sentence with the class and its probability, or that there is none.
        because: the numbers behind it.
        has_class: whether a class is given.
        short: a few plain words in place of the headline.
        checks: what was checked, and whether it holds.
    """

    headline: str
    because: str = ""
    has_class: bool = True
    short: str = ""
    checks: tuple[tuple[str, bool], ...] = ()


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


def milliseconds(seconds: float) -> str:
    """A duration in whole milliseconds, at least 1."""
    return f"{max(1, round(seconds * 1000))} ms"


def decision_text(
    decision: Decision, probabilities: Mapping[str, float], thresholds: Thresholds, checks: Checks | None = None
) -> DecisionText:
    """A decision in words.

    Args:
        probabilities: label → probability, at least two labels, summing to 1.
        thresholds: what the release decides by.
        checks: what else was measured of the picture.
    """
    held = checks_held(decision, probabilities, thresholds, checks or Checks())
    reasons = " ".join(f"{reason.text[0].upper()}{reason.text[1:]}." for reason in decision.reasons)
    if decision.outcome == NOT_A_CELL:
        reasons += " If it is a smear, open it in the tab “Field”, or send it to /field."
    if decision.label is None:
        return DecisionText(_WITHOUT_CLASS[decision.outcome], reasons, False, _SHORT[decision.outcome], held)
    short = _looks_like(decision.label)
    if not decision.operating_point:
        return DecisionText(class_text(probabilities), reasons, True, short, held)
    label, point, positive = decision.label, decision.operating_point, thresholds.positive_label
    side, meaning = "above" if label == positive else "below", f", {MEANINGS[label]}" if label in MEANINGS else ""
    limit = percent(thresholds.operating_points[point])
    return DecisionText(
        f"{label}{meaning}: {side} the {point_name(point)} threshold.",
        f"{positive} has {percent(probabilities[positive])}; the threshold lies at {limit}. {reasons}".strip(),
        True,
        short,
        held,
    )


def checks_held(
    decision: Decision, probabilities: Mapping[str, float], thresholds: Thresholds, checks: Checks
) -> tuple[tuple[str, bool], ...]:
    """What a decision rests on, in a few words each, and whether it holds; without what was not measured."""
    held = []
    if checks.ood_score is not None:
        held.append(("like its training cells", decision.outcome not in REFUSED))
    if thresholds.abstain_below is not None and decision.outcome not in REFUSED:
        confidence = max(probabilities.values())
        held.append((f"confident: {percent(confidence)}", confidence >= thresholds.abstain_below))
    if checks.on_cell is not None and thresholds.least_on_cell is not None and decision.outcome not in REFUSED:
        on_cell = f"looks at the cell: {percent(checks.on_cell)} of the map"
        held.append((on_cell, checks.on_cell >= thresholds.least_on_cell))
    return tuple(held)


def _looks_like(label: str) -> str:
    meaning = MEANINGS.get(label)
    if meaning is None:
        return f"Looks like {label}"
    return f"Looks like {'an' if meaning[0] in 'aeiou' else 'a'} {meaning}"


def morphology_text(
    cell: Morphology | None, known: Mapping[str, Any], um_per_pixel: float | None = None
) -> dict[str, str]:
    """A cell's measurements in words, each beside those of the training cells.

    Args:
        known: the "morphology" block of metrics.json, or {}.
        um_per_pixel: the picture's scale, where it is known.
    """
    from leukoscope.evaluation.morphology import percentile

    if cell is None:
        return {}

    def place(name: str, value: float) -> str:
        share = percentile(known, name, value)
        return "" if share is None else f"; larger than in {percent(share)} of the training cells"

    area = f"{cell.area * um_per_pixel**2:.0f} µm²" if um_per_pixel else f"{round(cell.area):,} pixels"
    like = (known.get("lobes") or {}).get(str(cell.lobes), 0.0 if known else None)
    alike = "" if like is None else f"; so have {percent(like)} of the training cells"
    return {
        "Area": area + place("area", cell.area),
        "Nucleus to cell": percent(cell.nucleus_share) + place("nucleus_share", cell.nucleus_share),
        "Nuclear lobes": f"{cell.lobes}{alike}",
    }


def purpose(labels: Sequence[str], takes_cut_outs: bool | None) -> str:
    """What a release is for, in a few words.

    Args:
        takes_cut_outs: whether it reads cells cut out on black; None where that is not known.
    """
    read = {True: "single cells", False: "pictures of a smear", None: "pictures"}[takes_cut_outs]
    return f"{read}: {' or '.join(MEANINGS.get(label, label) for label in labels)}"


def model_text(metrics: Mapping[str, Any]) -> str:
    """A release in one line: what it was trained on, how good it is on unseen people, and the data's licence."""
    data, measured = metrics.get("data") or {}, (metrics.get("evaluations") or [{}])[0]
    subjects = len((metrics.get("training") or {}).get("subjects") or ())
    people = f", {subjects} people" if subjects and data.get("unit") == "subject" else ""
    parts = [f"Trained on {data['title']}{people}" if data.get("title") else ""]
    found = (measured.get("metrics") or {}).get("auroc_by_subject")
    if found is not None and people:
        parts.append(f"AUROC by subject {found:.2f} on people it has not seen")
    elif data.get("unit") == "block":
        parts.append("not measured on unseen people: its data names no patients")
    parts.append(str(data.get("licence") or ""))
    return " · ".join(part for part in parts if part)


def class_text(probabilities: Mapping[str, float]) -> str:
    """The most probable class in one sentence that is as firm as its probability.

    Args:
        probabilities: label → probability, at least two labels, summing to 1.
    """
    (first, p), (second, q) = sorted(probabilities.items(), key=lambda item: -item[1])[:2]
    named = {label: f"{label} ({MEANINGS[label]})" if label in MEANINGS else label for label in (first, second)}
    if p >= FIRM:
        return f"The model predicts {named[first]}: {percent(p)}."
    if p >= LEANING:
        return f"The model leans towards {named[first]}, {percent(p)}, and is not firm about it."
    return f"The model is undecided: {named[first]} {percent(p)}, {named[second]} {percent(q)}."


def tta_text(label: str, average: str, share: float, disagreement: float) -> str:
    """Whether the turned and mirrored views of a cell (test-time augmentation) are predicted alike.

    Args:
        label: the class predicted for the picture as given, which is one of the views.
        average: the class of the views' average, which gives it the probability `share`.
        disagreement: share of the views whose class is not `average`.
    """
    if disagreement == 0:
        return f"All {VIEWS} turned and mirrored views are predicted {label}; their average gives it {percent(share)}."
    others = round(disagreement * VIEWS)
    text = (
        f"{others} of {VIEWS} turned and mirrored views {'is' if others == 1 else 'are'} not predicted {average}, "
        f"which has {percent(share)} in their average."
    )
    if average != label:
        text += f" Their average predicts {average}, the upright view {label}."
    if disagreement > VIEWS_MAY_DISAGREE:
        text += f" More than {percent(VIEWS_MAY_DISAGREE)} differ: with all views, the model abstains."
    return text


def map_text(heat: np.ndarray, view: Image.Image, label: str) -> str:
    """The text equivalent of a Grad-CAM map.

    Args:
        heat: (h, w) Grad-CAM for `label` over the view, at least 0, any scale.
        view: RGB, the part of the picture that the model saw.

    Returns:
        Where a cell lies cut out on black: how much of the map lies on it, beside how much of the view it fills (what
        an indifferent model would score). In a stained smear: the same for its nuclei. Elsewhere: how concentrated the
        map is, and where.
    """
    if float(heat.sum()) <= 0:
        return f"The Grad-CAM map for {label} is empty: nothing that the model saw speaks for it."
    cell = np.asarray(view).max(axis=2) > BACKGROUND_LEVEL
    if (~cell).mean() >= BLACK_SHARE and cell.any():
        # Nearly all of such a cell is nucleus: the two are not told apart.
        on_cell, filled = share_within(heat, cell), float(cell.mean())
        return (
            f"{percent(on_cell)} of the Grad-CAM map for {label} lies on the cell, {percent(1 - on_cell)} on "
            f"background; the cell fills {percent(filled)} of what the model saw."
        )
    stain = measure_stain(view)
    if not stain.problem and stain.holds_nuclei:
        nuclei = stain.nuclear(np.asarray(view)) > stain.threshold
        return (
            f"{percent(share_within(heat, nuclei))} of the Grad-CAM map for {label} lies on what is stained like "
            f"nuclei, which fills {percent(float(nuclei.mean()))} of what the model saw."
        )
    # How small a part of the view holds half of the map, and where its centre lies.
    shares = np.sort(heat.ravel())[::-1].cumsum() / heat.sum()
    half = (int(np.searchsorted(shares, 0.5)) + 1) / heat.size
    y, x = ((np.indices(heat.shape) * heat).sum(axis=(1, 2)) / heat.sum() + 0.5) / heat.shape
    place = f"{ROWS[min(2, int(y * 3))]} {COLUMNS[min(2, int(x * 3))]}".replace("middle centre", "centre")
    return f"Half of the Grad-CAM map for {label} lies in {percent(half)} of what the model saw, around its {place}."


def weak_map_text(maps: Mapping[str, np.ndarray], label: str, weak: float | None = None) -> str:
    """A warning where a picture's Grad-CAM maps are weaker than usual, or weaker than for another class; else "".

    Args:
        maps: class → (h, w) Grad-CAM of one picture, on one scale.
        weak: the highest value that one cell in twenty stays below; None where that is not known.
    """
    if weak is not None and max(float(heat.max()) for heat in maps.values()) < weak:
        return "Little evidence for any class: of the cells this model was checked on, 95\u00a0% have more."
    strengths = {name: float(heat.sum()) for name, heat in maps.items()}
    strongest = max(strengths, key=strengths.__getitem__)
    if strongest == label or strengths[label] >= strengths[strongest]:
        return ""
    share = percent(strengths[label] / strengths[strongest])
    return f"Little evidence: it amounts to {share} of what speaks for {strongest}."


def warnings(metrics: Mapping[str, Any], *, has_detector: bool) -> tuple[str, ...]:
    """What must be said beside every prediction of a release, most important first.

    Args:
        metrics: of the model's release.
        has_detector: whether the release has an OOD detector.
    """
    found = []
    if (metrics.get("data") or {}).get("synthetic"):
        found.append(
            "This model was trained on synthetic phantoms, not on real cells: its predictions mean nothing outside "
            "them."
        )
    missing = [] if metrics.get("calibration") else ["no calibration: its percentages are not how often it is right"]
    if not has_detector:
        missing.append("no OOD detector: it gives a class to any picture, even one without a cell")
    if missing:
        found.append(f"This model has {'; and '.join(missing)}.")
    return tuple(found)
