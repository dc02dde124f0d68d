"""Check anybody's split: are people, or copies of one image, on both sides of it?

`read_split` reads the names on each side. `check_split` says which subjects and copies are on several sides, what is
missing, what a metric on such a test set is worth, and gives the words for a review. It opens no image; `leukoscope
audit DIR --split_file` also compares the pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from leukoscope import RESEARCH_NOTICE, DataError, __version__
from leukoscope.data.cells import LoadedCells
from leukoscope.data.folder import subject_rule
from leukoscope.data.layouts import ImageFolder, cell_id_of, is_junk
from leukoscope.data.names import SPLIT_SIDES, check_subject_ids, side_named
from leukoscope.data.reading import Reading
from leukoscope.data.registry import DatasetInfo, dataset_info
from leukoscope.data.splits import Split
from leukoscope.data.table import TABLE_SUFFIXES, CellTable, cell_table, read_frame

MAX_EXAMPLES = 10
"""Names given of each finding in the report."""
MIN_TEST_SUBJECTS = 3
"""Of each class; a test set with fewer measures these people rather than the class."""
_LIST_SUFFIXES = (".txt", ".lst")
_FORMS = (
    "a table with a column of file names and a column split (train, validation, test) or fold (numbers), or a folder "
    "with a table or list of names for each side (train.csv, test.txt) or a folder of images for each (train/, test/)"
)
_FOLD = re.compile(r"^(?:fold[ _-]?)?(\d+)(?:\.0)?$", re.IGNORECASE)
_COLUMNS = ["split", "side", "file", "label", "subject"]
_TREE = Path("/split")  # where the names are pretended to lie, so that a data set's finder can read them

# How libraries and people name the copies that they make of an image: Keras (aug_0_123), Roboflow (_bmp.rf.<hash>),
# Augmentor (folder_original_NAME.bmp_<uuid>), file managers (" - Copy", " (1)").
_COPY_WORD = (
    r"(?:aug(?:mented|mentation)?|h?flip(?:ped)?|[hvlrud]{1,2}[_-]?flip|flip[_-]?[hvlrudxy]{1,2}|rot(?:at(?:ed?|ion))?|"
    r"mirror(?:ed)?|copy|dup(?:licate)?|crop(?:ped)?|noisy?|noise|blur(?:red)?|bright(?:ness|er)?|contrast|zoom(?:ed)?|"
    r"shift(?:ed)?|shear(?:ed)?|transposed?|smote|synthetic)"
)
_COPY_SUFFIX = re.compile(rf"(?:[ _.-]+{_COPY_WORD}[ _.-]*\d*(?:deg)?)+$|\s\(\d+\)$", re.IGNORECASE)
_COPY_PREFIX = re.compile(rf"^(?:{_COPY_WORD}\d*[ _.-]+(?:\d+[ _.-]+)*)+(?=\D)", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(?:bmp|jpe?g|png|tiff?)\.rf\.[0-9a-f]{8,}$", re.IGNORECASE)
_AUGMENTOR = re.compile(r"^.*_original_(?P<name>.+)\.(?:bmp|jpe?g|png|tiff?)_[0-9a-f-]{36}$", re.IGNORECASE)


# Reading a split


def read_split(path: str | Path, reading: Reading) -> pd.DataFrame:
    """Read a split from a table with a column of sides or folds, or from a folder with one entry for each side.

    Each fold of a cross-validation is tested once. A table that names no files may name subjects instead.

    Returns:
        One row for each image of each split: `split` (name of the fold, or ""), `side` of `SPLIT_SIDES`, `file`, and
        `label` and `subject` where a table says them, else "".

    Raises:
        DataError: no such file, none of these forms, a name that is not on any side, or tables as of `cell_table`.
    """
    path = Path(path)
    if path.is_dir():
        entries = [entry for entry in sorted(path.iterdir()) if side_named(entry.stem) and not is_junk(entry.name)]
        frame = pd.concat([pd.DataFrame(columns=_COLUMNS), *(_side(entry, reading) for entry in entries)])
        if frame.empty:
            raise DataError(f"--split_file {path}: holds no list or folder called train, validation or test")
        return frame.reset_index(drop=True)
    if not path.is_file():
        raise DataError(f"--split_file {path}: no such file or folder; give {_FORMS}")
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"--split_file {path}: unknown form; give {_FORMS}")
    table = _table(path, reading)
    rows = pd.DataFrame(table.rows).assign(split="")
    if table.names("side"):
        return rows[_COLUMNS]
    if "fold" not in table.columns:
        raise DataError(
            f"{table.name}: has no column that says the side; name it with --split_column, or give {_FORMS}"
        )
    numbers = rows["fold"].str.extract(_FOLD, expand=False)
    for row in rows[numbers.isna()].itertuples():
        raise DataError(f"{table.name}: row {row.number} holds {row.fold!r}, which is no number of a fold")
    splits = []
    for fold in sorted(numbers.unique(), key=int):
        splits.append(rows.assign(split=f"fold {fold}", side=np.where(numbers == fold, "test", "train")))
    return pd.concat(splits, ignore_index=True)[_COLUMNS]


def _table(path: Path, reading: Reading) -> CellTable:
    return cell_table(f"--split_file {path}", read_frame(path), reading, ("file", "cell_id", "subject"))


def _side(path: Path, reading: Reading) -> pd.DataFrame:
    """The names on a side: of a list, a table or a folder of images that is called like the side."""
    side = side_named(path.stem)
    suffix = path.suffix.lower()
    names = []
    if path.is_dir():
        names = [image.relative_to(path).as_posix() for image in ImageFolder.read(path).images]
    elif suffix in TABLE_SUFFIXES:
        return pd.DataFrame(_table(path, reading).rows).assign(split="", side=side)[_COLUMNS]
    elif suffix in _LIST_SUFFIXES:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    return pd.DataFrame({"file": names}, dtype=str).assign(split="", side=side, label="", subject="")[_COLUMNS]


def split_of_cells(rows: pd.DataFrame, data: LoadedCells) -> Split:
    """The cells of a data set that the rows of one split name; `notes` says how many rows name none.

    A name is that of a cell where both agree with folders and without suffix, or else without folders, if one cell
    alone is called so.

    Raises:
        DataError: no row names a cell.
    """
    ids = pd.Series(data.rows["cell_id"][:])
    ids.index = ids.map(lambda cell: PurePosixPath(cell).name)
    unique = ids[~ids.index.duplicated(keep=False)]
    paths = rows["file"].map(cell_id_of)
    cells = paths.where(paths.isin(ids), paths.map(lambda path: unique.get(PurePosixPath(path).name, "")))
    missing = rows["file"][cells == ""]
    if len(missing) == len(rows):
        raise DataError(
            f"--split_file: none of its images is in this folder, for example {missing.iloc[0]}; give the folder of "
            "the images that it splits"
        )
    notes: tuple[str, ...] = ()
    if len(missing):
        notes = (f"{len(missing):,} names of the split have no image there, for example {missing.iloc[0]}",)
    sides = {side: tuple(cells[(rows["side"] == side) & (cells != "")].unique()) for side in SPLIT_SIDES}
    return Split("given", "cell", 0, data.fingerprint, **sides, detail=rows["split"].iloc[0], notes=notes)


# What names tell


@dataclass(frozen=True)
class Finding:
    """One fault of a split: what it is, how often, and in a sentence."""

    kind: str
    count: int
    examples: tuple[str, ...]
    sentence: str


def check_split(split_file: str | Path, dataset_name: str = "", **flags: Any) -> dict[str, Any]:
    """Check a published split by its image names.

    Args:
        split_file: a table or folder, as `read_split` reads it.
        dataset_name: an entry of `DATASETS`, whose names tell subject and class.
        flags: of `Reading`, such as `subject_pattern` for names of no known data set.

    Returns:
        Ready for JSON: `data`, `sides` (of each split: images, subjects and classes), `findings` (each with `kind`,
        `count`, `examples`, `sentence`; [] for a clean split), `worth` (what a metric on it estimates) and `review`
        (one paragraph for a review).

    Raises:
        DataError: a file that is no split, an unknown data set, nothing that names subjects, or one person's id in two
            spellings.
    """
    reading = Reading(**flags)
    rows = read_split(split_file, reading)
    names_subjects = bool(rows["subject"].any())
    info = dataset_info(dataset_name) if dataset_name else None
    rows = _with_facts(rows, info, reading)
    if info is None and not rows["subject"].any():
        raise DataError(
            f"--split_file {split_file}: nothing says of whom its images are, such as {rows['file'].iloc[0]}; give the "
            "--dataset_name whose names it has, --subject_pattern, --subject_folders or a column of subjects"
        )
    named = rows[rows["subject"] != ""]
    check_subject_ids(zip(named["subject"], named["file"], strict=True), f"--split_file {split_file}")
    splits = [split for _, split in rows.groupby("split", sort=False)]
    findings = [
        *_worst([_shared_subjects(split, "test", "subjects", "tested") for split in splits]),
        *_worst([_shared_subjects(split, "validation", "subjects_validation", "validated") for split in splits]),
        *_worst([_copies(split) for split in splits]),
        *(finding for split in splits for finding in _incomplete_sides(split)),
        *_few_test_subjects(rows),
    ]
    images = rows.drop_duplicates("file")
    has_subjects = bool(images["subject"].any())
    worth = _worth(findings, has_subjects)
    checked = f"{Path(split_file).name} ({len(images):,} images)"
    return {
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "split_file": str(split_file),
        "data": {"name": info.name, "title": info.title} if info else None,
        "images": len(images),
        "without_subject": int((images["subject"] == "").sum()),
        "sides": [_described(split) for split in splits],
        "findings": [asdict(finding) for finding in findings],
        "worth": worth,
        "review": _review(checked, len(splits), info, names_subjects, findings, worth),
    }


def _with_facts(rows: pd.DataFrame, info: DatasetInfo | None, reading: Reading) -> pd.DataFrame:
    """What each name tells; a table's own subjects and classes come first.

    `original` is the image that it shows, equal for all copies of one image; `published` is the subject as the name has
    it, `subject` as the data set counts it, its aliases joined.
    """
    originals = [original_of(file) for file in rows["file"]]
    cells = [(info and cell_named(info, file)) or ("", "") for file in rows["file"]]
    names = pd.DataFrame(cells, columns=["label", "subject"], index=rows.index)
    is_named = rows["subject"] != ""
    rule = subject_rule(reading)
    if rule:
        names["subject"] = rows["file"][~is_named].map(rule)
    published = rows["subject"].where(is_named, names["subject"])
    return rows[["split", "side", "file"]].assign(
        original=[original for original, _ in originals],
        is_copy=[is_copy for _, is_copy in originals],
        label=rows["label"].where(rows["label"] != "", names["label"]),
        published=published,
        subject=published.map(info.canonical_subject) if info else published,
    )


@cache
def original_of(name: str) -> tuple[str, bool]:
    """The image that a file shows, without folders and suffix, and whether the file's name says that it is a copy.

    `HEM/UID_H10_1_1_hem_aug3.png` shows `UID_H10_1_1_hem` and is a copy of it.
    """
    stem = PurePosixPath(name.replace("\\", "/")).name
    suffix = PurePosixPath(stem).suffix
    if 1 < len(suffix) <= 5 and not suffix[1:].isdecimal():
        stem = stem.removesuffix(suffix)
    match = _AUGMENTOR.match(stem)
    if match:
        return match["name"], True
    original = _COPY_SUFFIX.sub("", _ROBOFLOW.sub("", stem))
    original = _COPY_PREFIX.sub("", original) or stem
    return original, original != stem


def cell_named(info: DatasetInfo, name: str) -> tuple[str, str] | None:
    """(class, subject) of an image name by a data set's finder; None where it does not know the name."""
    if info.find_cells is None:
        return None
    original, _ = original_of(name)
    suffix = PurePosixPath(name).suffix or ".png"
    relative = PurePosixPath(name.replace("\\", "/").lstrip("/")).with_name(original + suffix)
    for candidate in (original + suffix, str(relative)):
        folder = ImageFolder(_TREE, [_TREE / candidate], [])
        for cell in info.find_cells(folder):
            return cell.label, cell.subject
    return None


# Findings


def _worst(findings: Sequence[Finding | None]) -> Iterator[Finding]:
    """The largest of the findings on each split, with the number of splits that have one."""
    some = [finding for finding in findings if finding]
    if some:
        worst = max(some, key=lambda finding: finding.count)
        if len(findings) > 1:
            repeated = f" In {len(some)} of {len(findings)} splits; this is the worst."
            worst = replace(worst, sentence=worst.sentence + repeated)
        yield worst


def _shared_subjects(split: pd.DataFrame, side: str, kind: str, purpose: str) -> Finding | None:
    """Subjects of a side whose other images are on one before it: trained on or, if tested, used for validation."""
    is_tested = split["side"] == side
    tested = split[is_tested & (split["subject"] != "")]
    trained = split[split["side"].isin(SPLIT_SIDES[: SPLIT_SIDES.index(side)])]
    shared = tested[tested["subject"].isin(trained["subject"])]
    if shared.empty:
        return None
    # Several ids only where the data set's list of aliases joins them.
    ids = pd.concat([shared, trained]).groupby("subject")["published"].agg(lambda names: " = ".join(sorted(set(names))))
    examples = ids[sorted(set(shared["subject"]))].tolist()
    images_tested = int(is_tested.sum())
    also = "has" if len(examples) == 1 else "have"
    sentence = (
        f"{len(examples):,} of {tested['subject'].nunique():,} subjects {purpose} {also} other images in training, for "
        f"example {', '.join(examples[:3])}: {len(shared):,} of {images_tested:,} images "
        f"({len(shared) / images_tested:.0%})."
    )
    return Finding(kind, len(examples), tuple(examples[:MAX_EXAMPLES]), sentence)


def _copies(split: pd.DataFrame) -> Finding | None:
    """Tested images of which a copy, by its name, is trained on."""
    tested = split[split["side"] == "test"]
    # Cells of one name in the folders of two classes are two cells.
    pairs = tested.merge(split[split["side"] != "test"], on=["original", "label"], suffixes=("", "_twin"))
    # A list of subjects names no image.
    is_same = (pairs["file"] == pairs["file_twin"]) & (pairs["file"] != pairs["subject"])
    pairs = pairs[is_same | pairs["is_copy"] | pairs["is_copy_twin"]].drop_duplicates("file")
    if pairs.empty:
        return None
    first = pairs.iloc[0]
    sentence = (
        f"{len(pairs):,} of {len(tested):,} tested images ({len(pairs) / len(tested):.0%}) are, by their names, copies "
        f"of training images, for example {first.file} and {first.file_twin}."
    )
    return Finding("copies", len(pairs), tuple(pairs["file"][:MAX_EXAMPLES]), sentence)


def _incomplete_sides(split: pd.DataFrame) -> Iterator[Finding]:
    """A side, or a class of a side, that is missing."""
    where = "".join(f"{name}: " for name in split["split"].iloc[:1] if name)
    classes_of = {side: set(split["label"][split["side"] == side]) for side in SPLIT_SIDES}
    for side in ("train", "test"):
        if not classes_of[side]:
            yield Finding("side_missing", 1, (side,), f"{where}no image is on the {side} side.")
    for side, classes in classes_of.items():
        for label in sorted(set(split["label"]) - classes - {""}):
            if classes:
                yield Finding("class_missing", 1, (label,), f"{where}the {side} side has no image of {label}.")


def _few_test_subjects(rows: pd.DataFrame) -> Iterator[Finding]:
    """Classes tested on few subjects; the folds of a cross-validation are counted together, as they are measured."""
    tested = rows[(rows["side"] == "test") & (rows["label"] != "") & (rows["subject"] != "")]
    for label, subjects in tested.groupby("label")["subject"].unique().items():
        if len(subjects) < MIN_TEST_SUBJECTS:
            names = tuple(sorted(subjects))
            sentence = (
                f"the test side has {len(names)} subject(s) of {label}, {', '.join(names)}: metrics of this class "
                "measure these people."
            )
            yield Finding("few_test_subjects", len(names), names, sentence)


# What it is worth


def leak_measurements() -> dict[str, Any]:
    """By how much splits by image overstated networks in Leukoscope's own measurements, rendered from results/."""
    return json.loads((package_files("leukoscope") / "leak_measurements.json").read_text(encoding="utf-8"))


def _worth(findings: Sequence[Finding], has_subjects: bool) -> str:
    kinds = {finding.kind for finding in findings}
    if "side_missing" in kinds:
        return "Without images to train on and images to test on, nothing can be said of how it does on new subjects."
    if not kinds & {"subjects", "copies"}:
        if not has_subjects:
            return "The names do not give subjects, so it is unknown how it does on new subjects."
        return "By its names, the split tests on subjects that no training image shows."
    leak = leak_measurements()
    by_image = leak["by_image_minus_by_subject"]
    same_images = leak["same_test_cells"]
    return (
        "A metric on this test set does not estimate how the model does on new subjects. In Leukoscope's own "
        f"measurements on other networks, a split by image overstated {by_image['overstated']} of "
        f"{by_image['networks']} networks, by {by_image['smallest']:.3f} to {by_image['largest']:.3f} of balanced "
        f"accuracy by subject; with the same recipe and the same test images by {same_images['mean']:.3f} "
        f"({same_images['smallest']:.3f} to {same_images['largest']:.3f}). The effect on this model was not measured."
    )


def _review(
    checked: str, splits: int, info: DatasetInfo | None, names_subjects: bool, findings: Sequence[Finding], worth: str
) -> str:
    """One paragraph for a review; sober, and only of what the names show."""
    title = info.title if info else "the images"
    what = "split" if splits == 1 else f"{splits} splits"
    known_by = "file names and the subjects that it names" if names_subjects else "file names"
    opening = f"We checked the {what} of {title} in {checked} by {known_by}, with Leukoscope {__version__}."
    if not findings:
        return f"{opening} We found no subject and no copy of an image on two sides. {worth}"
    advice = (
        "Please report the results with all images of a subject, and all copies of an image, on one side, and state "
        "the number of subjects on each."
    )
    sentences = [finding.sentence[0].upper() + finding.sentence[1:] for finding in findings[:5]]
    return " ".join([opening, *sentences, worth, advice])


def _described(split: pd.DataFrame) -> dict[str, Any]:
    """Images, subjects and classes on each side of one split."""
    sides: dict[str, Any] = {"name": split["split"].iloc[0]}
    for side in SPLIT_SIDES:
        images = split[split["side"] == side]
        if len(images):
            counts = images["label"][images["label"] != ""].value_counts().sort_index()
            subjects = images["subject"][images["subject"] != ""].nunique()
            sides[side] = {"images": len(images), "subjects": subjects, "classes": counts.to_dict()}
    return sides
