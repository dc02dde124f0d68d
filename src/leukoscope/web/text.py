"""The demo's texts, and a result in words: the decision, its map, its model.

Each picture of a result has its text equivalent here: nobody needs to see a Grad-CAM map to know what it shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.data.registry import ABSTAIN
from leukoscope.evaluation.morphology import MapShare, Morphology, percentile
from leukoscope.inference.prediction import REFUSED, Decision, Reason, Thresholds

TEXTS: dict[str, str] = json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8"))
# Reasons whose numbers are shares.
_SHARES = ("ood_field", "views_disagree", "explanation_off_cell")
# From this probability a class is told without reserve.
FIRM = 0.9
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


def t(key: str, /, **values: object) -> str:
    """The text of a key, its placeholders filled in."""
    return TEXTS[key].format(**values)


def meaning(label: str) -> str:
    """What a label of a registered data set stands for; "" for any other."""
    return t(key) if (key := f"class_{label}") in TEXTS else ""


def outcome_text(outcome: str) -> str:
    """A class as it is, or why there is none."""
    return t(key) if (key := f"outcome_{outcome}") in TEXTS else outcome


@dataclass(frozen=True)
class DecisionText:
    """A decision in words.

    `short` has a few plain ones; `headline` says the class and its probability, or that there is none; `because` the
    reasons against a class, or for caution with it.
    """

    short: str
    headline: str
    because: str = ""
    has_class: bool = True


def percent(share: float) -> str:
    """A share in [0, 1] as a whole percentage that never rounds to certainty."""
    if 0 < share < 0.01:
        return "<1\u00a0%"
    if 0.99 < share < 1:
        return ">99\u00a0%"
    return f"{share:.0%}".replace("%", "\u00a0%")


def point_name(point: str) -> str:
    """An operating point as a person reads it."""
    return t(key) if (key := f"point_{point}") in TEXTS else point.replace("_", " ")


def about_model(model: str, revision: str) -> str:
    """Which model, and which version of it."""
    return t("about_revision", model=model, revision=revision[:12]) if revision else t("about_local", model=model)


def milliseconds(seconds: float) -> str:
    """A duration in whole milliseconds, at least 1."""
    return f"{max(1, round(seconds * 1000))} ms"


def decision_text(decision: Decision, probabilities: Mapping[str, float], thresholds: Thresholds) -> DecisionText:
    """A decision in words, all of which follow from it; `thresholds` are what the release decides by."""
    reasons = " ".join(map(reason_text, decision.reasons))
    if decision.label is None:
        (first, p), (second, q) = sorted(probabilities.items(), key=lambda item: -item[1])[:2]
        unclear = {"first": first, "share": percent(p), "second": second, "other": percent(q)}
        headline = t("undecided", **unclear) if decision.outcome == ABSTAIN else t(f"without_{decision.outcome}")
        return DecisionText(t(f"short_{decision.outcome}"), headline, reasons, False)
    name, point = decision.label, decision.operating_point
    named = f"{name} ({meaning(name)})" if meaning(name) else name
    if point:
        positive, limit = thresholds.positive_label, percent(thresholds.operating_points[point])
        because = t("threshold_lies", label=positive, share=percent(probabilities[positive]), limit=limit)
        headline = t("above_point" if name == positive else "below_point", named=named, point=point_name(point))
        return DecisionText(t("counts_as", what=_one(name)), headline, f"{because} {reasons}".strip())
    share = probabilities[name]
    firm = share >= FIRM
    headline = t("predicts" if firm else "leans", first=named, share=percent(share))
    return DecisionText(t("looks_like" if firm else "more_like", what=_one(name)), headline, reasons)


def _one(label: str) -> str:
    """A class as what one cell of it is."""
    return f"{t(key)} {meaning(label)}" if (key := f"article_{label}") in TEXTS else label


def trust_text(decision: Decision, probabilities: Mapping[str, float], metrics: Mapping[str, Any]) -> str:
    """How often such decisions were right for subjects whom the model had not seen, of 100; "" where not measured."""
    held_out = (metrics.get("ood") or {}).get("held_out") or {}
    if decision.outcome in REFUSED:
        kept = held_out.get("kept_share_by_subject", held_out.get("kept_share"))
        return "" if kept is None else t("trust_refused", refused=round(100 * (1 - kept)))
    if (metrics.get("data") or {}).get("unit") == "block":
        told = t("not_on_subjects")
        return f"{told[0].upper()}{told[1:]}."
    if decision.operating_point:
        block = (metrics.get("decisions") or {}).get("operating_points") or {"points": {}}
        positive, measured = block.get("positive_label"), block["points"].get(decision.operating_point, {})
        known = measured.get("cross_fitted", {})
        right, prevalence = known.get("ppv" if decision.label == positive else "npv"), known.get("prevalence")
        if right is None or prevalence is None:  # what such a share is worth depends on the prevalence
            return ""
        return t("trust_point", right=round(100 * right), share=percent(prevalence), label=positive)
    calibration = metrics.get("calibration") or {}
    # The curve of the probabilities that are shown: at temperature 1 they are those before scaling.
    side = "before" if calibration.get("temperature") == 1 else "after"
    bins = (calibration.get("reliability") or {}).get(side) or []
    if not bins:
        return ""
    confidence = max(probabilities.values())
    nearest = min(bins, key=lambda one: abs(one["confidence"] - confidence))
    key = "trust_abstain" if decision.outcome == ABSTAIN else "trust"
    return t(key, right=round(100 * nearest["accuracy"]))


def reason_text(reason: Reason) -> str:
    """A reason of a decision as a sentence."""

    def shown(value: float | None) -> str:
        if value is None or reason.code in _SHARES:
            return percent(value or 0.0)
        digits = 3 if reason.code == "low_confidence" else 1
        return f"{value:.{digits}f}".removesuffix(".0")

    text = t(f"reason_{reason.code}", value=shown(reason.value), limit=shown(reason.limit))
    return f"{text[0].upper()}{text[1:]}."


def morphology_text(
    cell: Morphology | None, known: Mapping[str, Any], um_per_pixel: float | None = None
) -> dict[str, str]:
    """A cell's measurements in words, beside those of the training cells: the block "morphology" of metrics.json.

    A cell of a field, whose scale is known, stands alone: the training cells are measured in another way.
    """
    if cell is None:
        return {}
    if um_per_pixel:
        area = f"{cell.area * um_per_pixel**2:.0f} µm²"
        return {t("area"): area, t("nucleus_to_cell"): percent(cell.nucleus_share)}

    def place(name: str, value: float, text: str) -> str:
        share = percentile(known, name, value)
        return text if share is None else t("larger_than", value=text, share=percent(share))

    area = t("pixels", area=f"{round(cell.area):,}")
    like, lobes = (known.get("lobes") or {}).get(str(cell.lobes), 0.0 if known else None), str(cell.lobes)
    return {
        t("area"): place("area", cell.area, area),
        t("nucleus_to_cell"): place("nucleus_share", cell.nucleus_share, percent(cell.nucleus_share)),
        t("lobes"): lobes if like is None else t("so_have", value=lobes, share=percent(like)),
    }


def purpose(labels: Sequence[str], takes_cut_outs: bool | None) -> str:
    """What a release is for, in a few words; None where it is not known whether it reads cells cut out on black."""
    read = {True: "reads_cells", False: "reads_smears", None: "reads_pictures"}[takes_cut_outs]
    return t(read, classes=f" {t('or')} ".join(meaning(label) or label for label in labels))


def model_text(metrics: Mapping[str, Any]) -> str:
    """A release in one line: what it was trained on, how good it is on unseen subjects, and the data's licence."""
    data, measured = metrics.get("data") or {}, (metrics.get("evaluations") or [{}])[0]
    subjects = len((metrics.get("training") or {}).get("subjects") or ())
    named, title = subjects and data.get("unit") == "subject", data.get("title")
    parts = []
    if title:
        parts.append(t("trained_on_subjects", title=title, number=subjects) if named else t("trained_on", title=title))
    found = (measured.get("metrics") or {}).get("auroc_by_subject")
    if found is not None and named and (measured.get("split") or {}).get("disjoint_by") == "subject":
        parts.append(t("auroc_unseen", value=f"{found:.2f}"))
    elif data.get("unit") == "block":
        parts.append(t("not_on_subjects"))
    parts.append(str(data.get("licence") or ""))
    return " · ".join(part for part in parts if part)


def map_text(heat: np.ndarray, share: MapShare, label: str) -> str:
    """The text equivalent of a class's map: its share on the cell or its nuclei; else how concentrated it is, where."""
    if float(heat.sum()) <= 0:
        return t("map_empty", label=label)
    if share.on:
        return t(f"map_on_{share.on}", label=label, inside=percent(share.inside), filled=percent(share.filled))
    # How small a part of the view holds half of the map, and where its centre lies.
    sums = np.sort(heat.ravel())[::-1].cumsum() / heat.sum()
    half = (int(np.searchsorted(sums, 0.5)) + 1) / heat.size
    y, x = ((np.indices(heat.shape) * heat).sum(axis=(1, 2)) / heat.sum() + 0.5) / heat.shape
    place = t(f"place_{ROWS[min(2, int(y * 3))]}_{COLUMNS[min(2, int(x * 3))]}")
    return t("map_place", label=label, half=percent(half), place=place)


def weak_map_text(maps: Mapping[str, np.ndarray], label: str, weak: float | None = None) -> str:
    """A warning where a picture's Grad-CAM maps are weaker than usual, or weaker than for another class; else "".

    `weak` is the highest value that one cell in twenty stays below; None where that is not known.
    """
    if weak is not None and max(float(heat.max()) for heat in maps.values()) < weak:
        return t("weak_for_all")
    strengths = {name: float(heat.sum()) for name, heat in maps.items()}
    strongest = max(strengths, key=strengths.__getitem__)
    if strongest == label or strengths[label] >= strengths[strongest]:
        return ""
    return t("weaker_than", share=percent(strengths[label] / strengths[strongest]), label=strongest)


def warnings(metrics: Mapping[str, Any], *, has_detector: bool) -> tuple[str, ...]:
    """What must be said beside every prediction of a release, most important first."""
    found = [t("warn_synthetic")] if (metrics.get("data") or {}).get("synthetic") else []
    missing = ["no_calibration"] * (not metrics.get("calibration")) + ["no_detector"] * (not has_detector)
    return (*found, *map(t, missing))
