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
            "with --label_column_name diagnosis, or move the file away where folders name the classes"
        )
        said = "has no column 'stage' (--label_column_name), only file_name"
        assert said in _refusal(root, label_column_name="stage")


def test_metadata_may_name_the_subjects_of_class_folders(tmp_path: Path) -> None:
    root = place(tmp_path, "ALL/0.png", "HEM/1.png", "HEM/2.png")
    (root / "metadata.csv").write_text("file_name,subject\nALL/0.png,P1\nHEM/1.png,P2\nHEM/2.png,P2\n")
    found = _described(load_cells("imagefolder", root))
    assert found == [("ALL/0", "ALL", "P1", ""), ("HEM/1", "HEM", "P2", ""), ("HEM/2", "HEM", "P2", "")]
    (root / "metadata.csv").write_text("patient_id,bag_label\nAEC,control\n")
    assert {subject for _, _, subject, _ in _described(load_cells("imagefolder", root))} == {""}, "no table of pictures"


def test_one_table_without_subjects_beside_one_with_them_is_refused(tmp_path: Path) -> None:
    root = place(tmp_path, "train/0.png", "train/1.png", "test/0.png", "test/1.png")
    (root / "train/metadata.csv").write_text("file_name,label,subject\n0.png,ALL,P1\n1.png,HEM,P2\n")
    (root / "test/metadata.csv").write_text(_csv())
    test, train = (root / side / "metadata.csv" for side in ("test", "train"))
    assert _refusal(root) == f"{test}: names no subject, {train} does; fill it in"


def test_a_picture_that_two_tables_name_is_refused(tmp_path: Path) -> None:
    """The later one would decide its class without a word."""
    root = place(tmp_path, "train/0.png", "train/1.png")
    (root / "metadata.csv").write_text("file_name,label\ntrain/0.png,ALL\ntrain/1.png,HEM\n")
    (root / "train/metadata.csv").write_text("file_name,label\n0.png,HEM\n1.png,HEM\n")
    inner, outer = root / "train/metadata.csv", root / "metadata.csv"
    assert _refusal(root) in (
        f"{inner}: row 2: '0.png' has a row in {outer}, too; keep one of the two",
        f"{outer}: row 2: 'train/0.png' has a row in {inner}, too; keep one of the two",
    )


# Folders that are no classes


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Train_data", "validation", "Test set")], ids=["plain", "with suffixes"]
)
def test_names_of_splits_are_never_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = place(tmp_path, *(f"{name}/{number}.png" for name in names for number in range(2)))
    said = _refusal(root)
    assert said.startswith(
        f"--train_dir {root}: its folders {', '.join(sorted(names))} are splits, not classes, and no"
    )
    assert "add a metadata.csv with the columns file_name and label" in said


def test_a_split_without_class_folders_is_left_out_and_named(tmp_path: Path) -> None:
    root = place(tmp_path, "train/ALL/0.png", "train/HEM/1.png", "test/2.png", "test/3.png")
    data = load_cells("imagefolder", root)
    assert data.info.labels == ("ALL", "HEM")
    assert "folder 'test' is a split without folders of classes: its 2 image file(s) are skipped" in data.passed_over


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (("images", "masks"), "masks"),
        (("Original", "Segmented"), "Segmented"),
        (("labeled", "unlabeled"), "unlabeled"),
        (("ALL", "HEM", "Ground-Truth"), "Ground-Truth"),
    ],
)
def test_folders_that_name_no_class_are_asked_about(tmp_path: Path, names: tuple[str, ...], odd: str) -> None:
    root = place(tmp_path, *(f"{name}/{number}.png" for name in names for number in range(2)))
    problem = (
        f"{', '.join(sorted(names))} would be the classes, but {odd!r} is not the name of a class; give the folder"
    )
    assert problem in _refusal(root)


# Tables of labels that label nothing, or too much

FILES = [f"slide{slide}/P{number:02d}_{cell}.png" for number in range(4) for slide in "AB" for cell in range(2)]


def _table(*labels: str, header: str = "file,label") -> str:
    return "\n".join([header, *(f"{file},{labels[n % len(labels)]}" for n, file in enumerate(FILES))])


_SEVERAL = '"{""choices"":[""ALL"",""HEM""]}"'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_table("", header="image,choice"), "its column 'choice' names no class in any row; fill it in"),
        (_table("HEM", "ALL", _SEVERAL), "row 4 names 2 classes ('ALL, HEM'); give each picture one class"),
        (_table("HEM", "ALL", "ALL|HEM"), "row 4 names 2 classes ('ALL, HEM'); give each picture one class"),
        (_table("ALL", "HEM", "all"), "row 2 names the class 'ALL', row 4 'all'; spell one class in one way"),
    ],
    ids=["blank", "choices", "bar", "case"],
)
def test_a_table_that_was_given_labels_or_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """The folders slideA and slideB were the classes."""
    root = place(tmp_path / "cells", *FILES)
    (tmp_path / "t.csv").write_text(content)
    assert said in _refusal(root, labels=tmp_path / "t.csv")


def test_rows_without_a_class_are_counted_where_the_others_have_one(tmp_path: Path) -> None:
    root, labels = place(tmp_path / "cells", *FILES), tmp_path / "t.csv"
    labels.write_text(_table("ALL", "null", *[""] * (len(FILES) - 2)))
    said = f"only the class 'ALL' found; {len(FILES) - 1} row(s) of {labels} name no class: left out; a class"
    assert said in _refusal(root, labels=labels)


def test_a_table_of_subjects_says_what_names_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, labels = place(tmp_path / "cells", *FILES), tmp_path / "t.csv"
    labels.write_text(_table("P1", "P2", header="file,subject"))
    assert load_cells("imagefolder", root, labels=labels).info.labels == ("slideA", "slideB")
    assert f"{labels}: names subjects; the folders name the classes" in capsys.readouterr().err


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
    load_cells(name, root)
    place(root, odd)
    with pytest.raises(LeukoscopeError) as refused:
        load_cells(name, root)
    said = re.search(r"^(.*): its path names two classes, '(.*)' and '(.*)'; move the picture", str(refused.value))
    assert said and said[1] == odd and said[2].casefold() != said[3].casefold()


def test_a_folder_that_datasets_reads_is_refused_for_two_classes_on_a_path_too(tmp_path: Path) -> None:
    root = place(tmp_path / "ALL" / "set", "old/ALL/0.png", "old/ALL/1.png", "old/HEM/2.png", "old/HEM/3.png")
    assert load_cells(str(root)).info.labels == ("ALL", "HEM")
    place(root, "HEM/ALL/4.png")
    with pytest.raises(LeukoscopeError, match=r"^HEM/ALL/4.png: its path names two classes, 'HEM' and 'ALL'"):
        load_cells(str(root))
