"""`leukoscope predict`, `field`, `patient` and `score`: a release applied to cells, smears, subjects and data sets."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import (
    AsJson,
    Backend,
    BatchSize,
    Device,
    Model,
    Precision,
    Quiet,
    SubjectPattern,
    TrainDir,
    end_with,
    open_predictor,
    print_table,
    release_warnings,
    shown_name,
)
from leukoscope.files import atomic_file, disk_errors, write_atomic
from leukoscope.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.data.fields import ScaleSource
    from leukoscope.inference.field import FieldReading
    from leukoscope.inference.prediction import Prediction
    from leukoscope.inference.subject import SubjectPrediction

MOST_EXPLAINED = 20  # files, in the table's notes
REPORTS = (".html", ".pdf")


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMG", help="Image files, or folders of them.")],
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            metavar="DIR",
            help="Write each prediction's Grad-CAM map over its image to this folder; older ones there are replaced.",
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Test-time augmentation: average over the image's eight rotations and mirrorings."),
    ] = False,
    backend: Backend = "",
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Classify images of single cells with a release."""
    from leukoscope.data.images import UnreadableImage
    from leukoscope.inference.gradcam import NO_MAP

    files, problems = _image_paths(images)
    predictor = open_predictor(model, backend, device, precision)
    rows, taken = [], {_key(file) for file in files}
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


def _image_paths(named: Sequence[Path]) -> tuple[list[Path], list[LeukoscopeError]]:
    """The files meant by files and folders, in the order given, and a problem for each folder without an image."""
    from leukoscope.data.images import IMAGE_SUFFIXES, UnreadableImage
    from leukoscope.data.registry import image_files, other_files

    files: list[Path] = []
    problems: list[LeukoscopeError] = []
    for path in named:
        inside = list(image_files(path)) if path.is_dir() else [path]
        files += inside
        if path.is_dir() and (left_out := other_files(path)):
            typer.echo(f"{path}: {left_out}", err=True)
        if not inside:
            kinds = ", ".join(IMAGE_SUFFIXES)
            problems.append(UnreadableImage(f"{path}: this folder holds no image ({kinds}); name another"))
    return files, problems


def _print_predictions(rows: Sequence[dict[str, Any]], labels: Sequence[str], warnings: Sequence[str]) -> None:
    from leukoscope.inference.prediction import WITHOUT_CLASS
    from leukoscope.inference.tta import VIEWS

    columns, shown = ["file", "outcome", *labels, "ms"], []
    if viewed := any(row["disagreement"] is not None for row in rows):
        columns.append("views that differ")
    for row in rows:
        shares = [f"{row['probabilities'][label]:.4f}" for label in labels]
        differ = [f"{round(VIEWS * row['disagreement'])} of {VIEWS}"] if viewed else []
        shown.append([shown_name(row["source"]), row["outcome"], *shares, f"{row['seconds'] * 1000:.0f}", *differ])
    print_table(columns, shown, texts=2)
    overlays = [row["overlay"] for row in rows if "overlay" in row]
    if overlays:
        typer.echo(f"Grad-CAM maps: {Path(overlays[0]).parent} ({len(overlays)} picture{'s' * (len(overlays) > 1)})")
    for line in _reasons(rows):
        typer.echo(line)
    if any(row["outcome"] in WITHOUT_CLASS for row in rows):
        typer.echo("Where the outcome is no class, the probabilities are no result.")
    model, revision = rows[0]["model"], rows[0]["revision"]
    typer.echo(f"model: {model}@{revision}" if revision else f"model: {model} (local files)")
    for line in (*warnings, RESEARCH_NOTICE):
        typer.echo(line)


def _reasons(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Why files got no class, a line each; of many files, how many there are for each reason."""
    explained = [row for row in rows if row["reasons"]]
    if len(explained) > MOST_EXPLAINED:
        counts = Counter(reason["code"] for row in explained for reason in row["reasons"])
        yield "; ".join(f"{code}: {count} files" for code, count in counts.items()) + " (--json gives the numbers)"
    else:
        for row in explained:
            yield f"{shown_name(Path(row['source']).name)}: {'; '.join(reason['text'] for reason in row['reasons'])}"
    for row in rows:
        if any(reason["code"] == "field_of_view" for reason in row["reasons"]):
            smear, model = (shlex.quote(shown_name(row[key])) for key in ("source", "model"))
            yield f"if it is a smear, to find and classify its cells: leukoscope field {smear} --model {model}"
            break


def _save_overlay(prediction: Prediction, folder: Path, taken: set[str]) -> Path:
    """Save the most probable class's Grad-CAM map over its image; that of an earlier run is replaced."""
    from leukoscope.models.release_files import public_name

    label = prediction.most_probable
    # A class may be called "Pro-B/early": only what every file system takes goes into the name.
    safe_label = re.sub(r"[^\w.-]+", "_", label)
    path = _numbered(folder / f"{Path(prediction.source).stem}-{safe_label}.png", taken)
    model = public_name(prediction.model, prediction.revision)
    title = f"Grad-CAM for {label} ({prediction.probabilities[label]:.4f}) by {model}"
    _save_png(prediction.overlay(), path, title)
    return path


def _save_png(image: Image, path: Path, title: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_itxt("Title", title)
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    with disk_errors(f"{path.parent}: cannot write there", "name another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=about)


def field(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMG",
            help="Fields of view: photographs of stained smears; or a folder of them, each folder in it a slide.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the outcomes over the field; of several, to PNG-<name of the field>."),
    ] = None,
    um_per_pixel: Annotated[
        float | None, typer.Option("--um_per_pixel", help="Micrometres per pixel; else guessed from the red cells.")
    ] = None,
    one_scale: Annotated[
        bool,
        typer.Option(
            "--one_scale", help="The fields are of one microscope: use the median of their scales (done for a folder)."
        ),
    ] = False,
    crops: Annotated[
        Path | None,
        typer.Option(
            "--crops",
            metavar="DIR",
            help="Write each whole cell, cut out on black, to DIR/<slide>/<field>-<its number in --json, from 0>.png.",
        ),
    ] = None,
    backend: Backend = "",
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the nucleated cells of smears and classify each with a release of cut-out cells."""
    from leukoscope.data.fields import cut_out, is_cut_out_cell
    from leukoscope.data.images import open_field
    from leukoscope.inference.field import draw_reading, read_field, series_scale
    from leukoscope.models.release_files import public_name

    predictor = open_predictor(model, backend, device, precision)
    # Absolute, since "." and ".." name no slide, and crops would be written outside their folder.
    folders = [Path(os.path.abspath(path)) for path in images if path.is_dir()]
    fields, problems = _image_paths(images)
    # Named from the folder that was given on, so that a slide's name does not depend on where that lies.
    slides = {}
    for path in fields:
        home = Path(os.path.abspath(path)).parent
        inside = (home.relative_to(folder.parent) for folder in folders if home.is_relative_to(folder))
        slides[path] = next(inside, Path(home.name))
    if crops is not None:
        # A crop may have the name of a field that lies in its folder.
        for path in fields:
            if (crops / slides[path]).resolve() == path.resolve().parent:
                home = path.parent
                raise LeukoscopeError(
                    f"--crops {crops}: crops would lie among the fields of {home}; name another folder"
                )
    overlays = iter(_overlay_paths(output, fields) if output is not None else ())
    scale_source: ScaleSource = "given"
    if um_per_pixel is None and (one_scale or folders):
        um_per_pixel = series_scale(_opened(track(fields, "measuring the scale")))
        scale_source = "red cells of the series"
    taken: set[str] = set()
    of_crops = {path: _numbered(slides[path] / f"{path.stem}.png", taken) for path in fields}
    readings: list[FieldReading] = []
    single: list[Path] = []
    for path in track(fields, "reading fields"):
        overlay = next(overlays, None)
        try:
            image = open_field(path)
            if path not in images and is_cut_out_cell(image):
                single.append(path)
                continue
            reading = read_field(predictor, image, str(path), um_per_pixel=um_per_pixel, scale_source=scale_source)
            readings.append(reading)
            scale = reading.field.scale
            for number, one in enumerate(reading.cells):
                if crops is not None and scale is not None and one.cell.whole:
                    name = crops / of_crops[path].with_stem(f"{of_crops[path].stem}-{number}")
                    _save_png(
                        cut_out(image, one.cell, scale.um_per_pixel), name, f"{shown_name(path.name)}: {one.outcome}"
                    )
            if overlay is not None:
                named = public_name(reading.model, reading.revision)
                title = f"{shown_name(path.name)} read by {named}: {reading.summary}"
                _save_png(draw_reading(image, reading), overlay, title)
                if not quiet:
                    typer.echo(f"overlay: {overlay}", err=True)
        except LeukoscopeError as error:
            problems.append(error)
    if as_json:
        typer.echo(json.dumps([reading.to_dict() for reading in readings], indent=1))
    elif readings:
        _print_fields(readings, slides if folders else {}, release_warnings(predictor))
    if single and not quiet:
        typer.echo(
            f"passed over: {len(single):,} picture(s) of single cut-out cells, for example {single[0]}; leukoscope "
            "predict classifies them",
            err=True,
        )
    end_with(problems)


def _opened(images: Iterable[Path]) -> Iterator[Image]:
    """The fields that can be read, one at a time; what is wrong with the others is told when they are read."""
    from leukoscope.data.fields import is_cut_out_cell
    from leukoscope.data.images import open_field

    for path in images:
        try:
            image = open_field(path)
        except LeukoscopeError:
            continue
        if not is_cut_out_cell(image):
            yield image


def _overlay_paths(out: Path, fields: Sequence[Path]) -> list[Path]:
    """Where each field's overlay goes.

    Raises:
        LeukoscopeError: another kind of file than PNG, or one of the fields.
    """
    if out.suffix.lower() != ".png":
        raise LeukoscopeError(f"--output {out}: overlays are PNG files; name a file that ends in .png")
    taken: set[str] = set()
    several = len(fields) > 1
    overlays = [_numbered(out.with_stem(f"{out.stem}-{field.stem}"), taken) for field in fields] if several else [out]
    originals = {_key(field) for field in fields}
    for overlay in overlays:
        if _key(overlay) in originals:
            raise LeukoscopeError(f"--output {out}: the overlay would replace the field {overlay}; name another file")
    return overlays


def _key(path: Path) -> str:
    """What two paths share that some file system takes for one: which file it is, in small letters."""
    return str(path.resolve()).casefold()


def _numbered(path: Path, taken: set[str]) -> Path:
    """The path, numbered where its `_key` is taken; that of the path returned is taken from now on."""
    names = chain([path], (path.with_stem(f"{path.stem}-{n}") for n in count(2)))
    chosen = next(name for name in names if _key(name) not in taken)
    taken.add(_key(chosen))
    return chosen


def _print_fields(readings: Sequence[FieldReading], slides: Mapping[Path, Path], warnings: Sequence[str]) -> None:
    """Print a table of the fields, and one of the slides where these are named."""
    counts = sum((Counter(reading.counts) for reading in readings), Counter[str]())
    # Kinds of no class that no field has would make the table too wide for a terminal.
    shown = [outcome for outcome in readings[0].counts if outcome in readings[0].labels or counts[outcome]]
    rows = []
    of_slide: dict[str, Counter[str]] = {}
    for reading in readings:
        scale = reading.field.scale
        found = {"cells": len(reading.cells), **{outcome: reading.counts[outcome] for outcome in shown}}
        size = f"{scale.um_per_pixel:.3f}" if scale else "–"
        rows.append([shown_name(reading.source), *map(str, found.values()), size])
        if slides:
            name = shown_name(str(slides[Path(reading.source)]))
            of_slide.setdefault(name, Counter()).update({"fields": 1, **found})
    print_table(["field", "cells", *shown, "µm/px"], rows)
    sources = Counter(reading.field.scale.source for reading in readings if reading.field.scale)
    if sources:
        said = {name: name if name == "given" else f"guessed from {name}" for name in sources}
        whence = [
            f"{said[name]} ({count} fields)" if len(sources) > 1 else said[name] for name, count in sources.items()
        ]
        typer.echo(f"scale: {', '.join(whence)}")
    if of_slide:
        columns = ["fields", "cells", *shown]
        print_table(["slide", *columns], [[name, *(str(c[k]) for k in columns)] for name, c in of_slide.items()])
    explained = [reading for reading in readings if len(readings) <= MOST_EXPLAINED or reading.field.notes]
    for reading in explained:
        typer.echo(f"{shown_name(Path(reading.source).name)}: {' '.join((reading.summary, *reading.field.notes))}")
    for line in (*warnings, RESEARCH_NOTICE):
        typer.echo(line)


def score(
    model: Model,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="SOURCE",
            help="Folder of images; CSV or Parquet with a column of their paths (or, in Parquet, of the images); or a "
            "data set, as for train.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Table to write, one row per cell (.parquet, .csv, .json or .xlsx).")
    ],
    train_dir: TrainDir = None,
    subject_pattern: SubjectPattern = None,
    by_subject: Annotated[
        Path | None,
        typer.Option(
            "--by_subject",
            metavar="FILE",
            help="Write one row per subject: its prediction, means and shares (.csv, .parquet, .json or .xlsx).",
        ),
    ] = None,
    backend: Backend = "",
    precision: Precision = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 32,
    cells_per_shard: Annotated[
        int, typer.Option("--cells_per_shard", min=1, help="Cells that an interruption may cost, at most.")
    ] = 1024,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Predict for any number of cells; the same command again resumes an interrupted run.

    Exit code: 1 where a file could not be read, as for predict; the table holds all others.

    Under `accelerate launch -m leukoscope score …` the processes share the cells; the folder of the output must be one
    that all of them see.
    """
    from leukoscope.inference.scoring import Worker, check_by_subject, check_output, score_cells, unreadable_list
    from leukoscope.inference.sources import open_source

    worker = Worker.from_environment()
    if worker.is_main:
        check_output(output)
    cells = open_source(source, train_dir=train_dir, subject_pattern=subject_pattern)
    if worker.is_main and by_subject is not None:  # a helper that comes late finds both tables written
        check_by_subject(by_subject, output, cells)
    if worker.is_main and cells.report and not quiet:
        typer.echo(cells.report, err=True)
    predictor = open_predictor(model, backend, device, precision)
    scored = score_cells(
        predictor,
        cells,
        output,
        by_subject=by_subject,
        cells_per_shard=cells_per_shard,
        batch_size=batch_size,
        worker=worker,
    )
    if scored is None:  # a helper process of a launcher
        return
    counts = {"cells": scored.cells, "refused": scored.refused, "abstained": scored.abstained}
    if as_json:
        counts |= {"subjects": scored.subjects, "unreadable": scored.unreadable}
        typer.echo(json.dumps(counts | {"output": str(output), "notice": RESEARCH_NOTICE}, indent=1))
    else:
        notes = {"out of distribution or no cell": scored.refused, "abstained from": scored.abstained}
        listed = "".join(f", {count:,} {note}" for note, count in notes.items() if count)
        typer.echo(f"{scored.cells:,} cells scored{listed}: {output}")
        if by_subject is not None:
            typer.echo(f"{scored.subjects:,} subjects: {by_subject}")
        for line in (*release_warnings(predictor), RESEARCH_NOTICE):
            typer.echo(line)
    if scored.unreadable:
        typer.echo(f"{scored.unreadable:,} file(s) could not be read: {unreadable_list(output)}", err=True)
        raise typer.Exit(1)


def patient(
    model: Model,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of one subject's cells, or of one folder per subject; or a CSV or Parquet table with a column "
            "'subject', as for score.",
        ),
    ],
    subject_pattern: SubjectPattern = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a table, one row per subject (.csv, .parquet, .json or .xlsx); or, of a folder of one "
            "subject's cells, a report of two pages of A4 (.html, or .pdf where Chromium is installed).",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Stands in the report; without it the report names nobody.")] = "",
    backend: Backend = "",
    precision: Precision = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Predict for each subject, from the images of that subject's cells."""
    from leukoscope.inference.scoring import TABLE_SUFFIXES, check_output, subjects_table, write_table
    from leukoscope.inference.sources import open_source
    from leukoscope.inference.subject import SubjectRule, predict_subjects

    report = output if output is not None and output.suffix.lower() in REPORTS else None
    if output is not None:
        if output.suffix.lower() not in (*TABLE_SUFFIXES, *REPORTS):
            kinds = ", ".join((*TABLE_SUFFIXES, *REPORTS))
            raise LeukoscopeError(
                f"--output {output}: is no kind of table or report written here; give a name that ends in {kinds}"
            )
        if report is None:
            check_output(output)
    try:
        cells = open_source(source, subject_pattern=subject_pattern)
    except LeukoscopeError as error:
        # The message is that of `score`, where the source is a flag.
        raise LeukoscopeError(str(error).removeprefix("--input ")) from None
    if cells.report and not quiet:
        typer.echo(cells.report, err=True)
    predictor = open_predictor(model, backend, device, precision)
    if report is not None:
        from leukoscope.reports.patient_report import print_to_pdf, report_on

        html = report_on(predictor, cells, name=name, batch_size=batch_size)
        with disk_errors(f"--output {report}: cannot be written", "name another folder"):
            report.parent.mkdir(parents=True, exist_ok=True)
            if report.suffix.lower() == ".pdf":
                with tempfile.TemporaryDirectory() as folder:
                    print_to_pdf(write_atomic(Path(folder) / "report.html", html), report)
            else:
                write_atomic(report, html)
        about = {"report": str(report), "notice": RESEARCH_NOTICE}
        typer.echo(json.dumps(about, indent=1) if as_json else "\n".join(about.values()))
        return
    SubjectRule.of_release(predictor.release)  # raises now rather than after all cells are read
    subjects, unreadable = predict_subjects(predictor, cells, batch_size=batch_size)
    if len(subjects) == 1 and not subjects[0].subject and Path(source).is_dir():
        subjects = [replace(subjects[0], subject=Path(source).resolve().name)]
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in subjects], indent=1))
    else:
        _print_subjects(subjects, model=predictor.release.name)
    if output is not None:
        with disk_errors(f"--output {output}: cannot be written", "name another folder"):
            write_table(subjects_table(subjects), output)
        if not as_json:
            typer.echo(f"table: {output}")
    end_with(unreadable)


def _print_subjects(subjects: list[SubjectPrediction], *, model: str) -> None:
    from leukoscope.reports.formatting import span

    rows = []
    for one in subjects:
        share = "–" if one.probability is None else f"{one.probability:.3f}"
        interval = "–" if one.interval is None else span({"low": one.interval[0], "high": one.interval[1]})
        counts = [str(number) for number in (one.cells, one.refused, one.abstained)]
        rows.append([shown_name(one.subject), one.outcome, share, interval, *counts])
    positive = subjects[0].positive_label
    print_table(["subject", "outcome", positive, "95 % interval", "cells", "refused", "abstained"], rows, texts=2)
    for outcome in dict.fromkeys(one.outcome for one in subjects if one.reason):
        first, *others = (one for one in subjects if one.outcome == outcome)
        likewise = f"; likewise {len(others)} more" if others else ""
        typer.echo(f"{shown_name(first.subject)}: {outcome}: {first.reason}{likewise}")
    typer.echo(f"rule: {subjects[0].rule.text}")
    typer.echo("The interval is of this subject's cells alone; it does not say how subjects differ.")
    typer.echo(f"model: {model}\n{RESEARCH_NOTICE}")
