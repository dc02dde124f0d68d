"""`python -m leukoscope …`, the same as the `leukoscope` command."""

from leukoscope.cli import app

app(prog_name="leukoscope")
