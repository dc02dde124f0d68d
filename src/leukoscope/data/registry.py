"""The data sets Leukoscope knows: one entry each, holding all that loading, splitting and cards need to say.

A data set on disk is found by its entry's `find_cells`, which reads the trees as their publishers unpack them;
adding a data set is adding one entry to `DATASETS`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import CellTable, content_of, csv_rows, located, read_table
from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import IMAGE_SUFFIXES

# Outcomes of a cell or a subject without a class: no class may be called so.
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
        positive_label: the class that "sensitivity" is of; "" with more than two classes.
        official_counts: publisher's partition → label → number of cells.
        subject_aliases: subject id → another id of the same subject.
        group: the unit that must not stand on two sides of a split.
        background: what surrounds a cell; augmentation fills uncovered corners with it.
        crop_pct: the central share of the shorter side that the network sees.
        picture_side: pixels a side of every picture, where these are squares that show all cells at one scale.
        recipe: the recipe that did best on its cells; "" for the default of `train.py`.
        find_cells: finds the cells of a local folder; None for data sets that are generated.
        label_list: the publisher's file without which the preliminary test has no labels.
        other_folders: folders of images that are no cells of their own; they need no mention.
        hub_id: the Hub data set used when no local folder is given.
        copy_of: what a data set of the Hub is a copy of, by its card: `leukoscope: {dataset_name: NAME}`.
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
    find_cells: Callable[[ImageFolder], Iterator[CellFile]] | None = None
    official_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    subject_aliases: Mapping[str, str] = field(default_factory=dict)
    hub_id: str | None = None
    synthetic: bool = False
    layout: str = ""
    label_list: str = ""
    other_folders: tuple[str, ...] = ()
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


PRELIMINARY, COPIES, OTHER = "preliminary", "copies", "other"  # why a picture is no cell


def passed_over(info: DatasetInfo, folder: ImageFolder, cells: Sequence[CellFile]) -> Iterator[str]:
    """One line for each reason why pictures of a folder were left out or may be misread."""
    left = files_left_out(info, folder, cells)
    if preliminary := left[PRELIMINARY]:
        listed = any(path.name == info.label_list for path in folder.others)
        state = "it names no cell for them" if listed else "that list is not there; put it beside them"
        yield (
            f"{len(preliminary):,} image file(s) of the preliminary test left out, for example {preliminary[0]}: "
            f"their labels come from {info.label_list}, and {state}"
        )
    if folder.left_out:
        yield folder.left_out
    classes = {label.casefold() for label in info.labels}
    elsewhere = [cell.path for cell in cells if cell.path.parent.name.casefold() in classes - {cell.label.casefold()}]
    if elsewhere:
        yield (
            f"{len(elsewhere):,} image file(s) lie in the folder of another class than their name says, for example "
            f"{elsewhere[0]}: the name counts"
        )
    if info.find_cells is find_class_folders and not (folder.root / METADATA).is_file():
        yield from _about_class_folders(folder, cells)
    for reason, said in ((OTHER, f"not laid out as {info.layout}"), (COPIES, "copies of cells already found")):
        if paths := left[reason]:
            yield f"{len(paths):,} image file(s) passed over, for example {paths[0]}: {said}"


def _about_class_folders(folder: ImageFolder, cells: Sequence[CellFile]) -> Iterator[str]:
    """How class folders were read, and which folders beside them hold no picture."""
    filled = {cell.path.parent for cell in cells}
    above = {path.parent.name for path in filled if folder.root not in (path, path.parent)}
    if any(cell.subject for cell in cells):
        yield (
            "read as <class>/<subject>/<image>: each innermost folder is a subject; give --subject_pattern or "
            "--labels if it is not"
        )
    elif len(above) > 1 and not any(re.match("fold|train|test|val|dev|eval", name, re.IGNORECASE) for name in above):
        yield (
            f"read as <class>/<image>; the folders above the classes ({', '.join(sorted(above)[:3])} …) were not used: "
            "if they are subjects, give --subject_pattern '(?P<subject>[^/]+)/[^/]+/[^/]+$'"
        )
    homes = {path.parent for path in filled}
    for path in folder.folders:
        if path.parent in homes and not any(one.is_relative_to(path) for one in filled):
            name = path.relative_to(folder.root).as_posix()
            yield f"folder {name!r} holds no picture that can be read: it makes no class"


def files_left_out(info: DatasetInfo, folder: ImageFolder, cells: Iterable[CellFile]) -> dict[str, list[Path]]:
    """The pictures of a folder that are not among the cells found there, by reason: PRELIMINARY, COPIES, OTHER."""
    found = {cell.path: cell.cell_id for cell in cells}
    ids = set(found.values())
    left: dict[str, list[Path]] = {PRELIMINARY: [], COPIES: [], OTHER: []}
    for path in folder.images:
        if path in found or not set(info.other_folders).isdisjoint(path.relative_to(folder.root).parts):
            continue
        preliminary = info.label_list and _is_preliminary(path)
        left[PRELIMINARY if preliminary else COPIES if path.stem in ids else OTHER].append(path)
    return left


EMPTY_SLIDE_RGB = (246, 254, 252)
"""Where a smear shows neither cell nor plasma: the median over 60 pictures of ball4 of their brightest quarters."""
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
        if _is_preliminary(path):
            original, fold = original_of.get(path.stem, ""), "preliminary_test"
        else:
            original = path.stem
            fold = next((part for part in reversed(path.parts) if re.fullmatch(r"fold_\d", part)), "")
        if match := CNMC_NAME.match(original):
            cells.append(CellFile(path, match["label"].upper(), match["subject"], cell_id=original, fold=fold))
    in_folds = {cell.cell_id for cell in cells if cell.fold}
    yield from (cell for cell in cells if cell.fold or cell.cell_id not in in_folds)


def _is_preliminary(path: Path) -> bool:
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


BALL4_NAME = re.compile(r"WBC-(?:Malignant-)?(?P<label>Benign|Early|Pre|Pro)-(?P<number>\d+)$")


def find_ball4_cells(folder: ImageFolder) -> Iterator[CellFile]:
    """The 4-class B-ALL fields; the parallel `Segmented` tree shows the same fields and is left out."""
    for path in folder.images:
        match = BALL4_NAME.match(path.stem)
        if match and "Segmented" not in path.parts:
            yield CellFile(path, match["label"], subject="", cell_id=path.stem)


METADATA = "metadata.csv"


def find_class_folders(folder: ImageFolder) -> Iterator[CellFile]:
    """A user's own cells: `<root>/…/<class>/<image>`, or `<root>/…/<class>/<subject>/<image>`.

    A `metadata.csv` at the root with labels names the cells instead, as 🤗 datasets reads one. Otherwise the class is
    the folder an image lies in. The innermost folders are subjects where each lies in one class alone and has a digit
    in its name, as ids have, and there are more of them than of the folders above.
    """
    root, listed = folder.root, folder.root / METADATA
    table = read_table(listed) if listed.is_file() else None
    if table is not None and table.has_labels:
        yield from cells_of_table(table, root)
        return
    files = [path for path in folder.images if path.parent != root]
    subjects = _are_subjects({path.parent for path in files}, root)
    for path in files:
        label, subject = (path.parent.parent.name, path.parent.name) if subjects else (path.parent.name, "")
        yield CellFile(path, label, subject=subject, cell_id=cell_id_of(path.relative_to(root).as_posix()))


def cells_of_table(table: CellTable, root: Path) -> Iterator[CellFile]:
    """The cells to which a table gives a class, with files below `root`; raises `LeukoscopeError` as `located`."""
    for row, file in located(table, root):
        if row.label:
            yield CellFile(root / file, row.label, row.subject, cell_id=cell_id_of(file))


def cell_id_of(file: str) -> str:
    """A file's name as a cell id: without the suffix of a picture."""
    suffix = PurePath(file).suffix
    return file.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else file


def _are_subjects(folders: Iterable[Path], root: Path) -> bool:
    """Whether these folders of pictures are subjects rather than classes."""
    above: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        if folder.parent == root or not any(letter.isdigit() for letter in folder.name):
            return False
        above[folder.name].add(folder.parent.name)
    classes = set().union(*above.values())
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
            # One subject under several ids: `leukoscope audit` finds the same cells, identical pixel for pixel or
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
