"""The data sets Leukoscope knows: one entry each, holding all that loading, splitting and cards need to say.

A data set on disk is found by its entry's `find_cells`, which reads the trees as their publishers unpack them;
adding a data set is adding one entry to `DATASETS`.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import located, read_csv
from leukoscope.data.images import IMAGE_SUFFIXES

# What is said of a cell or a subject instead of a class (`Decision`, `SubjectPrediction`): no class may be called so.
ABSTAIN = "abstain"
OUT_OF_DISTRIBUTION = "out of distribution"
NOT_A_CELL = "not a cell"
TOO_FEW_CELLS = "too few cells"
RESERVED_LABELS = (ABSTAIN, OUT_OF_DISTRIBUTION, NOT_A_CELL, TOO_FEW_CELLS)


@dataclass(frozen=True)
class CellFile:
    """One labelled image on disk. `fold` is the publisher's own partition ("" where there is none)."""

    path: Path
    label: str
    subject: str
    cell_id: str
    fold: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a single image is opened.

    Attributes:
        labels: class names in the order of the network's outputs.
        positive_label: the class whose detection "sensitivity" speaks of; empty where none is named, as with more than
            two classes.
        official_counts: publisher's partition → label → number of cells.
        subject_aliases: subject id → the id it is the same person as.
        group: the unit that must not stand on two sides of an honest split.
        background: what surrounds a cell; augmentation fills uncovered corners with it.
        crop_pct: the central share of the shorter side that the network sees.
        picture_side: pixels a side of every picture, where these are squares that show all cells at one scale.
        recipe: the recipe that did best on its cells; empty for the default of `train.py`.
        url: where its publisher offers it; empty where there is nothing to fetch.
        find_cells: walks a local folder; empty for data sets that are generated rather than read.
        label_list: the publisher's file without which the preliminary test has no labels.
        other_folders: folders known to hold images that are no cells of their own; they need no mention.
        hub_id: the Hub data set used when no local folder is given.
        licence_id: `licence` as the Hub names it; empty where the owner of the cells has to say.
        synthetic: True when no image shows a real cell.
        copy_of: the registry's name for what a data set of the Hub, published with `leukoscope data push`, holds.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    positive_label: str
    licence: str
    citation: str
    url: str
    group: Literal["subject", "block"]
    background: Literal["black", "smear"]
    crop_pct: float
    find_cells: Callable[[Path], Iterator[CellFile]] | None = None
    official_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    subject_aliases: Mapping[str, str] = field(default_factory=dict)
    hub_id: str | None = None
    synthetic: bool = False
    layout: str = ""
    label_list: str = ""
    other_folders: tuple[str, ...] = ()
    licence_id: str = ""
    picture_side: int | None = None
    recipe: str = ""
    copy_of: str = ""

    def canonical_subject(self, subject: str) -> str:
        """The subject a cell counts for, once known aliases are joined."""
        seen = {subject}
        while (named := self.subject_aliases.get(subject, subject)) not in seen:
            subject = named
            seen.add(subject)
        return subject

    def about(self) -> dict[str, Any]:
        """What a report names of it, ready for JSON."""
        named = {key: getattr(self, key) for key in ("name", "title", "licence", "citation", "synthetic")}
        copy = {"copy_of": self.copy_of} if self.copy_of else {}
        return {**named, "unit": self.group, **copy}


# What systems and programs put beside pictures; names that begin with "." are left out too.
_JUNK = ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")
# Files that lie beside pictures and need no mention.
_COMPANIONS = (
    *(".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".xlsx", ".xls", ".parquet", ".html"),
    *(".pdf", ".log", ".py", ".ipynb", ".safetensors", ".sha256", ".db"),
)
_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8")


def is_junk(name: str) -> bool:
    """Whether a file manager or another program, not a person, made a file or folder of that name."""
    return name.startswith(".") or name.casefold() in _JUNK


def is_image_file(path: str) -> bool:
    """Whether a file is named as a picture, or begins as one that is read here."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES or suffix in _COMPANIONS:
        return suffix in IMAGE_SUFFIXES
    try:
        if not os.path.isfile(path):  # a pipe would wait for its writer
            return False
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return begins_as_image(start)


def begins_as_image(start: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a picture that is read here."""
    bitmap = start[:2] == b"BM" and start[6:10] == bytes(4)
    return start.startswith(_MAGIC) or bitmap or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def walked(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it, each with the names of its files, in a fixed order; what is hidden is left out.

    A link to a folder is followed where that lies neither below `root` nor above it: no file is met twice.

    Raises:
        LeukoscopeError: a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise LeukoscopeError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); check who may read it, or move it away"
        )

    homes = [Path(root).resolve()]

    def is_entered(path: Path) -> bool:
        if not path.is_symlink():
            return True
        target = path.resolve()
        if any(target.is_relative_to(home) or home.is_relative_to(target) for home in homes):
            return False
        homes.append(target)
        return True

    for folder, inside, files in os.walk(root, followlinks=True, onerror=refuse):
        inside[:] = [n for n in sorted(inside) if not is_junk(n) and is_entered(Path(folder, n))]
        yield folder, sorted(name for name in files if not is_junk(name))


def image_files(root: Path) -> Iterator[Path]:
    """All image files under a folder, as `walked` finds them, in a fixed order, whatever their suffix.

    A link to an image that is not there is among them: who opens it says so.

    Raises:
        LeukoscopeError: a folder that cannot be read, or an image whose name is not UTF-8.
    """
    images = (
        Path(folder, name)
        for folder, names in walked(root)
        for name in names
        if is_image_file(os.path.join(folder, name))
    )
    for path in sorted(images):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise LeukoscopeError(f"{os.fsencode(path)!r}: the name of this image is not UTF-8; rename it") from None
        yield path


def other_files(root: Path) -> str:
    """One line on the files under a folder that are no pictures read here, by suffix; "" without."""
    kinds = Counter(
        os.path.splitext(name)[1].lower() or "no suffix"
        for folder, names in walked(root)
        for name in names
        if os.path.splitext(name)[1].lower() not in _COMPANIONS and not is_image_file(os.path.join(folder, name))
    )
    return left_out(kinds) if kinds else ""


def left_out(kinds: Counter[str]) -> str:
    """One line on files that are no pictures read here, counted by suffix."""
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    return f"{kinds.total():,} file(s) left out, no pictures that can be read: {listed}; export them as PNG or JPEG"


def files_named(root: Path, name: str) -> list[Path]:
    """The files of that name under a folder, as `walked` finds them."""
    return [Path(folder, name) for folder, names in walked(root) if name in names]


PRELIMINARY, COPIES, OTHER = "preliminary", "copies", "other"  # why an image file is no cell


def passed_over(info: DatasetInfo, root: Path, found: Iterable[CellFile]) -> Iterator[str]:
    """One line a reason for which image files under `root` are not among the cells found there."""
    cells = list(found)
    left = files_left_out(info, root, cells)
    if preliminary := left[PRELIMINARY]:
        missing = not files_named(root, info.label_list)
        state = "that list is not there; put it beside them" if missing else "it names no cell for them"
        yield (
            f"{len(preliminary):,} image file(s) of the preliminary test left out, for example {preliminary[0]}: "
            f"their labels come from {info.label_list}, and {state}"
        )
    if others := other_files(root):
        yield others
    classes = {label.casefold() for label in info.labels}
    elsewhere = [cell.path for cell in cells if cell.path.parent.name.casefold() in classes - {cell.label.casefold()}]
    if elsewhere:
        yield (
            f"{len(elsewhere):,} image file(s) lie in the folder of another class than their name says, for example "
            f"{elsewhere[0]}: the name counts"
        )
    if info.find_cells is find_class_folders and not (root / "metadata.csv").is_file():
        yield from _about_folders(root, {cell.path.parent for cell in cells}, any(cell.subject for cell in cells))
    for reason, said in ((OTHER, f"not laid out as {info.layout}"), (COPIES, "copies of cells already found")):
        if paths := left[reason]:
            yield f"{len(paths):,} image file(s) passed over, for example {paths[0]}: {said}"


def _about_folders(root: Path, filled: set[Path], subjects: bool) -> Iterator[str]:
    """What a person should know of how class folders were read."""
    if subjects:
        yield (
            "read as <class>/<subject>/<image>: each innermost folder is a subject; give --subject_pattern or "
            "--subject_csv if it is not"
        )
    above = {folder.parent.name for folder in filled if root not in (folder, folder.parent)}
    parts = re.compile(r"(fold|train|test|val|dev|eval)", re.IGNORECASE)
    if not subjects and len(above) > 1 and not any(map(parts.match, above)):
        yield (
            f"read as <class>/<image>; the folders above the classes ({', '.join(sorted(above)[:3])} …) were not used: "
            "if they are subjects, give --subject_pattern '(?P<subject>[^/]+)/[^/]+/[^/]+$'"
        )
    homes = {folder.parent for folder in filled}
    for folder, _ in walked(root):
        path = Path(folder)
        # Beside the folders of pictures, where a class would be.
        is_beside = path != root and path.parent in homes
        if is_beside and not any(one.is_relative_to(path) for one in filled):
            yield f"folder {path.relative_to(root).as_posix()!r} holds no picture that can be read: it makes no class"


def files_left_out(info: DatasetInfo, root: Path, found: Iterable[CellFile]) -> dict[str, list[Path]]:
    """The image files under `root` that are not among the cells found there, by reason: PRELIMINARY, COPIES, OTHER."""
    cells = {cell.path: cell.cell_id for cell in found}
    ids = set(cells.values())
    left: dict[str, list[Path]] = {PRELIMINARY: [], COPIES: [], OTHER: []}
    for path in image_files(root):
        if path in cells or not set(info.other_folders).isdisjoint(path.relative_to(root).parts):
            continue
        preliminary = info.label_list and _is_preliminary(path)
        left[PRELIMINARY if preliminary else COPIES if path.stem in ids else OTHER].append(path)
    return left


def wrong_separator(columns: Sequence[str]) -> str:
    """What to say of a CSV file whose heading was read as one column, because no comma separates it; else ""."""
    separators = {";": "semicolons", "\t": "tabs"}
    found = next((name for mark, name in separators.items() if len(columns) == 1 and mark in columns[0]), "")
    return f"its columns are separated by {found}; save it with commas" if found else ""


def read_columns(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """The named columns of a CSV file, row by row; a cell that is not there reads as "".

    Raises:
        LeukoscopeError: a column is missing, or the file is no CSV in UTF-8.
    """
    needed = f"it needs {','.join(columns)}"
    try:
        # Spreadsheets start a UTF-8 file with a byte-order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := sorted(set(columns) - set(reader.fieldnames or ())):
                reason = wrong_separator(reader.fieldnames or ()) or needed
                raise LeukoscopeError(f"{path}: lacks the column(s) {', '.join(missing)}; {reason}")
            return [tuple(row[name] or "" for name in columns) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LeukoscopeError(f"{path}: cannot be read as a CSV file in UTF-8 ({error}); {needed}") from None


EMPTY_SLIDE_RGB = (246, 254, 252)
"""Where a smear shows neither cell nor plasma: the median over 60 pictures of ball4 of their brightest quarters."""
CNMC_NAME = re.compile(r"UID_(?P<subject>[Hh]?\d+)_(?P<frame>\d+)_(?P<cell>\d+)_(?P<label>all|hem)$")
CNMC_PRELIM_LABELS = "C-NMC_test_prelim_phase_data_labels.csv"


def find_cnmc_cells(root: Path) -> Iterator[CellFile]:
    """C-NMC 2019 as Kaggle and TCIA unpack it: cells named `UID_…`, and the preliminary test named by its CSV.

    A copy of a cell kept outside the folds (samples in another format, say) is passed over.
    """
    # Number of a preliminary-test file (`1` of `1.bmp`) → original cell id, from the publisher's label list.
    lists = files_named(root, CNMC_PRELIM_LABELS)
    named = read_columns(lists[0], "new_names", "Patient_ID") if lists else []
    preliminary = {Path(name).stem: Path(cell).stem for name, cell in named}
    cells = []
    for path in image_files(root):
        if _is_preliminary(path):
            original, fold = preliminary.get(path.stem, ""), "preliminary_test"
        else:
            original = path.stem
            fold = next((part for part in reversed(path.parts) if re.fullmatch(r"fold_\d", part)), "")
        if match := CNMC_NAME.match(original):
            cells.append(CellFile(path, match["label"].upper(), match["subject"], cell_id=original, fold=fold))
    in_folds = {cell.cell_id for cell in cells if cell.fold}
    yield from (cell for cell in cells if cell.fold or cell.cell_id not in in_folds)


def _is_preliminary(path: Path) -> bool:
    return "prelim" in path.parent.name


BALL4_NAME = re.compile(r"WBC-(?:Malignant-)?(?P<label>Benign|Early|Pre|Pro)-(?P<number>\d+)$")


def find_ball4_cells(root: Path) -> Iterator[CellFile]:
    """The 4-class B-ALL fields; the parallel `Segmented` tree shows the same fields and is left out."""
    for path in image_files(root):
        match = BALL4_NAME.match(path.stem)
        if match and "Segmented" not in path.parts:
            yield CellFile(path, match["label"], subject="", cell_id=path.stem)


def find_class_folders(root: Path) -> Iterator[CellFile]:
    """A user's own cells: `<root>/…/<class>/<image>`, or `<root>/…/<class>/<subject>/<image>`.

    A `metadata.csv` at the root with labels names the cells instead, as 🤗 datasets reads one. Otherwise the class is
    the folder an image lies in; where each innermost folder lies in one class alone, has a digit in its
    name as ids have, and there are more of them than of the folders above, these are the classes and it is a subject.
    """
    listed = root / "metadata.csv"
    table = read_csv(listed) if listed.is_file() else None
    if table is not None and any(row.label for row in table.rows):
        for row, file in located(table, root):
            yield CellFile(root / file, row.label, row.subject, cell_id=_cell_id(Path(file)))
        return
    files = [path for path in image_files(root) if path.parent != root]
    subjects = _are_subjects({path.parent for path in files}, root)
    for path in files:
        label, subject = (path.parent.parent.name, path.parent.name) if subjects else (path.parent.name, "")
        yield CellFile(path, label, subject=subject, cell_id=_cell_id(path.relative_to(root)))


def _cell_id(name: Path) -> str:
    return (name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name).as_posix()


def _are_subjects(folders: Iterable[Path], root: Path) -> bool:
    """Whether these folders of pictures are subjects rather than classes."""
    above: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        if folder.parent == root or not any(letter.isdigit() for letter in folder.name):
            return False
        above[folder.name].add(folder.parent.name)
    classes = {name for names in above.values() for name in names}
    return all(len(names) == 1 for names in above.values()) and 2 <= len(classes) < len(above)


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="cnmc2019",
            title="C-NMC 2019 (ISBI 2019 challenge)",
            labels=("ALL", "HEM"),
            positive_label="ALL",
            licence="CC BY 3.0 (TCIA)",
            licence_id="cc-by-3.0",
            citation="Gupta, A. & Gupta, R. (2019). ALL Challenge dataset of ISBI 2019 (C-NMC 2019). "
            "The Cancer Imaging Archive. https://doi.org/10.7937/tcia.2019.dc64i46r",
            url="https://doi.org/10.7937/tcia.2019.dc64i46r",
            group="subject",
            background="black",
            # The central 350 of 450 pixels hold 97 % of the cells whole.
            crop_pct=350 / 450,
            picture_side=450,
            recipe="densenet169_block2",
            find_cells=find_cnmc_cells,
            official_counts={
                "fold_0": {"ALL": 2397, "HEM": 1130},
                "fold_1": {"ALL": 2418, "HEM": 1163},
                "fold_2": {"ALL": 2457, "HEM": 1096},
                "preliminary_test": {"ALL": 1219, "HEM": 648},
            },
            # One subject under several ids: `leukoscope data audit` finds the same cells, identical pixel for pixel or
            # photographed again (H6, H7, 44, H24, 17; 16 and 15 by a single cell each), under each of these groups.
            subject_aliases={
                **{alias: "51" for alias in ("55", "75", "78")},
                **{alias: "H2" for alias in ("H4", "H5", "H6", "H7")},
                **{alias: "20" for alias in ("16", "17", "21")},
                "h3": "H10",
                "H24": "H14",
                "44": "43",
                "15": "1",
            },
            hub_id="dwb2023/cnmc-leukemia-2019",
            layout="…/fold_{0,1,2}/{all,hem}/UID_<subject>_<frame>_<cell>_<label>.bmp",
            label_list=CNMC_PRELIM_LABELS,
        ),
        DatasetInfo(
            name="ball4",
            title="B-ALL, four classes (Ghaderzadeh et al. 2021)",
            labels=("Benign", "Early", "Pre", "Pro"),
            positive_label="",
            licence="ODbL 1.0 (database); contents © the original authors",
            licence_id="odbl",
            citation="Ghaderzadeh, M. et al. (2021). A fast and efficient CNN model for B-ALL diagnosis and its "
            "subtypes classification using peripheral blood smear images. Int. Journal of Intelligent Systems.",
            url="https://www.kaggle.com/datasets/mehradaria/leukemia",
            group="block",
            background="smear",
            crop_pct=1.0,
            find_cells=find_ball4_cells,
            official_counts={"": {"Benign": 504, "Early": 985, "Pre": 963, "Pro": 804}},
            layout="…/Original/{Benign,Early,Pre,Pro}/WBC-….jpg",
            other_folders=("Segmented",),
        ),
        DatasetInfo(
            name="imagefolder",
            title="Own class folders",
            labels=(),
            positive_label="",
            licence="yours",
            citation="",
            url="",
            group="subject",
            background="smear",
            crop_pct=1.0,
            find_cells=find_class_folders,
            layout="<class>/<image>, one folder per class, or <class>/<subject>/<image>",
        ),
        DatasetInfo(
            name="phantoms",
            title="Phantoms: synthetic cells drawn by Leukoscope",
            labels=("ALL", "HEM"),
            positive_label="ALL",
            licence="Apache-2.0",
            citation="Synthetic cells drawn by Leukoscope; they show no patient.",
            url="",
            group="subject",
            background="black",
            crop_pct=350 / 450,
            synthetic=True,
        ),
    )
}


def trained_on(metrics: Mapping[str, Any]) -> DatasetInfo | None:
    """The registry entry of the cells that a release was trained on; None where it has none."""
    data = metrics.get("data") or {}
    return DATASETS.get(data.get("name", "")) or DATASETS.get(data.get("copy_of", ""))


def dataset_info(name: str) -> DatasetInfo:
    """The registry entry of a data set; raises `LeukoscopeError` naming the known ones."""
    if name not in DATASETS:
        raise LeukoscopeError(
            f"--dataset_name {name}: unknown data set; choose one of {', '.join(DATASETS)} or a Hub id like owner/name"
        )
    return DATASETS[name]
