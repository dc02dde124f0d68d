"""`leukoscope patient` must name each subject, say why one gets no class, and write the table it was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command import run
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.inference.scoring import open_source
from release_fixtures import SUBJECT_RULE

# Any cells of a subject are of class ALL.
BLOCK = SUBJECT_RULE | {"rule": SUBJECT_RULE["rule"] | {"intercept": 9.0}}


@pytest.fixture
def release(tiny_release: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_release, tmp_path / "release"))
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"subject_rule": BLOCK}))
    return folder


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Three cells of "=1+1" and one of "b"."""
    for name in ("=1+1/0", "=1+1/1", "=1+1/2", "b/3"):
        save_cell(tmp_path / "cells" / f"{name}.png", cell=int(name[-1]))
    return tmp_path / "cells"


def test_each_subject_gets_a_line_and_a_reason(release: Path, cells: Path) -> None:
    for number, name in enumerate(("c", "d"), start=4):
        save_cell(cells / name / "0.png", cell=number)
    result = run("patient", release, cells, "--subject_folders")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any("=1+1" in line and "ALL" in line for line in lines)
    assert [line for line in lines if "are needed" in line] == [
        "b: too few cells: 1 cells can be used, but 2 are needed; likewise 2 more"
    ]
    assert lines[-1] == RESEARCH_NOTICE
    assert any(line.startswith("rule: ") and "from 2 or more cells; wrong for 5% of" in line for line in lines)


def test_a_subject_that_the_release_was_trained_on_is_named(release: Path, cells: Path) -> None:
    file = release / "metrics.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"training": {"subjects": ["b", "c"]}}))
    result = run("patient", release, cells, "--subject_folders")
    line = "It was trained on people called b: if these are the same, this is no test."
    assert line in result.stdout.splitlines(), result.output


def test_a_folder_of_pictures_is_one_subject_of_its_name(release: Path, cells: Path) -> None:
    (cells / "=1+1" / "broken.png").write_text("no picture")
    result = run("patient", release, cells / "=1+1", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["subject"], row["cells"], row["outcome"]) == ("=1+1", 3, "ALL")
    assert result.stderr.splitlines()[-1].startswith(f"error: {cells / '=1+1' / 'broken.png'}: is not an image")


def test_a_table_without_subjects_makes_no_subject_of_its_folder(release: Path, cells: Path) -> None:
    """Cells of two subjects would become one subject, and a leukaemic one be reported normal."""
    rows = "".join(f"{path.relative_to(cells.parent)}\n" for path in sorted(cells.rglob("*.png")))
    (cells.parent / "t.csv").write_text(f"file\n{rows}")
    result = run("patient", release, cells.parent / "t.csv")
    assert result.exit_code == 1 and "t.csv: names no subject; add a column called subject, name it" in result.output


def test_problems_end_in_one_line(tiny_release: Path, cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("file,subject\ncells/b/3.png,b\n")
    no_rule = f"{tiny_release}: cannot predict for a subject: no rule was fitted (its metrics.json "
    for words, problem in {
        ("patient", tiny_release, cells, "--subject_folders"): no_rule,
        ("score", tiny_release, "--input", cells, "--output", "out.ods"): "--output out.ods: is not a table format",
        ("score", tiny_release, "--input", cells, "--output", table): f"--output {table}: exists already; move it",
    }.items():
        result = run(*words)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 1 and line.startswith(f"error: {problem}")


def test_a_table_in_the_folder_names_the_subjects(release: Path, cells: Path) -> None:
    """Cells of two people in one folder were one subject, called like the folder."""
    folder = cells / "=1+1"
    (folder / "cells.csv").write_text("file,subject,label\n0.png,Zoe,ALL\n1.png,Zoe,ALL\n2.png,Ann,HEM\n")
    result = run("patient", release, folder, "--json")
    assert result.exit_code == 0, result.output
    assert [(row["subject"], row["cells"]) for row in json.loads(result.stdout)] == [("Ann", 1), ("Zoe", 2)]
    assert result.stderr == f"Subjects are named by {folder / 'cells.csv'}.\n"
    (folder / "cells.csv").write_text("file,subject\n0.png,Zoe\n1.png,Zoe\n")
    result = run("patient", release, folder)
    assert result.exit_code == 1 and "cells.csv: names no subject for '2.png' (1 of 3 pictures)" in result.stderr


def test_subjects_are_in_the_names_of_c_nmc(cells: Path) -> None:
    for number, name in enumerate(("UID_1_1_1_all", "UID_1_2_1_all", "UID_H2_1_1_hem", "UID_H2_2_1_hem")):
        save_cell(cells / "all" / "deep" / f"{name}.png", cell=number)
    source = open_source(str(cells / "all"))
    assert source.subjects() == ["1", "1", "H2", "H2"]
    assert source.report == "Subjects are the numbers after UID_ in the file names, as C-NMC 2019 has them."


def test_two_tables_that_name_the_subjects_are_refused(cells: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (cells / "=1+1" / name).write_text("file,subject\n0.png,P1\n1.png,P1\n2.png,P2\n")
    with pytest.raises(LeukoscopeError, match="a.csv and .*b.csv: both name the subjects; keep one of them there"):
        open_source(str(cells / "=1+1"))
