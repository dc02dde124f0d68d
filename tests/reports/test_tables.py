"""Each block of metrics.json is written once, and card, README and Evidence tab show it alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leukoscope.audit import audit_cells, scan_cells
from leukoscope.data.cells import LoadedCells
from leukoscope.evaluation.metrics import BY_SUBJECT, POOLED_METRICS
from leukoscope.models.metrics import Figures, Interval, Metrics, Robustness
from leukoscope.reports.tables import (
    RecognisedRow,
    Table,
    confusion_table,
    copies_table,
    metric_name,
    recognised_rows,
    robustness_table,
    span,
)
from release_fixtures import ROBUSTNESS

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


def test_a_table_is_markdown_with_its_numbers_aligned_right() -> None:
    assert str(Table(("class", "cells"), [("ALL", "12")])) == "| class | cells |\n|---|--:|\n| ALL | 12 |"


def test_a_label_stays_in_its_cell_and_is_no_element_of_html() -> None:
    table = Table(("a|b",), [("c\n<img src=x>",), ("**0.9** in `code` of [a page](x)",)])
    assert str(table).splitlines()[::2] == [r"| a\|b |", "| c &lt;img src=x> |"]
    assert str(table).splitlines()[3] == "| **0.9** in `code` of [a page](x) |"
    heads = confusion_table(Figures(confusion_matrix=[[1]]), ["**a** [b](x) | <i>"]).columns
    assert heads[2] == r"predicted \*\*a\*\* \[b\](x) \| \<i\>"
    assert str(Table(heads, ())).splitlines()[0].endswith(r"\[b\](x) \| \<i\> |"), "escaped once"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("f1_macro_by_subject", "macro F1 by block"),
        ("auroc_equal_size", "AUROC at equal size"),
        ("recall_HEM", "recall of HEM"),
        ("subject_auroc", "AUROC of blocks' mean logits"),
    ],
)
def test_every_metric_has_a_name_and_another_is_no_recall(key: str, name: str) -> None:
    assert metric_name(key, "block") == name
    assert all(metric_name(key) for key in (*POOLED_METRICS, *BY_SUBJECT))
    with pytest.raises(KeyError):
        metric_name("mcc")


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.99953, 0.999998, "0.9995–1.0000"),
        (0.9871, 0.9974, "0.987–0.997"),
        (0.923, 1.0, "0.92–1.00"),
        (1.0, 1.0, "1.00–1.00"),
        (0.0028, 0.049, "0.003–0.049"),
        (-0.047, -0.004, "-0.047 to -0.004"),
        (-0.02, 0.031, "-0.02 to 0.03"),
        (None, None, "–"),
        (0.503, 0.504, "0.503–0.504"),
    ],
)
def test_an_interval_has_the_digits_that_show_its_width_and_what_is_neither_0_nor_1(
    low: float | None, high: float | None, shown: str
) -> None:
    assert span(Interval(low=low, high=high)) == shown


def rows_of(content: dict[str, Any]) -> list[RecognisedRow]:
    return recognised_rows(Metrics.from_content(content))


def test_what_is_recognised_is_told_by_class_and_person(release_metrics: dict[str, Any]) -> None:
    texts = [row.texts for row in rows_of(release_metrics)]
    assert texts[0] == ["cross-validation, 2 people", "100", "19", "0.777"]
    assert texts[1] == ["cell size alone, the same 2 people", "–", "–", "0.722"]
    ends = {"recall_ALL_by_subject": {"low": 0.9, "high": 1.0}, "auroc_by_subject": {"low": 0.7, "high": 0.85}}
    block = release_metrics["evaluations"][0]
    block["metrics"]["recall_by_subject"] = {"ALL": 0.94, "HEM": 0.65}
    block["intervals"] = {"by_subject": ends}
    block["size_only_baseline"]["recall_by_subject"] = {"ALL": 0.8, "HEM": 0.7}
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    over_all_cells = {"value": 0.9, "low": 0.8, "high": 0.99}
    further = {"subjects": 34, "recall_ALL": over_all_cells, "recall_HEM": over_all_cells, "auroc_by_subject": one}
    further |= {"recall_ALL_by_subject": one, "recall_HEM_by_subject": one}
    further["by_batch"] = {"fold_2": {"subjects": 13, "recall_ALL_by_subject": one, "auroc_by_subject": one}}
    rows = rows_of(release_metrics | {"further_subjects": further})
    assert [row.texts for row in rows] == [
        ["34 further people", "50 (40–60)", "50 (40–60)", "0.500 (0.40–0.60)"],
        ["13 of these, fold 2", "50 (40–60)", "–", "0.500 (0.40–0.60)"],
        ["cross-validation, 2 people", "94 (90–100)", "65", "0.777 (0.70–0.85)"],
        ["cell size alone, the same 2 people", "80", "70", "0.722"],
    ]
    assert [row.kind for row in rows] == ["outside", "batch", "unseen", "size"]
    by_image = release_metrics | {"evaluations": release_metrics["evaluations"][1:]}
    assert [row.texts for row in rows_of(by_image)] == [["70/15/15 by image", "96", "50", "0.855"]], (
        "of people nothing is said"
    )


def test_copies_are_counted_by_what_is_known_of_the_cells(phantom_data: LoadedCells) -> None:
    findings = audit_cells(*scan_cells(phantom_data))
    assert [name for name, *_ in copies_table(findings).rows] == [
        "pairs",
        "across subjects, as published",
        "across classes",
        "across what splits keep together",
        "would inflate metrics",
    ]


def test_of_each_family_of_changes_the_worst_is_shown_and_the_worst_family_first() -> None:
    table = robustness_table(Robustness.model_validate(ROBUSTNESS), ["ALL", "HEM"])
    assert [row[0] for row in table.rows] == ["15 % more saturated", "10 % larger", "10 % brighter"]
    assert table.rows[1][1:] == ["0.0", "11.2", "0.0", "0.0", "0.688"]
    assert table.rows[0][3] == "23.0"


def test_what_is_recognised_under_the_worst_change_stands_beside_what_is_recognised(
    release_metrics: dict[str, Any],
) -> None:
    rows = [row.texts for row in rows_of(release_metrics | {"robustness": ROBUSTNESS})]
    assert ["1,200 of these cells, shown 10 % larger", "90", "50 (40–60)", "0.688 (0.50–0.90)"] in rows
    assert len(rows) == len(rows_of(release_metrics)) + 1
    few = ROBUSTNESS | {"subjects": 1}
    rows = [row.texts for row in rows_of(release_metrics | {"robustness": few})]
    assert "1,200 of these cells, of 1 person, shown 10 % larger" in [row[0] for row in rows]
