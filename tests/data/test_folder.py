"""What a folder is read as: a known data set, class folders with splits of their own, or tables as `datasets` has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.folder import recognise
from leukoscope.data.loading import load_cells
from leukoscope.data.reading import Reading
from leukoscope.inference.scoring import open_source


def _described(data: LoadedCells) -> list[tuple[str, str, str, str]]:
    labels = data.info.labels
    columns = (data.rows[name][:] for name in ("cell_id", "label", "subject", "fold"))
    return sorted((cell, labels[label], subject, fold) for cell, label, subject, fold in zip(*columns, strict=True))


def _refusal(root: Path, **flags: Any) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        load_cells("imagefolder", root, **flags)
    return str(refused.value)


# Which data set


def test_a_single_picture_named_as_in_cnmc_does_not_make_a_folder_that_data_set(tmp_path: Path) -> None:
    own = [f"{label}/{number}.png" for label in ("blast", "normal") for number in range(3)]
    assert recognise(place(tmp_path, *own, "blast/UID_1_1_1_all.bmp")).name == "imagefolder"


def test_a_folder_of_nothing_known_names_the_known_layouts(tmp_path: Path) -> None:
    known = r"holds no picture laid out as .*cnmc2019: …/fold_.*imagefolder: <class>"
    with pytest.raises(LeukoscopeError, match=known):
        recognise(place(tmp_path, "loose.png"))
    with pytest.raises(LeukoscopeError, match="nowhere: no such folder; give the folder that a data set was unpacked"):
        recognise(tmp_path / "nowhere")
    (tmp_path / "cells.npz").write_bytes(b"PK")
    said = "cells.npz: is a file; unpack it, or export what it holds as PNG, and give the folder"
    assert _refusal(tmp_path / "cells.npz") == f"--train_dir {tmp_path}/{said}"
    with pytest.raises(LeukoscopeError, match=said):
        recognise(tmp_path / "cells.npz")


def test_real_cells_are_recognised(real_data: Path) -> None:
    assert [recognise(real_data / name).name for name in ("cnmc2019", "ball4")] == ["cnmc2019", "ball4"]


# Tables as `datasets` reads them

ROWS = {"0.png": "ALL", "1.png": "HEM"}
EXPECTED = [
    ("test/0", "ALL", "", "test"),
    ("test/1", "HEM", "", "test"),
    ("train/0", "ALL", "", "train"),
    ("train/1", "HEM", "", "train"),
]


def _csv(prefix: str = "", column: str = "label") -> str:
    return f"file_name,{column}\n" + "".join(f"{prefix}{file},{label}\n" for file, label in ROWS.items())


@pytest.mark.parametrize("layout", ["per split", "lines of JSON", "at the root", "of another name"])
def test_metadata_names_the_classes_and_the_splits_are_kept(tmp_path: Path, layout: str) -> None:
    """The layout of the documentation of `datasets`; test and train were the classes."""
    root = place(tmp_path, *(f"{side}/{file}" for side in ("train", "test") for file in ROWS))
    column = "diagnosis" if layout == "of another name" else "label"
    if layout == "at the root":
        (root / "metadata.csv").write_text(_csv("train/") + _csv("test/").split("\n", 1)[1])
    for side in ("train", "test") if layout != "at the root" else ():
        lines = "".join(json.dumps({"file_name": file, "label": label}) + "\n" for file, label in ROWS.items())
        name, content = ("metadata.jsonl", lines) if "JSON" in layout else ("metadata.csv", _csv(column=column))
        (root / side / name).write_text(content)
    assert recognise(root).name == "imagefolder"
    assert _described(load_cells("imagefolder", root, label_column_name=column)) == EXPECTED
    if column == "diagnosis":
        assert _refusal(root) == (
            f"{root / 'test' / 'metadata.csv'}: has no column called label, but diagnosis; name that of the classes "
            "with --label_column_name diagnosis (one class in each row), or give --label_column_name none where "
            "folders name the classes"
        )
        said = "has no column 'stage' (--label_column_name), only file_name"
        assert said in _refusal(root, label_column_name="stage")


def test_metadata_may_name_the_subjects_of_class_folders(tmp_path: Path) -> None:
    root = place(tmp_path, "ALL/0.png", "HEM/1.png", "HEM/2.png")
    (root / "metadata.csv").write_text("file_name,subject\nALL/0.png,P1\nHEM/1.png,P2\nHEM/2.png,P2\n")
    found = _described(load_cells("imagefolder", root))
    assert found == [("ALL/0", "ALL", "P1", ""), ("HEM/1", "HEM", "P2", ""), ("HEM/2", "HEM", "P2", "")]
    (root / "metadata.csv").write_text("patient_id,bag_label\nAEC,control\n")
    assert "metadata.csv: has no column of image paths, such as file, only patient_id, bag_label; name" in _refusal(
        root
    )


# What is refused

SIDES = ("train", "test")
IN_BOTH = [f"{label}/P{number:02d}/{cell}.png" for label in ("ALL", "HEM") for number in range(3) for cell in range(2)]
SLIDES = [f"slide{slide}/P{number:02d}_{cell}.png" for number in range(4) for slide in "AB" for cell in range(2)]
PATTERN = "(?P<subject>[^/]+)/[^/]+/[^/]+$"


def _pictures(*folders: str) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(2)]


def _labels(*labels: str, header: str = "file,label") -> str:
    return "\n".join([header, *(f"{file},{labels[n % len(labels)]}" for n, file in enumerate(SLIDES))])


def _nested(example: str, recurring: str = "") -> str:
    return (
        f"pictures lie in folders within folders, such as {example!r}, and nothing says which are classes and which "
        "are people: give --subject_folders if the innermost folder is a person and the one above it the class"
        f"{recurring}, --subject_pattern '{PATTERN}' if the innermost folder is the class and the one above it a "
        "person, or a table (--labels FILE)"
    )


NO_PEOPLE = "have the names of classes, not of people; leave out --subject_folders, or name the subjects with"
# Pictures, tables by their names (t.csv is that of --labels), flags, and what is said.
REFUSED: list[tuple[list[str], dict[str, str], dict[str, Any], str]] = [
    # The names of splits were classes.
    (_pictures(*SIDES), {}, {}, "its folders test, train are splits, not classes, and no table names classes; put the"),
    (_pictures("Train_data", "validation", "Test set"), {}, {}, "its folders Test set, Train_data, validation are spl"),
    (_pictures("train/ALL", "train/HEM", "test"), {}, {}, "its folders test are splits, not classes, and no table"),
    (_pictures(*(f"{side}/{label}" for side in SIDES for label in "AB"), "later/A"), {}, {},
     "'later/A/0.png' lies beside the splits test, train (2 such image file(s)); move it into one of them, or away"),
    # Masks and other versions were classes.
    *((_pictures(*names), {}, {}, f"would be the classes, but {names[-1]!r} is not the name of a class; give the fold")
      for names in (("a", "masks"), ("Original", "Segmented"), ("labeled", "unlabeled"), ("A", "B", "Ground-Truth"))),
    # Tables that name no class, or several: the folders slideA and slideB were the classes.
    (SLIDES, {"t.csv": _labels("", header="image,choice")}, {}, "its column 'choice' names no class in any row; fill"),
    (SLIDES, {"t.csv": _labels("HEM", '"{""choices"":[""ALL"",""HEM""]}"')}, {}, "; a class is one plain text without"),
    (SLIDES, {"t.csv": _labels("HEM", "ALL", "ALL|HEM")}, {}, "row 4 names the class 'ALL|HEM'; a class is one plain"),
    (SLIDES, {"t.csv": _labels("ALL", "HEM", "all")}, {}, "row 2 names the class 'ALL', row 4 'all'; spell one class"),
    (SLIDES, {"t.csv": _labels("ALL", "null", *[""] * 14)}, {}, "t.csv name no class: left out; a class"),
    (SLIDES, {}, {"labels": "t.csv"}, "t.csv: no such file; it needs the columns file,label,subject"),
    # Two tables.
    (_pictures(*SIDES), {"train/metadata.csv": "file_name,label,subject\n0.png,A,P1\n1.png,B,P2\n",
                         "test/metadata.csv": "file_name,label\n0.png,A\n1.png,B\n"}, {},
     "test/metadata.csv: names no subject, "),
    (_pictures("train"), {"metadata.csv": "file_name,label\ntrain/0.png,A\ntrain/1.png,B\n",
                          "train/metadata.csv": "file_name,label\n0.png,B\n1.png,B\n"}, {},
     "0.png' has a row in another table, too; keep one of the two"),
    # Who is who, which is never guessed from folders: the classes became P00, P01 and so on, or ALL and HEM people.
    (_pictures("ALL/P00", "ALL/P01", "HEM/P10"), {}, {}, _nested("ALL/P00/0.png")),
    (IN_BOTH, {}, {}, _nested("ALL/P00/0.png", " (3 such folders, as 'P00', lie in several of those)")),
    (["P01/ALL/1.png", "P02/HEM/1.png", "P02/ALL/1.png"], {}, {},
     _nested("P01/ALL/1.png", " (1 such folders, as 'ALL', lie in several of those)")),
    (["train/ALL/P1/1.png", "train/HEM/P2/1.png", "test/ALL/P3/1.png"], {}, {}, _nested("test/ALL/P3/1.png")),
    (IN_BOTH, {}, {"subject_folders": True, "subject_pattern": PATTERN},
     f"--subject_pattern '{PATTERN}' --subject_folders: both name the subjects; give one"),
    ([*IN_BOTH, "ALL/9.png"], {}, {"subject_folders": True}, "ALL/9.png lies in no folder <class>/<subject>; move it"),
    (_pictures("a/ALL", "a/hem", "b/ALL", "b/hem"), {}, {"subject_folders": True}, f"subjects (ALL, hem) {NO_PEOPLE}"),
    (_pictures("Blast", "Normal"), {"t.csv": "file,label\nBlast/0.png,blast\nNormal/1.png,normal\n"},
     {"subject_folders": True}, f"subjects (Blast, Normal) {NO_PEOPLE}"),
    (SLIDES, {}, {"subject_pattern": "(p"}, "--subject_pattern '(p': is not a regular expression ("),
    (SLIDES, {}, {"subject_pattern": r"p\d"}, r"'p\d': has no group; write the subject's part as (?P<subject>…)"),
    (SLIDES, {}, {"subject_pattern": "(P0[12])"}, "'(P0[12])': does not match 'slideA/P00_0.png'; it must match every"),
    (SLIDES, {"t.csv": _labels("p1", header="file,subject")}, {"subject_pattern": "(x)"}, "t.csv: both name the subj"),
    (SLIDES, {"t.csv": "file,subject\nslideA/P00_0.png,a\n"}, {},
     "t.csv: no row for file 'slideA/P00_1.png'; every image needs one"),
    (["ALL/M\udcfcller.png", "HEM/1.png"], {}, {}, "ALL/M\\xfcller.png: its name is not in UTF-8; rename the file or"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "tables", "flags", "problem"), REFUSED)
def test_a_folder_that_could_be_two_things_is_refused(
    tmp_path: Path, files: list[str], tables: dict[str, str], flags: dict[str, Any], problem: str
) -> None:
    root = place(tmp_path, *files)
    for name, content in tables.items():
        (root / name).write_text(content)
    if "t.csv" in (*tables, flags.get("labels")):
        flags = {**flags, "labels": root / "t.csv"}
    assert problem in _refusal(root, **flags)


def test_folders_of_classes_are_no_people_of_a_score_either(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=re.escape(f"the subjects (ALL, HEM) {NO_PEOPLE}")):
        open_source(str(place(tmp_path, *_pictures("ALL", "HEM"))), Reading(subject_folders=True))


def test_the_innermost_folders_are_people_or_classes_as_the_flag_says(tmp_path: Path) -> None:
    def people(*files: str, **flags: Any) -> list[tuple[str, ...]]:
        root = place(tmp_path / files[0].replace("/", "-"), *files)
        return sorted({cell[1:] for cell in _described(load_cells("imagefolder", root, **flags))})

    assert people(*IN_BOTH, subject_folders=True) == sorted({(*file.split("/")[:2], "") for file in IN_BOTH})
    files = ["P01/ALL/1.png", "P02/HEM/1.png", "P02/ALL/1.png"]
    assert people(*files, subject_pattern=PATTERN) == [("ALL", "P01", ""), ("ALL", "P02", ""), ("HEM", "P02", "")]
    files = [f"{side}/{label}/P{side}{label}/1.png" for side in SIDES for label in "AB"]
    assert people(*files, subject_folders=True) == [
        ("A", "PtestA", "test"), ("A", "PtrainA", "train"), ("B", "PtestB", "test"), ("B", "PtrainB", "train"),
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text(_labels("ALL", "HEM"))
    cells = people(*SLIDES, subject_folders=True, labels=tmp_path / "t.csv")
    assert {subject for _, subject, _ in cells} == {"slideA", "slideB"}, "a table names the classes"


# Class folders within class folders


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("imagefolder", "HEM/ALL/9.png"),
        ("imagefolder", "train/hem/old/ALL/9.png"),
        ("imagefolder", "HEM/ALL/P1/9.png"),
        ("cnmc2019", "HEM/fold_0/all/UID_9_1_1_all.bmp"),
        ("cnmc2019", "fold_0/hem/UID_9_1_1_all.bmp"),
        ("ball4", "Original/Benign/WBC-Malignant-Pre-009.jpg"),
        ("pbc", "monocyte/ig/MY_9.jpg"),
    ],
)
def test_a_picture_whose_path_names_two_classes_is_refused(tmp_path: Path, name: str, odd: str) -> None:
    """Annotation programs export a relabelled picture as <label>/<old path>; it counted by the old folder."""
    plain = {
        "imagefolder": ["ALL/P2/0.png", "ALL/P3/1.png", "HEM/P4/2.png", "HEM/P5/3.png"],
        "cnmc2019": ["fold_0/all/UID_1_1_1_all.bmp", "fold_0/hem/UID_H1_1_1_hem.bmp"],
        "ball4": ["Original/Benign/WBC-Benign-001.jpg", "Original/Pre/WBC-Malignant-Pre-001.jpg"],
        "pbc": ["ig/MY_1.jpg", "monocyte/MO_1.jpg"],
    }[name]
    if odd == "HEM/ALL/9.png":
        plain = ["ALL/0.png", "ALL/1.png", "HEM/2.png", "HEM/3.png"]
    if odd.startswith("train"):
        plain = [
            f"{side}/{label}/{number}.png" for side in ("train", "test") for label in ("ALL", "hem") for number in "01"
        ]
    # The folder above the one that is given names no class of its pictures.
    root = place(tmp_path / "ALL", *plain)
    flags: dict[str, Any] = {"subject_folders": True} if "P2" in plain[0] else {}
    load_cells(name, root, **flags)
    place(root, odd)
    with pytest.raises(LeukoscopeError) as refused:
        load_cells(name, root, **flags)
    said = re.search(r"^(.*): its path names two classes, '(.*)' and '(.*)'; move the picture", str(refused.value))
    assert said and said[1] == odd and said[2].casefold() != said[3].casefold()


def test_a_folder_that_datasets_reads_is_refused_for_two_classes_on_a_path_too(tmp_path: Path) -> None:
    root = place(tmp_path / "ALL" / "set", "old/ALL/0.png", "old/ALL/1.png", "old/HEM/2.png", "old/HEM/3.png")
    assert load_cells(str(root)).info.labels == ("ALL", "HEM")
    place(root, "HEM/ALL/4.png")
    with pytest.raises(LeukoscopeError, match=r"^HEM/ALL/4.png: its path names two classes, 'HEM' and 'ALL'"):
        load_cells(str(root))
