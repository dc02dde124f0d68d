"""The trees publishers unpack: which files are cells, and what their paths say of class, subject and fold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.data.folder import passed_over
from leukoscope.data.layouts import (
    CNMC_NAME,
    CNMC_PRELIM_LABELS,
    CellFile,
    ImageFolder,
    find_class_folders,
    find_cnmc_cells,
)
from leukoscope.data.registry import DATASETS, DatasetInfo, dataset_info
from leukoscope.models.recipes import RECIPES


def _place(root: Path, *names: str) -> ImageFolder:
    return ImageFolder.read(place(root, *names))


def find(name: str, folder: ImageFolder) -> list[CellFile]:
    finder = dataset_info(name).find_cells
    assert finder is not None
    return list(finder(folder))


def _described(cells: Iterable[CellFile]) -> set[tuple[str, str, str, str]]:
    return {(cell.cell_id, cell.label, cell.subject, cell.fold) for cell in cells}


def test_recipes_that_data_sets_name_exist() -> None:
    named = {info.recipe for info in DATASETS.values()} - {""}
    assert named == {"densenet169_block2"} and named <= set(RECIPES)


def test_reads_the_kaggle_tree_of_cnmc_in_one_order_without_copies_outside_the_folds(tmp_path: Path) -> None:
    training = "C-NMC_Leukemia/training_data"
    names = ("fold_2/hem/UID_h3_4_5_hem.bmp", "fold_0/hem/UID_H6_1_1_hem.bmp", "fold_0/all/UID_11_22_2_all.png")
    folder = _place(tmp_path, *(f"{training}/{name}" for name in names), "samples/UID_11_22_2_all.bmp")
    assert folder.images == sorted(folder.images)
    assert _described(find_cnmc_cells(folder)) == {
        ("UID_11_22_2_all", "ALL", "11", "fold_0"),
        ("UID_H6_1_1_hem", "HEM", "H6", "fold_0"),
        ("UID_h3_4_5_hem", "HEM", "h3", "fold_2"),
    }
    folder = _place(tmp_path, "samples/UID_12_1_1_all.bmp")
    assert ("UID_12_1_1_all", "ALL", "12", "") in _described(find_cnmc_cells(folder)), "that of no other cell"


@pytest.mark.parametrize("separator", [",", ";"])
def test_reads_the_tcia_tree_of_cnmc_with_the_preliminary_test_named_by_its_list(
    tmp_path: Path, separator: str
) -> None:
    prelim = "C-NMC_test_prelim_phase_data"
    rows = "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_H48_8_2_hem.bmp,2.bmp,0\nUID_H9_8_2_hem.bmp\n"
    (tmp_path / prelim).mkdir()
    (tmp_path / prelim / CNMC_PRELIM_LABELS).write_text(rows.replace(",", separator), encoding="utf-8-sig")
    folder = _place(
        tmp_path,
        "C-NMC_training_data/C-NMC_training_data/fold_1/all/UID_44_9_3_all.bmp",
        *(f"{prelim}/C-NMC_test_prelim_phase_data/{number}.bmp" for number in (1, 2)),
        "C-NMC_test_final_phase_data/C-NMC_test_final_phase_data/1.bmp",
    )
    assert _described(find_cnmc_cells(folder)) == {
        ("UID_44_9_3_all", "ALL", "44", "fold_1"),
        ("UID_57_29_1_all", "ALL", "57", "preliminary_test"),
        ("UID_H48_8_2_hem", "HEM", "H48", "preliminary_test"),
    }


def test_a_label_list_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / CNMC_PRELIM_LABELS).write_text("Patient_ID,labels\nUID_57_29_1_all.bmp,1\n")
    said = f"{tmp_path / CNMC_PRELIM_LABELS}: lacks the column(s) new_names; get the publisher's list again"
    with pytest.raises(LeukoscopeError, match=f"^{re.escape(said)}$"):
        list(find_cnmc_cells(ImageFolder.read(tmp_path)))


def test_other_names_are_not_cnmc_cells() -> None:
    for name in ("UID_11_22_all", "UID_11_22_2_aml", "UID_11_22_2_all_copy", "11_22_2_all", "UID_X1_2_3_all"):
        assert CNMC_NAME.match(name) is None


def test_subject_ids_of_one_subject_are_joined_and_others_kept() -> None:
    cnmc = dataset_info("cnmc2019")
    assert {cnmc.canonical_subject(s) for s in ("51", "55", "75", "78")} == {"51"}
    assert cnmc.canonical_subject("h3") == cnmc.canonical_subject("H10") == "H10"
    assert cnmc.canonical_subject("H3") == "H3", "h3 and H3 are two people"
    chain = replace(cnmc, subject_aliases={"P07": "P01", "P01": "P03"})
    assert {chain.canonical_subject(s) for s in ("P07", "P01", "P03")} == {"P03"}
    assert replace(cnmc, subject_aliases={"a": "b", "b": "a"}).canonical_subject("a") in ("a", "b"), "a circle ends"


def test_reads_both_namings_of_ball4_and_leaves_segmented_out(tmp_path: Path) -> None:
    cells = {"Benign": "WBC-Benign-001", "Early": "WBC-Malignant-Early-002", "Pro": "WBC-Malignant-Pro-004"}
    names = [f"Original/{label}/{name}.jpg" for label, name in cells.items()]
    folder = _place(tmp_path, *names, "Segmented/Pro/WBC-Malignant-Pro-004.jpg", "Original/Pro/readme.jpg")
    assert _described(find("ball4", folder)) == {(name, label, "", "") for label, name in cells.items()}


def test_what_is_no_picture_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "ALL").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "ALL" / "a.JFIF", "JPEG")
    (tmp_path / "ALL" / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "ALL" / "notes.txt").write_text("BM is no bitmap")
    os.mkfifo(tmp_path / "ALL" / "pipe")
    for junk in ("@eaDir", "__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / junk).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / junk / "thumbnail.png")
    for hidden in ("Thumbs.db", "._a.jpg"):
        (tmp_path / "ALL" / hidden).write_bytes(b"Mac OS X")
    (tmp_path / "HEM").mkdir()
    folder = ImageFolder.read(tmp_path)
    assert [path.name for path in folder.images] == ["a.JFIF"]
    told = list(passed_over(DATASETS["imagefolder"], folder, list(find_class_folders(folder))))
    assert told == ["2 file(s) skipped, not readable images: .heic 1, no suffix 1; export them as PNG or JPEG"]


def test_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LeukoscopeError) as refused:
        dataset_info("cnmc2020")
    assert str(refused.value) == (
        f"--dataset_name cnmc2020: unknown data set; choose one of {', '.join(DATASETS)} or a Hub id like owner/name"
    )


@pytest.mark.parametrize("info", DATASETS.values(), ids=DATASETS)
def test_entries_are_consistent(info: DatasetInfo) -> None:
    assert DATASETS[info.name] is info
    assert info.title and info.licence
    assert 0 < info.crop_pct <= 1
    assert info.positive_label in ("", *info.labels)
    assert (info.find_cells is None) == info.synthetic
    assert {label for counts in info.official_counts.values() for label in counts} <= {*info.labels, ""}
