"""`leukoscope evaluate` must judge any release, write its report, and say when it was no test."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import command
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE
from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.data.loading import load_cells
from leukoscope.data.splits import make_split
from leukoscope.evaluation.predictions import CellPredictions

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
Flags = tuple[str, str, str, Path, str, str]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Flags:
    """The flags for a folder with two subjects a class, three small cells each."""
    root = tmp_path_factory.mktemp("cells")
    for number, label in enumerate(["ALL", "ALL", "HEM", "HEM"]):
        for cell in range(3):
            save_cell(root / label / f"s{number}_{cell}.png", label, subject=number, cell=cell)
    return "--dataset_name", "imagefolder", "--train_dir", root, "--subject_pattern", r"(s\d)_"


run = partial(command.run, "evaluate")


def error_of(result: Any) -> str:
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_the_classes_are_read_from_the_column_that_is_named(tiny_release: Path, cells: Flags, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    files = [path.relative_to(cells[3]).as_posix() for path in sorted(cells[3].rglob("*.png"))]
    rows = [f"{file},{file[4:6]},{'HEM' if file[:3] == 'ALL' else 'ALL'}" for file in files]  # not as folders say
    table.write_text("\n".join(["file,subject,diagnosis", *rows]))
    flags = (*cells[:4], "--labels", table, "--output", tmp_path / "report")
    assert run(tiny_release, *flags, "--label_column_name", "diagnosis").exit_code == 0
    subjects = json.loads((tmp_path / "report" / "evaluation.json").read_text())["metrics"]["subjects"]
    assert {name: one["label"] for name, one in subjects.items()} == {
        "s0": "HEM",
        "s1": "HEM",
        "s2": "ALL",
        "s3": "ALL",
    }


def test_a_model_is_asked_about_the_test_side_of_a_split(tiny_release: Path, cells: Flags, tmp_path: Path) -> None:
    data = load_cells("imagefolder", cells[3], subject_pattern=cells[5])
    split = make_split(data, "subject-cv", fold=1, num_folds=2, validation=False)
    split.save(tmp_path / "split.json")
    flags = ("--split_file", tmp_path / "split.json", "--max_eval_samples", 5)
    result = run(tiny_release, *cells, *flags, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["model"] == {"name": "tiny", "revision": ""}
    assert report["split"]["detail"] == "fold 1 of 2"
    assert (report["split"]["cells"], report["split"]["drawn_from"]) == (5, 6)
    assert len(report["data"]["fingerprint"]) == 64
    assert len(CellPredictions.load(tmp_path / "predictions.parquet").cell_ids) == 5
    assert "What trained these weights is not recorded" in result.stdout
    assert "The release gives a class to " in result.stdout
    row = next(line for line in result.stdout.splitlines() if "balanced accuracy" in line)
    assert f"{report['figures']['balanced_accuracy']:.3f}" in row
    subjects = report["metrics"]["subjects"]
    worst = min(subjects, key=lambda name: subjects[name]["accuracy"])
    assert f"| {worst} | {subjects[worst]['label']} | " in result.stdout and RESEARCH_NOTICE in result.stdout
    assert (tmp_path / "evaluation.md").read_text().strip() == result.stdout.strip()
    assert "a single subject" in report["intervals"]["by_subject_missing"], "one subject a class is no sample"


@pytest.mark.parametrize(
    ("folders", "flags"),
    [
        ({"ALL": "all", "HEM": "hem"}, ()),
        ({"ALL": "all", "HEM": "hem"}, ("--label_map", "ALL=all", "--label_map", "HEM=hem")),
        ({"ALL": "leukemia", "HEM": "healthy"}, ("--label_map", "ALL=leukemia", "--label_map", "HEM=healthy")),
    ],
)
def test_classes_of_other_names_are_measured_by_the_rule_for_subjects(
    cells: Flags, tmp_path: Path, folders: dict[str, str], flags: tuple[str, ...]
) -> None:
    for theirs, ours in folders.items():
        shutil.copytree(cells[3] / theirs, tmp_path / "cells" / ours)
    data = ("--dataset_name", "imagefolder", "--train_dir", tmp_path / "cells", "--subject_pattern", cells[5])
    result = run(RELEASE, *data, *flags, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    subjects = json.loads((tmp_path / "out" / "evaluation.json").read_text())["subject_rule"]["subjects"]
    assert {name: one["label"] for name, one in subjects.items()} == {
        **dict.fromkeys(("s0", "s1"), folders["ALL"]),
        **dict.fromkeys(("s2", "s3"), folders["HEM"]),
    }
    run(RELEASE, *cells, "--output", tmp_path / "same")
    same = json.loads((tmp_path / "same" / "evaluation.json").read_text())["subject_rule"]["subjects"]
    probabilities = {name: one["probability"] for name, one in same.items()}
    assert {name: one["probability"] for name, one in subjects.items()} == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["blast"], "blast: write the model's class, =, and ours, like blast=ALL"),
        (["blast=ALL"], "blast=ALL: 'blast' is not a class of the model, which has ALL, HEM; correct or leave it out"),
        (["ALL=ALL", "ALL=HEM"], "ALL=HEM: ALL is already mapped to ALL; leave one out"),
    ],
)
def test_a_label_map_that_cannot_be_followed_is_refused(
    tiny_release: Path, cells: Flags, pairs: list[str], said: str
) -> None:
    flags = [word for pair in pairs for word in ("--label_map", pair)]
    assert error_of(run(tiny_release, *cells, *flags)) == f"--label_map {said}"


def test_changed_pictures_are_measured_on_request(tiny_release: Path, cells: Flags, tmp_path: Path) -> None:
    result = run(tiny_release, *cells, "--robustness", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    block = json.loads((tmp_path / "evaluation.json").read_text())["robustness"]
    assert (block["cells"], block["subjects"], block["estimates"]) == (12, 4, "these weights")
    assert set(block["changes"]) == set(PICTURE_CHANGES)
    assert "12 of these cells, every subject counting the same" in result.stdout
    assert "robustness" not in json.loads(_evaluated(tiny_release, cells, tmp_path / "plain"))


def _evaluated(release: Path, cells: Flags, output: Path) -> str:
    assert run(release, *cells, "--output", output).exit_code == 0
    return (output / "evaluation.json").read_text()


@pytest.mark.slow
def test_a_release_asked_about_its_own_subjects_is_called_no_test(few_real_cells: Path, tmp_path: Path) -> None:
    result = run(
        *(RELEASE, "--dataset_name", "cnmc2019", "--train_dir", few_real_cells, "--max_eval_samples", 60),
        *("--output", tmp_path),
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "evaluation.json").read_text())
    overlap, subjects = report["training_overlap"], len(report["metrics"]["subjects"])
    assert overlap["verdict"] == "bad" and overlap["subjects"] == subjects
    assert f"trained on {subjects} of these {subjects} subjects: not a test." in result.stdout
