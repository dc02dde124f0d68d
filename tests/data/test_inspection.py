"""What a folder is told to be: the data set recognised, cells counted by class and subject, and what is odd named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.inspection import inspect_folder, recognise
from leukoscope.data.loading import load_cells
from leukoscope.data.splits import make_split
from leukoscope.training.config import parse_config


def _cell(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "purple").save(path)


@pytest.fixture
def cnmc(tmp_path: Path) -> Path:
    """Three cells of subject 1, and one each of H10 and h3, who are one subject."""
    for frame in range(3):
        _cell(tmp_path / f"fold_0/all/UID_1_{frame}_1_all.bmp")
    _cell(tmp_path / "fold_0/hem/UID_H10_1_1_hem.bmp")
    _cell(tmp_path / "fold_1/hem/UID_h3_1_1_hem.bmp")
    return tmp_path


def test_cnmc_is_recognised_and_counted_by_class_and_subject(cnmc: Path) -> None:
    report = inspect_folder(cnmc)
    assert (report.info.name, report.split_flags) == ("cnmc2019", ["--split", "random"]), "one HEM subject"
    assert report.partitions == {"fold_0": {"ALL": 3, "HEM": 1}, "fold_1": {"HEM": 1}}
    assert report.subjects == {"ALL": {"1": 3}, "HEM": {"H10": 2}}
    assert "fold_0 ALL: 3 cells here, 2,397 published" in report.problems
    few = "HEM: 1 subject(s) to train on, fewer than the 7 of --split subject"
    assert f"{few}: no figure on so few applies to a new subject; gather cells of more subjects" in report.problems


def test_ball4_is_recognised_and_said_to_name_no_subjects(tmp_path: Path) -> None:
    _cell(tmp_path / "Original/Benign/WBC-Benign-001.jpg")
    _cell(tmp_path / "Original/Pro/WBC-Malignant-Pro-001.jpg")
    _cell(tmp_path / "Segmented/Pro/WBC-Malignant-Pro-001.jpg")
    report = inspect_folder(tmp_path)
    assert (report.info.name, report.split_flags) == ("ball4", ["--split", "block"])
    assert report.partitions == {"": {"Benign": 1, "Pro": 1}}
    assert any(
        "the subjects of these cells are not known" in line and "--split block" in line for line in report.problems
    )


def test_class_folders_of_ones_own_are_recognised(tmp_path: Path) -> None:
    for name in ("blast/ann_1.png", "blast/bob_1.png", "normal/eve_1.png"):
        _cell(tmp_path / name)
    (tmp_path / "normal/broken.png").write_text("no picture")
    report = inspect_folder(tmp_path)
    assert (report.info.name, report.split_flags) == ("imagefolder", ["--split", "random"])
    assert report.partitions == {"": {"blast": 2, "normal": 1}}
    assert any(line.endswith("give --subject_pattern or --labels") for line in report.problems)
    assert any("broken.png" in line for line in report.problems)


def test_a_rule_for_subjects_counts_them(tmp_path: Path) -> None:
    for name in ("blast/ann_1.png", "blast/ann_2.png", "normal/eve_1.png"):
        _cell(tmp_path / name)
    report = inspect_folder(tmp_path, subject_pattern=r"(?P<subject>[a-z]+)_\d")
    assert report.subjects == {"blast": {"ann": 2}, "normal": {"eve": 1}}
    assert report.split_flags == ["--split", "random"]


@pytest.mark.parametrize("subjects", [2, 5, 6, 7, 8])
def test_the_split_that_is_advised_can_be_drawn(tmp_path: Path, subjects: int) -> None:
    for label in ("blast", "normal"):
        for subject in range(subjects):
            for cell in range(4):
                _cell(tmp_path / f"{label}/{label[0]}{subject}_{cell}.png")
    pattern = r"(?P<subject>[a-z]\d+)_\d"
    flags = inspect_folder(tmp_path, subject_pattern=pattern).split_flags
    config = parse_config(["--dataset_name", "imagefolder", *flags])
    data = load_cells("imagefolder", tmp_path, subject_pattern=pattern)
    drawn = [
        make_split(
            data,
            config.data.split,
            fold=fold,
            num_folds=config.data.num_folds,
            validation=not config.data.no_validation,
        )
        for fold in range(config.data.num_folds if config.data.split == "subject-cv" else 1)
    ]
    assert {split.strategy for split in drawn} == {"subject" if subjects >= 7 else "subject-cv"}
    assert all(split.train and split.test for split in drawn)


def test_a_single_picture_named_as_in_cnmc_does_not_make_a_folder_that_data_set(tmp_path: Path) -> None:
    for label in ("blast", "normal"):
        for number in range(3):
            _cell(tmp_path / label / f"{number}.png")
    _cell(tmp_path / "blast" / "UID_1_1_1_all.bmp")
    report = inspect_folder(tmp_path)
    assert report.info.name == "imagefolder"
    assert report.partitions == {"": {"blast": 4, "normal": 3}}


def test_a_folder_of_nothing_known_names_the_known_layouts(tmp_path: Path) -> None:
    _cell(tmp_path / "loose.png")
    with pytest.raises(
        LeukoscopeError, match=r"holds no picture laid out as .*cnmc2019: …/fold_.*imagefolder: <class>"
    ):
        recognise(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="nowhere: no such folder; give the folder that a data set was unpacked"):
        inspect_folder(tmp_path / "nowhere")


def test_folders_of_one_class_are_refused_without_a_flag_that_nobody_gave(tmp_path: Path) -> None:
    _cell(tmp_path / "P01" / "1.png")
    with pytest.raises(LeukoscopeError) as refused:
        inspect_folder(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: only the class 'P01' found; a classifier needs two or more classes, each in a folder of its name"
    )


def test_real_cells_are_recognised(real_data: Path) -> None:
    assert recognise(real_data / "cnmc2019").name == "cnmc2019"
    assert recognise(real_data / "ball4").name == "ball4"
