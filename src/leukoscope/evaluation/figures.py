"""The pictures of an evaluation: every subject, every figure with its two intervals, and what was taken for what.

Each function draws one matplotlib `Figure` that stays readable at the width of a README, in Okabe & Ito's colours,
which colour-blind readers can tell apart. Shapes and words carry the same meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
CLASS_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_GREY = "#767676"
_WIDTH = 8.0  # inches; about the text width of a README at 100 dpi


def subject_strip(subjects: Mapping[str, Mapping[str, Any]], label_names: Sequence[str]) -> Figure:
    """Every subject's accuracy, by class and from worst to best; a larger dot stands for more cells.

    Args:
        subjects: id → label, cells and accuracy (0–1), as `measure` gives them.
        label_names: the classes, in the order of their panels.
    """
    groups = {label: _worst_first(subjects, label) for label in label_names}
    groups = {label: rows for label, rows in groups.items() if rows}
    figure = _figure(_WIDTH, 3.0)
    # One column a subject, but no panel too narrow for its heading.
    ratios = [max(len(rows), len(subjects) / 5) for rows in groups.values()]
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for colour, (label, rows), axes in zip(_colours(len(groups)), groups.items(), panels, strict=True):
        _draw_strip(axes, rows, colour)
        plural = "" if len(rows) == 1 else "s"
        axes.set_title(
            f"{label} · {len(rows)} subject{plural}", fontsize=10, loc="left", color=colour, fontweight="bold"
        )
    panels[0].set_ylabel("share of cells answered right")
    panels[0].set_ylim(-0.03, 1.05)
    figure.supxlabel("subjects, worst first · larger dot: more cells · line: mean over subjects", fontsize=9)
    return figure


def _worst_first(subjects: Mapping[str, Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    return sorted((s for s in subjects.values() if s["label"] == label), key=lambda s: s["accuracy"])


def _draw_strip(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    accuracy = np.asarray([row["accuracy"] for row in rows])
    area = 14 + 60 * np.sqrt([row["cells"] for row in rows]) / np.sqrt(400)
    axes.vlines(np.arange(len(rows)), accuracy, 1, color=colour, alpha=0.25, linewidth=1.2)
    axes.scatter(np.arange(len(rows)), accuracy, s=area, color=colour, edgecolor="white", linewidth=0.6, zorder=3)
    axes.axhline(accuracy.mean(), color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(-1, len(rows))
    axes.set_xticks([])
    _plain(axes)


def interval_plot(rows: Sequence[tuple[str, float, Mapping[str, float] | None, Mapping[str, float] | None]]) -> Figure:
    """Figures with their intervals, by subject (bold) and by cell (thin, below), one line each.

    Args:
        rows: name, value, interval by subject, interval by cell (low and high, 0–1); an interval may be missing.
    """
    figure = _figure(_WIDTH, 0.75 + 0.42 * len(rows))
    axes = figure.subplots()
    for line, (_, value, by_subject, by_cell) in enumerate(rows):
        if by_cell:
            axes.plot([by_cell["low"], by_cell["high"]], [line + 0.2] * 2, color=ORANGE, linewidth=3)
        if by_subject:
            axes.plot([by_subject["low"], by_subject["high"]], [line - 0.1] * 2, color=BLUE, linewidth=3)
        axes.plot(value, line - 0.1, "o", color="white", markeredgecolor=BLUE, markersize=7, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _plain(axes)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    _interval_legend(axes, any(row[2] for row in rows), any(row[3] for row in rows))
    return figure


def _interval_legend(axes: Axes, by_subject: bool, by_cell: bool) -> None:
    from matplotlib.lines import Line2D

    kinds = [
        (by_subject, BLUE, "subjects drawn anew: other patients"),
        (by_cell, ORANGE, "cells drawn anew: too narrow"),
    ]
    handles = [Line2D([], [], color=colour, linewidth=3, label=text) for shown, colour, text in kinds if shown]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)


def confusion_figure(matrix: Sequence[Sequence[int]], label_names: Sequence[str]) -> Figure:
    """What was taken for what: cells, and their share of the true class.

    Args:
        matrix: (K, K) cells, rows the truth, columns the answer.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.5 + 0.9 * len(label_names)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ink = "white" if share > 0.55 else "black"
        text = f"{counts[row, column]:,}\n{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10)
    axes.set_xticks(range(len(label_names)), label_names)
    axes.set_yticks(range(len(label_names)), label_names)
    axes.set_xlabel("answered")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colours(count: int) -> list[str]:
    return [CLASS_COLOURS[k % len(CLASS_COLOURS)] for k in range(count)]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
