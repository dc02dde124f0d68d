"""`leukoscope audit`: what a folder or data set holds, and what would inflate the metrics of a model trained on it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import print_table, require_writable
from leukoscope.files import disk_errors
from leukoscope.progress import progress

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells

FINDINGS_EXIT = 3  # 2 is that of a wrong flag


def audit(
    folder: Annotated[
        Path | None, Argument(metavar="DIR", help="Folder that a data set was unpacked to, or your own.")
    ] = None,
    dataset_name: options.DatasetName = "",
    train_dir: options.TrainDir = None,
    subject_pattern: options.SubjectPattern = None,
    labels: options.Labels = None,
    label_column_name: options.LabelColumn = "label",
    split: options.Split = None,
    split_file: options.SplitFile = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="Default: audit-NAME in the current folder.")] = None,
    quick: Annotated[bool, Option("--quick", help="Only count and check the layout; decode no image.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Count cells and check the layout, then search for copies across subjects, classes or splits, and for shortcuts.

    Opens every image and writes audit.json. Exit code 0: the audit found nothing that inflates metrics. 1 or 2: the
    audit failed. 3: it found an image in two subjects, in two classes or on two sides of a split (by default the data
    set's own), a subject in two classes, or a split that divides subjects. Two findings do not change the exit code:
    copies that every split by subject keeps on one side, and features outside the cell that separate the classes; the
    summary ends with a warning about these features.

    --split_file may also be a split that Leukoscope did not write: a table, lists, a folder or row numbers. Then the
    audit checks its names and, with DIR, its pictures: it lists subjects and copies on several sides, and says what a
    metric on this split is worth.
    """
    from leukoscope.audit import survey_cells
    from leukoscope.data.folder import recognise
    from leukoscope.data.loading import load_cells
    from leukoscope.data.split_lists import is_own_split

    if split and split_file:
        raise ConfigError(f"--split {split} --split_file {split_file}: both give the split; leave one out")
    if split_file and not is_own_split(split_file):
        reading = {"subject_pattern": subject_pattern, "labels": labels, "label_column_name": label_column_name}
        _check_published_split(split_file, folder or train_dir, dataset_name, reading, output, quick, as_json)
        return
    if quick and (split or split_file or output):
        raise ConfigError("--quick: decodes no image; leave out --split, --split_file and --output")
    names_images_once = bool(folder) != bool(dataset_name)
    if not names_images_once or (folder and train_dir):
        raise ConfigError(
            "leukoscope audit: give the images either as DIR, or as --dataset_name with or without --train_dir"
        )
    names_label_column = label_column_name != "label"
    if folder and (subject_pattern or labels or names_label_column):
        dataset_name = "imagefolder"
    elif folder:
        dataset_name = recognise(folder).name
    output = output or Path("audit-" + re.sub(r"[^\w.-]+", "-", dataset_name))
    if not quick:
        require_writable(output)
    source: dict[str, Any] = {"train_dir": folder or train_dir, "subject_pattern": subject_pattern, "labels": labels}
    try:
        data = load_cells(dataset_name, label_column_name=label_column_name, **source)
    except LeukoscopeError as error:
        if not folder:
            raise
        # The message names a flag, but the user gave DIR.
        raise DataError(str(error).removeprefix("--train_dir ")) from None
    survey = survey_cells(data)
    if names_label_column:
        source["label_column_name"] = label_column_name
    flags = _training_flags(dataset_name, source, survey["split_flags"], data.info.recipe)
    if not as_json:
        _print_survey(survey, data.info.labels)
    elif quick:
        typer.echo(json.dumps(survey | {"flags": flags}, indent=1, ensure_ascii=False))
    fewest = survey["fewest_cells"]
    if fewest < 2:  # one to train on and one to test on
        raise DataError(f"a classifier cannot be trained on these cells: a class has {fewest} cell(s); gather more")
    if not as_json:
        typer.echo(f"to train on these cells: leukoscope train {shlex.join(flags)}")
    if not quick:
        _search(data, output, split, split_file, as_json=as_json)


def _training_flags(dataset_name: str, source: Mapping[str, Any], split_flags: Sequence[str], recipe: str) -> list[str]:
    """The flags of `leukoscope train` for these cells."""
    flags = ["--dataset_name", dataset_name]
    for flag, argument in source.items():
        if argument:
            flags += [f"--{flag}", str(argument)]
    flags += split_flags
    if recipe:
        flags += ["--recipe", recipe]
    return flags


def _check_published_split(
    split_file: Path,
    folder: Path | None,
    dataset_name: str,
    reading: dict[str, Any],
    output: Path | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Check a split that Leukoscope did not write: by names and, with a folder and without --quick, by pictures."""
    from leukoscope.cli.split_check import compare_pictures, print_report, read_lists
    from leukoscope.data.folder import recognise
    from leukoscope.data.loading import load_cells
    from leukoscope.split_check import check_split

    lists = read_lists(split_file, folder)
    report = check_split(lists, dataset_name, subject_pattern=reading["subject_pattern"])
    if folder and not quick:
        has_table = reading["subject_pattern"] or reading["labels"]
        dataset_name = dataset_name or ("imagefolder" if has_table else recognise(folder).name)
        data = load_cells(dataset_name, train_dir=folder, **reading)
        report = compare_pictures(report, lists, data, output or Path(f"audit-{dataset_name}"))
    print_report(report, as_json=as_json)
    if report["findings"]:
        raise typer.Exit(FINDINGS_EXIT)


def _search(data: LoadedCells, output: Path, split: str | None, split_file: Path | None, *, as_json: bool) -> None:
    """Check the split, open every image, write audit.json and print the findings."""
    from leukoscope.audit import audit_cells, scan_cells
    from leukoscope.data.splits import load_split, make_split, own_split
    from leukoscope.models.release import write_json

    chosen = None
    if split_file:
        chosen = load_split(split_file, data, disjoint=False)  # the audit reports subjects on two sides
    if split:
        make_split(data, split)  # refuses one that cannot be drawn, before every image is opened
    data, scans = scan_cells(data)
    if chosen is None and split:
        chosen = make_split(data, split)
    elif chosen is None:
        chosen = own_split(data)
    with progress("searching for copies and shortcuts"):
        findings = audit_cells(data, scans, split=chosen)
    with disk_errors(f"--output {output}: cannot write there", "name another folder"):
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "audit.json", findings)
    if as_json:
        typer.echo((output / "audit.json").read_text(encoding="utf-8"))
    else:
        _print_findings(findings)
        typer.echo(f"all findings: {output / 'audit.json'}\n{RESEARCH_NOTICE}")
    if findings["inflating"]:
        raise typer.Exit(FINDINGS_EXIT)


def _print_survey(survey: Mapping[str, Any], labels: Sequence[str]) -> None:
    typer.echo(survey["title"])
    rows = []
    for name, counts in sorted(survey["partitions"].items()):
        rows.append([name or "all", *(f"{counts[label]:,}" for label in labels)])
    print_table(["cells", *labels], rows)
    if any(survey["subjects"].values()):
        rows = []
        for label, cells in survey["subjects"].items():
            spread = ["", "", ""]
            if cells:
                numbers = list(cells.values())
                spread = [f"{number:,g}" for number in (min(numbers), median(numbers), max(numbers))]
            rows.append([label, str(len(cells)), *spread])
        print_table(["class", "subjects", "cells of one: fewest", "median", "most"], rows)
    for name, lines in (("problem", survey["problems"]), ("known", survey["known"]), ("licence", [survey["licence"]])):
        for line in lines:
            typer.echo(f"{name}: {line}")
    if survey["citation"]:
        typer.echo(f"cite: {survey['citation']}")


def _print_findings(findings: Mapping[str, Any]) -> None:
    from leukoscope.evaluation.baselines import TRIVIAL_FEATURES
    from leukoscope.reports.release_tables import copies_table, shortcuts_table

    copies = copies_table(findings)
    measured = shortcuts_table(findings)
    print_table(copies.columns, copies.rows)
    typer.echo(f"this search does not find {findings['duplicates']['not_found']}")
    for group in findings["subject_aliases"]:
        names = " = ".join(group["subjects"])
        state = "loading joins them already"
        if not group["known"]:
            state = f"not joined yet: {', '.join(group['unjoined'])}; add them to subject_aliases"
        typer.echo(f"one subject: {names}, {group['copies']} shared image(s); {state}")
    shortcuts = findings["shortcuts"]
    if measured.rows:
        chance = ["chance", f"{shortcuts['chance_balanced_accuracy']:.3f}", "–", "0.500"]
        print_table(["shortcut", *measured.columns[1:]], [*measured.rows, chance])
        for name, *_ in measured.rows:
            typer.echo(f"{name}: {TRIVIAL_FEATURES[name]}")
        typer.echo(f"not measured: {shortcuts['left_out']}")
    else:
        typer.echo(f"shortcuts not measured: {shortcuts['not_measured']}")
    blank = findings["blank"]
    if blank:
        typer.echo(f"{len(blank)} image(s) show nothing, for example {blank[0]}")
    unreadable = findings["unreadable"]
    if unreadable:
        typer.echo(f"{len(unreadable)} file(s) could not be read, for example {unreadable[0]}")
    for line in findings["inflating"]:
        typer.secho(f"inflates metrics: {line}", fg="red", bold=True)
    for line in findings["warnings"]:
        typer.secho(f"shortcut: {line}", fg="yellow", bold=True)
    if not (findings["inflating"] or findings["warnings"]):
        typer.secho("nothing found that would inflate metrics", fg="green")
