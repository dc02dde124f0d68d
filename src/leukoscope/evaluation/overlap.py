"""Which cells a release was trained on: by subject, by file name and by pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from leukoscope.data.registry import DATASETS
from leukoscope.models.release import PREDICTIONS

if TYPE_CHECKING:
    from leukoscope.data.loading import LoadedCells

# Shorter names, such as 12.png, are given to other cells again.
_LEAST_NAME = 6


@dataclass(frozen=True)
class SeenInTraining:
    """Which of some cells a release may have been trained on.

    Attributes:
        subjects: those of the cells' subjects that trained it, or a release it was fine-tuned from; sorted.
        cells: cells that it keeps predictions of, where it was trained on other data; or all of them, where it was
            trained on the same data without known subjects and by another split.
        certain: it was trained on no other of these cells.
    """

    subjects: tuple[str, ...]
    cells: int
    certain: bool


def seen_in_training(
    metrics: Mapping[str, Any],
    known: KnownCells,
    data: LoadedCells,
    subjects: Iterable[str],
    cell_ids: Sequence[str],
    hashes: Sequence[str] | None,
    *,
    split_fingerprints: Sequence[str] = (),
) -> SeenInTraining:
    """Determine which of some cells of `data` a release was trained on.

    Args:
        metrics, known: the release's metrics.json, and the cells that it keeps predictions of.
        subjects: of the cells; "" where a cell's is not known.
        cell_ids, hashes: (N,) names, and `pixel_hash` of each where it is known.
        split_fingerprints: of the split that sets these cells apart, and of its test side where they are that side.
    """
    name, here = source_of(data), set(subjects)
    trainings = trainings_of(metrics)
    if not trainings:
        return SeenInTraining((), 0, certain=False)
    trained = {same_subject(name, one) for past in trainings if same_cells(past, data) for one in past["subjects"]}
    own, *earlier = trainings
    # Two different sets of class folders may number their subjects alike, or share cells under other names.
    certain = not any(past["name"] == name == "imagefolder" and not same_cells(past, data) for past in earlier)
    if not same_cells(own, data):
        cells, certain = known.among(cell_ids, hashes), certain and bool(known.hashes) and hashes is not None
    elif own["subjects"] and here - {""}:
        cells, certain = 0, certain and "" not in here
    else:
        splits = [block["split"] for block in metrics.get("evaluations", ())]
        fingerprints = [split.get(key) for split in splits for key in ("fingerprint", "test_fingerprint")]
        cells = 0 if set(split_fingerprints) & set(fingerprints) else len(cell_ids)
    both = sorted(one for one in here - {""} if same_subject(name, one) in trained)
    return SeenInTraining(tuple(both), cells, certain)


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
        import pyarrow.parquet as pq

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
