"""Files that belong to the project but not into the package: the templates, app.py, train.py, requirements.txt."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from leukoscope import LeukoscopeError

_HOMES = (
    Path(__file__).parents[3],  # a checkout
    Path(sys.prefix) / "share" / "leukoscope",  # an installed wheel
)


def shipped_file(name: str) -> Path:
    """Where a file lies, by its path from the project's top.

    Raises:
        LeukoscopeError: neither the checkout nor the installed wheel holds it.
    """
    for home in _HOMES:
        if (home / name).is_file():
            return home / name
    raise LeukoscopeError(f"{_HOMES[0] / name}: the file is missing; restore it from the repository")


def embedded_releases() -> Path:
    """The folder whose sub-folders are the releases that come with Leukoscope."""
    return shipped_file("model_card/template.md").parent


def training_command() -> str:
    """What starts a training from the working folder, ready for a shell; the flags follow.

    Raises:
        LeukoscopeError: train.py is missing.
    """
    script, here = shipped_file("train.py"), Path.cwd()
    shown = script.relative_to(here) if script.is_relative_to(here) else script
    return f"accelerate launch {shlex.quote(str(shown))}"
