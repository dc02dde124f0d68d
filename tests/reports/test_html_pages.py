"""Reports as single HTML files: nothing to fetch, nothing read as markup, the notice on every page."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.reports.formatting import Table
from leukoscope.reports.html import Section, cell_picture, plot_picture, write_page


def test_a_page_shows_its_sections_and_the_notice(tmp_path: Path) -> None:
    sections = [
        Section("Sizes", ["As expected."], Table(["class", "cells"], [["ALL", "12"], ["HEM", "7"]]), verdict="good"),
        Section("Nothing here"),
    ]
    text = write_page(tmp_path / "page.html", "A report", ["In short: fine."], sections).read_text()
    assert "<td>ALL</td><td>12</td>" in text and "In short: fine." in text and RESEARCH_NOTICE in text
    assert text.count("<table>") == 1, "a section without rows has no table"


def test_text_from_the_data_is_never_read_as_markup(tmp_path: Path) -> None:
    sections = [Section("<script>x</script>", ["a<b"], Table(["<i>"], [["<img src=x>"]]))]
    text = write_page(tmp_path / "page.html", "<b>", ["&"], sections).read_text()
    assert "<script>" not in text and "<img src=x>" not in text and "&lt;img src=x&gt;" in text


def test_an_interval_in_a_table_is_not_broken_at_its_dash(tmp_path: Path) -> None:
    sections = [Section("Metrics", (), Table(["AUROC"], [["0.887 (0.81–0.94)"], ["out-of-fold"], ["<i>1–2"]]))]
    text = write_page(tmp_path / "page.html", "A report", [], sections).read_text()
    assert '<td>0.887 <span style="white-space: nowrap">(0.81–0.94)</span></td>' in text
    assert "<td>out-of-fold</td>" in text
    # A stranger's release may hold any text: this one would take minutes if each digit were tried as a beginning.
    write_page(tmp_path / "long.html", "A", [], [Section("Metrics", (), Table(["what"], [["9" * 300_000]]))])
    assert '<td>&lt;i&gt;<span style="white-space: nowrap">1–2</span></td>' in text


def test_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2, 1))
    axes.plot([0, 1], [0, 1])
    pictures = [plot_picture(figure, "a line"), cell_picture(Image.new("RGB", (450, 450)), "a black cell", side=64)]
    text = write_page(tmp_path / "page.html", "t", [], [Section("s", pictures=pictures)]).read_text()
    assert "data:image/svg+xml;base64," in text and "data:image/jpeg;base64," in text
    assert "http" not in text, "a page must not ask the network for anything"
    assert not pyplot.get_fignums(), "a drawn figure is closed"
