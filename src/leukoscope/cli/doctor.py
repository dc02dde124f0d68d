"""`leukoscope doctor`: is everything here that Leukoscope needs, and if not, what is the next step?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE, __version__

_COLOURS = {"good": "green", "advice": "yellow", "broken": "bold red"}


def doctor(
    releases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of releases to try (default: those that come along).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Look at versions, device, caches, disk, network and releases, and name the next step for what is wrong.

    Exit code: 0 all works, though there may be advice; 1 something is broken.
    """
    from leukoscope.hub.doctor import examine, worst
    from leukoscope.hub.shipped import embedded_releases

    findings = list(examine(releases or embedded_releases()))
    if as_json:
        said = {"version": __version__, "state": worst(findings), "findings": [vars(finding) for finding in findings]}
        typer.echo(json.dumps(said | {"notice": RESEARCH_NOTICE}, indent=1))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console, table = Console(highlight=False), Table("looked at", "state", "seen")
        for finding in findings:
            table.add_row(
                finding.name, Text(finding.state, _COLOURS[finding.state]), Text(finding.seen, overflow="fold")
            )
        console.print(table)
        for finding in findings:
            if finding.next_step:
                # Not wrapped: a command is there to be copied.
                typer.echo(f"{finding.name}, next step: {finding.next_step}")
        typer.echo(RESEARCH_NOTICE)
    if worst(findings) == "broken":
        raise typer.Exit(1)
