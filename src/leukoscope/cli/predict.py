"""`leukoscope predict`: answers for cell images, as a table, as JSON or as heat maps on disk."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.errors import say_error, shown_name

if TYPE_CHECKING:
    from leukoscope.cells.images import UnreadableImage
    from leukoscope.inference.heatmaps import EvidenceScale
    from leukoscope.inference.predictor import Prediction

MOST_EXPLAINED = 20  # files, in the table's notes


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMG", help="Image files, or folders of them.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Release folder, or Hub id owner/name or owner/name@revision.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of a table.")] = False,
    explain: Annotated[
        Path | None, typer.Option(metavar="OUTDIR", help="Write a Grad-CAM picture of each prediction to this folder.")
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average eight views of each cell and say how many disagree.")
    ] = False,
    backend: Annotated[
        str, typer.Option(metavar="auto|openvino|onnx|torch", help="Who computes the network (default: auto).")
    ] = "",
) -> None:
    """Answer for cell images with a released model."""
    from leukoscope.cells.images import UnreadableImage
    from leukoscope.inference.heatmaps import EvidenceScale
    from leukoscope.inference.predictor import Predictor

    files, problems = _image_paths(images)
    predictor = Predictor.from_pretrained(model, backend=backend)
    rows = []
    for answer in predictor.answers(files, explain=explain is not None, views=tta):
        if isinstance(answer, UnreadableImage):
            problems.append(answer)
            continue
        row = answer.to_dict()
        if explain is not None:
            row["overlay"] = str(_save_overlay(answer, explain, EvidenceScale.from_metrics(predictor.release.metrics)))
        rows.append(row)

    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_table(rows, predictor.labels)
    for problem in problems:
        say_error(problem)
    if problems:
        raise typer.Exit(1)


def _image_paths(named: Sequence[Path]) -> tuple[list[Path], list[UnreadableImage]]:
    """The files meant by files and folders, in the order given, and a problem for each folder without an image."""
    from leukoscope.cells.images import IMAGE_SUFFIXES, UnreadableImage
    from leukoscope.cells.registry import image_files

    files: list[Path] = []
    problems = []
    for path in named:
        inside = list(image_files(path)) if path.is_dir() else [path]
        files += inside
        if not inside:
            kinds = ", ".join(IMAGE_SUFFIXES)
            problems.append(UnreadableImage(f"{path}: this folder holds no image ({kinds}); name another"))
    return files, problems


def _print_table(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leukoscope.inference.decision import WITHOUT_CLASS
    from leukoscope.inference.views import VIEWS

    viewed = any(row["disagreement"] is not None for row in rows)
    table = Table("file", "outcome", *labels, "ms", *(["views that differ"] if viewed else []))
    for column, fold in enumerate(("fold", "fold", *("ellipsis" for _ in labels), "ellipsis")):
        table.columns[column].overflow = fold  # type: ignore[assignment]
        table.columns[column].justify = "left" if fold == "fold" else "right"
    for row in rows:
        shares = [f"{row['probabilities'][label]:.4f}" for label in labels]
        # Text, because square brackets would be read as markup.
        name = shown_name(row["source"])
        differ = [f"{round(VIEWS * row['disagreement'])} of {VIEWS}"] if viewed else []
        table.add_row(Text(name), Text(row["outcome"]), *shares, f"{row['seconds'] * 1000:.0f}", *differ)
    console = Console(highlight=False)
    console.print(table)
    overlays = [row["overlay"] for row in rows if "overlay" in row]
    if overlays:
        console.print(Text(f"heat maps: {Path(overlays[0]).parent} ({len(overlays)} pictures)"))
    for line in _reasons(rows):
        console.print(Text(line), soft_wrap=True)
    if any(row["outcome"] in WITHOUT_CLASS for row in rows):
        console.print(Text("Where the outcome is no class, the probabilities are no result."))
    model, revision = rows[0]["model"], rows[0]["revision"]
    console.print(Text(f"model: {model}@{revision}" if revision else f"model: {model} (local files)"))
    console.print(Text(RESEARCH_NOTICE))


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


def _save_overlay(prediction: Prediction, folder: Path, scale: EvidenceScale) -> Path:
    """Draw the most probable class's heat map over its picture and save it under a name no other picture has."""
    from PIL.PngImagePlugin import PngInfo

    from leukoscope.cells.images import open_image
    from leukoscope.inference.heatmaps import overlay

    assert prediction.heatmaps is not None
    label = prediction.most_probable
    heat, seen = prediction.heatmaps[label], prediction.view_box
    drawn = overlay(open_image(prediction.source), heat, seen, peak=scale.strong)
    about = PngInfo()
    about.add_itxt("Title", f"Grad-CAM for {label} ({prediction.probabilities[label]:.4f}) by {prediction.model}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    # A class may be called "Pro-B/early": only what every file system takes goes into the name.
    safe_label = re.sub(r"[^\w.-]+", "_", label)
    stem = f"{Path(prediction.source).stem}-{safe_label}"
    return _write_new(folder, stem, ".png", lambda aside: drawn.save(aside, format="PNG", pnginfo=about))


def _write_new(folder: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Write a file aside and rename it to `stem`, `stem-2`, … — the first name that is free."""
    aside = folder / f".{stem}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(aside)
        target, number = folder / f"{stem}{suffix}", 2
        while target.exists():
            target, number = folder / f"{stem}-{number}{suffix}", number + 1
        return aside.rename(target)
    except OSError as error:
        raise LeukoscopeError(
            f"{folder}: cannot write there ({error.strerror or error}); free some space or name another folder"
        ) from None
    finally:
        if aside.exists():
            aside.unlink()
