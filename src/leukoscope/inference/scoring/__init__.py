"""Bulk scoring: every cell of a source predicted into one table, shard by shard.

A shard is written aside and renamed, so a run may be killed at any moment and resumes with the first shard that is not
there. Several processes share the work by taking every n-th shard; all they share is the folder of shards beside the
output, and the main process joins those in the order of the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope import LeukoscopeError, __version__
from leukoscope.files import write_atomic
from leukoscope.inference.patient import PatientRule
from leukoscope.inference.scoring.sources import CellSource
from leukoscope.inference.scoring.tables import (
    Scored,
    check_table,
    join_shards,
    shard_table,
    subjects_table,
    write_table,
)

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor

CELLS_PER_SHARD = 1024
_MANIFEST = "manifest.json"
_POLL = 0.1  # seconds between two checks for what another process writes


@dataclass(frozen=True)
class Worker:
    """Which of the processes that share the work this one is, as torchrun and accelerate launch number them."""

    number: int = 0
    count: int = 1

    @classmethod
    def from_environment(cls) -> Worker:
        """The only one where no launcher says otherwise."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def is_main(self) -> bool:
        """Whether this one joins the shards and prints messages."""
        return self.number == 0


_ALONE = Worker()


def unreadable_list(output: Path) -> Path:
    """Where the files that could not be read are listed."""
    return output.with_suffix(".unreadable.csv")


def check_output(output: Path) -> None:
    """Refuse what could not be written at the end of a long run.

    Raises:
        LeukoscopeError: another kind of file, or one that is already there.
    """
    check_table(output, "--output")
    if output.exists():
        raise LeukoscopeError(f"--output {output}: is already there; move it, or name another file")


def check_by_subject(by_subject: Path, source: CellSource) -> None:
    """Refuse a table by subject that could not be made; raises `LeukoscopeError`."""
    check_table(by_subject, "--by_subject")
    if not source.has_subjects:
        raise LeukoscopeError(
            f"--by_subject {by_subject}: the input does not say which subject a cell is of; give --subject_pattern, "
            "or a table with a column 'subject'"
        )


def score_cells(
    predictor: Predictor,
    source: CellSource,
    output: Path,
    *,
    by_subject: Path | None = None,
    cells_per_shard: int = CELLS_PER_SHARD,
    batch_size: int = 32,
    worker: Worker = _ALONE,
    progress: Callable[[int, int], None] | None = None,
) -> Scored | None:
    """Predict every cell of a source; resumes where an earlier run with the same model and cells was interrupted.

    Args:
        output: table of `TABLE_SUFFIXES`, one row a cell; shards lie in `output`.parts/ until all are there, and files
            that could not be read are listed in `unreadable_list(output)`.
        by_subject: table with one row a subject; see `subjects_table`.
        batch_size: cells that go through the network at once; may be another when a run is resumed.
        progress: called with (done, total) cells of this process.

    Returns:
        what was scored; None in any but the main process.

    Raises:
        LeukoscopeError: the shards there are of another run, or the disk refuses; finished shards stay.
    """
    run = _Run(predictor, source, output, cells_per_shard)
    try:
        if not run.begin_or_resume(worker):
            return None
        run.score_missing(worker, batch_size, progress)
        return run.join(by_subject) if worker.is_main else None
    except OSError as error:
        if not worker.is_main and output.exists():
            # The main process has joined all shards and taken their folder away.
            return None
        raise LeukoscopeError(
            f"{error.filename or output}: cannot be read or written ({error.strerror or error}); free some "
            "space or check who may write there, and give the same command again: finished shards are kept"
        ) from None


class _Run:
    """One scoring run: what identifies it, and its folder of shards."""

    def __init__(self, predictor: Predictor, source: CellSource, output: Path, cells_per_shard: int):
        self.predictor, self.source, self.output = predictor, source, output
        self.parts = output.with_name(f"{output.name}.parts")
        release, digest = predictor.release, hashlib.sha256()
        # Changes with a release's weights, preprocessing or thresholds; a local folder has no revision that would.
        if release.folder:
            for path in sorted((*release.folder.glob("*.json"), *release.folder.glob("*.safetensors"))):
                digest.update(path.name.encode() + path.read_bytes())
        self.manifest = {
            "leukoscope": __version__,
            "model": release.name,
            "revision": release.revision,
            "model_files": digest.hexdigest() if release.folder else "",
            "backend": predictor.backend.name,
            "precision": predictor.backend.precision,
            "input": source.fingerprint,
            "cells": source.count,
            "cells_per_shard": cells_per_shard,
        }
        firsts = range(0, source.count, cells_per_shard)
        self.ranges = [range(first, min(first + cells_per_shard, source.count)) for first in firsts]
        self.shards = [self.parts / f"shard-{number:06d}.parquet" for number in range(len(firsts))]

    def begin_or_resume(self, worker: Worker) -> bool:
        """Check that the folder of shards is this run's; False for a process that started when all was done."""
        path = self.parts / _MANIFEST
        if worker.is_main and not path.exists():
            self.parts.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(self.manifest, indent=1))
        # Only the main process makes the folder: one that comes late must not make it anew when all is done.
        while not path.exists():
            if self.output.exists():
                return False
            time.sleep(_POLL)
        begun = json.loads(path.read_text())
        for key, value in self.manifest.items():
            if begun.get(key) != value:
                raise LeukoscopeError(
                    f"{self.parts}: was begun with another {key} ({begun.get(key)} there, {value} now); give what it "
                    "was begun with, or remove that folder to begin anew"
                )
        return True

    def score_missing(self, worker: Worker, batch_size: int, progress: Callable[[int, int], None] | None) -> None:
        """Predict this process's share of the shards, less those that are there."""
        import pyarrow.parquet as pq

        own = range(worker.number, len(self.shards), worker.count)
        missing = [number for number in own if not self.shards[number].exists()]
        total = sum(len(self.ranges[number]) for number in own)
        done = total - sum(len(self.ranges[number]) for number in missing)
        cells = self.source.read([self.ranges[number] for number in missing])
        for number in missing:
            # Shard by shard, so that a resumed run has the batches, and to the last bit the numbers, of a whole one.
            shard, pictures = tee(islice(cells, len(self.ranges[number])))
            predictions = self.predictor.iter_predictions((cell.picture for cell in pictures), batch_size=batch_size)
            rows = []
            for row in zip(shard, predictions, strict=True):
                rows.append(row)
                done += 1
                if progress:
                    progress(done, total)
            aside = self.parts / f".{number}.{os.getpid()}.tmp"
            pq.write_table(shard_table(rows, self.predictor.labels, self.predictor.thresholds), aside)
            aside.rename(self.shards[number])

    def join(self, by_subject: Path | None) -> Scored:
        """Wait for the other processes' shards and join all; the output appears last, and whole."""
        import pyarrow.parquet as pq

        while not all(shard.exists() for shard in self.shards):
            time.sleep(_POLL)
        joined, listed = self.parts / "joined.parquet", self.parts / "unreadable.csv"
        metadata = {"scored_with": json.dumps(self.manifest)}
        scored = join_shards(self.shards, joined, listed, metadata=metadata, unreadable_before=self.source.unreadable)
        if by_subject is not None:
            rule = PatientRule.from_metrics(self.predictor.release.metrics, self.predictor.labels)
            subjects = subjects_table(joined, self.predictor.labels, rule)
            write_table(subjects, by_subject)
            scored = replace(scored, subjects=len(subjects))
        if scored.unreadable:
            listed.replace(unreadable_list(self.output))
        else:
            # An earlier run's list would be taken for this one's.
            unreadable_list(self.output).unlink(missing_ok=True)
        if self.output.suffix.lower() == ".parquet":
            joined.rename(self.output)
        else:
            write_table(pq.read_table(joined), self.output)
        shutil.rmtree(self.parts)
        return scored
