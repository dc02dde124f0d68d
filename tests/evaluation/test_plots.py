"""Plots must show every subject and every number they are given, and stay readable without colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from leukoscope import RESEARCH_NOTICE
from leukoscope.evaluation.plots import confusion_plot, save_plot, subject_strip

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
    assert len(subject_strip(SUBJECTS, ["ALL", "HEM", "MIXED"]).axes) == 2, "without subjects no panel"
    in_blocks = texts(subject_strip(SUBJECTS, ["ALL", "HEM"], "block"))
    assert "HEM · 1 block" in in_blocks and not any("subject" in text for text in in_blocks)


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
