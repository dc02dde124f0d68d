"""`leukoscope push`: a release goes to the Hub, with its card rendered for where it will live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE


def push(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Release folder.")],
    hub_model_id: Annotated[
        str, typer.Option("--hub_model_id", metavar="ID", help="The repository, owner/name; made if need be.")
    ],
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Its branch (default: main); made if need be.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create_pr", help="Propose the release as a pull request instead of changing main.")
    ] = False,
    tag: Annotated[str, typer.Option(help="Name this version, like v1; a tag stays where it is.")] = "",
) -> None:
    """Publish a release on the Hugging Face Hub, in one commit; patients' pictures never travel.

    The card is rendered anew for that address. What the repository has already is not sent again, so a push that was
    interrupted is gone on with by the same command.
    """
    from leukoscope.hub.card import write_card
    from leukoscope.hub.contents import staying_files
    from leukoscope.hub.publish import Destination, publish

    to = Destination(hub_model_id, revision=revision, private=private, create_pr=create_pr, tag=tag)
    to.require_usable()
    write_card(release, hub_id=hub_model_id)
    if stay := staying_files(release):
        typer.echo(f"not published, for it is no part of a release: {', '.join(stay)}", err=True)
    typer.echo(f"published: {publish(release, to)}\n{RESEARCH_NOTICE}")
