"""The pictures of trust in a probability: is it true, what does silence buy, and where do the thresholds lie.

Each function draws one matplotlib `Figure` from what metrics.json holds, readable at the width of a README. Bars and
bands are 95 % intervals of drawing subjects anew, so they show how few people a figure rests on. Cross-fitted means
that no subject is judged with a temperature or threshold that it helped to fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope.evaluation.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, new_figure, plain
from leukoscope.evaluation.metrics import CellPredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = {  # name in metrics.json → words, colour, marker
    "sensitivity_95": ("95 % sensitivity", VERMILION, "s"),
    "specificity_95": ("95 % specificity", GREEN, "D"),
    "youden": ("Youden", PURPLE, "o"),
}


def reliability_diagram(calibration: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence before and after temperature scaling, above a histogram of confidence.

    Args:
        calibration: the block of `calibration_block`.
    """
    figure = new_figure(5.4, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    edges = np.asarray(calibration["histogram"]["edges"])
    upper.plot(edges[[0, -1]], edges[[0, -1]], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    upper.annotate("claims too little", (0.03, 0.95), xycoords="axes fraction", va="top", color=GREY, fontsize=9)
    upper.annotate("claims too much", (0.97, 0.05), xycoords="axes fraction", ha="right", color=GREY, fontsize=9)
    # The wider bars lie below, so that both sides of a bin stay visible.
    for side, colour, style, width in (("before", ORANGE, "o", 6), ("after", BLUE, "s", 2)):
        bins, words = calibration["reliability"][side], _ece_words(side, calibration[side])
        _draw_reliability(upper, bins, words, colour=colour, style=style, width=width)
        counts = np.asarray(calibration["histogram"][side])
        lower.stairs(counts / counts.sum(), edges, color=colour, linewidth=1.6)
    upper.set_ylabel("accuracy (share of cells right)")
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
    lower.set_ylabel("share of cells")
    lower.set_xlabel("confidence (probability of the answer given)")
    lower.set_xlim(edges[0] - 0.01, 1.01)
    plain(upper, lower)
    return figure


def _draw_reliability(
    axes: Axes, bins: Sequence[Mapping[str, Any]], words: str, *, colour: str, style: str, width: float
) -> None:
    confidence = [one["confidence"] for one in bins]
    low, high = ([one["interval"][end] for one in bins] for end in ("low", "high"))
    axes.vlines(confidence, low, high, color=colour, alpha=0.45, linewidth=width)
    axes.plot(confidence, [one["accuracy"] for one in bins], style, color=colour, markersize=5, label=words)


def _ece_words(side: str, figures: Mapping[str, Any]) -> str:
    ends = figures["intervals"]["ece"]
    name = {"before": "as trained", "after": "temperature-scaled, cross-fitted"}[side]
    return f"{name}: ECE {figures['ece']:.3f} ({ends['low']:.3f}–{ends['high']:.3f})"


def risk_coverage_curve(abstention: Mapping[str, Any]) -> Figure:
    """The error rate among the cells answered against the share answered, and the default threshold on it.

    Args:
        abstention: the block of `decisions.abstention`.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    curve, chosen, aurc = abstention["curve"], abstention["default"], abstention["aurc_interval"]
    coverage = [point["coverage"] for point in curve]
    low, high = ([point["interval"][end] for point in curve] for end in ("low", "high"))
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval")
    area = f"AURC {abstention['aurc']:.3f} ({aurc['low']:.3f}–{aurc['high']:.3f})"
    axes.plot(coverage, [point["risk"] for point in curve], color=BLUE, linewidth=2, label=area)
    if chosen["risk"] is not None:
        words = (
            f"no class below {chosen['threshold']:.2f}: {chosen['risk']:.1%} wrong of {chosen['coverage']:.0%} answered"
        )
        axes.plot(chosen["coverage"], chosen["risk"], "D", color=VERMILION, markersize=8, label=words)
    axes.set_xlabel("coverage (share of cells answered, surest first)")
    axes.set_ylabel("risk (share of answers wrong)")
    axes.set_xlim(0, 1.01)
    # The first few cells' interval would squeeze all the rest.
    axes.set_ylim(0, 1.15 * max(end for end, share in zip(high, coverage, strict=True) if share >= 0.1))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
    plain(axes)
    return figure


def roc_figure(answers: CellPredictions, operating_points: Mapping[str, Any]) -> Figure:
    """The ROC curve over cells, with each operating point where unseen subjects found it.

    Args:
        answers: two classes; scaling by any temperature draws the same curve.
        operating_points: the block of `decisions.operating_points`.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    sought = operating_points["positive_label"]
    positive = answers.label_names.index(sought)
    truth, scores = answers.references == positive, answers.probabilities[:, positive]
    figure = new_figure(5.4, 5.6)
    axes = figure.subplots()
    false_positives, sensitivity, _ = roc_curve(truth, scores)
    axes.plot(false_positives, sensitivity, color=BLUE, linewidth=2, label=f"AUROC {roc_auc_score(truth, scores):.3f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    for name, point in operating_points["points"].items():
        _draw_point(axes, point["cross_fitted"], *_POINTS[name])
    axes.set_xlabel(f"1 - specificity (share of {answers.label_names[1 - positive]} cells called {sought})")
    axes.set_ylabel(f"sensitivity (share of {sought} cells found)")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    plain(axes)
    return figure


def _draw_point(axes: Axes, found: Mapping[str, Any], words: str, colour: str, marker: str) -> None:
    across, up = found["intervals"]["specificity"], found["intervals"]["sensitivity"]
    x, y = 1 - found["specificity"], found["sensitivity"]
    axes.hlines(y, 1 - across["high"], 1 - across["low"], color=colour, alpha=0.45, linewidth=2.5)
    axes.vlines(x, up["low"], up["high"], color=colour, alpha=0.45, linewidth=2.5)
    label = f"{words}: {y:.1%} and {found['specificity']:.1%}, cross-fitted"
    axes.plot(x, y, marker, color=colour, markeredgecolor="white", markersize=9, label=label)
