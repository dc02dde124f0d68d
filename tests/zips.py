"""Zips of pictures, for the tests of batches."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from leukoscope.web.upload import OWN_FOLDER


def png(side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(buffer, "PNG")
    return buffer.getvalue()


def upload_folder(cache: Path) -> Path:
    folder = cache / f"{OWN_FOLDER}1"
    folder.mkdir()
    return folder


def pack(path: Path, files: Mapping[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)
