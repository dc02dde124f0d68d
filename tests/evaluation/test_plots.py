"""Plots must show every subject and every number they are given, and stay readable without colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.calibration import calibration_block
from leukoscope.evaluation.plots import (
    confusion_plot,
    interval_plot,
    reliability_diagram,
    roc_plot,
    save_plot,
    subject_strip,
)
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.thresholds import decision_block

SUBJECTS = {
    "s1": {"label": "ALL", "cells": 10, "accuracy": 0.9},
    "s2": {"label": "ALL", "cells": 400, "accuracy": 0.4},
    "h1": {"label": "HEM", "cells": 50, "accuracy": 0.7},
}


def texts(figure: Figure) -> list[str]:
    import matplotlib.text

    figure.canvas.draw()
    return [item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_text()]


def test_the_strip_shows_each_subject_from_worst_to_best() -> None:
    figure = subject_strip(SUBJECTS, ["ALL", "HEM"])
    all_dots, hem_dots = (axes.collections[-1] for axes in figure.axes)
    assert isinstance(all_dots, PathCollection)
    assert np.asarray(all_dots.get_offsets())[:, 1].tolist() == [0.4, 0.9]
    assert all_dots.get_sizes()[0] > all_dots.get_sizes()[1], "a larger dot stands for more cells"
    assert np.asarray(hem_dots.get_offsets())[:, 1].tolist() == [0.7]
    assert {"ALL · 2 subjects", "HEM · 1 subject"} <= set(texts(figure))
    in_blocks = texts(subject_strip(SUBJECTS, ["ALL", "HEM"], "block"))
    assert "HEM · 1 block" in in_blocks and not any("subject" in text for text in in_blocks)


def test_a_class_without_subjects_has_no_panel() -> None:
    assert len(subject_strip(SUBJECTS, ["ALL", "HEM", "MIXED"]).axes) == 2


def test_intervals_are_drawn_where_they_are() -> None:
    rows = [
        ("accuracy", 0.8, {"low": 0.7, "high": 0.9}, {"low": 0.79, "high": 0.81}),
        ("AUROC, one prediction per subject", 0.9, {"low": 0.6, "high": 1.0}, None),
    ]
    axes = interval_plot(rows).axes[0]
    ends = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert sorted(pair for pair in ends if len(pair) == 2) == [[0.6, 1.0], [0.7, 0.9], [0.79, 0.81]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["accuracy", "AUROC, one prediction per subject"]


def _legend(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_only_the_kinds_of_interval_that_are_drawn_have_a_legend() -> None:
    figure = interval_plot([("accuracy", 0.8, None, {"low": 0.7, "high": 0.9})])
    assert _legend(figure) == ["resampling cells: too narrow"]


def test_intervals_by_block_promise_nothing_for_new_patients() -> None:
    ends = {"low": 0.7, "high": 0.9}
    legends = [_legend(interval_plot([("accuracy", 0.8, ends, None)], unit=unit))[0] for unit in ("subject", "block")]
    assert legends == ["resampling subjects: for new subjects", "resampling blocks: not for new subjects"]


LONG_NAMES = ["segmented_neutrophil", "lymphocyte_typical", "monocyte", "metamyelocyte", "promyelocyte_bilobed",
              "erythroblast", "lymphoblast_B", "x" * 60]  # fmt: skip


def overlapping(boxes: list[Any]) -> int:
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_titles_of_many_classes_lie_beside_each_other() -> None:
    subjects = {f"s{i}": {"label": LONG_NAMES[i % 8], "cells": 10, "accuracy": 0.5} for i in range(40)}
    figure = subject_strip(subjects, LONG_NAMES)
    figure.canvas.draw()
    titles = [text for axes in figure.axes for text in axes.findobj(Text) if "subjects" in text.get_text()]
    assert len(titles) == 8 and overlapping([title.get_window_extent() for title in titles]) == 0


def test_long_names_of_predicted_classes_are_slanted() -> None:
    figure = confusion_plot([[3] * 4] * 4, LONG_NAMES[:4])
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {30}
    assert {
        label.get_rotation() for label in confusion_plot([[3, 1], [0, 2]], ["ALL", "HEM"]).axes[0].get_xticklabels()
    } == {0}


def test_the_confusion_matrix_says_cells_and_shares() -> None:
    found = texts(confusion_plot([[90, 10], [1500, 500]], ["ALL", "HEM"]))
    assert {"90\n90%", "10\n10%", "1,500\n75%", "500\n25%"} <= set(found)


def test_a_class_without_cells_divides_nothing_by_nothing() -> None:
    assert "0\n0%" in texts(confusion_plot([[5, 0], [0, 0]], ["ALL", "HEM"]))


@pytest.mark.parametrize("classes", [2, 4])
def test_plots_save_without_a_screen(classes: int) -> None:
    names = ["ALL", "HEM", "C", "D"][:classes]
    matrix = [[10] * classes] * classes
    for figure in (subject_strip(SUBJECTS, names), confusion_plot(matrix, names)):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        assert file.getvalue().startswith(b"\x89PNG")


def test_a_dollar_in_a_label_is_no_formula(tmp_path: Path) -> None:
    assert save_plot(confusion_plot([[3, 1], [0, 2]], [r"$\foo$", "x"]), tmp_path / "plot.png").is_file()


def test_a_saved_figure_carries_the_notice_and_is_the_same_again(tmp_path: Path) -> None:
    def saved(name: str) -> bytes:
        figure = confusion_plot([[90, 10], [1500, 500]], ["ALL", "HEM"])
        path = save_plot(figure, tmp_path / name)
        assert RESEARCH_NOTICE in texts(figure)
        return path.read_bytes()

    assert saved("a.png") == saved("b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"], "nothing is left aside"


# The blocks of metrics.json: the points lie where the numbers say, and texts tell which is which


@pytest.fixture(scope="module")
def predictions(calibrated_cells: Callable[..., CellPredictions]) -> CellPredictions:
    return calibrated_cells(900, subjects=4, too_sharp=2.0)


@pytest.fixture(scope="module")
def decisions(predictions: CellPredictions) -> dict[str, Any]:
    return decision_block(predictions, "HEM")


def _drawn(axes: Any) -> dict[str, np.ndarray]:
    """What the legend names → the (M, 2) points drawn for it."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines() if line.get_label()[0] != "_"}


def _is_picture(figure: Any) -> bool:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue().startswith(b"\x89PNG")


def test_the_reliability_diagram_shows_both_sides_bin_by_bin(predictions: CellPredictions) -> None:
    block = calibration_block(predictions)
    figure = reliability_diagram(block)
    points = _drawn(figure.axes[0])

    for (words, drawn), side in zip(points.items(), ("before", "after"), strict=True):
        assert drawn.tolist() == [[b["confidence"], b["accuracy"]] for b in block["reliability"][side]]
        assert f"ECE {block[side]['ece']:.3f}" in words
    assert figure.axes[1].get_xlabel() == "confidence (probability of the predicted class)"
    assert _is_picture(figure)


def test_operating_points_stand_where_unseen_subjects_found_them(
    predictions: CellPredictions, decisions: dict[str, Any]
) -> None:
    block = decisions["operating_points"]
    evaluation = {
        "metrics": {"auroc": 0.8734, "auroc_by_subject": 0.8866},
        "intervals": {
            "by_subject": {"auroc": {"low": 0.8, "high": 0.91}, "auroc_by_subject": {"low": 0.81, "high": 0.94}}
        },
    }
    figure = roc_plot(predictions, block, evaluation, "subject")
    drawn = _drawn(figure.axes[0])

    by_subject, over_cells = next(iter(drawn)).splitlines()
    assert by_subject == "AUROC by subject 0.887 (0.810–0.940)", "as the card leads with it"
    assert over_cells == "AUROC over cells 0.873 (0.800–0.910)"

    for (words, at), name in zip(list(drawn.items())[1:], ("sensitivity_95", "specificity_95", "youden"), strict=True):
        found = block["points"][name]["cross_fitted"]
        assert at.tolist() == [[1 - found["specificity"], found["sensitivity"]]]
        assert words.endswith(f"{found['sensitivity']:.1%} and {found['specificity']:.1%}, cross-fitted")
    assert figure.axes[0].get_ylabel() == "sensitivity (share of HEM cells found)"
    assert _is_picture(figure)
