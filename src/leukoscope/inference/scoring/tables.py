"""The tables of bulk scoring: a shard's rows, all shards joined into one file, and one row a subject."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import UnreadableImage
from leukoscope.inference.prediction import ABSTAIN, REFUSED, Thresholds
from leukoscope.inference.scoring.sources import SourceCell

if TYPE_CHECKING:
    import pyarrow as pa

    from leukoscope.inference.patient import PatientPrediction, PatientRule
    from leukoscope.inference.prediction import Prediction

TABLE_SUFFIXES = (".parquet", ".csv", ".json", ".xlsx")
MOST_XLSX_ROWS = 1_048_575
"""Of a sheet, below its heading."""
# Shards joined at a time: row groups of some tens of thousands of rows are what readers of Parquet like.
_JOINED_AT_ONCE = 64
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


def shard_table(
    rows: Sequence[tuple[SourceCell, Prediction | UnreadableImage]], labels: tuple[str, ...], thresholds: Thresholds
) -> pa.Table:
    """Rows of the output, then one for each unreadable picture, with a `reason` in place of a prediction.

    Columns: the outcome and why, one probability a class, for each operating point whether the cell is positive.
    """
    import pyarrow as pa

    predicted = [(cell, found) for cell, found in rows if not isinstance(found, UnreadableImage)]
    probabilities = np.array([list(found.probabilities.values()) for _, found in predicted]).reshape(-1, len(labels))
    text, number, truth = pa.string(), pa.float64(), pa.bool_()
    columns = {
        "cell_id": pa.array([cell.cell_id for cell, _ in predicted], text),
        "subject": pa.array([cell.subject or None for cell, _ in predicted], text),
        "outcome": pa.array([found.outcome for _, found in predicted], text),
        "reasons": pa.array(
            [" ".join(reason.code for reason in found.decision.reasons) for _, found in predicted], text
        ),
        **{f"p_{label}": pa.array(probabilities[:, k], number) for k, label in enumerate(labels)},
        **{f"positive_{k}": pa.array(v, truth) for k, v in thresholds.positives(probabilities, labels).items()},
        "ood_score": pa.array([found.checks.ood_score for _, found in predicted], number),
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


@dataclass(frozen=True)
class Scored:
    """What a run has scored.

    Attributes:
        cells, unreadable: rows of the output and of the list of unreadable files.
        refused, abstained: cells among the first that are out of distribution or no cells, and that get no class for
            want of confidence.
        subjects: rows of the table by subject; 0 where none was asked for.
    """

    cells: int
    unreadable: int
    refused: int
    abstained: int
    subjects: int = 0


def join_shards(
    shards: Sequence[Path],
    output: Path,
    unreadable: Path,
    *,
    metadata: Mapping[str, str],
    unreadable_before: Sequence[tuple[str, str]],
) -> Scored:
    """Join shards in their order, a few at a time, into the table of cells and the list of unreadable files.

    Args:
        output, unreadable: Parquet and CSV to be written.
        metadata: of the Parquet file, beside the research notice.
        unreadable_before: (source, reason) of files that were unreadable before they came to a shard.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    whole = pq.read_schema(shards[0])
    schema = whole.remove(whole.get_field_index("reason")).with_metadata({"notice": RESEARCH_NOTICE, **metadata})
    cells, damaged = 0, len(unreadable_before)
    outcomes: Counter[str] = Counter()
    with pq.ParquetWriter(output, schema) as writer, unreadable.open("w", newline="", encoding="utf-8") as file:
        listed = csv.writer(file)
        listed.writerow(("source", "reason"))
        listed.writerows(unreadable_before)
        for first in range(0, len(shards), _JOINED_AT_ONCE):
            table = pa.concat_tables([pq.read_table(shard) for shard in shards[first : first + _JOINED_AT_ONCE]])
            scored = table.filter(pc.is_null(table["reason"])).select(schema.names)
            problems = table.filter(pc.is_valid(table["reason"])).select(["cell_id", "reason"]).to_pylist()
            writer.write_table(scored)
            listed.writerows(problem.values() for problem in problems)
            cells, damaged = cells + len(scored), damaged + len(problems)
            for count in pc.value_counts(scored["outcome"]).to_pylist():
                outcomes[count["values"]] += count["counts"]
    return Scored(cells, damaged, sum(outcomes[one] for one in REFUSED), outcomes[ABSTAIN])


def patients_table(predictions: Sequence[PatientPrediction]) -> pa.Table:
    """One row a person: columns as `PatientPrediction.to_dict`."""
    import pyarrow as pa

    return pa.Table.from_pylist([prediction.to_dict() for prediction in predictions])


def subjects_table(joined: Path, labels: Sequence[str], rule: PatientRule | None) -> pa.Table:
    """One row a subject, sorted: the prediction for the person, where the release makes one, then means and shares.

    Args:
        joined: the table of the cells; those without a subject are left out.
        labels: the release's classes.
        rule: how the release predicts for a person; None where it does not.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    probabilities = [f"p_{label}" for label in labels]
    # As dictionaries, since both hold few different texts.
    texts = ["subject", "outcome"]
    cells = pq.read_table(joined, columns=[*texts, *probabilities], read_dictionary=texts)
    cells = cells.filter(pc.is_valid(cells["subject"]))
    outcome = cells["outcome"].cast(pa.string())
    columns = {
        "subject": cells["subject"].cast(pa.string()),
        **{f"mean_p_{label}": cells[f"p_{label}"] for label in labels},
        **{f"share_{label}": pc.equal(outcome, label) for label in labels},
        "share_refused": pc.is_in(outcome, value_set=pa.array(REFUSED)),
        "share_abstained": pc.equal(outcome, ABSTAIN),
    }
    means = [name for name in columns if name != "subject"]
    # On one thread, since the order in which numbers are added decides their last digits.
    grouped = pa.table(columns).group_by("subject", use_threads=False)
    shares = grouped.aggregate([("subject", "count"), *((name, "mean") for name in means)]).sort_by("subject")
    found = {"subject": shares["subject"], "cells": shares["subject_count"]}
    if rule is not None and len(shares):
        rows = pa.table({"subject": columns["subject"], "outcome": outcome, **{p: cells[p] for p in probabilities}})
        rows = rows.sort_by("subject")
        firsts = np.cumsum(shares["subject_count"].to_numpy())[:-1]
        values = np.split(np.stack([rows[name].to_numpy() for name in probabilities], axis=1), firsts)
        outcomes = np.split(rows["outcome"].to_numpy(), firsts)
        persons = patients_table([rule.predict(p, list(o)) for p, o in zip(values, outcomes, strict=True)])
        persons = persons.drop_columns(["patient", "cells", "notice"])
        found |= {name: persons[name] for name in persons.column_names}
    found |= {name: shares[f"{name}_mean"] for name in means if name not in found}
    return pa.table({**found, "notice": pa.array([RESEARCH_NOTICE] * len(shares), pa.string())})


def check_table(path: Path, flag: str) -> None:
    """Refuse a file name that is no table's; raises `LeukoscopeError`."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        kinds = ", ".join(TABLE_SUFFIXES)
        raise LeukoscopeError(f"{flag} {path}: is no kind of table written here; give a name that ends in {kinds}")


def write_table(table: pa.Table, path: Path) -> Path:
    """Write a table as its name says (`TABLE_SUFFIXES`), whole or not at all.

    Raises:
        LeukoscopeError: more rows than a sheet takes.
        OSError: the disk refuses.
    """
    import pyarrow.parquet as pq
    from pyarrow import csv as arrow_csv

    path.parent.mkdir(parents=True, exist_ok=True)
    aside, suffix = path.with_name(f".{path.name}.{os.getpid()}.tmp"), path.suffix.lower()
    try:
        if suffix == ".parquet":
            pq.write_table(table, aside)
        elif suffix == ".csv":
            arrow_csv.write_csv(table, aside)
        elif suffix == ".json":
            aside.write_text(json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            _write_xlsx(table, aside)
        return aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write_xlsx(table: pa.Table, path: Path) -> None:
    """One sheet, written row by row; text stays text, whatever it begins with."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    if len(table) > MOST_XLSX_ROWS:
        raise LeukoscopeError(
            f"{len(table):,} rows: a sheet of .xlsx takes {MOST_XLSX_ROWS:,}; write .csv or .parquet instead"
        )
    book = Workbook(write_only=True)
    sheet = book.create_sheet("leukoscope")
    sheet.freeze_panes = "A2"

    def text(value: str) -> WriteOnlyCell:
        cell = WriteOnlyCell(sheet, _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", value))
        cell.data_type = "s"  # "=1+1" would be computed
        return cell

    sheet.append([text(name) for name in table.column_names])
    for batch in table.to_batches(max_chunksize=10_000):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            sheet.append([text(value) if isinstance(value, str) else value for value in row])
    book.save(path)
