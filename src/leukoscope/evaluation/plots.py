"""Plots of an evaluation: its subjects, and its confusion matrix.

Each function makes one matplotlib `Figure` that stays readable at the width of a README, in Okabe & Ito's colours,
which colour-blind readers can tell apart. Markers and texts carry the same meaning as the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukoscope import RESEARCH_NOTICE
from leukoscope.files import atomic_file
from leukoscope.models.metrics import SubjectFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#767676"
_WIDTH = 8.0  # inches; about the text width of a README at 100 dpi
_LONGEST_NAME = 12  # characters


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure with automatic layout; its size is in inches."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False  # a "$" in a label starts no formula
    return Figure(figsize=(width, height), layout="constrained")


def save_plot(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG with the research notice below it; `OSError` where it cannot be written."""
    figure.text(0.5, -0.01, RESEARCH_NOTICE, ha="center", va="top", fontsize=7, color=GREY)
    with atomic_file(path) as temporary:
        # Without the library's version, the same numbers give the same file.
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return path


def subject_strip(subjects: Mapping[str, SubjectFigures], label_names: Sequence[str], unit: str = "subject") -> Figure:
    """Plot every subject's accuracy, by class and from worst to best; a larger dot stands for more cells.

    Args:
        subjects: id → label, cells and accuracy (0–1), as `measure` gives them.
        unit: what the subjects are: "subject" or "block".
    """
    table = pd.DataFrame([subject.content() for subject in subjects.values()]).sort_values("accuracy")
    figure = new_figure(_WIDTH, 3)
    axes = figure.subplots()
    ticks = []
    for place, label in enumerate(name for name in label_names if name in set(table["label"])):
        rows = table[table["label"] == label]
        x = place + 0.8 * (np.arange(len(rows)) + 0.5) / len(rows) - 0.4
        colour = PLOT_COLOURS[place % len(PLOT_COLOURS)]
        axes.scatter(x, rows["accuracy"], s=14 + 3 * np.sqrt(rows["cells"]), color=colour, edgecolor="white")
        axes.hlines(rows["accuracy"].mean(), place - 0.4, place + 0.4, color=GREY, linestyle="dashed", zorder=0)
        ticks.append(f"{label}\n{len(rows)} {unit}{'' if len(rows) == 1 else 's'}")
    _name_ticks(axes, ticks)
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("accuracy (share of cells)")
    axes.set_xlabel(f"{unit}s, worst first · larger dot: more cells · line: mean over {unit}s", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure


def confusion_plot(matrix: Sequence[Sequence[int]], label_names: Sequence[str]) -> Figure:
    """Plot (K, K) numbers of cells by true (rows) and predicted class, with their shares of the true class."""
    from sklearn.metrics import ConfusionMatrixDisplay

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2 + 0.9 * len(label_names)
    figure = new_figure(side, side)
    display = ConfusionMatrixDisplay(shares, display_labels=label_names)
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for place, share in np.ndenumerate(shares):
        display.text_[place].set_text(f"{counts[place]:,}\n{share:.0%}")
    _name_ticks(display.ax_, label_names)
    display.ax_.set(xlabel="predicted class", ylabel="true class")
    return figure


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Name the classes along the horizontal axis, slanted where the names are long."""
    slanted: dict[str, Any] = {}
    if max(len(line) for name in names for line in name.splitlines()) > _LONGEST_NAME:
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **slanted)
