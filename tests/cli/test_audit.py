"""`leukoscope audit` for scripts and people: exit codes, files, a short summary, one line for what went wrong."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import command
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE
from leukoscope.data.layouts import CNMC_PRELIM_LABELS
from leukoscope.data.loading import load_cells
from leukoscope.data.splits import make_split
from leukoscope.synthetic import Background
from leukoscope.training.config import parse_config

PATTERN = r"(?P<subject>[^/_]+)_\d+"


run = partial(command.run, "audit")


def run_on(tree: Path, *arguments: object) -> Any:
    return run("--dataset_name", "imagefolder", "--train_dir", tree, "--subject_pattern", PATTERN, *arguments)


def draw(root: Path, suffix: str = "png", background: Background = "smear") -> Path:
    for label, subject, cell in product(("ALL", "HEM"), range(2), range(3)):
        path = root / label / f"{label}{subject}_{cell}.{suffix}"
        save_cell(path, label, subject=subject, cell=cell, background=background)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return draw(tmp_path / "tree")


def test_a_clean_tree_ends_with_0(tree: Path, tmp_path: Path) -> None:
    result = run_on(tree, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nothing found that would inflate metrics" in result.stdout and RESEARCH_NOTICE in result.stdout
    assert json.loads((tmp_path / "out/audit.json").read_text())["inflating"] == []
    assert "size: area of the box" not in result.stdout and "background: mean and spread" in result.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["audit.json"]
    assert result.stdout.index("to train on these cells: leukoscope train") < result.stdout.index("shortcut")


def test_a_folder_is_recognised(tree: Path, tmp_path: Path) -> None:
    result = run(tree, "--subject_pattern", PATTERN, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (tmp_path / "other").mkdir()
    (tree / "HEM").rename(tmp_path / "other" / "HEM")
    result = run(tree, "--output", tmp_path / "out")
    assert (result.exit_code, result.stderr.split(":")[1]) == (1, f" {tree}"), result.stderr


def test_findings_end_with_3_and_are_said(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tree / "ALL/ALL0_0.png", tree / "ALL/ALL1_9.png")
    result = run_on(tree)
    assert result.exit_code == 3, result.output
    assert "one subject: ALL0 = ALL1, 1 shared image(s); not joined yet: ALL0" in result.stdout
    assert "inflates metrics: 1 pixel-identical pair(s) stand in two subjects" in result.stdout
    assert (tmp_path / "audit-imagefolder/audit.json").is_file(), "the default folder bears the data set's name"


def test_the_sides_of_a_split_file_are_checked(tree: Path, tmp_path: Path) -> None:
    data = load_cells("imagefolder", tree, subject_pattern=PATTERN)
    split = make_split(data, "subject-cv", num_folds=2, validation=False)
    split.save(tmp_path / "split.json")
    flags = ("--split_file", tmp_path / "split.json", "--output", tmp_path / "out")
    result = run_on(tree, *flags)
    assert result.exit_code == 0, result.output
    findings = json.loads((tmp_path / "out/audit.json").read_text())
    assert findings["split"] == {"strategy": "subject-cv", "detail": "fold 0 of 2", "disjoint_by": "subject"}
    assert "across the sides of the split" in result.stdout
    divided = replace(split, train=(*split.train, split.test[0]), test=split.test[1:])
    divided.save(tmp_path / "split.json")
    assert run_on(tree, *flags).exit_code == 3, "a subject on two sides is a finding"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset_name", "imagefolder", "--train_dir", "nowhere"), "--train_dir nowhere: no such folder"),
        (
            ("--dataset_name", "phantoms", "--split", "all", "--split_file", "s.json"),
            "both give the split; leave one out",
        ),
        (("--dataset_name", "phantoms", "--split", "fair"), "error: --split fair: unknown; choose one of"),
        (("--dataset_name", "phantoms", "--no_such_flag"), "No such option"),
        *(
            (wrong, "error: leukoscope audit: give the images either as DIR, or as --dataset_name with or without")
            for wrong in ((), ("x", "--dataset_name", "cnmc2019"), ("x", "--train_dir", "x"), ("--train_dir", "x"))
        ),
        (("nowhere",), "nowhere: no such folder; give the folder that a data set was unpacked to"),
    ],
)
def test_what_cannot_be_audited_does_not_end_as_findings_do(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == (2 if "--no_such_flag" in arguments else 1), "3 is for findings"
    assert message in " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit)


def test_own_splits_are_checked_as_they_are(tree: Path, tmp_path: Path) -> None:
    """Without a validation side drawn for them, which would need more subjects and could divide copies within train."""
    for label in ("ALL", "HEM"):
        for subject, side in enumerate(("train", "test")):
            (tmp_path / "sides" / side / label).mkdir(parents=True)
            for file in (tree / label).glob(f"{label}{subject}_*"):
                shutil.copy(file, tmp_path / "sides" / side / label)
        shutil.copy(tree / label / f"{label}0_0.png", tmp_path / "sides" / "train" / label / f"{label}0_9.png")
    given = ["--dataset_name", "imagefolder", "--train_dir", tmp_path / "sides", "--output", tmp_path / "out"]
    for subjects, ends_with in (([], 3), (["--subject_pattern", PATTERN], 0)):
        result = run(*given, *subjects)
        assert result.exit_code == ends_with, result.output
        found = json.loads((tmp_path / "out/audit.json").read_text())
        assert found["split"]["strategy"] == "given"
        copies = found["duplicates"]["identical"]
        assert (copies["pairs"], copies["split_sides"]) == (2, 0)
    for file in (tree / "ALL").glob("ALL0_*"):
        shutil.copy(file, tmp_path / "sides" / "test" / "ALL" / f"{file.stem}1.png")
    result = run(*given, "--subject_pattern", PATTERN)
    assert result.exit_code == 3 and "1 subject(s) are on two sides of the split" in result.stdout
    for file in (tmp_path / "sides" / "test" / "ALL").glob("ALL0_*"):
        file.unlink()
    (tmp_path / "sides" / "test").rename(tmp_path / "sides" / "validation")
    assert run(*given, "--subject_pattern", PATTERN).exit_code == 0
    assert json.loads((tmp_path / "out/audit.json").read_text())["shortcuts"]["split"]["strategy"] == "subject-cv"


def test_blank_and_unreadable_images_are_named(tree: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tree / "HEM/HEM0_8.png")
    whole = (tree / "HEM/HEM0_0.png").read_bytes()
    (tree / "HEM/HEM0_9.png").write_bytes(whole[: len(whole) // 2])
    result = run_on(tree, "--output", tmp_path / "out")
    assert "1 image(s) show nothing, for example HEM/HEM0_8" in result.stdout
    assert "1 file(s) could not be read, for example" in result.stdout and "HEM0_9" in result.stdout


def test_a_background_that_gives_the_class_away_ends_the_summary(tree: Path, tmp_path: Path) -> None:
    for path in (tree / "ALL").iterdir():  # photographed in other light
        pixels = np.asarray(Image.open(path)) * 0.8
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    result = run_on(tree, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nothing found" not in result.stdout
    assert any("chance" in line and "0.500" in line for line in result.stdout.splitlines())
    *_, last, _, _ = result.stdout.splitlines()
    assert last.startswith("shortcut: background alone reaches a balanced accuracy of ") and "(chance 0.500)" in last
    (found,) = json.loads((tmp_path / "out/audit.json").read_text())["warnings"]
    assert found in last


def test_own_cells_cut_out_on_black_are_recognised(tmp_path: Path) -> None:
    result = run_on(draw(tmp_path / "own", "webp", "black"), "--output", tmp_path / "out")
    findings = json.loads((tmp_path / "out/audit.json").read_text())
    features = findings["shortcuts"]["features"]
    assert "size" in features and "background" not in features
    missed = "copies that were cropped by a few pixels more, or made brighter or darker; look for those by eye"
    assert f"this search does not find {missed}\n" in result.stdout and findings["duplicates"]["not_found"] == missed
    assert "no cell is cut out" not in result.stdout and "shortcut:" not in result.stdout


def test_quick_describes_a_folder_and_decodes_no_image(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(tree, "--quick")
    assert result.exit_code == 0, result.output
    assert "Own class folders" in result.stdout and "licence: yours" in result.stdout
    assert "problem: the subjects of these cells are not known" in result.stdout
    assert "problem: ALL: 6 cell(s); no metric of fewer than 20 is worth stating" in result.stdout
    train = result.stdout.splitlines()[-1].removeprefix("to train on these cells: leukoscope train ")
    config = parse_config(shlex.split(train))
    assert (config.data.train_dir, config.data.split) == (str(tree), "random")
    assert not list(tmp_path.glob("audit-*"))
    said = json.loads(run(tree, "--quick", "--subject_pattern", r"(?P<subject>[A-Z]+\d)_", "--json").stdout)
    assert said["subjects"] == {"ALL": {"ALL0": 3, "ALL1": 3}, "HEM": {"HEM0": 3, "HEM1": 3}}
    assert said["partitions"] == {"": {"ALL": 6, "HEM": 6}}
    flags = ["--subject_pattern", r"(?P<subject>[A-Z]+\d)_", "--split", "subject-cv", "--num_folds", "2"]
    assert said["flags"][-7:] == [*flags, "--no_validation"]
    refused = run(tree, "--quick", "--split", "random")
    assert refused.exit_code == 1 and "--quick: decodes no image; leave out --split" in refused.stderr


def test_one_cell_of_a_class_cannot_be_trained_on(tree: Path, tmp_path: Path) -> None:
    for cell in tree.glob("HEM/*[12].png"):
        cell.unlink()
    (tree / "HEM/HEM1_0.png").unlink()
    result = run(tree, "--quick", "--json")
    problem = "a classifier cannot be trained on these cells: a class has 1 cell(s); gather more"
    assert (result.exit_code, result.stderr) == (1, f"error: {problem}\n")


def test_cells_of_the_publishers_test_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    names = ("UID_57_29_1_all", "UID_58_29_1_all", "UID_H49_31_1_hem", "UID_H50_31_1_hem")
    for number in range(4):
        save_cell(tmp_path / "C-NMC_test_prelim_phase_data" / f"{number}.bmp", cell=number)
    rows = [f"{name}.bmp,{number}.bmp,1" for number, name in enumerate(names)]
    (tmp_path / CNMC_PRELIM_LABELS).write_text("\n".join(["Patient_ID,new_names,labels", *rows]))
    result = run(tmp_path, "--quick")
    assert result.exit_code == 1 and "cannot be trained on these cells: a class has 0 cell(s)" in result.stderr


def test_a_folder_or_pattern_that_is_wrong_is_one_line_as_it_was_typed(tree: Path) -> None:
    r"""Printed as Python writes it, \d would be \\d, which matches nothing when it is copied."""
    result = run(tree, "--subject_pattern", r"(?P<subject>Q\d)_")
    assert result.stderr.startswith(r"error: --subject_pattern '(?P<subject>Q\d)_': does not match 'ALL/ALL0_0.png'")
    shutil.rmtree(tree / "HEM")
    assert run(tree).stderr == (f"error: {tree}: only the class 'ALL' found; a classifier needs two or more classes\n")
