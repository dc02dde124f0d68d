"""The tables of bulk scoring: a shard's rows, all shards joined into one file, and what they say of each subject."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.images import UnreadableImage
from leukoscope.inference.decision import ABSTAIN, REFUSED, Thresholds
from leukoscope.inference.score_sources import SourceCell

if TYPE_CHECKING:
    import pyarrow as pa

    from leukoscope.inference.patient import PatientPrediction, PatientRule
    from leukoscope.inference.predictor import Prediction

TABLE_SUFFIXES = (".parquet", ".csv", ".json", ".xlsx")
MOST_XLSX_ROWS = 1_048_575
"""Of a sheet, below its heading."""
Answered = tuple[SourceCell, "Prediction | UnreadableImage"]
# Shards joined at a time: row groups of some tens of thousands of rows are what readers of Parquet like.
_JOINED_AT_ONCE = 64
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_UNREADABLE_COLUMNS = ("source", "reason")


def score_schema(labels: Sequence[str], thresholds: Thresholds) -> pa.Schema:
    """Columns of the output: the outcome and why, one probability a class, one call an operating point."""
    import pyarrow as pa

    text, number, truth = pa.string(), pa.float64(), pa.bool_()
    return pa.schema(
        [
            ("cell_id", text),
            ("subject", text),
            ("outcome", text),
            ("reasons", text),
            *((f"p_{label}", number) for label in labels),
            *((f"positive_{name}", truth) for name in thresholds.operating_points),
            ("ood_score", number),
            ("model", text),
            ("revision", text),
        ]
    )


def shard_table(answered: Sequence[Answered], labels: tuple[str, ...], thresholds: Thresholds) -> pa.Table:
    """Rows of the output, then one for each unreadable picture, with a `reason` in place of an answer."""
    import pyarrow as pa

    known = [(cell, answer) for cell, answer in answered if not isinstance(answer, UnreadableImage)]
    probabilities = np.array([list(answer.probabilities.values()) for _, answer in known]).reshape(-1, len(labels))
    columns = {
        "cell_id": [cell.cell_id for cell, _ in known],
        "subject": [cell.subject or None for cell, _ in known],
        "outcome": [answer.outcome for _, answer in known],
        "reasons": [" ".join(reason.code for reason in answer.decision.reasons) for _, answer in known],
        **{f"p_{label}": probabilities[:, k] for k, label in enumerate(labels)},
        **{f"positive_{name}": called for name, called in thresholds.positives(probabilities, labels).items()},
        "ood_score": [answer.checks.ood_score for _, answer in known],
        "model": [answer.model for _, answer in known],
        "revision": [answer.revision for _, answer in known],
    }
    problems = [
        {"cell_id": cell.cell_id, "reason": str(answer).removeprefix(f"{cell.file}: ")}
        for cell, answer in answered
        if isinstance(answer, UnreadableImage)
    ]
    damaged = pa.Table.from_pylist(problems, pa.schema([("cell_id", pa.string()), ("reason", pa.string())]))
    return pa.concat_tables([pa.table(columns, score_schema(labels, thresholds)), damaged], promote_options="default")


@dataclass(frozen=True)
class Scored:
    """What a run has scored.

    Attributes:
        cells, unreadable: rows of the output and of the list of unreadable files.
        refused, abstained: cells among the first that are out of distribution or no cells, and that get no class for
            want of confidence.
        subjects: one row a subject, sorted; see `_shares`.
    """

    cells: int
    unreadable: int
    refused: int
    abstained: int
    subjects: pa.Table


def join_shards(
    shards: Sequence[Path],
    output: Path,
    unreadable: Path,
    *,
    labels: Sequence[str],
    metadata: Mapping[str, str],
    unreadable_before: Sequence[tuple[str, str]],
) -> Scored:
    """Join shards in their order, a few at a time, into the table of cells and the list of unreadable files.

    Args:
        output, unreadable: Parquet and CSV to be written.
        metadata: of the Parquet file, beside the research notice.
        unreadable_before: (source, reason) of files that never came to a shard.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    whole = pq.read_schema(shards[0])
    schema = whole.remove(whole.get_field_index("reason")).with_metadata({"notice": RESEARCH_NOTICE, **metadata})
    cells, damaged, refused, abstained = 0, len(unreadable_before), 0, 0
    sums = []
    with pq.ParquetWriter(output, schema) as writer, unreadable.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_UNREADABLE_COLUMNS)
        rows.writerows(unreadable_before)
        for first in range(0, len(shards), _JOINED_AT_ONCE):
            table = pa.concat_tables([pq.read_table(shard) for shard in shards[first : first + _JOINED_AT_ONCE]])
            answered = table.filter(pc.is_null(table["reason"])).select(schema.names)
            problems = table.filter(pc.is_valid(table["reason"])).select(["cell_id", "reason"]).to_pylist()
            writer.write_table(answered)
            rows.writerows(problem.values() for problem in problems)
            cells, damaged = cells + len(answered), damaged + len(problems)
            refused += pc.sum(_refused(answered["outcome"])).as_py() or 0
            abstained += pc.sum(pc.equal(answered["outcome"], ABSTAIN)).as_py() or 0
            sums.append(_sums(answered, labels))
    return Scored(cells, damaged, refused, abstained, _shares(pa.concat_tables(sums)))


def _sums(cells: pa.Table, labels: Sequence[str]) -> pa.Table:
    """One row a subject: its cells, and sums over them; cells without a subject are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = cells.filter(pc.is_valid(cells["subject"]))
    columns = {
        "cells": pc.is_valid(known["subject"]),
        **{f"mean_p_{label}": known[f"p_{label}"] for label in labels},
        **{f"share_{label}": pc.equal(known["outcome"], label) for label in labels},
        "share_refused": _refused(known["outcome"]),
        "share_abstained": pc.equal(known["outcome"], ABSTAIN),
    }
    numbers = {name: pc.cast(column, pa.float64()) for name, column in columns.items()}
    return _by_subject(pa.table({"subject": known["subject"], **numbers}))


def _refused(outcomes: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(outcomes, value_set=pa.array(REFUSED))


def _by_subject(table: pa.Table) -> pa.Table:
    # On one thread, since the order in which numbers are added decides their last digits.
    numbers = [name for name in table.column_names if name != "subject"]
    summed = table.group_by("subject", use_threads=False).aggregate([(name, "sum") for name in numbers])
    return summed.rename_columns({f"{name}_sum": name for name in numbers})


def _shares(sums: pa.Table) -> pa.Table:
    """Sums of several parts → cells, mean probabilities, and the share of cells with each outcome."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sums = _by_subject(sums).sort_by("subject")
    means = {
        name: pc.divide(sums[name], sums["cells"]) for name in sums.column_names if name not in ("subject", "cells")
    }
    return pa.table({"subject": sums["subject"], "cells": pc.cast(sums["cells"], pa.int64()), **means})


def patients_table(predictions: Sequence[PatientPrediction]) -> pa.Table:
    """One row a person: columns as `PatientPrediction.to_dict`."""
    import pyarrow as pa

    return pa.Table.from_pylist([prediction.to_dict() for prediction in predictions])


def subjects_table(shares: pa.Table, joined: Path, rule: PatientRule | None) -> pa.Table:
    """One row a subject: the prediction for the person, where the release makes one, then means and shares.

    Args:
        shares: as `Scored.subjects`.
        joined: the table of the cells they were taken from.
        rule: how the release predicts for a person; None where it does not.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    notice = pa.array([RESEARCH_NOTICE] * len(shares), pa.string())
    if rule is None or not len(shares):
        return shares.append_column("notice", notice)
    columns = [f"p_{label}" for label in rule.labels]
    cells = pq.read_table(joined, columns=["subject", "outcome", *columns])
    cells = cells.filter(pc.is_valid(cells["subject"])).sort_by("subject")
    probabilities = np.stack([cells[name].to_numpy() for name in columns], axis=1)
    outcomes = np.array(cells["outcome"].to_pylist(), dtype=object)
    names, firsts = np.unique(np.array(cells["subject"].to_pylist(), dtype=object), return_index=True)
    persons = patients_table(
        [
            rule.predict(p, list(o), patient=name)
            for name, p, o in zip(
                names, np.split(probabilities, firsts[1:]), np.split(outcomes, firsts[1:]), strict=True
            )
        ]
    ).drop_columns(["patient", "cells", "notice"])
    ours = [name for name in shares.column_names if name not in ("subject", "cells", *persons.column_names)]
    both = {name: shares[name] for name in ("subject", "cells")}
    both |= {name: persons[name] for name in persons.column_names} | {name: shares[name] for name in ours}
    return pa.table({**both, "notice": notice})


def check_table(path: Path, flag: str) -> None:
    """Refuse a name that is no table's; raises `LeukoscopeError`."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        kinds = ", ".join(TABLE_SUFFIXES)
        raise LeukoscopeError(f"{flag} {path}: is no kind of table written here; give a name that ends in {kinds}")


def write_table(table: pa.Table, path: Path) -> Path:
    """Write a table as its name says (`TABLE_SUFFIXES`), whole or not at all.

    Raises:
        LeukoscopeError: more rows than a sheet takes.
        OSError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_as(table, aside, path.suffix.lower())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write_as(table: pa.Table, path: Path, suffix: str) -> None:
    import pyarrow.parquet as pq
    from pyarrow import csv as arrow_csv

    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".csv":
        arrow_csv.write_csv(table, path)
    elif suffix == ".json":
        path.write_text(json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        _write_xlsx(table, path)


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
