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
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pyarrow import csv

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, LeukoscopeError, __version__
from leukoscope.data.cell_tables import CellTable, located, read_table, require_subjects
from leukoscope.data.folder import subject_rule
from leukoscope.data.images import UnreadableImage
from leukoscope.data.layouts import is_image, left_out, other_kinds, walk
from leukoscope.data.subject_ids import check_subject_ids
from leukoscope.data.subjects import find_subjects, is_table, names_no_subject
from leukoscope.data.table_files import read_content
from leukoscope.files import atomic_file, content_hashes, file_sha256, remedy
from leukoscope.inference.prediction import ABSTAIN, REFUSED, Prediction
from leukoscope.progress import progress, shown_name

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor

CELLS_PER_SHARD = 256
"""Cells that an interruption may cost, at most."""
OUTPUT_SUFFIXES = (".parquet", ".csv")
_PARTS = ".parts"  # how the name of a folder of shards ends
_IDENTITY = "cells"  # in a shard's metadata: sha256 over the names, subjects and contents of its cells
# Shards joined at a time: row groups of some tens of thousands of rows suit readers of Parquet.
_JOINED_AT_ONCE = 256
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
        has_subjects: whether it names the cells' subjects.
        report: for the user; "" where there is nothing to report.
        table: the file that it was read from; None for a folder.
        states: file → what changes with its content, where no file of this machine can be hashed.
        folder: that the cells were found in; "" for a table.
    """

    cells: Sequence[SourceCell]
    has_subjects: bool
    report: str = ""
    table: Path | None = None
    states: Mapping[str, str] | None = None
    folder: str = ""

    def subjects(self, labels: Sequence[str]) -> list[str]:
        """The subject of each cell: named by a table or a pattern, else C-NMC's file names, else the top folders.

        Cells that lie outside any folder are all of one subject, called "".

        Raises:
            DataError: as `subject_of`, some cells outside the folders of the others, or subject ids as of
                `check_subject_ids`.
        """
        subjects = [self.subject_of(cell, labels) for cell in self.cells]
        if "" in subjects and any(subjects):
            raise DataError(
                f"{self.cells[subjects.index('')].file}: lies outside the folders of subjects; move it into the folder "
                "of its subject, or away"
            )
        places = {subject: cell.file for subject, cell in zip(subjects, self.cells, strict=True) if subject}
        check_subject_ids(places, str(self.table or self.folder))
        return subjects

    def subject_of(self, cell: SourceCell, labels: Sequence[str]) -> str:
        """Return a cell's subject; where none is named its top folder, or outside any folder "".

        A folder that is named like one of the release's `labels`, or a table without subjects, is an error.
        """
        if self.table is not None:
            require_subjects(self.table, self.has_subjects)
        if cell.subject or self.has_subjects:
            return cell.subject
        path = PurePath(cell.cell_id)
        if path.is_absolute() or len(path.parts) < 2:
            return ""
        name = path.parts[0]
        if names_no_subject(name, labels):
            kind = "a class" if name in labels else "called like a class, a split or a collection"
            raise DataError(
                f"{cell.file}: lies in the folder {name!r}, which is {kind}, not a subject; name the subjects with "
                "--subject_pattern, or give a folder with one folder per subject"
            )
        return name


def open_subjects(named: str, *, subject_pattern: str | None = None) -> CellSource:
    """Open cells of which the subjects must be known; arguments and errors as of `open_source`.

    Where neither tables, names nor a pattern name them, `CellSource.subjects` takes the top folders of a folder.
    `CellSource.report` says so.
    """
    source = open_source(named, subject_pattern=subject_pattern)
    if not source.folder or source.has_subjects:
        return source
    if any("/" in cell.cell_id for cell in source.cells):
        note = f"Subjects are the folders directly in {source.folder}."
    else:
        note = f"All cells of {source.folder} count as one subject's."
    return replace(source, report=f"{source.report}\n{note}".strip())


def _with_subjects(source: CellSource) -> CellSource:
    """The cells of a folder with the subjects that its tables or C-NMC's file names tell, and where they come from."""
    pictures = [cell.cell_id for cell in source.cells]
    subjects = find_subjects(pictures, _tables_below(Path(source.folder)), (), by_folder=False)
    source = replace(source, report="\n".join(filter(None, [source.report, *subjects.notes])))
    if not subjects.subject_of:
        return source
    cells = [cell._replace(subject=subjects.subject_of[cell.cell_id]) for cell in source.cells]
    return replace(source, cells=cells, has_subjects=True)


def _tables_below(root: Path) -> dict[str, bytes]:
    """Path below a folder → content of each table that lies there."""
    tables = {}
    for folder, names in walk(root):
        if folder.endswith(_PARTS):
            continue  # an unfinished run's, which may be damaged
        for name in filter(is_table, names):
            path = Path(folder, name)
            tables[path.relative_to(root).as_posix()] = read_content(path)
    return tables


def open_source(named: str, *, subject_pattern: str | None = None) -> CellSource:
    """Open a source of cells.

    The tables that lie in a folder name its subjects, as `find_subjects` reads them, else C-NMC's file names do;
    `CellSource.report` says which.

    Args:
        named: a folder, or a .csv or .parquet file with a column of paths relative to it.
        subject_pattern: a regular expression over a cell's path, whose group `subject` (or first group) names its
            subject.

    Raises:
        DataError: no such input, no cell in it, a column missing, a path that the pattern does not match, a
            folder or table that cannot be read, or as `find_subjects`.
    """
    path = Path(named)
    if not path.exists():
        raise DataError(f"{named}: no such folder or file; give a folder of images, or a table of them")
    kinds = Counter[str]()  # of the files in a folder that are no images
    table: CellTable | None = None
    rows: Iterable[tuple[str, str, str]]
    if path.is_dir():
        root = path
        rows = _images_below(path, kinds)
    else:
        root = path.parent
        table = _table_of_cells(path, subject_pattern)
        rows = ((row.cell_id, file, row.subject) for row, file in located(table, root))
    subject_of = None
    if subject_pattern:
        subject_of = subject_rule(subject_pattern)
    cells = []
    for cell_id, file, subject in rows:
        if subject_of is not None:
            subject = subject_of(file)
        # A file's name need not be UTF-8.
        cells.append(SourceCell(shown_name(cell_id), shown_name(subject), os.path.join(root, file)))
    check_subject_ids({cell.subject: cell.file for cell in cells if cell.subject}, named)
    if not cells:
        raise DataError(f"{named}: holds no cell; give a folder of images, or a table with rows")
    if table is None:
        source = CellSource(cells, subject_of is not None, left_out(kinds), folder=named)
        return source if source.has_subjects else _with_subjects(source)
    return CellSource(cells, table.has_subjects or subject_of is not None, table=path)


def _table_of_cells(path: Path, subject_pattern: str | None) -> CellTable:
    """Read a table of paths; `DataError` for another file, or one that names subjects as a pattern does."""
    suffix = path.suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise DataError(f"{path}: is a {suffix or 'bare'} file; give a folder, .csv or .parquet")
    table = read_table(path)
    if table.has_subjects and subject_pattern:
        raise ConfigError(
            f"{path} --subject_pattern {shlex.quote(subject_pattern)}: a column of it names the subjects "
            "as well; leave the pattern out, or the column"
        )
    return table


def _images_below(root: Path, kinds: Counter[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each image's path as plain strings: `Path` objects of a million would take a gigabyte."""
    for folder, names in walk(root):
        kinds.update(other_kinds(names))
        for name in filter(is_image, names):
            path = Path(os.path.relpath(os.path.join(folder, name), root)).as_posix()
            yield path, path, ""


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
        LeukoscopeError: another process is writing the shards, or a write error; finished shards stay.
    """
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
        hashes = source.states or content_hashes([cell.file for cell in cells], shard.with_suffix(".json"))
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
    """Join the shards in their order, a few at a time; the output appears last, and whole."""
    joined = shards[0].with_name("joined.parquet")
    metadata = {"notice": RESEARCH_NOTICE, "scored_with": json.dumps(versions)}
    schema = _read(shards[0]).schema
    schema = schema.remove(schema.get_field_index("reason")).with_metadata(metadata)
    unreadable = []
    outcomes = Counter[str]()
    transparent = 0
    with joined.open("wb") as sink, pq.ParquetWriter(sink, schema) as writer:
        for first in range(0, len(shards), _JOINED_AT_ONCE):
            table = pa.concat_tables([_read(shard) for shard in shards[first : first + _JOINED_AT_ONCE]])
            predicted = table.filter(pc.is_null(table["reason"])).select(schema.names)
            writer.write_table(predicted)
            outcomes.update(predicted["outcome"].to_pylist())
            transparent += pc.sum(pc.match_substring(predicted["reasons"], "filled_")).as_py() or 0
            unreadable.append(table.filter(pc.is_valid(table["reason"])).select(["cell_id", "reason"]))
    listed = pa.concat_tables(unreadable).rename_columns(["source", "reason"])
    if listed.num_rows:
        write_table(listed, unreadable_list(output))
    else:
        # An earlier run's list would be taken for this one's.
        unreadable_list(output).unlink(missing_ok=True)
    if output.suffix.lower() == ".parquet":
        joined.rename(output)
    else:
        write_table(_read(joined), output)
    return Scored(
        cells=outcomes.total(),
        unreadable=listed.num_rows,
        refused=sum(outcomes[outcome] for outcome in REFUSED),
        abstained=outcomes[ABSTAIN],
        transparent=transparent,
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
            pq.write_table(table, file)
        else:
            columns = []
            for column in table.columns:
                if pa.types.is_string(column.type):
                    column = pc.replace_substring_regex(column, _FORMULA, r"'\1")
                columns.append(column)
            csv.write_csv(pa.table(columns, list(map(safe_cell, table.column_names))), file)
    return path
