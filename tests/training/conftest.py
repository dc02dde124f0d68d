"""Cells small and few enough to train on in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from leukoscope.cells.phantoms import draw_cell


@pytest.fixture
def own_cells(tmp_path: Path) -> Path:
    """Class folders of small phantoms: 8 subjects a class, 2 cells each, `<class>/<subject>_<n>.png`."""
    root = tmp_path / "cells"
    for label in ("ALL", "HEM"):
        (root / label).mkdir(parents=True)
        for subject in range(8):
            for cell in range(2):
                image = draw_cell(label, subject=subject, cell=cell, size=32).image
                Image.fromarray(image).save(root / label / f"{label}{subject}_{cell}.png")
    return root
