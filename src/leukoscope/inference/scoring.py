"""Bulk scoring: predict every cell of a folder or of a table of paths into one table, shard by shard.

A source knows its cells before a picture is opened. A shard is written aside and renamed, so a run may be killed at any
moment and resumes with the first missing shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pyarrow import csv

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, LeukoscopeError, __version__
from leukoscope.cache import content_hashes
from leukoscope.data.folder import METADATA_FILES, home_of, require_people, subject_rule
from leukoscope.data.images import UnreadableImage
from leukoscope.data.layouts import ImageFolder, subject_in_name
from leukoscope.data.names import check_subject_ids
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.data.table import (
    TABLE_SUFFIXES,
    cell_table,
    files_below,
    find_columns,
    read_frame,
    read_table,
    rows_by_picture,
)
from leukoscope.files import atomic_file, file_sha256, remedy
from leukoscope.inference.prediction import ABSTAIN, REFUSED, Prediction
from leukoscope.progress import progress, shown_name

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor

CELLS_PER_SHARD = 256
"""Cells that an interruption may cost, at most."""
OUTPUT_SUFFIXES = (".parquet", ".csv")
_PARTS = ".parts"  # how the name of a folder of shards ends
_IDENTITY = "cells"  # in a shard's metadata: sha256 over the names, subjects and contents of its cells
_ROW_GROUP = 65_536  # rows; as many suit readers of Parquet
# How a text begins that a spreadsheet would compute.
_FORMULA = r"^([=+\-@\t\r])"


class SourceCell(NamedTuple):
    """One cell to be scored: its id, its subject ("" where not known) and its image file."""

    cell_id: str
    subject: str
    file: str


@dataclass(frozen=True)
class CellSource:
    """Cells to be scored, none of them opened yet.

    Attributes:
        report: for the user; "" where there is nothing to report.
        table: the file that it was read from; None for a folder.
    """

    cells: Sequence[SourceCell]
    report: str = ""
    table: Path | None = None

    def subjects(self) -> list[str]:
        """The subject of each cell; all are of one subject, called "", where a folder holds nothing but pictures.

        Raises:
            DataError: a table that names no subjects.
        """
        subjects = [cell.subject for cell in self.cells]
        if self.table is not None and not any(subjects):
            raise DataError(
                f"{self.table}: names no subject; add a column called subject, name it with --subject_column, or give "
                "--subject_pattern"
            )
        return subjects


def open_source(named: str, reading: Reading = NO_FLAGS) -> CellSource:
    """Open a source of cells.

    Subjects are named by a column of the table, by a table among the pictures of a folder, or by the flags, else by
    file names as C-NMC 2019 has; `CellSource.report` says which.

    Args:
        named: a folder, or a table (.csv or .parquet) of paths that start from its own folder.

    Raises:
        DataError: no such input, no cell in it, a column missing, a path that the flags find no subject in, folders
            of which nothing says whether they are people, or tables as of `read_table` and `rows_by_picture`.
    """
    path = Path(named)
    if not path.exists():
        raise DataError(f"{named}: no such folder or file; give a folder of images, or a table of them")
    source = _of_folder(path, reading) if path.is_dir() else _of_table(path, reading)
    if not source.cells:
        raise DataError(f"{named}: holds no cell; give a folder of images, or a table with rows")
    check_subject_ids(((cell.subject, cell.file) for cell in source.cells), named)
    return source


def _of_table(path: Path, reading: Reading) -> CellSource:
    """The cells of a table of paths."""
    suffix = path.suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise DataError(f"{path}: is a {suffix or 'bare'} file; give a folder, .csv or .parquet")
    table = read_table(path, reading)
    rule = subject_rule(reading)
    if rule is not None and table.names("subject"):
        raise ConfigError(f"{path}: a column of it names the subjects as a flag does; leave out the flag or the column")
    cells = []
    for file, row in rows_by_picture(table, files_below(path.parent), path.parent).items():
        subject = rule(file) if rule is not None else row.subject
        cells.append(_source_cell(row.cell_id, subject, path.parent / file))
    return CellSource(cells, table=path)


def _of_folder(root: Path, reading: Reading) -> CellSource:
    """The images of a folder with the subjects that a flag, a table or C-NMC's file names tell."""
    folder = ImageFolder.read(root)
    pictures = list(map(folder.below, folder.images))
    rule = subject_rule(reading)
    report = [folder.left_out]
    table: Path | None = None
    subject_of: Mapping[str, str] = {}
    if rule is not None:
        subject_of = {picture: rule(picture) for picture in pictures}
        if reading.subject_folders:
            require_people(subject_of.values())
            _require_one_place(subject_of)
    else:
        table, subject_of = _subjects_by_table(folder, pictures, reading)
        if subject_of:
            report.append(f"Subjects are named by {table}.")
        elif pictures and all(map(subject_in_name, pictures)):
            subject_of = {picture: subject_in_name(picture) for picture in pictures}
            report.append("Subjects are the numbers after UID_ in the file names, as C-NMC 2019 has them.")
        else:
            _require_no_folders(root, pictures)
            if table:
                report.append(f"{table} names no subject; --subject_column names its column.")
    cells = [_source_cell(picture, subject_of.get(picture, ""), root / picture) for picture in pictures]
    return CellSource(cells, "\n".join(filter(None, report)), table)


def _source_cell(cell_id: str, subject: str, file: Path) -> SourceCell:
    """A cell with an id and a subject that tables take: a file's name need not be UTF-8."""
    return SourceCell(shown_name(cell_id), shown_name(subject), str(file))


def _require_one_place(subject_of: Mapping[str, str]) -> None:
    """Refuse folders of one name in two places: `P1/slide1` and `P2/slide1` are two people's."""
    place_of: dict[str, str] = {}
    for picture, subject in subject_of.items():
        place = os.path.dirname(picture)
        other = place_of.setdefault(subject, place)
        if other != place:
            raise DataError(
                f"--subject_folders: {other!r} and {place!r} would be one subject, {subject!r}; if they are, give "
                "--subject_pattern '(?P<subject>[^/]+)/[^/]+$', else a pattern that matches another folder"
            )


def _require_no_folders(root: Path, pictures: Sequence[str]) -> None:
    """Refuse folders within a folder of which nothing says whether they are people."""
    inside = next((picture for picture in pictures if "/" in picture), "")
    if inside:
        raise DataError(
            f"{root}: {inside!r} lies in a folder, and nothing says whose its cells are; give --subject_folders if the "
            "innermost folder is a person, --subject_pattern REGEX, or a table with the columns file,subject"
        )


def _subjects_by_table(
    folder: ImageFolder, pictures: Sequence[str], reading: Reading
) -> tuple[Path | None, dict[str, str]]:
    """The table that names the subjects, --labels or one among the pictures, and picture → subject.

    Of a table of the pictures that names no subject, nothing.
    """
    root = folder.root
    paths = [path for path in folder.others if path.suffix.lower() in TABLE_SUFFIXES and path.parent.suffix != _PARTS]
    if reading.labels:
        paths = [Path(reading.labels)]
    named: dict[Path, dict[str, str]] = {}
    nameless: Path | None = None
    for path in paths:
        frame = read_frame(path)
        is_of_pictures = reading.labels or path.name in METADATA_FILES
        if not is_of_pictures and "file" not in find_columns(list(frame.columns), reading, str(path)):
            continue  # it is about something else
        table = cell_table(str(path), frame, reading).with_checked_ids()
        home = home_of(table, path.parent, root)
        rows = rows_by_picture(table, files_below(home))
        subjects = {Path(os.path.relpath(home / file, root)).as_posix(): row.subject for file, row in rows.items()}
        subjects = {picture: subjects[picture] for picture in pictures if subjects.get(picture)}
        if subjects or (is_of_pictures and table.names("subject")):
            named[path] = subjects
        elif is_of_pictures:
            nameless = path
    if len(named) > 1:
        raise DataError(f"{' and '.join(map(str, named))}: both name the subjects; keep one of them there")
    for name, subjects in named.items():
        without = [picture for picture in pictures if picture not in subjects]
        if without:
            raise DataError(
                f"{name}: names no subject for {without[0]!r} ({len(without):,} of {len(pictures):,} pictures); add a "
                "row for each picture, or move the pictures without a row or the table away"
            )
        return name, subjects
    return nameless, {}


@dataclass(frozen=True)
class Scored:
    """Counts of a finished run: rows of its table; `refused` cells are out of distribution or no cells.

    `transparent` cells have transparent parts, which were filled with the colour that the training cells lie on.
    """

    cells: int
    unreadable: int
    refused: int
    abstained: int
    transparent: int


def unreadable_list(output: Path) -> Path:
    """Return the path of the list of files that could not be read."""
    return output.with_name(f"{output.name}.unreadable.csv")


def check_output(output: Path) -> None:
    """Raise `ConfigError` for another kind of file than a table, or one that is already there."""
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        kinds = ", ".join(OUTPUT_SUFFIXES)
        raise ConfigError(
            f"--output {output}: is not a table format that can be written; give a name that ends in {kinds}"
        )
    if output.exists():
        raise ConfigError(f"--output {output}: exists already; move it, or name another file")


def score_cells(
    predictor: Predictor,
    source: CellSource,
    output: Path,
    *,
    batch_size: int = 32,
    score_missing: Callable[[Predictor, CellSource, Sequence[Path], int], None] | None = None,
) -> Scored:
    """Predict every cell of a source; resume where an earlier run was interrupted.

    Shards of an interrupted run are kept where release, precision, names, subjects and contents of their cells are
    still the same.

    Args:
        output: table of `OUTPUT_SUFFIXES`, one row per cell; shards lie in `output`.parts/ until all are there, and
            files that could not be read are listed in `unreadable_list(output)`.
        score_missing: predicts the missing shards elsewhere (`ray_scoring`); None predicts them here.

    Raises:
        LeukoscopeError: another process is writing the shards, or a write error; finished shards stay. The subjects
            have the names of classes.
    """
    require_people((cell.subject for cell in source.cells), predictor.release.labels)
    parts = output.with_name(f"{output.name}{_PARTS}")
    count = math.ceil(len(source.cells) / CELLS_PER_SHARD)
    shards = [parts / f"shard-{number:06d}.parquet" for number in range(count)]
    if score_missing is None:
        score_missing = _score_missing
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with FileLock(parts / "lock", timeout=0):
            check_output(output)  # another process may have written it meanwhile
            score_missing(predictor, source, shards, batch_size)
            scored = _join(shards, output, scored_with(predictor))
        shutil.rmtree(parts)
        return scored
    except Timeout:
        raise ConfigError(
            f"--output {output}: another process is scoring into it; wait until it has ended, or name another file"
        ) from None
    except OSError as error:
        raise LeukoscopeError(
            f"{error.filename or output}: cannot be read or written ({error.strerror or error}); "
            f"{remedy(error, 'name another folder')}; what was scored is kept beside the output, and the same command "
            "resumes there"
        ) from None


def scored_with(predictor: Predictor) -> dict[str, str]:
    """Return what determines a release's predictions: the versions, the files' digest and the backend."""
    release = predictor.release
    return {
        "leukoscope": __version__,
        "model": release.name,
        "revision": release.revision,
        "model_files": release_digest(release.folder),
        "backend": predictor.backend.name,
        "precision": predictor.backend.precision,
    }


def release_digest(folder: Path | None) -> str:
    """Digest of a release's weights, preprocessing and thresholds, because a local folder has no revision."""
    files: list[Path] = []
    if folder is not None:
        files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return hashlib.sha256(repr([(file.name, file_sha256(file)) for file in files]).encode()).hexdigest()


def _score_missing(predictor: Predictor, source: CellSource, shards: Sequence[Path], batch_size: int) -> None:
    with progress("scoring cells", len(source.cells)) as advance:
        # Shard by shard, so that a resumed run has the batches, and to the last bit the numbers, of a whole one.
        for shard, cells, identity in missing_shards(predictor, source, shards, advance):
            rows = []
            predictions = predictor.iter_predictions((cell.file for cell in cells), batch_size=batch_size)
            for row in zip(cells, predictions, strict=True):
                rows.append(row)
                advance()
            with atomic_file(shard) as temporary:
                temporary.write_bytes(shard_bytes(rows, predictor, identity))


def missing_shards(
    predictor: Predictor, source: CellSource, shards: Sequence[Path], advance: Callable[[int], None]
) -> Iterator[tuple[Path, Sequence[SourceCell], str]]:
    """Yield shards that are missing, damaged, or of other cells, pictures or weights, with their identity.

    `advance` is called with the number of cells of each other shard.
    """
    versions = scored_with(predictor)
    for number, shard in enumerate(shards):
        cells = source.cells[number * CELLS_PER_SHARD : (number + 1) * CELLS_PER_SHARD]
        # Before the pictures are opened: if one is replaced meanwhile, the run that resumes scores it again.
        hashes = content_hashes([cell.file for cell in cells], shard.with_suffix(".json"))
        content = repr((versions, [(cell.cell_id, cell.subject, hashes[cell.file]) for cell in cells]))
        identity = hashlib.sha256(content.encode()).hexdigest()
        if _identity_of(shard) == identity:
            advance(len(cells))
        else:
            yield shard, cells, identity


def shard_bytes(
    rows: Sequence[tuple[SourceCell, Prediction | UnreadableImage]], predictor: Predictor, identity: str
) -> bytes:
    """A shard as a Parquet file: the columns of the output, and for each unreadable picture a row with a `reason`."""
    lines: list[dict[str, Any]] = []
    for cell, prediction in rows:
        if isinstance(prediction, UnreadableImage):
            reason = str(prediction).removeprefix(f"{cell.file}: ")
            lines.append({"cell_id": cell.cell_id, "reason": shown_name(reason)})
            continue
        line = {
            "cell_id": cell.cell_id,
            "subject": cell.subject or None,
            "outcome": prediction.outcome,
            "reasons": " ".join(reason.code for reason in prediction.decision.reasons),
            "ood_score": prediction.checks.ood_score,
            "pixel_hash": prediction.pixel_hash,
            "model": prediction.model,
            "revision": prediction.revision,
        }
        for label, share in prediction.probabilities.items():
            line[f"p_{label}"] = share
        lines.append(line)
    types = dict.fromkeys(("cell_id", "subject", "outcome", "reasons"), pa.string())
    types |= dict.fromkeys((*(f"p_{label}" for label in predictor.labels), "ood_score"), pa.float64())
    types |= dict.fromkeys(("pixel_hash", "model", "revision", "reason"), pa.string())
    schema = pa.schema(list(types.items()), {_IDENTITY: identity})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema), file)
    return file.getvalue()


def _identity_of(shard: Path) -> str | None:
    """The identity in a shard's metadata; None where it is missing, or empty or cut short, as after a loss of power."""
    try:
        with shard.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    return metadata.get(_IDENTITY.encode(), b"").decode()


def _join(shards: Sequence[Path], output: Path, versions: Mapping[str, str]) -> Scored:
    """Join the shards in their order; the output appears last, and whole."""
    table = pa.concat_tables(list(map(_read, shards)))
    unreadable = table.filter(pc.is_valid(table["reason"])).select(["cell_id", "reason"])
    if unreadable.num_rows:
        write_table(unreadable.rename_columns(["source", "reason"]), unreadable_list(output))
    else:
        # An earlier run's list would be taken for this one's.
        unreadable_list(output).unlink(missing_ok=True)
    predicted = table.filter(pc.is_null(table["reason"])).drop_columns("reason")
    metadata = {"notice": RESEARCH_NOTICE, "scored_with": json.dumps(versions)}
    write_table(predicted.replace_schema_metadata(metadata), output)
    outcomes = Counter(predicted["outcome"].to_pylist())
    return Scored(
        cells=outcomes.total(),
        unreadable=unreadable.num_rows,
        refused=sum(outcomes[outcome] for outcome in REFUSED),
        abstained=outcomes[ABSTAIN],
        transparent=pc.sum(pc.match_substring(predicted["reasons"], "filled_")).as_py() or 0,
    )


def _read(path: Path) -> pa.Table:
    """A Parquet file's table, through Python's own file: Arrow takes no name that is not UTF-8."""
    with path.open("rb") as file:
        return pq.read_table(file).replace_schema_metadata()


def safe_cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula."""
    return re.sub(_FORMULA, r"'\1", text)


def write_table(table: pa.Table, path: Path) -> Path:
    """Write a table atomically, in the format of its name (`OUTPUT_SUFFIXES`); `OSError` where the disk refuses.

    In a CSV file, which has no types of cells, what a spreadsheet would compute is quoted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix.lower() == ".parquet":
            pq.write_table(table, file, row_group_size=_ROW_GROUP)
        else:
            columns = []
            for column in table.columns:
                if pa.types.is_string(column.type):
                    column = pc.replace_substring_regex(column, _FORMULA, r"'\1")
                columns.append(column)
            csv.write_csv(pa.table(columns, list(map(safe_cell, table.column_names))), file)
    return path
