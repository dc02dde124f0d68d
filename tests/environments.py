"""Environments that borrow this one's packages, by links: made in a second, without an index."""

from __future__ import annotations

import sysconfig
import venv
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def borrowing(environment: Path, wanted: Callable[[str], bool]) -> Path:
    """Make an environment with what is wanted of this one's site-packages, by name; returns its `bin`."""
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        # This environment's own, editable Leukoscope stays out of sight, too.
        if not path.name.startswith("leukoscope-") and path.suffix != ".pth" and wanted(path.name):
            (site / path.name).symlink_to(path)
    return environment / "bin"


def required(lines: Iterable[str]) -> set[str]:
    """What the packages of requirement lines, and those that they require, have in site-packages."""
    asked, seen, names = [Requirement(line) for line in lines], set[str](), set[str]()
    while asked:
        one = asked.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        found = distribution(one.name)
        names |= {file.parts[0] for file in found.files or ()}
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in one.extras or {""}):
                asked.append(needed)
    return names
