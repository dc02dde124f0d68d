"""The tables of an audit that the terminal and the card of a published data set show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leukoscope.reports.formatting import Table, count, share

_CROSSED = {
    "pairs": "pairs",
    "subjects": "across subjects, as published",
    "classes": "across classes",
    "official_folds": "across official folds",
    "split_sides": "across the sides of the split",
    "units": "across what splits keep together",
    "inflates": "would inflate metrics",
}


def copies_table(findings: Mapping[str, Any]) -> Table:
    """Counts of the copies that cross subjects, classes and splits, as far as these are known."""
    known = {
        "subjects": findings["subjects"],
        "official_folds": findings["data"]["official_folds"],
        "split_sides": findings["split"],
    }
    kinds = [findings["duplicates"][kind] for kind in ("identical", "near")]
    crossed = {name: text for name, text in _CROSSED.items() if known.get(name, True)}
    rows = [(text, *(count(kind[name]) for kind in kinds)) for name, text in crossed.items()]
    return Table(("copies", "identical", "near-identical"), rows)


def shortcuts_table(findings: Mapping[str, Any]) -> Table:
    """Metrics of each feature alone, "–" where one could not be measured; no rows where none was measured."""
    keys = ("balanced_accuracy", "f1_weighted", "auroc")
    features = findings["shortcuts"].get("features", {})
    rows = [(name, *(share(measured[key]) for key in keys)) for name, measured in features.items()]
    return Table(("predicted from", "balanced accuracy", "weighted F1", "AUROC"), rows)
