"""The page of an audit leads with what would inflate figures and shows the pictures it speaks of."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.audit import audit_cells, published_subjects, scan_cells
from leukoscope.data.loading import LoadedCells, load_cells
from leukoscope.reports.audit_page import areas_figure, cells_figure, copies_table, write_audit_page
from leukoscope.synthetic import draw_cell


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """C-NMC folders in which subject 2 holds a cell of subject 1, and one cell is cut off."""
    root = tmp_path_factory.mktemp("cnmc")
    for subject in ("1", "2", "H1", "H6"):
        label = "HEM" if subject.startswith("H") else "ALL"
        folder = root / "fold_0" / label.lower()
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(3):
            drawn = draw_cell(label, subject=int(subject.strip("H")), cell=number, size=96).image
            Image.fromarray(drawn).save(folder / f"UID_{subject}_{number}_1_{label.lower()}.bmp")
    copied = Image.open(root / "fold_0/all/UID_1_0_1_all.bmp")
    copied.save(root / "fold_0/all/UID_2_9_1_all.bmp")
    copied.crop((30, 0, 96, 96)).resize((96, 96)).save(root / "fold_0/all/UID_1_8_1_all.bmp")
    return root


def test_a_page_shows_the_findings_and_their_pictures(cells: Path, tmp_path: Path) -> None:
    seen = scan_cells(load_cells("cnmc2019", cells))
    findings = audit_cells(seen, subjects=published_subjects(seen.data, cells))
    text = write_audit_page(tmp_path / "audit.html", findings, seen).read_text()

    headings = ["What would inflate metrics", "Subjects under several ids", "Copies", "Identical pictures", "Shortcuts"]
    places = [text.index(f"<h2>{heading}") for heading in headings]
    assert places == sorted(places), "the worst comes first"
    assert "Near-identical pictures</h2>" not in text, "no heading above nothing"
    assert 'class="verdict bad"' in text and RESEARCH_NOTICE in text
    assert "<td>1 = 2</td><td>not 2</td>" in text
    assert 'alt="Two pictures of one cell, UID_1_0_1_all above UID_2_9_1_all"' in text
    assert 'alt="Picture UID_1_8_1_all"' in text and "UID_1_8_1_all: cut off" in text
    assert text.count("data:image/svg+xml") == 2, "cells of each subject, and their sizes"
    assert "background and corner: the cells are cut out on black" in text
    assert "fold_1 ALL: 0 cells here, 2,418 published" in text


def test_a_page_without_findings_says_so(tmp_path: Path, phantom_data: LoadedCells) -> None:
    seen = scan_cells(phantom_data)
    findings = audit_cells(seen)
    text = write_audit_page(tmp_path / "audit.html", findings, seen).read_text()
    assert "Nothing was found that would inflate metrics on splits by subject." in text
    assert "These cells are synthetic" in text
    assert "Subjects under several ids" not in text
    assert [name for name, *_ in copies_table(findings).rows] == [
        "pairs",
        "across subjects, as published",
        "across classes",
        "across what splits keep together",
        "would inflate metrics",
    ]


def test_figures_name_every_subject_below_its_class(cells: Path) -> None:
    seen = scan_cells(load_cells("cnmc2019", cells))
    findings = audit_cells(seen, subjects=published_subjects(seen.data, cells))
    named = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in cells_figure(findings).axes]
    assert [sorted(names) for names in named] == [["1", "2"], ["H1", "H6"]]
    bars = [bar for bar in cells_figure(findings).axes[0].patches if isinstance(bar, Rectangle)]
    assert sorted(bar.get_height() for bar in bars) == [4, 4]
    first = [axes.get_xticklabels()[0].get_text() for axes in areas_figure(findings).axes]
    assert first == ["all", "all"]
