"""Each block of metrics.json is written once, and card, README and Evidence tab show it alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leukoscope.reports.card import render_card
from leukoscope.reports.evidence import evidence_sections
from leukoscope.reports.formatting import Table, metric_name, span
from leukoscope.reports.html import Section

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


def sections(metrics: dict[str, Any]) -> dict[str, Section]:
    return {section.heading: section for section in evidence_sections(metrics)}


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


@pytest.mark.parametrize("release", EMBEDDED, ids=lambda path: path.name)
def test_the_evidence_of_an_embedded_release_has_the_rows_of_its_card(release: Path) -> None:
    metrics, card = json.loads((release / "metrics.json").read_text()), render_card(release)
    shown = sections(metrics)
    for heading in ("Are its Grad-CAM maps faithful?", "What does test-time augmentation gain?"):
        assert f"{shown[heading].table}\n" in card
    results = evidence_sections(metrics)[0].table
    assert results is not None and len(results.rows) == len(metrics["evaluations"])
    for row in results.rows:
        (line,) = (line for line in card.splitlines() if line.startswith(f"| {row[0]} |"))
        assert " | ".join(row[3:8]) in line
    if "patients" in metrics:
        assert str(shown["One prediction for a person"].table) in card
    assert sum(len(section.pictures) for section in shown.values()) == 2 + ("patients" in metrics)


def test_sections_of_what_was_not_measured_are_left_out(release_metrics: dict[str, Any]) -> None:
    assert evidence_sections({}) == []
    release_metrics["training"]["epochs_run"] = 2
    del release_metrics["evaluations"][0]["metrics"]["subjects"]
    assert list(sections(release_metrics)) == [
        "Unseen patients beside the random split",
        "What it was trained on",
        "Limits",
    ]


def test_persons_found_since_it_was_measured_are_named(release_metrics: dict[str, Any]) -> None:
    release_metrics["training"] |= {"subjects": ["H2", "H6"], "epochs_run": 2}
    section = evidence_sections(release_metrics)[0]
    assert section.text[-1] == "Found since to be one person each: H2 = H6."
    assert section.table is not None and [row[1] for row in section.table.rows] == ["a few, found since", "yes"]
