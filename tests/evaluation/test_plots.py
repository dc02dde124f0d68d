"""Plots must show every subject and every number they are given, and stay readable without colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.plots import confusion_plot, save_plot, subject_strip
from leukoscope.models.metrics import Figures, SubjectFigures

SUBJECTS = Figures.model_validate(
    {
        "subjects": {
            "s1": {"label": "ALL", "cells": 10, "accuracy": 0.9},
            "s2": {"label": "ALL", "cells": 400, "accuracy": 0.4},
            "h1": {"label": "HEM", "cells": 50, "accuracy": 0.7},
        }
    }
).subjects


def texts(figure: Figure) -> list[str]:
    import matplotlib.text

    figure.canvas.draw()
    return [item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_text()]


def test_the_strip_shows_each_subject_from_worst_to_best() -> None:
    figure = subject_strip(SUBJECTS, ["ALL", "HEM", "MIXED"])
    all_dots, hem_dots = (dots for dots in figure.axes[0].collections if isinstance(dots, PathCollection))
    assert np.asarray(all_dots.get_offsets())[:, 1].tolist() == [0.4, 0.9]
    assert all_dots.get_sizes()[0] > all_dots.get_sizes()[1], "a larger dot stands for more cells"
    assert np.asarray(hem_dots.get_offsets())[:, 1].tolist() == [0.7]
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["ALL\n2 subjects", "HEM\n1 subject"], "a class without subjects has no place"
    in_blocks = texts(subject_strip(SUBJECTS, ["ALL", "HEM"], "block"))
    assert "HEM\n1 block" in in_blocks and not any("subject" in text for text in in_blocks)


LONG_NAMES = ["segmented_neutrophil", "lymphocyte_typical", "monocyte", "metamyelocyte", "promyelocyte_bilobed",
              "erythroblast", "lymphoblast_B", "x" * 60]  # fmt: skip


def test_long_names_are_slanted() -> None:
    subjects = {f"s{i}": SubjectFigures(label=LONG_NAMES[i % 8], cells=10, accuracy=0.5) for i in range(40)}
    for figure, angle in (
        (subject_strip(subjects, LONG_NAMES), 30),
        (confusion_plot([[3] * 4] * 4, LONG_NAMES[:4]), 30),
        (confusion_plot([[3, 1], [0, 2]], ["ALL", "HEM"]), 0),
    ):
        assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {angle}


def test_the_confusion_matrix_says_cells_and_shares() -> None:
    found = texts(confusion_plot([[90, 10], [1500, 500]], ["ALL", "HEM"]))
    assert {"90\n90%", "10\n10%", "1,500\n75%", "500\n25%"} <= set(found)
    assert "0\n0%" in texts(confusion_plot([[5, 0], [0, 0]], ["ALL", "HEM"])), "a class without cells"


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
