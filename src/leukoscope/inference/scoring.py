"""Bulk scoring: every cell of a source predicted into one table, shard by shard.

A shard is written aside and renamed, so a run may be killed at any moment and goes on with the first shard that is not
there. Several processes share the work by taking every n-th shard; all they share is the folder of shards beside the
output, and the main process joins those in the order of the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope import LeukoscopeError, __version__
from leukoscope.cells.files import write_whole
from leukoscope.inference.patient import PatientRule
from leukoscope.inference.score_sources import CellSource, SourceCell
from leukoscope.inference.score_tables import (
    Answered,
    Scored,
    check_table,
    join_shards,
    shard_table,
    subjects_table,
    write_table,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from leukoscope.inference.predictor import Predictor

CELLS_PER_SHARD = 1024
_MANIFEST = "manifest.json"
# Handed to the predictor together: it opens the next batch while one is answered, but only of what it was given.
_BATCHES_AT_ONCE = 8
_LOOK_AGAIN = 0.1  # seconds between two looks for what another process writes


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
        """Whether this one joins the shards and speaks to the user."""
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
    """Answer every cell of a source; goes on where an earlier run with the same model and cells was interrupted.

    Args:
        output: table of `TABLE_SUFFIXES`, one row a cell; shards lie in `output`.parts/ until all are there, and files
            that could not be read are listed in `unreadable_list(output)`.
        by_subject: table with one row a subject; see `subjects_table`.
        batch_size: cells that go through the network at once; may be another when a run goes on.
        progress: called with (done, total) cells of this process.

    Returns:
        what was scored; None in any but the main process.

    Raises:
        LeukoscopeError: the shards there are of another run, or the disk refuses; finished shards stay.
    """
    run = _Run(predictor, source, output, cells_per_shard)
    try:
        if not run.join(worker):
            return None
        run.score_missing(worker, batch_size, progress)
        return run.finish(by_subject) if worker.is_main else None
    except OSError as error:
        if not worker.is_main and output.exists():
            # The main process has joined all shards and taken their folder away.
            return None
        raise LeukoscopeError(
            f"{error.filename or output}: cannot be read or written ({error.strerror or error}); mend that, for "
            "example by freeing some space, and give the same command again: finished shards are kept"
        ) from None


class _Run:
    """One scoring run: what it is known by, and its folder of shards."""

    def __init__(self, predictor: Predictor, source: CellSource, output: Path, cells_per_shard: int):
        release = predictor.release
        self._predictor, self._source, self._output = predictor, source, output
        self._parts = output.with_name(f"{output.name}.parts")
        self._manifest = {
            "leukoscope": __version__,
            "model": release.name,
            "revision": release.revision,
            "model_files": _digest(release.folder) if release.folder else "",
            "backend": predictor.backend.name,
            "precision": predictor.backend.precision,
            "input": source.fingerprint,
            "cells": source.count,
            "cells_per_shard": cells_per_shard,
        }
        firsts = range(0, source.count, cells_per_shard)
        self._shards = [range(first, min(first + cells_per_shard, source.count)) for first in firsts]

    def join(self, worker: Worker) -> bool:
        """Begin the run or go on with it; False for a process that came when all was done."""
        path = self._parts / _MANIFEST
        if worker.is_main and not path.exists():
            self._parts.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(self._manifest, indent=1))
        # Only the main process makes the folder: one that comes late must not make it anew when all is done.
        while not path.exists():
            if self._output.exists():
                return False
            time.sleep(_LOOK_AGAIN)
        begun = json.loads(path.read_text())
        for key, value in self._manifest.items():
            if begun.get(key) != value:
                raise LeukoscopeError(
                    f"{self._parts}: was begun with another {key} ({begun.get(key)} there, {value} now); give what it "
                    "was begun with, or remove that folder to begin anew"
                )
        return True

    def score_missing(self, worker: Worker, batch_size: int, progress: Callable[[int, int], None] | None) -> None:
        """Answer this process's share of the shards, less those that are there."""
        own = range(worker.number, len(self._shards), worker.count)
        missing = [number for number in own if not self._path(number).exists()]
        total = sum(len(self._shards[number]) for number in own)
        done = total - sum(len(self._shards[number]) for number in missing)
        cells = self._source.read([self._shards[number] for number in missing])
        for number in missing:
            answered: list[Answered] = []
            for answer in self._answers(islice(cells, len(self._shards[number])), batch_size):
                answered.append(answer)
                done += 1
                if progress:
                    progress(done, total)
            self._write(number, shard_table(answered, self._predictor.labels, self._predictor.thresholds))

    def _answers(self, cells: Iterator[SourceCell], batch_size: int) -> Iterator[Answered]:
        while some := list(islice(cells, _BATCHES_AT_ONCE * batch_size)):
            # Still encoded: the predictor decodes one batch ahead of the network, and no more.
            answers = self._predictor.answers([cell.picture for cell in some], batch_size=batch_size)
            yield from zip(some, answers, strict=True)

    def _write(self, number: int, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        aside = self._parts / f".{number}.{os.getpid()}.tmp"
        pq.write_table(table, aside)
        aside.rename(self._path(number))

    def _path(self, number: int) -> Path:
        return self._parts / f"shard-{number:06d}.parquet"

    def finish(self, by_subject: Path | None) -> Scored:
        """Wait for the other processes' shards and join all; the output appears last, and whole."""
        import pyarrow.parquet as pq

        shards = [self._path(number) for number in range(len(self._shards))]
        while not all(shard.exists() for shard in shards):
            time.sleep(_LOOK_AGAIN)
        joined, listed = self._parts / "joined.parquet", self._parts / "unreadable.csv"
        scored = join_shards(
            shards,
            joined,
            listed,
            labels=self._predictor.labels,
            metadata={"scored_with": json.dumps(self._manifest)},
            unreadable_before=self._source.unreadable,
        )
        if by_subject is not None:
            rule = PatientRule.from_metrics(self._predictor.release.metrics, self._predictor.labels)
            write_table(subjects_table(scored.subjects, joined, rule), by_subject)
        if scored.unreadable:
            listed.replace(unreadable_list(self._output))
        else:
            # An earlier run's list would be taken for this one's.
            unreadable_list(self._output).unlink(missing_ok=True)
        if self._output.suffix.lower() == ".parquet":
            joined.rename(self._output)
        else:
            write_table(pq.read_table(joined), self._output)
        shutil.rmtree(self._parts)
        return scored


def _digest(release: Path) -> str:
    """Changes with a release's weights, preprocessing or thresholds; a local folder has no revision that would."""
    digest = hashlib.sha256()
    for path in sorted((*release.glob("*.json"), *release.glob("*.safetensors"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
