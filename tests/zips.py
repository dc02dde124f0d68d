"""Pictures as files and zips of them, for the tests of the demo."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from leukoscope.reports.formatting import encoded
from leukoscope.synthetic import draw_cell
from leukoscope.web.upload import OWN_FOLDER


def png(side: int = 32) -> bytes:
    return encoded(Image.new("RGB", (side, side), "white"), "PNG")


def cell_png(label: str = "ALL", subject: int = 0, cell: int = 0, **options: Any) -> bytes:
    return encoded(Image.fromarray(draw_cell(label, subject=subject, cell=cell, **options).image), "PNG")


def upload_folder(cache: Path) -> Path:
    folder = cache / f"{OWN_FOLDER}1"
    folder.mkdir(exist_ok=True)
    return folder


def pack(path: Path, files: Mapping[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)
