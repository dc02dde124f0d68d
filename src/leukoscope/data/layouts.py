"""How data sets lie on disk: one walk of a folder, and finders that read each picture's class and subject off its path.

What is left out is counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from leukoscope import DataError
from leukoscope.data.images import IMAGE_SUFFIXES
from leukoscope.data.names import folded
from leukoscope.data.table import read_frame

# Made by file managers and programs, as names that begin with "." are.
_JUNK = ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")
# Files that usually lie beside pictures and need no mention.
_COMPANIONS = (
    *(".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".xlsx", ".xls", ".parquet", ".html"),
    *(".pdf", ".log", ".py", ".ipynb", ".safetensors", ".sha256", ".db"),
)


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name was made by a file manager or another program."""
    return name.startswith(".") or name.casefold() in _JUNK


def is_image(name: str) -> bool:
    """Whether a file of that name is read as a picture."""
    return _suffix(name) in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def other_kinds(names: Iterable[str]) -> Counter[str]:
    """Suffix → number of the files that are not pictures and do not usually lie beside pictures."""
    return Counter(kind or "no suffix" for kind in map(_suffix, names) if kind not in (*IMAGE_SUFFIXES, *_COMPANIONS))


def left_out(kinds: Counter[str]) -> str:
    """One line about the files that are not readable images: suffix → count; "" for none."""
    if not kinds:
        return ""
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    return f"{kinds.total():,} file(s) skipped, not readable images: {listed}; export them as PNG or JPEG"


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """List the files of a folder and of those below it, in a fixed order, without hidden ones and junk, each once."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); check who may read it, or move it away"
        )

    homes = [Path(root).resolve()]

    # A link to a folder that is walked anyway would list its files twice, or never end.
    def is_entered(path: Path) -> bool:
        if not path.is_symlink():
            return True
        target = path.resolve()
        if any(target.is_relative_to(home) or home.is_relative_to(target) for home in homes):
            return False
        homes.append(target)
        return True

    for folder, inside, files in os.walk(root, followlinks=True, onerror=refuse):
        inside[:] = [name for name in sorted(inside) if not is_junk(name) and is_entered(Path(folder, name))]
        yield folder, [name for name in sorted(files) if not is_junk(name)]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures, walked once."""

    root: Path
    images: list[Path]  # in a fixed order, broken links included; opening one raises `UnreachableImage`
    others: list[Path]  # all other files

    @classmethod
    def read(cls, root: Path) -> ImageFolder:
        """Walk a folder; raises `DataError` if it cannot be read."""
        files = [Path(folder, name) for folder, names in walk(root) for name in names]
        images = sorted(path for path in files if is_image(path.name))
        others = [path for path in files if not is_image(path.name)]
        return cls(root, images, others)

    def below(self, path: Path) -> str:
        """A path below the folder, with "/"; one elsewhere, as only tables name them, as it is."""
        if path.is_relative_to(self.root):
            path = path.relative_to(self.root)
        return path.as_posix()

    @property
    def left_out(self) -> str:
        """One line about the files that are not readable images; "" for none."""
        return left_out(other_kinds(path.name for path in self.others))


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
        names: name of a class or partition in the path → its name here; others keep theirs.
        without: names of folders that are skipped, because their pictures are not cells of their own.
    """
    rule = re.compile(rf"(?:^|/)(?P<path>{pattern})\.(?i:{suffix})$")
    name_of = names or {}

    def find(folder: ImageFolder) -> Iterator[CellFile]:
        for path in folder.images:
            file = path.relative_to(folder.root)
            match = rule.search(file.as_posix())
            if match is None or not set(without).isdisjoint(file.parts):
                continue
            # A group that the pattern lacks, or that matched nothing, is "".
            part = defaultdict(str, match.groupdict(default=""))
            yield CellFile(
                path,
                label=name_of.get(part["label"], part["label"]),
                subject=part["subject"],
                cell_id=part["cell"] or part["path"],
                fold=name_of.get(part["fold"], part["fold"]),
            )

    return find


def cell_id_of(file: str) -> str:
    """A file's name as a cell id: without the suffix of a picture."""
    suffix = PurePath(file).suffix
    return file.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else file


# A user's own cells: the class is the folder that a picture lies in.
find_class_folders = cells_named(r"(?P<cell>(?:.+/)?(?P<label>[^/]+)/[^/]+)", r"\w+")

CNMC_NAME = re.compile(r"UID_(?P<subject>[Hh]?\d+)_(?P<frame>\d+)_(?P<cell>\d+)_(?P<label>all|hem)$")
CNMC_PRELIM_LABELS = "C-NMC_test_prelim_phase_data_labels.csv"


def subject_in_name(path: str) -> str:
    """The subject that a file is named for, as cells of C-NMC 2019 are; "" for any other name."""
    match = CNMC_NAME.match(cell_id_of(PurePosixPath(path).name))
    if match is None:
        return ""
    return match["subject"]


def find_cnmc_cells(folder: ImageFolder) -> Iterator[CellFile]:
    """C-NMC 2019 as Kaggle and TCIA unpack it: cells named `UID_…`, and the preliminary test named by its CSV.

    A copy of a cell outside the folds (samples in another format, say) is passed over.
    """
    original_of: dict[str, str] = {}
    for path in folder.others:
        if path.name == CNMC_PRELIM_LABELS:
            original_of |= _preliminary_names(path)
    cells = []
    for path in folder.images:
        if "prelim" in path.parent.name:
            original = original_of.get(path.stem, "")
            fold = "preliminary_test"
        else:
            original = path.stem
            fold = next((part for part in reversed(path.parts) if re.fullmatch(r"fold_\d", part)), "")
        match = CNMC_NAME.match(original)
        if match:
            cells.append(CellFile(path, match["label"].upper(), match["subject"], cell_id=original, fold=fold))
    in_folds = {cell.cell_id for cell in cells if cell.fold}
    yield from (cell for cell in cells if cell.fold or cell.cell_id not in in_folds)


def _preliminary_names(path: Path) -> dict[str, str]:
    """Number of a file of C-NMC's preliminary test (`1` of `1.bmp`) → its original cell id, as the publisher lists."""
    frame = read_frame(path)
    missing = sorted({"new_names", "Patient_ID"} - set(frame.columns))
    if missing:
        raise DataError(f"{path}: lacks the column(s) {', '.join(missing)}; get the publisher's list again")
    rows = zip(frame["new_names"], frame["Patient_ID"], strict=True)
    return {Path(number).stem: Path(name).stem for number, name in rows}


def class_on_path(file: str, classes: Iterable[str]) -> str:
    """The class that a folder of a file's path names, as `classes` spells it; "" where no folder names one.

    Args:
        file: path below the folder or archive that was given; what lies above that folder does not count.

    Raises:
        DataError: folders that name two classes, as an export of relabelled pictures makes them.
    """
    spelt = {folded(label): label for label in classes}
    folders = map(folded, PurePosixPath(file).parts[:-1])
    named = [spelt[folder] for folder in folders if folder in spelt]
    if len(set(named)) > 1:
        raise _two_classes(file, named[0], named[-1])
    return named[0] if named else ""


def check_classes_on_paths(files: Iterable[tuple[str, str]], classes: Iterable[str]) -> None:
    """Refuse pictures in a folder with the name of another class.

    Args:
        files: (path, class) of each picture, the path as of `class_on_path`.

    Raises:
        DataError: as `class_on_path`, or a folder that names another class than the file's own name.
    """
    names = list(classes)
    examples = {(os.path.dirname(file), label): file for file, label in files}
    for (_, label), file in examples.items():
        named = class_on_path(file, names)
        if named and folded(named) != folded(label):
            raise _two_classes(file, named, label)


def _two_classes(file: str, label: str, other: str) -> DataError:
    return DataError(
        f"{file}: its path names two classes, {label!r} and {other!r}; move the picture into a folder of its one "
        "class, or name the classes in a table"
    )
