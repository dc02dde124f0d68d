"""Inspect a folder before training: the data set, the cells of each class and subject, and problems.

Only names and file headers are read, so that it is quick; `leukoscope data audit` reads every pixel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from leukoscope import LeukoscopeError
from leukoscope.data.folders import ImageFolder
from leukoscope.data.loading import PRELIMINARY_TEST, load_cells
from leukoscope.data.registry import DATASETS, OTHER, DatasetInfo, files_left_out
from leukoscope.data.splits import SIDES, SUBJECT_FOLDS

FEW_CELLS = 10
"""Of a class: 15 % of them, the validation and the test side of a split by image, are one cell or more."""
LEAST_CELLS = 2
"""Of a class: one to train on and one to test on."""
_SPLIT_WITHOUT_SUBJECTS = {"block": "block", "subject": "random"}


@dataclass(frozen=True)
class FolderReport:
    """A folder, as training would read it.

    Attributes:
        info: the data set found, with the labels found.
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
        if self.partitions.keys() <= set(SIDES):
            return []
        fewest = min(self.training_subjects.values())
        if fewest >= SUBJECT_FOLDS:
            return []
        if fewest > 1:
            return ["--split", "subject-cv", "--num_folds", str(min(fewest, 5)), "--no_validation"]
        return ["--split", _SPLIT_WITHOUT_SUBJECTS[self.info.group]]


def inspect_folder(root: Path, *, subject_pattern: str | None = None, labels: Path | None = None) -> FolderReport:
    """Recognise a folder's data set and count its cells.

    Args:
        root: the folder.
        subject_pattern, labels: as for `load_cells`; with either, the folder is read as plain class folders.

    Raises:
        LeukoscopeError: no such folder, no cell of any known layout in it, or cells that could not be trained on.
    """
    own_subjects = subject_pattern is not None or labels is not None
    info = DATASETS["imagefolder"] if own_subjects else recognise(root)
    try:
        data = load_cells(info.name, root, subject_pattern=subject_pattern, labels=labels)
    except LeukoscopeError as error:
        # The folder is no flag here.
        raise LeukoscopeError(str(error).removeprefix("--train_dir ")) from None
    classes = data.info.labels
    columns = (data.rows[name][:] for name in ("fold", "label", "subject"))
    rows = [(fold, classes[label], subject) for fold, label, subject in zip(*columns, strict=True)]
    partitions: dict[str, Counter[str]] = {}
    subjects: dict[str, Counter[str]] = {label: Counter() for label in classes}
    for fold, label, subject in rows:
        partitions.setdefault(fold, Counter())[label] += 1
        subjects[label].update([subject] if subject else [])
    training = [(label, subject) for fold, label, subject in rows if fold != PRELIMINARY_TEST]
    met = Counter(label for label, subject in set(training) if subject)
    counts = Counter(label for label, _ in training)
    problems = [*data.count_differences, *data.passed_over, *data.unreadable]
    problems += [
        f"{label}: {counts[label]} cell(s); fewer than {FEW_CELLS} leave a side of the split without any, gather more"
        for label in classes
        if counts[label] < FEW_CELLS
    ]
    training_subjects = {label: met[label] for label in classes}
    problems += _subject_problems(data.info, training_subjects)
    return FolderReport(data.info, partitions, subjects, training_subjects, tuple(problems))


def recognise(root: Path) -> DatasetInfo:
    """The entry of `DATASETS` whose layout most pictures of a folder follow, else that of plain class folders.

    Raises `LeukoscopeError` for no such folder, or no picture laid out in any known way.
    """
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such folder; give the folder that a data set was unpacked to")
    folder = ImageFolder.read(root)
    found = {info.name: list(info.find_cells(folder)) for info in DATASETS.values() if info.find_cells is not None}
    own = found.pop("imagefolder")
    best = DATASETS[max(found, key=lambda name: len(found[name]))]
    if len(found[best.name]) > len(files_left_out(best, folder, found[best.name])[OTHER]):
        return best
    if own:
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise LeukoscopeError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


def _subject_problems(info: DatasetInfo, subjects: Mapping[str, int]) -> Iterator[str]:
    if not any(subjects.values()):
        split = f"split by --split {_SPLIT_WITHOUT_SUBJECTS[info.group]}"
        fix = "give --subject_pattern or --labels" if info.name == "imagefolder" else split
        yield f"the subjects of these cells are not known: no figure on them applies to a new subject; {fix}"
        return
    for label, known in subjects.items():
        if known < SUBJECT_FOLDS:
            few = f"{label}: {known} subject(s) to train on, fewer than the {SUBJECT_FOLDS} of --split subject"
            if min(subjects.values()) < 2:
                yield f"{few}: no figure on so few applies to a new subject; gather cells of more subjects"
            else:
                yield f"{few}; cross-validate as the last line shows, or gather cells of more subjects"
