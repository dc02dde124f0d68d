"""A split that shares people or copies is told as such, with the words for a review; a clean one has no finding."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import leukoscope as lk
from command import run
from drawn import save_cell
from leukoscope import LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.reading import NO_FLAGS
from leukoscope.split_check import leak_measurements, original_of, read_split, split_of_cells
from research.leak_measurements import leak_measurements as from_results

ROOT = Path(__file__).parents[1]
# Subjects, as C-NMC's names have them: 51 and 78 are one person, H10 and h3 another.
TRAIN_SUBJECTS = ("11", "13", "51", "H10", "H12", "H14")
TEST_SUBJECTS = ("3", "7", "9", "H9", "H3", "H1")


def names_of(subjects: Iterable[str], cells: int = 4) -> list[str]:
    names = []
    for subject in subjects:
        label = "hem" if subject.lower().startswith("h") else "all"
        names += [f"UID_{subject}_{cell}_1_{label}.bmp" for cell in range(1, cells + 1)]
    return names


def write_table(path: Path, sides: Mapping[str, Iterable[str]]) -> Path:
    rows = [f"{name},{side}\n" for side, names in sides.items() for name in names]
    path.write_text("file,split\n" + "".join(rows), encoding="utf-8")
    return path


def check(tmp_path: Path, sides: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    return lk.check_split(write_table(tmp_path / "split.csv", sides), "cnmc2019")


def sentences(report: Mapping[str, Any]) -> dict[str, str]:
    return {finding["kind"]: finding["sentence"] for finding in report["findings"]}


def test_a_clean_split_by_subject_has_no_finding(tmp_path: Path) -> None:
    report = check(tmp_path, {"train": names_of(TRAIN_SUBJECTS), "test": names_of(TEST_SUBJECTS)})
    assert report["findings"] == []
    assert report["data"]["name"] == "cnmc2019"
    assert report["sides"][0]["test"] == {"images": 24, "subjects": 6, "classes": {"ALL": 12, "HEM": 12}}
    assert report["worth"] == "By its names, the split tests on subjects that no training image shows."
    assert "We found no subject and no copy of an image on two sides." in report["review"]


def test_subjects_on_both_sides_are_counted(tmp_path: Path) -> None:
    names = names_of((*TRAIN_SUBJECTS, *TEST_SUBJECTS))
    report = check(tmp_path, {"train": names[::2], "test": names[1::2]})
    assert sentences(report)["subjects"].startswith("12 of 12 subjects tested have other images in training")
    assert sentences(report)["subjects"].endswith("24 of 24 images (100%).")
    assert "overstated 5 of 10 networks" in report["worth"]
    assert "The effect on this model was not measured." in report["worth"]
    assert "Please report the results with all images of a subject" in report["review"]


def test_subjects_in_training_and_validation_are_counted_apart(tmp_path: Path) -> None:
    sides = {"train": names_of(TRAIN_SUBJECTS), "validation": names_of(["H12"], 6)[4:], "test": names_of(TEST_SUBJECTS)}
    found = sentences(check(tmp_path, sides))
    assert found["subjects_validation"] == (
        "1 of 1 subjects validated has other images in training, for example H12: 2 of 2 images (100%)."
    )
    assert found.keys() == {"subjects_validation"}


@pytest.mark.parametrize(("trained", "tested"), [("51", "78"), ("H10", "h3"), ("20", "16")])
def test_one_person_under_two_ids_is_found_by_the_data_set(tmp_path: Path, trained: str, tested: str) -> None:
    train = [*names_of(TRAIN_SUBJECTS), *names_of([trained])]
    report = check(tmp_path, {"train": dict.fromkeys(train), "test": names_of([tested, *TEST_SUBJECTS])})
    assert f"for example {' = '.join(sorted((trained, tested)))}: " in sentences(report)["subjects"]
    assert sentences(report)["subjects"].startswith("1 of 7 subjects tested has other images in training")


@pytest.mark.parametrize(
    "copied",
    [
        *("UID_3_1_1_all_aug0.bmp", "UID_3_1_1_all_flip.png", "UID_3_1_1_all-rot90.jpg", "UID_3_1_1_all (1).bmp"),
        *("aug/UID_3_1_1_all.aug.3.png", "UID_3_1_1_all - Copy.bmp", "UID_3_1_1_all_hflip_rot180.bmp"),
        *("UID_3_1_1_all_bmp.rf.0123456789abcdef0123456789abcdef.jpg", "aug_UID_3_1_1_all.bmp"),
        "ALL_original_UID_3_1_1_all.bmp_01234567-89ab-cdef-0123-456789abcdef.bmp",
    ],
)
def test_copies_are_found_by_their_names(tmp_path: Path, copied: str) -> None:
    assert original_of(copied) == ("UID_3_1_1_all", True)
    report = check(tmp_path, {"train": [*names_of(TRAIN_SUBJECTS), copied], "test": names_of(TEST_SUBJECTS)})
    found = sentences(report)
    assert found["copies"].startswith("1 of 24 tested images (4%) are, by their names, copies of training images")
    assert copied in found["copies"]
    assert found["subjects"].startswith("1 of 6 subjects tested has")


@pytest.mark.parametrize("name", ["UID_3_1_1_all.bmp", "WBC-Benign-001.jpg", "img.12.png", "scan_3.tif", "croft_1.png"])
def test_originals_are_no_copies(name: str) -> None:
    assert original_of(name) == (Path(name).stem, False)


def test_cells_of_one_name_in_two_class_folders_are_two_cells(tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text(
        "file,split,label\nALL/1_aug.png,train,ALL\nHEM/1.png,test,HEM\nHEM/2.png,train,HEM\nALL/3.png,test,ALL\n"
    )
    kinds = {finding["kind"] for finding in lk.check_split(table, subject_pattern=r"/(\d)")["findings"]}
    assert kinds == {"subjects"}


@pytest.mark.parametrize(("side", "missing"), [("train", "test"), ("test", "train")])
def test_a_split_without_a_side_is_refused(tmp_path: Path, side: str, missing: str) -> None:
    with pytest.raises(LeukoscopeError, match=rf"split\.csv: no image is on the {missing} side; give the whole split"):
        check(tmp_path, {side: names_of(TRAIN_SUBJECTS)})


def test_the_predictions_of_our_own_cross_validation_by_subject_have_no_finding() -> None:
    """Some folds have two healthy subjects; a cross-validation is measured on all of them."""
    report = lk.check_split(ROOT / "model_card" / "leukoscope-densenet169-cnmc" / "predictions" / "subject_cv.parquet")
    assert report["findings"] == []
    assert (report["images"], len(report["sides"])) == (7779, 5)


def test_folds_by_image_are_told_with_the_worst(tmp_path: Path) -> None:
    names = names_of((*TRAIN_SUBJECTS, *TEST_SUBJECTS))
    table = tmp_path / "folds.csv"
    table.write_text("image,fold\n" + "".join(f"{name},{k % 4}\n" for k, name in enumerate(names)))
    found = sentences(lk.check_split(table, "cnmc2019"))
    assert found["subjects"].endswith("In 4 of 4 splits; this is the worst.")


def test_names_of_no_known_data_set_need_a_pattern(tmp_path: Path) -> None:
    table = write_table(tmp_path / "split.csv", {"train": ["p1-1.png", "p2-1.png"], "test": ["p1-2.png"]})
    with pytest.raises(LeukoscopeError, match=r"nothing says of whom its images are, such as p1-1\.png; give the --da"):
        lk.check_split(table)
    report = lk.check_split(table, subject_pattern=r"(?P<subject>p\d+)-")
    assert sentences(report)["subjects"].startswith("1 of 1 subjects tested has other images in training")


def test_a_data_set_without_subjects_leaves_it_unknown(tmp_path: Path) -> None:
    table = write_table(tmp_path / "split.csv", {"train": ["WBC-Benign-001.jpg"], "test": ["WBC-Benign-002.jpg"]})
    report = lk.check_split(table, "ball4")
    assert report["worth"] == "The names do not give subjects, so it is unknown how it does on new subjects."
    assert report["without_subject"] == 2


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "split.csv", {"train": ["a.png"], "test": ["b.png"]})
    with pytest.raises(LeukoscopeError, match="--dataset_name nosuch: unknown data set"):
        lk.check_split(table, "nosuch")


def test_the_measurements_quoted_are_those_of_results() -> None:
    assert leak_measurements() == from_results(ROOT / "results")


# The forms of a split


def sides_of(path: Path) -> dict[tuple[str, str], list[str]]:
    """(fold, side) → the names there."""
    rows = read_split(path, NO_FLAGS)
    groups = rows.groupby(["split", "side"])
    return {(str(split), str(side)): list(group["file"]) for (split, side), group in groups}


SIDES = {("", "train"): ["a.png", "b.png"], ("", "validation"): ["c.png"], ("", "test"): ["d.png"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("split.csv", "filename,split\na.png,train\nb.png,train\nc.png,val\nd.png,test\n"),
        ("split.csv", "Subset;Image\nTraining;a.png\nTraining;b.png\nValid;c.png\nTesting;d.png\n"),
        ("split.tsv", "file\tpartition\na.png\ttrain\nb.png\ttrain\nc.png\tdev\nd.png\ttest\n"),
    ],
)
def test_a_table_names_the_sides(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert sides_of(tmp_path / name) == SIDES


def test_a_folder_holds_a_list_a_table_or_images_for_each_side(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.png\nb.png\n")
    (tmp_path / "valid.csv").write_text("file,patient_id,label\nc.png,1,ALL\n")
    save_cell(tmp_path / "test" / "d.png")
    (tmp_path / "test" / "notes.md").write_text("no image")
    assert sides_of(tmp_path) == SIDES
    rows = read_split(tmp_path, NO_FLAGS).set_index("file")
    assert list(rows.loc["c.png", ["subject", "label"]]) == ["1", "ALL"]


@pytest.mark.parametrize("words", [("0", "1", "2"), ("fold_0", "fold_1", "fold_2"), ("0.0", "1.0", "2.0")])
def test_a_column_of_folds_is_a_cross_validation(tmp_path: Path, words: tuple[str, ...]) -> None:
    rows = "".join(f"{name}.png,{word}\n" for name, word in zip("abc", words, strict=True))
    (tmp_path / "folds.csv").write_text(f"image,fold\n{rows}")
    sides = sides_of(tmp_path / "folds.csv")
    assert [sides[f"fold {fold}", "test"] for fold in range(3)] == [["a.png"], ["b.png"], ["c.png"]]
    assert sides["fold 0", "train"] == ["b.png", "c.png"]


def test_lists_of_subjects_are_checked_as_subjects(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("patient_name,labels\nABF,3\nAEC,4\nAAA,1\n")
    (tmp_path / "test.csv").write_text("patient_name,labels\nABF,3\nXYZ,4\n")
    found = sentences(lk.check_split(tmp_path))
    assert found["subjects"].startswith("1 of 2 subjects tested has other images in training, for example ABF")
    assert "copies" not in found


def test_ids_of_one_person_are_compared_across_the_tables_of_sides(tmp_path: Path) -> None:
    """`001` in training and `1.0` in test were two people: "We found no subject on two sides"."""
    (tmp_path / "train.csv").write_text("file,patient_id\na.png,001\n")
    (tmp_path / "test.csv").write_text("file,patient_id\nb.png,1.0\n")
    with pytest.raises(LeukoscopeError, match=r"subjects '1.0' .* and '001' .* are two spellings of one id"):
        lk.check_split(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("split.csv", "file,label\na.png,ALL\n", "has no column that says the side; name it with --split_column"),
        ("split.csv", "row,split\n1,train\n", "has no column of image paths"),
        ("split.csv", "file,split\na.png,train\nb.png,later\n", "row 3: its column 'split' holds 'later', which is no"),
        ("split.csv", "file,fold\na.png,A\n", "row 2 holds 'A', which is no number of a fold"),
        ("split.csv", "file,split,subset\na.png,train,test\n", "its columns 'split' and 'subset' both name the split"),
        ("split.csv", "file,split\n,train\n", "row 2 names no file"),
        ("split.json", "{}", "unknown form; give a table with a column of file names"),
        ("split.npz", "PK", "unknown form; give a table with a column of file names"),
    ],
)
def test_what_is_no_split_is_refused_with_the_reason(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LeukoscopeError) as refused:
        read_split(tmp_path / name, NO_FLAGS)
    assert str(refused.value).startswith(f"--split_file {tmp_path / name}: ") and problem in str(refused.value)


def test_a_path_without_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"nowhere\.csv: no such file or folder; give a table"):
        read_split(tmp_path / "nowhere.csv", NO_FLAGS)
    with pytest.raises(LeukoscopeError, match="holds no list or folder called train"):
        read_split(tmp_path, NO_FLAGS)


def test_names_are_found_among_cells_by_path_or_by_an_unambiguous_name(tmp_path: Path) -> None:
    for cell in ("ALL/1.png", "HEM/1.png", "HEM/7.png"):
        save_cell(tmp_path / cell)
    data = load_cells("imagefolder", tmp_path)
    names = ["ALL/1.png", "HEM/1.png", "x/7.bmp", "1.png", "9.png"]
    rows = pd.DataFrame({"file": names, "split": "", "side": ["train"] * 3 + ["test"] * 2})
    split = split_of_cells(rows, data)
    assert (split.train, split.validation, split.test) == (("ALL/1", "HEM/1", "HEM/7"), (), ())
    assert split.notes == ("2 names of the split have no image there, for example 1.png",)
    with pytest.raises(LeukoscopeError, match=r"none of its images is in this folder, for example 1\.png; give"):
        split_of_cells(rows[3:], data)


# The command


def test_the_command_tells_a_split_by_image_with_copies(tmp_path: Path) -> None:
    names = names_of((*TRAIN_SUBJECTS, *TEST_SUBJECTS), cells=10)
    generator = random.Random(0)
    copies = [name.replace(".bmp", f"_aug{k}.bmp") for k, name in enumerate(generator.sample(names, 40))]
    rows = sorted(names + copies)
    generator.shuffle(rows)
    table = write_table(tmp_path / "split.csv", {"train": rows[40:], "test": rows[:40]})
    command = ("audit", "--dataset_name", "cnmc2019", "--split_file", str(table))
    outcome = run(*command)
    assert outcome.exit_code == 3
    assert "found: 12 of 12 subjects tested have other images in training" in outcome.output
    assert "For a review:\nWe checked the split of C-NMC 2019" in outcome.output
    assert lk.RESEARCH_NOTICE in outcome.output
    as_json = run(*command, "--json")
    assert {finding["kind"] for finding in json.loads(as_json.output)["findings"]} == {"subjects", "copies"}


def test_with_the_folder_the_pictures_are_compared_too(tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    for label in ("ALL", "HEM"):
        for subject in range(6):
            save_cell(
                folder / label / f"{label}{subject}-1.png", label, size=96, subject=subject, cell=1, background="smear"
            )
    # A copy whose name does not tell, of a subject that the pattern takes for another.
    (folder / "ALL" / "ALL9-1.png").write_bytes((folder / "ALL" / "ALL0-1.png").read_bytes())
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    tested = [path for path in paths if re.search(r"[359]-1", path)]
    sides = {"train": sorted(set(paths) - set(tested)), "test": [*tested, "HEM/absent.png"]}
    table = write_table(tmp_path / "split.csv", sides)
    pattern = r"(?P<subject>[A-Z]+\d+|absent)"
    words = ("audit", str(folder), "--split_file", str(table), "--subject_pattern", pattern)
    outcome = run(*words, "--output", str(tmp_path / "out"))
    assert outcome.exit_code == 3, outcome.output
    assert "inflates metrics: 1 pixel-identical pair(s) are on two sides of the split, for example" in outcome.output
    assert "1 names of the split have no image there, for example HEM/absent.png" in outcome.output
    assert "For a review:\nWe checked the split of the images in split.csv" in outcome.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["audit.json"]
    as_json = json.loads(run(*words, "--output", str(tmp_path / "out"), "--json").stdout)
    assert as_json["audit"]["duplicates"]["identical"]["split_sides"] == 1 and as_json["images"] == 14


def test_a_clean_split_ends_with_status_zero(tmp_path: Path) -> None:
    table = write_table(tmp_path / "s.csv", {"train": names_of(TRAIN_SUBJECTS), "test": names_of(TEST_SUBJECTS)})
    outcome = run("audit", "--split_file", str(table), "--dataset_name", "cnmc2019")
    assert outcome.exit_code == 0
    assert "found nothing on two sides" in outcome.output


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    table = write_table(tmp_path / "s.csv", {"train": ["a.png"], "test": ["b.png"]})
    outcome = run("audit", str(tmp_path / "none"), "--split_file", str(table))
    assert outcome.exit_code == 1
    assert "no such folder; give the folder of the images, or leave it out to check names only" in outcome.output
