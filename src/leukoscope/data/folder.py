"""Cells in a local folder: which data set it holds, its labelled files, their subjects and the folder's own splits."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leukoscope import ConfigError, DataError
from leukoscope.data.cell_tables import folded
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.images import UnreachableImage, UnreadableImage, check_header
from leukoscope.data.labels import METADATA_FILES, Labels
from leukoscope.data.layouts import CellFile, ImageFolder, check_classes_on_paths, find_class_folders
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.files import cache_root, content_hashes
from leukoscope.progress import map_in_threads, shown_name

# What splits and their folders are called, as `datasets` reads them, in any case; `train_data` and `test-set` as well.
_SIDE_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SIDE_SUFFIX = re.compile(r"[-_ ]*(data|set|dataset|split|images|imgs|cells|folder)$")
# Folders that lie beside those of classes, or beside the pictures: masks, other versions, what nobody has labelled.
_NO_CLASS = re.compile(
    r"(seg|cell|binary)?[-_ ]*(mask|segmentation|segmented|annotation|annotated|annot|label|ground[-_ ]?truth|gt|"
    r"overlay|augmented|un-?label+ed)s?"
)


def recognise(root: Path) -> DatasetInfo:
    """The entry of `DATASETS` whose layout most pictures of a folder follow, else that of plain class folders.

    Raises:
        DataError: no such folder, or no picture laid out in any known way.
    """
    folder = _read(root, f"{root}", "give the folder that a data set was unpacked to")
    cells_of = {info.name: list(info.find_cells(folder)) for info in DATASETS.values() if info.find_cells is not None}
    has_class_folders = bool(cells_of.pop("imagefolder"))
    best = DATASETS[max(cells_of, key=lambda name: len(cells_of[name]))]
    cells = cells_of[best.name]
    splits = own_sides({part for path in folder.images for part in path.relative_to(root).parts[:-1]})
    # Of one's own cells below Train/ and Test/, those below Train/ may look like a set whose other part is TestA/.
    is_split_anew = len(splits) > 1 and "train" in {cell.fold for cell in cells}
    if len(cells) > len(_others(best, folder, cells)) and not is_split_anew:
        return best
    if has_class_folders or any(path.name in METADATA_FILES for path in folder.others):
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise DataError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


def load_folder(
    info: DatasetInfo,
    root: Path,
    subject_pattern: str | None = None,
    labels: str | Path | None = None,
    label_column: str = "",
) -> LoadedCells:
    """Load the cells of a local folder; arguments and errors as of `load_cells`."""
    source = f"--train_dir {root}"
    fetch = f"get {info.title} from {info.url} and unpack it there, or " if info.url else ""
    folder = _read(root, source, f"{fetch}correct the path")
    is_own = info.name == "imagefolder"
    if is_own:
        tables = Labels.read(folder, labels, subject_pattern, label_column)
    else:
        tables = Labels.none(folder)
    if tables.has_classes:
        cells, not_used = tables.cells(folder)
    else:
        cells, not_used = _cells_by_name(info, folder, source)
        classes = {*info.labels, *(cell.label for cell in cells)}
        check_classes_on_paths(((folder.below(cell.path), cell.label) for cell in cells), classes)
        cells = tables.with_subjects(cells, folder)
    if is_own:
        cells, outside = _with_own_splits(cells, folder, has_class_folders=not tables.has_classes)
        not_used += outside
    if subject_pattern:
        subject_of = subject_rule(subject_pattern)
        cells = [replace(cell, subject=subject_of(folder.below(cell.path))) for cell in cells]
    cells = [_with_utf8_names(cell) for cell in cells]
    _require_different_ids(cells)
    readable, unreadable = _readable(cells, source)
    content = _content_of(readable, root)
    records = [
        CellRecord(cell.cell_id, cell.label, cell.subject, content[str(cell.path)], cell.fold) for cell in readable
    ]
    images = image_column([_image_value(cell.path) for cell in readable])
    return assemble(
        info, images, records, source, unreadable=map(shown_name, unreadable), passed_over=map(shown_name, not_used)
    )


def _with_utf8_names(cell: CellFile) -> CellFile:
    """The cell with an id, label and subject that tables take, whatever bytes the names of file and folders have."""
    return replace(
        cell, cell_id=shown_name(cell.cell_id), label=shown_name(cell.label), subject=shown_name(cell.subject)
    )


def _image_value(path: Path) -> object:
    """An image as `datasets` takes it: its path or, since Arrow takes no path that is not UTF-8, its bytes."""
    name = str(path)
    if name != shown_name(name):
        return {"path": None, "bytes": path.read_bytes()}
    return name


def _require_different_ids(cells: Sequence[CellFile]) -> None:
    """Refuse a cell that is there twice, say as .bmp and .webp: it would stand on two sides of a random split."""
    path_of: dict[str, Path] = {}
    for cell in cells:
        other = path_of.setdefault(cell.cell_id, cell.path)
        if other != cell.path:
            raise DataError(f"{cell.path}: cell {cell.cell_id} is already there as {other}; keep one of the two")


def _readable(cells: Sequence[CellFile], source: str) -> tuple[list[CellFile], list[str]]:
    """The cells whose pictures have a header that can be read, and a message for each other one."""
    problems = map_in_threads(_header_problem, cells)
    readable = [cell for cell, problem in zip(cells, problems, strict=True) if not problem]
    unreadable = [problem for problem in problems if problem]
    if not readable:
        raise DataError(f"{source}: none of its {len(cells)} images can be read; first: {unreadable[0]}")
    return readable, unreadable


def _content_of(cells: Sequence[CellFile], root: Path) -> Mapping[str, str]:
    """Path → sha256 of each picture, kept in the cache for the next time."""
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    content = content_hashes((cell.path for cell in cells), cache_root() / f"hashes-{key}.json")
    vanished = [path for path, digest in content.items() if not digest]
    if vanished:
        raise UnreachableImage(f"{vanished[0]}: cannot be read; check the path and who may read it")
    return content


def _read(root: Path, named: str, fix: str) -> ImageFolder:
    if root.is_file():
        raise DataError(f"{named}: is a file; unpack it, or export what it holds as PNG, and give the folder")
    if not root.is_dir():
        raise DataError(f"{named}: no such folder; {fix}")
    return ImageFolder.read(root)


def _header_problem(cell: CellFile) -> str:
    try:
        check_header(cell.path)
    except UnreadableImage as error:
        return str(error)
    return ""


# Folders


def _cells_by_name(info: DatasetInfo, folder: ImageFolder, source: str) -> tuple[list[CellFile], list[str]]:
    """The cells that the names of files and folders label, and one line for each reason why images were left out."""
    assert info.find_cells is not None
    cells = list(info.find_cells(folder))
    not_used = list(passed_over(info, folder, cells))
    if not cells:
        reasons = "; ".join(not_used or [f"expected {info.layout}"])
        raise DataError(f"{source}: no cell of {info.title} found; {reasons}")
    if info.name != "imagefolder":
        return cells, not_used
    counts = Counter(cell.label for cell in cells)
    splits = [label for label in counts if own_sides([label])]
    if len(splits) == len(counts):
        raise DataError(
            f"{source}: its folders {', '.join(sorted(splits))} are splits, not classes, and no table names classes; "
            "put the images of each class into a folder of its name, such as train/ALL, or add a metadata.csv with the "
            "columns file_name and label"
        )
    without_class = [label for label in counts if _NO_CLASS.fullmatch(folded(label))]
    if without_class:
        raise DataError(
            f"{source}: the folders {', '.join(sorted(counts))} would be the classes, but {without_class[0]!r} is not "
            "the name of a class; give the folder that contains the folders of classes, move this folder away (or "
            "rename it if it is a class), or name the classes in a table (--labels FILE)"
        )
    not_used += [
        f"folder {label!r} is a split without folders of classes: its {counts[label]:,} image file(s) are skipped"
        for label in splits
    ]
    return [cell for cell in cells if cell.label not in splits], not_used


def own_sides(names: Iterable[str]) -> dict[str, str]:
    """The splits among these names of splits or folders: name → side; if two name one side, the usual name."""
    name_of = {_SIDE_SUFFIX.sub("", name.strip().casefold()): name for name in names}
    sides: dict[str, str] = {}
    for side, usual_names in _SIDE_NAMES.items():
        usual = next((usual for usual in usual_names if name_of.get(usual)), None)
        if usual is not None:
            sides[name_of[usual]] = side
    return sides


def _with_own_splits(
    cells: list[CellFile], folder: ImageFolder, *, has_class_folders: bool
) -> tuple[list[CellFile], list[str]]:
    """The cells with the folder's own splits as folds, and one line a folder that belongs to none.

    It has some where `train` and another side lie in one folder, above the folders of classes.
    """
    if not all(cell.path.is_relative_to(folder.root) for cell in cells):
        return cells, []
    # The folders that may be splits: all above a picture, but for its class's.
    folders_of = [cell.path.relative_to(folder.root).parts[:-1] for cell in cells]
    if has_class_folders:
        folders_of = [folders[:-1] for folders in folders_of]
    depth = _depth_of_splits(folders_of)
    top_of = [folders[depth] if len(folders) > depth else "" for folders in folders_of]
    side_of = own_sides(dict.fromkeys(top for top in top_of if top))
    if "train" not in side_of.values() or len(side_of) < 2:
        return cells, []
    in_splits = [replace(cell, fold=side_of[top]) for cell, top in zip(cells, top_of, strict=True) if top in side_of]
    outside: Counter[str] = Counter()
    for cell, top in zip(cells, top_of, strict=True):
        if top not in side_of:
            outside[cell.path.relative_to(folder.root).parts[depth]] += 1
    return in_splits, [
        f"folder {name!r} is not used: its {count:,} image file(s) belong to no split"
        for name, count in outside.items()
    ]


def _depth_of_splits(folders_of: Sequence[Sequence[str]]) -> int:
    """The depth of the folders of splits; an archive often unpacks into one outer folder, which holds all cells."""
    depth = 0
    while (
        all(len(folders) > depth + 1 for folders in folders_of) and len({folders[depth] for folders in folders_of}) == 1
    ):
        depth += 1
    return depth


def subject_rule(pattern: str) -> Callable[[str], str]:
    """Make the function from an image's path to its subject: what the group `subject`, or the first group, matches.

    Raises:
        DataError: no regular expression, or one without a group; by the function, a path that it does not match.
    """
    flag = f"--subject_pattern {shlex.quote(pattern)}"
    try:
        rule = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ConfigError(f"{flag}: is not a regular expression ({error}); correct it") from None
    if not rule.groups:
        raise ConfigError(f"{flag}: has no group; write the subject's part as (?P<subject>…)")
    group: str | int = "subject" if "subject" in rule.groupindex else 1

    def subject_of(file: str) -> str:
        match = rule.search(file)
        if not match or not match[group]:
            raise DataError(f"{flag}: does not match {file!r}; it must match every image")
        return str(match[group])

    return subject_of


# What is no cell


def passed_over(info: DatasetInfo, folder: ImageFolder, cells: Sequence[CellFile]) -> Iterator[str]:
    """One line for each reason why pictures of a folder were left out or may be misread."""
    if folder.left_out:
        yield folder.left_out
    filled = set[Path]()
    if info.find_cells is find_class_folders:
        filled = {cell.path.parent for cell in cells}
    above = {path.parent.name for path in filled if folder.root not in (path, path.parent)}
    if filled and any(cell.subject for cell in cells):
        yield (
            "read as <class>/<subject>/<image>: each innermost folder is a subject; give --subject_pattern or "
            "--labels if it is not"
        )
    elif len(above) > 1 and not any(re.match("fold|train|test|val|dev|eval", name, re.IGNORECASE) for name in above):
        yield (
            f"read as <class>/<image>; the folders above the classes ({', '.join(sorted(above)[:3])} …) were not used: "
            "if they are subjects, give --subject_pattern '(?P<subject>[^/]+)/[^/]+/[^/]+$'"
        )
    others = _others(info, folder, cells)
    if others:
        yield f"{len(others):,} image file(s) passed over, for example {others[0]}: not laid out as {info.layout}"


def _others(info: DatasetInfo, folder: ImageFolder, cells: Iterable[CellFile]) -> list[Path]:
    """The pictures of a folder that are not among the cells found there."""
    of_cells = {cell.path for cell in cells}
    others = [path for path in folder.images if path not in of_cells]
    return [path for path in others if set(info.other_folders).isdisjoint(path.relative_to(folder.root).parts)]
