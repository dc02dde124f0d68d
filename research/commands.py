"""What the programs of this folder share: flags of their own before those of train.py, and errors of one line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable

from leukoscope import LeukoscopeError
from leukoscope.progress import print_notes


def make_parser(module: str, description: str | None) -> ArgumentParser:
    """A parser for `python -m research.<module>`; what it does not know is for the parser of train.py."""
    first = (description or "").strip().splitlines()[0]
    return ArgumentParser(prog=f"python -m research.{module}", description=first, allow_abbrev=False)


def run(main: Callable[[], None]) -> None:
    """Run a program; an error that its user can mend ends it in one line."""
    print_notes()
    try:
        main()
    except LeukoscopeError as error:
        sys.exit(f"error: {error}")
