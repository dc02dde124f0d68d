"""Bulk scoring: predict every cell of a source into one table, shard by shard.

A shard is written aside and renamed, so a run may be killed at any moment and resumes with the first missing shard.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.data.images import UnreadableImage
from leukoscope.files import atomic_file, content_hashes, remedy, write_atomic
from leukoscope.inference.prediction import ABSTAIN, REFUSED, Prediction, Thresholds
from leukoscope.inference.sources import CellSource, SourceCell
from leukoscope.inference.subject import SubjectPrediction, SubjectRule
from leukoscope.progress import note, progress, track

if TYPE_CHECKING:
    import pyarrow as pa

    from leukoscope.inference.predictor import Predictor

CELLS_PER_SHARD = 256
"""Cells that an interruption may cost, at most."""
TABLE_SUFFIXES = (".parquet", ".csv")
_IDENTITY = "cells"  # in a shard's metadata: sha256 over the names, subjects and contents of its cells
# Shards joined at a time: row groups of some tens of thousands of rows suit readers of Parquet.
_JOINED_AT_ONCE = 256
# How a text begins that a spreadsheet would compute.
_FORMULA = r"^[=+\-@\t\r]"


@dataclass(frozen=True)
class Scored:
    """Counts of a finished run: rows of its table; `refused` cells are out of distribution or no cells."""

    cells: int
    unreadable: int
    refused: int
    abstained: int


def unreadable_list(output: Path) -> Path:
    """Return the path of the list of files that could not be read."""
    return output.with_name(f"{output.name}.unreadable.csv")


def check_output(output: Path) -> None:
    """Raise `LeukoscopeError` for another kind of file than a table, or one that is already there."""
    if output.suffix.lower() not in TABLE_SUFFIXES:
        kinds = ", ".join(TABLE_SUFFIXES)
        raise LeukoscopeError(f"--output {output}: is no kind of table written here; give a name that ends in {kinds}")
    if output.exists():
        raise LeukoscopeError(f"--output {output}: is already there; move it, or name another file")


def score_cells(
    predictor: Predictor,
    source: CellSource,
    output: Path,
    *,
    batch_size: int = 32,
    score_missing: Callable[[Predictor, CellSource, Sequence[Path], int], None] | None = None,
) -> Scored:
    """Predict every cell of a source; resume where an earlier run with the same model was interrupted.

    Shards of an interrupted run are kept where names, subjects and contents of their cells are still the same.

    Args:
        output: table of `TABLE_SUFFIXES`, one row per cell; shards lie in `output`.parts/ until all are there, and
            files that could not be read are listed in `unreadable_list(output)`.
        batch_size: cells that go through the network at once; may be another when a run is resumed.
        score_missing: predicts the missing shards elsewhere (`ray_scoring`); None predicts them here.

    Raises:
        LeukoscopeError: the shards there are of another model, another process is writing them, or a write error;
            finished shards stay.
    """
    parts, release = output.with_name(f"{output.name}.parts"), predictor.release
    manifest = {
        "leukoscope": __version__,
        "model": release.name,
        "revision": release.revision,
        "model_files": release_digest(release.folder),
        "backend": predictor.backend.name,
        "precision": predictor.backend.precision,
        "cells_per_shard": CELLS_PER_SHARD,
    }
    shards = [parts / f"shard-{number:06d}.parquet" for number in range(math.ceil(len(source.cells) / CELLS_PER_SHARD))]
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with FileLock(parts / "lock", timeout=0):
            check_output(output)  # another process may have written it meanwhile
            _begin_or_resume(parts, manifest)
            (score_missing or _score_missing)(predictor, source, shards, batch_size)
            scored = _join(shards, output, manifest | {"cells": len(source.cells)})
        shutil.rmtree(parts)
        return scored
    except Timeout:
        raise LeukoscopeError(
            f"--output {output}: another process is scoring into it; wait for its end, or name another file"
        ) from None
    except OSError as error:
        raise LeukoscopeError(
            f"{error.filename or output}: cannot be read or written ({error.strerror or error}); "
            f"{remedy(error, 'name another folder')}; what was scored is kept beside the output, and the same command "
            "resumes there"
        ) from None


def release_digest(folder: Path | None) -> str:
    """Digest of a release's weights, preprocessing and thresholds, because a local folder has no revision."""
    if folder is None:
        return ""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _begin_or_resume(parts: Path, manifest: Mapping[str, object]) -> None:
    """Write down what makes the shards, or check that it is what made those that are there."""
    path = parts / "manifest.json"
    if not path.exists():
        write_atomic(path, json.dumps(manifest, indent=1))
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LeukoscopeError(f"{path}: damaged ({error}); remove the folder {parts} to begin anew") from None
    for key, value in manifest.items():
        if begun.get(key) != value:
            raise LeukoscopeError(
                f"{parts}: was begun with another {key} ({begun.get(key)} there, {value} now); give what it "
                "was begun with, or remove that folder to begin anew"
            )


def _score_missing(predictor: Predictor, source: CellSource, shards: Sequence[Path], batch_size: int) -> None:
    with progress("scoring cells", len(source.cells)) as advance:
        # Shard by shard, so that a resumed run has the batches, and to the last bit the numbers, of a whole one.
        for shard, cells, identity in missing_shards(source, shards, advance):
            rows = []
            predictions = predictor.iter_predictions((cell.file for cell in cells), batch_size=batch_size)
            for row in zip(cells, predictions, strict=True):
                rows.append(row)
                advance()
            with atomic_file(shard) as temporary:
                temporary.write_bytes(shard_bytes(rows, predictor, identity))


def missing_shards(
    source: CellSource, shards: Sequence[Path], advance: Callable[[int], None]
) -> Iterator[tuple[Path, Sequence[SourceCell], str]]:
    """Yield shards that are missing, damaged, or of other cells or pictures than the source has, with their identity.

    `advance` is told how many cells the others hold.
    """
    for number, shard in enumerate(shards):
        cells = source.cells[number * CELLS_PER_SHARD : (number + 1) * CELLS_PER_SHARD]
        # Before the pictures are opened: one that is replaced meanwhile is scored again by the run that resumes.
        hashes = source.states or content_hashes([cell.file for cell in cells], shard.with_suffix(".json"))
        known = repr([(cell.cell_id, cell.subject, hashes[cell.file]) for cell in cells])
        identity = hashlib.sha256(known.encode()).hexdigest()
        if _identity_of(shard) == identity:
            advance(len(cells))
        else:
            yield shard, cells, identity


def shard_bytes(
    rows: Sequence[tuple[SourceCell, Prediction | UnreadableImage]], predictor: Predictor, identity: str
) -> bytes:
    """A shard as a Parquet file."""
    import pyarrow.parquet as pq

    file = io.BytesIO()
    table = _shard_table(rows, predictor.labels, predictor.thresholds)
    pq.write_table(table.replace_schema_metadata({_IDENTITY: identity}), file)
    return file.getvalue()


def _identity_of(shard: Path) -> str | None:
    """What a shard says of its cells; None where it is missing, or empty or cut short, as after a loss of power."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    return metadata.get(_IDENTITY.encode(), b"").decode()


def _shard_table(
    rows: Sequence[tuple[SourceCell, Prediction | UnreadableImage]], labels: tuple[str, ...], thresholds: Thresholds
) -> pa.Table:
    """Rows of the output, then one for each unreadable picture, with a `reason` in place of a prediction."""
    import pyarrow as pa

    predicted = [(cell, found) for cell, found in rows if not isinstance(found, UnreadableImage)]
    probabilities = np.array([list(found.probabilities.values()) for _, found in predicted]).reshape(-1, len(labels))
    text, number, truth = pa.string(), pa.float64(), pa.bool_()
    outcomes = [found.outcome for _, found in predicted]
    reasons = [" ".join(reason.code for reason in found.decision.reasons) for _, found in predicted]
    positives = thresholds.positive_columns(probabilities, labels, outcomes)
    columns = {
        "cell_id": pa.array([cell.cell_id for cell, _ in predicted], text),
        "subject": pa.array([cell.subject or None for cell, _ in predicted], text),
        "outcome": pa.array(outcomes, text),
        "reasons": pa.array(reasons, text),
        **{f"p_{label}": pa.array(probabilities[:, k], number) for k, label in enumerate(labels)},
        **{name: pa.array(called, truth) for name, called in positives.items()},
        "ood_score": pa.array([found.checks.ood_score for _, found in predicted], number),
        "pixel_hash": pa.array([found.pixel_hash for _, found in predicted], text),
        "model": pa.array([found.model for _, found in predicted], text),
        "revision": pa.array([found.revision for _, found in predicted], text),
    }
    problems = [
        {"cell_id": cell.cell_id, "reason": str(found).removeprefix(f"{cell.file}: ")}
        for cell, found in rows
        if isinstance(found, UnreadableImage)
    ]
    damaged = pa.Table.from_pylist(problems, pa.schema([("cell_id", text), ("reason", text)]))
    return pa.concat_tables([pa.table(columns), damaged], promote_options="default")


def _join(shards: Sequence[Path], output: Path, manifest: Mapping[str, object]) -> Scored:
    """Join the shards in their order, a few at a time; the output appears last, and whole."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    joined, unreadable = (shards[0].with_name(name) for name in ("joined.parquet", "unreadable.csv"))
    whole = _read(shards[0]).schema
    about = {"notice": RESEARCH_NOTICE, "scored_with": json.dumps(manifest)}
    schema = whole.remove(whole.get_field_index("reason")).with_metadata(about)
    damaged, outcomes = 0, Counter[str]()
    with (
        joined.open("wb") as sink,
        pq.ParquetWriter(sink, schema) as writer,
        unreadable.open("w", newline="", encoding="utf-8") as file,
    ):
        listed = csv.writer(file)
        listed.writerow(("source", "reason"))
        for first in range(0, len(shards), _JOINED_AT_ONCE):
            table = pa.concat_tables([_read(shard) for shard in shards[first : first + _JOINED_AT_ONCE]])
            predicted = table.filter(pc.is_null(table["reason"])).select(schema.names)
            writer.write_table(predicted)
            outcomes.update(predicted["outcome"].to_pylist())
            problems = table.filter(pc.is_valid(table["reason"])).select(["cell_id", "reason"]).to_pylist()
            listed.writerows(map(safe_cell, problem.values()) for problem in problems)
            damaged += len(problems)
    if damaged:
        unreadable.replace(unreadable_list(output))
    else:
        # An earlier run's list would be taken for this one's.
        unreadable_list(output).unlink(missing_ok=True)
    if output.suffix.lower() == ".parquet":
        joined.rename(output)
    else:
        write_table(_read(joined), output)
    return Scored(outcomes.total(), damaged, sum(outcomes[one] for one in REFUSED), outcomes[ABSTAIN])


def _read(path: Path) -> pa.Table:
    """A Parquet file's table, through Python's own file: Arrow takes no name that is not UTF-8."""
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return pq.read_table(file).replace_schema_metadata()


def predict_subjects(
    predictor: Predictor, source: CellSource, *, batch_size: int = 32
) -> tuple[list[SubjectPrediction], list[UnreadableImage]]:
    """Predict for each subject of a source, in the order of their names; also return what could not be read.

    Cells are opened and predicted batch by batch, and only their probabilities are kept. Copies of a picture, pixel
    for pixel, count once.

    Raises:
        LeukoscopeError: the release was not measured by subject, no cell could be read, two subjects have the same
            picture, or as `CellSource.subject_of`.
    """
    rule = SubjectRule.of_release(predictor.release)
    probabilities: list[list[float]] = []
    outcomes: list[str] = []
    unreadable: list[UnreadableImage] = []

    def predicted() -> Iterator[tuple[str, str, str]]:
        predictions = predictor.iter_predictions((cell.file for cell in source.cells), batch_size=batch_size)
        pairs = zip(source.cells, predictions, strict=True)
        for cell, prediction in track(pairs, "predicting cells", len(source.cells)):
            if isinstance(prediction, UnreadableImage):
                unreadable.append(prediction)
            else:
                probabilities.append(list(prediction.probabilities.values()))
                outcomes.append(prediction.outcome)
                yield cell.file, source.subject_of(cell, predictor.labels), prediction.pixel_hash

    rows = _rows_by_subject(predicted())
    if not rows:
        raise LeukoscopeError(f"none of the {len(unreadable)} files could be read, the first: {unreadable[0]}")
    found = [
        rule.predict(np.array([probabilities[row] for row in own]), [outcomes[row] for row in own], subject=subject)
        for subject, own in rows.items()
    ]
    return found, unreadable


def _rows_by_subject(cells: Iterable[tuple[str, str, str]]) -> dict[str, list[int]]:
    """(name, subject, pixel hash) of each cell → sorted subject → numbers of its cells; copies count once.

    One picture of two subjects is an error.
    """
    first: dict[str, tuple[str, str]] = {}
    rows: dict[str, list[int]] = {}
    copies: list[str] = []
    for row, (name, subject, pixels) in enumerate(cells):
        if pixels not in first:
            first[pixels] = name, subject
            rows.setdefault(subject, []).append(row)
            continue
        other, owner = first[pixels]
        if owner != subject:
            raise LeukoscopeError(
                f"{name}: is the same picture as {other}, pixel for pixel, which is of another subject "
                f"({subject!r} and {owner!r}); give it to one of them"
            )
        copies.append(f"{name} of {other}")
    if copies:
        said = f"{len(copies):,} picture(s) are copies of others, pixel for pixel, and count once"
        note(f"{said}, for example {copies[0]}", err=True)
    return dict(sorted(rows.items()))


def subjects_table(predictions: Sequence[SubjectPrediction]) -> pa.Table:
    """Make a table with one row per subject; columns as `SubjectPrediction.to_dict`."""
    import pyarrow as pa

    return pa.Table.from_pylist([prediction.to_dict() for prediction in predictions])


def safe_cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula."""
    return f"'{text}" if re.match(_FORMULA, text) else text


def _without_formulas(table: pa.Table) -> pa.Table:
    """Quote all texts and names of columns that a spreadsheet would compute: a CSV file has no types of cells."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            quoted = pc.binary_join_element_wise("'", column, "")
            safe = pc.if_else(pc.match_substring_regex(column, _FORMULA), quoted, column)
            table = table.set_column(place, table.column_names[place], safe)
    return table.rename_columns([safe_cell(name) for name in table.column_names])


def write_table(table: pa.Table, path: Path) -> Path:
    """Write a table atomically, in the format of its name (`TABLE_SUFFIXES`); `OSError` where the disk refuses."""
    import pyarrow.parquet as pq
    from pyarrow import csv as arrow_csv

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix.lower() == ".parquet":
            pq.write_table(table, file)
        else:
            arrow_csv.write_csv(_without_formulas(table), file)
    return path
