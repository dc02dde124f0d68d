"""The command `leukoscope`, run in the tests' own process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from leukoscope.cli import app


def run(*words: object, columns: int = 200) -> Any:
    """The result of `leukoscope WORDS`: exit code, stdout and stderr."""
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(word) for word in words])
