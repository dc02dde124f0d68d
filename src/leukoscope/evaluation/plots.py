"""Plots of an evaluation: its subjects, and its confusion matrix.

Each function makes one matplotlib `Figure` that stays readable at the width of a README, in Okabe & Ito's colours,
which colour-blind readers can tell apart. Markers and texts carry the same meaning as the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE
from leukoscope.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
PLOT_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
GREY = "#767676"
_WIDTH = 8.0  # inches; about the text width of a README at 100 dpi
_DASHED = (0, (4, 3))
_LONGEST_NAME = 18  # characters of a class's name in the title of a panel, of which four stand side by side


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure with automatic layout; its size is in inches."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False  # a "$" in a label starts no formula
    return Figure(figsize=(width, height), layout="constrained")


def plain(*panels: Axes) -> None:
    """Remove the top and right border of each panel."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)


def save_plot(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG with the research notice below it; `OSError` where it cannot be written."""
    figure.text(0.5, -0.01, RESEARCH_NOTICE, ha="center", va="top", fontsize=7, color=GREY)
    with atomic_file(path) as temporary:
        # Without the library's version, the same numbers give the same file.
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return path


def subject_strip(
    subjects: Mapping[str, Mapping[str, Any]], label_names: Sequence[str], unit: str = "subject"
) -> Figure:
    """Plot every subject's accuracy, by class and from worst to best; a larger dot stands for more cells.

    Args:
        subjects: id → label, cells and accuracy (0–1), as `measure` gives them.
        unit: what the subjects are: "subject" or "block".
    """
    groups: dict[str, list[Mapping[str, Any]]] = {label: [] for label in label_names}
    for subject in subjects.values():
        if subject["label"] in groups:
            groups[subject["label"]].append(subject)
    groups = {label: sorted(rows, key=lambda row: row["accuracy"]) for label, rows in groups.items() if rows}
    across = min(len(groups), 4)
    down = -(-len(groups) // across)  # rounded up
    figure = new_figure(_WIDTH, 0.4 + 2.6 * down)
    ratios = [1.0] * across
    if across < 3:
        # One column per subject, but no panel too narrow for its heading.
        ratios = [max(len(rows), len(subjects) / 5) for rows in groups.values()]
    grid = figure.subplots(down, across, sharey=True, squeeze=False, width_ratios=ratios)
    panels = grid.ravel()
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    for k, ((label, rows), axes) in enumerate(zip(groups.items(), panels, strict=False)):
        colour = PLOT_COLOURS[k % len(PLOT_COLOURS)]
        x = np.arange(len(rows))
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
    slanted: dict[str, Any] = {}
    if beyond:
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(label_names)), label_names, **slanted)
    axes.set_yticks(range(len(label_names)), label_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
