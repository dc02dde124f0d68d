"""Writing a file so that it is there whole or not at all; every room that writes text does it here."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write text aside, then rename: a reader, or a killed process, never leaves or meets half a file.

    Returns:
        `path`.

    Raises:
        OSError: the disk refuses; an older file of that name is untouched.
    """
    # By process, because two that decode the same cells may finish together.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text)
    aside.replace(path)
    return path
