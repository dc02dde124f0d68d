"""`leukoscope audit --split_file` of a split that Leukoscope did not write: who and what is on both sides of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leukoscope import RESEARCH_NOTICE, DataError
from leukoscope.cli.options import print_table, require_writable
from leukoscope.files import disk_errors
from leukoscope.progress import progress

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.data.split_lists import SplitLists


def read_lists(split_file: Path, folder: Path | None) -> SplitLists:
    """The names on each side; row numbers count from the sorted names of the images of a folder."""
    from leukoscope.data.layouts import ImageFolder
    from leukoscope.data.split_lists import read_split_lists

    files: list[str] = []
    if folder:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; give the folder of the images, or leave it out to check names only"
            )
        files = [path.relative_to(folder).as_posix() for path in ImageFolder.read(folder).images]
    return read_split_lists(split_file, files)


def compare_pictures(report: dict[str, Any], lists: SplitLists, data: LoadedCells, output: Path) -> dict[str, Any]:
    """Open every image of the data, search for copies across the split's sides, and write audit.json."""
    from leukoscope.audit import audit_cells, scan_cells
    from leukoscope.data.split_lists import sides_of_cells
    from leukoscope.data.splits import Split
    from leukoscope.models.release import write_json
    from leukoscope.split_check import with_pictures

    require_writable(output)
    published = lists.splits[0]
    data, scans = scan_cells(data)
    sides, unmatched = sides_of_cells(published, data.rows["cell_id"][:])
    if not any(sides.values()):
        raise DataError(
            f"--split_file {lists.source}: none of its images is in this folder, for example {unmatched[0]}; give the "
            "folder of the images that it splits"
        )
    split = Split(
        "given", "cell", 0, data.fingerprint, sides["train"], sides["validation"], sides["test"], published.name
    )
    with progress("searching for copies"):
        findings = audit_cells(data, scans, split=split)
    report = with_pictures(report, findings, unmatched)
    with disk_errors(f"--output {output}: cannot write there", "name another folder"):
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "audit.json", findings)
        write_json(output / "split_check.json", report)
    return report


def print_report(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a report as JSON or as lines."""
    if as_json:
        typer.echo(json.dumps(report, indent=1, ensure_ascii=False))
        return
    title = "no known data set"
    if report["data"]:
        title = report["data"]["title"]
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
    pictures = report.get("pictures")
    if pictures:
        missing = pictures["names_without_picture"]
        left_out = ""
        if missing:
            left_out = f"; {missing:,} names of the split have no image there"
        typer.echo(f"{pictures['compared']:,} pictures compared{left_out}")
    for finding in report["findings"]:
        typer.secho(f"found: {finding['sentence']}", fg="red", bold=True)
    if not report["findings"]:
        typer.secho("found nothing on two sides", fg="green")
    typer.echo(f"\n{report['worth']}\n\nFor a review:\n{report['review']}\n\n{RESEARCH_NOTICE}")
