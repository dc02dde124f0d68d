"""Which cells a release was trained on: by subject, by file name and by pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from leukoscope.data.images import BLACK_RGB, RgbColour
from leukoscope.data.names import subject_key
from leukoscope.data.registry import DATASETS
from leukoscope.models.metrics import Metrics, PastTraining
from leukoscope.models.release import PREDICTIONS_FOLDER

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.data.pixel_cache import FramedCells
    from leukoscope.models.release import ReleaseInfo

# Shorter names, such as 12.png, are used again for other cells.
_MIN_NAME_LENGTH = 6


@dataclass(frozen=True)
class ForeignModel:
    """What is known of a model that is no release: its name; how it was trained is not recorded."""

    name: str
    folder: Path | None = None
    blank_rgb: RgbColour = BLACK_RGB
    metrics: Metrics = field(default_factory=Metrics)


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

    def held(self, unit: str) -> str:
        """How many subjects, or else cells, the release was trained on; "" for none. `unit` is what subjects are."""
        if self.subjects:
            return f"{len(self.subjects):,} {unit}(s)"
        return f"{self.cells:,} cells" if self.cells else ""


def seen_in_training(
    release: ReleaseInfo | ForeignModel,
    data: LoadedCells,
    subjects: Iterable[str],
    cell_ids: Sequence[str],
    hashes: Sequence[str] | None,
    *,
    split_fingerprints: Sequence[str] = (),
) -> Seen:
    """Determine which of some cells of `data` a release was trained on.

    Args:
        subjects: of the cells; "" where a cell's is not known.
        cell_ids, hashes: (N,) names, and `pixel_hash` of each where it is known.
        split_fingerprints: of the split that sets these cells apart, and of its test side where they are that side.
    """
    name = source_of(data)
    metrics = release.metrics
    trainings = metrics.trainings
    tested = set(subjects)
    trained = {
        same_subject(name, subject)
        for training in trainings
        if same_cells(training, data)
        for subject in training.subjects
    }
    both = tuple(sorted(subject for subject in tested - {""} if same_subject(name, subject) in trained))
    is_same_data = bool(trainings) and same_cells(trainings[0], data)
    known_names, known_hashes = _known_cells(release.folder)
    cells_kept = 0
    if not is_same_data:
        pixels = hashes or [""] * len(cell_ids)
        pairs = zip(map(_name, cell_ids), pixels, strict=True)
        cells_kept = sum(name in known_names or pixel in known_hashes for name, pixel in pairs)
    # Two sets of class folders may number their subjects alike, or share cells under other names.
    is_clear = name != "imagefolder" or not any(
        training.name == name and not same_cells(training, data) for training in trainings[1:]
    )
    split_of = [evaluation.split for evaluation in metrics.evaluations]
    trained_apart = {split.fingerprint for split in split_of} | {split.test_fingerprint for split in split_of}
    if not trainings:
        overlap = Overlap.NOT_RECORDED
    elif both:
        overlap = Overlap.SUBJECTS
    elif cells_kept:
        overlap = Overlap.OTHER_HOLDS_THEM
    elif not is_same_data and is_clear and known_hashes and hashes is not None:
        overlap = Overlap.OTHER_DATA
    elif not is_same_data:
        overlap = Overlap.OTHER_UNCLEAR
    elif trainings[0].subjects and tested - {""}:
        overlap = Overlap.OTHER_SUBJECTS if is_clear and "" not in tested else Overlap.SAME_UNCLEAR
    elif trained_apart.isdisjoint(split_fingerprints):
        overlap = Overlap.SAME_DATA
    else:
        overlap = Overlap.SET_APART if is_clear else Overlap.SAME_UNCLEAR
    cells = 0
    if overlap is Overlap.OTHER_HOLDS_THEM:
        cells = cells_kept
    elif overlap is Overlap.SAME_DATA:
        cells = len(cell_ids)
    statement = overlap.sentence.format(
        both=len(both),
        tested=len({same_subject(name, subject) for subject in tested} - {""}),
        title=metrics.data.title,
        cells=cells,
        of=len(cell_ids),
    )
    return Seen(overlap, both, cells, statement)


def seen_of(
    release: ReleaseInfo, cells: FramedCells, cell_ids: tuple[str, ...], *, split_fingerprints: Sequence[str] = ()
) -> Seen:
    """Determine which of some framed cells a release was trained on, as `seen_in_training`."""
    rows = cells.rows(cell_ids)
    return seen_in_training(
        release,
        cells.data,
        {cells.subjects[row] for row in rows},
        cell_ids,
        cells.hashes_of(rows),
        split_fingerprints=split_fingerprints,
    )


def same_cells(training: PastTraining, data: LoadedCells) -> bool:
    """True where it was trained on this data set, or a part of it."""
    if training.fingerprint == data.fingerprint:
        return True
    source = source_of(data)
    # All class folders are called imagefolder: their name says nothing.
    return source != "imagefolder" and training.name == source


def source_of(data: LoadedCells) -> str:
    """The name of the data set that the cells are of, whatever a copy on the Hub is called."""
    return data.info.copy_of or data.info.name


def _known_cells(folder: Path | None) -> tuple[set[str], set[str]]:
    """Names, as of `_name`, and pixel hashes of the cells that a release keeps predictions of."""
    names: set[str] = set()
    hashes: set[str] = set()
    if folder is None:
        return names, hashes
    for path in folder.glob(f"{PREDICTIONS_FOLDER}/*.parquet"):
        table = pq.read_table(path)
        names.update(map(_name, table["cell_id"].to_pylist()))
        if "pixel_hash" in table.column_names:
            hashes.update(table["pixel_hash"].to_pylist())
    return names - {""}, hashes - {""}


def same_subject(dataset: str, subject: str) -> tuple[str, ...]:
    """Return a key that is equal for all aliases and spellings of a subject, such as `12` and `12.0`, in a data set."""
    if dataset in DATASETS:
        subject = DATASETS[dataset].canonical_subject(subject)
    return subject_key(subject)


def _name(cell_id: str) -> str:
    """A file name without folder and suffix; "" for one too short to identify a cell."""
    stem = PurePosixPath(cell_id).stem
    return stem if len(stem) >= _MIN_NAME_LENGTH else ""
