"""The report on a subject as a PDF: by a real Chromium, and what is said where none prints it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from leukoscope import LeukoscopeError
from leukoscope.reports import subject_report
from leukoscope.reports.subject_report import write_report

PAGE = '<p>one</p><p style="page-break-before: always">two</p>'


def _browser_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called chromium, the only one that is found."""
    program = folder / "bin" / "chromium"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


@pytest.mark.slow
def test_chromium_prints_every_page(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        if os.environ.get("LEUKOSCOPE_BROWSER") == "required":
            pytest.fail("Chromium is required and not installed")
        pytest.skip("needs Chromium")
    write_report(PAGE, tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/Count 2" in content


def test_without_a_browser_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LeukoscopeError, match="is not installed; write report.html and print that$"):
        write_report(PAGE, tmp_path / "report.pdf")


def test_a_browser_that_fails_or_hangs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _browser_that("echo no space left >&2; exit 3", tmp_path, monkeypatch)
    with pytest.raises(LeukoscopeError, match=r"chromium did not print it \(no space left\)$"):
        write_report(PAGE, tmp_path / "report.pdf")
    shutil.rmtree(tmp_path / "bin")
    _browser_that("exec sleep 600", tmp_path, monkeypatch)
    monkeypatch.setattr(subject_report, "PRINT_SECONDS", 0.2)
    with pytest.raises(LeukoscopeError, match="did not print it within 0.2 s; write report.html and print that$"):
        write_report(PAGE, tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()
