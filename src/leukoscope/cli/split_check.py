"""`leukoscope audit --split_file` of a split that Leukoscope did not write: who and what is on both sides of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli.options import print_table


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report as lines."""
    title = report["data"]["title"] if report["data"] else "no known data set"
    typer.echo(f"{report['split_file']}: {report['images']:,} images; {title}")
    rows = []
    for split in report["sides"]:
        for side, counts in split.items():
            if side != "name":
                classes = ", ".join(f"{label} {count:,}" for label, count in counts["classes"].items())
                rows.append([split["name"], side, f"{counts['images']:,}", f"{counts['subjects']:,}", classes or "–"])
    print_table(["split", "side", "images", "subjects", "classes"], rows)
    if report["without_subject"]:
        typer.echo(f"{report['without_subject']:,} names do not give a subject: their people are not compared")
    for finding in report["findings"]:
        typer.secho(f"found: {finding['sentence']}", fg="red", bold=True)
    if not report["findings"]:
        typer.secho("found nothing on two sides", fg="green")
    typer.echo(f"\n{report['worth']}\n\nFor a review:\n{report['review']}\n\n{RESEARCH_NOTICE}")
