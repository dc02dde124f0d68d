"""Pictures in files, for tests that read them from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from leukoscope.synthetic import draw_cell


def save_cell(path: Path, label: str = "ALL", *, size: int = 64, **which: Any) -> Path:
    """Draw a cell, as `draw_cell` does, into a file whose folder need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_cell(label, size=size, **which).image).save(path, quality=95)
    return path


def place(root: Path, *names: str, mode: str = "RGB") -> Path:
    """Save a small picture, each of another colour, under each name below a folder; returns the folder."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (32, 32), (number, 90, 150, 255)[: len(mode)]).save(root / name)
    return root
