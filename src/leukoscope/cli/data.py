"""`leukoscope data …`: what a data set holds, what would inflate its metrics, and publishing it on the Hub."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import load_reported, print_table, require_writable, say
from leukoscope.files import disk_errors
from leukoscope.progress import progress

if TYPE_CHECKING:
    from leukoscope.data.inspection import FolderReport


def check(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder that a data set was unpacked to, or your own.")],
    subject_pattern: options.SubjectPattern = None,
    labels: options.Labels = None,
    as_json: options.AsJson = False,
) -> None:
    """Say which data set a folder holds, how many cells of each class and subject, and what is missing or odd.

    Reads names and file headers only; `leukoscope data audit` reads the images. Exit code: 0 the cells can be trained
    on, whatever problems are listed; 1 they cannot.
    """
    from leukoscope.data.inspection import LEAST_CELLS, inspect_folder
    from leukoscope.data.loading import PRELIMINARY_TEST

    report = inspect_folder(folder, subject_pattern=subject_pattern, labels=labels)
    info = report.info
    training = [cells for name, cells in report.partitions.items() if name != PRELIMINARY_TEST]
    fewest = min(sum(cells.get(label, 0) for cells in training) for label in info.labels)
    subjects = ["--subject_pattern", subject_pattern] if subject_pattern else []
    subjects += ["--labels", str(labels)] if labels else []
    flags = ["--dataset_name", info.name, "--train_dir", str(folder), *subjects, *report.split_flags]
    flags += ["--recipe", info.recipe] if info.recipe else []
    if as_json:
        found = {
            "dataset_name": info.name,
            "title": info.title,
            "licence": info.licence,
            "partitions": {name: dict(labels) for name, labels in report.partitions.items()},
            "subjects": {label: dict(cells) for label, cells in report.subjects.items()},
            "problems": list(report.problems),
            "flags": flags,
        }
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print_folder(report)
        typer.echo(f"look closer: leukoscope data audit {shlex.join([str(folder), *subjects])}")
        if fewest < LEAST_CELLS:
            typer.secho(f"cannot be trained on: a class has {fewest} cell(s)", fg="red", bold=True)
        else:
            typer.echo(f"train on it: leukoscope train {shlex.join(flags)}")
    if fewest < LEAST_CELLS:
        raise typer.Exit(1)


def _print_folder(report: FolderReport) -> None:
    info, rows = report.info, []
    typer.echo(info.title)
    for name, counts in sorted(report.partitions.items()):
        rows.append([name or "all", *(f"{counts.get(label, 0):,}" for label in info.labels)])
    print_table(["cells", *info.labels], rows)
    if any(report.subjects.values()):
        rows = []
        for label, cells in report.subjects.items():
            spread = [min(cells.values()), median(cells.values()), max(cells.values())] if cells else []
            rows.append([label, str(len(cells)), *(f"{number:,g}" for number in spread), *[""] * (3 - len(spread))])
        print_table(["class", "subjects", "cells of one: fewest", "median", "most"], rows)
    for problem in report.problems:
        typer.echo(f"problem: {problem}")
    typer.echo(f"licence: {info.licence}")


FINDINGS_EXIT = 3
"""Of `data audit`; 2 is that of a wrong flag."""


def audit(
    folder: Annotated[
        Path | None, Argument(metavar="DIR", help="Folder of the images, recognised as by `data check`.")
    ] = None,
    dataset_name: options.DatasetName = "",
    train_dir: options.TrainDir = None,
    subject_pattern: options.SubjectPattern = None,
    labels: options.Labels = None,
    split: Annotated[
        str | None,
        Option(
            "--split",
            metavar="NAME",
            help="Check the sides of this split of train (default: the data set's own, where it has some).",
        ),
    ] = None,
    split_file: Annotated[
        Path | None, Option("--split_file", metavar="FILE", help="Also check the sides of this split.json.")
    ] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="Default: audit-NAME in the current folder.")] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for what would inflate metrics: copies of a cell across subjects, classes or splits, shortcuts, odd files.

    Writes audit.json. Exit code: 0 nothing found that would inflate metrics; 1 or 2 the audit could not be made (no
    such folder, a wrong flag); 3 found: an image in two subjects, two classes or on two sides of a split, a subject in
    two classes, or a split that divides subjects. Copies that every split by subject (or by block) keeps on one side,
    known subject aliases among them, are listed but do not count; neither do odd images, nor shortcuts: where a
    feature outside the cell separates the classes far better than chance, the summary ends with a warning.
    """
    from leukoscope.audit import audit_cells, published_subjects, scan_cells
    from leukoscope.data.inspection import recognise
    from leukoscope.data.splits import load_split, make_split, own_split
    from leukoscope.models.release import write_json

    if split and split_file:
        raise LeukoscopeError(f"--split {split} --split_file {split_file}: both name the split; give one")
    if bool(folder) == bool(dataset_name) or (folder and train_dir):
        raise LeukoscopeError("leukoscope data audit: name the images, by DIR or by --dataset_name, not by both")
    if folder:
        dataset_name = "imagefolder" if subject_pattern or labels else recognise(folder).name
    output = output or Path("audit-" + re.sub(r"[^\w.-]+", "-", dataset_name))
    require_writable(output)
    try:
        data = load_reported(dataset_name, folder or train_dir, subject_pattern, labels)
    except LeukoscopeError as error:  # its message names the flag, which is not given beside DIR
        raise LeukoscopeError(str(error).removeprefix("--train_dir ") if folder else str(error)) from None
    # Both raise now rather than after every image is read; subjects on two sides are what the audit reports.
    chosen = load_split(split_file, data, disjoint=False) if split_file else None
    if split:
        make_split(data, split)
    seen = scan_cells(data)
    if chosen is None:
        chosen = make_split(seen.data, split) if split else own_split(seen.data)
    with progress("searching for copies and shortcuts"):
        findings = audit_cells(seen, subjects=published_subjects(seen.data, folder or train_dir), split=chosen)
    with disk_errors(f"--output {output}: cannot write there", "name another folder"):
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "audit.json", findings)
    if as_json:
        typer.echo((output / "audit.json").read_text(encoding="utf-8"))
    else:
        _print_summary(findings)
        typer.echo(f"all findings: {output / 'audit.json'}\n{RESEARCH_NOTICE}")
    if findings["inflating"]:
        raise typer.Exit(FINDINGS_EXIT)


def _print_summary(findings: Mapping[str, Any]) -> None:
    from leukoscope.audit import ODDITIES
    from leukoscope.evaluation.baselines import FEATURES
    from leukoscope.reports.release_tables import copies_table, shortcuts_table

    copies, measured = copies_table(findings), shortcuts_table(findings)
    print_table(copies.columns, copies.rows)
    for group in findings["subject_aliases"]["groups"]:
        shared = group["copies"]
        new = f"propose as subject_aliases; not joined yet: {', '.join(group['unjoined'])}"
        state = "already joined when loading" if group["known"] else new
        typer.echo(f"one subject: {' = '.join(group['subjects'])}, {shared} shared image(s); {state}")
    shortcuts = findings["shortcuts"]
    if measured.rows:
        chance = ["chance", f"{shortcuts['chance_balanced_accuracy']:.3f}", "–", "0.500"]
        print_table(["shortcut", *measured.columns[1:]], [*measured.rows, chance])
        for name, *_ in measured.rows:
            typer.echo(f"{name}: {FEATURES[name]}")
        typer.echo(f"not measured — {shortcuts['left_out']}")
    else:
        typer.echo(f"shortcuts not measured: {shortcuts['not_measured']}")
    odd = findings["odd_pictures"]
    typer.echo(f"odd images: {', '.join(f'{count} {name}' for name, count in odd['counts'].items())}")
    for name, meaning in ODDITIES.items():
        if found := [picture["cell"] for picture in odd["pictures"] if name in picture["why"]]:
            typer.echo(f"{name}: {meaning}, for example {found[0]}")
    if unreadable := findings["unreadable"]:
        typer.echo(f"{len(unreadable)} file(s) could not be read, for example {unreadable[0]}")
    for line in findings["inflating"]:
        typer.secho(f"inflates metrics: {line}", fg="red", bold=True)
    for line in findings["warnings"]:
        typer.secho(f"shortcut: {line}", fg="yellow", bold=True)
    if not (findings["inflating"] or findings["warnings"]):
        typer.secho("nothing found that would inflate metrics", fg="green")


def push(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder of a data set that we know, or your own.")],
    hub_id: Annotated[str, Argument(metavar="ID", help="The repository, owner/name; made if need be.")],
    licence: Annotated[
        str,
        Option(
            "--licence",
            "--license",
            metavar="ID",
            help="Of the cells, as the Hub names it, such as cc-by-4.0 (default: the data set's).",
        ),
    ] = "",
    citation: Annotated[
        str, Option(metavar="TEXT", help="How the cells are to be cited (default: the data set's).")
    ] = "",
    subject_pattern: options.SubjectPattern = None,
    labels: options.Labels = None,
    public: Annotated[bool, Option("--public", help="Show the data set to everybody (default: private).")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Publish the images of a folder as a data set on the Hugging Face Hub, private unless you say --public.

    All cells are audited first, and the card shows the findings. Subjects, the publisher's folds and the names of the
    cells are published; metadata of the image files are not. `leukoscope train --dataset_name ID` reads it from there.
    """
    from datasets import disable_progress_bars
    from huggingface_hub.utils import disable_progress_bars as disable_upload_bars

    from leukoscope.audit import audit_cells, published_subjects, scan_cells
    from leukoscope.data.loading import subject_rule
    from leukoscope.data.splits import own_split
    from leukoscope.hub.data_set import described, push_data_set, train_command
    from leukoscope.hub.publish import Destination, check_can_publish

    to = Destination(hub_id, private=not public, kind="dataset")
    to.require_usable()
    if subject_pattern is not None:
        subject_rule(subject_pattern)  # a bad pattern is refused before the Hub is asked
    own_subjects = subject_pattern is not None or labels is not None
    info = described(folder, licence=licence, citation=citation, own_subjects=own_subjects)
    disable_progress_bars()
    if quiet:
        disable_upload_bars()
    check_can_publish(to)
    seen = scan_cells(load_reported(info.name, folder, subject_pattern, labels))
    with progress("searching for copies and shortcuts"):
        findings = audit_cells(seen, subjects=published_subjects(seen.data, folder), split=own_split(seen.data))
    if not quiet:
        _print_summary(findings)
    cell = seen.data.rows[0]
    subject = f"subject {cell['subject']!r} and " if cell["subject"] else ""
    say(f"the Hub gets ids as they are, such as {subject}cell {cell['cell_id']!r}")
    published = push_data_set(seen, findings, info, to)
    typer.echo(f"published{' privately' if to.private else ''}: {published}")
    typer.echo(f"train on it: {train_command(seen, hub_id)}\n{RESEARCH_NOTICE}")
