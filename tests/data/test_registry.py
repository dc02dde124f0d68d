"""The trees publishers unpack: which files are cells, and what their paths say of class, subject and fold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.folder import passed_over, recognise
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


def _place(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "purple").save(path)


def find(name: str, root: Path) -> list[CellFile]:
    finder = dataset_info(name).find_cells
    assert finder is not None
    return list(finder(ImageFolder.read(root)))


def _described(cells: list[CellFile]) -> set[tuple[str, str, str, str]]:
    return {(cell.cell_id, cell.label, cell.subject, cell.fold) for cell in cells}


def test_recipes_that_data_sets_name_exist() -> None:
    named = {info.recipe for info in DATASETS.values()} - {""}
    assert named == {"densenet169_block2"} and named <= set(RECIPES)


def test_reads_the_kaggle_tree_of_cnmc(tmp_path: Path) -> None:
    training = "C-NMC_Leukemia/training_data"
    _place(
        tmp_path,
        f"{training}/fold_0/all/UID_11_22_2_all.bmp",
        f"{training}/fold_0/hem/UID_H6_1_1_hem.bmp",
        f"{training}/fold_2/hem/UID_h3_4_5_hem.bmp",
    )
    assert _described(list(find_cnmc_cells(ImageFolder.read(tmp_path)))) == {
        ("UID_11_22_2_all", "ALL", "11", "fold_0"),
        ("UID_H6_1_1_hem", "HEM", "H6", "fold_0"),
        ("UID_h3_4_5_hem", "HEM", "h3", "fold_2"),
    }


def test_a_copy_kept_outside_the_folds_is_passed_over(tmp_path: Path) -> None:
    _place(tmp_path, "fold_0/all/UID_11_22_2_all.png", "samples/UID_11_22_2_all.bmp", "samples/UID_12_1_1_all.bmp")
    found = {cell.path.relative_to(tmp_path).as_posix() for cell in find_cnmc_cells(ImageFolder.read(tmp_path))}
    assert found == {"fold_0/all/UID_11_22_2_all.png", "samples/UID_12_1_1_all.bmp"}


def test_reads_the_tcia_tree_of_cnmc_with_the_preliminary_test_named_by_its_list(tmp_path: Path) -> None:
    training, prelim = "C-NMC_training_data", "C-NMC_test_prelim_phase_data"
    _place(
        tmp_path,
        f"{training}/C-NMC_training_data/fold_1/all/UID_44_9_3_all.bmp",
        f"{prelim}/C-NMC_test_prelim_phase_data/1.bmp",
        f"{prelim}/C-NMC_test_prelim_phase_data/2.bmp",
        "C-NMC_test_final_phase_data/C-NMC_test_final_phase_data/1.bmp",
    )
    (tmp_path / prelim / CNMC_PRELIM_LABELS).write_text(
        "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_H48_8_2_hem.bmp,2.bmp,0\n"
    )
    assert _described(list(find_cnmc_cells(ImageFolder.read(tmp_path)))) == {
        ("UID_44_9_3_all", "ALL", "44", "fold_1"),
        ("UID_57_29_1_all", "ALL", "57", "preliminary_test"),
        ("UID_H48_8_2_hem", "HEM", "H48", "preliminary_test"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it needs the columns new_names,Patient_ID"),
        (b"Patient_ID,labels\nUID_57_29_1_all.bmp,1\n", "lacks the column(s) new_names; it needs"),
        (b"\xff\xfe\x00PK", "is damaged UTF-16; export it again"),
    ],
    ids=["empty", "missing column", "binary"],
)
def test_malformed_label_list_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    _place(tmp_path, "C-NMC_test_prelim_phase_data/1.bmp")
    (tmp_path / CNMC_PRELIM_LABELS).write_bytes(content)
    with pytest.raises(LeukoscopeError) as refused:
        list(find_cnmc_cells(ImageFolder.read(tmp_path)))
    assert str(refused.value).startswith(f"{tmp_path / CNMC_PRELIM_LABELS}: {message}")


@pytest.mark.parametrize("separator", [",", ";"])
def test_the_label_list_is_read_however_a_spreadsheet_saved_it(tmp_path: Path, separator: str) -> None:
    _place(tmp_path, "C-NMC_test_prelim_phase_data/1.bmp", "C-NMC_test_prelim_phase_data/2.bmp")
    rows = "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_H48_8_2_hem.bmp\n".replace(",", separator)
    (tmp_path / CNMC_PRELIM_LABELS).write_text(rows, encoding="utf-8-sig")
    (cell,) = find_cnmc_cells(ImageFolder.read(tmp_path))
    assert (cell.cell_id, cell.path.name) == ("UID_57_29_1_all", "1.bmp"), "a row cut short names no cell"


@pytest.mark.parametrize("suffix", ["bmp", "BMP", "png", "webp", "tif", "tiff", "jpg", "jpeg"])
def test_finds_cnmc_cells_in_any_file_format(tmp_path: Path, suffix: str) -> None:
    _place(tmp_path, f"fold_0/all/UID_1_1_1_all.{suffix}")
    (cell,) = find_cnmc_cells(ImageFolder.read(tmp_path))
    assert cell.cell_id == "UID_1_1_1_all", "the id is the same whatever the format"


@pytest.mark.parametrize(
    "name", ["UID_11_22_all", "UID_11_22_2_aml", "UID_11_22_2_all_copy", "11_22_2_all", "UID_X1_2_3_all"]
)
def test_other_names_are_not_cnmc_cells(name: str) -> None:
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
    _place(
        tmp_path,
        "Original/Benign/WBC-Benign-001.jpg",
        "Original/Early/WBC-Malignant-Early-002.jpg",
        "Original/Pre/WBC-Malignant-Pre-003.jpg",
        "Original/Pro/WBC-Malignant-Pro-004.jpg",
        "Segmented/Pro/WBC-Malignant-Pro-004.jpg",
        "Original/Pro/readme.jpg",
    )
    assert _described(list(find("ball4", tmp_path))) == {
        ("WBC-Benign-001", "Benign", "", ""),
        ("WBC-Malignant-Early-002", "Early", "", ""),
        ("WBC-Malignant-Pre-003", "Pre", "", ""),
        ("WBC-Malignant-Pro-004", "Pro", "", ""),
    }


def test_class_folders_give_class_and_an_id_that_is_unique_below_the_root(tmp_path: Path) -> None:
    _place(tmp_path, "anna/blast/1.png", "ben/blast/1.png", "ben/normal/2.png", "loose.png")
    assert _described(list(find_class_folders(ImageFolder.read(tmp_path)))) == {
        ("anna/blast/1", "blast", "", ""),
        ("ben/blast/1", "blast", "", ""),
        ("ben/normal/2", "normal", "", ""),
    }


def test_a_cell_in_the_folder_of_the_other_class_is_named(tmp_path: Path) -> None:
    _place(tmp_path, "fold_0/hem/UID_1_1_1_all.bmp", "fold_0/hem/UID_H1_1_1_hem.bmp")
    info = DATASETS["cnmc2019"]
    (said,) = passed_over(info, ImageFolder.read(tmp_path), list(find_cnmc_cells(ImageFolder.read(tmp_path))))
    assert said.startswith("1 image file(s) lie in the folder of another class than their name says, for example ")


def test_one_copy_leaves_cnmc_what_it_is(tmp_path: Path) -> None:
    _place(
        tmp_path, "fold_0/all/UID_1_1_1_all.bmp", "fold_0/hem/UID_H1_1_1_hem.bmp", "fold_0/all/UID_1_1_1_all (1).bmp"
    )
    assert recognise(tmp_path).name == "cnmc2019"


def test_folders_of_subjects_within_classes_are_subjects(tmp_path: Path) -> None:
    """Their names would be classes: P00, P01 and so on."""
    _place(tmp_path, "ALL/P00/c.png", "ALL/P01/c.png", "HEM/P10/c.png", "HEM/P11/c.png")
    cells = list(find_class_folders(ImageFolder.read(tmp_path)))
    assert [(cell.label, cell.subject, cell.cell_id) for cell in cells] == [
        ("ALL", "P00", "ALL/P00/c"),
        ("ALL", "P01", "ALL/P01/c"),
        ("HEM", "P10", "HEM/P10/c"),
        ("HEM", "P11", "HEM/P11/c"),
    ]
    (said,) = passed_over(DATASETS["imagefolder"], ImageFolder.read(tmp_path), cells)
    assert said.startswith("read as <class>/<subject>/<image>: each innermost folder is a subject")


@pytest.mark.parametrize(
    "files",
    [
        ["benign/lymphocyte/1.png", "benign/monocyte/1.png", "malignant/pre/1.png"],
        ["train/class1/1.png", "train/class2/1.png", "test/class1/1.png", "test/class2/1.png"],
        ["fold_0/all/1.png", "fold_0/hem/1.png", "fold_1/all/1.png", "fold_1/hem/1.png"],
    ],
)
def test_other_innermost_folders_are_classes(tmp_path: Path, files: list[str]) -> None:
    _place(tmp_path, *files)
    assert {cell.label for cell in find_class_folders(ImageFolder.read(tmp_path))} == {
        Path(file).parent.name for file in files
    }


def test_folders_above_the_classes_are_named(tmp_path: Path) -> None:
    _place(tmp_path, "P01/ALL/1.png", "P02/HEM/1.png", "P02/ALL/1.png")
    (said,) = passed_over(
        DATASETS["imagefolder"], ImageFolder.read(tmp_path), list(find_class_folders(ImageFolder.read(tmp_path)))
    )
    assert "the folders above the classes (P01, P02 …) were not used: if they are subjects, give --subject_patt" in said


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


def test_published_counts_of_cnmc_add_up() -> None:
    counts = dataset_info("cnmc2019").official_counts
    training = [sum(counts[f"fold_{k}"].values()) for k in range(3)]
    assert (training, sum(training), sum(counts["preliminary_test"].values())) == ([3527, 3581, 3553], 10661, 1867)


def test_finds_every_real_cell(real_data: Path) -> None:
    cells = list(find_cnmc_cells(ImageFolder.read(real_data / "cnmc2019")))
    assert len(cells) == 7779
    assert Counter(cell.fold for cell in cells) == {"fold_0": 3527, "fold_1": 3581, "fold_2": 671}
    assert len({cell.cell_id for cell in cells}) == len(cells)
    assert {cell.label for cell in cells} == {"ALL", "HEM"}


def test_finds_every_real_field_of_ball4(real_data: Path) -> None:
    found = Counter(cell.label for cell in find("ball4", real_data / "ball4"))
    assert found == dataset_info("ball4").official_counts[""]
