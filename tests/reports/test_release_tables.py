"""Each block of metrics.json is written once, and card, README and Evidence tab show it alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leukoscope.audit import audit_cells, scan_cells
from leukoscope.data.cells import LoadedCells
from leukoscope.reports.formatting import Table, metric_name, span, with_span
from leukoscope.reports.release_tables import (
    baselines_table,
    calibration_table,
    cells_needed,
    copies_table,
    evaluation_row,
    folds_table,
    points_table,
    subject_rule_table,
    tta_table,
)

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


def test_a_table_is_markdown_with_its_numbers_aligned_right() -> None:
    assert str(Table(("class", "cells"), [("ALL", "12")])) == "| class | cells |\n|---|--:|\n| ALL | 12 |"


def test_a_label_stays_in_its_cell_and_is_no_element_of_html() -> None:
    table = Table(("a|b",), [("c\n<img src=x>",), ("**0.9** in `code` of [a page](x)",)])
    assert str(table).splitlines()[::2] == [r"| a\|b |", "| c &lt;img src=x> |"]
    assert str(table).splitlines()[3] == "| **0.9** in `code` of [a page](x) |"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("f1_macro_by_subject", "macro F1 by block"),
        ("auroc_equal_size", "AUROC at equal size"),
        ("recall_HEM", "recall of HEM"),
        ("subject_auroc", "AUROC of blocks' mean logits"),
    ],
)
def test_every_metric_has_a_name(key: str, name: str) -> None:
    assert metric_name(key, "block") == name


def test_an_interval_below_zero_is_written_with_a_word() -> None:
    assert (span({"low": -0.02, "high": 0.031}), span({"low": 0.5, "high": 1}), span(None)) == (
        "-0.02 to 0.03",
        "0.50–1.00",
        "–",
    )


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.99953, 0.999998, "0.9995–1.0000"),
        (0.9871, 0.9974, "0.987–0.997"),
        (0.923, 1.0, "0.92–1.00"),
        (1.0, 1.0, "1.00–1.00"),
        (0.0028, 0.049, "0.003–0.049"),
        (-0.047, -0.004, "-0.047 to -0.004"),
        (0.503, 0.504, "0.503–0.504"),
    ],
)
def test_an_interval_has_the_digits_that_show_its_width_and_what_is_neither_0_nor_1(
    low: float, high: float, shown: str
) -> None:
    assert span({"low": low, "high": high}) == shown


def test_a_share_of_nobody_is_a_dash() -> None:
    assert with_span({"share": None, "low": None, "high": None}, "share") == "–"


def test_what_was_measured_by_subject_stands_first_and_is_left_out_where_it_was_not() -> None:
    pooled = {"auroc": 0.8, "balanced_accuracy": 0.7, "f1_weighted": 0.6}
    by_subject = {"auroc_by_subject": 0.85, "balanced_accuracy_by_subject": 0.75}
    size = {"auroc_equal_size": 0.55}
    table = baselines_table({"shortcut_baselines": {"size": pooled | by_subject | size}, "metrics": pooled})
    assert list(table.columns)[1:4] == ["AUROC by subject", "AUROC at equal size", "balanced accuracy by subject"]
    assert table.rows[0] == ["size", "0.850", "0.550", "0.750", "0.800", "0.700", "0.600"]
    earlier = baselines_table({"shortcut_baselines": {"size": pooled}, "metrics": pooled | by_subject})
    assert list(earlier.columns) == ["feature", "AUROC", "balanced accuracy", "weighted F1"]
    fold = {"fold": 0, "cells": 10, "subjects": ["a"], **pooled}
    assert folds_table({"folds": [fold | by_subject]}, "block").columns[3] == "AUROC by block"
    assert folds_table({"folds": [fold]}, "block").columns[3] == "AUROC"
    one = {"a": 0.85, "b": 0.84, "difference": 0.01, "low": -0.02, "high": 0.03}
    views = tta_table({"difference": {"auroc": one, "auroc_by_subject": one}})
    assert [row[0] for row in views.rows] == ["AUROC by subject", "AUROC"]


def test_calibration_and_operating_points_are_shown_by_subject_where_they_were_measured_so() -> None:
    metrics = json.loads((EMBEDDED[0] / "metrics.json").read_text())
    rows = [row[0] for row in calibration_table(metrics["calibration"]).rows]
    assert (len(rows), rows[1]) == (6, "Brier score, by subject")
    measured = metrics["decisions"]["operating_points"]["points"]["youden"]["cross_fitted"]
    table = points_table(metrics["decisions"]["operating_points"]["points"])
    assert table.columns[2:6] == ("sensitivity by subject", "specificity by subject", "sensitivity", "specificity")
    assert table.rows[-1][2].startswith(f"{measured['sensitivity_by_subject']:.3f} (")


def test_subjects_stand_beside_what_the_size_of_their_cells_alone_gives() -> None:
    block = json.loads((EMBEDDED[0] / "metrics.json").read_text())["subject_rule"] | {"size_only": None}
    assert "cell size alone" not in str(subject_rule_table(block))
    rate = {"share": 0.8, "low": 0.5, "high": 0.9, "right": 8, "of": 10}
    auroc = {"value": 0.898, "low": 0.78, "high": 0.98}
    alone = {"auroc": auroc, "sensitivity": rate, "specificity": rate}
    alone["difference"] = {"difference": 0.03, "low": -0.093, "high": 0.165}
    assert subject_rule_table(block | {"size_only": alone}).rows[-4:-2] == [
        ["AUROC, cell size alone", "0.898 (0.78–0.98)"],
        ["AUROC, less that of cell size alone", "+0.030 (-0.093 to +0.165)"],
    ]


def test_size_alone_stands_beside_both_metrics_that_it_explains(release_metrics: dict[str, Any]) -> None:
    release_metrics["evaluations"][0]["size_only_baseline"]["auroc_equal_size"] = 0.5514
    rows = [evaluation_row(release_metrics, block) for block in release_metrics["evaluations"]]
    assert [row["size_aurocs"] for row in rows] == ["0.722 / 0.551", "–"]


def test_a_number_of_cells_that_does_not_suffice_is_no_promise() -> None:
    assert cells_needed({"least_cells": 50}) == cells_needed({"least_cells": 50, "least_cells_suffice": True}) == "50"
    assert cells_needed({"least_cells": 50, "least_cells_suffice": False}) == "more than 50"


def test_copies_are_counted_by_what_is_known_of_the_cells(phantom_data: LoadedCells) -> None:
    findings = audit_cells(scan_cells(phantom_data))
    assert [name for name, *_ in copies_table(findings).rows] == [
        "pairs",
        "across subjects, as published",
        "across classes",
        "across what splits keep together",
        "would inflate metrics",
    ]
