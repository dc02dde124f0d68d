"""`leukoscope patient` must name each subject, say why one gets no class, and write the table it was asked for."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from command import run
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.inference.scoring import SourceCell, open_source, open_subjects
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
    result = run("patient", release, cells)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any("=1+1" in line and "ALL" in line for line in lines)
    assert [line for line in lines if "are needed" in line] == [
        "b: too few cells: 1 cells can be used, but 2 are needed; likewise 2 more"
    ]
    assert lines[-1] == RESEARCH_NOTICE
    assert any(line.startswith("rule: ") and "from at least 2 cells; wrong for 5% of unseen" in line for line in lines)


def test_transparent_pictures_of_subjects_are_counted(release: Path, cells: Path) -> None:
    path = cells / "b" / "3.png"
    with Image.open(path) as cell:
        transparent = cell.convert("RGBA")
    transparent.putpixel((0, 0), (255, 0, 0, 0))
    transparent.save(path)
    result = run("patient", release, cells)
    assert "1 of 4 pictures have transparent parts: these are read as black" in result.stderr.splitlines()


def test_a_folder_of_pictures_is_one_subject_of_its_name(release: Path, cells: Path) -> None:
    (cells / "=1+1" / "broken.png").write_text("no picture")
    result = run("patient", release, cells / "=1+1", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["subject"], row["cells"], row["outcome"]) == ("=1+1", 3, "ALL")
    assert result.stderr.splitlines()[-1].startswith(f"error: {cells / '=1+1' / 'broken.png'}: is not an image")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_is_written_as_its_name_says(release: Path, cells: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"subjects{suffix}"
    result = run("patient", release, cells, "--output", out)
    assert result.exit_code == 0, result.output
    assert f"table: {out}" in result.stdout
    if suffix == ".parquet":
        rows = pq.read_table(out).to_pylist()
    else:
        with out.open() as file:
            rows = list(csv.DictReader(file))
    # CSV does not say what is text, so that there the name is quoted.
    assert [row["subject"] for row in rows] == ["'=1+1" if suffix == ".csv" else "=1+1", "b"]
    assert [row["outcome"] for row in rows] == ["ALL", "too few cells"]
    assert all(row["notice"] == RESEARCH_NOTICE for row in rows)
    assert not list(tmp_path.glob(".subjects*"))


def test_a_table_without_subjects_makes_no_subject_of_its_folder(release: Path, cells: Path) -> None:
    """Cells of two subjects would become one subject, and a leukaemic one be reported normal."""
    rows = "".join(f"{path.relative_to(cells.parent)}\n" for path in sorted(cells.rglob("*.png")))
    (cells.parent / "t.csv").write_text(f"file\n{rows}")
    result = run("patient", release, cells.parent / "t.csv")
    assert result.exit_code == 1 and "t.csv: names no subject; add a column called subject (or" in result.output


def test_problems_end_in_one_line(tiny_release: Path, cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("file,subject\ncells/b/3.png,b\n")
    before = table.read_text()
    for words, said in {
        (cells,): f"{tiny_release}: cannot predict for a subject: its metrics.json has no 'subject_rule'",
        (cells, "--output", "out.ods"): "--output out.ods: is not a table format that can be written; give a name",
        (table, "--output", table): f"--output {table}: exists already; move it, or name another file",
    }.items():
        result = run("patient", tiny_release, *words)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 1 and line.startswith(f"error: {said}")
    assert table.read_text() == before


def test_a_table_that_cannot_be_written_leaves_the_subjects_printed(release: Path, cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "file" / "subjects.csv"
    (tmp_path / "file").touch()
    result = run("patient", release, cells / "b", "--output", table)
    assert result.exit_code == 1 and "b: too few cells: 1 cells can be used" in result.stdout
    told, error = result.stderr.splitlines()
    assert told == f"All cells of {cells / 'b'} count as one subject's."
    assert error == f"error: --output {table}: cannot be written (File exists); name another folder"


def test_a_cell_outside_any_folder_or_at_an_absolute_path_is_nobodys(cells: Path) -> None:
    source = open_source(str(cells))
    named = {"P1/slide/1.png": "P1", "1.png": "", "/data/P1/1.png": ""}
    assert {cell: source.subject_of(SourceCell(cell, "", ""), ()) for cell in named} == named
    assert source.subject_of(SourceCell("P1/1.png", "7", ""), ()) == "7"


def test_a_table_in_the_folder_names_the_subjects(release: Path, cells: Path) -> None:
    """Cells of two people in one folder were one subject, called like the folder."""
    folder = cells / "=1+1"
    (folder / "cells.csv").write_text("file,subject,label\n0.png,Zoe,ALL\n1.png,Zoe,ALL\n2.png,Ann,HEM\n")
    result = run("patient", release, folder, "--json")
    assert result.exit_code == 0, result.output
    assert [(row["subject"], row["cells"]) for row in json.loads(result.stdout)] == [("Ann", 1), ("Zoe", 2)]
    assert result.stderr == "Subjects are named by cells.csv.\n"
    (folder / "cells.csv").write_text("file,subject\n0.png,Zoe\n1.png,Zoe\n")
    result = run("patient", release, folder)
    assert result.exit_code == 1 and "cells.csv: names no subject for '2.png' (1 of 3 pictures)" in result.stderr


def test_subjects_in_the_names_of_c_nmc_are_told_to_be_guessed(cells: Path) -> None:
    for number, name in enumerate(("UID_1_1_1_all", "UID_1_2_1_all", "UID_H2_1_1_hem", "UID_H2_2_1_hem")):
        save_cell(cells / "all" / "deep" / f"{name}.png", cell=number)
    source = open_subjects(str(cells / "all"))
    assert source.subjects(("ALL", "HEM")) == ["1", "1", "H2", "H2"]
    assert source.report.startswith("Subjects were guessed from the number after UID_ in each file name")


@pytest.mark.parametrize("folder", ["fold_0", "train", "HEM", "controls"])
def test_a_folder_that_names_a_split_or_a_group_is_no_subject(cells: Path, folder: str) -> None:
    save_cell(cells / folder / "9.png", cell=9)
    with pytest.raises(LeukoscopeError, match=f"lies in the folder '{folder}', which is .*, not a subject"):
        open_subjects(str(cells)).subjects(("ALL", "HEM"))


def test_cells_beside_the_folders_of_subjects_are_refused(cells: Path) -> None:
    """They would be one subject more, without a name."""
    save_cell(cells / "9.png", cell=9)
    with pytest.raises(LeukoscopeError, match="9.png: lies outside the folders of subjects; move it into the folder"):
        open_subjects(str(cells)).subjects(("ALL", "HEM"))
