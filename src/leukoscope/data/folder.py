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

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import (
    CellRow,
    CellTable,
    folded,
    located,
    read_metadata,
    read_table,
    require_labels,
    require_subjects,
)
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.images import UnreachableImage, UnreadableImage, check_header
from leukoscope.data.layouts import CellFile, ImageFolder, cell_id_of, check_classes_on_paths, find_class_folders
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.subject_ids import check_subject_ids
from leukoscope.files import cache_root, content_hashes
from leukoscope.progress import map_in_threads, note

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
METADATA = ("metadata.csv", "metadata.jsonl")
_Table = tuple[CellTable, Path]  # and the folder that its paths start from


def recognise(root: Path) -> DatasetInfo:
    """The entry of `DATASETS` whose layout most pictures of a folder follow, else that of plain class folders.

    Raises:
        LeukoscopeError: no such folder, or no picture laid out in any known way.
    """
    folder = _read(root, f"{root}", "give the folder that a data set was unpacked to")
    found = {info.name: list(info.find_cells(folder)) for info in DATASETS.values() if info.find_cells is not None}
    own = found.pop("imagefolder")
    best = DATASETS[max(found, key=lambda name: len(found[name]))]
    splits = own_sides({part for path in folder.images for part in path.relative_to(root).parts[:-1]})
    # Of one's own cells below Train/ and Test/, those below Train/ may look like a set whose other part is TestA/.
    is_split_anew = len(splits) > 1 and "train" in {cell.fold for cell in found[best.name]}
    if len(found[best.name]) > len(_others(best, folder, found[best.name])) and not is_split_anew:
        return best
    if own or any(path.name in METADATA for path in folder.others):
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise LeukoscopeError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


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
    tables = _tables(info, folder, labels, subject_pattern, label_column)
    rows = dict[Path, tuple[CellRow, str]]()
    for table, home in tables:
        for row, file in located(table, home):
            if (earlier := rows.setdefault(home / file, (row, table.name))[1]) != table.name:
                said = f"row {row.number}: {row.file!r} has a row in {earlier}, too; keep one of the two"
                raise LeukoscopeError(f"{table.name}: {said}")
    places: dict[str, str] = {}
    for row, table_name in rows.values():
        if row.subject:
            places.setdefault(row.subject, f"row {row.number} of {table_name}")
    check_subject_ids(places, source)
    has_table = any(row.label for row, _ in rows.values())
    if has_table:
        cells, not_used = _cells_of_rows(rows, folder)
    else:
        cells, not_used = _cells_by_name(info, folder, source)
        named_classes = {*info.labels, *(cell.label for cell in cells)}
        check_classes_on_paths(((_below(cell.path, root), cell.label) for cell in cells), named_classes)
        if unlisted := [cell.path for cell in cells if rows and cell.path not in rows]:
            below = _below(unlisted[0], root)
            raise LeukoscopeError(f"{tables[0][0].name}: no row for file {below!r}; every image needs a subject")
        cells = [replace(cell, subject=rows[cell.path][0].subject) for cell in cells] if rows else cells
    if info.name == "imagefolder":
        cells, left_out = _with_own_splits(cells, root, has_class_folders=not has_table)
        not_used += left_out
    if subject_pattern:
        subject_of = subject_rule(subject_pattern)
        cells = [replace(cell, subject=subject_of(_below(cell.path, root))) for cell in cells]
    paths = dict[str, Path]()
    for cell in cells:
        # A cell present twice (say as .bmp and .webp) would stand on two sides of a random split.
        if (other := paths.setdefault(cell.cell_id, cell.path)) != cell.path:
            raise LeukoscopeError(f"{cell.path}: cell {cell.cell_id} is already there as {other}; keep one of the two")
    problems = map_in_threads(_header_problem, cells)
    readable = [cell for cell, problem in zip(cells, problems, strict=True) if not problem]
    unreadable = list(filter(None, problems))
    if not readable:
        raise LeukoscopeError(f"{source}: none of its {len(cells)} images can be read; first: {unreadable[0]}")
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    content = content_hashes((cell.path for cell in readable), cache_root() / f"hashes-{key}.json")
    if vanished := [path for path, hashed in content.items() if not hashed]:
        raise UnreachableImage(f"{vanished[0]}: cannot be read; check the path and who may read it")
    records = [CellRecord(c.cell_id, c.label, c.subject, content[str(c.path)], c.fold) for c in readable]
    images = image_column([str(cell.path) for cell in readable])
    return assemble(info, images, records, source, unreadable=unreadable, passed_over=not_used)


def _read(root: Path, named: str, fix: str) -> ImageFolder:
    if root.is_file():
        raise LeukoscopeError(f"{named}: is a file; unpack it, or export what it holds as PNG, and give the folder")
    if not root.is_dir():
        raise LeukoscopeError(f"{named}: no such folder; {fix}")
    return ImageFolder.read(root)


def _header_problem(cell: CellFile) -> str:
    try:
        check_header(cell.path)
    except UnreadableImage as error:
        return str(error)
    return ""


def _below(path: Path, root: Path) -> str:
    """A path below the folder; one elsewhere, as only tables name them, as it is."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


# Tables


def _tables(
    info: DatasetInfo, folder: ImageFolder, labels: str | Path | None, subject_pattern: str | None, label_column: str
) -> list[_Table]:
    """The table of `--labels`, else the folder's own as 🤗 datasets reads them: at the root, or one per split."""
    if info.name != "imagefolder":
        return []
    if labels is not None:
        if not (path := Path(labels)).is_file():
            raise LeukoscopeError(f"--labels {path}: no such file; it needs the columns file,label,subject")
        tables = [(read_table(path, label_column), folder.root)]
    else:
        files = [path for path in folder.others if path.name in METADATA]
        tables = [(table, path.parent) for path in files if (table := read_metadata(path, label_column))]
    for table, _ in tables:
        if labels is not None and not table.has_labels:
            if subject_pattern and not table.has_subjects:
                require_labels(table)
            require_subjects(table.name, table.has_subjects)
            note(f"{table.name}: names subjects; the folders name the classes", err=True)
            if table.flags:
                note(
                    f"{table.name}: its columns {', '.join(table.flags)} hold 0 and 1 and are not used; if they are "
                    "the classes, replace them by one column called label",
                    err=True,
                )
        if subject_pattern and table.has_subjects:
            flag = f"--labels {labels}" if labels is not None else table.name
            raise LeukoscopeError(
                f"--subject_pattern {shlex.quote(subject_pattern)} {flag}: both name the subjects; give one"
            )
    for kind, names in (("subject", "has_subjects"), ("class", "has_labels")):
        named = [getattr(table, names) for table, _ in tables]
        if any(named) and not all(named):
            without, other = (tables[named.index(has)][0].name for has in (False, True))
            raise LeukoscopeError(f"{without}: names no {kind}, {other} does; fill it in")
    if label_column not in ("", "label") and not tables:
        raise LeukoscopeError(
            f"--label_column_name {label_column}: there is no table in {folder.root}; give it with --labels FILE"
        )
    return [one for one in tables if one[0].has_labels or one[0].has_subjects]


def _cells_of_rows(rows: Mapping[Path, tuple[CellRow, str]], folder: ImageFolder) -> tuple[list[CellFile], list[str]]:
    """The cells to which rows of tables give a class, and one line for each reason why images were left out."""
    cells = [
        CellFile(path, row.label, row.subject, cell_id_of(_below(path, folder.root)))
        for path, (row, _) in rows.items()
        if row.label
    ]
    without = Counter(table for row, table in rows.values() if not row.label)
    not_used = [f"{count} row(s) of {table} name no class: left out" for table, count in without.items()]
    if others := [path for path in folder.images if path not in rows]:
        names = ", ".join(dict.fromkeys(table for _, table in rows.values()))
        not_used.append(f"{len(others):,} image file(s) have no row in {names}, for example {others[0]}: left out")
    return cells, not_used


# Folders


def _cells_by_name(info: DatasetInfo, folder: ImageFolder, source: str) -> tuple[list[CellFile], list[str]]:
    """The cells that the names of files and folders label, and one line for each reason why images were left out."""
    assert info.find_cells is not None
    found = list(info.find_cells(folder))
    not_used = list(passed_over(info, folder, found))
    if not found:
        reasons = "; ".join(not_used or [f"expected {info.layout}"])
        raise LeukoscopeError(f"{source}: no cell of {info.title} found; {reasons}")
    if info.name != "imagefolder":
        return found, not_used
    counts = Counter(cell.label for cell in found)
    splits = [label for label in counts if own_sides([label])]
    if len(splits) == len(counts):
        raise LeukoscopeError(
            f"{source}: its folders {', '.join(sorted(splits))} are splits, not classes, and no table names classes; "
            "put the images of each class into a folder of its name, such as train/ALL, or add a metadata.csv with the "
            "columns file_name and label"
        )
    if odd := [label for label in counts if _NO_CLASS.fullmatch(folded(label))]:
        raise LeukoscopeError(
            f"{source}: the folders {', '.join(sorted(counts))} would be the classes, but {odd[0]!r} names none; give "
            "the folder that holds those of the classes, move the other away (or rename it if it is one), or name the "
            "classes in a table (--labels FILE)"
        )
    not_used += [
        f"folder {label!r} is a split without folders of classes: its {counts[label]:,} image file(s) left out"
        for label in splits
    ]
    return [cell for cell in found if cell.label not in splits], not_used


def own_sides(names: Iterable[str]) -> dict[str, str]:
    """The splits among these names of splits or folders: name → side; where two are of one side, the usual one."""
    plain = {_SIDE_SUFFIX.sub("", name.strip().casefold()): name for name in names}
    found = ((next((plain[name] for name in usual if name in plain), ""), side) for side, usual in _SIDE_NAMES.items())
    return {name: side for name, side in found if name}


def _with_own_splits(cells: list[CellFile], root: Path, *, has_class_folders: bool) -> tuple[list[CellFile], list[str]]:
    """The cells with the folder's own splits as folds, and one line a folder that belongs to none.

    It has some where `train` and another side lie directly below it. Splits lie above the folders of classes.
    """
    if not all(cell.path.is_relative_to(root) for cell in cells):
        return cells, []
    parts = [cell.path.relative_to(root).parts for cell in cells]
    below = 2 if has_class_folders else 1
    depth = 0  # the folder that was unpacked may hold nothing but the data set's own
    while len({one[depth] for one in parts}) == 1 and all(len(one) > depth + below + 1 for one in parts):
        depth += 1
    side_of = own_sides(dict.fromkeys(one[depth] for one in parts if len(one) > depth + below))
    if "train" not in side_of.values() or len(side_of) < 2:
        return cells, []
    kept, left = [], Counter[str]()
    for cell, one in zip(cells, parts, strict=True):
        if len(one) > depth + below and one[depth] in side_of:
            kept.append(replace(cell, fold=side_of[one[depth]]))
        else:
            left[one[depth]] += 1
    return kept, [f"folder {top!r} not used: {count:,} image file(s), of no split" for top, count in left.items()]


def subject_rule(pattern: str) -> Callable[[str], str]:
    """Make the function from an image's path to its subject: what the group `subject`, or the first group, matches.

    Raises:
        LeukoscopeError: no regular expression, or one without a group; by the function, a path that it does not match.
    """
    flag = f"--subject_pattern {shlex.quote(pattern)}"
    try:
        rule = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise LeukoscopeError(f"{flag}: not a regular expression ({error})") from None
    if not rule.groups:
        raise LeukoscopeError(f"{flag}: has no group; write the subject's part as (?P<subject>…)")

    def subject_of(file: str) -> str:
        match = rule.search(file)
        if not (match and (subject := match["subject" if "subject" in rule.groupindex else 1])):
            raise LeukoscopeError(f"{flag}: does not match {file!r}; it must match every image")
        return str(subject)

    return subject_of


# What is no cell


def passed_over(info: DatasetInfo, folder: ImageFolder, cells: Sequence[CellFile]) -> Iterator[str]:
    """One line for each reason why pictures of a folder were left out or may be misread."""
    if folder.left_out:
        yield folder.left_out
    filled = {cell.path.parent for cell in cells} if info.find_cells is find_class_folders else set[Path]()
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
    if others := _others(info, folder, cells):
        yield f"{len(others):,} image file(s) passed over, for example {others[0]}: not laid out as {info.layout}"


def _others(info: DatasetInfo, folder: ImageFolder, cells: Iterable[CellFile]) -> list[Path]:
    """The pictures of a folder that are not among the cells found there."""
    found, beside = {cell.path for cell in cells}, set(info.other_folders)
    others = (path for path in folder.images if path not in found)
    return [path for path in others if beside.isdisjoint(path.relative_to(folder.root).parts)]
