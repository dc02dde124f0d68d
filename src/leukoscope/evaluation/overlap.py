"""Which cells a release was trained on: by subject, by file name and by pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from leukoscope.data.registry import DATASETS
from leukoscope.data.subject_ids import subject_key
from leukoscope.models.release import PREDICTIONS_FOLDER

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.data.pixel_cache import FramedCells
    from leukoscope.models.release import ReleaseInfo

# Shorter names, such as 12.png, are used again for other cells.
_MIN_NAME_LENGTH = 6


class Overlap(Enum):
    """What is known of whether some cells trained a release, and how to read metrics on them."""

    NOT_RECORDED = "warning", "What trained these weights is not recorded: a test only if none of these cells did."
    SUBJECTS = "bad", "These weights were trained on {both} of these {tested} subjects: not a test."
    SAME_DATA = "bad", "These weights were trained on this data set, whose subjects are not known: not a test."
    SET_APART = "good", "The split that these weights were trained with sets these cells apart."
    OTHER_SUBJECTS = "good", "None of these {tested} subjects trained these weights."
    SAME_UNCLEAR = "warning", "Whether some of these cells trained these weights cannot be told."
    OTHER_HOLDS_THEM = (
        "bad",
        "These weights were trained on another data set ({title}), which holds {cells:,} of these {of:,} cells, too: "
        "not a test.",
    )
    # No verdict "good": a copy that was encoded anew has other pixels.
    OTHER_DATA = (
        "warning",
        "These weights were trained on another data set ({title}); none of these cells has the name or the exact "
        "pixels of one of its cells, but a renamed and re-encoded copy is not recognised.",
    )
    OTHER_UNCLEAR = (
        "warning",
        "These weights were trained on another data set ({title}); whether it holds some of these cells cannot be "
        "told.",
    )

    def __init__(self, verdict: str, sentence: str) -> None:
        """`verdict` is "good", "warning" or "bad", `sentence` a template of both, tested, title, cells and of."""
        self.verdict = verdict
        self.sentence = sentence

    @property
    def certain(self) -> bool:
        """True if every cell that trained the release is counted."""
        return self not in (Overlap.NOT_RECORDED, Overlap.SAME_UNCLEAR, Overlap.OTHER_UNCLEAR)


@dataclass(frozen=True)
class Seen:
    """Which of some cells a release may have been trained on.

    Attributes:
        overlap: what is known of it.
        subjects: those of the cells' subjects that trained it, or a release it was fine-tuned from; sorted.
        cells: how many trained it; 0 where `subjects` say it.
        statement: one sentence for a reader.
    """

    overlap: Overlap
    subjects: tuple[str, ...]
    cells: int
    statement: str


def seen_in_training(
    metrics: Mapping[str, Any],
    known_cells: KnownCells,
    data: LoadedCells,
    subjects: Iterable[str],
    cell_ids: Sequence[str],
    hashes: Sequence[str] | None,
    *,
    split_fingerprints: Sequence[str] = (),
) -> Seen:
    """Determine which of some cells of `data` a release was trained on.

    Args:
        metrics, known_cells: the release's metrics.json, and the cells that it keeps predictions of.
        subjects: of the cells; "" where a cell's is not known.
        cell_ids, hashes: (N,) names, and `pixel_hash` of each where it is known.
        split_fingerprints: of the split that sets these cells apart, and of its test side where they are that side.
    """
    name = source_of(data)
    trainings = trainings_of(metrics)
    tested = set(subjects)
    trained = {
        same_subject(name, subject)
        for training in trainings
        if same_cells(training, data)
        for subject in training["subjects"]
    }
    both = tuple(sorted(subject for subject in tested - {""} if same_subject(name, subject) in trained))
    is_same_data = bool(trainings) and same_cells(trainings[0], data)
    cells_kept = 0 if is_same_data else known_cells.among(cell_ids, hashes)
    facts = {
        "recorded": bool(trainings),
        "shares subjects": bool(both),
        "same data": is_same_data,
        "holds cells": cells_kept > 0,
        "pixels compared": bool(known_cells.hashes) and hashes is not None,
        "subjects named": bool(trainings and trainings[0]["subjects"] and tested - {""}),
        "every subject named": "" not in tested,
        "set apart": not _split_fingerprints(metrics).isdisjoint(split_fingerprints),
        "earlier data clear": not _may_hide_cells(trainings, data),
    }
    overlap = _decide(facts)
    cells = 0
    if overlap is Overlap.OTHER_HOLDS_THEM:
        cells = cells_kept
    elif overlap is Overlap.SAME_DATA:
        cells = len(cell_ids)
    statement = overlap.sentence.format(
        both=len(both),
        tested=len({same_subject(name, subject) for subject in tested} - {""}),
        title=metrics.get("data", {}).get("title"),
        cells=cells,
        of=len(cell_ids),
    )
    return Seen(overlap, both, cells, statement)


# Which facts lead to which overlap: the first row decides all of whose facts hold. A fact that a row does not name may
# be either way.
_DECISIONS: tuple[tuple[Overlap, dict[str, bool]], ...] = (
    (Overlap.NOT_RECORDED, {"recorded": False}),
    (Overlap.SUBJECTS, {"shares subjects": True}),
    (Overlap.OTHER_HOLDS_THEM, {"same data": False, "holds cells": True}),
    (Overlap.OTHER_DATA, {"same data": False, "pixels compared": True, "earlier data clear": True}),
    (Overlap.OTHER_UNCLEAR, {"same data": False}),
    (Overlap.OTHER_SUBJECTS, {"subjects named": True, "every subject named": True, "earlier data clear": True}),
    (Overlap.SAME_UNCLEAR, {"subjects named": True}),
    (Overlap.SAME_DATA, {"set apart": False}),
    (Overlap.SET_APART, {"earlier data clear": True}),
    (Overlap.SAME_UNCLEAR, {}),
)


def _decide(facts: Mapping[str, bool]) -> Overlap:
    """The overlap of the first row of `_DECISIONS` that fits these facts."""
    return next(overlap for overlap, row in _DECISIONS if row.items() <= facts.items())


def _split_fingerprints(metrics: Mapping[str, Any]) -> set[str | None]:
    """Fingerprints of the splits that a release was trained and tested with, and of their test sides."""
    splits = [block["split"] for block in metrics.get("evaluations", ())]
    return {split.get(key) for split in splits for key in ("fingerprint", "test_fingerprint")}


def _may_hide_cells(trainings: Sequence[Mapping[str, Any]], data: LoadedCells) -> bool:
    """Whether an earlier training was on other class folders than these.

    Two sets of class folders may number their subjects alike, or share cells under other names.
    """
    if source_of(data) != "imagefolder":
        return False
    return any(training["name"] == "imagefolder" and not same_cells(training, data) for training in trainings[1:])


def seen_of(
    release: ReleaseInfo, cells: FramedCells, cell_ids: tuple[str, ...], *, split_fingerprints: Sequence[str] = ()
) -> Seen:
    """Determine which of some framed cells a release was trained on, as `seen_in_training`."""
    rows = cells.rows(cell_ids)
    return seen_in_training(
        release.metrics,
        KnownCells.of_release(release.folder),
        cells.data,
        {cells.subjects[row] for row in rows},
        cell_ids,
        cells.hashes_of(rows),
        split_fingerprints=split_fingerprints,
    )


def trainings_of(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the trainings behind a release: its own, then those of the releases it was fine-tuned from.

    Each has the name, fingerprint and unit of its data, and its subjects. [] where metrics.json says nothing of them.
    """
    training = metrics.get("training")
    if not training:
        return []
    data = metrics.get("data", {})
    own = {key: data.get(key) for key in ("name", "fingerprint", "unit")}
    # A copy on the Hub holds the same subjects, called the same.
    own["name"] = data.get("copy_of") or own["name"]
    own["subjects"] = training.get("subjects", [])
    return [own, *training.get("started_from", {}).get("seen", [])]


def same_cells(training: Mapping[str, Any], data: LoadedCells) -> bool:
    """True where it was trained on this data set, or a part of it."""
    if training["fingerprint"] == data.fingerprint:
        return True
    source = source_of(data)
    # All class folders are called imagefolder: their name says nothing.
    return source != "imagefolder" and training["name"] == source


def source_of(data: LoadedCells) -> str:
    """The name of the data set that the cells are of, whatever a copy on the Hub is called."""
    return data.info.copy_of or data.info.name


@dataclass(frozen=True)
class KnownCells:
    """Cells that a release keeps predictions of.

    Attributes:
        names: file names without folder and suffix; names too short to identify a cell are left out.
        hashes: `pixel_hash` of each; empty where the release keeps none.
    """

    names: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()

    @classmethod
    def of_release(cls, folder: Path | None) -> KnownCells:
        """Read the names and hashes in a release's predictions; nothing where it has none."""
        names: set[str] = set()
        hashes: set[str] = set()
        if folder is None:
            return cls()
        for path in sorted(folder.glob(f"{PREDICTIONS_FOLDER}/*.parquet")):
            table = pq.read_table(path)
            names |= set(_names(table["cell_id"].to_pylist()))
            if "pixel_hash" in table.column_names:
                hashes |= set(table["pixel_hash"].to_pylist()) - {""}
        return cls(frozenset(names), frozenset(hashes))

    def among(self, cell_ids: Sequence[str], hashes: Sequence[str] | None) -> int:
        """Count how many of these cells are known, by name or by pixels."""
        pixels = hashes or [""] * len(cell_ids)
        return sum(
            hash_ in self.hashes or not self.names.isdisjoint(_names([cell]))
            for cell, hash_ in zip(cell_ids, pixels, strict=True)
        )


def same_subject(dataset: str, subject: str) -> str | Decimal:
    """Return a key that is equal for all aliases and spellings of a subject, such as `12` and `12.0`, in a data set."""
    if dataset in DATASETS:
        subject = DATASETS[dataset].canonical_subject(subject)
    return subject_key(subject)


def _names(cell_ids: Iterable[str]) -> list[str]:
    """File names without folder and suffix, of those long enough to identify a cell."""
    stems = [PurePosixPath(cell).stem for cell in cell_ids]
    return [stem for stem in stems if len(stem) >= _MIN_NAME_LENGTH]
