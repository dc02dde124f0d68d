"""`leukoscope demo`: the page of `app.py`, from wherever Leukoscope is installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    releases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of releases to offer (default: those that come along).")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of Hub ids to offer as well, one a line.")
    ] = None,
) -> None:
    """Open the demo on http://127.0.0.1:7860; GRADIO_SERVER_PORT names another port.

    It runs the very file that a checkout and a Space run.
    """
    from leukoscope.hub.shipped import shipped_file

    app = str(shipped_file("app.py"))
    named = {"--releases": releases, "--models": models}
    sys.argv = [app, *(word for flag, path in named.items() if path is not None for word in (flag, str(path)))]
    runpy.run_path(app, run_name="__main__")
