"""Splits are read in the forms in which papers and repositories publish them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.split_lists import NamedSplit, is_own_split, read_split_lists, side_named, sides_of_cells
from leukoscope.split_check import check_split

SIDES = {"train": ("a.png", "b.png"), "validation": ("c.png",), "test": ("d.png",)}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("split.csv", "filename,split\na.png,train\nb.png,train\nc.png,val\nd.png,test\n"),
        ("split.csv", "set;Image\nTraining;a.png\nTraining;b.png\nValid;c.png\nTesting;d.png\n"),
        ("split.tsv", "file\tsubset\na.png\ttrain\nb.png\ttrain\nc.png\tdev\nd.png\ttest\n"),
        ("split.json", '{"train": ["a.png", "b.png"], "val": ["c.png"], "test": ["d.png"]}'),
        ("split.json", '{"files": ["a.png", "b.png", "c.png", "d.png"], "train": [0, 1], "val": [2], "test": [3]}'),
    ],
)
def test_a_file_names_the_sides(tmp_path: Path, name: str, text: str) -> None:
    (split,) = read_split_lists(write(tmp_path / name, text)).splits
    assert split.sides == SIDES


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_a_table_is_read_in_the_encoding_and_with_the_separator_that_a_spreadsheet_writes(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(
        "# made in 2024\r\n;Datei;file;split;\r\n0;x;ä,1.png; train;\r\n;;;;\r\n1;y;b.png;test;\r\n".encode(encoding)
    )
    (split,) = read_split_lists(path).splits
    assert split.sides == {"train": ("ä,1.png",), "test": ("b.png",)}


def test_a_name_that_begins_with_a_hash_or_reads_as_missing_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "split.csv", "file,split\n#1.png,train\nNA,train\nnull,test\n")
    (split,) = read_split_lists(path).splits
    assert split.sides == {"train": ("#1.png", "NA"), "test": ("null",)}


def test_a_folder_holds_one_list_a_side(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "a.png\nb.png\n")
    write(tmp_path / "valid.csv", "file,label\nc.png,ALL\n")
    write(tmp_path / "test.txt", "d.png\n\n")
    (split,) = read_split_lists(tmp_path).splits
    assert split.sides == SIDES


def test_a_folder_holds_the_images_of_each_side(tmp_path: Path) -> None:
    for file in ("train/ALL/a.png", "train/HEM/b.png", "val/ALL/c.png", "test/HEM/d.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / file)
    write(tmp_path / "test" / "notes.md", "no image")
    (split,) = read_split_lists(tmp_path).splits
    assert split.sides == {"train": ("ALL/a.png", "HEM/b.png"), "validation": ("ALL/c.png",), "test": ("HEM/d.png",)}


@pytest.mark.parametrize("words", [("0", "1", "2"), ("fold_0", "fold_1", "fold_2"), ("0.0", "1.0", "2.0")])
def test_a_column_of_folds_is_a_cross_validation(tmp_path: Path, words: tuple[str, ...]) -> None:
    rows = "".join(f"{name}.png,{word}\n" for name, word in zip("abc", words, strict=True))
    splits = read_split_lists(write(tmp_path / "folds.csv", f"image,fold\n{rows}")).splits
    assert [split.sides["test"] for split in splits] == [("a.png",), ("b.png",), ("c.png",)]
    assert splits[0].sides["train"] == ("b.png", "c.png")


def test_row_numbers_count_from_the_sorted_files(tmp_path: Path) -> None:
    pairs = [[[0, 1], [2]], [[1, 2], [0]]]
    path = write(tmp_path / "folds.json", json.dumps(pairs))
    first, second = read_split_lists(path, ["a.png", "b.png", "c.png"]).splits
    assert first.sides == {"train": ("a.png", "b.png"), "test": ("c.png",)}
    assert second.sides == {"train": ("b.png", "c.png"), "test": ("a.png",)}
    np.savez(tmp_path / "split.npz", train=np.asarray([0, 1]), test=np.asarray([2]))
    (third,) = read_split_lists(tmp_path / "split.npz", ["a.png", "b.png", "c.png"]).splits
    assert third.sides == first.sides


def test_a_pickle_in_an_array_is_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "split.npz", train=np.asarray(["a.png", {}], dtype=object))
    with pytest.raises(LeukoscopeError, match=r"split\.npz: cannot be read \(Object arrays cannot be loaded"):
        read_split_lists(tmp_path / "split.npz")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("split.csv", "file,label\na.png,ALL\n", "has no column that says the side"),
        ("split.csv", "row,split\n1,train\n", "has no column of file names"),
        (
            "split.csv",
            "file,split\na.png,train\nb.png,later\n",
            "column split holds 'train' for a.png, which is neither train",
        ),
        ("split.csv", "file,split\na.png,train\nb,1.png,test\n", "row 3 has 3 entries, the header 2; put quotes"),
        ("split.csv", "file,split,split\na.png,train,test\n", "has two columns 'split'; rename or delete one"),
        ("split.csv", "file,split\n", "column 'file' has an empty entry, or one that is not the name of a file"),
        (
            "split.csv",
            "file,split\n,train\n",
            "column 'file' has an empty entry, or one that is not the name of a file",
        ),
        ("split.csv", "PK\x03\x04\0", "is not a text file; export the table as CSV (UTF-8)"),
        ("split.json", '{"train": [0], "test": [1]}', "holds row numbers such as 0; give the folder of the images"),
        ("split.json", '{"files": ["a.png"], "train": [0], "test": [7]}', "row 7 is none of the 1 files"),
        ("split.json", '{"train": [true]}', "True is neither a file name nor a row number"),
        ("split.json", '{"seed": 3}', "names no side called train, validation or test"),
        ("split.json", "{", "is not JSON"),
        ("split.bin", "x", "unknown form"),
    ],
)
def test_what_is_no_split_is_refused_with_the_reason(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(LeukoscopeError) as caught:
        read_split_lists(write(tmp_path / name, text))
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"nowhere\.csv: no such file or folder; give a CSV"):
        read_split_lists(tmp_path / "nowhere.csv")
    with pytest.raises(LeukoscopeError, match="holds no list or folder called train"):
        read_split_lists(tmp_path)


def test_words_for_sides() -> None:
    words = ("Train", "VAL", "dev", "hold-out", "test set", "other")
    assert [side_named(word) for word in words] == ["train", "validation", "validation", "test", "test", ""]


def test_names_are_found_among_cells_by_path_or_by_an_unambiguous_name() -> None:
    split = NamedSplit({"train": ("ALL/1.png", "HEM\\1.png", "x/7.bmp"), "test": ("1.png", "9.png")})
    sides, unmatched = sides_of_cells(split, ["ALL/1", "HEM/1", "HEM/7"])
    assert sides == {"train": ("ALL/1", "HEM/1", "HEM/7"), "validation": (), "test": ()}
    assert unmatched == ["1.png", "9.png"]


def test_our_own_split_is_told_from_others(tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", '{"data_fingerprint": "x", "train": []}')
    other = write(tmp_path / "other.json", '{"train": ["a.png"]}')
    assert is_own_split(own)
    assert not is_own_split(other)
    assert not is_own_split(write(tmp_path / "split.csv", "file,split\n"))


def test_a_folder_for_each_fold_is_a_cross_validation(tmp_path: Path) -> None:
    for fold, tested in enumerate(("A", "B")):
        folder = tmp_path / f"data_fold_{fold}"
        folder.mkdir()
        (folder / "train.csv").write_text("patient_name,labels\nC,0\nD,1\n")
        (folder / "test.csv").write_text(f"patient_name,labels\n{tested},0\n")
    (tmp_path / "label_map.csv").write_text("label,diagnosis\n0,ALL\n")
    lists = read_split_lists(tmp_path)
    assert [(split.name, split.sides["test"]) for split in lists.splits] == [
        ("data_fold_0", ("A",)),
        ("data_fold_1", ("B",)),
    ]
    assert lists.splits[0].sides["train"] == ("C", "D")
    assert lists.subjects == {name: name for name in "ABCD"}


def test_lists_of_subjects_are_checked_as_subjects(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("patient_name,labels\nABF,3\nAEC,4\nAAA,1\n")
    (tmp_path / "test.csv").write_text("patient_name,labels\nABF,3\nXYZ,4\n")
    findings = {finding["kind"]: finding["sentence"] for finding in check_split(tmp_path)["findings"]}
    assert findings["subjects"].startswith("1 of 2 subjects tested has other images in training, for example ABF")
    assert "by file names and the subjects that it names, with Leukoscope" in check_split(tmp_path)["review"]
    assert "copies" not in findings


def test_the_tables_of_sides_say_subjects_and_classes(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("image_name,patient_id,label\na.png,1,ALL\n")
    (tmp_path / "test.csv").write_text("image_name,patient_id,label\nb.png,1,HEM\n")
    lists = read_split_lists(tmp_path)
    assert (lists.subjects, lists.labels) == ({"a.png": "1", "b.png": "1"}, {"a.png": "ALL", "b.png": "HEM"})


def test_a_table_without_header_has_the_column_of_images(tmp_path: Path) -> None:
    for side in ("train", "test"):
        (tmp_path / f"{side}.csv").write_text(f"0,{side}_1.png\n1,{side}_2.png\n")
    assert read_split_lists(tmp_path).splits[0].sides["test"] == ("test_1.png", "test_2.png")


def test_a_table_of_which_no_column_names_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("patient_files,labels\nSCD_487,1\n")
    (tmp_path / "test.csv").write_text("patient_files,labels\nSCD_1,1\n")
    with pytest.raises(LeukoscopeError, match=r"test.csv: no column of patient_files, labels is known to name files"):
        read_split_lists(tmp_path)


def test_folds_of_which_one_has_every_image_are_worth_nothing(tmp_path: Path) -> None:
    table = tmp_path / "train_folds.csv"
    table.write_text("image_name,patient_id,kfold\nISIC_1,IP_1,9\nISIC_2,IP_2,9\n")
    report = check_split(table)
    assert [finding["kind"] for finding in report["findings"]] == ["side_missing"]
    assert report["worth"].startswith("Without images to train on and images to test on, nothing can be said")
