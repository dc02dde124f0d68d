"""What a folder of pictures is, before anything is trained on it: which data set, how many cells of whom, what is odd.

Only names and file headers are read, so that it is quick; `leukoscope data audit` reads every pixel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope import LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.splits import SUBJECT_FOLDS

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT_WITHOUT_SUBJECTS = {"block": "block", "subject": "random"}


@dataclass(frozen=True)
class FolderReport:
    """A folder, as training would read it.

    Attributes:
        info: the data set recognised, with the labels found.
        partitions: publisher's partition ("" where there is none) → label → number of cells.
        subjects: label → subject → number of its cells, aliases joined; {} for a label whose subjects are not known.
        training_subjects: label → how many of them have cells outside the publisher's own test.
        problems: one line each, what is missing, odd or left out.
    """

    info: DatasetInfo
    partitions: Mapping[str, Mapping[str, int]]
    subjects: Mapping[str, Mapping[str, int]]
    training_subjects: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def split_flags(self) -> list[str]:
        """The flags of `train.py` for the most honest split that these cells allow; [] where it is the default."""
        fewest = min(self.training_subjects.values())
        if fewest >= SUBJECT_FOLDS:
            return []
        if fewest > 1:
            return ["--split", "subject-cv", "--num_folds", str(min(fewest, 5)), "--no_validation"]
        return ["--split", _SPLIT_WITHOUT_SUBJECTS[self.info.group]]


def inspect_folder(root: Path, *, subject_pattern: str | None = None, subject_csv: Path | None = None) -> FolderReport:
    """Recognise a folder's data set and count its cells.

    Args:
        root: the folder.
        subject_pattern, subject_csv: as for `load_cells`; with either, the folder is read as plain class folders.

    Raises:
        LeukoscopeError: no such folder, no cell of any known layout in it, or cells that could not be trained on.
    """
    own_subjects = subject_pattern is not None or subject_csv is not None
    info = DATASETS["imagefolder"] if own_subjects else recognise(root)
    data = load_cells(info.name, root, subject_pattern=subject_pattern, subject_csv=subject_csv)
    partitions: dict[str, Counter[str]] = {}
    subjects: dict[str, Counter[str]] = {label: Counter() for label in data.info.labels}
    for fold, label, subject in (row for cells in data.cells.values() for row in _rows(data.info, cells)):
        partitions.setdefault(fold, Counter())[label] += 1
        if subject:
            subjects[label][subject] += 1
    met = {(label, subject) for _, label, subject in _rows(data.info, data.train) if subject}
    training = {label: sum(one == label for one, _ in met) for label in data.info.labels}
    problems = (*data.count_differences, *data.passed_over, *data.unreadable, *_subject_problems(data.info, training))
    return FolderReport(data.info, partitions, subjects, training, problems)


def recognise(root: Path) -> DatasetInfo:
    """The entry of `DATASETS` whose layout most pictures of a folder follow; plain class folders when none is followed.

    Raises:
        LeukoscopeError: no such folder, or no picture laid out in any known way.
    """
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such folder; give the folder that a data set was unpacked to")
    counts = {
        info.name: sum(1 for _ in info.find_cells(root)) for info in DATASETS.values() if info.find_cells is not None
    }
    own = counts.pop("imagefolder")
    best = max(counts, key=counts.__getitem__)
    if counts[best]:
        return DATASETS[best]
    if own:
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise LeukoscopeError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


def _rows(info: DatasetInfo, cells: Dataset) -> Iterator[tuple[str, str, str]]:
    """(partition, label, subject) of every cell."""
    labels = (info.labels[index] for index in cells["label"][:])
    yield from zip(cells["fold"][:], labels, cells["subject"][:], strict=True)


def _subject_problems(info: DatasetInfo, subjects: Mapping[str, int]) -> Iterator[str]:
    if not any(subjects.values()):
        split = f"split by --split {_SPLIT_WITHOUT_SUBJECTS[info.group]}"
        fix = "give --subject_pattern or --subject_csv" if info.name == "imagefolder" else split
        yield f"whose cells these are is not known: no figure on them holds for a new person; {fix}"
        return
    for label, known in subjects.items():
        if known < SUBJECT_FOLDS:
            few = f"{label}: {known} subject(s) to train on, fewer than the {SUBJECT_FOLDS} of --split subject"
            if min(subjects.values()) < 2:
                yield f"{few}: no figure on so few holds for a new person; gather cells of more people"
            else:
                yield f"{few}; cross-validate as the last line shows, or gather cells of more people"
