"""Cells small and few enough to train on in a test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import Split, make_split
from leukoscope.synthetic import draw_cell


@pytest.fixture(scope="session")
def drawn_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small phantoms: 8 subjects a class, 2 cells each, `<class>/<subject>_<n>.png`."""
    root = tmp_path_factory.mktemp("drawn") / "cells"
    for label in ("ALL", "HEM"):
        (root / label).mkdir(parents=True)
        for subject in range(8):
            for cell in range(2):
                image = draw_cell(label, subject=subject, cell=cell, size=32).image
                Image.fromarray(image).save(root / label / f"{label}{subject}_{cell}.png")
    return root


@pytest.fixture
def own_cells(drawn_cells: Path, tmp_path: Path) -> Path:
    """A copy of `drawn_cells`, free to be changed."""
    return shutil.copytree(drawn_cells, tmp_path / "cells")


@pytest.fixture
def cells(own_cells: Path) -> FramedCells:
    """The cells of `own_cells`, framed at 32 px."""
    data = load_cells("imagefolder", str(own_cells), subject_pattern=r"/(?P<subject>\w+)_", image_size=64)
    return frame_cells(data, Preprocessing(32, 1.0))


@pytest.fixture
def split(cells: FramedCells) -> Split:
    """About 70/15/15 by subject."""
    return make_split(cells.data, "subject")
