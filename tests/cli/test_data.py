"""`leukoscope data check`: tables or JSON about a folder, and the command that trains on it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from leukoscope.cli import app
from leukoscope.data.registry import CNMC_PRELIM_LABELS
from leukoscope.synthetic import draw_cell
from leukoscope.training.config import parse_config


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("ALL", "HEM"):
        (tmp_path / "my cells" / label).mkdir(parents=True)
        for subject in range(2):
            image = Image.fromarray(draw_cell(label, subject=subject, size=64).image)
            image.save(tmp_path / "my cells" / label / f"P{subject}_1.png")
    return tmp_path / "my cells"


def test_a_folder_is_described_and_the_command_to_train_on_it_is_one(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "Own class folders" in result.stdout and "licence: yours" in result.stdout
    assert "problem: the subjects of these cells are not known" in result.stdout
    train = result.stdout.splitlines()[-1].removeprefix("train on it: leukoscope train ")
    config = parse_config(shlex.split(train))
    assert (config.data.train_dir, config.data.split) == (str(folder), "random")


def test_json_carries_subjects_and_flags(folder: Path) -> None:
    result = run(folder, "--subject_pattern", r"(?P<subject>P\d)_", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["subjects"] == {"ALL": {"P0": 1, "P1": 1}, "HEM": {"P0": 1, "P1": 1}}
    assert said["partitions"] == {"": {"ALL": 2, "HEM": 2}}
    flags = ["--subject_pattern", r"(?P<subject>P\d)_", "--split", "subject-cv", "--num_folds", "2", "--no_validation"]
    assert said["flags"][-7:] == flags


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("nowhere: no such folder; give the folder that a data set was unpacked to")


def test_too_few_cells_of_a_class_are_said(folder: Path) -> None:
    said = run(folder).stdout
    assert "problem: ALL: 2 cell(s); fewer than 10 leave a side of the split without any, gather more" in said


def test_one_cell_of_a_class_cannot_be_trained_on(folder: Path) -> None:
    (folder / "HEM" / "P0_1.png").unlink()
    result = run(folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "cannot be trained on: a class has 1 cell(s)"
    assert run(folder, "--json").exit_code == 1


def test_cells_of_the_publishers_test_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "C-NMC_test_prelim_phase_data"
    folder.mkdir()
    names = ("UID_57_29_1_all", "UID_58_29_1_all", "UID_H49_31_1_hem", "UID_H50_31_1_hem")
    for number in range(4):
        Image.fromarray(draw_cell("ALL", cell=number, size=64).image).save(folder / f"{number}.bmp")
    rows = [f"{name}.bmp,{number}.bmp,1" for number, name in enumerate(names)]
    (tmp_path / CNMC_PRELIM_LABELS).write_text("\n".join(["Patient_ID,new_names,labels", *rows]))
    result = run(tmp_path)
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines()[-1] == "cannot be trained on: a class has 0 cell(s)"


def test_a_pattern_is_told_as_it_was_typed(folder: Path) -> None:
    r"""Printed as Python writes it, \d would be \\d, which matches nothing when it is copied."""
    result = run(folder, "--subject_pattern", r"(?P<subject>Q\d)_")
    assert result.stderr.startswith(r"error: --subject_pattern '(?P<subject>Q\d)_': does not match 'ALL/P0_1.png'")
