"""Figures must show every subject and every number they are given, and stay readable without colour."""

from __future__ import annotations

import io

import pytest

from leukoscope.evaluation.figures import confusion_figure, interval_plot, subject_strip

SUBJECTS = {
    "s1": {"label": "ALL", "cells": 10, "accuracy": 0.9},
    "s2": {"label": "ALL", "cells": 400, "accuracy": 0.4},
    "h1": {"label": "HEM", "cells": 50, "accuracy": 0.7},
}


def texts(figure) -> list[str]:
    import matplotlib.text

    figure.canvas.draw()
    return [item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_text()]


def test_the_strip_shows_each_subject_from_worst_to_best():
    figure = subject_strip(SUBJECTS, ["ALL", "HEM"])
    all_dots, hem_dots = (axes.collections[-1] for axes in figure.axes)
    assert all_dots.get_offsets()[:, 1].tolist() == [0.4, 0.9]
    assert all_dots.get_sizes()[0] > all_dots.get_sizes()[1], "a larger dot stands for more cells"
    assert hem_dots.get_offsets()[:, 1].tolist() == [0.7]
    assert {"ALL · 2 subjects", "HEM · 1 subject"} <= set(texts(figure))


def test_a_class_without_subjects_has_no_panel():
    assert len(subject_strip(SUBJECTS, ["ALL", "HEM", "MIXED"]).axes) == 2


def test_intervals_are_drawn_where_they_are():
    rows = [
        ("accuracy", 0.8, {"low": 0.7, "high": 0.9}, {"low": 0.79, "high": 0.81}),
        ("AUROC of subjects", 0.9, {"low": 0.6, "high": 1.0}, None),
    ]
    axes = interval_plot(rows).axes[0]
    spans = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert sorted(spans) == [[0.6, 1.0], [0.7, 0.9], [0.79, 0.81]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["accuracy", "AUROC of subjects"]


def test_only_the_kinds_of_interval_that_are_drawn_have_a_legend():
    legend = interval_plot([("accuracy", 0.8, None, {"low": 0.7, "high": 0.9})]).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["cells drawn anew: too narrow"]


def test_the_confusion_matrix_says_cells_and_shares():
    found = texts(confusion_figure([[90, 10], [1500, 500]], ["ALL", "HEM"]))
    assert {"90\n90%", "10\n10%", "1,500\n75%", "500\n25%"} <= set(found)


def test_a_class_without_cells_divides_nothing_by_nothing():
    assert "0\n0%" in texts(confusion_figure([[5, 0], [0, 0]], ["ALL", "HEM"]))


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_save_without_a_screen(classes):
    names = ["ALL", "HEM", "C", "D"][:classes]
    matrix = [[10] * classes] * classes
    for figure in (subject_strip(SUBJECTS, names), confusion_figure(matrix, names)):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        assert file.getvalue().startswith(b"\x89PNG")
