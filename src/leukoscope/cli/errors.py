"""How a command names a file, and says in one line what went wrong: no traceback for what the user can fix."""

from __future__ import annotations

import os
from typing import Any

import typer
from typer.core import TyperGroup

from leukoscope import LeukoscopeError


class OneLineErrors(TyperGroup):
    """Ends a command in one line, without a traceback, for any problem the user can fix."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LeukoscopeError as error:
            say_error(error)
            raise typer.Exit(1) from None


def shown_name(name: str) -> str:
    """A file may be named in bytes that are no UTF-8, which no terminal and no PNG takes."""
    return os.fsencode(name).decode(errors="replace")


def say_error(error: Exception) -> None:
    """One line on stderr, never wrapped or coloured, so that it can be copied and searched."""
    typer.echo(f"error: {error}", err=True)
