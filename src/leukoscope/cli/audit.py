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
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.files import disk_errors
from leukoscope.progress import note, progress

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.data.splits import Split

FINDINGS_EXIT = 3  # 2 is that of a wrong flag


@options.takes_reading
def audit(
    folder: Annotated[
        Path | None, Argument(metavar="DIR", help="Folder that a data set was unpacked to, or your own.")
    ] = None,
    dataset_name: options.DatasetName = "",
    train_dir: options.TrainDir = None,
    reading: Reading = NO_FLAGS,
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

    --split_file may also be a split that Leukoscope did not write: a table with a column of sides, or a folder with a
    list or folder for each side. Then the audit checks its names and, with DIR, its pictures: it lists subjects and
    copies on several sides, and says what a metric on this split is worth.
    """
    from leukoscope.audit import survey_cells
    from leukoscope.data.folder import recognise
    from leukoscope.data.loading import load_cells
    from leukoscope.data.splits import load_split

    if split and split_file:
        raise ConfigError(f"--split {split} --split_file {split_file}: both give the split; leave one out")
    if split_file and split_file.suffix.lower() != ".json":  # of a `split.json` that Leukoscope wrote
        _check_published_split(split_file, folder or train_dir, dataset_name, reading, output, quick, as_json)
        return
    if quick and (split or split_file or output):
        raise ConfigError("--quick: decodes no image; leave out --split, --split_file and --output")
    names_images_once = bool(folder) != bool(dataset_name)
    if not names_images_once or (folder and train_dir):
        raise ConfigError(
            "leukoscope audit: give the images either as DIR, or as --dataset_name with or without --train_dir"
        )
    if folder:
        dataset_name = "imagefolder" if reading.given() else recognise(folder).name
    output = output or Path("audit-" + re.sub(r"[^\w.-]+", "-", dataset_name))
    try:
        data = load_cells(dataset_name, folder or train_dir, **vars(reading))
    except LeukoscopeError as error:
        if not folder:
            raise
        # The message names a flag, but the user gave DIR.
        raise DataError(str(error).removeprefix("--train_dir ")) from None
    survey = survey_cells(data)
    source = {"train_dir": folder or train_dir, **reading.given()}
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
    if quick:
        return
    chosen = None
    if split_file:
        chosen = load_split(split_file, data, disjoint=False)  # the audit reports subjects on two sides
    findings = _search(data, output, chosen, split)
    if as_json:
        typer.echo(json.dumps(findings, indent=1, ensure_ascii=False))
    else:
        _print_findings(findings, output)
    if findings["inflating"]:
        raise typer.Exit(FINDINGS_EXIT)


def _training_flags(dataset_name: str, source: Mapping[str, Any], split_flags: Sequence[str], recipe: str) -> list[str]:
    """The flags of `leukoscope train` for these cells."""
    flags = ["--dataset_name", dataset_name]
    for flag, argument in source.items():
        if argument:
            flags += [f"--{flag}"] if argument is True else [f"--{flag}", str(argument)]
    flags += split_flags
    if recipe:
        flags += ["--recipe", recipe]
    return flags


def _check_published_split(
    split_file: Path,
    folder: Path | None,
    dataset_name: str,
    reading: Reading,
    output: Path | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Check a split that Leukoscope did not write: by names and, with a folder and without --quick, by pictures."""
    from leukoscope.cli.split_check import print_report
    from leukoscope.data.folder import recognise
    from leukoscope.data.loading import load_cells
    from leukoscope.split_check import check_split, read_split, split_of_cells

    if folder and not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of the images, or leave it out to check names only")
    # The columns are those of the split.
    flags = {key: getattr(reading, key) for key in ("labels", "subject_pattern", "subject_folders")}
    if folder and not dataset_name and not any(flags.values()):
        dataset_name = recognise(folder).name
    report = check_split(split_file, dataset_name.replace("imagefolder", ""), **vars(reading))
    findings: dict[str, Any] = {}
    if folder and not quick:
        dataset_name = dataset_name or "imagefolder"
        output = output or Path(f"audit-{dataset_name}")
        data = load_cells(dataset_name, folder, **flags)
        rows = read_split(split_file, reading)
        split = split_of_cells(rows[rows["split"] == rows["split"].iloc[0]], data)
        for line in split.notes:
            note(line, err=True)
        findings = _search(data, output, split)
        if as_json:
            report["audit"] = findings
        else:
            _print_findings(findings, output)
    if as_json:
        typer.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print_report(report)
    if report["findings"] or findings.get("inflating"):
        raise typer.Exit(FINDINGS_EXIT)


def _search(data: LoadedCells, output: Path, split: Split | None, strategy: str | None = None) -> dict[str, Any]:
    """Open every image, search for copies across the sides of a split and for shortcuts, and write audit.json."""
    from leukoscope.audit import audit_cells, scan_cells
    from leukoscope.data.splits import make_split, own_split
    from leukoscope.models.release import write_json

    require_writable(output)
    if strategy:
        make_split(data, strategy)  # refuses one that cannot be drawn, before every image is opened
    data, scans = scan_cells(data)
    if strategy:
        split = make_split(data, strategy)
    with progress("searching for copies and shortcuts"):
        findings = audit_cells(data, scans, split=split or own_split(data))
    with disk_errors(f"--output {output}: cannot write there", "name another folder"):
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "audit.json", findings)
    return findings


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


def _print_findings(findings: Mapping[str, Any], output: Path) -> None:
    from leukoscope.evaluation.baselines import TRIVIAL_FEATURES
    from leukoscope.reports.tables import copies_table, shortcuts_table

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
    typer.echo(f"all findings: {output / 'audit.json'}\n{RESEARCH_NOTICE}")
