"""The pictures of a run and of an evaluation: how it learnt, every subject, every figure, what was taken for what.

Each function draws one matplotlib `Figure` that stays readable at the width of a README, in Okabe & Ito's colours,
which colour-blind readers can tell apart. Shapes and words carry the same meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
CLASS_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
GREY = "#767676"
_WIDTH = 8.0  # inches; about the text width of a README at 100 dpi
# Column of summary.csv → words, colour, marker and line; training dashed, validation solid.
_LOSSES = {
    "train_loss": ("training", ORANGE, "o", (0, (4, 2))),
    "val_loss": ("validation", BLUE, "s", "-"),
}
_ACCURACIES = {
    "train_accuracy": ("training", ORANGE, "o", (0, (4, 2))),
    "val_accuracy": ("validation", BLUE, "s", "-"),
    "val_balanced_accuracy": ("validation, balanced over classes", GREEN, "^", "-"),
}
_ONE_VS_REST = {
    "recall": ("sensitivity", BLUE, "o"),
    "specificity": ("specificity", VERMILION, "s"),
    "one_vs_rest_accuracy": ("accuracy, one against the rest", GREEN, "^"),
}


@dataclass(frozen=True)
class AnsweredCell:
    """A cell to be shown with its answer.

    Attributes:
        pixels: (S, S, 3) uint8.
        answer, probability: the most probable class, and how probable.
        truth: the true class; "" where none of the model's classes is true.
    """

    pixels: np.ndarray
    answer: str
    probability: float
    truth: str = ""


def subject_strip(subjects: Mapping[str, Mapping[str, Any]], label_names: Sequence[str]) -> Figure:
    """Every subject's accuracy, by class and from worst to best; a larger dot stands for more cells.

    Args:
        subjects: id → label, cells and accuracy (0–1), as `measure` gives them.
        label_names: the classes, in the order of their panels.
    """
    groups = {label: _worst_first(subjects, label) for label in label_names}
    groups = {label: rows for label, rows in groups.items() if rows}
    figure = new_figure(_WIDTH, 3.0)
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
    axes.axhline(accuracy.mean(), color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(-1, len(rows))
    axes.set_xticks([])
    plain(axes)


def patients_curve(block: Mapping[str, Any]) -> Figure:
    """Balanced accuracy over persons against the number of their cells that are used, beside that with all cells.

    Args:
        block: the "patients" block of metrics.json.
    """
    rows = block["curve"]
    cells = [row["cells"] for row in rows]
    figure = new_figure(_WIDTH, 2.6)
    axes = figure.subplots()
    axes.plot(cells, [row["balanced_accuracy_all_cells"] for row in rows], color=GREY, linestyle=(0, (4, 3)))
    axes.plot(cells, [row["balanced_accuracy"] for row in rows], color=BLUE, marker="o")
    axes.plot(cells, [row["auroc"] for row in rows], color=GREEN, marker="^")
    for values, text, colour in (("balanced_accuracy", "balanced accuracy", BLUE), ("auroc", "AUROC", GREEN)):
        axes.annotate(
            text, (cells[0], rows[0][values]), xytext=(8, -3), textcoords="offset points", color=colour, fontsize=9
        )
    axes.axvline(block["least_cells"], color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(cells, [f"{row['cells']}\n({row['persons']} persons)" for row in rows])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("cells of a person, drawn at random · dashed: all their cells · vertical: cells needed", fontsize=9)
    plain(axes)
    return figure


def interval_plot(
    rows: Sequence[tuple[str, float, Mapping[str, float] | None, Mapping[str, float] | None]], axis: str = ""
) -> Figure:
    """Figures with their intervals, by subject (bold) and by cell (thin, below), one line each.

    Args:
        rows: name, value, interval by subject, interval by cell (low and high, 0–1); an interval may be missing.
        axis: what all values are, where the names do not say it.
    """
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
    figure = new_figure(side + 0.6, side)
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


def curves_figure(epochs: Sequence[Mapping[str, float]], kept_epoch: int) -> Figure:
    """Loss and accuracy over the epochs, with the epoch whose weights were kept.

    Args:
        epochs: the rows of summary.csv as numbers; columns that are missing are not drawn.
        kept_epoch: counted from 1.
    """
    recorded = {"loss": _LOSSES, "accuracy": _ACCURACIES}
    panels = {name: [c for c in lines if any(c in row for row in epochs)] for name, lines in recorded.items()}
    panels = {name: columns for name, columns in panels.items() if columns}
    figure = new_figure(_WIDTH, 3.4)
    for axes, (name, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for column in columns:
            words, colour, marker, line = recorded[name][column]
            points = [(row["epoch"], row[column]) for row in epochs if column in row]
            axes.plot(
                *zip(*points, strict=True), marker=marker, linestyle=line, color=colour, label=words, markersize=4
            )
        axes.axvline(kept_epoch, color=GREY, linewidth=1, linestyle=":", label=f"epoch {kept_epoch}: kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
        plain(axes)
    return figure


def one_vs_rest_figure(classes: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each class against all others: sensitivity, specificity and accuracy.

    Args:
        classes: name → recall, specificity and one_vs_rest_accuracy (0–1), as `class_report` gives them.
    """
    figure = new_figure(_WIDTH, 1.2 + 0.55 * len(classes))
    axes = figure.subplots()
    for offset, (key, (words, colour, marker)) in zip((-0.18, 0, 0.18), _ONE_VS_REST.items(), strict=True):
        values = [np.nan if row[key] is None else row[key] for row in classes.values()]
        lines = np.arange(len(classes)) + offset
        axes.plot(values, lines, marker, color=colour, label=words, markersize=7)
        for value, line in zip(values, lines, strict=True):
            axes.annotate(f"{value:.3f}", (value, line), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(classes)), list(classes))
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    plain(axes)
    return figure


def network_figure(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Figure:
    """A network's stages as a table, from the picture down to the answer.

    Args:
        columns: headings; the first two columns are set to the left, the others to the right.
        rows: one a stage, ready to be shown.
    """
    from matplotlib.transforms import Bbox

    figure = new_figure(_WIDTH, 0.35 + 0.24 * (len(rows) + 1))
    axes = figure.subplots()
    axes.axis("off")
    table = axes.table([list(row) for row in rows], colLabels=list(columns), edges="horizontal", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(list(range(len(columns))))
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#d0d0d0")
        cell.set_text_props(ha="left" if column < 2 else "right", fontweight="bold" if row == 0 else "normal")
    return figure


def samples_figure(cells: Sequence[AnsweredCell], title: str) -> Figure:
    """A grid of cells with what was answered; a cross and the truth stand by the wrong ones."""
    across = 6
    down = -(-len(cells) // across)
    figure = new_figure(_WIDTH, 0.4 + 1.75 * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, cell in zip(grid, cells, strict=False):
        axes.imshow(cell.pixels)
        axes.set_title(_words(cell), fontsize=8, color=_ink(cell))
    figure.suptitle(title, fontsize=9)
    return figure


def _words(cell: AnsweredCell) -> str:
    answer = f"{cell.answer} {cell.probability:.2f}"
    if not cell.truth:
        return answer
    return f"✓ {answer}" if cell.answer == cell.truth else f"✗ {answer}\nis {cell.truth}"


def _ink(cell: AnsweredCell) -> str:
    if not cell.truth:
        return "black"
    return BLUE if cell.answer == cell.truth else VERMILION


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, the research notice below it, aside and then renamed.

    Raises:
        OSError: the disk refuses.
    """
    figure.text(0.5, -0.01, RESEARCH_NOTICE, ha="center", va="top", fontsize=7, color=GREY)
    aside = path.with_name(f".{path.name}")
    # Without the library's version, the same numbers give the same file.
    figure.savefig(aside, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return aside.replace(path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches, that lays itself out."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colours(count: int) -> list[str]:
    return [CLASS_COLOURS[k % len(CLASS_COLOURS)] for k in range(count)]


def plain(*panels: Axes) -> None:
    """Leave a panel the two axes that carry numbers."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
