"""`leukoscope demo`: what app.py does, under the command's name."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from leukoscope import LeukoscopeError
from leukoscope.files import resource_file


def demo(
    releases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of releases to offer (default: those that come along).")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of Hub ids to offer as well, one per line.")
    ] = None,
) -> None:
    """Open the demo on http://127.0.0.1:7860; GRADIO_SERVER_PORT names another port."""
    if not find_spec("gradio"):
        raise LeukoscopeError("the demo needs gradio, which is missing; pip install 'leukoscope[demo]'")
    app = runpy.run_path(str(resource_file("app.py")))
    app["run"](releases, models)
