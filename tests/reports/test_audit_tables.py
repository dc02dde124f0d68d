"""The tables of an audit name what copies cross, as far as that is known."""

from __future__ import annotations

from leukoscope.audit import audit_cells, scan_cells
from leukoscope.data.loading import LoadedCells
from leukoscope.reports.audit_tables import copies_table


def test_copies_are_counted_by_what_is_known_of_the_cells(phantom_data: LoadedCells) -> None:
    findings = audit_cells(scan_cells(phantom_data))
    assert [name for name, *_ in copies_table(findings).rows] == [
        "pairs",
        "across subjects, as published",
        "across classes",
        "across what splits keep together",
        "would inflate metrics",
    ]
