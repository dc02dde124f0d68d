"""Plots of a run and of an evaluation, from training curves to calibration and ROC curves.

Each function makes one matplotlib `Figure` that stays readable at the width of a README, in Okabe & Ito's colours,
which colour-blind readers can tell apart. Markers and texts carry the same meaning as the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
CLASS_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
GREY = "#767676"
_WIDTH = 8.0  # inches; about the text width of a README at 100 dpi
_DASHED = (0, (4, 3))
_LONGEST_NAME = 18  # characters of a class's name in the title of a panel, of which four stand side by side
_POINTS = {  # name in metrics.json → legend, colour, marker
    "sensitivity_95": ("95 % sensitivity", VERMILION, "s"),
    "specificity_95": ("95 % specificity", GREEN, "D"),
    "youden": ("Youden", PURPLE, "o"),
}


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure with automatic layout; its size is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(*panels: Axes) -> None:
    """Remove the top and right border of each panel."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)


def _legend_above(axes: Axes, **options: Any) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, **{"fontsize": 9, **options})


def without_formulas(figure: Figure) -> Figure:
    """Show "$" in labels as it is written: matplotlib would read a formula, and end where it is none."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def save_plot(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG with the research notice below it; `OSError` where it cannot be written."""
    figure.text(0.5, -0.01, RESEARCH_NOTICE, ha="center", va="top", fontsize=7, color=GREY)
    with atomic_file(path) as temporary:
        # Without the library's version, the same numbers give the same file.
        without_formulas(figure).savefig(
            temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None}
        )
    return path


def subject_strip(
    subjects: Mapping[str, Mapping[str, Any]], label_names: Sequence[str], unit: str = "subject"
) -> Figure:
    """Plot every subject's accuracy, by class and from worst to best; a larger dot stands for more cells.

    `subjects` is id → label, cells and accuracy (0–1), as `measure` gives them; `unit` what stands for a subject.
    """
    groups = {label: [s for s in subjects.values() if s["label"] == label] for label in label_names}
    groups = {label: sorted(rows, key=lambda s: s["accuracy"]) for label, rows in groups.items() if rows}
    across = min(len(groups), 4)
    down = -(-len(groups) // across)
    figure = new_figure(_WIDTH, 0.4 + 2.6 * down)
    # Of two panels, one column per subject, but none too narrow for its heading; more are as wide as each other.
    ratios = [max(len(rows), len(subjects) / 5) if across < 3 else 1.0 for rows in [*groups.values()][:across]]
    grid = figure.subplots(down, across, sharey=True, squeeze=False, width_ratios=ratios)
    panels = grid.ravel()
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    for k, ((label, rows), axes) in enumerate(zip(groups.items(), panels, strict=False)):
        colour, x = CLASS_COLOURS[k % len(CLASS_COLOURS)], np.arange(len(rows))
        accuracy = np.asarray([row["accuracy"] for row in rows])
        area = 14 + 60 * np.sqrt([row["cells"] for row in rows]) / np.sqrt(400)
        axes.vlines(x, accuracy, 1, color=colour, alpha=0.25, linewidth=1.2)
        axes.scatter(x, accuracy, s=area, color=colour, edgecolor="white", linewidth=0.6, zorder=3)
        axes.axhline(accuracy.mean(), color=GREY, linewidth=1, linestyle=_DASHED, zorder=1)
        axes.set_xlim(-1, len(rows))
        axes.set_xticks([])
        plain(axes)
        name = label if len(label) <= _LONGEST_NAME else f"{label[: _LONGEST_NAME - 1]}…"
        # Over narrow panels, titles of one line would run into each other.
        between = " · " if across < 3 else "\n"
        title = f"{name}{between}{len(rows)} {unit}{'' if len(rows) == 1 else 's'}"
        axes.set_title(title, fontsize=10 if across < 3 else 9, loc="left", color=colour, fontweight="bold")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (share of cells)")
    panels[0].set_ylim(-0.03, 1.05)
    figure.supxlabel(f"{unit}s, worst first · larger dot: more cells · line: mean over {unit}s", fontsize=9)
    return figure


def interval_plot(
    rows: Sequence[tuple[str, float, Mapping[str, float] | None, Mapping[str, float] | None]],
    axis: str = "",
    unit: str = "subject",
) -> Figure:
    """Plot metrics with their intervals, by subject and, below, by cell, one line each.

    Args:
        rows: name, value, interval by subject, interval by cell (low and high, 0–1); an interval may be missing.
        axis: what all values are, where the names do not say it.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(_WIDTH, 0.75 + 0.42 * len(rows))
    axes = figure.subplots()
    for line, (_, value, by_subject, by_cell) in enumerate(rows):
        if by_cell:
            axes.plot([by_cell["low"], by_cell["high"]], [line + 0.2] * 2, color=ORANGE, linewidth=3)
        if by_subject:
            axes.plot([by_subject["low"], by_subject["high"]], [line - 0.1] * 2, color=BLUE, linewidth=3)
        axes.plot(value, line - 0.1, "o", color="white", markeredgecolor=BLUE, markersize=7, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(axis)
    plain(axes)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    by_unit = (
        "resampling subjects: for new subjects" if unit == "subject" else f"resampling {unit}s: not for new subjects"
    )
    kinds = [(2, BLUE, by_unit), (3, ORANGE, "resampling cells: too narrow")]
    handles = [Line2D([], [], color=c, linewidth=3, label=text) for i, c, text in kinds if any(row[i] for row in rows)]
    _legend_above(axes, handles=handles, ncols=2)
    return figure


def confusion_plot(matrix: Sequence[Sequence[int]], label_names: Sequence[str]) -> Figure:
    """Plot (K, K) numbers of cells by true (rows) and predicted class, with their shares of the true class."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.5 + 0.9 * len(label_names)
    # A square is as wide as ten characters; longer names are slanted below it, and need room beside it.
    beyond = max(0, max(map(len, label_names)) - 10)
    figure = new_figure(side + 0.6 + 0.08 * beyond, side + 0.05 * beyond)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ink = "white" if share > 0.55 else "black"
        text = f"{counts[row, column]:,}\n{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10)
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if beyond else {}
    axes.set_xticks(range(len(label_names)), label_names, **slanted)
    axes.set_yticks(range(len(label_names)), label_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def reliability_diagram(calibration: Mapping[str, Any]) -> Figure:
    """Plot accuracy against confidence before and after temperature scaling: the block of `calibration_block`."""
    figure = new_figure(5.4, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    edges = np.asarray(calibration["histogram"]["edges"])
    upper.plot(edges[[0, -1]], edges[[0, -1]], color=GREY, linestyle=_DASHED, linewidth=1)
    upper.annotate("underconfident", (0.03, 0.95), xycoords="axes fraction", va="top", color=GREY, fontsize=9)
    upper.annotate("overconfident", (0.97, 0.05), xycoords="axes fraction", ha="right", color=GREY, fontsize=9)
    # The wider bars lie below, so that both sides of a bin stay visible.
    for side, name, colour, style, width in (
        ("before", "as trained", ORANGE, "o", 6),
        ("after", "temperature-scaled, cross-fitted", BLUE, "s", 2),
    ):
        bins, metrics = calibration["reliability"][side], calibration[side]
        confidence, ends = [one["confidence"] for one in bins], metrics["intervals"]["ece"]
        low, high = ([one["interval"][end] for one in bins] for end in ("low", "high"))
        label = f"{name}: ECE {metrics['ece']:.3f} ({ends['low']:.3f}–{ends['high']:.3f})"
        upper.vlines(confidence, low, high, color=colour, alpha=0.45, linewidth=width)
        upper.plot(confidence, [one["accuracy"] for one in bins], style, color=colour, markersize=5, label=label)
        counts = np.asarray(calibration["histogram"][side])
        lower.stairs(counts / counts.sum(), edges, color=colour, linewidth=1.6)
    upper.set_ylabel("accuracy (share of cells)")
    _legend_above(upper)
    lower.set_ylabel("share of cells")
    lower.set_xlabel("confidence (probability of the predicted class)")
    lower.set_xlim(edges[0] - 0.01, 1.01)
    plain(upper, lower)
    return figure


def roc_plot(
    predictions: CellPredictions, operating_points: Mapping[str, Any], evaluation: Mapping[str, Any], unit: str
) -> Figure:
    """Plot the ROC curve over cells, with each operating point as measured on unseen subjects.

    Args:
        predictions: of two classes; scaling by any temperature gives the same curve.
        operating_points: the block of `thresholds.operating_points`.
        evaluation: the block of metrics.json that was measured on these predictions.
    """
    from sklearn.metrics import roc_curve

    positive_label = operating_points["positive_label"]
    positive = predictions.label_names.index(positive_label)
    truth, scores = predictions.references == positive, predictions.probabilities[:, positive]
    figure = new_figure(5.4, 5.6)
    axes = figure.subplots()
    false_positives, sensitivity, _ = roc_curve(truth, scores)
    measured, intervals = evaluation["metrics"], (evaluation.get("intervals") or {}).get("by_subject") or {}
    areas = []
    for key, over in (("auroc_by_subject", f"by {unit}"), ("auroc", "over cells")):
        if measured.get(key) is not None:
            ends = f" ({intervals[key]['low']:.3f}–{intervals[key]['high']:.3f})" if key in intervals else ""
            areas.append(f"AUROC {over} {measured[key]:.3f}{ends}")
    axes.plot(false_positives, sensitivity, color=BLUE, linewidth=2, label="\n".join(areas))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=_DASHED, linewidth=1)
    for name, point in operating_points["points"].items():
        (text, colour, marker), found = _POINTS[name], point["cross_fitted"]
        across, up = found["intervals"]["specificity"], found["intervals"]["sensitivity"]
        x, y = 1 - found["specificity"], found["sensitivity"]
        axes.hlines(y, 1 - across["high"], 1 - across["low"], color=colour, alpha=0.45, linewidth=2.5)
        axes.vlines(x, up["low"], up["high"], color=colour, alpha=0.45, linewidth=2.5)
        label = f"{text}: {y:.1%} and {found['specificity']:.1%}, cross-fitted"
        axes.plot(x, y, marker, color=colour, markeredgecolor="white", markersize=9, label=label)
    axes.set_xlabel(f"1 - specificity (share of {predictions.label_names[1 - positive]} cells called {positive_label})")
    axes.set_ylabel(f"sensitivity (share of {positive_label} cells found)")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    plain(axes)
    return figure
