"""Cells in a local folder: which data set it holds, its labelled files, their subjects and the folder's own splits."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath

from leukoscope import ConfigError, DataError
from leukoscope.cache import content_hashes, entry_folder
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.images import UnreachableImage, UnreadableImage, check_header
from leukoscope.data.layouts import CellFile, ImageFolder, cell_id_of, check_classes_on_paths, find_class_folders
from leukoscope.data.names import folded, side_named
from leukoscope.data.reading import NO_COLUMN, Reading
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.table import CellRow, CellTable, files_below, read_table, rows_by_picture
from leukoscope.progress import map_in_threads, shown_name

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
"""The tables that 🤗 datasets lays among pictures: at the root, or one for each split."""
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
    sides = {side_named(part) for path in folder.images for part in path.relative_to(root).parts[:-1]} - {""}
    # Of one's own cells below Train/ and Test/, those below Train/ may look like a set whose other part is TestA/.
    is_split_anew = len(sides) > 1 and "train" in {cell.fold for cell in cells}
    if len(cells) > len(_others(best, folder, cells)) and not is_split_anew:
        return best
    if has_class_folders or any(path.name in METADATA_FILES for path in folder.others):
        return DATASETS["imagefolder"]
    layouts = "; ".join(f"{info.name}: {info.layout}" for info in DATASETS.values() if info.find_cells)
    raise DataError(f"{root}: holds no picture laid out as one of the known data sets; expected {layouts}")


def load_folder(info: DatasetInfo, root: Path, reading: Reading) -> LoadedCells:
    """Load the cells of a local folder; flags and errors as of `load_cells`."""
    source = f"--train_dir {root}"
    fix = "correct the path"
    if info.url:
        fix = f"get {info.title} from {info.url} and unpack it there, or {fix}"
    folder = _read(root, source, fix)
    if info.name == "imagefolder":
        own = _OwnCells(folder, reading, source)
        cells = own.cells()
        not_used = own.not_used
        split_column = own.split_column
    else:
        assert info.find_cells is not None
        cells = list(info.find_cells(folder))
        not_used = passed_over(info, folder, cells)
        split_column = ""
        if not cells:
            reasons = "; ".join(not_used or [f"expected {info.layout}"])
            raise DataError(f"{source}: no cell of {info.title} found; {reasons}")
        classes = {*info.labels, *(cell.label for cell in cells)}
        check_classes_on_paths(((folder.below(cell.path), cell.label) for cell in cells), classes)
    odd = next((path for path in folder.images if str(path) != shown_name(str(path))), None)
    if odd is not None:
        raise DataError(f"{shown_name(str(odd))}: its name is not in UTF-8; rename the file or its folder")
    _require_different_ids(cells)
    readable, unreadable = _readable(cells, source)
    content = _content_of(readable, root)
    records = [
        CellRecord(cell.cell_id, cell.label, cell.subject, content[str(cell.path)], cell.fold) for cell in readable
    ]
    images = image_column([str(cell.path) for cell in readable])
    return assemble(
        info, images, records, source, unreadable=unreadable, passed_over=not_used, split_column=split_column
    )


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
    remembered = entry_folder("hashes", root.resolve()) / "hashes.json"
    content = content_hashes((cell.path for cell in cells), remembered)
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


# A user's own cells


class _OwnCells:
    """The cells of a folder that is no known data set: tables or folders name their classes, subjects and sides."""

    def __init__(self, folder: ImageFolder, reading: Reading, source: str):
        self.folder = folder
        self.reading = reading
        self.source = source
        self.not_used: list[str] = []  # one line for each reason why pictures were left out
        self.tables = self._tables()
        self.rows = self._rows()
        self.split_column = next((table.columns["split"] for table, _ in self.tables if table.names("side")), "")

    def cells(self) -> list[CellFile]:
        """The cells with their subjects and sides."""
        names_people = self._names_people()
        rule = subject_rule(self.reading)
        has_classes = any(row.label for row in self.rows.values())
        below = 0
        if has_classes:
            cells = self._of_tables()
        else:
            below = 1 + self.reading.subject_folders
            cells = self._of_class_folders(below)
        folders_of = {cell.path: _folders(cell.path, self.folder.root) for cell in cells}
        heads = {path: folders[: len(folders) - below] for path, folders in folders_of.items()}
        depth, side_of = _split_folders(list(heads.values()))
        if not (has_classes or names_people):
            self._require_flat([path for path, head in heads.items() if len(head) > depth + bool(side_of)], cells)
        if rule is not None:
            cells = [replace(cell, subject=rule(self.folder.below(cell.path))) for cell in cells]
        if self.reading.subject_folders:
            require_people((cell.subject for cell in cells), {cell.label for cell in cells})
        if self.split_column or not side_of:
            return cells
        outside = [path for path, head in heads.items() if side_of.get("".join(head[depth : depth + 1])) is None]
        if outside:
            raise DataError(
                f"{self.source}: {self.folder.below(outside[0])!r} lies beside the splits {', '.join(side_of)} "
                f"({len(outside):,} such image file(s)); move it into one of them, or away"
            )
        return [replace(cell, fold=side_of[heads[cell.path][depth]]) for cell in cells]

    def _tables(self) -> list[tuple[CellTable, Path]]:
        """The table of --labels, else the folder's own, each with the folder that its paths start from."""
        root = self.folder.root
        if self.reading.labels is None:
            paths = [path for path in self.folder.others if path.name in METADATA_FILES]
            tables = [(read_table(path, self.reading), path.parent) for path in paths]
        else:
            path = Path(self.reading.labels)
            if not path.is_file():
                raise DataError(f"--labels {path}: no such file; it needs the columns file,label,subject")
            table = read_table(path, self.reading)
            tables = [(table, home_of(table, root, path.parent))]
        for table, _ in tables:
            _require_class_or_subject(table, self.reading)
            for field in ("subject", "label", "side"):
                if table.names(field) and not all(other.names(field) for other, _ in tables):
                    other_name = next(other.name for other, _ in tables if not other.names(field))
                    raise DataError(f"{other_name}: names no {field}, {table.name} does; fill it in")
        return tables

    def _rows(self) -> dict[Path, CellRow]:
        """Picture → its row."""
        row_of: dict[Path, CellRow] = {}
        for table, home in self.tables:
            for file, row in rows_by_picture(table, files_below(home), home).items():
                path = _as_listed(home / file, self.folder.root)
                if path in row_of:
                    raise DataError(
                        f"{table.name}: row {row.number}: {row.file!r} has a row in another table, too; keep one of "
                        "the two"
                    )
                row_of[path] = row
        return row_of

    def _names_people(self) -> bool:
        """Whether a table or a flag names the subjects; refuses two of them."""
        reading = self.reading
        ways = []
        if reading.subject_pattern:
            ways.append(f"--subject_pattern {shlex.quote(reading.subject_pattern)}")
        if reading.subject_folders:
            ways.append("--subject_folders")
        ways += [table.name for table, _ in self.tables if table.names("subject")][:1]
        if len(ways) > 1:
            raise ConfigError(f"{ways[0]} {ways[1]}: both name the subjects; give one")
        return bool(ways)

    def _of_tables(self) -> list[CellFile]:
        """The cells of which a table names the class."""
        names = ", ".join(table.name for table, _ in self.tables)
        without_class = sum(not row.label for row in self.rows.values())
        if without_class:
            self.not_used.append(f"{without_class} row(s) of {names} name no class: left out")
        others = [path for path in self.folder.images if path not in self.rows]
        if others:
            self.not_used.append(
                f"{len(others):,} image file(s) have no row in {names}, for example {others[0]}: left out"
            )
        return [
            CellFile(path, row.label, row.subject, cell_id_of(self.folder.below(path)), row.side)
            for path, row in self.rows.items()
            if row.label
        ]

    def _of_class_folders(self, below: int) -> list[CellFile]:
        """The cells by `<class>/<image>`, or `<class>/<subject>/<image>`: the class is so many folders up."""
        self.not_used += passed_over(DATASETS["imagefolder"], self.folder, list(find_class_folders(self.folder)))
        cells = []
        for path in self.folder.images:
            folders = _folders(path, self.folder.root)
            file = self.folder.below(path)
            row = self.rows.get(path)
            if self.tables and folders and row is None:
                raise DataError(f"{self.tables[0][0].name}: no row for file {file!r}; every image needs one")
            if len(folders) >= below:
                cell = CellFile(path, folders[-below], "", cell_id_of(file))
                if row is not None:
                    cell = replace(cell, subject=row.subject, fold=row.side)
                cells.append(cell)
            elif below > 1:
                raise DataError(
                    f"--subject_folders: {path} lies in no folder <class>/<subject>; move it into that of its subject"
                )
        labels = sorted({cell.label for cell in cells})
        if not labels:
            raise DataError(
                f"{self.source}: no cell found; expected {DATASETS['imagefolder'].layout}, or a table (--labels FILE)"
            )
        splits = [label for label in labels if side_named(label)]
        if splits:
            raise DataError(
                f"{self.source}: its folders {', '.join(splits)} are splits, not classes, and no table names classes; "
                "put the images of each class into a folder of its name, such as train/ALL, add a metadata.csv with "
                "the columns file_name and label, or move the folder away"
            )
        without_class = [label for label in labels if _NO_CLASS.fullmatch(folded(label))]
        if without_class:
            raise DataError(
                f"{self.source}: the folders {', '.join(labels)} would be the classes, but {without_class[0]!r} is not "
                "the name of a class; give the folder that contains the folders of classes, move this folder away (or "
                "rename it if it is a class), or name the classes in a table (--labels FILE)"
            )
        check_classes_on_paths([(self.folder.below(cell.path), cell.label) for cell in cells], labels)
        return cells

    def _require_flat(self, deep: Sequence[Path], cells: Sequence[CellFile]) -> None:
        """Refuse folders within folders of which nothing says which are classes and which are people."""
        if not deep:
            return
        above: defaultdict[str, set[str]] = defaultdict(set)
        for cell in cells:
            above[cell.path.parent.name].add(cell.path.parent.parent.name)
        recurring = [name for name, folders in above.items() if len(folders) > 1]
        recurs = ""
        if recurring:
            recurs = f" ({len(recurring)} such folders, as {recurring[0]!r}, lie in several of those)"
        raise DataError(
            f"{self.source}: pictures lie in folders within folders, such as {self.folder.below(deep[0])!r}, and "
            "nothing says which are classes and which are people: give --subject_folders if the innermost folder is "
            f"a person and the one above it the class{recurs}, --subject_pattern '(?P<subject>[^/]+)/[^/]+/[^/]+$' if "
            "the innermost folder is the class and the one above it a person, or a table (--labels FILE)"
        )


def _require_class_or_subject(table: CellTable, reading: Reading) -> None:
    """Refuse a table without use, and one that may name classes in a column of another name."""
    if table.names("label"):
        return
    if "label" in table.columns:
        raise DataError(
            f"{table.name}: its column {table.columns['label']!r} names no class in any row; fill it in, or leave it "
            "out with --label_column_name none"
        )
    if table.others and reading.label_column_name != NO_COLUMN:
        raise DataError(
            f"{table.name}: has no column called label, but {', '.join(table.others)}; name that of the classes with "
            f"--label_column_name {shlex.quote(table.others[0])} (one class in each row), or give --label_column_name "
            "none where folders name the classes"
        )
    if not (table.names("subject") or table.names("side")):
        raise DataError(
            f"{table.name}: names no subject and no class; add a column called subject or label, or name it with "
            "--subject_column or --label_column_name"
        )


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    """The folders from `root` to a picture; () for one elsewhere."""
    return path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()


def _split_folders(heads: Sequence[tuple[str, ...]]) -> tuple[int, dict[str, str]]:
    """How many folders hold all others, and of those below which are sides of a split: folder → side.

    An archive often unpacks into one outer folder. It is a split where `train` and another side lie side by side.
    """
    levels = zip(*heads, strict=False)
    depth = sum(1 for _ in takewhile(lambda folders: len(set(folders)) == 1, levels))
    side_of = {head[depth]: side_named(head[depth]) for head in heads if len(head) > depth}
    side_of = {folder: side for folder, side in side_of.items() if side}
    sides = set(side_of.values())
    if "train" in sides and len(sides) > 1:
        return depth, side_of
    return depth, {}


def home_of(table: CellTable, *folders: Path) -> Path:
    """The folder that a table's paths start from: the first that holds its first picture, else the first."""
    return next((folder for folder in folders if files_below(folder)(table.rows[0].file)), folders[0])


def _as_listed(path: Path, root: Path) -> Path:
    """A picture's path as a walk of `root` lists it; as it is where it lies elsewhere."""
    below = os.path.relpath(path, root)
    if below.startswith(os.pardir):
        return path
    return root / below


def subject_rule(reading: Reading) -> Callable[[str], str] | None:
    """Make the function from a picture's path to its subject that flags ask for; None where they ask for none.

    Raises:
        ConfigError: two flags, no regular expression, or one without a group.
        DataError: by the function, a path that names no subject so.
    """
    if reading.subject_folders:
        return _innermost_folder
    if not reading.subject_pattern:
        return None
    flag = f"--subject_pattern {shlex.quote(reading.subject_pattern)}"
    try:
        rule = re.compile(reading.subject_pattern)
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


def _innermost_folder(file: str) -> str:
    folder = PurePosixPath(file).parent.name
    if not folder:
        raise DataError(f"--subject_folders: {file!r} lies in no folder; move it into that of its subject")
    return folder


def require_people(subjects: Iterable[str], classes: Iterable[str] = ()) -> None:
    """Refuse subjects of whom each has the name of a class, of these or of a known data set; "" is no subject."""
    labels = {*classes, *(label for info in DATASETS.values() for label in info.labels)}
    names = sorted(set(subjects) - {""})
    if names and set(map(folded, names)) <= set(map(folded, labels)):
        raise DataError(
            f"the subjects ({', '.join(names)}) have the names of classes, not of people; leave out --subject_folders, "
            "or name the subjects with --subject_pattern or in a table"
        )


# What is no cell


def passed_over(info: DatasetInfo, folder: ImageFolder, cells: Sequence[CellFile]) -> list[str]:
    """One line for each reason why pictures of a known data set's folder were left out."""
    lines = list(filter(None, [folder.left_out]))
    others = _others(info, folder, cells)
    if others:
        lines.append(
            f"{len(others):,} image file(s) passed over, for example {others[0]}: not laid out as {info.layout}"
        )
    return lines


def _others(info: DatasetInfo, folder: ImageFolder, cells: Iterable[CellFile]) -> list[Path]:
    """The pictures of a folder that are not among the cells found there."""
    of_cells = {cell.path for cell in cells}
    others = [path for path in folder.images if path not in of_cells]
    return [path for path in others if set(info.other_folders).isdisjoint(path.relative_to(folder.root).parts)]
