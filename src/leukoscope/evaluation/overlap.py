"""Which cells a release was trained on: by subject, by file name and by pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from leukoscope.data.registry import DATASETS
from leukoscope.models.release import PREDICTIONS

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.data.pixel_cache import FramedCells
    from leukoscope.models.release import ReleaseInfo

# Shorter names, such as 12.png, are given to other cells again.
_LEAST_NAME = 6


class Overlap(Enum):
    """Whether some cells trained a release: what is known, and how metrics on them are then to be read."""

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
        self.verdict, self.sentence = verdict, sentence

    @property
    def certain(self) -> bool:
        """True where no cell can have trained the release without being counted."""
        return self not in (Overlap.NOT_RECORDED, Overlap.SAME_UNCLEAR, Overlap.OTHER_UNCLEAR)


@dataclass(frozen=True)
class Seen:
    """Which of some cells a release may have been trained on.

    Attributes:
        overlap: what is known of it.
        subjects: those of the cells' subjects that trained it, or a release it was fine-tuned from; sorted.
        cells: how many trained it, where that is not told by subjects.
        statement: one sentence for a reader.
    """

    overlap: Overlap
    subjects: tuple[str, ...]
    cells: int
    statement: str


def seen_in_training(
    metrics: Mapping[str, Any],
    known: KnownCells,
    data: LoadedCells,
    subjects: Iterable[str],
    cell_ids: Sequence[str],
    hashes: Sequence[str] | None,
    *,
    split_fingerprints: Sequence[str] = (),
) -> Seen:
    """Determine which of some cells of `data` a release was trained on.

    Args:
        metrics, known: the release's metrics.json, and the cells that it keeps predictions of.
        subjects: of the cells; "" where a cell's is not known.
        cell_ids, hashes: (N,) names, and `pixel_hash` of each where it is known.
        split_fingerprints: of the split that sets these cells apart, and of its test side where they are that side.
    """
    name, here, trainings = source_of(data), set(subjects), trainings_of(metrics)
    trained = {same_subject(name, one) for past in trainings if same_cells(past, data) for one in past["subjects"]}
    both = tuple(sorted(one for one in here - {""} if same_subject(name, one) in trained))
    cells = 0
    if not trainings:
        found = Overlap.NOT_RECORDED
    elif both:
        found = Overlap.SUBJECTS
    else:
        own, *earlier = trainings
        # Two different sets of class folders may number their subjects alike, or share cells under other names.
        clear = not any(past["name"] == name == "imagefolder" and not same_cells(past, data) for past in earlier)
        if not same_cells(own, data):
            cells = known.among(cell_ids, hashes)
            compared = clear and bool(known.hashes) and hashes is not None
            found = Overlap.OTHER_DATA if compared else Overlap.OTHER_UNCLEAR
            found = Overlap.OTHER_HOLDS_THEM if cells else found
        elif own["subjects"] and here - {""}:
            found = Overlap.OTHER_SUBJECTS if clear and "" not in here else Overlap.SAME_UNCLEAR
        else:
            splits = [block["split"] for block in metrics.get("evaluations", ())]
            fingerprints = {split.get(key) for split in splits for key in ("fingerprint", "test_fingerprint")}
            set_apart = fingerprints & set(split_fingerprints)
            found = Overlap.SAME_DATA if not set_apart else Overlap.SET_APART if clear else Overlap.SAME_UNCLEAR
            cells = 0 if set_apart else len(cell_ids)
    statement = found.sentence.format(
        both=len(both),
        tested=len({same_subject(name, one) for one in here} - {""}),
        title=metrics.get("data", {}).get("title"),
        cells=cells,
        of=len(cell_ids),
    )
    return Seen(found, both, cells, statement)


def seen_of(
    release: ReleaseInfo, cells: FramedCells, cell_ids: tuple[str, ...], *, split_fingerprints: Sequence[str] = ()
) -> Seen:
    """Determine which of some framed cells a release was trained on, as `seen_in_training`."""
    rows, known = cells.rows(cell_ids), KnownCells.of_release(release.folder)
    subjects, hashes = {cells.subjects[row] for row in rows}, cells.hashes_of(rows)
    return seen_in_training(
        release.metrics, known, cells.data, subjects, cell_ids, hashes, split_fingerprints=split_fingerprints
    )


def trainings_of(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List name, fingerprint, unit and subjects of what a release, then those it was fine-tuned from, were trained on.

    A metrics.json that says nothing of the training gives [].
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
    return training["fingerprint"] == data.fingerprint or training["name"] == source_of(data) != "imagefolder"


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
        for path in sorted(folder.glob(f"{PREDICTIONS}/*.parquet")) if folder else ():
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


def same_subject(dataset: str, subject: str) -> str:
    """Return the one id that stands for all known aliases of a subject in its data set."""
    return DATASETS[dataset].canonical_subject(subject) if dataset in DATASETS else subject


def _names(cell_ids: Iterable[str]) -> list[str]:
    names = [PurePosixPath(cell).name for cell in cell_ids]
    stems = [PurePosixPath(name).stem if PurePosixPath(name).suffix else name for name in names]
    return [stem for stem in stems if len(stem) >= _LEAST_NAME]
