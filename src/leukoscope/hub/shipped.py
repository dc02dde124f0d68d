"""Files that belong to the project but not into the package: the templates, the app and the list of requirements."""

from __future__ import annotations

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
