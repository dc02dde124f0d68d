"""How data sets lie on disk: finders that read the class, subject and publisher's partition of each picture's path."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import content_of, csv_rows
from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class CellFile:
    """One labelled image on disk. `fold` is the publisher's own partition ("" where there is none)."""

    path: Path
    label: str
    subject: str
    cell_id: str
    fold: str = ""


Finder = Callable[[ImageFolder], Iterator[CellFile]]


def cells_named(
    pattern: str, suffix: str, *, names: Mapping[str, str] | None = None, without: Collection[str] = ()
) -> Finder:
    r"""Make a finder of the pictures whose path ends as a regular expression says, such as `(?P<label>ALL|HEM)/\w+`.

    Args:
        pattern: begins with the name of a folder or file. Its group `label` is the class; `subject` and `fold` are the
            cell's. The group `cell`, else all that matches, becomes the cell's id, which therefore does not depend on
            the folders above.
        suffix: of the files, a regular expression in any case.
        names: what a class or partition is called here, by what the path calls it.
        without: folders whose pictures are no cells of their own.
    """
    rule, names = re.compile(rf"(?:^|/)(?P<path>{pattern})\.(?i:{suffix})$"), names or {}

    def find(folder: ImageFolder) -> Iterator[CellFile]:
        for path in folder.images:
            file = path.relative_to(folder.root)
            if (match := rule.search(file.as_posix())) and set(without).isdisjoint(file.parts):
                found = match.groupdict()
                label, fold = (names.get(one, one) for one in (found["label"], found.get("fold") or ""))
                yield CellFile(path, label, found.get("subject") or "", found.get("cell") or found["path"], fold)

    return find


def cell_id_of(file: str) -> str:
    """A file's name as a cell id: without the suffix of a picture."""
    suffix = PurePath(file).suffix
    return file.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else file


CNMC_NAME = re.compile(r"UID_(?P<subject>[Hh]?\d+)_(?P<frame>\d+)_(?P<cell>\d+)_(?P<label>all|hem)$")
CNMC_PRELIM_LABELS = "C-NMC_test_prelim_phase_data_labels.csv"


def find_cnmc_cells(folder: ImageFolder) -> Iterator[CellFile]:
    """C-NMC 2019 as Kaggle and TCIA unpack it: cells named `UID_…`, and the preliminary test named by its CSV.

    A copy of a cell outside the folds (samples in another format, say) is passed over.
    """
    lists = [path for path in folder.others if path.name == CNMC_PRELIM_LABELS]
    original_of = _preliminary_cells(lists[0]) if lists else {}
    cells = []
    for path in folder.images:
        if is_preliminary(path):
            original, fold = original_of.get(path.stem, ""), "preliminary_test"
        else:
            original = path.stem
            fold = next((part for part in reversed(path.parts) if re.fullmatch(r"fold_\d", part)), "")
        if match := CNMC_NAME.match(original):
            cells.append(CellFile(path, match["label"].upper(), match["subject"], cell_id=original, fold=fold))
    in_folds = {cell.cell_id for cell in cells if cell.fold}
    yield from (cell for cell in cells if cell.fold or cell.cell_id not in in_folds)


def is_preliminary(path: Path) -> bool:
    """Whether a picture lies in the folder of C-NMC 2019's preliminary test."""
    return "prelim" in path.parent.name


def _preliminary_cells(path: Path) -> dict[str, str]:
    """Number of a file of the preliminary test (`1` of `1.bmp`) → its original cell id, by the publisher's list."""
    columns = ("new_names", "Patient_ID")
    fix = f"it needs the columns {','.join(columns)}"
    header, rows, _ = csv_rows(content_of(path), str(path), fix)
    if missing := sorted(set(columns) - set(header)):
        raise LeukoscopeError(f"{path}: lacks the column(s) {', '.join(missing)}; {fix}")
    numbers, cells = map(header.index, columns)
    return {Path(row[numbers]).stem: Path(row[cells]).stem for _, row in rows if len(row) > max(numbers, cells)}


def find_class_folders(folder: ImageFolder) -> Iterator[CellFile]:
    """A user's own cells: `<root>/…/<class>/<image>`, or `<root>/…/<class>/<subject>/<image>`.

    The class is the folder an image lies in. The innermost folders are subjects where each lies in one class alone and
    has a digit in its name, as ids have, and there are more of them than of the folders above.
    """
    root = folder.root
    files = [path for path in folder.images if path.parent != root]
    subjects = _are_subjects({path.parent for path in files}, root)
    for path in files:
        label, subject = (path.parent.parent.name, path.parent.name) if subjects else (path.parent.name, "")
        yield CellFile(path, label, subject=subject, cell_id=cell_id_of(path.relative_to(root).as_posix()))


def _are_subjects(folders: Iterable[Path], root: Path) -> bool:
    """Whether these folders of pictures are subjects rather than classes."""
    above: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        if folder.parent == root or not any(letter.isdigit() for letter in folder.name):
            return False
        above[folder.name].add(folder.parent.name)
    classes = set().union(*above.values())
    return all(len(names) == 1 for names in above.values()) and 2 <= len(classes) < len(above)
