"""How a command says what went wrong: one line on stderr, never a traceback for a problem the user can fix."""

from __future__ import annotations

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


def say_error(error: Exception) -> None:
    """One line on stderr, never wrapped or coloured, so that it can be copied and searched."""
    typer.echo(f"error: {error}", err=True)
