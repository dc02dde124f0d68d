"""`leukoscope audit`: is a data set fit to be measured on?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from leukoscope import RESEARCH_NOTICE, LeukoscopeError

if TYPE_CHECKING:
    from leukoscope.cells.loading import LoadedCells
    from leukoscope.cells.splits import Split

FINDINGS_EXIT = 2


class AuditCommand(TyperCommand):
    """Ends with 1, not with the usual 2, on a flag it does not know: scripts read 2 as findings."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            if getattr(error, "exit_code", None) == FINDINGS_EXIT:
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


def audit(
    dataset_name: Annotated[str, typer.Option("--dataset_name", metavar="NAME", help="Data set, as for train.py.")],
    train_dir: Annotated[
        Path | None, typer.Option("--train_dir", metavar="DIR", help="Folder that holds its pictures.")
    ] = None,
    subject_pattern: Annotated[
        str | None,
        typer.Option("--subject_pattern", metavar="REGEX", help="imagefolder: names a file's subject by its path."),
    ] = None,
    subject_csv: Annotated[
        Path | None,
        typer.Option("--subject_csv", metavar="FILE", help="imagefolder: CSV with the columns file,subject."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Also check the sides of this split of train.py.")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option("--split_file", metavar="FILE", help="Also check the sides of this split.json.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", metavar="DIR", help="Default: audit-NAME in the current folder.")
    ] = None,
) -> None:
    """Look for what would inflate figures: copies of a cell across subjects, classes and splits, shortcuts, odd files.

    Writes audit.json and audit.html. Exit code: 0 nothing found that would inflate figures; 1 the audit could not be
    made (a wrong flag, no such folder); 2 found: a picture in two subjects, two classes or on two sides of a split, a
    subject in two classes, or a split that divides subjects. Copies that every split by subject (or by block) keeps
    on one side, known subject aliases among them, are listed but do not count; neither do shortcuts and odd pictures.
    """
    from leukoscope.cells.loading import load_cells
    from leukoscope.evaluation.audit import audit_cells, published_subjects
    from leukoscope.evaluation.looks import look_at_cells

    choose = _chooser(split, split_file)
    data = load_cells(dataset_name, train_dir, subject_pattern=subject_pattern, subject_csv=subject_csv)
    typer.echo(data.report(), err=True)
    if split:
        # A split that cannot be drawn is said at once, not after every picture is read.
        choose(data)
    with _progress() as show:
        seen = look_at_cells(data, progress=show)
    subjects = published_subjects(seen.data, train_dir)
    findings = audit_cells(seen, subjects=subjects, split=choose(seen.data))
    folder = output_dir or Path("audit-" + re.sub(r"[^\w.-]+", "-", dataset_name))
    page = _write(folder, findings, seen)
    _print_summary(findings)
    typer.echo(f"page: {page}\n{RESEARCH_NOTICE}")
    if findings["inflating"]:
        raise typer.Exit(FINDINGS_EXIT)


def _chooser(split: str | None, split_file: Path | None) -> Callable[[LoadedCells], Split | None]:
    from leukoscope.cells.splits import load_split, make_split

    if split and split_file:
        raise LeukoscopeError(f"--split {split} --split_file {split_file}: both name the split; give one")
    if split_file:
        return lambda data: load_split(split_file, data)
    return lambda data: make_split(data, split) if split else None


def _progress() -> Any:
    """A context whose value is called with (done, total) and draws a bar on stderr."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def shown() -> Any:
        with Progress(console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task("looking at pictures", total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)

    return shown()


def _write(folder: Path, findings: Mapping[str, Any], seen: Any) -> Path:
    from leukoscope.evaluation.audit_page import write_audit_page
    from leukoscope.models.release_files import write_json

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "audit.json", findings)
        return write_audit_page(folder / "audit.html", findings, seen)
    except OSError as error:
        raise LeukoscopeError(
            f"--output_dir {folder}: cannot write there ({error.strerror or error}); name another folder"
        ) from None


def _print_summary(findings: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leukoscope.evaluation.audit_page import copy_rows, figure_cells

    console = Console(highlight=False)
    table = Table("copies", "identical", "near-identical")
    kinds = [findings["duplicates"][kind] for kind in ("identical", "near")]
    for name, words in copy_rows(findings):
        table.add_row(words, *(f"{kind[name]:,}" for kind in kinds))
    console.print(table)
    for group in findings["subject_aliases"]["groups"]:
        shared = sum(link["identical"] + link["near"] for link in group["links"])
        new = f"propose as subject_aliases; not joined yet: {', '.join(group['unjoined'])}"
        state = "already joined when loading" if group["known"] else new
        console.print(Text(f"one person: {' = '.join(group['subjects'])}, {shared} shared picture(s); {state}"))
    shortcuts = findings["shortcuts"]
    if "features" in shortcuts:
        table = Table("shortcut", "balanced accuracy", "weighted F1", "AUROC")
        for name, figures in shortcuts["features"].items():
            table.add_row(name, *figure_cells(figures))
        console.print(table)
    else:
        console.print(Text(f"shortcuts not measured: {shortcuts['not_measured']}"))
    odd = findings["odd_pictures"]["counts"]
    console.print(Text(f"odd pictures: {', '.join(f'{count} {name}' for name, count in odd.items())}"))
    for line in findings["inflating"]:
        console.print(Text(f"inflates figures: {line}", "bold red"))
    if not findings["inflating"]:
        console.print(Text("nothing found that would inflate figures", "green"))
