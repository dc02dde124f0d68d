"""`leukoscope predict`, `score` and `patient`: a release applied to files, to any number of cells, to subjects."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import end_with, open_predictor, print_table, release_warnings
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.files import atomic_file, disk_errors
from leukoscope.progress import note, shown_name, track

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.inference.prediction import Prediction
    from leukoscope.inference.subject import SubjectPrediction
    from leukoscope.models.release import ReleaseInfo

MOST_EXPLAINED = 20  # files, in the table's notes


def predict(
    model: options.Model,
    images: Annotated[list[Path], Argument(metavar="IMG", help="Image files, or folders of them.")],
    explain: Annotated[
        Path | None,
        Option(
            "--explain",
            metavar="DIR",
            help="Write each prediction's map over its image to this folder; older ones there are replaced.",
        ),
    ] = None,
    tta: Annotated[
        bool, Option("--tta", help="Test-time augmentation: average over eight rotations and flips of the image.")
    ] = False,
    backend: options.Backend = "",
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Classify images of single cells with a release."""
    from leukoscope.data.images import UnreadableImage
    from leukoscope.inference.prediction import NO_MAP

    files, problems = image_paths(images)
    predictor = open_predictor(model, backend, device, precision)
    rows = []
    taken = {file_key(file) for file in files}
    predictions = predictor.iter_predictions(files, explain=explain is not None, tta=tta)
    for prediction in track(predictions, "predicting cells", len(files)):
        if isinstance(prediction, UnreadableImage):
            problems.append(prediction)
            continue
        row = prediction.to_dict()
        if explain is not None and prediction.heatmaps is not None:
            row["overlay"] = str(_save_overlay(prediction, explain, taken))
        rows.append(row)

    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_predictions(rows, predictor.labels, release_warnings(predictor))
    if explain is not None and rows and not any("overlay" in row for row in rows):
        typer.echo(f"{model}: {NO_MAP}; nothing is written to {explain}", err=True)
    end_with(problems)


def image_paths(named: Sequence[Path]) -> tuple[list[Path], list[LeukoscopeError]]:
    """List the given files and those in the given folders, with a problem for each folder without an image."""
    from leukoscope.data.images import IMAGE_SUFFIXES, UnreadableImage
    from leukoscope.data.layouts import ImageFolder

    files: list[Path] = []
    problems: list[LeukoscopeError] = []
    for path in named:
        # `Path.is_dir` raises where a folder above may not be entered.
        if not os.path.isdir(path):
            files.append(path)
            continue
        folder = ImageFolder.read(path)
        if folder.left_out:
            note(f"{path}: {folder.left_out}", err=True)
        files += folder.images
        if not folder.images:
            kinds = ", ".join(IMAGE_SUFFIXES)
            problems.append(UnreadableImage(f"{path}: this folder holds no image ({kinds}); name another"))
    return files, problems


def _print_predictions(rows: Sequence[dict[str, Any]], labels: Sequence[str], warnings: Sequence[str]) -> None:
    from leukoscope.inference.prediction import NUM_VIEWS, WITHOUT_CLASS

    columns = ["file", "outcome", *labels, "ms"]
    if rows[0]["agreeing_views"]:
        columns.append("agreeing views")
    table_rows = []
    for row in rows:
        shares = [f"{row['probabilities'][label]:.4f}" for label in labels]
        cells = [shown_name(row["source"]), row["outcome"], *shares, f"{row['seconds'] * 1000:.0f}"]
        table_rows.append([*cells, f"{row['agreeing_views']} of {NUM_VIEWS}"][: len(columns)])
    print_table(columns, table_rows, texts=2)
    overlays = [row["overlay"] for row in rows if "overlay" in row]
    lines = []
    if overlays:
        lines.append(f"maps: {Path(overlays[0]).parent} ({len(overlays)} picture(s))")
        lines += {row["map_check"]["text"] for row in rows if "overlay" in row}
    lines += _reasons(rows)
    if any(row["outcome"] in WITHOUT_CLASS for row in rows):
        lines.append("Without a class these probabilities are no result.")
    model = rows[0]["model"]
    revision = rows[0]["revision"]
    lines.append(f"model: {model}@{revision}" if revision else f"model: {model} (local files)")
    typer.echo("\n".join((*lines, *warnings, RESEARCH_NOTICE)))


def _reasons(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Explain why files got no class, a line each; of many files, count the reasons."""
    explained = [row for row in rows if row["reasons"]]
    if len(explained) > MOST_EXPLAINED:
        counts = Counter(reason["code"] for row in explained for reason in row["reasons"])
        yield "; ".join(f"{code}: {files} files" for code, files in counts.items()) + " (--json gives the numbers)"
    else:
        for row in explained:
            yield f"{shown_name(Path(row['source']).name)}: {' '.join(reason['text'] for reason in row['reasons'])}"
    for row in rows:
        if any(reason["code"] == "field_of_view" for reason in row["reasons"]):
            names = shlex.join(shown_name(row[key]) for key in ("model", "source"))
            yield f"if it is a smear, to find and classify its cells: leukoscope smear {names}"
            break


def _save_overlay(prediction: Prediction, folder: Path, taken: set[str]) -> Path:
    """Save the most probable class's map over its image; replaces the map of an earlier run."""
    from leukoscope.inference.smear import with_caption
    from leukoscope.models.release import public_name

    label = prediction.most_probable
    # A class may be called "Pro-B/early": only what every file system takes goes into the name.
    safe_label = re.sub(r"[^\w.-]+", "_", label)
    stem = shown_name(Path(prediction.source).stem)
    path = numbered(folder / f"{stem}-{safe_label}.png", taken)
    model = public_name(prediction.model, prediction.revision)
    check = prediction.map_check
    title = f"{check.name[0].upper()}{check.name[1:]} for {label} ({prediction.probabilities[label]:.4f}) by {model}"
    save_png(with_caption(prediction.overlay(), f"{title}. {check.text}"), path, title)
    return path


def save_png(image: Image, path: Path, title: str) -> None:
    """Write a PNG that carries its title and the research notice."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_itxt("Title", title)
    texts.add_itxt("Disclaimer", RESEARCH_NOTICE)
    with disk_errors(f"{path.parent}: cannot write there", "name another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=texts)


def file_key(path: Path) -> str:
    """A key that is equal for two paths that a file system without upper and lower case takes for one file."""
    # Not `Path.resolve`, which fails for a circle of links.
    return os.path.realpath(path).casefold()


def numbered(path: Path, taken: set[str]) -> Path:
    """Return the path, with a number if its `file_key` is in `taken`; adds the key of the returned path to `taken`."""
    names = chain([path], (path.with_stem(f"{path.stem}-{n}") for n in count(2)))
    chosen = next(name for name in names if file_key(name) not in taken)
    taken.add(file_key(chosen))
    return chosen


@options.takes_reading
def score(
    model: options.Model,
    source: Annotated[
        str,
        Option("--input", metavar="SOURCE", help="Folder of images; or CSV or Parquet with a column of their paths."),
    ],
    output: Annotated[Path, Option(metavar="FILE", help="Table to write, one row per cell (.parquet or .csv).")],
    reading: Reading = NO_FLAGS,
    backend: options.Backend = "",
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    ray: Annotated[
        str | None,
        Option(metavar="ADDRESS", help="Score on Ray: the address of a cluster, or `local` for one process per core."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Predict for any number of cells; the same command again resumes an interrupted run.

    Exit code: 1 where a file could not be read, as for predict; the table holds all others.
    """
    from leukoscope.data.images import filled_note
    from leukoscope.inference.scoring import check_output, open_source, score_cells, unreadable_list

    check_output(output)
    score_on_ray = None
    if ray is not None:
        from leukoscope.inference import ray_scoring

        settings = {"backend": backend, "device": device, "precision": precision}
        score_on_ray = partial(ray_scoring.score_missing, address=ray, model=model, settings=settings)
    cells = open_source(source, reading)
    note(cells.report, err=True)
    predictor = open_predictor(model, backend, device, precision)
    scored = score_cells(predictor, cells, output, batch_size=batch_size, score_missing=score_on_ray)
    without_class = {"out of distribution or no cell": scored.refused, "abstained from": scored.abstained}
    listed = "".join(f", {number:,} {reason}" for reason, number in without_class.items() if number)
    lines = (f"{scored.cells:,} cells scored{listed}: {output}", *release_warnings(predictor), RESEARCH_NOTICE)
    typer.echo("\n".join(lines))
    note(filled_note(scored.transparent, scored.cells, predictor.release.blank_rgb), err=True)
    if scored.unreadable:
        typer.echo(f"{scored.unreadable:,} file(s) could not be read: {unreadable_list(output)}", err=True)
        raise typer.Exit(1)


@options.takes_reading
def patient(
    model: options.Model,
    source: Annotated[
        str,
        Argument(
            metavar="SOURCE",
            help="Folder of one subject's cells, or of several people's with --subject_folders; or a table (CSV or "
            "Parquet) with a column of subjects.",
        ),
    ],
    reading: Reading = NO_FLAGS,
    backend: options.Backend = "",
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict for each subject, from the images of that subject's cells."""
    from leukoscope.inference.scoring import open_source
    from leukoscope.inference.subject import predict_subjects

    cells = open_source(source, reading)
    predictor = open_predictor(model, backend, device, precision)
    subjects, unreadable = predict_subjects(predictor, cells)
    note(cells.report, err=True)
    if len(subjects) == 1 and not subjects[0].subject and Path(source).is_dir():
        subjects = [replace(subjects[0], subject=shown_name(Path(source).resolve().name))]
    if as_json:
        typer.echo(json.dumps([subject.to_dict() for subject in subjects], indent=1))
    else:
        _print_subjects(subjects, predictor.release)
    end_with(unreadable)


def _print_subjects(subjects: list[SubjectPrediction], release: ReleaseInfo) -> None:
    from leukoscope.models.metrics import Interval
    from leukoscope.reports.tables import share, span

    rows = []
    for subject in subjects:
        figures = (share(None), span(None))
        if subject.is_result and subject.interval:
            low, high = subject.interval
            figures = (share(subject.probability), span(Interval(low=low, high=high)))
        counts = map(str, (subject.cells, subject.refused, subject.abstained))
        rows.append([shown_name(subject.subject), subject.outcome, *figures, *counts])
    positive = subjects[0].positive_label
    print_table(["subject", "outcome", positive, "95 % interval", "cells", "refused", "abstained"], rows, texts=2)
    for outcome in dict.fromkeys(subject.outcome for subject in subjects if subject.reason):
        first, *others = (subject for subject in subjects if subject.outcome == outcome)
        likewise = ""
        if others:
            likewise = f"; likewise {len(others)} more"
        typer.echo(f"{shown_name(first.subject)}: {outcome}: {first.reason}{likewise}")
    trained_on = {subject for training in release.metrics.trainings for subject in training.subjects}
    known = [subject.subject for subject in subjects if subject.subject in trained_on]
    if known:
        typer.echo(f"It was trained on people called {', '.join(known)}: if these are the same, this is no test.")
    typer.echo(f"rule: {subjects[0].rule.text}")
    typer.echo("The interval covers only this subject's cells; it does not show how subjects differ.")
    typer.echo(f"model: {release.name}\n{RESEARCH_NOTICE}")
