"""`leukoscope space`: the demo as a folder that a Hugging Face Space runs, and, when told to, on the Hub."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE


def space(
    model: Annotated[
        list[str], typer.Option(metavar="ID", help="A model to offer, owner/name[@revision]; repeat for more.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; an earlier Space in it is replaced.")],
    title: Annotated[str, typer.Option(help="Of the Space's page.")] = "Leukoscope",
    push: Annotated[str, typer.Option(metavar="ID", help="Put it on the Hub as the Space owner/name.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
) -> None:
    """Build the demo as a Hugging Face Space that pulls its models from the Hub.

    Nothing is uploaded without --push. A model named without a revision is followed: the Space offers whatever its main
    branch holds when it starts.
    """
    from leukoscope.hub.space import find_model, push_space, write_space

    folder = write_space([find_model(name) for name in dict.fromkeys(model)], out, title=title)
    typer.echo(f"space: {folder} (try it: cd {shlex.quote(str(folder))} && python app.py)")
    if push:
        words = ["leukoscope", "space", *(word for name in model for word in ("--model", name)), "--out", str(out)]
        words += ["--title", title] * (title != "Leukoscope") + ["--push", push] + ["--private"] * private
        typer.echo(f"published: {push_space(folder, push, private=private, again=shlex.join(words))}")
    typer.echo(RESEARCH_NOTICE)
